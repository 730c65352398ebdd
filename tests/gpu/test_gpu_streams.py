"""Order on the GPU: CuPy's current stream, several streams at once, several devices, the GIL."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from gpu_support import chain_product, diagonal

from ncg_cuda import Layout, cg, ops

pytestmark = pytest.mark.gpu
N = 200_003


class TestCurrentStream:
    def test_work_queued_before_is_seen(self, cp: Any, hold: Any) -> None:
        """The operands are changed by work that has not run when the operation is queued behind it."""
        rng = np.random.default_rng(0)
        p, hp = rng.standard_normal((2, N))
        stream = cp.cuda.Stream(non_blocking=True)
        p_gpu, hp_gpu = cp.asarray(p), cp.asarray(hp)
        cp.cuda.get_current_stream().synchronize()
        with stream:
            p_gpu *= 1.0  # loads the kernel
            ops.damped_curvature(hp_gpu, p_gpu, 0.5)
            stream.synchronize()
            with hold(stream):
                p_gpu *= 3.0
                sums = ops.damped_curvature(hp_gpu, p_gpu, 0.5)
                p_gpu *= 5.0
            got = [float(s) for s in sums]
        q = hp + 1.5 * p
        np.testing.assert_allclose(got, [3 * p @ q, q @ q, 9 * p @ p], rtol=1e-12)

    def test_what_is_queued_behind_sees_what_was_written(self, cp: Any, hold: Any) -> None:
        d, w = (cp.asarray(np.full(N, v, np.float32)) for v in (2.0, 1.0))
        stream = cp.cuda.Stream(non_blocking=True)
        cp.cuda.get_current_stream().synchronize()
        with stream:
            ops.weighted_step(w, d, d, 0.0)
            w * np.float32(10)  # loads the kernel, and leaves memory in the pool
            stream.synchronize()
            with hold(stream):
                ops.weighted_step(w, d, d, 0.5)
                copy = w * np.float32(10)
            assert (copy.get() == 20.0).all()

    def test_a_solve_follows_the_stream(self, cp: Any, hold: Any) -> None:
        d, b = diagonal(N, 10, np.float32)
        d_gpu, b_gpu = cp.asarray(d), cp.asarray(b)
        want = cg(lambda p: d_gpu * p, cp.asarray(4 * b), poll=0).x.get()
        stream = cp.cuda.Stream(non_blocking=True)
        cp.cuda.get_current_stream().synchronize()
        with stream:
            b_gpu *= np.float32(1)
            cg(lambda p: d_gpu * p, b_gpu, poll=0)
            stream.synchronize()
            with hold(stream):
                b_gpu *= np.float32(4)
                result = cg(lambda p: d_gpu * p, b_gpu, poll=0)
            assert result.x.get().tobytes() == want.tobytes()

    def test_a_table_in_device_memory_follows_the_stream(self, cp: Any, hold: Any) -> None:
        layout = Layout([(37,)] * 300)
        flat = cp.zeros(layout.size, np.float32)
        tensors = layout.views(cp.zeros(layout.size, np.float32))
        stream = cp.cuda.Stream(non_blocking=True)
        cp.cuda.get_current_stream().synchronize()
        with stream:
            workspace = ops.Workspace(flat, segments=300)
            for tensor in (tensors[0], tensors[299]):
                tensor += np.float32(0)
            ops.accumulate(flat, tensors, 1.0, workspace=workspace)
            stream.synchronize()
            with hold(stream):
                tensors[0] += np.float32(1)
                tensors[299] += np.float32(2)
                ops.accumulate(flat, tensors, 1.0, workspace=workspace)
            got = layout.views(flat)
            assert (float(got[0].sum()), float(got[1].sum()), float(got[299].sum())) == (37.0, 0.0, 74.0)


def test_two_solves_at_once_give_the_bits_of_one_after_the_other(cp: Any, hold: Any) -> None:
    systems = [[cp.asarray(v) for v in diagonal(N, 30, np.float32, seed)] for seed in (1, 2)]
    options: dict[str, Any] = {"tau": 0.1, "cg_tol": 1e-4, "max_iter": 20, "poll": 0}
    want = [cg(lambda p, d=d: d * p, b, **options) for d, b in systems]
    bits = [(w.x.get().tobytes(), w.iterations, w.residual_norm) for w in want]
    streams = [cp.cuda.Stream(non_blocking=True) for _ in systems]
    cp.cuda.get_current_stream().synchronize()
    for stream, (d, b) in zip(streams, systems, strict=True):
        with stream:
            kept = [cg(lambda p, d=d: d * p, b, **options) for _ in range(2)]  # so much memory is in the pool then
            stream.synchronize()
            del kept
    results: list[Any] = []
    for _ in range(4):
        results.clear()
        with hold(streams[0]), hold(streams[1]):  # both are released together
            for _ in range(2):
                for stream, (d, b) in zip(streams, systems, strict=True):
                    with stream:
                        results.append(cg(lambda p, d=d: d * p, b, **options))
        for i, result in enumerate(results):
            with streams[i % 2]:
                assert (result.x.get().tobytes(), result.iterations, result.residual_norm) == bits[i % 2]


class TestSecondDevice:
    @pytest.fixture(autouse=True)
    def _two(self, cp: Any) -> None:
        if cp.cuda.runtime.getDeviceCount() < 2:
            pytest.skip("needs two GPUs")

    def test_operations_run_where_the_arrays_are(self, cp: Any) -> None:
        a = np.arange(1000, dtype=np.float32)
        with cp.cuda.Device(1):
            there = cp.asarray(a)
        sums = ops.dots(there, there)
        assert cp.cuda.Device().id == 0
        assert [s.device.id for s in sums] == [1, 1, 1]
        with cp.cuda.Device(1):
            assert float(sums[0]) == 332833500.0

    def test_a_solve_runs_where_b_is(self, cp: Any) -> None:
        with cp.cuda.Device(1):
            b = cp.asarray(np.random.default_rng(0).standard_normal(5000))
            want = cg(chain_product(), b).x.get()
        result = cg(chain_product(), b)
        assert cp.cuda.Device().id == 0
        assert result.x.device.id == 1
        with cp.cuda.Device(1):
            assert result.x.get().tobytes() == want.tobytes()
        assert result.converged

    def test_a_stream_of_the_second_device_is_followed(self, cp: Any, hold: Any) -> None:
        with cp.cuda.Device(1):
            a = cp.asarray(np.ones(N))
            cp.cuda.get_current_stream().synchronize()
            with cp.cuda.Stream(non_blocking=True) as stream:
                a *= 1.0
                ops.dots(a, a)
                stream.synchronize()
                with hold(stream):
                    a *= 2.0
                    sums = ops.dots(a, a)
                assert float(sums[0]) == 4.0 * N

    def test_devices_are_not_mixed(self, cp: Any) -> None:
        a = cp.asarray(np.ones(50))
        with cp.cuda.Device(1):
            b = cp.asarray(np.ones(50))
        with pytest.raises(ValueError, match="b: on cuda:1, but a is on cuda:0; move one of them"):
            ops.dots(a, b)
        with pytest.raises(ValueError, match="matvec: returned an array on cuda:1, but b is on cuda:0"):
            cg(lambda p: b, a)


_FULL_QUEUE = """
import threading, time
import cupy, numpy
from ncg_cuda import ops
a = cupy.zeros(5000, numpy.float32)
stream = cupy.cuda.Stream(non_blocking=True)
with stream:
    workspace = ops.Workspace(a)
    ops.dots(a, a, workspace=workspace)
    stream.synchronize()
released, queued = threading.Event(), []
stream.launch_host_func(lambda _: released.wait(60), None)
def work():
    with stream:
        for i in range(20_000):
            ops.dots(a, a, workspace=workspace)
            queued.append(i)
thread = threading.Thread(target=work, daemon=True)
thread.start()
while True:  # until the queue of the GPU is full, and a launch waits
    before = len(queued)
    time.sleep(1.0)
    if len(queued) == before:
        break
print("waits" if thread.is_alive() else "never waited", flush=True)
released.set()
thread.join(60)
stream.synchronize()
print(len(queued))
"""


def test_a_launch_that_waits_does_not_hold_the_gil() -> None:
    """The queue of a stream that stands still is filled: launching waits, and only another Python thread can end that.

    In a process of its own: where the GIL is held, it hangs for ever.
    """
    done = subprocess.run([sys.executable, "-c", _FULL_QUEUE], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    waited, count = done.stdout.split("\n")[:2]
    assert count == "20000"
    if waited != "waits":
        pytest.skip("the queue of this GPU holds 20000 launches: nothing to see")
