"""CG through the custom op: one op per iteration runs both fused passes on flat vectors, updated in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from .. import ops
from . import oplib
from .scaling import power_of_two_for
from .solver import Dots, Product, Report

FIELD = {name: i for i, name in enumerate(ops.STATE_FIELDS)}


@dataclass(frozen=True)
class Flat:
    """Tensors one after the other, as ``ncg_cuda.Layout`` places them."""

    flat: Any
    shapes: list[Any]


def vector(tensors: Sequence[Any], *, negate: bool = False) -> Flat:
    """See :class:`ncg_cuda.tf.solver.Path`, as for the functions below."""
    tensors = [tf.convert_to_tensor(t) for t in tensors]
    return Flat(oplib.load().ncg_pack(tensors=tensors, negate=negate), [t.shape for t in tensors])


def tensors(vector: Flat) -> list[Any]:
    """Views that share the vector's memory."""
    return list(oplib.load().ncg_views(vector.flat, shapes=vector.shapes, N=len(vector.shapes)))


def solve(product: Product, b: Flat, *, tau: Any, cg_tol: Any, max_iter: int) -> tuple[Flat, Report]:
    """By the custom op."""
    lib = oplib.load()
    x, r, p, state = lib.ncg_cg_begin(b.flat, tau=tau, cg_tol=cg_tol, max_iter=max_iter)

    def running(x: Any, r: Any, p: Any, state: Any) -> Any:
        return tf.equal(state[FIELD["stop"]], 0.0)

    def iterate(x: Any, r: Any, p: Any, state: Any) -> Any:
        hp = [tf.convert_to_tensor(t) for t in product(tensors(Flat(p, b.shapes)))]
        return lib.ncg_cg_iterate(hp=hp, x=x, r=r, p=p, state=state)

    # parallel_iterations=1: an iteration needs all of the one before, and its vectors are updated in place
    x, r, p, state = tf.while_loop(running, iterate, [x, r, p, state], parallel_iterations=1)
    x, state = lib.ncg_cg_finish(x=x, r=r, p=p, state=state)
    return Flat(x, b.shapes), report_of(state)


def dots(a: Flat, b: Flat) -> Dots:
    """One pass for each scale, and one for the sums."""
    lib = oplib.load()
    n = float(max(1, a.flat.shape.num_elements()))
    a_scale, b_scale = (power_of_two_for(lib.ncg_magnitude(v.flat) / n, v.flat.dtype) for v in (a, b))
    ab, aa, bb = tf.unstack(lib.ncg_dots(a.flat, b.flat, a_scale, b_scale))
    return Dots(ab, aa, bb, a_scale, b_scale)


def scaled(first: Any, a: Flat, b: Flat, scale: Any, factor: Any) -> Flat:
    """One pass."""
    return Flat(oplib.load().ncg_scaled(a.flat, b.flat, first, scale, factor), a.shapes)


def report_of(state: Any) -> Report:
    """What a state block says."""

    def field(name: str) -> Any:
        return state[FIELD[name]]

    return Report(
        iterations=tf.cast(field("iteration"), tf.int32),
        stop_reason=tf.cast(field("stop"), tf.int32),
        residual_norm=tf.sqrt(field("rr")) / field("scale"),
        rhs_norm=tf.sqrt(field("bb")) / field("scale"),
        curvature=tf.math.divide_no_nan(field("pq"), field("pp")),
        drift=field("drift"),
        products=tf.cast(field("products"), tf.int32),
    )
