"""Ours through the TensorFlow op: both passes in one call, on TensorFlow's thread pool."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..problem import Problem
from . import Contender, Solve
from .tensorflow_peer import tensors_of


def contenders(problem: Problem) -> list[Contender]:
    """The op, in a graph."""
    return [Contender("ncg_cuda TensorFlow op", lambda: _build(problem), "in a tf.function", lambda: None)]


def _build(problem: Problem) -> Solve:
    import tensorflow as tf

    from ...tf import oplib

    lib = oplib.load()
    if lib is None:
        raise RuntimeError(oplib.why_not())
    (b,) = tensors_of([problem.b])
    products = [tensors_of(problem.tensors(hp)) for hp in problem.products]

    @tf.function  # type: ignore[untyped-decorator]
    def solve(b: Any, products: list[list[Any]]) -> Any:
        x, r, p, state = lib.ncg_cg_begin(b, tau=np.float64(problem.tau), cg_tol=np.float64(0.0), max_iter=1000)
        for hp in products:
            x, r, p, state = lib.ncg_cg_iterate(hp=hp, x=x, r=r, p=p, state=state)
        return lib.ncg_cg_finish(x=x, r=r, p=p, state=state)

    return lambda iterations: np.asarray(solve(b, products[:iterations])[0])
