"""Mathematics in the table: elementwise functions, reductions, losses, linear algebra."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .row import EXACT, group


def _spd(a: Any) -> Any:
    """A symmetric positive definite matrix."""
    return tf.matmul(a, a, transpose_b=True) + 2.0 * tf.eye(a.shape[-1], dtype=a.dtype)


def _symmetric(a: Any) -> Any:
    return a + tf.linalg.matrix_transpose(a)


def _positive(x: Any) -> Any:
    return 0.5 + tf.square(x)


M = (4, 5)
S = (3, 3)

REDUCTIONS = group(
    "Reductions and indexing",
    {
        "tf.reduce_sum, tf.reduce_mean": (lambda x: [tf.reduce_sum(tf.sin(x), 0), tf.reduce_mean(x * x, 1)], M),
        "tf.reduce_max, tf.reduce_min": (lambda x: [tf.reduce_max(x * x, 0), tf.reduce_min(x * x, 1)], M),
        "tf.reduce_prod": (lambda x: tf.reduce_prod(x, 1), M),
        "tf.reduce_logsumexp": (lambda x: tf.reduce_logsumexp(x, 1), M),
        "tf.math.reduce_variance": (lambda x: tf.math.reduce_variance(x, 0), M),
        "tf.math.reduce_std": (lambda x: tf.math.reduce_std(x, 0), M),
        "tf.math.reduce_euclidean_norm": (lambda x: tf.math.reduce_euclidean_norm(x, 1), M),
        "tf.norm": (lambda x: [tf.norm(x, axis=1), tf.norm(x, ord=3, axis=0)], M),
        "tf.cumsum": (lambda x: tf.cumsum(x * x, 1, exclusive=True), M),
        "tf.math.cumprod": (lambda x: tf.math.cumprod(x, 1), M),
        "tf.math.cumulative_logsumexp": (lambda x: tf.math.cumulative_logsumexp(x, 1), M),
        "tf.math.top_k": (lambda x: tf.math.top_k(x, 2).values, M),
        "tf.sort": (lambda x: tf.sort(x, 1), M),
        "tf.gather, tf.gather_nd": (lambda x: [tf.gather(x, [0, 2, 2]), tf.gather_nd(x, [[0, 1], [3, 3]])], M),
        "tf.scatter_nd, tf.tensor_scatter_nd_update": (
            lambda x, y: [tf.scatter_nd([[0], [2], [0]], x, (4, 5)), tf.tensor_scatter_nd_update(x, [[1]], y)],
            (3, 5),
            (1, 5),
        ),
        "tf.math.segment_sum, tf.math.unsorted_segment_max": (
            lambda x: [
                tf.math.segment_sum(x, [0, 0, 1, 2]),
                tf.math.segment_mean(x, [0, 0, 1, 2]),
                tf.math.unsorted_segment_max(x, [1, 0, 1, 0], 2),
            ],
            M,
        ),
        "tf.math.segment_prod": (lambda x: tf.math.unsorted_segment_prod(x, [0, 0, 1, 1], 2), M),
        "tf.boolean_mask, tf.where, tf.clip_by_value": (
            lambda x: [tf.boolean_mask(x, x > 0), tf.where(x > 0, x * x, x), tf.clip_by_value(x, -1.0, 1.0)],
            M,
        ),
        "tf.clip_by_norm, tf.clip_by_global_norm": (
            lambda x: [tf.clip_by_norm(x, 0.5), *tf.clip_by_global_norm([x, x * x], 1.0)[0]],
            M,
        ),
        "tf.einsum": (lambda x, y: tf.einsum("ij,kj->ik", x, y), M, (3, 5)),
        "tf.tensordot, tf.matmul": (lambda x, y: [tf.tensordot(x, y, 1), tf.matmul(x, y)], M, (5, 3)),
        "tf.concat, tf.stack, tf.split, tf.pad, tf.tile, tf.roll": (
            lambda x: [tf.pad(x, [[1, 1], [0, 2]], "REFLECT"), tf.tile(x, [2, 1]), tf.roll(x, 1, 0), *tf.split(x, 2)],
            M,
        ),
        "tf.reverse_sequence, tf.strided slices": (
            lambda x: [tf.reverse_sequence(x, [1, 2, 3, 4], 1), x[::2, 1:-1]],
            M,
        ),
        "tf.linalg.band_part, tf.linalg.diag": (
            lambda x: [tf.linalg.band_part(x, 1, 0), tf.linalg.diag(x), tf.linalg.diag_part(x)],
            M,
        ),
        "tf.math.l2_normalize": (lambda x: tf.math.l2_normalize(x, 1), M),
        "tf.nn.moments": (lambda x: list(tf.nn.moments(tf.sin(x), [0])), M),
        "tf.nn.weighted_moments": (lambda x, w: list(tf.nn.weighted_moments(tf.sin(x), [0], _positive(w))), M, M),
    },
)

ELEMENTWISE = group(
    "Elementwise mathematics",
    {
        "tf.exp, tf.math.log, tf.sqrt, tf.math.rsqrt, tf.pow": (
            lambda x: [
                tf.exp(x),
                tf.math.log(_positive(x)),
                tf.sqrt(_positive(x)),
                tf.math.rsqrt(_positive(x)),
                _positive(x) ** x,
            ],
            M,
        ),
        "trigonometric functions": (
            lambda x: [tf.sin(x), tf.atan2(x, _positive(x)), tf.asin(0.9 * tf.tanh(x)), tf.tan(0.5 * tf.tanh(x))],
            M,
        ),
        "hyperbolic functions": (lambda x: [tf.sinh(x), tf.cosh(x), tf.asinh(x), tf.atanh(0.9 * tf.tanh(x))], M),
        "tf.math.erf, tf.math.erfinv, tf.math.ndtri": (
            lambda x: [tf.math.erf(x), tf.math.erfinv(0.9 * tf.tanh(x)), tf.math.ndtri(tf.sigmoid(x))],
            M,
        ),
        "tf.math.lgamma, tf.math.digamma, tf.math.lbeta": (
            lambda x: [tf.math.lgamma(_positive(x)), tf.math.digamma(_positive(x)), tf.math.lbeta(_positive(x))],
            M,
        ),
        "tf.math.igamma in x": (lambda x: tf.math.igamma(tf.constant(1.5, tf.float64), _positive(x)), M),
        "tf.math.bessel_i0e, tf.math.special.dawsn": (
            lambda x: [tf.math.bessel_i0e(x), tf.math.bessel_i1e(x), tf.math.special.dawsn(x)],
            M,
        ),
        "tf.math.xlogy, tf.math.divide_no_nan": (
            lambda x, y: [tf.math.xlogy(x, _positive(y)), tf.math.divide_no_nan(x, y)],
            M,
            M,
        ),
        "tf.nn.softsign": (tf.nn.softsign, M),
        "tf.nn.crelu, tf.abs, tf.sign": (lambda x: [tf.nn.crelu(x), tf.abs(x), tf.sign(x) * x], M),
        "tf.signal.fft": (lambda x: [tf.abs(tf.signal.rfft(x)), tf.signal.irfft(tf.signal.rfft(x * x))], (3, 8)),
    },
)

LOSSES = group(
    "Losses",
    {
        "tf.nn.softmax_cross_entropy_with_logits, also in the labels": (
            lambda x, y: tf.nn.softmax_cross_entropy_with_logits(tf.nn.softmax(y), x),
            M,
            M,
        ),
        "tf.nn.sparse_softmax_cross_entropy_with_logits": (
            lambda x: tf.nn.sparse_softmax_cross_entropy_with_logits(tf.constant([0, 1, 4, 2]), x),
            M,
        ),
        "tf.nn.sigmoid_cross_entropy_with_logits": (
            lambda x, y: tf.nn.sigmoid_cross_entropy_with_logits(tf.sigmoid(y), x),
            M,
            M,
        ),
        "tf.nn.log_poisson_loss": (lambda x: tf.nn.log_poisson_loss(tf.ones(M, tf.float64), x), M),
    },
)

LOSSES += group(
    "Losses",
    {
        "tf.nn.ctc_loss": (
            lambda x: tf.nn.ctc_loss(tf.constant([[1, 2], [2, 0]]), x, [2, 1], [4, 4], False, blank_index=0),
            (2, 4, 4),
        ),
    },
    single=True,
    op="ctc_loss",
    gauss_newton=EXACT,
)

_TARGETS = np.eye(4)[[0, 2, 1]]

KERAS_LOSSES = group(
    "Keras losses",
    {
        **{
            f"{name}": (lambda y, n=name: getattr(keras.losses, n)()(_TARGETS, y), (3, 4))
            for name in (
                "MeanSquaredError",
                "MeanAbsoluteError",
                "Huber",
                "LogCosh",
                "Hinge",
                "SquaredHinge",
                "CategoricalHinge",
                "MeanAbsolutePercentageError",
            )
        },
        # times 20: the direction of the test is nearly orthogonal to its gradient
        "CosineSimilarity": (lambda y: 20.0 * keras.losses.CosineSimilarity()(_TARGETS, y), (3, 4)),
        **{
            f"{name} from probabilities": (
                lambda y, n=name: 10.0 * getattr(keras.losses, n)()(_TARGETS, tf.nn.softmax(y)),
                (3, 4),
            )
            for name in (
                "CategoricalCrossentropy",
                "BinaryCrossentropy",
                "KLDivergence",
                "Poisson",
                "Dice",
                "Tversky",
                "BinaryFocalCrossentropy",
                "CategoricalFocalCrossentropy",
                "MeanSquaredLogarithmicError",
            )
        },
        **{
            f"{name} from logits": (
                lambda y, n=name: getattr(keras.losses, n)(from_logits=True)(_TARGETS, y),
                (3, 4),
            )
            for name in ("CategoricalCrossentropy", "BinaryCrossentropy", "CategoricalFocalCrossentropy")
        },
    },
)

LINALG = group(
    "Linear algebra",
    {
        "tf.linalg.cholesky": (lambda a: tf.linalg.cholesky(_spd(a)), S),
        "tf.linalg.inv": (lambda a: tf.linalg.inv(_spd(a)), S),
        "tf.linalg.det, tf.linalg.logdet": (lambda a: [tf.linalg.det(_spd(a)), tf.linalg.logdet(_spd(a))], S),
        "tf.linalg.solve": (lambda a, b: tf.linalg.solve(_spd(a), b), S, (3, 2)),
        "tf.linalg.triangular_solve": (lambda a, b: tf.linalg.triangular_solve(_spd(a), b), S, (3, 2)),
        "tf.linalg.lstsq": (lambda a, b: tf.linalg.lstsq(a, b, l2_regularizer=0.5), (4, 3), (4, 2)),
        "tf.linalg.svd, singular values": (lambda a: tf.linalg.svd(a, compute_uv=False), (4, 3)),
        "tf.linalg.svd, with vectors": (
            lambda a: (lambda s, u, v: [s, tf.square(u), tf.square(v)])(*tf.linalg.svd(a)),
            S,
        ),
        "tf.linalg.eigh": (lambda a: (lambda e, v: [e, tf.square(v)])(*tf.linalg.eigh(_symmetric(a))), S),
        "tf.linalg.qr": (lambda a: list(tf.linalg.qr(a)), (4, 3)),
        "tf.linalg.expm": (lambda a: tf.linalg.expm(a), S),
        "tf.linalg.trace, tf.linalg.cross": (lambda a, b: [tf.linalg.trace(a @ a), tf.linalg.cross(a, b)], S, S),
    },
)


ROWS = [*ELEMENTWISE, *REDUCTIONS, *LOSSES, *KERAS_LOSSES, *LINALG]
