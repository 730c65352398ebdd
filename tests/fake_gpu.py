"""Arrays that claim to be on a GPU, and the parts of CuPy and torch that the operations use, for machines without one.

Memory is host memory; nothing is computed. Streams only record who was asked to wait for whom.
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np

CPU, CUDA, CUDA_HOST, ROCM, CUDA_MANAGED = 1, 2, 3, 10, 13
FLOAT, BFLOAT = 2, 4


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _DLTensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", _Deleter),
        ("flags", ctypes.c_uint64),
        ("tensor", _DLTensor),
    )


new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype = ctypes.py_object
new_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)


class Producer:
    """An array of a library that only has DLPack; remembers how it was asked for its memory."""

    def __init__(
        self,
        data: np.ndarray,
        device: tuple[int, int] = (CPU, 0),
        *,
        version: tuple[int, int] | None = (1, 0),
        read_only: bool = False,
        strides: tuple[int, ...] | None = None,
        skip: int = 0,
        code: int = FLOAT,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        self.data, self.device, self.version = data, device, version
        self.asked: list[dict[str, Any]] = []
        self.shape = data.shape if shape is None else shape
        self._shape = (ctypes.c_int64 * max(1, len(self.shape)))(*self.shape)
        self._strides = None if strides is None else (ctypes.c_int64 * len(strides))(*strides)
        none = ctypes.POINTER(ctypes.c_int64)()
        self._tensor = _DLTensor(
            data.ctypes.data,
            *device,
            len(self.shape),
            code,
            data.itemsize * 8,
            1,
            self._shape,
            self._strides or none,
            skip,
        )
        managed = _Managed(self._tensor, None, _Deleter())
        versioned = _Versioned(*(version or (1, 0)), None, _Deleter(), int(read_only), self._tensor)
        self._block = managed if version is None else versioned

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, **asked: Any) -> Any:
        if self.version is None and "max_version" in asked:
            raise TypeError("__dlpack__() got an unexpected keyword argument 'max_version'")
        self.asked.append(asked)
        self.name = b"dltensor" if self.version is None else b"dltensor_versioned"
        return new_capsule(ctypes.addressof(self._block), self.name, None)


class Stream:
    """A stream of a fake library."""

    def __init__(self, ptr: int, log: list[Any]) -> None:
        self.ptr = ptr
        self._log = log

    def is_capturing(self) -> bool:
        """Never into a graph."""
        return False

    @property
    def cuda_stream(self) -> int:
        """The handle, as torch calls it."""
        return self.ptr

    def wait_event(self, event: Event) -> None:
        self._log.append(("waits", self.ptr, event.recorded_on))


class Event:
    """An event that is reached when the test says so."""

    def __init__(self, log: list[Any]) -> None:
        self._log = log
        self.done = False
        self.recorded_on: int | None = None

    def record(self, stream: Stream) -> None:
        self.recorded_on = stream.ptr

    def query(self) -> bool:
        return self.done

    def synchronize(self) -> None:
        self._log.append(("host waits", self.recorded_on))
        self.done = True


class _Array:
    """A flat vector of a fake library."""

    def __init__(self, values: np.ndarray, device: int, log: list[Any]) -> None:
        self.values, self.number, self._log = values, device, log
        self.dtype, self.shape = values.dtype, values.shape

    def __dlpack__(self, *, stream: int | None = None, max_version: Any = None) -> Any:
        self._log.append(("handshake", type(self).__name__, stream))
        return Producer(self.values, (CUDA, self.number)).__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self.number

    def reshape(self, shape: Any) -> _Array:
        return type(self)(self.values.reshape(shape), self.number, self._log)

    def __getitem__(self, index: Any) -> _Array:
        return type(self)(self.values[index], self.number, self._log)


class _Current:
    """The device that is current, as both libraries share it."""

    def __init__(self, log: list[Any]) -> None:
        self.number, self.log = 0, log

    def __call__(self, number: int) -> Any:
        current = self

        class Guard:
            def __enter__(self) -> None:
                self.before, current.number = current.number, number

            def __exit__(self, *_: object) -> None:
                current.number = self.before

        return Guard()


class FakeGpu:
    """Fake ``cupy`` and ``torch`` modules with current streams, and the log of who waited for whom."""

    def __init__(self) -> None:
        log: list[Any] = []
        self.log = log
        self.current = _Current(log)
        self.events: list[Event] = []
        self.cupy_stream, self.torch_stream = Stream(0, log), Stream(0, log)

        class ndarray(_Array):
            size = property(lambda self: self.values.size)
            data = property(lambda self: SimpleNamespace(ptr=self.values.ctypes.data))
            device = property(lambda self: SimpleNamespace(id=self.number))
            flags = property(lambda self: SimpleNamespace(c_contiguous=self.values.flags.c_contiguous))

        class Tensor(_Array):
            layout, requires_grad = "strided", False
            device = property(lambda self: SimpleNamespace(type="cuda", index=self.number))
            data_ptr = lambda self: self.values.ctypes.data  # noqa: E731
            numel = lambda self: self.values.size  # noqa: E731
            is_contiguous = lambda self: self.values.flags.c_contiguous  # noqa: E731
            is_neg = is_inference = lambda self: False
            detach = lambda self: self  # noqa: E731

        self.ndarray, self.Tensor = ndarray, Tensor

        def event(**_: Any) -> Event:
            self.events.append(Event(log))
            return self.events[-1]

        self.cupy = SimpleNamespace(
            ndarray=ndarray,
            zeros=lambda n, dtype: ndarray(np.zeros(n, dtype), self.current.number, log),
            empty=lambda n, dtype: ndarray(np.zeros(n, dtype), self.current.number, log),
            cuda=SimpleNamespace(
                Device=self.current,
                Event=event,
                ExternalStream=lambda ptr: Stream(ptr, log),
                get_current_stream=lambda: self.cupy_stream,
            ),
        )
        made = lambda n, dtype, device: Tensor(np.zeros(n, dtype), int(device[5:]), log)  # noqa: E731
        self.torch = SimpleNamespace(
            Tensor=Tensor,
            strided="strided",
            float64="float64",
            zeros=made,
            empty=made,
            is_grad_enabled=lambda: True,
            autograd=SimpleNamespace(graph=SimpleNamespace(increment_version=lambda t: log.append("wrote"))),
            cuda=SimpleNamespace(
                is_current_stream_capturing=lambda: False,
                device=self.current,
                Event=event,
                ExternalStream=lambda ptr, device: Stream(ptr, log),
                current_stream=lambda number: self.torch_stream,
            ),
        )
