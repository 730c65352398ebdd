"""What the operations need to know of an array, whoever made it: address, size, type, device. And the checks."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

DTYPES = {"float32": 0, "float64": 1}  # the numbers of ncg::Dtype
CPU = "cpu"


@dataclass(frozen=True)
class Operand:
    """One operand of an operation, as the native core takes it."""

    name: str
    address: int
    size: int
    dtype: str
    device: str
    """``"cpu"``, or ``"cuda:0"`` and so on."""

    @property
    def nbytes(self) -> int:
        return self.size * (4 if self.dtype == "float32" else 8)

    def overlaps(self, other: Operand) -> bool:
        return (
            self.device == other.device
            and self.address < other.address + other.nbytes
            and other.address < self.address + self.nbytes
        )


def namespace_of(array: Any) -> Any:
    """The module (NumPy or CuPy) that makes arrays where this one lives."""
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(array, cupy.ndarray):
        return cupy
    return np


def operand(array: Any, name: str, *, written: bool = False) -> Operand:
    """Describe a NumPy or CuPy array; raise an error that names the argument if no operation can take it.

    Raises:
        TypeError: not a NumPy or CuPy array, or not float32 or float64.
        ValueError: empty, not contiguous, or to be written but read-only.
    """
    if isinstance(array, np.ndarray):
        device = CPU
        contiguous, writeable = array.flags.c_contiguous, array.flags.writeable
        address = array.__array_interface__["data"][0]
    else:
        cupy = sys.modules.get("cupy")
        if cupy is None or not isinstance(array, cupy.ndarray):
            raise TypeError(f"{name}: got {type(array).__name__}; give a NumPy array (or a CuPy array, on a GPU)")
        device = f"cuda:{array.device.id}"
        contiguous, writeable = array.flags.c_contiguous, True
        address = array.data.ptr
    dtype = str(array.dtype)
    if dtype not in DTYPES:
        raise TypeError(f"{name}: dtype {dtype}; allowed are float32 and float64 (convert with .astype)")
    if array.size == 0:
        raise ValueError(f"{name}: an empty vector; at least one element is needed")
    if not contiguous:
        raise ValueError(
            f"{name}: not contiguous (strides {array.strides} for shape {array.shape}); pass a C-contiguous array, "
            "e.g. by numpy.ascontiguousarray"
        )
    if written and not writeable:
        raise ValueError(f"{name}: read-only, but the operation writes it; pass a writeable copy")
    return Operand(name, address, array.size, dtype, device)


def check_together(operands: list[Operand], written: int) -> None:
    """Check operands against the first one; the last ``written`` of them may overlap no other.

    Raises:
        TypeError: different dtypes.
        ValueError: different sizes or devices, or an overlap that would corrupt the result.
    """
    first = operands[0]
    for other in operands[1:]:
        if other.dtype != first.dtype:
            raise TypeError(
                f"{other.name}: dtype {other.dtype}, but {first.name} has {first.dtype}; all must be the same"
            )
        if other.size != first.size:
            raise ValueError(
                f"{other.name}: {other.size} elements, but {first.name} has {first.size}; all must be the same"
            )
        if other.device != first.device:
            raise ValueError(
                f"{other.name}: on {other.device}, but {first.name} is on {first.device}; move one of them"
            )
    for i in range(len(operands) - written, len(operands)):
        for j in range(i):
            if operands[i].overlaps(operands[j]):
                raise ValueError(
                    f"{operands[i].name} and {operands[j].name} overlap in memory, and {operands[i].name} is written; "
                    "pass a copy of one of them"
                )
