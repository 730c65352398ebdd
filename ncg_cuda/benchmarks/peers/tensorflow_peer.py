"""Textbook CG in plain TensorFlow, as graph code and by XLA, on one flat vector or per tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..problem import Problem
from . import Contender, Solve


def contenders(problem: Problem) -> list[Contender]:
    """Graph code and XLA."""
    how = "flat" if problem.flat else "per tensor"
    return [
        Contender("TensorFlow graph", lambda: _build(problem, xla=False), how),
        Contender("TensorFlow XLA", lambda: _build(problem, xla=True), how),
    ]


def tensors_of(arrays: Sequence[Any]) -> list[Any]:
    """Arrays as TensorFlow tensors that share their memory."""
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")  # the lengths of solves are traced one by one, on purpose
    return [tf.experimental.dlpack.from_dlpack(array.__dlpack__()) for array in arrays]


def _build(problem: Problem, xla: bool) -> Solve:
    import tensorflow as tf

    b = tensors_of(problem.tensors(problem.b))
    products = [tensors_of(problem.tensors(hp)) for hp in problem.products]
    tau = problem.tau

    def dot(u: Sequence[Any], v: Sequence[Any]) -> Any:
        parts = [tf.tensordot(tf.reshape(a, [-1]), tf.reshape(c, [-1]), 1) for a, c in zip(u, v, strict=True)]
        return parts[0] if len(parts) == 1 else tf.add_n(parts)

    def iterate(x: Any, r: Any, p: Any, rr: Any, hp: Any) -> Any:
        q = [h + tau * d for h, d in zip(hp, p, strict=True)]
        alpha = rr / dot(p, q)
        x = [a + alpha * d for a, d in zip(x, p, strict=True)]
        r = [a - alpha * c for a, c in zip(r, q, strict=True)]
        rr, before = dot(r, r), rr
        beta = rr / before
        p = [a + beta * d for a, d in zip(r, p, strict=True)]
        return x, r, p, rr

    # per tensor, one compiled iteration serves all: XLA would compile hundreds of tensors for every iteration anew
    step = tf.function(iterate, jit_compile=True, autograph=False) if xla and not problem.flat else iterate

    def solve(b: Any, products: Any) -> Any:
        x, r, p = [tf.zeros_like(part) for part in b], b, b
        rr = dot(r, r)
        for hp in products:
            x, r, p, rr = step(x, r, p, rr, hp)
        return x, r, p

    function = tf.function(solve, jit_compile=xla and problem.flat, autograph=False)

    def run(iterations: int) -> Any:
        x = function(b, products[:iterations])[0]
        on_host = [part.numpy() if problem.device.on_gpu else np.asarray(part) for part in x[:1]]
        del on_host  # it was there: the solve is over
        return x

    return run
