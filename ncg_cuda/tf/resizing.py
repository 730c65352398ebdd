"""Bilinear and bicubic resizing in float64, for finite differences; TensorFlow's own kernels compute in float32.

Both are linear in the image and separable, y = A x Bᵀ: resizing a unit matrix along one axis gives A, whose rounding is
the same in every evaluation. What remains to be computed is two products in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf
from tensorflow.python.ops import gen_image_ops

_NAMES = ("resize_bilinear", "resize_bicubic")


@contextmanager
def resized_in_float64() -> Iterator[None]:
    """Inside, TensorFlow's Python functions resize float64 images in float64. Not for several threads at once."""
    originals = {name: getattr(gen_image_ops, name) for name in _NAMES}
    for name, original in originals.items():
        setattr(gen_image_ops, name, _in_float64(original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(gen_image_ops, name, original)


def _in_float64(original: Callable[..., Any]) -> Callable[..., Any]:
    def resize(
        images: Any, size: Any, align_corners: bool = False, half_pixel_centers: bool = False, name: Any = None
    ) -> Any:
        images = tf.convert_to_tensor(images)
        how = {"align_corners": align_corners, "half_pixel_centers": half_pixel_centers}
        if images.dtype != tf.float64:
            return original(images, size, **how, name=name)
        size = tf.convert_to_tensor(size)

        def along(axis: int) -> Any:
            # Each row of the unit matrix is a picture that is one pixel wide.
            length = tf.shape(images)[axis]
            unit = tf.eye(length)[:, :, None, None]
            matrix = original(unit, tf.stack([size[axis - 1], 1]), **how)
            return tf.cast(matrix[:, :, 0, 0], tf.float64)

        resized = tf.einsum("nhwc,hi,wj->nijc", images, along(1), along(2), name=name)
        static = tf.get_static_value(size)
        height, width = (None, None) if static is None else (int(n) for n in static)
        resized.set_shape([images.shape[0], height, width, images.shape[3]])
        return resized

    return resize
