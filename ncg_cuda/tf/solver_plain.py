"""Conjugate gradients in plain TensorFlow operations: the state machine of :mod:`ncg_cuda.reference`, step by step.

Per iteration: q = H p + tau p; alpha = rr / p·q; the next rr is predicted as alpha² q·q - rr (because r·q = p·q), which
gives beta before the update; the update x += alpha p, r -= alpha q, p = r + beta p; and rr is recomputed from the new r
(Chen and Carson, "Predict-and-recompute conjugate gradient variants", SIAM J. Sci. Comput. 2020). Vectors stay lists of
tensors; dot products are summed per tensor in the vectors' dtype and across tensors in float64; scalars are float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from ..reference import CURVATURE_GUARD
from ..state import StopReason
from .graphs import graph_chain, in_xla
from .scaling import dot, power_of_two, times
from .solver import Product, Report


class _State(NamedTuple):
    """The scalars of one solve; see ``ncg_cuda.reference.State``."""

    rr: Any
    stop: Any
    iteration: Any
    products: Any
    curvature: Any
    drift: Any


def _stop(condition: Any, reason: StopReason, otherwise: Any) -> Any:
    return tf.where(condition, tf.constant(int(reason), tf.int32), otherwise)


def solve(product: Product, b: Sequence[Any], *, tau: Any, cg_tol: Any, max_iter: int) -> tuple[list[Any], Report]:
    """As :func:`ncg_cuda.tf.solver.solve`, which has checked the arguments."""
    # On a right-hand side near 1: squares of float32 numbers below 1e-19 vanish, and above 1e19 they overflow.
    scale = power_of_two(b)
    direction, report = _solve(product, times(b, scale), tau=tau, cg_tol=cg_tol, max_iter=max_iter)
    return times(direction, 1.0 / scale), replace(
        report, residual_norm=report.residual_norm / scale, rhs_norm=report.rhs_norm / scale
    )


def _solve(product: Product, b: Sequence[Any], *, tau: Any, cg_tol: Any, max_iter: int) -> tuple[list[Any], Report]:
    dtype = b[0].dtype
    tau64 = tau
    bb = dot(b, b)
    tol_rr = tf.square(tf.maximum(cg_tol, float(np.finfo(dtype.as_numpy_dtype).eps))) * bb
    stop = _stop(bb <= tol_rr, StopReason.CONVERGED, tf.constant(int(StopReason.RUNNING), tf.int32))
    stop = _stop(~tf.math.is_finite(bb), StopReason.BREAKDOWN, stop)
    zero, none = tf.zeros((), tf.float64), tf.zeros((), tf.int32)
    state = _State(rr=bb, stop=stop, iteration=none, products=none, curvature=zero, drift=zero)
    vectors = ([tf.zeros_like(t) for t in b], list(b), list(b))

    def running(state: _State, *_: Any) -> Any:
        return tf.equal(state.stop, int(StopReason.RUNNING))

    def body(state: _State, x: list[Any], r: list[Any], p: list[Any]) -> tuple[_State, list[Any], list[Any], list[Any]]:
        return _iterate(product, state, x, r, p, tau64=tau64, tol_rr=tol_rr, max_iter=max_iter, dtype=dtype)

    if _must_unroll():
        x, r, p = vectors
        for _ in range(max_iter):
            state, x, r, p = body(state, x, r, p)
    else:
        state, x, r, p = tf.while_loop(running, body, (state, *vectors), parallel_iterations=1)
    return list(x), Report(
        iterations=state.iteration,
        stop_reason=state.stop,
        residual_norm=tf.sqrt(state.rr),
        rhs_norm=tf.sqrt(bb),
        curvature=state.curvature,
        drift=state.drift,
        products=state.products,
    )


def _iterate(
    product: Product,
    s: _State,
    x: list[Any],
    r: list[Any],
    p: list[Any],
    *,
    tau64: Any,
    tol_rr: Any,
    max_iter: int,
    dtype: Any,
) -> tuple[_State, list[Any], list[Any], list[Any]]:
    """One iteration; changes nothing if the state says that the solve has stopped (an unrolled loop runs on)."""
    eps, largest = float(np.finfo(dtype.as_numpy_dtype).eps), float(np.finfo(dtype.as_numpy_dtype).max)
    running = tf.equal(s.stop, int(StopReason.RUNNING))
    tau = tf.cast(tau64, dtype)
    hp = product(p)
    q = [h + tau * v for h, v in zip(hp, p, strict=True)]
    pq, qq, pp = dot(p, q), dot(q, q), dot(p, p)

    # After the curvature: the step lengths, or a reason to stop.
    finite = tf.math.is_finite(pq) & tf.math.is_finite(qq) & tf.math.is_finite(pp)
    floor = CURVATURE_GUARD * eps * tf.sqrt(pp) * tf.sqrt(qq)
    positive = finite & (pq > floor)
    scale = tf.maximum(tf.abs(pq), floor)
    descend = finite & ~positive & tf.equal(s.iteration, 0) & (scale > 0) & (s.rr / scale <= largest)
    alpha = s.rr / pq
    predicted = alpha * alpha * qq - s.rr
    beta = tf.maximum(tf.zeros((), tf.float64), predicted / s.rr)
    regular = positive & (alpha <= largest) & (beta <= largest)
    zero = tf.zeros((), tf.float64)
    alpha_x = tf.where(running & regular, alpha, tf.where(running & descend, s.rr / scale, zero))
    alpha_r = tf.where(running & regular, alpha, zero)
    beta = tf.where(running & regular, beta, zero)
    stop = _stop(finite & ~positive, StopReason.NEGATIVE_CURVATURE, s.stop)
    stop = _stop(~finite | (positive & ~regular), StopReason.BREAKDOWN, stop)

    # multiply_no_nan: a length of 0 leaves the vector as it is, whatever the product holds.
    ax, ar, be = tf.cast(alpha_x, dtype), tf.cast(alpha_r, dtype), tf.cast(beta, dtype)
    no_nan = tf.math.multiply_no_nan
    x = [v + no_nan(d, ax) for v, d in zip(x, p, strict=True)]
    r = [v - no_nan(w, ar) for v, w in zip(r, q, strict=True)]
    p = [v + no_nan(d, be) for v, d in zip(r, p, strict=True)]

    # After the update: the recomputed rr decides whether another iteration follows.
    moved = regular | descend
    rr = dot(r, r)
    sound = tf.math.is_finite(rr)
    iteration = s.iteration + tf.cast(moved, tf.int32)
    after = _stop(iteration >= max_iter, StopReason.MAX_ITER, s.stop)
    after = _stop(rr <= tol_rr, StopReason.CONVERGED, after)
    after = _stop(~sound, StopReason.BREAKDOWN, after)
    stop = tf.where(regular, after, stop)
    stop = _stop(descend & ~sound, StopReason.BREAKDOWN, stop)
    drift = tf.maximum(s.drift, tf.abs(rr - predicted) / tf.maximum(s.rr, rr))
    accepted = regular & sound
    new = _State(
        rr=tf.where(accepted, rr, s.rr),
        stop=stop,
        iteration=iteration,
        products=s.products + 1,
        curvature=tf.math.divide_no_nan(pq, pp),
        drift=tf.where(accepted, drift, s.drift),
    )
    kept = _State(*(tf.where(running, after, before) for after, before in zip(new, s, strict=True)))
    return kept, x, r, p


def _must_unroll() -> bool:
    """XLA on the CPU runs a convolution inside a loop about 30 times slower than outside: unroll the loop there."""
    if not in_xla() or tf.config.list_logical_devices("GPU"):
        return False
    return any("Conv" in op.type for graph in graph_chain() for op in graph.get_operations())
