"""Vectors of billions of elements on a small machine: memory that is never written, or mapped many times."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np

_NORESERVE, _FIXED, _FAILED = 0x4000, 0x10, 2**64 - 1
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_BOTH = mmap.PROT_READ | mmap.PROT_WRITE


def overcommits() -> bool:
    """Whether the kernel gives out more address space than there is memory."""
    policy = Path("/proc/sys/vm/overcommit_memory")
    return policy.exists() and policy.read_text().strip() != "2"


def resident_bytes() -> int:
    """Memory that belongs to this process alone."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon in /proc/self/status")


def untouched(n: int, dtype: type = np.float32) -> np.ndarray:
    """Zeros that take no memory until they are written: reading maps one page of zeros everywhere."""
    memory = mmap.mmap(-1, n * np.dtype(dtype).itemsize, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE, _BOTH)
    memory.madvise(mmap.MADV_HUGEPAGE)  # thousands of page faults instead of millions
    return np.frombuffer(memory, dtype)


class Periodic:
    """One short array, mapped again and again into one long vector, with memory of its own only at the end.

    ``vector`` is the whole, ``period`` the short array, ``tail`` the part with its own memory.
    """

    def __init__(self, period: np.ndarray, n: int) -> None:
        step = period.nbytes
        if step % mmap.PAGESIZE:
            raise ValueError("a period must be whole pages")
        times = n * period.itemsize // step
        self._nbytes = (times + 1) * step
        address = _libc.mmap(None, self._nbytes, _BOTH, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE, -1, 0)
        if address == _FAILED:
            raise OSError(ctypes.get_errno(), "mmap")
        self._address = address
        file = os.memfd_create("period")
        os.truncate(file, step)
        for i in range(times):
            fixed = mmap.MAP_SHARED | _FIXED | mmap.MAP_POPULATE
            if _libc.mmap(address + i * step, step, _BOTH, fixed, file, 0) == _FAILED:
                raise OSError(ctypes.get_errno(), "mmap")
        os.close(file)
        room = (ctypes.c_uint8 * (n * period.itemsize)).from_address(address)
        self.vector = np.frombuffer(room, period.dtype)
        self.period, self.tail = self.vector[: period.size], self.vector[times * period.size :]
        self.times = times
        self.period[:] = period

    def __enter__(self) -> Periodic:
        return self

    def __exit__(self, *_: object) -> None:
        """Give the address space back; the arrays must not be used any more."""
        _libc.munmap(self._address, self._nbytes)
