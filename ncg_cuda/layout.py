"""Where a model's tensors stand in one flat vector: each on a multiple of 16 elements, zeros between them."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 16
"""Elements between which a tensor may start: 64 bytes of float32, what TensorFlow asks of a view without copy."""


class Layout:
    """The places of several tensors in one flat, padded vector.

    Args:
        shapes: the tensors' shapes, in order. A scalar is ``()``; a dimension may be 0.

    Attributes:
        shapes: tuple of shapes.
        offsets: int64 array, the index at which each tensor starts: multiples of :data:`ALIGNMENT`.
        lengths: int64 array, the number of elements of each tensor.
        size: length of the flat vector, padding included.
    """

    def __init__(self, shapes: Sequence[Sequence[int]]) -> None:
        try:
            self.shapes: tuple[tuple[int, ...], ...] = tuple(tuple(int(n) for n in shape) for shape in shapes)
        except TypeError:
            raise TypeError(f"Layout: got {shapes!r}; give a sequence of shapes, such as [(3, 4), (5,)]") from None
        for shape in self.shapes:
            if any(n < 0 for n in shape):
                raise ValueError(f"Layout: shape {shape} has a negative dimension; give fully defined shapes")
        lengths = [math.prod(shape) for shape in self.shapes]
        padded = [-(-n // ALIGNMENT) * ALIGNMENT for n in lengths]
        self.lengths: NDArray[np.int64] = np.array(lengths, dtype=np.int64)
        self.offsets: NDArray[np.int64] = (
            np.cumsum([0, *padded[:-1]], dtype=np.int64) if padded else np.zeros(0, np.int64)
        )
        self.size = int(sum(padded))

    def views(self, flat: Any) -> list[Any]:
        """Each tensor as a view of ``flat``, a 1-D array of length ``size``; no copies in NumPy, CuPy and torch."""
        if tuple(flat.shape) != (self.size,):
            raise ValueError(f"Layout.views: flat has shape {tuple(flat.shape)}; this layout needs ({self.size},)")
        return [
            _reshaped(flat[start : start + length], shape)
            for start, length, shape in zip(self.offsets.tolist(), self.lengths.tolist(), self.shapes, strict=True)
        ]

    def pack(self, tensors: Sequence[Any], out: Any = None) -> Any:
        """Copy the tensors into one flat vector, zero in the padding: ``out``, or a new array like the first tensor."""
        tensors = self.checked(tensors, "Layout.pack")
        if out is None:
            from .adapter import packed

            return packed(tensors, self)
        for view, tensor in zip(self.views(out), tensors, strict=True):
            view[...] = tensor
        return out

    def checked(self, tensors: Sequence[Any], who: str) -> Sequence[Any]:
        """The tensors; raises an error in the name of ``who`` unless their number and shapes are the layout's."""
        if len(tensors) != len(self.shapes):
            raise ValueError(f"{who}: {len(tensors)} tensors given; this layout has {len(self.shapes)}")
        for i, (tensor, shape) in enumerate(zip(tensors, self.shapes, strict=True)):
            if not hasattr(tensor, "shape"):
                raise TypeError(f"{who}: tensor {i} is {tensor!r}; an array of shape {shape} is needed")
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{who}: tensor {i} has shape {tuple(tensor.shape)}; this layout has {shape}")
        return tensors

    def __repr__(self) -> str:
        return f"Layout({len(self.shapes)} tensors, {int(self.lengths.sum())} elements, {self.size} with padding)"


def _reshaped(array: Any, shape: tuple[int, ...]) -> Any:
    if hasattr(array, "reshape"):
        return array.reshape(shape)
    return sys.modules["tensorflow"].reshape(array, shape)  # its tensors have no such method
