"""The arrays of one solve: the caller's arrays, of any library, and the solver's own vectors beside them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from .arrays import Operand, library_of, operand
from .dlpack import CPU
from .immutable import Immutable
from .layout import Layout
from .libraries import Library, Owner, label
from .table import Table

_NO_BFLOAT16 = "allowed are float32 and float64, or ask for it by cg(..., bfloat16=True), for products alone"


class Adapter:
    """Carries vectors between a solver and its caller, without copies.

    The solver's vectors are flat, of the library :attr:`memory`: the caller's own if that is NumPy, CuPy or torch, else
    NumPy on the CPU and CuPy (or torch) on a GPU.

    Args:
        like: an array of the caller; its library, device, dtype and shape are those of everything.
        name: of the argument, for errors.

    Raises:
        TypeError, ValueError: as :func:`ncg_cuda.arrays.operand`; an array that is not contiguous is allowed.
    """

    def __init__(self, like: Any, name: str) -> None:
        self.like = like
        self.library: Library = library_of(like, name)
        if isinstance(self.library, Owner):
            like = self.library.adopt(like, self.library)  # copied where it is not contiguous
        described = operand(like, name)
        self.device, self.dtype, self.size = described.device, described.dtype, described.size
        self.memory = _memory(self.library, self.device, name)
        self.shape: tuple[int, ...] = tuple(self.like.shape)
        self.operand: Operand = self._aligned(described)

    def guard(self) -> AbstractContextManager[Any]:
        """Make the device the current one."""
        return self.memory.guard(self.device)

    def mark(self) -> Any:
        """An event behind all that the current stream of b's device holds now; None on the CPU, and in a capture, where
        an event of the capture would mean nothing outside of it.
        """
        if self.device == CPU or self.memory.capturing(self.device):
            return None
        return self.memory.event(self.memory.stream(self.device), self.device)

    def wait(self, event: Any) -> None:
        """Let the current stream wait for an event of :meth:`mark`."""
        if event is not None:
            self.memory.await_event(event, self.device)

    def start(self, array: Any, name: str) -> Operand:
        """Another array of the caller, of b's shape, to be read only.

        Raises:
            TypeError: not an array like b, or of another dtype.
            ValueError: of another shape or device.
        """
        described = self.described(array, name)
        if described.dtype != self.dtype:
            raise TypeError(f"{name}: dtype {described.dtype}, but b has {self.dtype}; convert one of them")
        if tuple(array.shape) != self.shape:
            raise ValueError(f"{name}: shape {tuple(array.shape)}, but b has {self.shape}; they must be the same")
        if described.device != self.device:
            raise ValueError(f"{name}: on {described.device}, but b is on {self.device}; move one of them")
        return described

    def product(self, array: Any, *, allow_bfloat16: bool = False) -> Operand:
        """Describe what matvec returned.

        Raises:
            TypeError: not an array like b, or of another dtype.
            ValueError: of another shape or device.
        """
        try:
            library = library_of(array, "matvec")
        except TypeError as error:
            raise TypeError(f"matvec: returned {label(array)}; {self._wanted()}") from error
        if library is not self.library and library is not self.memory:
            raise TypeError(f"matvec: returned {label(array)}; {self._wanted()}")
        described = self.described(array, "matvec's product", allow_bfloat16=allow_bfloat16)
        if described.dtype not in (self.dtype, "bfloat16"):
            raise TypeError(
                f"matvec: returned dtype {described.dtype}, but b has {self.dtype}; convert the product or b"
            )
        if tuple(array.shape) != self.shape:
            raise ValueError(
                f"matvec: returned shape {tuple(array.shape)}, but b has {self.shape}; they must be the same"
            )
        if described.device != self.device:
            raise ValueError(f"matvec: returned an array on {described.device}, but b is on {self.device}")
        return described

    def _wanted(self) -> str:
        return f"it must return an array like b ({label(self.like)})"

    def described(self, array: Any, name: str, *, allow_bfloat16: bool = False) -> Operand:
        """Describe an array of the caller that the solve's next operation reads; a copy where it is not contiguous, or
        on a GPU not aligned.

        Raises:
            TypeError, ValueError: not an array of b's library, or none that an operation takes.
        """
        library = library_of(array, name)
        if library is not self.library and library is not self.memory:
            raise TypeError(f"{name}: got {label(array)}; give an array like b ({label(self.like)})")
        if isinstance(library, Owner):
            array = library.adopt(array, library)
        stream = None if self.device == CPU else self.memory.stream(self.device)
        found = operand(array, name, stream=stream, allow_bfloat16=True)
        if found.dtype == "bfloat16" and not allow_bfloat16:
            raise TypeError(f"{name}: dtype bfloat16; {_NO_BFLOAT16}")
        return self._aligned(found)

    def _aligned(self, described: Operand) -> Operand:
        return described if described.device == CPU or described.aligned else self.copied(described)

    def tensors(self, parts: Sequence[Any], layout: Layout, like: Operand, *, allow_bfloat16: bool = False) -> Table:
        """Describe what matvec returned, one array per tensor.

        Raises:
            TypeError, ValueError: not arrays of b's library, or none that an operation takes.
        """
        name = "matvec's product"
        stream = None if self.device == CPU else self.memory.stream(self.device)
        foreign = [i for i, part in enumerate(parts) if library_of(part, f"{name}[{i}]") is not self.library]
        if foreign or not all(_plain(part) for part in parts):
            parts = [
                self.described(part, f"{name}[{i}]", allow_bfloat16=allow_bfloat16) if layout.lengths[i] else part
                for i, part in enumerate(parts)
            ]
        table = Table(parts, name, layout, like, stream)
        if table.dtype == "bfloat16" and not allow_bfloat16:
            raise TypeError(f"{name}: dtype bfloat16; {_NO_BFLOAT16}")
        return table

    def tensor_copy(self, array: Any) -> Any:
        """A copy of one of the caller's tensors, as an array of :attr:`memory`."""
        return self.memory.copy(self.memory.adopt(array, library_of(array, "matvec's product")))

    def vector(self, described: Operand) -> Any:
        """An operand as a flat vector of :attr:`memory`, to be read only: the same memory where that is possible."""
        return self.memory.adopt(described.array, described.library)

    def copied(self, described: Operand) -> Operand:
        """A copy of an operand."""
        return operand(self.memory.copy(self.vector(described)), described.name)

    def lend(self, vector: Any) -> Any:
        """A vector as the caller's array, in the same memory, for a call: the caller must not write or keep it."""
        if isinstance(self.library, Immutable):
            return self.library.wrap(vector, self.shape, self.like, self.memory)
        return self.memory.lend(vector, self.shape)

    def version(self, lent: Any) -> int:
        """A number that changes where somebody writes an array that was lent, as far as its library tells."""
        return 0 if isinstance(self.library, Immutable) else self.memory.version(lent)

    def show(self, vector: Any) -> Any:
        """A vector as the caller's array, read-only where the library can say so; a copy where such arrays never change
        (JAX, TensorFlow).
        """
        return self.give(self.memory.copy(vector)) if isinstance(self.library, Immutable) else self.lend(vector)

    def give(self, vector: Any) -> Any:
        """A vector as the caller's array, in the same memory, for good: the solver must not use it any more."""
        if isinstance(self.library, Immutable):
            return self.library.wrap(vector, self.shape, self.like, self.memory)
        return vector.reshape(self.shape)


def _plain(array: Any) -> bool:
    """Whether an array need not be copied for being contiguous."""
    flags = getattr(array, "flags", None)
    if flags is not None:
        return bool(flags.c_contiguous)
    return not hasattr(array, "is_contiguous") or bool(array.is_contiguous())


def packed(tensors: Sequence[Any], layout: Layout) -> Any:
    """The tensors in one flat vector, an array of the first one's library and dtype, on its device."""
    like = tensors[0] if tensors else np.zeros(0)
    library = library_of(like, "Layout.pack")
    found = library.describe(like, None)
    memory = _memory(library, found.device, "Layout.pack")
    flat = memory.zeros(layout.size, found.dtype, found.device)
    for view, tensor in zip(layout.views(flat), tensors, strict=True):
        if 0 not in view.shape:
            view[...] = memory.adopt(tensor, library_of(tensor, "Layout.pack")).reshape(view.shape)
    return library.wrap(flat, (layout.size,), like, memory) if isinstance(library, Immutable) else flat


def _memory(library: Library, device: str, name: str) -> Owner:
    """The library that makes vectors for arrays of ``library``."""
    if isinstance(library, Owner):
        return library
    assert isinstance(library, Immutable)
    return library.memory(device, name)
