"""``scipy.sparse.linalg.cg`` and ``cupyx.scipy.sparse.linalg.cg``: a LinearOperator that hands out ready products."""

from __future__ import annotations

from typing import Any

from ..problem import Problem
from . import Contender, Solve


def contenders(problem: Problem) -> list[Contender]:
    """The library's cg."""
    name = "cupyx cg" if problem.device.on_gpu else "SciPy cg"
    note = "flat; damped products ready" if problem.flat else "on one flat product: it knows no tensors"
    return [Contender(name, lambda: _build(problem), note)]


def _build(problem: Problem) -> Solve:
    if problem.device.on_gpu:
        from cupyx.scipy.sparse import linalg
    else:
        from scipy.sparse import linalg
    products = problem.damped()
    n = problem.size.n

    def solve(iterations: int) -> Any:
        ready = iter(products)
        operator = linalg.LinearOperator((n, n), matvec=lambda p: next(ready), dtype=problem.b.dtype)
        options = {"atol": 0.0, "maxiter": iterations}
        try:
            x, _ = linalg.cg(operator, problem.b, rtol=0.0, **options)
        except TypeError:  # the name of earlier versions
            ready = iter(products)
            x, _ = linalg.cg(operator, problem.b, tol=0.0, **options)
        return x

    return solve
