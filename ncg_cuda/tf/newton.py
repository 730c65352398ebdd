"""One Newton-CG step without Keras: from gradients to a direction that is safe to take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from .curvature import LinearizedGradient
from .solver import solve

FEASIBLE = 1e-6
"""A direction d is taken if g·d <= -FEASIBLE |g| |d|: scale-free, as in ``ncg_cuda.reference.feasible``."""


@dataclass(frozen=True)
class Step:
    """The direction, one tensor per variable, and what happened, as scalar tensors named as in ``StepReport``."""

    direction: list[Any]
    numbers: dict[str, Any]


def newton_step(
    linear: LinearizedGradient,
    *,
    clipped: Sequence[Any],
    learning_rate: Any,
    tau: Any,
    cg_tol: Any,
    max_iter: int,
    max_step: float | None,
    path: str,
) -> Step:
    """Solve (H + tau I) d = -clipped and fall back where the result is no descent direction.

    Args:
        linear: the gradient g, differentiable, with its product.
        clipped: the gradient after clipping, or g itself.
        learning_rate: a scalar, not multiplied in here; looked at for being finite, and by ``max_step``.
        tau: see :func:`ncg_cuda.tf.solver.solve`, as for the following.
        cg_tol: likewise.
        max_iter: likewise.
        path: likewise.
        max_step: shorten the direction so that |learning_rate * d| is at most this; None for no limit.

    Returns:
        The direction: d; or -clipped if d is zero, not finite or no descent direction for g; or zero, to skip the step,
        if gradient or learning rate is not finite.
    """
    gradients = linear.gradients
    b = [-g for g in clipped]
    direction, report = solve(linear.product, b, tau=tau, cg_tol=cg_tol, max_iter=max_iter, path=path)
    gg, gd, dd = _dot(gradients, gradients), _dot(gradients, direction), _dot(direction, direction)

    sound = tf.math.is_finite(gg) & tf.math.is_finite(report.rhs_norm)
    sound &= tf.math.is_finite(tf.cast(learning_rate, tf.float64))
    # d = 0 with g != 0 comes from a first product that was not finite: as useless as an ascent direction.
    feasible = tf.math.is_finite(gd) & tf.math.is_finite(dd) & ((dd > 0) | tf.equal(gg, 0))
    feasible &= gd <= -FEASIBLE * tf.sqrt(gg) * tf.sqrt(dd)
    fallback = sound & ~feasible

    direction = [tf.where(feasible, d, s) for d, s in zip(direction, b, strict=True)]
    direction = [tf.where(sound, d, tf.zeros_like(d)) for d in direction]
    if max_step is not None:
        length = tf.sqrt(_dot(direction, direction)) * tf.abs(tf.cast(learning_rate, tf.float64))
        scale = tf.minimum(tf.ones((), tf.float64), tf.math.divide_no_nan(tf.constant(max_step, tf.float64), length))
        scale = tf.where(length > max_step, scale, tf.ones((), tf.float64))
        direction = [d * tf.cast(scale, d.dtype) for d in direction]
    return Step(
        direction,
        {
            "iterations": report.iterations,
            "products": report.iterations if report.products is None else report.products,
            "stop_reason": report.stop_reason,
            "residual_norm": report.residual_norm,
            "rhs_norm": report.rhs_norm,
            "curvature": report.curvature,
            "drift": report.drift,
            "gradient_norm": tf.sqrt(gg),
            "direction_norm": tf.sqrt(_dot(direction, direction)),
            "slope": tf.where(sound, _dot(gradients, direction), tf.zeros((), tf.float64)),
            "fallback": fallback,
            "skipped": ~sound,
            "learning_rate": learning_rate,
        },
    )


def _dot(a: Sequence[Any], b: Sequence[Any]) -> Any:
    return tf.add_n([tf.cast(tf.reduce_sum(x * y), tf.float64) for x, y in zip(a, b, strict=True)])
