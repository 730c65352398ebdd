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
from .solver import Dots, Product, Report


class _State(NamedTuple):
    """The scalars of one solve; see ``ncg_cuda.reference.State``."""

    rr: Any
    stop: Any
    iteration: Any
    products: Any
    curvature: Any
    drift: Any
    q_scale: Any
    reach: Any


def _stop(condition: Any, reason: StopReason, otherwise: Any) -> Any:
    return tf.where(condition, tf.constant(int(reason), tf.int32), otherwise)


def vector(tensors: Sequence[Any], *, negate: bool = False) -> list[Any]:
    """See :class:`ncg_cuda.tf.solver.Path`, as for the functions below."""
    return [-t for t in tensors] if negate else list(tensors)


def tensors(vector: list[Any]) -> list[Any]:
    """The same."""
    return vector


def dots(a: list[Any], b: list[Any]) -> Dots:
    """Each sum by itself."""
    a_scale, b_scale = power_of_two(a), power_of_two(b)
    a, b = times(a, a_scale), times(b, b_scale)
    return Dots(dot(a, b), dot(a, a), dot(b, b), a_scale, b_scale)


def scaled(first: Any, a: list[Any], b: list[Any], scale: Any, factor: Any) -> list[Any]:
    """Tensor by tensor."""
    chosen = times([tf.where(first, v, w) for v, w in zip(a, b, strict=True)], scale)
    return [tf.math.multiply_no_nan(v, tf.cast(factor, v.dtype)) for v in chosen]


def solve(product: Product, b: Sequence[Any], *, tau: Any, cg_tol: Any, max_iter: int) -> tuple[list[Any], Report]:
    """By the operations below."""
    # On a right-hand side near 1: squares of float32 numbers below 1e-19 vanish, and above 1e19 they overflow.
    scale = power_of_two(b)
    direction, report = _solve(
        product, times(b, scale), tau=tau, cg_tol=cg_tol, max_iter=max_iter, room=tf.minimum(scale, 1.0)
    )
    return times(direction, 1.0 / scale), replace(
        report, residual_norm=report.residual_norm / scale, rhs_norm=report.rhs_norm / scale
    )


