"""Whole solves as CUDA graphs: GraphCG, and cg(poll=0) captured by the caller."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gpu_support import DTYPES, chain_product, diagonal

from ncg_cuda import GraphCG, Layout, StopReason, cg, ops

pytestmark = pytest.mark.gpu
N = 3 * ops.CHUNK + 37
NUMBERS = ("iterations", "stop_reason", "residual_norm", "rhs_norm", "curvature", "drift")


@pytest.fixture(params=["device", "unrolled"])
def loop(request: pytest.FixtureRequest) -> str:
    """How the iterations of a graph repeat."""
    return str(request.param)


def check_same(graph: Any, plain: Any) -> None:
    assert graph.x.get().tobytes() == plain.x.get().tobytes()
    for name in NUMBERS:
        assert getattr(graph, name) == getattr(plain, name), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("max_iter", [1, 2, 7, 50])
def test_the_result_is_that_of_cg(cp: Any, loop: str, dtype: type, max_iter: int) -> None:
    d, b = (cp.asarray(v) for v in diagonal(N, 30, dtype))
    options: dict[str, Any] = {"tau": 0.1, "cg_tol": 1e-3, "max_iter": max_iter}
    kept = b.copy()
    result = GraphCG(lambda p: d * p, b, loop=loop, **options).launch()
    check_same(result, cg(lambda p: d * p, b, poll=0, **options))
    assert result.products == result.iterations
    assert np.array_equal(b.get(), kept.get())
    exact = kept.get().astype(float) / (d.get().astype(float) + 0.1)
    if max_iter == 50:
        assert result.converged
        assert result.iterations < 50
        assert np.linalg.norm(result.x.get() - exact) <= 2e-2 * np.linalg.norm(exact)


def test_launched_again_and_again(cp: Any, loop: str) -> None:
    """For another b, and for another matrix in the same memory; the solves in between leave no traces."""
    d, b = (cp.asarray(v) for v in diagonal(N, 30, np.float32))
    solver = GraphCG(lambda p: d * p, b, tau=0.1, cg_tol=1e-4, max_iter=40, loop=loop)
    first = solver.launch().x.get()
    for seed, size in ((1, 1.0), (2, 1e-30), (3, 1e25), (4, 1.0)):
        other = cp.asarray((diagonal(N, 30, np.float32, seed)[1].astype(float) * size).astype(np.float32))
        check_same(solver.launch(other), cg(lambda p: d * p, other, tau=0.1, cg_tol=1e-4, max_iter=40, poll=0))
    zero = solver.launch(cp.zeros(N, np.float32))
    assert (zero.stop_reason, zero.iterations) == (StopReason.CONVERGED, 0)
    assert not zero.x.get().any()
    assert solver.launch(b).x.get().tobytes() == first.tobytes()
    d *= np.float32(2)
    check_same(solver.launch(), cg(lambda p: d * p, b, tau=0.1, cg_tol=1e-4, max_iter=40, poll=0))


def test_a_table_too_long_for_the_arguments_of_a_launch(cp: Any, loop: str) -> None:
    """In the body of a graph's loop nothing may be copied from pageable memory."""
    layout = Layout([(i % 40 + 1,) for i in range(200)])
    mask = layout.pack([np.ones(s) for s in layout.shapes])
    rng = np.random.default_rng(0)
    d, right = rng.uniform(1, 9, layout.size) * mask, rng.standard_normal(layout.size) * mask
    there, b = cp.asarray(d), cp.asarray(right)
    solver = GraphCG(lambda p: layout.views(there * p), b, cg_tol=1e-9, max_iter=60, layout=layout, loop=loop)
    for factor in (1.0, 2.0):
        result = solver.launch(factor * b)
        assert result.converged
        want = factor * np.divide(right, d, where=mask > 0, out=0 * d)
        np.testing.assert_allclose(result.x.get(), want, rtol=0, atol=1e-7)


def test_launches_on_two_streams_do_not_meet(cp: Any, loop: str) -> None:
    d, b = (cp.asarray(v) for v in diagonal(N, 5, np.float32))
    other = 3 * b
    options = {"tau": 0.1, "cg_tol": 1e-4, "max_iter": 30}
    want = cg(lambda p: d * p, other, poll=0, **options)
    solver = GraphCG(lambda p: d * p, b, loop=loop, **options)
    cp.cuda.get_current_stream().synchronize()
    for rhs in (b, other) * 5:
        with cp.cuda.Stream(non_blocking=True):
            result = solver.launch(rhs)
    assert result.residual_norm == want.residual_norm  # read on the default stream
    assert result.x.get().tobytes() == want.x.get().tobytes()


@pytest.mark.parametrize("tau", [0.0, 0.45])
def test_an_indefinite_system(cp: Any, loop: str, tau: float) -> None:
    indefinite = np.ones(5000)
    indefinite[::7] = -0.5
    h, b = cp.asarray(indefinite), cp.asarray(np.random.default_rng(1).standard_normal(5000))
    result = GraphCG(lambda p: h * p, b, tau=tau, max_iter=30, loop=loop).launch()
    assert result.stop_reason is StopReason.NEGATIVE_CURVATURE
    check_same(result, cg(lambda p: h * p, b, tau=tau, max_iter=30, poll=0))


def test_a_breakdown_does_not_stay(cp: Any, loop: str) -> None:
    d, b = (cp.asarray(v) for v in diagonal(N, 5, np.float32))
    solver = GraphCG(lambda p: d * p, b, max_iter=30, loop=loop)
    want = solver.launch().x.get()
    spoiled = b.copy()
    spoiled[N - 1] = np.nan
    assert solver.launch(spoiled).stop_reason is StopReason.BREAKDOWN
    again = solver.launch(b)
    assert again.converged
    assert again.x.get().tobytes() == want.tobytes()


