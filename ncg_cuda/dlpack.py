"""Reading other libraries' arrays by DLPack (https://dmlc.github.io/dlpack): where the memory is, without a copy."""

from __future__ import annotations

from typing import Any, NamedTuple

from . import _core

CPU = "cpu"

# DLPack's numbers of devices whose memory the engines can read: the CPU, CUDA, pinned host memory, managed memory
_ON_CPU, _ON_GPU = (1, 3), (2, 13)


class Memory(NamedTuple):
    """Where an array's elements are."""

    address: int
    size: int
    """Elements."""
    dtype: str
    device: str
    """``"cpu"``, or ``"cuda:0"`` and so on."""
    contiguous: bool
    writeable: bool
    capsule: Any = None
    """What must live as long as the address is used (beside the array)."""


def device_name(kind: int, number: int) -> str:
    """A device in our words.

    Raises:
        BufferError: neither a CPU nor a CUDA device.
    """
    if kind in _ON_CPU:
        return CPU
    if kind in _ON_GPU:
        return f"cuda:{number}"
    raise BufferError(f"its memory is on a device of DLPack type {int(kind)}; only CPU and CUDA memory can be read")


def device_of(array: Any) -> str:
    """The device that an array says it is on."""
    kind, number = array.__dlpack_device__()
    return device_name(int(kind), int(number))


def consumer(stream: int) -> int:
    """A CUDA stream's handle as DLPack's stream argument: the legacy default stream is 1, because 0 is ambiguous."""
    return stream or 1


def export(array: Any, stream: int | None) -> Any:
    """A capsule of the array's memory; on a GPU, ``stream`` waits for the work that still fills it."""
    asked = {} if stream is None else {"stream": consumer(stream)}
    try:
        return array.__dlpack__(max_version=(1, 0), **asked)
    except TypeError:  # producers older than DLPack 1.0 do not know max_version
        return array.__dlpack__(**asked)


def read(capsule: Any) -> Memory:
    """What a capsule says. It is not consumed, so it has to be kept while the memory is used."""
    address, size, dtype, kind, number, contiguous, read_only = _core.read_capsule(capsule)
    return Memory(address, size, dtype, device_name(kind, number), contiguous, not read_only, capsule)


class Exported:
    """An array as another library's ``from_dlpack`` wants to see it, for producers that refuse a stream argument
    because they wait themselves (TensorFlow).
    """

    def __init__(self, array: Any) -> None:
        self._array = array

    def __dlpack__(self, **_: Any) -> Any:
        return self._array.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        kind, number = self._array.__dlpack_device__()
        return int(kind), int(number)
