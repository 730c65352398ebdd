"""The operands of an operation: what is known of an array, whoever made it, and the checks."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from .gpu_libraries import CUPY, TORCH
from .immutable import JAX, OTHER, TENSORFLOW
from .libraries import NUMPY, Library, label

DTYPES = {"float32": 0, "float64": 1, "bfloat16": 2}  # the numbers of ncg::Dtype
ITEMSIZE = {"float32": 4, "float64": 8, "bfloat16": 2}

_known: dict[type, Library] = {np.ndarray: NUMPY}


@dataclass(slots=True, eq=False)
class Operand:
    """One operand of an operation, as the native core takes it."""

    name: str
    address: int
    size: int
    dtype: str
    device: str
    """``"cpu"``, or ``"cuda:0"`` and so on."""
    library: Library
    array: Any
    capsule: Any
    """With ``array``, what keeps the memory alive."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self.size * ITEMSIZE[self.dtype]

    @property
    def alignment(self) -> int:
        """Bytes on whose multiples the operand has to start on a GPU: what one load of four or two elements takes."""
        return 8 if self.dtype == "bfloat16" else 16

    @property
    def aligned(self) -> bool:
        """Whether it does."""
        return self.address % self.alignment == 0

    def overlaps(self, other: Operand) -> bool:
        """Whether two operands share memory."""
        return (
            self.address < other.address + other.size * ITEMSIZE[other.dtype]
            and other.address < self.address + self.size * ITEMSIZE[self.dtype]
            and self.device == other.device
        )


def library_of(array: Any, name: str) -> Library:
    """The library that an array belongs to.

    Raises:
        TypeError: it belongs to none, or stands for a value in a graph that is being traced.
    """
    library = _known.get(type(array))
    if library is None:
        library = _find(array, name)
        _known[type(array)] = library
    return library


def _is(array: Any, module: str, attribute: str) -> bool:
    """isinstance, without importing the module."""
    kind = getattr(sys.modules.get(module), attribute, None)
    return isinstance(kind, type) and isinstance(array, kind)


def _find(array: Any, name: str) -> Library:
    if _is(array, "numpy.ma", "MaskedArray"):
        raise TypeError(f"{name}: a masked array, whose mask would be ignored; give .filled(value)")
    if isinstance(array, (np.ndarray, np.generic)):
        return NUMPY
    if _is(array, "cupy", "ndarray"):
        return CUPY
    if _is(array, "torch", "Tensor"):
        return TORCH
    if _is(array, "jax.core", "Tracer"):
        raise TypeError(
            f"{name}: {label(array)}, a value that JAX is tracing; ncg_cuda.ops and cg run eagerly only: call them "
            "outside of jit, grad and vmap (the matvec itself may be jitted)"
        )
    if _is(array, "jax", "Array"):
        return JAX
    if _is(array, "tensorflow", "Tensor"):
        if hasattr(array, "__dlpack__"):
            return TENSORFLOW
        raise TypeError(
            f"{name}: {label(array)}, a value in a graph; ncg_cuda.ops and cg run eagerly only: call them outside of "
            "tf.function, or use ncg_cuda.tf in graphs"
        )
    if _is(array, "tensorflow", "Variable"):
        raise TypeError(f"{name}: got a tf.Variable; give its value: .value()")
    if hasattr(type(array), "__dlpack__"):
        return OTHER
    raise TypeError(
        f"{name}: got {label(array)}; give a NumPy array, a CuPy array, a torch tensor, or any array with DLPack (JAX, "
        "TensorFlow)"
    )


def operand(
    array: Any, name: str, *, written: bool = False, stream: int | None = None, allow_bfloat16: bool = False
) -> Operand:
    """Describe an array without copying it; raise an error that names the argument if no operation can take it.

    A torch tensor that requires grad is read as if detached.

    Args:
        array: of any library.
        name: of the argument.
        written: whether the operation writes the array.
        stream: handle of the CUDA stream that will read the array, where its library has no current stream (JAX and
            others): it waits for the work that still fills the array. By default, CuPy's or torch's current one.
        allow_bfloat16: whether bfloat16 will do.

    Raises:
        TypeError: not an array, an array that cannot be written or shared, or of a wrong dtype.
        ValueError: empty, not contiguous, not aligned, or to be written but read-only.
    """
    library = _known.get(type(array)) or library_of(array, name)
    if isinstance(array, np.generic) and not written:  # what NumPy's arithmetic makes of a tensor of shape ()
        array = np.asarray(array)
    if library is not NUMPY and written:
        library.check_written(array, name)
    try:
        address, size, dtype, device, contiguous, writeable, capsule = library.describe(array, stream)
    except ImportError:
        raise
    except Exception as error:  # what producers raise is as different as they are
        raise TypeError(f"{name}: {label(array)} that cannot be read: {error}") from error
    if dtype not in DTYPES or (dtype == "bfloat16" and not allow_bfloat16):
        allowed = "float32, float64 and bfloat16" if allow_bfloat16 else "float32 and float64"
        raise TypeError(f"{name}: dtype {dtype}; allowed are {allowed} (convert it first)")
    if size == 0:
        raise ValueError(f"{name}: an empty vector; at least one element is needed")
    if not contiguous:
        raise ValueError(
            f"{name}: not contiguous; pass a C-contiguous array, e.g. by numpy.ascontiguousarray or .contiguous()"
        )
    if written and not writeable:
        raise ValueError(f"{name}: read-only, but the operation writes it; pass a writeable copy")
    if address == 0 or address % ITEMSIZE[dtype]:
        raise ValueError(f"{name}: its memory starts at {address:#x}, where no {dtype} can be; pass a copy")
    return Operand(name, address, size, dtype, device, library, array, capsule)


def check_together(operands: list[Operand], written: int) -> None:
    """Check operands against the first one; the last ``written`` of them may overlap no other.

    The first one may be bfloat16 where that was allowed.

    Raises:
        TypeError: different dtypes.
        ValueError: different sizes or devices, or an overlap that would corrupt the result.
    """
    first = operands[0]
    for other in operands[1:]:
        if other.dtype != first.dtype and first.dtype != "bfloat16":
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
