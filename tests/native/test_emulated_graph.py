"""Solves as CUDA graphs, on an emulated GPU: what is captured, in which order, and what is left when it fails."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
from gpu_problems import system_there

from ncg_cuda import GraphCG, Layout, StopReason, cg, ops
from ncg_cuda.graph import LOOPS

N = 5000


def names(gpu: Any, stream: int) -> list[str]:
    return [call.name for call in gpu.calls if call.stream == stream]


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.native)])
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("preconditioned", [False, True])
def test_gives_the_bits_of_cg(gpu: Any, dtype: str, loop: str, preconditioned: bool) -> None:
    cp = gpu.cupy
    d, b = system_there(gpu, N, 1, dtype)
    m = 1 / (d + 0.3) if preconditioned else None
    options = {"tau": 0.1, "cg_tol": 1e-2, "max_iter": 14, "preconditioner": m}
    want = cg(lambda p: d * p, b, poll=0, **options)
    want_x = want.x.get().tobytes()
    solver = GraphCG(lambda p: d * p, b, loop=loop, **options)
    gpu.syncs.clear()
    result = solver.launch()
    assert gpu.syncs == []
    ran = gpu.runs
    assert result.x.get().tobytes() == want_x
    assert (result.iterations, result.stop_reason) == (want.iterations, want.stop_reason)
    assert result.converged
    assert result.products == result.iterations
    assert result.residual_norm == want.residual_norm
    passes = result.iterations if loop == "device" else 14
    assert gpu.runs - ran == 2 + 2 * passes + 1  # the loop on the device ends with the solve
    other = system_there(gpu, N, 2, dtype)[1]
    again = solver.launch(other)
    assert again.x.get().tobytes() == cg(lambda p: d * p, other, poll=0, **options).x.get().tobytes()
    d *= 2.0  # new values in place, of which the graph knows
    doubled = solver.launch(b)
    np.testing.assert_allclose(doubled.x.get(), b.values / (d.values + 0.1), rtol=0, atol=0.1)
    assert cp.cuda.get_current_stream().ptr == 0


def test_what_is_captured_and_in_which_order(gpu: Any) -> None:
    d, b = system_there(gpu, N, 3)
    gpu.log.clear()
    GraphCG(lambda p: d * p, b, max_iter=9)
    at = {what: i for i, (what, *_) in enumerate(gpu.log) if what != "launch"}
    begin, opened, closed, end = (at[k] for k in ("begin_capture", "loop_open", "loop_close", "end_capture"))
    assert begin < opened < closed < end
    _, stream, body = gpu.log[opened]
    assert gpu.log[begin][1] == gpu.log[end][1] == stream
    assert gpu.log[closed][1] == body != stream
    assert gpu.log[begin + 1 : opened] == [("launch", stream)] * 2
    assert gpu.log[opened + 1 : closed] == [("launch", body)] * 2
    assert gpu.log[closed + 1 : end] == [("launch", stream)]
    assert names(gpu, body) == ["damped_curvature", "cg_update_deferred"]
    assert names(gpu, stream)[-3:] == ["magnitude", "cg_begin", "cg_finish"]
    assert [launch.captured for launch in gpu.launches[-5:]] == [True] * 5
    assert gpu.log[begin - 1] == ("sync", "stream")  # all that the capture builds on has been done
    assert gpu.capturing() == []


def test_unrolled(gpu: Any) -> None:
    d, b = system_there(gpu, N, 3)
    gpu.log.clear()
    GraphCG(lambda p: d * p, b, max_iter=9, loop="unrolled")
    begin = next(i for i, entry in enumerate(gpu.log) if entry[0] == "begin_capture")
    stream = gpu.log[begin][1]
    assert gpu.log[begin + 1 :] == [("launch", stream)] * (2 + 2 * 9 + 1) + [("end_capture", stream)]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("when", ["at once", "in the capture"])
@pytest.mark.parametrize("how", ["raises", "reads", "returns something else"])
def test_a_matvec_that_fails_leaves_nothing_capturing(gpu: Any, loop: str, when: str, how: str) -> None:
    cp = gpu.cupy
    d, b = system_there(gpu, N, 4)
    calls: list[int] = []

    def matvec(p: Any) -> Any:
        calls.append(1)
        if when == "in the capture" and len(calls) == 1:
            return d * p
        if how == "raises":
            raise KeyError("mine")
        if how == "reads":
            return p / float((p * p).sum())
        return np.ones(N, np.float32)

    error = {"raises": KeyError, "reads": cp.cuda.runtime.CUDARuntimeError, "returns something else": TypeError}[how]
    if how == "reads" and when == "at once":
        calls.append(0)  # allowed outside of the capture: the capture is what fails
    with pytest.raises(error) as raised:
        GraphCG(matvec, b, max_iter=5, loop=loop)
    chain, messages = raised.value, []
    while chain is not None:
        messages.append(str(chain))
        chain = chain.__context__
    wanted = {"raises": "mine", "reads": "not permitted when stream is capturing", "returns something else": "matvec: "}
    assert any(wanted[how] in message for message in messages)
    assert gpu.capturing() == []
    assert cp.cuda.get_current_stream().ptr == 0
    assert gpu.pool is None
    solver = GraphCG(lambda p: d * p, b, max_iter=5, loop=loop)  # and the next one works
    assert solver.launch().iterations == 5


@pytest.mark.parametrize("loop", LOOPS)
def test_a_long_table_is_kept_for_every_launch(gpu: Any, loop: str) -> None:
    """In device memory: a graph would copy it from the host each time, and in a loop's body that is not allowed."""
    cp = gpu.cupy
    layout = Layout([(i % 40 + 1,) for i in range(200)])
    mask = layout.pack([np.ones(s) for s in layout.shapes])
    rng = np.random.default_rng(0)
    d, right = rng.uniform(1, 9, layout.size) * mask, rng.standard_normal(layout.size) * mask
    there, b = cp.asarray(d), cp.asarray(right)
    gpu.log.clear()
    solver = GraphCG(lambda p: layout.views(there * p), b, cg_tol=1e-4, max_iter=20, layout=layout, loop=loop)
    begin = next(i for i, entry in enumerate(gpu.log) if entry[0] == "begin_capture")
    assert "copy" in [entry[0] for entry in gpu.log[:begin]]
    assert "copy" not in [entry[0] for entry in gpu.log[begin:]]
    gc.collect()
    junk = [np.full((200, 3), -1) for _ in range(300)]  # where a freed table was
    for _ in range(2):
        result = solver.launch()
        assert result.converged
        np.testing.assert_allclose(result.x.get(), np.divide(right, d, where=mask > 0, out=0 * d), rtol=0, atol=2e-3)
    assert len(junk) == 300