def _solve(
    product: Product, b: Sequence[Any], *, tau: Any, cg_tol: Any, max_iter: int, room: Any
) -> tuple[list[Any], Report]:
    """On b as it is; room: the largest direction that fits the caller, as a fraction of the dtype's largest number."""
    dtype = b[0].dtype
    tau64 = tau
    bb = dot(b, b)
    tol_rr = tf.square(tf.maximum(cg_tol, float(np.finfo(dtype.as_numpy_dtype).eps))) * bb
    stop = _stop(bb <= tol_rr, StopReason.CONVERGED, tf.constant(int(StopReason.RUNNING), tf.int32))
    stop = _stop(~tf.math.is_finite(bb), StopReason.BREAKDOWN, stop)
    zero, none = tf.zeros((), tf.float64), tf.zeros((), tf.int32)
    one = tf.ones((), tf.float64)
    state = _State(rr=bb, stop=stop, iteration=none, products=none, curvature=zero, drift=zero, q_scale=one, reach=zero)
    vectors = ([tf.zeros_like(t) for t in b], list(b), list(b))

    def running(state: _State, *_: Any) -> Any:
        return tf.equal(state.stop, int(StopReason.RUNNING))

    def body(state: _State, x: list[Any], r: list[Any], p: list[Any]) -> tuple[_State, list[Any], list[Any], list[Any]]:
        return _iterate(product, state, x, r, p, tau64=tau64, tol_rr=tol_rr, max_iter=max_iter, room=room)

    if must_unroll():
        x, r, p = vectors
        for _ in range(max_iter):
            state, x, r, p = body(state, x, r, p)
    else:
        state, x, r, p = tf.while_loop(running, body, (state, *vectors), parallel_iterations=1)
    # an unrolled loop may have spent an iteration on choosing q_scale
    state = state._replace(stop=_stop(running(state), StopReason.MAX_ITER, state.stop))
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
    room: Any,
) -> tuple[_State, list[Any], list[Any], list[Any]]:
    """One iteration; changes nothing if the state says that the solve has stopped (an unrolled loop runs on)."""
    dtype = p[0].dtype
    eps, largest = float(np.finfo(dtype.as_numpy_dtype).eps), float(np.finfo(dtype.as_numpy_dtype).max)
    running = tf.equal(s.stop, int(StopReason.RUNNING))
    tau = tf.cast(tau64, dtype)
    hp = product(p)
    q = [h + tau * v for h, v in zip(hp, p, strict=True)]
    unit_q = times(q, s.q_scale)
    pq, qq, pp = dot(p, unit_q), dot(unit_q, unit_q), dot(p, p)
    # Squares of q out of range: no step, but the same product again, with other squares.
    q_scale = _choose_q_scale(qq / sum(v.shape.num_elements() for v in p), dtype)
    again = tf.equal(s.iteration, 0) & tf.equal(s.q_scale, 1.0) & tf.not_equal(q_scale, 1.0)

    # After the curvature: the step lengths, or a reason to stop.
    finite = tf.math.is_finite(pq) & tf.math.is_finite(qq) & tf.math.is_finite(pp) & ~again
    floor = CURVATURE_GUARD * eps * tf.sqrt(pp) * tf.sqrt(qq)
    positive = finite & (pq > floor)
    step = s.rr / tf.where(positive, pq, tf.maximum(tf.abs(pq), floor))
    alpha = step * s.q_scale
    reach = s.reach + alpha * tf.sqrt(pp)
    fits = (alpha <= largest) & (reach <= largest * room)  # else the step might leave the range of numbers
    descend = finite & ~positive & tf.equal(s.iteration, 0) & fits
    predicted = step * step * qq - s.rr
    beta = tf.maximum(tf.zeros((), tf.float64), predicted / s.rr)
    regular = positive & fits & (beta <= largest)
    zero = tf.zeros((), tf.float64)
    moved = regular | descend
    alpha = tf.where(running & moved, alpha, zero)
    beta = tf.where(running & regular, beta, zero)
    stop = _stop(finite & ~positive, StopReason.NEGATIVE_CURVATURE, s.stop)
    stop = _stop(~again & (~finite | (positive & ~regular)), StopReason.BREAKDOWN, stop)

    # multiply_no_nan: a length of 0 leaves the vector as it is, whatever the product holds.
    al, be = tf.cast(alpha, dtype), tf.cast(beta, dtype)
    no_nan = tf.math.multiply_no_nan
    x = [v + no_nan(d, al) for v, d in zip(x, p, strict=True)]
    r = [v - no_nan(w, al) for v, w in zip(r, q, strict=True)]
    p = [v + no_nan(d, be) for v, d in zip(r, p, strict=True)]

    # After the update: the recomputed rr decides whether another iteration follows.
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
        rr=tf.where(moved & sound, rr, s.rr),
        stop=stop,
        iteration=iteration,
        products=s.products + 1,
        curvature=tf.math.divide_no_nan(pq, pp) / s.q_scale,
        drift=tf.where(accepted, drift, s.drift),
        q_scale=tf.where(again, q_scale, s.q_scale),
        reach=tf.where(moved, reach, s.reach),
    )
    kept = _State(*(tf.where(running, after, before) for after, before in zip(new, s, strict=True)))
    return kept, x, r, p


def _choose_q_scale(mean_square: Any, dtype: Any) -> Any:
    """As ``choose_q_scale`` in ``csrc/ncg/state.h``."""
    limit = np.finfo(dtype.as_numpy_dtype).maxexp - 1

    def power(exponent: int) -> Any:
        return tf.constant(np.ldexp(1.0, exponent), tf.float64)

    large, small = mean_square > power(3 * limit // 4), mean_square < power(-(3 * limit // 4))
    return tf.where(large, power(-(5 * limit // 8)), tf.where(small, power(3 * limit // 4), power(0)))


def must_unroll() -> bool:
    """XLA on the CPU runs a convolution inside a loop about 30 times slower than outside, and ``tf.distribute`` refuses
    to reduce over replicas inside one: unroll the loop there.
    """
    if tf.distribute.get_strategy().num_replicas_in_sync > 1:
        return True
    if not in_xla() or tf.config.list_logical_devices("GPU"):
        return False
    return any("Conv" in op.type for graph in graph_chain() for op in graph.get_operations())
