"""What is specific to arrays on a GPU, on a machine without one: streams, devices, lifetimes, with fake producers."""

from __future__ import annotations

import gc
import sys
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_gpu import BFLOAT, CUDA, CUDA_HOST, CUDA_MANAGED, ROCM, FakeGpu, Producer, new_capsule

from ncg_cuda import _core, ops, streams
from ncg_cuda.adapter import Adapter
from ncg_cuda.arrays import operand
from ncg_cuda.gpu_libraries import CUPY
from ncg_cuda.immutable import TENSORFLOW


def ones(n: int = 64, dtype: type = np.float32) -> np.ndarray:
    room = np.ones(n + 16, dtype)
    start = -room.ctypes.data % 64 // room.itemsize
    return room[start : start + n]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Fake CuPy and torch; launches are recorded instead of made."""
    fake = FakeGpu()
    monkeypatch.setitem(sys.modules, "cupy", fake.cupy)
    monkeypatch.setitem(sys.modules, "torch", fake.torch)
    fake.launches = []

    def launch(on_gpu: bool, dtype: int, n: int, addresses: list[int], **where: Any) -> None:
        fake.log.append("launch")
        fake.launches.append({"on_gpu": on_gpu, "addresses": addresses, "device": fake.current.number, **where})

    for name in ("dots", "damped_curvature", "cg_update"):
        monkeypatch.setattr(_core, name, launch)
    streams._in_flight.clear()
    yield fake
    streams._in_flight.clear()


class TestCapsules:
    """Every variety that the ABI allows, in host memory."""

    def test_old_and_new_capsules_are_read(self) -> None:
        data = ones()
        for version in (None, (1, 0), (1, 3)):
            p = Producer(data, version=version)
            assert ops.dots(p, p) == (64.0, 64.0, 64.0)
            assert operand(p, "p").address == data.ctypes.data
            assert all("stream" not in asked for asked in p.asked)

    def test_offset_and_strides(self) -> None:
        data = ones()
        assert operand(Producer(data[:60], skip=16), "p").address == data.ctypes.data + 16
        operand(Producer(data.reshape(8, 8), strides=(8, 1)), "p")
        operand(Producer(data.reshape(1, 64), strides=(999, 1)), "p")
        assert operand(Producer(data[:1], shape=()), "p").size == 1
        for strides in ((1, 8), (16, 2), (0, 1)):
            with pytest.raises(ValueError, match="p: not contiguous"):
                operand(Producer(data.reshape(8, 8), strides=strides), "p")

    def test_types(self) -> None:
        short = Producer(np.zeros(8, np.int16), code=BFLOAT)
        assert operand(short, "hp", allow_bfloat16=True).nbytes == 16
        with pytest.raises(TypeError, match="hp: dtype bfloat16; allowed are float32 and float64"):
            operand(short, "hp")
        with pytest.raises(TypeError, match="hp: dtype int64"):
            operand(Producer(np.zeros(8, np.int64), code=0), "hp")

    def test_devices(self) -> None:
        assert operand(Producer(ones(), (CUDA_HOST, 0)), "p").device == "cpu"
        with pytest.raises(TypeError, match=r"p: .* DLPack type 10; only CPU and CUDA"):
            operand(Producer(ones(), (ROCM, 0)), "p")

    def test_another_major_version_and_a_used_capsule_are_refused(self) -> None:
        with pytest.raises(TypeError, match=r"p: .*DLPack 2\.1"):
            operand(Producer(ones(), version=(2, 1)), "p")
        with pytest.raises(BufferError, match="named 'used_dltensor'"):
            _core.read_capsule(new_capsule(1, b"used_dltensor", None))

    def test_arrays_by_dlpack_alone_are_not_written(self) -> None:
        x = ones()
        with pytest.raises(TypeError, match=r"p: fake_gpu.Producer cannot be written in place"):
            ops.cg_update(x.copy(), x.copy(), Producer(x), x.copy(), alpha=1.0, beta=0.0)
        assert operand(Producer(x, read_only=True), "p").size == 64

    def test_no_memory(self) -> None:
        empty = Producer(ones())
        empty._block.tensor.data = None
        with pytest.raises(ValueError, match="p: its memory starts at 0x0"):
            operand(empty, "p")

    def test_an_error_of_the_producer_names_the_argument(self) -> None:
        class Broken(Producer):
            def __dlpack__(self, **_: Any) -> Any:
                raise BufferError("mine")

        with pytest.raises(TypeError, match=r"b: test_arrays_gpu.*Broken that cannot be read: mine"):
            ops.dots(ones(), Broken(ones()))


@pytest.mark.parametrize(("current", "asked"), [(0, 1), (1, 1), (2, 2), (4711, 4711)])
def test_a_producer_is_told_the_stream_of_the_launch(gpu: Any, current: int, asked: int) -> None:
    gpu.cupy_stream.ptr = current
    a, b = Producer(ones(), (CUDA, 0)), Producer(ones(), (CUDA, 0))
    sums = ops.dots(a, b)
    assert [p.asked[-1]["stream"] for p in (a, b)] == [asked, asked]  # never 0, which DLPack forbids
    assert gpu.launches[0]["stream"] == current
    assert gpu.launches[0]["addresses"] == [a.data.ctypes.data, b.data.ctypes.data]
    assert all(type(s) is gpu.ndarray for s in sums)


@pytest.mark.parametrize("kind", [CUDA, CUDA_MANAGED])
def test_the_arrays_device_is_current_during_the_launch(gpu: Any, kind: int) -> None:
    a = Producer(ones(), (kind, 1))
    ops.dots(a, a)
    assert gpu.launches[0]["device"] == 1
    assert gpu.current.number == 0  # and given back
    with pytest.raises(ValueError, match="b: on cuda:0, but a is on cuda:1; move one of them"):
        ops.dots(a, Producer(ones(), (CUDA, 0)))
    with pytest.raises(ValueError, match="b: on cpu, but a is on cuda:1"):
        ops.dots(a, ones())
    with pytest.raises(ValueError, match="b: on cuda:1, but a is on cpu"):
        ops.dots(ones(), a)


def test_torch_alone_needs_no_cupy(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)  # importing it fails
    gpu.torch_stream.ptr = 77
    x, r, p, hp = (gpu.Tensor(ones(), 1, gpu.log) for _ in range(4))
    rr = ops.cg_update(x, r, p, hp, alpha=1.0, beta=0.0)
    assert type(rr) is gpu.Tensor
    assert (gpu.launches[0]["stream"], gpu.launches[0]["device"]) == (77, 1)
    assert gpu.log == ["launch", "wrote", "wrote", "wrote"]  # no handshake where nothing is mixed
    ops.dots(Producer(ones(), (CUDA, 0)), Producer(ones(), (CUDA, 0)))
    assert gpu.launches[1]["stream"] == 77
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "torch")
    with pytest.raises(ImportError, match="a: it is on a GPU, where CuPy or torch is needed"):
        ops.dots(Producer(ones(), (CUDA, 0)), Producer(ones(), (CUDA, 0)))


def test_the_written_arrays_decide_the_stream_and_others_are_ordered_both_ways(gpu: Any) -> None:
    gpu.cupy_stream.ptr, gpu.torch_stream.ptr = 11, 22
    hp = gpu.Tensor(ones(), 0, gpu.log)
    x, r, p = (gpu.ndarray(ones(), 0, gpu.log) for _ in range(3))
    ops.cg_update(x, r, p, hp, alpha=1.0, beta=0.0)
    assert gpu.launches[0]["stream"] == 11
    assert gpu.log == [("handshake", "Tensor", 11), "launch", ("waits", 22, 11)]
    gpu.log.clear()
    other = gpu.ndarray(ones(), 0, gpu.log)
    ops.damped_curvature([other], gpu.Tensor(ones(), 0, gpu.log))  # a table of CuPy arrays
    assert gpu.launches[1]["stream"] == 22
    assert gpu.log == [("handshake", "ndarray", 22), "launch", ("waits", 11, 22)]


def test_the_same_stream_under_two_names_is_not_waited_for(gpu: Any) -> None:
    gpu.cupy_stream.ptr, gpu.torch_stream.ptr = 0, 1  # both are the legacy default stream
    ops.dots(gpu.ndarray(ones(), 0, gpu.log), gpu.Tensor(ones(), 0, gpu.log))
    assert gpu.log == [("handshake", "Tensor", 1), "launch"]


def test_memory_of_libraries_without_a_stream_is_kept_until_the_operation_is_done(gpu: Any) -> None:
    def call() -> weakref.ref[Producer]:
        p = Producer(ones(), (CUDA, 0))
        ops.dots(p, p)
        return weakref.ref(p)

    first = call()
    gc.collect()
    assert first() is not None
    gpu.events[0].done = True
    second = call()
    gc.collect()
    assert first() is None
    assert second() is not None
    for _ in range(20):  # a host that runs ahead is held back before it fills the memory
        call()
    assert len(streams._in_flight) <= streams._MOST_IN_FLIGHT
    assert ("host waits", 1) in gpu.log


def test_unaligned_memory_is_refused_on_a_gpu(gpu: Any) -> None:
    a = Producer(ones()[1:], (CUDA, 0))
    with pytest.raises(ValueError, match=r"a: its memory starts at .* multiple of 16 bytes"):
        ops.dots(a, a)


def test_a_workspace_of_another_library_is_refused(gpu: Any) -> None:
    workspace = ops.Workspace(gpu.ndarray(ones(), 0, gpu.log))
    t = gpu.Tensor(ones(), 0, gpu.log)
    with pytest.raises(ValueError, match=r"workspace: made by cupy, but .* stream of torch"):
        ops.dots(t, t, workspace=workspace)


def test_vectors_of_a_solve_are_made_where_b_is(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.cupy_stream.ptr = 5
    adapter = Adapter(Producer(ones(), (CUDA, 1)), "b")
    vector = adapter.memory.zeros(adapter.size, adapter.dtype, adapter.device)
    assert (type(vector), vector.number, gpu.current.number) == (gpu.ndarray, 1, 0)
    assert type(adapter.lend(vector)) is gpu.ndarray  # the other library is not known: matvec gets CuPy arrays
    with adapter.guard():
        assert gpu.current.number == 1
    product = Producer(ones(), (CUDA, 1))
    assert adapter.product(product).device == "cuda:1"
    assert product.asked[-1]["stream"] == 5
    with pytest.raises(ValueError, match="matvec: returned an array on cuda:0, but b is on cuda:1"):
        adapter.product(Producer(ones(), (CUDA, 0)))


def test_tensorflow_gets_a_direction_that_is_ready(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes no part in the handshake of streams, so the host waits for the solver's stream first."""
    gpu.cupy_stream.ptr = 5
    dlpack = SimpleNamespace(from_dlpack=lambda capsule: gpu.log.append("taken"))
    monkeypatch.setitem(
        sys.modules, "tensorflow", SimpleNamespace(experimental=SimpleNamespace(dlpack=dlpack), Tensor=type(None))
    )
    vector = gpu.ndarray(ones(), 1, gpu.log)
    TENSORFLOW.wrap(vector, (64,), Producer(ones(), (CUDA, 1)), CUPY)
    assert gpu.log == [("host waits", 5), ("handshake", "ndarray", None), "taken"]
