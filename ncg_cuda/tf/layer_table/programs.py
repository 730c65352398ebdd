"""Images, control flow, custom gradients and sparse tensors in the table."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from .row import EXACT, group

M = (4, 5)
IMAGE = (1, 4, 5, 2)


def _nested(x: Any) -> Any:
    @tf.function(autograph=False)  # type: ignore[untyped-decorator]
    def inner(t: Any) -> Any:
        return tf.sin(t) * t

    return inner(inner(x))


def _nested_moments(x: Any) -> Any:
    return list(tf.function(lambda t: tf.nn.moments(tf.sin(t), [0]), autograph=False)(x))


def _nested_bilinear(x: Any) -> Any:
    return tf.function(lambda t: tf.image.resize(tf.sin(t), (6, 7)), autograph=False)(x)


def _nested_entropy(x: Any, y: Any) -> Any:
    return tf.function(tf.nn.softmax_cross_entropy_with_logits, autograph=False)(tf.nn.softmax(y), x)


def _custom(x: Any) -> Any:
    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def cube(t: Any) -> Any:
        return t**3, lambda dy: dy * 3.0 * t * t

    return cube(x)


def _recomputed(x: Any, w: Any) -> Any:
    return tf.recompute_grad(lambda a: tf.tanh(a @ a))(x @ w)


def _numpy(x: Any) -> Any:
    """A NumPy function with a gradient in NumPy: the second derivative is out of TensorFlow's sight."""

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def sine(t: Any) -> Any:
        def grad(dy: Any) -> Any:
            slope = tf.numpy_function(np.cos, [t], tf.float64)
            slope.set_shape(t.shape)
            return dy * slope

        y = tf.numpy_function(np.sin, [t], tf.float64)
        y.set_shape(t.shape)
        return y, grad

    return sine(x)


def _python(x: Any) -> Any:
    y = tf.py_function(lambda t: tf.sin(t) * t, [x], tf.float64)
    y.set_shape(x.shape)
    return y


def _while(x: Any) -> Any:
    return tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, tf.sin(y) * x), (0, x))[1]


CONTROL = group(
    "Control flow and custom gradients",
    {
        "tf.cond": (lambda x: tf.cond(tf.reduce_sum(x) > 0, lambda: tf.sin(x) * x, lambda: x**3), M),
        "tf.switch_case": (lambda x: tf.switch_case(tf.constant(1), [lambda: x, lambda: x**3]), M),
        "tf.while_loop": (_while, M),
        "tf.map_fn": (lambda x: tf.map_fn(lambda r: tf.reduce_sum(r) * tf.sin(r), x), M),
        "tf.vectorized_map": (lambda x: tf.vectorized_map(lambda r: tf.reduce_sum(r) * tf.sin(r), x), M),
        "tf.scan, tf.foldl": (lambda x: [tf.scan(lambda a, r: tf.sin(a) * r, x), tf.foldl(lambda a, r: a * r, x)], M),
        "nested tf.function": (_nested, M),
        "cross entropy inside a tf.function": (
            lambda x: _nested_entropy(x, tf.constant(np.eye(5)[[0, 2, 1, 4]])),
            M,
        ),
        "tf.custom_gradient": (_custom, M),
        "tf.grad_pass_through, tf.identity": (lambda x: tf.identity(tf.sin(x)), M),
    },
)


CONTROL += group(
    "Control flow and custom gradients", {"tf.recompute_grad": (_recomputed, (3, 3), (3, 3))}, op="recompute_grad"
)
CONTROL += group("Control flow and custom gradients", {"tf.py_function": (_python, M)}, op="EagerPyFunc")
CONTROL += group(
    "Control flow and custom gradients",
    {"tf.numpy_function with a gradient in NumPy": (_numpy, M)},
    op="PyFunc",
    gauss_newton=EXACT,
)
CONTROL += group(
    "Control flow and custom gradients",
    {"tf.nn.moments inside a tf.function": (_nested_moments, M)},
    op="nested function",
    gauss_newton=EXACT,
)
CONTROL += group(
    "Control flow and custom gradients",
    {"tf.image.resize('bilinear') inside a tf.function": (_nested_bilinear, IMAGE)},
    op="ResizeBilinearGrad",
)
CONTROL += group(
    "Control flow and custom gradients",
    {"cross entropy inside a tf.function, labels trained": (_nested_entropy, M, M)},
    op="SoftmaxCrossEntropyWithLogits",
    gauss_newton=EXACT,
)


def _sparse(x: Any) -> Any:
    return tf.sparse.SparseTensor([[0, 1], [1, 0], [2, 3], [3, 2]], x, (4, 4))


