"""Ours: both passes as the solver queues them, the solver itself, and on a GPU the passes in a CUDA graph."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import cg, ops
from ...calls import call
from ..devices import Gpu, graph_nodes
from ..problem import Problem
from . import Contender, Solve


def contenders(problem: Problem) -> list[Contender]:
    """The ways to run ours on the problem's device."""
    ways = [
        Contender("ncg_cuda passes", lambda: _passes(problem), "ops, both passes in a solve", lambda: 2.0),
        Contender("ncg_cuda.cg", lambda: _solver(problem), "with its checks and its polling"),
    ]
    if isinstance(problem.device, Gpu):
        graph = _Graph(problem, problem.device)
        ways.insert(1, Contender("ncg_cuda passes, CUDA graph", graph.build, "captured by CuPy", graph.launches))
    return ways


class _Passes:
    """The passes of a solve in vectors and a workspace of its own."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.x, self.r, self.p = problem.scratch
        segments = 0 if problem.flat else problem.size.tensors
        self.workspace = ops.Workspace(problem.b, segments)
        self.products: list[Any] = [hp if problem.flat else problem.tensors(hp) for hp in problem.products]
        finfo = np.finfo(np.float32)
        values = dict.fromkeys(ops.STATE_FIELDS, 0.0)
        values.update(tau=problem.tau, max_iter=1e6, eps=float(finfo.eps), largest=float(finfo.max))
        block = [values[name] for name in ops.STATE_FIELDS]
        self.fresh_state = problem.device.xp.asarray(np.array(block))

    def begin(self) -> None:
        self.x[...] = 0
        self.r[...] = self.problem.b
        self.p[...] = self.problem.b
        self.workspace.state[...] = self.fresh_state
        b = self.problem.b
        call("dots", [(self.r, "r"), (b, "b")], written=0, workspace=self.workspace, in_solve=True)

    def iterate(self, hp: Any) -> None:
        common: dict[str, Any] = {"workspace": self.workspace, "in_solve": True, "layout": self.problem.size.layout}
        call("damped_curvature", [(hp, "hp"), (self.p, "p")], written=0, **common)
        vectors = [(hp, "hp"), (self.x, "x"), (self.r, "r"), (self.p, "p")]
        call("cg_update", vectors, written=3, **common)

    def solve(self, iterations: int) -> Any:
        self.begin()
        for hp in self.products[:iterations]:
            self.iterate(hp)
        return self.x


def _passes(problem: Problem) -> Solve:
    return _Passes(problem).solve


class _Graph:
    """The same, launched as one CUDA graph."""

    def __init__(self, problem: Problem, device: Gpu) -> None:
        self.problem, self.device = problem, device
        self._nodes: dict[int, int | None] = {}

    def build(self) -> Solve:
        passes, device = _Passes(self.problem), self.device
        passes.solve(1)
        graphs = {}
        for count in (1, 1 + self.problem.iterations):
            graphs[count] = device.capture(lambda count=count: passes.solve(count))  # type: ignore[misc]
            self._nodes[count] = graph_nodes(graphs[count])

        def solve(iterations: int) -> Any:
            graphs[iterations].launch(device.stream)
            return passes.x

        return solve

    def launches(self) -> float | None:
        few, many = self._nodes.get(1), self._nodes.get(1 + self.problem.iterations)
        return None if few is None or many is None else (many - few) / self.problem.iterations


def _solver(problem: Problem) -> Solve:
    products: list[Any] = [hp if problem.flat else problem.tensors(hp) for hp in problem.products]

    def solve(iterations: int) -> Any:
        ready = iter(products)
        result = cg(
            lambda p: next(ready),
            problem.b,
            tau=problem.tau,
            cg_tol=0.0,
            max_iter=iterations,
            verify=False,
            layout=problem.size.layout,
        )
        return result.x

    return solve
