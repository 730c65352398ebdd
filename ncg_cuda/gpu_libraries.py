"""CuPy and torch: libraries whose arrays can be on a GPU and be written, each with a current stream of its own.

Neither is imported before the program has done so (but see :func:`gpu_library`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .dlpack import CPU, Memory, consumer, export
from .libraries import Library, Owner, number_of


class CuPy(Owner):
    """Arrays of ``cupy`` on a GPU, and CuPy's current stream."""

    name = "cupy"

    @property
    def _cupy(self) -> Any:
        return sys.modules["cupy"]

    def describe(self, array: Any, stream: int | None) -> Memory:
        return Memory(
            array.data.ptr, array.size, str(array.dtype), self.device(array), array.flags.c_contiguous, writeable=True
        )

    def addresses(
        self, tensors: Sequence[Any], lengths: NDArray[np.int64], dtype: str, device: str, *, written: bool
    ) -> Any:
        ndarray, number = self._cupy.ndarray, number_of(device)
        for tensor, length in zip(tensors, lengths.tolist(), strict=True):
            if (
                type(tensor) is not ndarray
                or tensor.size != length
                or tensor.dtype != dtype
                or tensor.device.id != number
                or not tensor.flags.c_contiguous
            ):
                return None
        return [tensor.data.ptr for tensor in tensors]

    def device(self, array: Any) -> str:
        return f"cuda:{array.device.id}"

    def empty(self, size: int, dtype: str, device: str) -> Any:
        with self.guard(device):
            return self._cupy.empty(size, dtype=dtype)

    def zeros(self, size: int, dtype: str, device: str) -> Any:
        with self.guard(device):
            return self._cupy.zeros(size, dtype=dtype)

    def adopt(self, array: Any, library: Library) -> Any:
        if library is not self:
            array = self._cupy.from_dlpack(library.exporter(array))
        with self.guard(self.device(array)):  # a copy would go to the current one
            return self._cupy.ascontiguousarray(array).reshape(-1)

    def copy(self, vector: Any) -> Any:
        with self.guard(self.device(vector)):
            return vector.copy()

    def read(self, vector: Any) -> list[float]:
        values: list[float] = vector.get().tolist()
        return values

    def write(self, vector: Any, values: NDArray[np.float64]) -> None:
        vector[:] = self._cupy.asarray(values)

    def guard(self, device: str) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = self._cupy.cuda.Device(number_of(device))
        return context

    def stream(self, device: str) -> int:
        with self.guard(device):
            return int(self._cupy.cuda.get_current_stream().ptr)

    def event(self, stream: int, device: str) -> Any:
        cuda = self._cupy.cuda
        with self.guard(device):
            event = cuda.Event(disable_timing=True)
            event.record(cuda.ExternalStream(consumer(stream)))
        return _Event(event, lambda: event.done, event.synchronize)

    def await_event(self, event: Any, device: str) -> None:
        with self.guard(device):
            self._cupy.cuda.get_current_stream().wait_event(event.event)

    def capturing(self, device: str) -> bool:
        with self.guard(device):
            return bool(self._cupy.cuda.get_current_stream().is_capturing())

    def constant(self, values: NDArray[np.int64], device: str) -> Any | None:
        with self.guard(device), self._cupy.cuda.Stream(non_blocking=True) as aside:
            there = self._cupy.asarray(values)
            aside.synchronize()
        return there


