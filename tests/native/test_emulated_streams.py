"""Several streams of an emulated GPU: what waits for what, and solves that do not meet."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fake_gpu import CUDA, Producer
from gpu_problems import system_there

from ncg_cuda import Layout, cg, ops

N = 6000


def start(gpu: Any, stream: Any, d: Any, b: Any, **options: Any) -> Any:
    """Queue a solve on a stream, behind what the default stream holds."""
    ready = gpu.cupy.cuda.get_current_stream().record()
    with stream:
        stream.wait_event(ready)
        return cg(lambda p: d * p, b, poll=0, max_iter=12, **options)


@pytest.mark.parametrize(("seed", "tensors"), [(0, 0), (1, 0), (2, 0), (3, 200)])
def test_two_solves_at_once_give_the_bits_of_one_after_the_other(gpu: Any, seed: int, tensors: int) -> None:
    cp = gpu.cupy
    layout = Layout([(45,)] * tensors) if tensors else None
    size = layout.size if layout else N
    rng = np.random.default_rng(2)
    systems = [
        (cp.asarray(rng.uniform(1, 20, size).astype("f")), cp.asarray(rng.standard_normal(size).astype("f")))
        for _ in "ab"
    ]
    if layout:  # padding is zero
        mask = cp.asarray(layout.pack([np.ones(45, "f")] * tensors))
        systems = [(d, b * mask) for d, b in systems]

    def matvec(d: Any) -> Any:
        return (lambda p: [v * w for v, w in zip(layout.views(d), layout.views(p), strict=True)]) if layout else d

    def solve(stream: Any, d: Any, b: Any) -> Any:
        ready = cp.cuda.get_current_stream().record()
        with stream:
            stream.wait_event(ready)
            product = matvec(d) if layout else lambda p: d * p
            return cg(product, b, poll=0, max_iter=12, layout=layout)

    streams = [cp.cuda.Stream(non_blocking=True) for _ in systems]
    alone = []
    for stream, (d, b) in zip(streams, systems, strict=True):
        result = solve(stream, d, b)
        with stream:
            alone.append((result.x.get().tobytes(), result.residual_norm))
    together = [solve(stream, d, b) for stream, (d, b) in zip(streams, systems, strict=True)]
    gpu.run_all(seed)
    for stream, result, (x, norm) in zip(streams, together, alone, strict=True):
        with stream:
            assert result.x.get().tobytes() == x
            assert result.residual_norm == norm
    assert {launch.stream for launch in gpu.launches} == {stream.ptr for stream in streams}


def test_solves_that_share_a_workspace_would_meet(gpu: Any) -> None:
    """So the test above can fail: the same, with what cg never does."""
    cp = gpu.cupy
    (a, _), (b, _) = system_there(gpu, N, 1), system_there(gpu, N, 2)
    workspace = ops.Workspace(a)
    gpu.run_all(0)
    sums = []
    for array in (a, b):
        with cp.cuda.Stream(non_blocking=True):
            sums.append(ops.dots(array, array, workspace=workspace)[1])
    gpu.run_all(0)
    assert float(sums[0]) == float(sums[1])


def test_a_look_waits_for_the_solves_own_stream_alone(gpu: Any) -> None:
    cp = gpu.cupy
    d, b = system_there(gpu, N, 3)
    other, mine = cp.cuda.Stream(non_blocking=True), cp.cuda.Stream(non_blocking=True)
    slow = start(gpu, other, d, b)
    ready = cp.cuda.get_current_stream().record()
    with mine:
        mine.wait_event(ready)
        ran = gpu.runs
        result = cg(lambda p: d * p, b, max_iter=12)
        assert result.iterations > 3
        assert gpu.runs - ran <= 2 * result.products + 5
    assert np.isnan(slow.x.values).any()  # nobody waited for it
    with other:
        assert slow.x.get().tobytes() == result.x.values.tobytes()


def test_the_result_is_used_in_the_order_of_the_stream(gpu: Any) -> None:
    """Without any wait of the host between the solve and what comes after it."""
    cp = gpu.cupy
    d, b = system_there(gpu, N, 4, "float64")
    gpu.run_all(0)
    right = b.values.copy()
    stream = cp.cuda.Stream(non_blocking=True)
    result = start(gpu, stream, d, b)
    with stream:
        w = cp.zeros(N)
        w += result.x
        sums = ops.dots(w, b)
        b *= 0.0  # of no concern to the solve, which is queued before
    assert gpu.syncs == []
    with stream:
        assert float(sums[1]) == pytest.approx(float((w.get() ** 2).sum()), rel=1e-12)
        assert float(sums[0]) == pytest.approx(float(w.get() @ right), rel=1e-12)
        np.testing.assert_allclose(w.get(), right / d.values, rtol=0, atol=0.05)


def test_memory_that_is_dropped_at_once_is_still_there(gpu: Any) -> None:
    """Products live in the matvec's own arrays: gone from Python before the pass that reads them has run."""
    cp = gpu.cupy
    d, b = system_there(gpu, N, 5)
    stream = cp.cuda.Stream(non_blocking=True)
    kept = start(gpu, stream, d, b).x
    freed = [block for block in gpu.memory.blocks if block.freed]
    assert len(freed) >= 12  # the products, at least
    with stream:
        x = kept.get()
    np.testing.assert_allclose(x, b.values / d.values, rtol=0, atol=0.05)


def test_a_producer_of_another_stream_is_waited_for(gpu: Any) -> None:
    """DLPack's handshake: the array's own library orders its work before the launch's stream."""
    cp = gpu.cupy
    theirs, mine = cp.cuda.Stream(non_blocking=True), cp.cuda.Stream(non_blocking=True)
    host = np.full(64 + 16, np.nan, np.float32)
    host = host[-host.ctypes.data % 64 // 4 :][:64]
    gpu.memory.foreign(host, 0)
    gpu.queue(theirs.ptr).submit(lambda: host.fill(2.0))

    class Pending(Producer):
        def __dlpack__(self, **asked: Any) -> Any:
            stream = asked["stream"]
            gpu.queue(stream).submit(theirs.record().position.run)
            return super().__dlpack__(**asked)

    a = Pending(host, (CUDA, 0))
    with mine:
        _, aa, _ = ops.dots(a, a)
        assert float(aa) == 4.0 * 64
    assert [asked["stream"] for asked in a.asked] == [mine.ptr] * 2
    assert gpu.launches[-1].stream == mine.ptr


def test_a_solve_within_a_solve(gpu: Any) -> None:
    """On a stream of its own, in the matvec of the other one."""
    cp = gpu.cupy
    (d, b), (e, c) = system_there(gpu, N, 6), system_there(gpu, N, 7)
    s, t = cp.cuda.Stream(non_blocking=True), cp.cuda.Stream(non_blocking=True)
    s.wait_event(cp.cuda.get_current_stream().record())
    t.wait_event(cp.cuda.get_current_stream().record())
    inner: list[Any] = []

    def matvec(p: Any) -> Any:
        if not inner:
            with t:  # a whole other solve, in the middle of this one
                inner.append(cg(lambda v: e * v, c, max_iter=12))
        return d * p

    with s:
        outer = cg(matvec, b, max_iter=12)
        np.testing.assert_allclose(outer.x.get(), b.values / d.values, rtol=0, atol=0.05)
    np.testing.assert_allclose(inner[0].x.values, c.values / e.values, rtol=0, atol=0.05)
    handles = [launch.stream for launch in gpu.launches]
    assert handles[:2] == [s.ptr] * 2
    assert handles[-1] == s.ptr
    assert set(handles) == {s.ptr, t.ptr}
