"""A CuPy for machines without a GPU, as far as ncg_cuda uses it: the emulated CUDA engine runs on its streams.

It computes with NumPy, later: see :mod:`fake_cupy.streams`. Tests look at what happened through ``GPU``.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from ncg_cuda import dlpack

from . import cuda
from .array import compute as _compute
from .array import ndarray
from .gpu import GPU

__all__ = [
    "GPU",
    "array",
    "asarray",
    "ascontiguousarray",
    "copyto",
    "cuda",
    "empty",
    "from_dlpack",
    "full",
    "isfinite",
    "ndarray",
    "zeros",
    "zeros_like",
]


def empty(shape: Any, dtype: Any = float) -> ndarray:
    """An array, not initialised: all NaN."""
    return ndarray(shape, dtype)


def full(shape: Any, value: Any, dtype: Any = float) -> ndarray:
    """An array of one value."""
    out = ndarray(shape, dtype)
    out.fill(value)
    return out


def zeros(shape: Any, dtype: Any = float) -> ndarray:
    """An array of zeros."""
    return full(shape, 0, dtype)


def zeros_like(a: ndarray) -> ndarray:
    """Zeros of an array's shape and type."""
    return zeros(a.shape, a.dtype)


def asarray(a: Any, dtype: Any = None) -> ndarray:
    """The array itself, or a copy of host memory, taken at once and written in the order of the current stream."""
    if isinstance(a, ndarray):
        return a if dtype is None or a.dtype == dtype else a.astype(dtype)
    staged = np.array(a, dtype)
    GPU.uploads.append(staged.nbytes)
    out = ndarray(staged.shape, staged.dtype)
    target = out.values

    def work() -> None:
        target[...] = staged

    GPU.submit(work)
    return out


def array(a: Any, dtype: Any = None) -> ndarray:
    """A copy."""
    return a.copy() if isinstance(a, ndarray) else asarray(a, dtype)


def ascontiguousarray(a: ndarray) -> ndarray:
    """The array, or a copy in C order."""
    return a if a.flags.c_contiguous else a.copy()


def isfinite(a: ndarray) -> ndarray:
    """Elementwise."""
    return _compute(np.isfinite, a)


def copyto(target: ndarray, source: ndarray) -> None:
    """Copy elements."""
    target[...] = source


def from_dlpack(producer: Any) -> ndarray:
    """A view of another library's GPU memory."""
    number = producer.__dlpack_device__()[1]
    found = dlpack.read(producer.__dlpack__(stream=dlpack.consumer(GPU.current().handle)))
    dtype = np.dtype(found.dtype)
    room = (ctypes.c_uint8 * (found.size * dtype.itemsize)).from_address(found.address)
    view = object.__new__(ndarray)
    view.owner = found.capsule
    view._set(np.frombuffer(room, dtype), number)
    return view
