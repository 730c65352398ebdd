"""The array of the fake CuPy: NumPy's arithmetic, queued on the current stream; never a NumPy array."""

from __future__ import annotations

import operator
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from fake_gpu import CUDA, Producer

from .gpu import GPU, bytes_as
from .streams import Position

_SCALARS = (bool, int, float, np.generic)


class Owner:
    """What keeps a piece of memory alive."""


class ndarray:
    """An array on a GPU. ``values`` is its memory, as tests may look at it; the host has to call :meth:`get`."""

    __array_ufunc__ = None  # NumPy's operators must leave it alone
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, shape: Any, dtype: Any = float) -> None:
        values = np.dtype(dtype)
        shape = (int(shape),) if np.isscalar(shape) else tuple(int(n) for n in shape)
        self.owner = Owner()
        size = int(np.prod(shape, dtype=np.int64))
        self._set(bytes_as(GPU.allocate(size * values.itemsize, self.owner), values, shape), GPU.device)

    def _set(self, values: np.ndarray, number: int) -> None:
        self.values, self.number = values, number
        self.dtype, self.shape, self.size, self.ndim = values.dtype, values.shape, values.size, values.ndim
        self.nbytes = values.nbytes
        self.data = SimpleNamespace(ptr=values.ctypes.data)
        self.device = SimpleNamespace(id=number)
        self.flags = SimpleNamespace(c_contiguous=values.flags.c_contiguous)

    def _view(self, values: np.ndarray) -> ndarray:
        view = object.__new__(type(self))
        view.owner = self.owner
        view._set(values, self.number)
        return view

    # to the host

    def get(self) -> np.ndarray:
        """A copy on the host; waits for the current stream."""
        _check_device(self)
        GPU.wait(GPU.current(), "get")
        return self.values.copy()

    def _scalar(self, kind: Callable[[Any], Any]) -> Any:
        return kind(self.get().item())

    __float__ = lambda self: self._scalar(float)  # noqa: E731
    __int__ = lambda self: self._scalar(int)  # noqa: E731
    __bool__ = lambda self: self._scalar(bool)  # noqa: E731
    item = lambda self: self.get().item()  # noqa: E731
    tolist = lambda self: self.get().tolist()  # noqa: E731

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array "
            "explicitly."
        )

    # shape

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Any) -> ndarray:
        return self._view(self.values[(*index, ...) if isinstance(index, tuple) else (index, ...)])

    def reshape(self, *shape: Any) -> ndarray:
        """A view where the array is contiguous, else a copy."""
        array = self if self.flags.c_contiguous else self.copy()
        return array._view(array.values.reshape(*shape))

    def ravel(self) -> ndarray:
        """The array in one dimension."""
        return self.reshape(-1)

    # work on the current stream

    def __setitem__(self, index: Any, value: Any) -> None:
        _assign(self[index] if index is not Ellipsis else self, value)

    def copy(self) -> ndarray:
        """A copy, in C order."""
        out = ndarray(self.shape, self.dtype)
        _assign(out, self)
        return out

    def astype(self, dtype: Any) -> ndarray:
        """A copy in another type."""
        return compute(lambda a: a.astype(dtype), self)

    def fill(self, value: Any) -> None:
        """Set every element."""
        _assign(self, value)

    sum = lambda self: compute(np.sum, self)  # noqa: E731
    max = lambda self: compute(np.max, self)  # noqa: E731
    all = lambda self: compute(np.all, self)  # noqa: E731
    any = lambda self: compute(np.any, self)  # noqa: E731
    __neg__ = lambda self: compute(np.negative, self)  # noqa: E731
    __abs__ = lambda self: compute(np.abs, self)  # noqa: E731

    # other libraries

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self.number

    def __dlpack__(self, *, stream: int | None = None, **_: Any) -> Any:
        if stream is not None and GPU.queue(stream) is not GPU.current():
            GPU.queue(stream).submit(Position(GPU.current()).run)
        self.producer = Producer(self.values, (CUDA, self.number))  # must outlive the capsule
        return self.producer.__dlpack__()


def _check_device(array: ndarray) -> None:
    if array.number != GPU.device:
        raise ValueError(
            f"Array device must be same as the current device: array device = {array.number} while current = "
            f"{GPU.device}"
        )


def _values(operand: Any) -> Any:
    if isinstance(operand, ndarray):
        _check_device(operand)
        return operand.values
    if isinstance(operand, _SCALARS):
        return operand
    raise TypeError(f"Unsupported type {type(operand)}")


def _assign(out: ndarray, value: Any) -> None:
    target, source = _values(out), _values(value)

    def work() -> None:
        target[...] = source

    GPU.submit(work)


def compute(function: Callable[..., Any], *operands: Any) -> ndarray:
    """A new array, of what a NumPy function will give on the current stream."""
    given = [_values(o) for o in operands]
    shapes = [np.broadcast_to(np.ones((), v.dtype), v.shape) if isinstance(v, np.ndarray) else v for v in given]
    like = np.asarray(function(*shapes))
    out = ndarray(like.shape, like.dtype)
    target = out.values

    def work() -> None:
        with np.errstate(all="ignore"):
            target[...] = function(*given)

    GPU.submit(work)
    return out


def _binary(name: str, swapped: bool) -> Callable[[ndarray, Any], Any]:
    function = getattr(operator, name)

    def method(self: ndarray, other: Any) -> Any:
        return compute(function, other, self) if swapped else compute(function, self, other)

    return method


def _in_place(name: str) -> Callable[[ndarray, Any], ndarray]:
    function = getattr(operator, name)

    def method(self: ndarray, other: Any) -> ndarray:
        target, source = _values(self), _values(other)
        GPU.submit(lambda: function(target, source))
        return self

    return method


for _name in ("add", "sub", "mul", "truediv", "matmul", "lt", "le", "gt", "ge", "eq", "ne"):
    setattr(ndarray, f"__{_name}__", _binary(_name, swapped=False))
for _name in ("add", "sub", "mul", "truediv"):
    setattr(ndarray, f"__r{_name}__", _binary(_name, swapped=True))
    setattr(ndarray, f"__i{_name}__", _in_place(f"i{_name}"))
ndarray.__module__ = "cupy"  # as error messages say it