class Torch(Owner):
    """Tensors of ``torch``, on the CPU or a GPU, and torch's current stream."""

    name = "torch"

    @property
    def _torch(self) -> Any:
        return sys.modules["torch"]

    def describe(self, array: Any, stream: int | None) -> Memory:
        torch = self._torch
        if array.layout is not torch.strided:
            raise TypeError(f"a sparse tensor ({array.layout}); a dense one is needed: .to_dense()")
        if type(array).__name__ == "FakeTensor" or array.device.type == "meta":
            raise TypeError("a meta or fake tensor, which has no memory; operations run eagerly only, on real tensors")
        if array.is_neg():
            raise BufferError("a view that torch negates lazily; pass .resolve_neg()")
        device = self.device(array)
        try:
            address = array.data_ptr()
        except RuntimeError as error:
            raise TypeError(
                "a tensor of a torch.func transform, which has no memory of its own; operations run eagerly only"
            ) from error
        dtype = str(array.dtype).removeprefix("torch.")
        return Memory(address, array.numel(), dtype, device, array.is_contiguous(), writeable=True)

    def addresses(
        self, tensors: Sequence[Any], lengths: NDArray[np.int64], dtype: str, device: str, *, written: bool
    ) -> Any:
        if written:
            return None  # autograd has to be told of each
        torch = self._torch
        wanted, where = getattr(torch, dtype), torch.device(device)
        for tensor, length in zip(tensors, lengths.tolist(), strict=True):
            if (
                type(tensor) is not torch.Tensor
                or tensor.numel() != length
                or tensor.dtype is not wanted
                or tensor.device != where
                or tensor.layout is not torch.strided
                or not tensor.is_contiguous()
                or tensor.is_neg()
            ):
                return None
        return [tensor.data_ptr() for tensor in tensors]

    def device(self, array: Any) -> str:
        device = array.device
        if device.type not in ("cpu", "cuda"):
            raise TypeError(f"a tensor on device {device}; only CPU and CUDA memory can be read")
        return CPU if device.type == "cpu" else f"cuda:{device.index}"

    def check_written(self, array: Any, name: str) -> None:
        if array.requires_grad and self._torch.is_grad_enabled():
            raise ValueError(
                f"{name}: the tensor requires grad, and autograd would not see that it is written in place; pass "
                f"{name}.detach(), or call within torch.no_grad()"
            )

    def wrote(self, array: Any) -> None:
        if not array.is_inference():
            # so that autograd notices where it had saved the tensor for a backward pass
            self._torch.autograd.graph.increment_version(array)

    def version(self, array: Any) -> int:
        return 0 if array.is_inference() else int(array._version)

    def exporter(self, array: Any) -> Any:
        return array.detach()

    def handshake(self, array: Any, stream: int) -> None:
        export(array.detach(), stream)

    def empty(self, size: int, dtype: str, device: str) -> Any:
        return self._torch.empty(size, dtype=getattr(self._torch, dtype), device=device)

    def zeros(self, size: int, dtype: str, device: str) -> Any:
        return self._torch.zeros(size, dtype=getattr(self._torch, dtype), device=device)

    def adopt(self, array: Any, library: Library) -> Any:
        if library is not self:
            array = self._torch.from_dlpack(library.exporter(array))
        return array.detach().contiguous().reshape(-1)

    def copy(self, vector: Any) -> Any:
        return vector.clone()

    def read(self, vector: Any) -> list[float]:
        values: list[float] = vector.tolist()
        return values

    def write(self, vector: Any, values: NDArray[np.float64]) -> None:
        vector.copy_(self._torch.from_numpy(values))

    def guard(self, device: str) -> AbstractContextManager[Any]:
        if device == CPU:
            return nullcontext()
        context: AbstractContextManager[Any] = self._torch.cuda.device(number_of(device))
        return context

    def stream(self, device: str) -> int:
        return int(self._torch.cuda.current_stream(number_of(device)).cuda_stream)

    def event(self, stream: int, device: str) -> Any:
        cuda = self._torch.cuda
        with self.guard(device):
            event = cuda.Event()
            event.record(cuda.ExternalStream(stream, device=number_of(device)))
        return _Event(event, event.query, event.synchronize)

    def await_event(self, event: Any, device: str) -> None:
        self._torch.cuda.current_stream(number_of(device)).wait_event(event.event)

    def capturing(self, device: str) -> bool:
        with self.guard(device):
            return bool(self._torch.cuda.is_current_stream_capturing())


class _Event:
    """A CUDA event of either library."""

    def __init__(self, event: Any, done: Any, wait: Any) -> None:
        self.event, self.done, self.wait = event, done, wait


CUPY, TORCH = CuPy(), Torch()


def gpu_library(needed_for: str) -> Owner:
    """The library that makes vectors on a GPU for arrays of libraries that cannot: CuPy or torch, whichever the program
    has imported; else CuPy is imported.

    Raises:
        ImportError: neither is there.
    """
    for name, library in (("cupy", CUPY), ("torch", TORCH)):
        if sys.modules.get(name) is not None:
            return library
    try:
        import cupy  # noqa: F401 - the adapter finds it in sys.modules
    except ImportError as error:
        raise ImportError(
            f"{needed_for}: it is on a GPU, where CuPy or torch is needed for the operation's own memory and its "
            "stream; import torch first, or pip install cupy-cuda13x (or cupy-cuda12x)"
        ) from error
    return CUPY
