"""Textbook CG as its formulas read, in NumPy or CuPy, and with every vector updated in place."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..problem import Problem
from . import Contender, Solve


def contenders(problem: Problem) -> list[Contender]:
    """As the formulas read, and in place."""
    library = "CuPy" if problem.device.on_gpu else "NumPy"
    how = "flat" if problem.flat else "per tensor"
    return [
        Contender(library, lambda: _plain(problem), f"{how}, as the formulas read"),
        Contender(f"{library}, in place", lambda: _in_place(problem), f"{how}, no allocation"),
    ]


def _plain(problem: Problem) -> Solve:
    xp, tau = problem.device.xp, np.float32(problem.tau)
    b = problem.tensors(problem.b)
    products = [problem.tensors(hp) for hp in problem.products]

    def dot(u: list[Any], v: list[Any]) -> Any:
        total = u[0].ravel() @ v[0].ravel()
        for a, c in zip(u[1:], v[1:], strict=True):
            total = total + a.ravel() @ c.ravel()
        return total

    def solve(iterations: int) -> Any:
        x, r, p = [xp.zeros_like(part) for part in b], b, b
        rr = dot(r, r)
        for hp in products[:iterations]:
            q = [h + d * tau for h, d in zip(hp, p, strict=True)]
            alpha = rr / dot(p, q)
            x = [a + alpha * d for a, d in zip(x, p, strict=True)]
            r = [a - alpha * c for a, c in zip(r, q, strict=True)]
            rr, before = dot(r, r), rr
            beta = rr / before
            p = [a + beta * d for a, d in zip(r, p, strict=True)]
        return x

    return solve


def _in_place(problem: Problem) -> Solve:
    xp, tau = problem.device.xp, np.float32(problem.tau)
    b = problem.tensors(problem.b)
    products = [problem.tensors(hp) for hp in problem.products]
    x, r, p = (problem.tensors(vector) for vector in problem.scratch)
    q = problem.tensors(problem.device.empty(problem.size.n))
    room = [xp.empty_like(part) for part in b]

    def dot(u: list[Any], v: list[Any]) -> Any:
        total = u[0].ravel() @ v[0].ravel()
        for a, c in zip(u[1:], v[1:], strict=True):
            total = total + a.ravel() @ c.ravel()
        return total

    def solve(iterations: int) -> Any:
        for part, start in zip(range(len(b)), b, strict=True):
            x[part][...] = 0
            r[part][...] = start
            p[part][...] = start
        rr = dot(r, r)
        for hp in products[:iterations]:
            for h, d, out in zip(hp, p, q, strict=True):
                xp.multiply(d, tau, out=out)
                out += h
            alpha = rr / dot(p, q)
            for a, d, s in zip(x, p, room, strict=True):
                xp.multiply(d, alpha, out=s)
                a += s
            for a, c in zip(r, q, strict=True):
                c *= alpha
                a -= c
            rr, before = dot(r, r), rr
            beta = rr / before
            for a, d in zip(r, p, strict=True):
                d *= beta
                d += a
        return x

    return solve