@pytest.mark.parametrize("preconditioned", [False, True])
def test_a_matvec_that_allocates(cp: Any, loop: str, preconditioned: bool) -> None:
    """What it allocates while it is captured belongs to the graph; the caller's own arrays may not get that memory."""
    b = cp.asarray(np.random.default_rng(3).standard_normal(N))
    m = cp.asarray(np.full(N, 0.4)) if preconditioned else None
    options: dict[str, Any] = {"preconditioner": m, "cg_tol": 1e-8, "max_iter": 60}
    solver = GraphCG(chain_product(), b, loop=loop, **options)
    others = [cp.full(N, float(i)) for i in range(20)]
    result = solver.launch()
    check_same(result, cg(chain_product(), b, poll=0, **options))
    assert all((other.get() == i).all() for i, other in enumerate(others))


@pytest.mark.parametrize("tensors", [3, 200])
@pytest.mark.parametrize("count", [1, 2])
def test_tensors_and_micro_batches(cp: Any, loop: str, tensors: int, count: int) -> None:
    """Beyond 161 tensors the graph copies their table to the GPU at each launch."""
    layout = Layout([(i % 29 + 1, 3) for i in range(tensors)])
    d, b = (layout.pack(layout.views(v)) for v in diagonal(layout.size, 30, np.float32))
    d_gpu, b_gpu = cp.asarray(d), cp.asarray(b)

    def part(weight: float) -> Any:
        return lambda p: layout.views(np.float32(weight) * (d_gpu * p))

    matvec = part(1.0) if count == 1 else [part(0.5), part(1.5)]
    options: dict[str, Any] = {"tau": 0.2, "max_iter": 40, "cg_tol": 1e-4, "layout": layout}
    solver = GraphCG(matvec, b_gpu, loop=loop, **options)
    for _ in range(3):
        result = solver.launch()
        check_same(result, cg(matvec, b_gpu, poll=0, **options))
        assert result.converged
        assert result.products == count * result.iterations
        exact = b.astype(float) / (d.astype(float) + 0.2)
        assert np.linalg.norm(result.x.get() - exact) <= 2e-3 * np.linalg.norm(exact)


def test_a_launch_runs_on_the_current_stream(cp: Any, hold: Any, loop: str) -> None:
    d, b = (cp.asarray(v) for v in diagonal(N, 10, np.float32))
    solver = GraphCG(lambda p: d * p, b, max_iter=30, loop=loop)
    want = solver.launch(b * np.float32(2)).x.get()
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        changing = b * np.float32(1)
        changing *= np.float32(1)  # loads the kernel
        solver.launch(changing)
        stream.synchronize()
        with hold(stream):
            changing *= np.float32(2)
            result = solver.launch(changing)
        assert result.x.get().tobytes() == want.tobytes()


def test_a_matvec_that_waits_for_the_gpu_is_refused(cp: Any, loop: str) -> None:
    d, b = (cp.asarray(v) for v in diagonal(500, 10, np.float32))

    def reads(p: Any) -> Any:
        return d * np.float32(float(p[0] - p[0]) + 1.0) * p

    with pytest.raises(RuntimeError):
        GraphCG(reads, b, loop=loop)

    def fails(p: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise ZeroDivisionError("mine")
        return d * p

    calls: list[int] = []
    with pytest.raises(ZeroDivisionError, match="mine"):
        GraphCG(fails, b, loop=loop)
    assert GraphCG(lambda p: d * p, b, loop=loop).launch().x.get().any()  # nothing stayed capturing


def test_mistakes(cp: Any) -> None:
    b = cp.asarray(np.ones(50, np.float32))
    with pytest.raises(ValueError, match="loop: 'endless'; give one of 'device', 'unrolled'"):
        GraphCG(lambda p: p, b, loop="endless")
    with pytest.raises(TypeError, match=r"b: got numpy.ndarray on cpu; a graph needs CuPy arrays"):
        GraphCG(lambda p: p, np.ones(50))
    solver = GraphCG(lambda p: p + p, b)
    with pytest.raises(ValueError, match="b: 49 elements of float32"):
        solver.launch(b[:49])
    with pytest.raises(ValueError, match="b: 50 elements of float64"):
        solver.launch(b.astype(np.float64))
    assert float(solver.launch().x[7]) == 0.5


def test_a_solve_captured_by_its_caller(cp: Any) -> None:
    d, b = (cp.asarray(v) for v in diagonal(N, 30, np.float32))
    hp = cp.zeros(N, np.float32)

    def matvec(p: Any) -> Any:  # in memory of its own: what it took from CuPy's pool, others might get
        hp[...] = p
        hp.__imul__(d)
        return hp

    other = cp.asarray(diagonal(N, 30, np.float32, seed=5)[1])
    options: dict[str, Any] = {"tau": 0.1, "cg_tol": 1e-3, "max_iter": 25, "poll": 0}
    want = [cg(matvec, v, **options) for v in (b, other)]
    assert all(w.converged for w in want)
    cp.cuda.get_current_stream().synchronize()
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        cg(matvec, b, **options)  # loads the kernels
        stream.synchronize()
        stream.begin_capture()
        result = cg(matvec, b, **options)
        graph = stream.end_capture()
        for given, plain in ((b.copy(), want[0]), (other, want[1]), (other, want[1])):
            b[...] = given
            graph.launch(stream)
            assert result.x.get().tobytes() == plain.x.get().tobytes()
        check_same(result, want[1])  # its numbers are read when first asked for
