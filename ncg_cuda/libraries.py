"""The array libraries whose memory can be written: NumPy, CuPy and torch. Each describes its arrays, makes vectors, and
knows its current stream. A library is never imported here unless it is there already (see :func:`gpu_library`).
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from .dlpack import CPU, Memory, consumer, device_of, export

_ALIGNMENT = 64  # bytes: JAX and TensorFlow copy what starts elsewhere


def label(array: Any) -> str:
    """The type of an array for an error message, such as ``torch.Tensor``."""
    kind = type(array)
    package = kind.__module__.partition(".")[0]
    return kind.__qualname__ if package == "builtins" else f"{package}.{kind.__qualname__}"


def number_of(device: str) -> int:
    """1 of ``"cuda:1"``."""
    return int(device.partition(":")[2])


class Library(ABC):
    """What the operations need to know of an array library."""

    name: str
    mutable = False
    """Whether operations may write its arrays."""
    why_immutable = ""

    @abstractmethod
    def describe(self, array: Any, stream: int | None) -> Memory:
        """Where the array's elements are; on a GPU, by the time that ``stream`` gets there.

        Raises:
            BufferError, TypeError: it has no memory to share. The message reads on after the argument's name.
        """

    def device(self, array: Any) -> str:
        """The device of an array."""
        return device_of(array)

    def check_written(self, array: Any, name: str) -> None:
        """Raise unless an operation may write the array in place."""
        if not self.mutable:
            raise TypeError(
                f"{name}: {label(array)} cannot be written in place ({self.why_immutable}); use ncg_cuda.cg, which "
                "makes vectors of its own, or pass a NumPy, CuPy or torch array"
            )

    def wrote(self, array: Any) -> None:  # noqa: B027 - most libraries need not know
        """Tell the library that an operation has written the array."""

    def exporter(self, array: Any) -> Any:
        """The array as an object for another library's ``from_dlpack``."""
        return array

    def handshake(self, array: Any, stream: int) -> None:
        """Let ``stream`` wait for the library's pending work on the array."""
        export(array, stream)

    def ready(self, array: Any) -> None:  # noqa: B027
        """Wait until an array on the CPU is computed."""


class Owner(Library):
    """A library that can make the vectors of a solve."""

    mutable = True

    @abstractmethod
    def empty(self, size: int, dtype: str, device: str) -> Any:
        """A vector, not initialised; on the CPU, on a multiple of 64 bytes."""

    @abstractmethod
    def zeros(self, size: int, dtype: str, device: str) -> Any:
        """A vector of zeros."""

    @abstractmethod
    def adopt(self, array: Any, library: Library) -> Any:
        """Any library's array as a flat vector of this one: the same memory where it is contiguous, to be read only."""

    def copy(self, vector: Any) -> Any:
        """A copy of a vector, aligned as by :meth:`empty`."""
        return vector.copy()

    def lend(self, vector: Any, shape: tuple[int, ...]) -> Any:
        """The vector in a shape; read-only where the library can say so."""
        return vector.reshape(shape)

    def peak(self, vector: Any) -> float:
        """The largest magnitude in a vector."""
        return float(abs(vector).max())

    @abstractmethod
    def finite(self, vector: Any) -> bool:
        """Whether a vector is free of NaN and Inf."""

    @abstractmethod
    def read(self, vector: Any) -> list[float]:
        """A short vector on the host; on a GPU, after all that its current stream holds."""

    @abstractmethod
    def write(self, vector: Any, values: NDArray[np.float64]) -> None:
        """Write a short vector from the host."""

    def guard(self, device: str) -> AbstractContextManager[Any]:
        """Make a device the current one."""
        return nullcontext()

    def stream(self, device: str) -> int:
        """The handle of the current stream of a device."""
        raise NotImplementedError(f"{self.name} has no GPU arrays")

    def event(self, stream: int, device: str) -> Any:
        """An event behind all that a stream holds now: ``done()`` asks for it, ``wait()`` waits on the host."""
        raise NotImplementedError(f"{self.name} has no GPU arrays")

    def follow(self, stream: int, device: str) -> None:
        """Let the library's current stream wait for all that another one holds now."""
        raise NotImplementedError(f"{self.name} has no GPU arrays")


class NumPy(Owner):
    """Arrays in host memory; also the vectors behind JAX and TensorFlow arrays there."""

    name = "numpy"

    def describe(self, array: Any, stream: int | None) -> Memory:
        address, size, dtype, contiguous, writeable = _core.describe_ndarray(array)
        return Memory(address, size, dtype, CPU, contiguous, writeable)

    def device(self, array: Any) -> str:
        return CPU

    def empty(self, size: int, dtype: str, device: str) -> Any:
        nbytes = size * np.dtype(dtype).itemsize
        room = np.empty(nbytes + _ALIGNMENT, dtype=np.uint8)
        start = -_core.describe_ndarray(room)[0] % _ALIGNMENT
        return room[start : start + nbytes].view(dtype)

    def zeros(self, size: int, dtype: str, device: str) -> Any:
        vector = self.empty(size, dtype, device)
        vector.fill(0)
        return vector

    def adopt(self, array: Any, library: Library) -> Any:
        if library is not self:
            library.ready(array)
            array = np.from_dlpack(library.exporter(array))
        return np.ascontiguousarray(array).reshape(-1)

    def copy(self, vector: Any) -> Any:
        out = self.empty(vector.size, vector.dtype.name, CPU)
        out[:] = vector
        return out

    def lend(self, vector: Any, shape: tuple[int, ...]) -> Any:
        view = vector.reshape(shape)
        view.flags.writeable = False
        return view

    def finite(self, vector: Any) -> bool:
        return bool(np.isfinite(vector).all())

    def read(self, vector: Any) -> list[float]:
        values: list[float] = vector.tolist()
        return values

    def write(self, vector: Any, values: NDArray[np.float64]) -> None:
        vector[:] = values


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
        return self._cupy.ascontiguousarray(array).reshape(-1)

    def finite(self, vector: Any) -> bool:
        return bool(self._cupy.isfinite(vector).all())

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

    def follow(self, stream: int, device: str) -> None:
        with self.guard(device):
            self._cupy.cuda.get_current_stream().wait_event(self.event(stream, device).event)


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
            library.ready(array)
            array = self._torch.from_dlpack(library.exporter(array))
        return array.detach().contiguous().reshape(-1)

    def copy(self, vector: Any) -> Any:
        return vector.clone()

    def finite(self, vector: Any) -> bool:
        return bool(self._torch.isfinite(vector).all())

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

    def follow(self, stream: int, device: str) -> None:
        self._torch.cuda.current_stream(number_of(device)).wait_event(self.event(stream, device).event)


class _Event:
    """A CUDA event of either library."""

    def __init__(self, event: Any, done: Any, wait: Any) -> None:
        self.event, self.done, self.wait = event, done, wait


NUMPY, CUPY, TORCH = NumPy(), CuPy(), Torch()


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
