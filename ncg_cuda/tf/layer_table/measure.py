"""Products through a row of the table, against finite differences of first gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import tensorflow as tf

from ..curvature import HessianOperator
from ..gauss_newton import LinearizedOutputs
from ..graphs import raw_variable
from ..stops import held_stops
from .row import HELD, Problem, Row


def directions(variables: Sequence[Any], seed: int = 7) -> list[np.ndarray]:
    """One normally distributed float64 array per variable."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=tuple(v.shape)) for v in variables]


def differences(function: Callable[[], Any], variables: Sequence[Any], s: Sequence[Any], step: float) -> list[Any]:
    """The derivative along ``s`` of the arrays that ``function()`` returns, by fourth-order central differences.

    The variables are put back.
    """
    raw = [raw_variable(v) for v in variables]
    start = [v.numpy() for v in raw]

    def at(a: float) -> list[np.ndarray]:
        for v, w, d in zip(raw, start, s, strict=True):
            v.assign(w + a * d)
        return [np.asarray(t) for t in function()]

    try:
        near = [p - m for p, m in zip(at(step), at(-step), strict=True)]
        far = [p - m for p, m in zip(at(2 * step), at(-2 * step), strict=True)]
    finally:
        for v, w in zip(raw, start, strict=True):
            v.assign(w)
    return [(8 * n - f) / (12 * step) for n, f in zip(near, far, strict=True)]


def hessian(problem: Problem, s: Sequence[Any]) -> list[Any]:
    """The library's product with the Hessian."""

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]
    def product(*s: Any) -> Any:
        return HessianOperator(lambda: problem.loss(problem.outputs()), problem.variables).product(s)

    return list(product(*s))


def hessian_truth(problem: Problem, s: Sequence[Any], row: Row) -> list[Any]:
    """The same by finite differences of gradients, which TensorFlow computes exactly."""
    stops = held_stops if row.expect == HELD else nullcontext
    with stops():
        problem.outputs()
        return _hessian_truth(problem, s, row)


def _hessian_truth(problem: Problem, s: Sequence[Any], row: Row) -> list[Any]:
    raw = [raw_variable(v) for v in problem.variables]

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]
    def gradient() -> Any:
        found = tf.gradients(problem.loss(problem.outputs()), raw, unconnected_gradients="zero")
        return [tf.convert_to_tensor(g) for g in found]

    return differences(gradient, problem.variables, s, row.step)


def gauss_newton(problem: Problem, s: Sequence[Any]) -> list[Any]:
    """The library's product with the Gauss-Newton matrix."""

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]
    def product(*s: Any) -> Any:
        z = problem.outputs()
        return LinearizedOutputs(problem.loss(z), [z], problem.variables).product(s)

    return list(product(*s))


def gauss_newton_truth(problem: Problem, s: Sequence[Any], row: Row) -> list[Any]:
    """Jᵀ H J s: Js by finite differences of the outputs, H v by those of the loss's slope, Jᵀ u by a first gradient."""
    stops = held_stops if row.promise("gauss-newton") == HELD else nullcontext
    with stops():
        problem.outputs()
        return _gauss_newton_truth(problem, s, row)


def _gauss_newton_truth(problem: Problem, s: Sequence[Any], row: Row) -> list[Any]:
    raw = [raw_variable(v) for v in problem.variables]
    outputs = tf.function(lambda: [problem.outputs()], autograph=False)
    (tangent,) = differences(outputs, problem.variables, s, row.step)
    z = tf.Variable(outputs()[0])

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]
    def slope() -> Any:
        return tf.gradients(problem.loss(tf.convert_to_tensor(z)), [z])

    (curved,) = differences(slope, [z], [tangent], row.step)

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]
    def back() -> Any:
        found = tf.gradients(problem.outputs(), raw, grad_ys=tf.constant(curved), unconnected_gradients="zero")
        return [tf.convert_to_tensor(g) for g in found]

    return list(back())


PRODUCTS: dict[str, tuple[Callable[..., list[Any]], Callable[..., list[Any]]]] = {
    "hessian": (hessian, hessian_truth),
    "gauss-newton": (gauss_newton, gauss_newton_truth),
}
"""Which product: the library's, and the independent truth."""


def relative_error(found: Sequence[Any], truth: Sequence[Any]) -> float:
    """|found - truth| / |truth| over all variables."""
    a, b = (np.concatenate([np.ravel(np.asarray(t)) for t in x]) for x in (found, truth))
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), np.finfo(float).tiny))