SPARSE = group(
    "Sparse and ragged tensors",
    {
        "tf.sparse.sparse_dense_matmul": (lambda x, y: tf.sparse.sparse_dense_matmul(_sparse(x), y), (4,), (4, 3)),
        "tf.sparse.reduce_sum": (lambda x: tf.sparse.reduce_sum(_sparse(x * x), 1), (4,)),
        "tf.sparse.to_dense": (lambda x: tf.sparse.to_dense(_sparse(x * x)), (4,)),
        "tf.sparse.add": (lambda x, y: tf.sparse.add(_sparse(x), _sparse(y * y)).values, (4,), (4,)),
        "tf.sparse.segment_sum, segment_mean, segment_sqrt_n": (
            lambda x: [
                f(x * x, [0, 2, 2], [0, 0, 1])
                for f in (tf.sparse.segment_sum, tf.sparse.segment_mean, tf.sparse.segment_sqrt_n)
            ],
            M,
        ),
        "tf.nn.safe_embedding_lookup_sparse": (
            lambda x: tf.nn.safe_embedding_lookup_sparse(x * x, tf.sparse.from_dense([[1, 2], [0, 0], [3, 0]])),
            M,
        ),
        "tf.sparse.fill_empty_rows": (
            lambda x: (
                tf.sparse.fill_empty_rows(tf.sparse.SparseTensor([[0, 1], [2, 3]], x[:2] ** 2, (4, 4)), x[2] * x[3])[
                    0
                ].values
            ),
            (4,),
        ),
        "tf.nn.embedding_lookup_sparse": (
            lambda x: tf.nn.embedding_lookup_sparse(x, tf.sparse.from_dense([[1, 2], [3, 0]]), None, combiner="mean"),
            M,
        ),
        "tf.RaggedTensor, reduce_sum and to_tensor": (
            lambda x: [
                tf.reduce_sum(tf.RaggedTensor.from_row_lengths(tf.sin(x), [2, 0, 2]), 1),
                tf.RaggedTensor.from_row_lengths(x * x, [1, 3]).to_tensor(),
            ],
            M,
        ),
    },
)

SPARSE += group(
    "Sparse and ragged tensors",
    {"tf.sparse.softmax": (lambda x: tf.sparse.softmax(_sparse(x)).values, (4,))},
    op="SparseDenseCwiseAdd",
)

IMAGES = [
    *group(
        "Images and windows",
        {
            "tf.image.resize('nearest')": (lambda x: tf.image.resize(x, (6, 3), method="nearest"), IMAGE),
            "tf.nn.max_pool_with_argmax": (lambda x: tf.nn.max_pool_with_argmax(x, 2, 2, "VALID")[0], (2, *IMAGE[1:])),
            "tf.image.extract_patches, tf.nn.space_to_depth": (
                lambda x: [
                    tf.image.extract_patches(x, [1, 2, 2, 1], [1, 1, 1, 1], [1, 1, 1, 1], "VALID"),
                    tf.nn.space_to_depth(x[:, :, :4], 2),
                ],
                IMAGE,
            ),
            "tf.image.flip_left_right, tf.image.rot90": (
                lambda x: [tf.image.flip_left_right(x * x), tf.image.rot90(x)],
                IMAGE,
            ),
            "tf.image.rgb_to_hsv": (lambda x: tf.image.rgb_to_hsv(tf.sigmoid(x)), (2, 2, 3)),
        },
    ),
    *group(
        "Images and windows",
        {
            **{
                f"tf.image.resize('{how}')": (lambda x, h=how: tf.image.resize(x, (6, 3), method=h), IMAGE)
                for how in ("bilinear", "bicubic", "lanczos3", "gaussian", "mitchellcubic")
            },
            "tf.image.resize(antialias=True)": (lambda x: tf.image.resize(x, (2, 3), antialias=True), IMAGE),
            "tf.compat.v1.image.resize_bilinear(align_corners=True)": (
                lambda x: tf.raw_ops.ResizeBilinear(images=x, size=(7, 3), align_corners=True),
                IMAGE,
            ),
            "tf.image.crop_and_resize, boxes constant": (
                lambda x: tf.image.crop_and_resize(x, tf.constant([[0.1, 0.2, 0.8, 0.9]]), [0], (3, 3)),
                IMAGE,
            ),
            "tf.nn.local_response_normalization": (lambda x: tf.nn.local_response_normalization(x, 1, 1.0, 0.5), IMAGE),
            "tf.image.per_image_standardization": (tf.image.per_image_standardization, IMAGE),
            "tf.image.ssim": (
                lambda x, y: tf.image.ssim(tf.sigmoid(x), tf.sigmoid(y), 1.0, filter_size=3),
                (1, 5, 5, 1),
                (1, 5, 5, 1),
            ),
            "tf.compat.v1.nn.fused_batch_norm": (
                lambda x, s, o: tf.compat.v1.nn.fused_batch_norm(x, s, o)[0],
                IMAGE,
                (2,),
                (2,),
            ),
        },
        single=True,
    ),
    *group(
        "Images and windows",
        {
            "tf.image.crop_and_resize, boxes trained": (
                lambda x, b: tf.image.crop_and_resize(x, 0.5 + 0.1 * b, [0], (3, 3)),
                IMAGE,
                (1, 4),
            )
        },
        single=True,
        op="CropAndResizeGradBoxes",
    ),
    *group(
        "Images and windows",
        {"tf.image.resize('area')": (lambda x: tf.image.resize(x, (2, 3), method="area"), IMAGE)},
        op="ResizeArea",
    ),
    *group(
        "Images and windows",
        {
            "tf.nn.dilation2d": (
                lambda x, f: tf.nn.dilation2d(x, f, [1, 1, 1, 1], "VALID", "NHWC", [1, 1, 1, 1]),
                IMAGE,
                (2, 2, 2),
            )
        },
        op="Dilation2DBackprop",
    ),
    *group(
        "Images and windows",
        {"tf.nn.fractional_max_pool": (lambda x: tf.nn.fractional_max_pool(x, 1.5, seed=3)[0], IMAGE)},
        op="FractionalMaxPoolGrad",
    ),
    *group(
        "Images and windows",
        {
            "tf.nn.fractional_avg_pool": (
                lambda x: tf.nn.fractional_avg_pool(x, [1.0, 1.5, 1.5, 1.0], seed=3)[0],
                IMAGE,
            )
        },
        op="FractionalAvgPoolGrad",
    ),
]

ROWS = [*IMAGES, *CONTROL, *SPARSE]
