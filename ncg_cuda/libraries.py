"""What the operations and the solver need of an array library, and NumPy as one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from .dlpack import CPU, Memory, device_of, export

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

    def addresses(
        self, tensors: Sequence[Any], lengths: NDArray[np.int64], dtype: str, device: str, *, written: bool
    ) -> Any:
        """The addresses of tensors of this library with these lengths, all of one dtype and device, as int64 numbers;
        None where one of them is not so, or where they have to be described one by one.
        """
        return None

    def exporter(self, array: Any) -> Any:
        """The array as an object for another library's ``from_dlpack``."""
        return array

    def handshake(self, array: Any, stream: int) -> None:
        """Let ``stream`` wait for the library's pending work on the array."""
        export(array, stream)


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

    def version(self, array: Any) -> int:
        """A number that changes when the array is written, where the library counts that."""
        return 0

    def copy(self, vector: Any) -> Any:
        """A copy of a vector, aligned as by :meth:`empty`."""
        return vector.copy()

    def lend(self, vector: Any, shape: tuple[int, ...]) -> Any:
        """The vector in a shape; read-only where the library can say so."""
        return vector.reshape(shape)

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

    def capturing(self, device: str) -> bool:
        """Whether what the current stream of a device gets goes into a CUDA graph."""
        return False

    def constant(self, values: NDArray[np.int64], device: str) -> Any | None:
        """Numbers in device memory by the time that this returns, whatever the current stream is capturing; None where
        the library cannot do that.
        """
        return None

    def event(self, stream: int, device: str) -> Any:
        """An event behind all that a stream holds now: ``done()`` asks for it, ``wait()`` waits on the host."""
        raise NotImplementedError(f"{self.name} has no GPU arrays")

    def await_event(self, event: Any, device: str) -> None:
        """Let the library's current stream wait for an event."""
        raise NotImplementedError(f"{self.name} has no GPU arrays")

    def follow(self, stream: int, device: str) -> None:
        """Let the library's current stream wait for all that another one holds now."""
        self.await_event(self.event(stream, device), device)


class NumPy(Owner):
    """Arrays in host memory; also the vectors behind JAX and TensorFlow arrays there."""

    name = "numpy"

    def describe(self, array: Any, stream: int | None) -> Memory:
        address, size, dtype, contiguous, writeable = _core.describe_ndarray(array)
        return Memory(address, size, dtype, CPU, contiguous, writeable)

    def addresses(
        self, tensors: Sequence[Any], lengths: NDArray[np.int64], dtype: str, device: str, *, written: bool
    ) -> Any:
        return _core.addresses_of_ndarrays(tensors, lengths, dtype, written)

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

    def read(self, vector: Any) -> list[float]:
        values: list[float] = vector.tolist()
        return values

    def write(self, vector: Any, values: NDArray[np.float64]) -> None:
        vector[:] = values


NUMPY = NumPy()
