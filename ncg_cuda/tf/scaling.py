"""Powers of two that keep sums of squares in range, whatever the scale of a loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf


def power_of_two(tensors: Sequence[Any]) -> Any:
    """A power of two that brings the largest magnitude among the tensors near 1; a float64 scalar.

    1 where all are zero or one is not finite. Multiplying by it is exact, except for numbers that the tensors' dtype
    holds only as subnormals.
    """
    peaks = [tf.cast(tf.reduce_max(tf.abs(t)), tf.float64) for t in tensors if t.shape.num_elements() != 0]
    if not peaks:
        return tf.ones((), tf.float64)
    return power_of_two_for(tf.reduce_max(tf.stack(peaks)), tensors[0].dtype)


def power_of_two_for(size: Any, dtype: Any) -> Any:
    """A power of two that brings numbers of this size, a float64 scalar, near 1; 1 if it is zero or not finite.

    It and its inverse are normal numbers of the dtype.
    """
    usable = tf.math.is_finite(size) & (size > 0)
    exponent = tf.floor(tf.math.log(tf.where(usable, size, 1.0)) / np.log(2.0))
    limit = float(np.finfo(dtype.as_numpy_dtype).maxexp - 2)
    return tf.pow(tf.constant(2.0, tf.float64), tf.clip_by_value(-exponent, -limit, limit))


def times(tensors: Sequence[Any], factor: Any) -> list[Any]:
    """Each tensor times a float64 scalar."""
    return [t * tf.cast(factor, t.dtype) for t in tensors]


def dot(a: Sequence[Any], b: Sequence[Any]) -> Any:
    """The inner product of two lists of tensors: summed per tensor in their dtype, across tensors in float64."""
    return tf.add_n([tf.cast(tf.reduce_sum(x * y), tf.float64) for x, y in zip(a, b, strict=True)])
