"""Ours: both passes as the solver queues them, the solver itself, and on a GPU the passes in a CUDA graph."""

from __future__ import annotations

from typing import Any

from ... import cg
from ...adapter import Adapter
from ...solve import Solve as Passes
from ...solve import System
from ..devices import Gpu, graph_nodes
from ..problem import Problem
from . import Contender, Solve


def _two() -> float:
    return 2.0


def contenders(problem: Problem) -> list[Contender]:
    """The ways to run ours on the problem's device."""
    ways = [
        Contender("ncg_cuda passes", lambda: _Passes(problem).solve, "both passes, x in every second iteration", _two),
        Contender("ncg_cuda passes, 9 vectors", lambda: _Passes(problem, False).solve, "x in every iteration", _two),
        Contender("ncg_cuda.cg", lambda: _solver(problem), "with its checks and its polling"),
    ]
    if isinstance(problem.device, Gpu):
        graph = _Graph(problem, problem.device)
        ways.insert(2, Contender("ncg_cuda passes, CUDA graph", graph.build, "captured by CuPy", graph.launches))
    return ways


class _Passes:
    """A solve whose products are ready: what :func:`ncg_cuda.cg` queues, without its looks at the state."""

    def __init__(self, problem: Problem, defer_x: bool = True) -> None:
        self._products: list[Any] = [hp if problem.flat else problem.tensors(hp) for hp in problem.products]
        self._next = 0
        layout = None if problem.flat else problem.size.layout
        system = System([(self._product, 1.0)], problem.tau, 0.0, 1_000_000, layout)
        arrays = Adapter(problem.b, "b")
        self._solve = Passes(system, arrays, arrays.operand, None, None, defer_x=defer_x)

    @property
    def x(self) -> Any:
        return self._solve.x.array

    def _product(self, p: Any) -> Any:
        self._next += 1
        return self._products[self._next - 1]

    def solve(self, iterations: int) -> Any:
        self._next = 0
        self._solve.begin()
        for _ in range(iterations):
            self._solve.iterate()
        self._solve.finish()
        return self.x


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
