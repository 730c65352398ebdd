"""The array libraries whose arrays are only read, by DLPack: JAX, TensorFlow, and any other one."""

from __future__ import annotations

import sys
from abc import abstractmethod
from typing import Any

from .dlpack import CPU, Exported, Memory, device_of, export, read
from .gpu_libraries import gpu_library
from .libraries import NUMPY, Library, Owner


class Immutable(Library):
    """A library that is read by DLPack. A solve's vectors belong to NumPy, or on a GPU to CuPy or torch."""

    def describe(self, array: Any, stream: int | None) -> Memory:
        device = self.device(array)
        if device == CPU:
            stream = None
        elif stream is None:
            stream = gpu_library("array").stream(device)
        return read(self.export(array, stream))

    def export(self, array: Any, stream: int | None) -> Any:
        """A capsule of the array's memory, filled by the time that ``stream`` gets there."""
        return export(array, stream)

    def handshake(self, array: Any, stream: int) -> None:
        """Nothing: :meth:`describe` has told the library about the stream."""

    def memory(self, device: str, needed_for: str) -> Owner:
        """The library that makes vectors on a device for this one."""
        return NUMPY if device == CPU else gpu_library(needed_for)

    @abstractmethod
    def wrap(self, vector: Any, shape: tuple[int, ...], like: Any, memory: Owner) -> Any:
        """A vector of ``memory`` as an array of this library, in the same memory, placed as ``like`` is."""


class Jax(Immutable):
    """JAX arrays: computed asynchronously, also on the CPU, where an export waits for the result."""

    name = "jax"
    why_immutable = "JAX arrays are immutable"

    def wrap(self, vector: Any, shape: tuple[int, ...], like: Any, memory: Owner) -> Any:
        jax = sys.modules["jax"]
        array = jax.dlpack.from_dlpack(vector.reshape(shape))
        if array.dtype != like.dtype:
            raise TypeError(
                f"b: {like.dtype}, but JAX's 64-bit mode is off and its arrays are of {array.dtype}; call "
                "jax.config.update('jax_enable_x64', True)"
            )
        # JAX refuses to compute with arrays of two devices, also where both are parts of one CPU
        return array if array.devices() == like.devices() else jax.device_put(array, like.sharding)


class TensorFlow(Immutable):
    """TensorFlow's eager tensors."""

    name = "tensorflow"
    why_immutable = "TensorFlow tensors are immutable"

    def export(self, array: Any, stream: int | None) -> Any:
        return self.exporter(array).__dlpack__()  # waits for the device; a stream argument is refused

    def exporter(self, array: Any) -> Any:
        dtype = array.dtype
        if not (dtype.is_floating or dtype.is_integer or dtype.is_complex or dtype.is_bool):
            raise BufferError(f"dtype {dtype.name}; numbers are needed")  # TensorFlow would abort the process
        return Exported(array)

    def wrap(self, vector: Any, shape: tuple[int, ...], like: Any, memory: Owner) -> Any:
        device = self.device(like)
        if device != CPU:  # TensorFlow computes on streams of its own and does not take part in DLPack's handshake
            memory.event(memory.stream(device), device).wait()
        from_dlpack = sys.modules["tensorflow"].experimental.dlpack.from_dlpack
        return from_dlpack(vector.reshape(shape).__dlpack__())


class Other(Immutable):
    """Any other library with DLPack. What a solve makes for it are arrays of NumPy, CuPy or torch."""

    name = "DLPack"
    why_immutable = "of an array by DLPack alone it is not known who else relies on it"

    def wrap(self, vector: Any, shape: tuple[int, ...], like: Any, memory: Owner) -> Any:
        return vector.reshape(shape)

    def device(self, array: Any) -> str:
        if not hasattr(type(array), "__dlpack_device__"):
            raise TypeError("it has __dlpack__ but no __dlpack_device__; both are needed")
        return device_of(array)


JAX, TENSORFLOW, OTHER = Jax(), TensorFlow(), Other()
