"""One Newton-CG step without Keras: from gradients to a direction that is safe to take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from .scaling import dot, power_of_two, times
from .solver import solve

FEASIBLE = 1e-6
"""A direction d is taken if g·d <= -FEASIBLE |g| |d|: scale-free, as in ``ncg_cuda.reference.feasible``."""


@dataclass(frozen=True)
class Step:
    """The direction, one tensor per variable, and what happened, as scalar tensors named as in ``StepReport``."""

    direction: list[Any]
    numbers: dict[str, Any]


def newton_step(
    product: Callable[[Sequence[Any]], list[Any]],
    gradients: Sequence[Any],
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
        product: the product with H, undamped.
        gradients: the gradient g, one tensor per variable.
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
    b = [-g for g in clipped]
    direction, report = solve(product, b, tau=tau, cg_tol=cg_tol, max_iter=max_iter, path=path)

    # Sums of squares of vectors near 1, so that a loss of any scale is judged alike.
    g_scale, d_scale = power_of_two(gradients), power_of_two(direction)
    g_unit, d_unit = times(gradients, g_scale), times(direction, d_scale)
    gg, gd, dd = dot(g_unit, g_unit), dot(g_unit, d_unit), dot(d_unit, d_unit)
    gradient_norm = tf.sqrt(gg) / g_scale

    rate = tf.cast(learning_rate, tf.float64)
    sound = tf.math.is_finite(gg) & tf.math.is_finite(report.rhs_norm) & tf.math.is_finite(rate)
    # d = 0 with g != 0 comes from a first product that was not finite: as useless as an ascent direction.
    feasible = tf.math.is_finite(gd) & tf.math.is_finite(dd) & ((dd > 0) | tf.equal(gg, 0))
    feasible &= gd <= -FEASIBLE * tf.sqrt(gg) * tf.sqrt(dd)
    slope_of_b = -dot(g_unit, times(clipped, g_scale)) / g_scale / g_scale

    zero, one = tf.zeros((), tf.float64), tf.ones((), tf.float64)
    norm = tf.where(feasible, tf.sqrt(dd) / d_scale, report.rhs_norm)
    factor = one
    if max_step is not None:
        length = norm * tf.abs(rate)
        factor = tf.where(length > max_step, tf.math.divide_no_nan(tf.constant(max_step, tf.float64), length), one)
    factor = tf.where(sound, factor, zero)
    # From vectors near 1: the factor alone may be too small a number for their dtype. no_nan: a skipped step is zero,
    # whatever the direction holds.
    chosen = [tf.where(feasible, d, s) for d, s in zip(d_unit, times(b, g_scale), strict=True)]
    factor_of_unit = factor / tf.where(feasible, d_scale, g_scale)
    return Step(
        [tf.math.multiply_no_nan(d, tf.cast(factor_of_unit, d.dtype)) for d in chosen],
        {
            "iterations": report.iterations,
            "products": report.products,
            "stop_reason": report.stop_reason,
            "residual_norm": report.residual_norm,
            "rhs_norm": report.rhs_norm,
            "curvature": report.curvature,
            "drift": report.drift,
            "gradient_norm": gradient_norm,
            "direction_norm": tf.math.multiply_no_nan(norm, factor),
            "slope": tf.math.multiply_no_nan(tf.where(feasible, gd / g_scale / d_scale, slope_of_b), factor),
            "fallback": sound & ~feasible,
            "skipped": ~sound,
            "learning_rate": learning_rate,
        },
    )
