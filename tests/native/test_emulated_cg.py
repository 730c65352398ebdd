"""Solves on an emulated GPU: the truth, the CPU engine, and how often the host waits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fake_gpu import CUDA, Producer
from gpu_problems import system

from ncg_cuda import CGResult, Layout, StopReason, cg

DTYPES = ["float32", "float64"]
MORE = ["float32", pytest.param("float64", marks=pytest.mark.native)]  # the rest in make check-native
N = 4000


def both(gpu: Any, d: np.ndarray, b: np.ndarray, **options: Any) -> tuple[CGResult, CGResult]:
    """The same solve on the GPU and on the CPU engine."""
    there, options = gpu.cupy.asarray(d), dict(options)
    looks = {"poll": 4, "verify": False if options.get("poll") == 0 else options.get("verify")}
    on_cpu = cg(lambda p: d * p, b, **{**options, **looks})
    for name in ("x0", "preconditioner"):
        if name in options:
            options[name] = gpu.cupy.asarray(options[name])
    on_gpu = cg(lambda p: there * p, gpu.cupy.asarray(b), **options)
    return on_gpu, on_cpu


def same(on_gpu: CGResult, on_cpu: CGResult, dtype: str, tolerance: float = 1000.0) -> None:
    """To rounding."""
    eps = float(np.finfo(dtype).eps)
    assert on_gpu.stop_reason is on_cpu.stop_reason
    assert abs(on_gpu.iterations - on_cpu.iterations) <= 1
    scale = float(np.abs(on_cpu.x).max()) or 1.0
    np.testing.assert_allclose(on_gpu.x.get(), on_cpu.x, rtol=0, atol=tolerance * eps * scale)
    assert on_gpu.rhs_norm == pytest.approx(on_cpu.rhs_norm, rel=10 * eps)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "x in every iteration": {"defer_x": False},
    "damped": {"tau": 0.7},
    "x0": {"x0": None},
    "preconditioned": {"preconditioner": None, "tau": 0.1},
    "preconditioned, x0": {"preconditioner": None, "x0": None},
    "verified": {"verify": True},
    "looked at every time": {"poll": 1},
    "never looked at": {"poll": 0},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_agrees_with_numpy_and_with_the_cpu_engine(gpu: Any, dtype: str, options: dict[str, Any]) -> None:
    d, b = system(N, dtype)
    tau, options = options.get("tau", 0.0), dict(options)
    exact = b.astype(float) / (d.astype(float) + tau)
    if "x0" in options:
        options["x0"] = (exact + 0.1 * np.random.default_rng(3).standard_normal(N)).astype(dtype)
    if "preconditioner" in options:
        options["preconditioner"] = (1 / np.round(d + tau)).astype(dtype)
    tol = 1e-5 if dtype == "float32" else 1e-11
    on_gpu, on_cpu = both(gpu, d, b, cg_tol=tol, max_iter=60, **options)
    np.testing.assert_allclose(on_gpu.x.get(), exact, rtol=0, atol=20 * tol * np.abs(exact).max())
    same(on_gpu, on_cpu, dtype)
    assert on_gpu.converged
    assert type(on_gpu.x) is gpu.cupy.ndarray


@pytest.mark.parametrize("dtype", MORE)
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize("tensors", [0, 5, 170])
def test_micro_batches_and_tables(gpu: Any, dtype: str, count: int, preconditioned: bool, tensors: int) -> None:
    """Products in parts, each as one array or as tensors: more than fit into the arguments of a launch."""
    layout = Layout([(i % 31 + 1, 3) for i in range(tensors)] or [(2000,)])
    mask = layout.pack([np.ones(s) for s in layout.shapes])
    rng = np.random.default_rng(count)
    parts = [(rng.uniform(0.5, 4, layout.size) * mask).astype(dtype) for _ in range(count)]
    weights = [0.6, 0.3, 0.8][:count]
    h = sum(w * part.astype(float) for w, part in zip(weights, parts, strict=True))
    b = (rng.standard_normal(layout.size) * mask).astype(dtype)
    there = [gpu.cupy.asarray(part) for part in parts]

    def matvec(part: Any) -> Any:
        return lambda p: [v.copy() for v in layout.views(part * p)] if tensors else part * p

    tol = 1e-5 if dtype == "float32" else 1e-10
    result = cg(
        [matvec(part) for part in there],
        gpu.cupy.asarray(b),
        weights=weights,
        tau=0.3,
        cg_tol=tol,
        max_iter=60,
        layout=layout if tensors else None,
        preconditioner=gpu.cupy.asarray((1 / (np.round(h) + 0.3)).astype(dtype)) if preconditioned else None,
    )
    assert result.converged
    exact = b / (h + 0.3)
    np.testing.assert_allclose(result.x.get(), exact, rtol=0, atol=50 * tol * np.abs(exact).max())
    used = {call.name for call in gpu.calls if call.on_gpu}
    assert ("accumulate_curvature" in used) == (count > 1 and not preconditioned)
    assert (any(entry[0] == "copy" for entry in gpu.log)) == (tensors == 170)


class TestStops:
    """Every reason, with poll left at its default: the passes after the stop change nothing."""

    @pytest.mark.parametrize("dtype", MORE)
    @pytest.mark.parametrize("poll", [None, 0, 7])
    def test_max_iter(self, gpu: Any, dtype: str, poll: int | None) -> None:
        d, b = system(N, dtype)
        on_gpu, on_cpu = both(gpu, d, b, cg_tol=0.0, max_iter=5, poll=poll)
        same(on_gpu, on_cpu, dtype)
        assert (on_gpu.stop_reason, on_gpu.iterations, on_gpu.products) == (StopReason.MAX_ITER, 5, 5)

    @pytest.mark.parametrize("dtype", MORE)
    @pytest.mark.parametrize(("low", "high"), [(-3.0, -1.0), (-0.1, 10.0)])
    @pytest.mark.parametrize("poll", [None, 0])
    def test_negative_curvature(self, gpu: Any, dtype: str, low: float, high: float, poll: int | None) -> None:
        d, b = system(N, dtype, low=low, high=high)
        d[0] = low
        on_gpu, on_cpu = both(gpu, d, b, cg_tol=1e-6, max_iter=200 if poll is None else 60, poll=poll)
        same(on_gpu, on_cpu, dtype, 1e5)
        assert on_gpu.stop_reason is StopReason.NEGATIVE_CURVATURE
        assert (on_gpu.iterations == 1) == (high < 0)

    @pytest.mark.parametrize("dtype", MORE)
    @pytest.mark.parametrize("poll", [None, 0])
    def test_breakdown(self, gpu: Any, dtype: str, poll: int | None) -> None:
        d, b = system(N, dtype)
        bad = d.copy()
        bad[N // 2] = np.nan
        on_gpu, on_cpu = both(gpu, bad, b, poll=poll)
        same(on_gpu, on_cpu, dtype)
        assert on_gpu.stop_reason is StopReason.BREAKDOWN
        assert not on_gpu.x.values.any()
        b[7] = np.inf
        on_gpu, _ = both(gpu, d, b, poll=poll)
        assert (on_gpu.stop_reason, on_gpu.iterations) == (StopReason.BREAKDOWN, 0)

    @pytest.mark.parametrize("dtype", MORE)
    def test_stagnated(self, gpu: Any, dtype: str) -> None:
        d, b = system(N, dtype)
        on_gpu, on_cpu = both(gpu, d, b, cg_tol=0.0, max_iter=500)
        assert on_gpu.stop_reason is on_cpu.stop_reason is StopReason.STAGNATED
        np.testing.assert_allclose(on_gpu.x.get(), b.astype(float) / d, rtol=100 * float(np.finfo(dtype).eps))
        assert on_gpu.verified

    @pytest.mark.parametrize("curvature", [1e-25, 1e24])
    @pytest.mark.parametrize("poll", [None, 0])
    def test_matrices_of_any_size(self, gpu: Any, curvature: float, poll: int | None) -> None:
        d, b = system(N, "float32")
        on_gpu, on_cpu = both(gpu, (d * curvature).astype("float32"), b, max_iter=60, poll=poll)
        same(on_gpu, on_cpu, "float32")
        assert on_gpu.converged

    @pytest.mark.parametrize("magnitude", [1e-30, 1e25])
    @pytest.mark.parametrize("poll", [None, 0])
    def test_scaled(self, gpu: Any, magnitude: float, poll: int | None) -> None:
        d, b = system(N, "float32")
        on_gpu, on_cpu = both(gpu, d, (b * magnitude).astype("float32"), max_iter=60, poll=poll)
        same(on_gpu, on_cpu, "float32")
        assert on_gpu.converged


def test_a_solution_out_of_range_is_forgotten(gpu: Any) -> None:
    on_gpu, _ = both(gpu, np.full(9, 1e-3, np.float32), np.full(9, 1e37, np.float32), cg_tol=1e-4)
    assert on_gpu.stop_reason is StopReason.BREAKDOWN
    assert not on_gpu.x.get().any()


def test_arrays_that_are_not_aligned_are_copied(gpu: Any) -> None:
    """A view of a vector from an odd element on: operations need 16 bytes, cg takes what its users have."""
    cp = gpu.cupy
    d, b = system(N, "float32")
    there, right = cp.asarray(np.r_[d, d]), cp.asarray(np.r_[0, b].astype("float32"))
    views = there[1 : N + 1], right[1:]
    assert all(view.data.ptr % 16 for view in views)
    double = cp.asarray(np.r_[0, 0, 0, d].astype("float32"))

    def matvec(p: Any) -> Any:
        product = cp.asarray(np.zeros(N + 3, "float32"))
        product[3:] = double[3:] * p
        return product[3:]

    result = cg(matvec, views[1], x0=views[0], cg_tol=1e-4, max_iter=60)
    assert result.converged
    np.testing.assert_allclose(result.x.get(), b / d, rtol=0, atol=1e-3)


@pytest.mark.parametrize("how", ["not aligned", "not contiguous"])
def test_copies_stay_on_their_device(gpu: Any, how: str) -> None:
    """Where another device is current."""
    cp = gpu.cupy
    with cp.cuda.Device(1):
        whole = cp.asarray(np.arange(1.0, 2 * N + 2, dtype="float32"))
        b = whole[1 : N + 1] if how == "not aligned" else whole[::2][:N]
    assert gpu.device == 0
    result = cg(lambda p: p + p, b, cg_tol=1e-3)
    assert result.x.device.id == 1
    with cp.cuda.Device(1):
        np.testing.assert_allclose(result.x.get(), b.get() / 2, rtol=1e-5)


def test_callback(gpu: Any) -> None:
    cp = gpu.cupy
    d, b = system(N, "float64")
    there, seen = cp.asarray(d), []

    def look(iteration: int, x: Any, norm: float) -> None:
        true = np.linalg.norm(b - d * x.get())
        assert norm == pytest.approx(true, rel=1e-6)
        seen.append(iteration)

    cg(lambda p: there * p, cp.asarray(b), cg_tol=0.0, max_iter=8, poll=3, callback=look)
    assert seen == [3, 6, 8]
    seen.clear()
    cg(lambda p: there * p, cp.asarray(b), cg_tol=0.0, max_iter=4, callback=look, defer_x=True)
    assert seen == [1, 2, 3, 4]


def test_the_second_device(gpu: Any) -> None:
    cp = gpu.cupy
    d, b = system(N, "float32")
    with cp.cuda.Device(1):
        there, right, near = cp.asarray(d), cp.asarray(b), cp.asarray(b)
    stream_of_zero = cp.cuda.Stream(non_blocking=True)
    with stream_of_zero:  # must not be used on device 1
        result = cg(lambda p: there * p, right, x0=near, max_iter=40, verify=True)
        assert gpu.device == 0
    assert {(launch.device, launch.stream) for launch in gpu.launches} == {(1, 0)}
    assert result.x.device.id == 1
    np.testing.assert_allclose(result.x.values, b / d, rtol=1e-3, atol=1e-5)
    lazy = cg(lambda p: there * p, right, max_iter=40, poll=0)
    assert lazy.converged  # reads on the right device


def test_mixed_arrays(gpu: Any) -> None:
    cp = gpu.cupy
    d, b = system(N, "float32")
    there, right = cp.asarray(d), cp.asarray(b)
    with cp.cuda.Device(1):
        elsewhere = cp.asarray(d)
    with pytest.raises(TypeError, match=r"x0: got numpy.ndarray|x0: got ndarray"):
        cg(lambda p: there * p, right, x0=b)
    with pytest.raises(ValueError, match=r"preconditioner: on cuda:1, but b is on cuda:0"):
        cg(lambda p: there * p, right, preconditioner=elsewhere)
    with pytest.raises(TypeError, match=r"matvec: returned numpy.ndarray; it must return an array like b \(cupy.nd"):
        cg(lambda p: d, right)
    with pytest.raises(ValueError, match="matvec: returned an array on cuda:1, but b is on cuda:0"):
        cg(lambda p: elsewhere, right)
    with pytest.raises(TypeError, match=r"matvec: returned cupy.ndarray; it must return an array like b \(numpy"):
        cg(lambda p: there, b)
    with pytest.raises(TypeError, match="matvec: returned dtype float64, but b has float32"):
        cg(lambda p: p.astype(float), right)


@pytest.mark.parametrize("poll", [None, 0])
def test_arrays_by_dlpack(gpu: Any, poll: int | None) -> None:
    """A library without vectors and without a current stream: CuPy's are used, on the array's device."""
    d, b = system(N, "float32")
    b = np.concatenate([np.zeros(16, np.float32), b])
    right = Producer(b[-b.ctypes.data % 16 // 4 :][:N], (CUDA, 1))
    gpu.memory.foreign(right.data, 1)
    with gpu.cupy.cuda.Device(1):
        there = gpu.cupy.asarray(d)
    result = cg(lambda p: there * p, right, max_iter=40, poll=poll)
    assert result.converged
    assert type(result.x) is gpu.cupy.ndarray
    np.testing.assert_allclose(result.x.values, right.data / d, rtol=1e-3, atol=1e-5)
    assert right.asked[-1]["stream"] == 1  # DLPack's name for the default stream
    assert {launch.device for launch in gpu.launches} == {1}


def test_a_product_in_the_solvers_own_memory(gpu: Any) -> None:
    """The matvec of the identity may return its argument: the product is copied before pass B writes p."""
    b = np.random.default_rng(0).standard_normal(N).astype(np.float32)
    result = cg(lambda p: p, gpu.cupy.asarray(b), tau=1.0, max_iter=5)
    assert result.converged
    np.testing.assert_allclose(result.x.get(), b / 2, rtol=1e-6)


@pytest.mark.parametrize("dtype", MORE)
def test_a_dense_matrix(gpu: Any, dtype: str) -> None:
    rng = np.random.default_rng(8)
    q, _ = np.linalg.qr(rng.standard_normal((90, 90)))
    a = (q * np.geomspace(1, 50, 90)) @ q.T
    b = rng.standard_normal(90)
    there = gpu.cupy.asarray(a.astype(dtype))
    tol = 1e-5 if dtype == "float32" else 1e-11
    result = cg(lambda p: there @ p, gpu.cupy.asarray(b.astype(dtype)), tau=0.5, cg_tol=tol, max_iter=200)
    assert result.converged
    exact = np.linalg.solve(a + 0.5 * np.eye(90), b)
    assert np.linalg.norm(result.x.get() - exact) <= 60 * tol * np.linalg.norm(exact)
