"""CG through the custom op: one op per iteration runs both fused passes on flat vectors, updated in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from .. import ops
from . import oplib
from .solver import Product, Report

_FIELD = {name: i for i, name in enumerate(ops.STATE_FIELDS)}


def solve(product: Product, b: Sequence[Any], *, tau: Any, cg_tol: Any, max_iter: int) -> tuple[list[Any], Report]:
    """As :func:`ncg_cuda.tf.solver.solve`, with the op library loaded and the arguments checked there."""
    lib = oplib.load()
    shapes = [t.shape for t in b]
    flat = lib.ncg_pack(tensors=list(b))
    x, r, p, state = lib.ncg_cg_begin(flat, tau=tau, cg_tol=cg_tol, max_iter=max_iter)

    def running(x: Any, r: Any, p: Any, state: Any) -> Any:
        return tf.equal(state[_FIELD["stop"]], 0.0)

    def iterate(x: Any, r: Any, p: Any, state: Any) -> Any:
        views = lib.ncg_views(p, shapes=shapes, N=len(shapes))
        hp = [tf.convert_to_tensor(t) for t in product(list(views))]
        return lib.ncg_cg_iterate(hp=hp, x=x, r=r, p=p, state=state)

    # parallel_iterations=1: an iteration needs all of the one before, and its vectors are updated in place
    x, r, p, state = tf.while_loop(running, iterate, [x, r, p, state], parallel_iterations=1)
    x, state = lib.ncg_cg_finish(x=x, r=r, p=p, state=state)
    direction = lib.ncg_views(x, shapes=shapes, N=len(shapes))
    return list(direction), _report(state)


def _report(state: Any) -> Report:
    def field(name: str) -> Any:
        return state[_FIELD[name]]

    return Report(
        iterations=tf.cast(field("iteration"), tf.int32),
        stop_reason=tf.cast(field("stop"), tf.int32),
        residual_norm=tf.sqrt(field("rr")) / field("scale"),
        rhs_norm=tf.sqrt(field("bb")) / field("scale"),
        curvature=tf.math.divide_no_nan(field("pq"), field("pp")),
        drift=field("drift"),
        products=tf.cast(field("products"), tf.int32),
    )
