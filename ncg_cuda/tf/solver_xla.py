"""CG through custom calls, inside a function that XLA compiles for the CPU: the fused passes of the native library, in
place, on one tensor per variable.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import tensorflow as tf

from . import oplib, solver_plain
from .scaling import power_of_two_for
from .solver import Dots, Product, Report
from .solver_op import FIELD, report_of
from .solver_plain import scaled, tensors, vector

__all__ = ["dots", "scaled", "solve", "tensors", "vector", "why_not"]


def why_not() -> str | None:
    """Why XLA cannot use the custom calls here, and what mends it; None if it can."""
    if any(tf.config.list_logical_devices(kind) for kind in ("GPU", "TPU")):
        return (
            "this function is compiled by XLA, for which the op has kernels on the CPU only. Where TensorFlow sees a "
            "GPU, Keras asks for XLA unless told otherwise: model.compile(..., jit_compile=False)"
        )
    if oplib.load_xla() is None:
        return oplib.why_not_xla()
    return _trial() or None


def dots(a: list[Any], b: list[Any]) -> Dots:
    """See :class:`ncg_cuda.tf.solver.Path`, as for the functions that are those of :mod:`.solver_plain`."""
    lib = oplib.load_xla()
    n = float(max(1, sum(t.shape.num_elements() for t in a)))
    a_scale, b_scale = (power_of_two_for(lib.ncg_list_magnitude(a=v) / n, v[0].dtype) for v in (a, b))
    ab, aa, bb = tf.unstack(lib.ncg_list_dots(a=a, b=b, scale_a=a_scale, scale_b=b_scale))
    return Dots(ab, aa, bb, a_scale, b_scale)


def solve(product: Product, b: Sequence[Any], *, tau: Any, cg_tol: Any, max_iter: int) -> tuple[list[Any], Report]:
    """By the custom calls; of an unrolled loop, they do nothing once the solve has stopped."""
    lib = oplib.load_xla()
    x, r, p, state = lib.ncg_list_cg_begin(b=list(b), tau=tau, cg_tol=cg_tol, max_iter=max_iter)

    def running(x: Any, r: Any, p: Any, state: Any) -> Any:
        return tf.equal(state[FIELD["stop"]], 0.0)

    def iterate(x: Any, r: Any, p: Any, state: Any) -> Any:
        hp = [tf.convert_to_tensor(t) for t in product(p)]
        return tuple(lib.ncg_list_cg_iterate(hp=hp, x=x, r=r, p=p, state=state))

    if solver_plain.must_unroll():
        for _ in range(max_iter):
            x, r, p, state = iterate(x, r, p, state)
    else:
        x, r, p, state = tf.while_loop(running, iterate, (x, r, p, state), parallel_iterations=1)
    x, state = lib.ncg_list_cg_finish(x=x, r=r, p=p, state=state)
    return list(x), report_of(state)


@cache
def _trial() -> str:
    """What is wrong with a small solve, compiled once per process; empty if nothing is. XLA promises nothing about its
    interface from one TensorFlow to the next, and a step that cannot be compiled is worse than a slow one.
    """
    with tf.init_scope():
        try:
            x, iterations, stop = tf.function(_small_solve, autograph=False, jit_compile=True)()
            right = bool(tf.reduce_all(tf.equal(x, [0.5, 1.0, 1.5])) & tf.equal(iterations, 1) & tf.equal(stop, 1))
            found = "" if right else f"gave {x.numpy()} in {int(iterations)} iterations instead of [0.5, 1.0, 1.5] in 1"
        except Exception as error:  # whatever it is, the plain path serves
            found = f"failed ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    return found and (
        f"this function is compiled by XLA, and a solve with the kernels for it, made on trial, {found}; with "
        "jit_compile=False, the op can be used"
    )


def _small_solve() -> tuple[Any, Any, Any]:
    number = [tf.constant(v, tf.float64) for v in (0.0, 1e-6)]
    b = [tf.constant([1.0, 2.0, 3.0])]
    x, report = solve(lambda p: [2.0 * t for t in p], b, tau=number[0], cg_tol=number[1], max_iter=3)
    return x[0], report.iterations, report.stop_reason