@pytest.mark.parametrize("loop", LOOPS)
def test_nobody_else_gets_the_graphs_memory(gpu: Any, loop: str) -> None:
    """What the matvec allocates and drops while it is captured is written by every launch."""
    d, b = system_there(gpu, N, 9)
    solver = GraphCG(lambda p: d * p, b, max_iter=4, loop=loop)
    mine = [gpu.cupy.full(N, 7.0, "float32") for _ in range(12)]
    assert solver.launch().iterations == 4
    for array in mine:
        assert (array.get() == 7.0).all()


@pytest.mark.parametrize("loop", LOOPS)
def test_launches_on_two_streams_do_not_meet(gpu: Any, loop: str) -> None:
    """A launch waits for the one before, and a result is read after its launch, whatever stream is current."""
    cp = gpu.cupy
    d, b = system_there(gpu, N, 1)
    other = system_there(gpu, N, 2)[1]
    want = [cg(lambda p: d * p, rhs, poll=0, cg_tol=1e-2) for rhs in (b, other)]
    want = [(result.residual_norm, result.x.get().tobytes()) for result in want]
    solver = GraphCG(lambda p: d * p, b, cg_tol=1e-2, loop=loop)
    streams = [cp.cuda.Stream(non_blocking=True) for _ in range(2)]
    for stream, rhs in zip(streams, (b, other), strict=True):
        with stream:
            result = solver.launch(rhs)
    assert result.residual_norm == want[1][0]  # on the default stream, which nothing orders behind the launches
    with streams[1]:
        assert result.x.get().tobytes() == want[1][1]


