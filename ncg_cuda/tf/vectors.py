"""Vectors on a model's weights: one tensor per variable, or all of them in one flat vector; and the checks of both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from .graphs import raw_variable


def check_variables(variables: Sequence[Any]) -> None:
    """Raise a ValueError unless the variables are trainable material: at least one, float32 or float64, one dtype."""
    if not variables:
        raise ValueError("variables is empty: give at least one")
    for i, v in enumerate(variables):
        if not isinstance(raw_variable(v), tf.Variable):
            raise ValueError(f"variables[{i}] is a {type(v).__name__}; a tf.Variable or a Keras variable is needed")
        if not raw_variable(v).shape.is_fully_defined():
            raise ValueError(f"variables[{i}] has the unknown shape {raw_variable(v).shape}; a fixed shape is needed")
    dtypes = sorted({tf.as_dtype(raw_variable(v).dtype).base_dtype.name for v in variables})
    if dtypes not in (["float32"], ["float64"]):
        raise ValueError(f"the variables have dtypes {dtypes}; allowed: all float32 or all float64")


def check_vectors(vectors: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
    """The vectors as tensors; raise a ValueError unless each fits its variable in shape and dtype."""
    if len(vectors) != len(variables):
        raise ValueError(f"{len(vectors)} vectors for {len(variables)} variables; one per variable is needed")
    tensors = [tf.convert_to_tensor(s) for s in vectors]
    for i, (s, v) in enumerate(zip(tensors, variables, strict=True)):
        if s.dtype != v.dtype.base_dtype or not s.shape.is_compatible_with(v.shape):
            raise ValueError(
                f"vectors[{i}] has shape {s.shape}, dtype {s.dtype.name}; its variable {v.name!r} has shape {v.shape}, "
                f"dtype {v.dtype.name}, and both must be the same"
            )
    return tensors


class FlatVectors:
    """The variables' elements, in order and without padding, as one flat vector.

    Args:
        variables: ``tf.Variable`` s that :func:`check_variables` accepts.

    Attributes:
        shapes: the variables' shapes; ``lengths`` their numbers of elements; ``size`` the length of the flat vector.
        dtype: the variables' dtype, as TensorFlow's.
    """

    def __init__(self, variables: Sequence[Any]) -> None:
        self.shapes = [tuple(int(n) for n in v.shape) for v in variables]
        self.lengths = [math.prod(shape) for shape in self.shapes]
        self.size = sum(self.lengths)
        self.dtype = tf.as_dtype(variables[0].dtype)

    def split(self, flat: Any) -> list[Any]:
        """One tensor per variable."""
        parts = tf.split(flat, self.lengths)
        return [tf.reshape(part, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def join(self, tensors: Sequence[Any]) -> Any:
        """The flat vector."""
        return tf.concat([tf.reshape(t, [-1]) for t in tensors], 0)

    def check_tensor(self, tensor: Any) -> None:
        """Raise a ValueError unless the tensor is of length (or, 2-D, of height) ``size`` and has the dtype."""
        if tensor.dtype != self.dtype:
            raise ValueError(
                f"the tensor has dtype {tensor.dtype.name}; this operator has {self.dtype.name}: use tf.cast"
            )
        self._check_shape(tensor.shape)

    def columns(self, array: Any) -> np.ndarray[Any, Any]:
        """The NumPy array of real numbers as 2-D columns of height ``size`` in the dtype; else a ValueError."""
        array = np.asarray(array)
        if array.dtype.kind not in "fiub":
            raise ValueError(f"the vector has dtype {array.dtype}; real numbers are needed")
        self._check_shape(array.shape)
        return np.reshape(array, (self.size, -1)).astype(self.dtype.as_numpy_dtype, copy=False)

    def _check_shape(self, shape: Any) -> None:
        if len(shape) not in (1, 2) or shape[0] != self.size:
            raise ValueError(
                f"the vector has shape {tuple(shape)}; allowed: ({self.size},), ({self.size}, k), or a list of "
                f"{len(self.shapes)} tensors, one per variable"
            )
