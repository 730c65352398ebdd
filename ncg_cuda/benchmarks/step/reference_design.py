"""The structure of the published implementation (S. Reiz, https://github.com/severin617/Newton-CG), for comparison.

Each weight tensor has a CG recurrence of its own, so that the matrix it solves with is not the whole one; vectors are
lists of tensors, and every vector operation is a TensorFlow operation of its own; each product builds loss, gradient
and second derivative anew, by Pearlmutter's trick, since a product inside a loop cannot reach what was computed outside
(see :mod:`ncg_cuda.tf.curvature`). Here all tensors advance together, so that one product of the network per iteration
serves them all: solves one after the other would make as many products *per tensor*. It is that structure at its
cheapest, written for this benchmark on current TensorFlow; what it costs is measured, not what it converges to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from ...tf.graphs import raw_variable
from .problems import Problem

Product = Callable[[Sequence[Any]], Sequence[Any]]


def gradient(problem: Problem) -> tuple[Any, list[Any]]:
    """Loss and gradient by a tape."""
    variables = [raw_variable(v) for v in problem.variables]
    with tf.GradientTape() as tape:
        loss, _ = problem.loss_and_outputs()
    return loss, [tf.convert_to_tensor(g) for g in tape.gradient(loss, variables)]


def hessian_product(problem: Problem, vectors: Sequence[Any]) -> list[Any]:
    """H s by differentiating twice, from scratch; moving averages stay as they are."""
    variables = [raw_variable(v) for v in problem.variables]
    with keras.StatelessScope(state_mapping=[]), tf.GradientTape() as outer:
        _, gradients = gradient(problem)
        along = [g * tf.stop_gradient(s) for g, s in zip(gradients, vectors, strict=True)]
    parts = outer.gradient(along, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return [tf.convert_to_tensor(part) for part in parts]


def solve(product: Product, b: Sequence[Any], *, tau: Any, iterations: Any) -> tuple[list[Any], Any]:
    """So many CG iterations per tensor, without any guard; the directions and the number of products."""

    def vv(u: Any, v: Any) -> Any:
        return tf.reduce_sum(u * v)

    def body(i: Any, x: list[Any], r: list[Any], p: list[Any]) -> tuple[Any, list[Any], list[Any], list[Any]]:
        q = [h + s * tau for h, s in zip(product(p), p, strict=True)]
        rr = [vv(v, v) for v in r]
        alpha = [a / vv(s, t) for a, s, t in zip(rr, p, q, strict=True)]
        x = [v + s * a for v, s, a in zip(x, p, alpha, strict=True)]
        r = [v - t * a for v, t, a in zip(r, q, alpha, strict=True)]
        beta = [vv(v, v) / a for v, a in zip(r, rr, strict=True)]
        p = [v + s * a for v, s, a in zip(r, p, beta, strict=True)]
        return i + 1, x, r, p

    start = (tf.constant(0), [tf.zeros_like(t) for t in b], list(b), list(b))
    made, x, _, _ = tf.while_loop(lambda i, *_: i < iterations, body, start, parallel_iterations=1)
    return list(x), made


def direction(product: Product, gradients: Sequence[Any], *, tau: Any, iterations: Any) -> tuple[list[Any], Any]:
    """Solve, and the negative gradient for each tensor where the solution does not descend by tau."""
    x, made = solve(product, [-g for g in gradients], tau=tau, iterations=iterations)
    steps = [tf.where(tf.reduce_sum(g * d) >= -tau, -g, d) for g, d in zip(gradients, x, strict=True)]
    return steps, made
