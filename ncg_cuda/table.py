"""A sequence of arrays, one per tensor of a model, as one flat operand."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import ITEMSIZE, Operand, operand
from .layout import Layout


@lru_cache(maxsize=64)
def _layout_of(shapes: tuple[tuple[int, ...], ...]) -> Layout:
    return Layout(shapes)


class Table:
    """A sequence of arrays, seen as one flat operand.

    Args:
        tensors: the arrays, or some of them described already.
        name: of the argument, for errors.
        layout: where they stand; by default in order, each on a multiple of 16.
        like: a flat operand of the same call.
        stream: see :func:`ncg_cuda.arrays.operand`.
        written: whether the operation writes them.

    Raises:
        TypeError, ValueError: as :func:`ncg_cuda.arrays.operand`; sizes, dtypes or devices that do not go together.
    """

    def __init__(
        self,
        tensors: Sequence[Any],
        name: str,
        layout: Layout | None,
        like: Operand,
        stream: int | None,
        *,
        written: bool = False,
    ) -> None:
        if not tensors:
            raise ValueError(f"{name}: an empty sequence; give one array per tensor")
        if layout is None:
            layout = _layout_of(tuple([tuple(getattr(t, "shape", ())) for t in tensors]))
        if not isinstance(layout, Layout):
            raise TypeError(f"layout: got {type(layout).__name__}; give an ncg_cuda.Layout(shapes)")
        if len(tensors) != len(layout.shapes):
            raise ValueError(f"{name}: {len(tensors)} arrays, but the layout has {len(layout.shapes)} tensors")
        self.name, self.tensors = name, tensors
        self.segments: NDArray[np.int64] = np.empty((len(tensors), 3), dtype=np.int64)  # ncg::Segment
        self.segments[:, 1] = layout.offsets
        self.segments[:, 2] = layout.lengths
        self.parts: list[Operand] = []
        """Those that stand for all: one of each library, and every one that its library has to be asked about."""
        if not self._at_once(layout, like, stream, written):
            self._one_by_one(layout, like, stream, written)
        self.dtype = self.parts[0].dtype if self.parts else like.dtype
        if like.size != layout.size:
            raise ValueError(
                f"{name}: its layout needs flat vectors of {layout.size} elements (tensors start on multiples of 16), "
                f"but {like.name} has {like.size}; make them by Layout(...).pack"
            )

    def _describe(self, i: int, stream: int | None, written: bool) -> Operand:
        tensor = self.tensors[i]
        if isinstance(tensor, Operand):
            return tensor
        return operand(tensor, f"{self.name}[{i}]", written=written, stream=stream, allow_bfloat16=not written)

    def _at_once(self, layout: Layout, like: Operand, stream: int | None, written: bool) -> bool:
        """Fast, for plain arrays of one library: True if they were."""
        i = int(np.argmax(layout.lengths > 0))
        if isinstance(self.tensors[i], Operand) or layout.lengths[i] == 0:
            return False
        first = self._describe(i, stream, written)
        addresses = first.library.addresses(self.tensors, layout.lengths, first.dtype, first.device, written=written)
        if addresses is None:
            return False
        self._check(first, int(layout.lengths[i]), like)
        self.segments[:, 0] = addresses
        self.parts = [first]
        return True

    def _one_by_one(self, layout: Layout, like: Operand, stream: int | None, written: bool) -> None:
        for i, length in enumerate(layout.lengths.tolist()):
            if length == 0:
                self.segments[i, 0] = 0
                continue
            part = self._describe(i, stream, written)
            self._check(part, length, like)
            self.segments[i, 0] = part.address
            self.parts.append(part)

    def _check(self, part: Operand, length: int, like: Operand) -> None:
        if part.size != length:
            raise ValueError(f"{part.name}: {part.size} elements, but the layout has {length}")
        check_first_dtype(part, like)
        if self.parts and part.dtype != self.parts[0].dtype:
            raise TypeError(
                f"{part.name}: dtype {part.dtype}, but {self.parts[0].name} has {self.parts[0].dtype}; all tensors "
                "must have the same"
            )
        if part.device != like.device:
            raise ValueError(f"{part.name}: on {part.device}, but {like.name} is on {like.device}; move one of them")

    def overlapping(self, vector: Operand) -> list[int]:
        """Which tensors share memory with an operand."""
        start, _, length = self.segments.T
        end = start + length * ITEMSIZE[self.dtype]
        shared = (start < vector.address + vector.nbytes) & (vector.address < end) & (length > 0)
        return [int(i) for i in np.flatnonzero(shared)] if shared.any() else []

    @classmethod
    def of_views(cls, flat: Operand, layout: Layout) -> Table:
        """The tensors of a layout where they stand in a flat operand: without what it has between them."""
        table = cls.__new__(cls)
        table.name, table.tensors, table.parts, table.dtype = flat.name, [], [flat], flat.dtype
        table.segments = np.empty((len(layout.shapes), 3), dtype=np.int64)
        table.segments[:, 0] = flat.address + layout.offsets * ITEMSIZE[flat.dtype]
        table.segments[:, 1] = layout.offsets
        table.segments[:, 2] = layout.lengths
        return table

    def check_apart_from_each_other(self) -> None:
        """Raise a ValueError if two of the tensors share memory."""
        used = np.flatnonzero(self.segments[:, 2])
        used = used[np.argsort(self.segments[used, 0], kind="stable")]
        start = self.segments[used, 0]
        end = start + self.segments[used, 2] * ITEMSIZE[self.dtype]
        for at in np.flatnonzero(end[:-1] > start[1:]).tolist():
            first, second = sorted((int(used[at]), int(used[at + 1])))
            raise ValueError(
                f"{self.name}[{first}] and {self.name}[{second}] overlap in memory, and both are written; copy one"
            )

    def check_apart(self, vector: Operand, *, writes_tensors: bool) -> None:
        """Raise a ValueError if a tensor shares memory with an operand where one of the two is written."""
        for i in self.overlapping(vector):
            names = [f"{self.name}[{i}]", vector.name]
            out, other = names if writes_tensors else names[::-1]
            raise ValueError(f"{out} and {other} overlap in memory, and {out} is written; copy one of them")


def check_first_dtype(first: Operand, like: Operand) -> None:
    """Raise a TypeError unless a product's dtype goes with the vectors': the same, or bfloat16 beside float32."""
    if first.dtype != like.dtype and (first.dtype, like.dtype) != ("bfloat16", "float32"):
        raise TypeError(f"{first.name}: dtype {first.dtype}, but {like.name} has {like.dtype}; all must be the same")
