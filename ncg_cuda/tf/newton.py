"""One Newton-CG step without Keras: from gradients to a direction that is safe to take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from . import solver

FEASIBLE = 1e-6
"""A direction d is taken if g·d <= -FEASIBLE |g| |d|: scale-free, as in ``ncg_cuda.reference.feasible``."""


@dataclass(frozen=True)
class Step:
    """What to add to the variables, a tensor for each; and what happened, scalar tensors named as in ``StepReport``."""

    moves: list[Any]
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
        learning_rate: a scalar.
        tau: see :func:`ncg_cuda.tf.solver.solve`, as for the following.
        cg_tol: likewise.
        max_iter: likewise.
        path: likewise.
        max_step: shorten the direction so that |learning_rate * d| is at most this; None for no limit.

    Returns:
        The learning rate times d; or times -clipped if d is zero, not finite or no descent direction for g; or zero, to
        skip the step, if gradient or learning rate is not finite.
    """
    gradients, clipped = [tf.convert_to_tensor(g) for g in gradients], [tf.convert_to_tensor(g) for g in clipped]
    solver.check(clipped, tau, cg_tol, max_iter, path)
    run = solver.choose(path)
    # Everything in terms of -g, which b is unless it was clipped: no vector is held, or read, twice.
    b = run.vector(clipped, negate=True)
    same = all(c is g for c, g in zip(clipped, gradients, strict=True))
    down = b if same else run.vector(gradients, negate=True)
    d, report = run.solve(
        solver.checked(product, clipped),
        b,
        tau=solver.as_float64(tau),
        cg_tol=solver.as_float64(cg_tol),
        max_iter=max_iter,
    )
    along_d = run.dots(down, d)
    along_b = None if same else run.dots(down, b)

    rate = tf.cast(learning_rate, tf.float64)
    sound = tf.math.is_finite(along_d.aa) & tf.math.is_finite(report.rhs_norm) & tf.math.is_finite(rate)
    feasible = _feasible(along_d)
    norm = tf.where(feasible, tf.sqrt(along_d.bb) / along_d.b_scale, report.rhs_norm)
    factor = tf.ones((), tf.float64)
    if max_step is not None:
        length = norm * tf.abs(rate)
        factor = tf.where(length > max_step, tf.math.divide_no_nan(tf.constant(max_step, tf.float64), length), factor)
    factor = tf.where(sound, factor, tf.zeros((), tf.float64))
    # To vectors near 1 first: the factor alone may be too small a number for their dtype. A skipped step is zero,
    # whatever the direction holds.
    scale = tf.where(feasible, along_d.b_scale, along_d.a_scale if along_b is None else along_b.b_scale)
    slope_of_b = _slope(along_d.aa, along_d.a_scale, along_d.a_scale) if along_b is None else _slope_of(along_b)
    return Step(
        run.tensors(run.scaled(feasible, d, b, scale, tf.math.multiply_no_nan(rate, factor) / scale)),
        {
            "iterations": report.iterations,
            "products": report.products,
            "stop_reason": report.stop_reason,
            "residual_norm": report.residual_norm,
            "rhs_norm": report.rhs_norm,
            "curvature": report.curvature,
            "drift": report.drift,
            "gradient_norm": tf.sqrt(along_d.aa) / along_d.a_scale,
            "direction_norm": tf.math.multiply_no_nan(norm, factor),
            "slope": tf.math.multiply_no_nan(tf.where(feasible, _slope_of(along_d), slope_of_b), factor),
            "fallback": sound & ~feasible,
            "skipped": ~sound,
            "learning_rate": learning_rate,
        },
    )


def _feasible(sums: solver.Dots) -> Any:
    """Whether b, a direction, descends along a = -g."""
    # d = 0 with g != 0 comes from a first product that was not finite: as useless as an ascent direction.
    found = tf.math.is_finite(sums.ab) & tf.math.is_finite(sums.bb) & ((sums.bb > 0) | tf.equal(sums.aa, 0))
    return found & (sums.ab >= FEASIBLE * tf.sqrt(sums.aa) * tf.sqrt(sums.bb))


def _slope_of(sums: solver.Dots) -> Any:
    return _slope(sums.ab, sums.a_scale, sums.b_scale)


def _slope(ab: Any, a_scale: Any, b_scale: Any) -> Any:
    """g·d from (-g)·d of scaled vectors."""
    return -ab / a_scale / b_scale