def test_a_lazy_result_is_read_after_its_solve(gpu: Any) -> None:
    cp = gpu.cupy
    d, b = system_there(gpu, N, 1)
    cp.cuda.get_current_stream().synchronize()
    with cp.cuda.Stream(non_blocking=True):
        result = cg(lambda p: d * p, b, poll=0, cg_tol=1e-2)
    assert result.iterations > 2
    assert result.converged


def test_on_another_stream_and_device(gpu: Any) -> None:
    cp = gpu.cupy
    with cp.cuda.Device(1):
        d, b = system_there(gpu, N, 5)
    solver = GraphCG(lambda p: d * p, b, max_iter=30)
    assert {launch.device for launch in gpu.launches} == {1}
    with cp.cuda.Device(1):
        stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        result = solver.launch()
    assert gpu.log[-1] == ("graph", stream.ptr)
    assert gpu.device == 0
    with cp.cuda.Device(1), stream:
        np.testing.assert_allclose(result.x.get(), b.values / d.values, rtol=0, atol=1e-2)
    assert result.stop_reason in (StopReason.CONVERGED, StopReason.MAX_ITER)


def test_mistakes(gpu: Any) -> None:
    d, b = system_there(gpu, N, 6)
    with pytest.raises(TypeError, match=r"b: got numpy.ndarray on cpu; a graph needs CuPy arrays"):
        GraphCG(lambda p: p, np.ones(5))
    with pytest.raises(ValueError, match="loop: 'while'; give one of 'device', 'unrolled'"):
        GraphCG(lambda p: p, b, loop="while")
    solver = GraphCG(lambda p: d * p, b, max_iter=3)
    with pytest.raises(ValueError, match=r"b: shape \(7,\), but b has \(5000,\)"):
        solver.launch(b[:7])
    with gpu.cupy.cuda.Device(1):
        elsewhere = gpu.cupy.asarray(b.values)
    with pytest.raises(ValueError, match="b: on cuda:1, but b is on cuda:0"):
        solver.launch(elsewhere)


def test_a_solve_that_the_caller_captures(gpu: Any) -> None:
    """``cg(..., poll=0)`` between begin_capture and end_capture."""
    cp = gpu.cupy
    layout = Layout([(30,)] * 170)
    mask = layout.pack([np.ones(30, "f")] * 170)
    rng = np.random.default_rng(0)
    d = cp.asarray(rng.uniform(1, 9, layout.size).astype("f"))
    b = cp.asarray((rng.standard_normal(layout.size) * mask).astype("f"))
    cp.cuda.get_current_stream().synchronize()
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        result = cg(lambda p: layout.views(d * p), b, max_iter=20, poll=0, layout=layout)
        graph = stream.end_capture()
        assert gpu.runs == 0
        for factor in (1.0, 3.0):
            b *= factor
            graph.launch(stream)
            stream.synchronize()
            np.testing.assert_allclose(result.x.values, b.values / d.values, rtol=0, atol=1e-3)
        assert result.iterations > 5


def test_a_look_in_a_capture_is_refused_by_cuda(gpu: Any) -> None:
    cp = gpu.cupy
    d, b = system_there(gpu, N, 8)
    cp.cuda.get_current_stream().synchronize()
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="not permitted when stream is capturing"):
            cg(lambda p: d * p, b, poll=3)
        with pytest.raises(cp.cuda.runtime.CUDARuntimeError):
            stream.end_capture()


def test_an_operation_in_a_capture_needs_a_workspace_that_lasts(gpu: Any) -> None:
    cp = gpu.cupy
    a = cp.asarray(np.ones(N, "float32"))
    workspace = ops.Workspace(a)
    cp.cuda.get_current_stream().synchronize()
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        with pytest.raises(ValueError, match="workspace: none is given while a CUDA graph is captured"):
            ops.magnitude(a)
        total = ops.magnitude(a, workspace=workspace)
        graph = stream.end_capture()
        graph.launch(stream)
        assert float(total) == N
