"""JAX: its own ``jax.scipy.sparse.linalg.cg``, and a hand-written iteration, compiled, with its vectors donated."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from ..problem import Problem
from . import Contender, Solve


def contenders(problem: Problem) -> list[Contender]:
    """The library's cg, and two ways to write the sums of a compiled iteration."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU may be shared
    if not problem.device.on_gpu:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    how = "flat" if problem.flat else "per tensor"
    return [
        Contender("JAX cg", lambda: _library(problem), f"{how}, diagonal product"),
        Contender("JAX jit, vdot", lambda: _by_hand(problem, vdot=True), f"{how}, vectors donated"),
        Contender("JAX jit, sum", lambda: _by_hand(problem, vdot=False), f"{how}, vectors donated"),
    ]


def _arrays(problem: Problem, vector: Any) -> list[Any]:
    """The tensors of a vector as JAX arrays; they share its memory where JAX allows it."""
    import jax

    found = [jax.dlpack.from_dlpack(part) for part in problem.tensors(vector)]
    wanted = "gpu" if problem.device.on_gpu else "cpu"
    if found[0].device.platform != wanted:
        raise RuntimeError(f"JAX has no {wanted}: it put an array on {found[0].device}")
    return found


def _library(problem: Problem) -> Solve:
    import jax
    from jax.scipy.sparse.linalg import cg

    b, d = _arrays(problem, problem.b), _arrays(problem, problem.diagonal)
    tau = problem.tau

    @partial(jax.jit, static_argnums=2)
    def run(b: Any, d: Any, iterations: int) -> Any:
        def matvec(p: Any) -> Any:
            return [(a + tau) * c for a, c in zip(d, p, strict=True)]

        return cg(matvec, b, tol=0.0, atol=0.0, maxiter=iterations)[0]

    return lambda iterations: jax.block_until_ready(run(b, d, iterations))


def _by_hand(problem: Problem, vdot: bool) -> Solve:
    import jax
    import jax.numpy as jnp

    tau = problem.tau

    def dot(u: Any, v: Any) -> Any:
        if vdot:
            parts = [jnp.vdot(a, c, precision=jax.lax.Precision.HIGHEST) for a, c in zip(u, v, strict=True)]
        else:
            parts = [jnp.sum(a * c) for a, c in zip(u, v, strict=True)]
        return sum(parts[1:], parts[0])

    @partial(jax.jit, donate_argnums=(0, 1, 2, 3))
    def step(x: Any, r: Any, p: Any, rr: Any, hp: Any) -> Any:
        q = [h + tau * c for h, c in zip(hp, p, strict=True)]
        alpha = rr / dot(p, q)
        x = [a + alpha * c for a, c in zip(x, p, strict=True)]
        r = [a - alpha * c for a, c in zip(r, q, strict=True)]
        new = dot(r, r)
        beta = new / rr
        p = [a + beta * c for a, c in zip(r, p, strict=True)]
        return x, r, p, new

    @jax.jit  # type: ignore[untyped-decorator]
    def begin(b: Any) -> Any:
        return [jnp.zeros_like(a) for a in b], [a + 0 for a in b], [1 * a for a in b], dot(b, b)

    b = _arrays(problem, problem.b)
    products = [_arrays(problem, hp) for hp in problem.products]

    def solve(iterations: int) -> Any:
        x, r, p, rr = begin(b)
        r = [jnp.copy(a) for a in r]  # compiled code may give r and p one buffer, and a buffer is donated once
        for hp in products[:iterations]:
            x, r, p, rr = step(x, r, p, rr, hp)
        return jax.block_until_ready((x, r, p, rr))[0]

    return solve
