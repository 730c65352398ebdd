"""Torch: eager code in its foreach style, and ``torch.compile``."""

from __future__ import annotations

from typing import Any

from ..problem import Problem
from . import Contender, Solve


def contenders(problem: Problem) -> list[Contender]:
    """Foreach and compiled."""
    how = "flat" if problem.flat else "per tensor"
    return [
        Contender("torch foreach", lambda: _foreach(problem), f"{how}, in place"),
        Contender("torch.compile", lambda: _compiled(problem), f"{how}, in place"),
    ]


def _tensors(problem: Problem, vector: Any) -> list[Any]:
    import torch

    if not problem.device.on_gpu:
        torch.set_num_threads(problem.device.threads)
    return [torch.utils.dlpack.from_dlpack(part) for part in problem.tensors(vector)]


class _State:
    """Vectors, and the beginning of a solve."""

    def __init__(self, problem: Problem) -> None:
        import torch

        self.b = _tensors(problem, problem.b)
        self.products = [_tensors(problem, hp) for hp in problem.products]
        self.x, self.r, self.p = (_tensors(problem, vector) for vector in problem.scratch)
        self.torch = torch

    def begin(self) -> Any:
        torch = self.torch
        torch._foreach_zero_(self.x)
        torch._foreach_copy_(self.r, self.b)
        torch._foreach_copy_(self.p, self.b)
        return self.dot(self.r, self.r)

    def dot(self, u: list[Any], v: list[Any]) -> Any:
        parts = [self.torch.dot(a.reshape(-1), c.reshape(-1)) for a, c in zip(u, v, strict=True)]
        return parts[0] if len(parts) == 1 else self.torch.stack(parts).sum()


def _foreach(problem: Problem) -> Solve:
    state = _State(problem)
    torch, tau = state.torch, problem.tau

    @torch.no_grad()  # type: ignore[untyped-decorator, unused-ignore]
    def solve(iterations: int) -> Any:
        rr = state.begin()
        for hp in state.products[:iterations]:
            q = torch._foreach_add(hp, state.p, alpha=tau)
            alpha = rr / state.dot(state.p, q)
            torch._foreach_add_(state.x, torch._foreach_mul(state.p, alpha))
            torch._foreach_mul_(q, alpha)
            torch._foreach_sub_(state.r, q)
            rr, before = state.dot(state.r, state.r), rr
            torch._foreach_mul_(state.p, rr / before)
            torch._foreach_add_(state.p, state.r)
        return state.x

    solved: Solve = solve
    return solved


def _compiled(problem: Problem) -> Solve:
    import os

    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no pool of processes that outlives the benchmark
    state = _State(problem)
    torch, tau = state.torch, problem.tau

    def step(x: Any, r: Any, p: Any, rr: Any, hp: Any) -> Any:
        q = [h + tau * c for h, c in zip(hp, p, strict=True)]
        alpha = rr / sum((a * c).sum() for a, c in zip(p, q, strict=True))
        for a, c in zip(x, p, strict=True):
            a.add_(alpha * c)
        for a, c in zip(r, q, strict=True):
            a.sub_(alpha * c)
        new = sum((a * a).sum() for a in r)
        beta = new / rr
        for a, c in zip(r, p, strict=True):
            c.copy_(a + beta * c)
        return new

    compiled = torch.compile(step, fullgraph=True, dynamic=False)

    @torch.no_grad()  # type: ignore[untyped-decorator, unused-ignore]
    def solve(iterations: int) -> Any:
        rr = state.begin()
        for hp in state.products[:iterations]:
            rr = compiled(state.x, state.r, state.p, rr, hp)
        return state.x

    solved: Solve = solve
    return solved
