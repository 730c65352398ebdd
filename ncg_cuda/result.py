"""What a CG solve found, and why it stopped."""

from __future__ import annotations

import math
from typing import Any

from .solve import Solve
from .state import StopReason


class CGResult:
    """What a solve found, and why it stopped.

    After ``cg(..., poll=0)``, and after the launch of a graph, the numbers are read from the device when one of them is
    first asked for; that waits for the solve. ``x`` can be used at once, in the order of the stream that the solve is
    on. Of a solve that the caller captured in a graph, read the numbers after a launch, on that launch's stream.
    """

    x: Any
    """The solution, an array like b."""
    verified: bool
    """Whether residual_norm comes from a product of its own."""

    def __init__(
        self,
        x: Any,
        solve: Solve,
        *,
        products: int | None,
        state: dict[str, float] | None = None,
        residual_norm: float | None = None,
        verified: bool = False,
        done: Any = None,
    ) -> None:
        self.x, self._products, self.verified = x, products, verified
        self._state_block, self._residual_norm = state, residual_norm
        self._done = done
        # The solve's vectors live on only where their work may still be pending, or be launched again in a graph.
        self._solve = solve if state is None else None

    @property
    def _state(self) -> dict[str, float]:
        if self._state_block is None:
            assert self._solve is not None
            arrays = self._solve.arrays
            with arrays.guard():
                arrays.wait(self._done)  # which may be on another stream than the current one
                self._state_block = self._solve.workspace.read_state()
        return self._state_block

    @property
    def products(self) -> int:
        """Calls of matvec; those after the stop, before the state was looked at, included. Of a graph: those that
        counted.
        """
        if self._products is None:
            assert self._solve is not None
            return int(self._state["products"]) * len(self._solve.system.parts)
        return self._products

    @property
    def iterations(self) -> int:
        """Finished CG iterations."""
        return int(self._state["iteration"])

    @property
    def stop_reason(self) -> StopReason:
        """Why the solve stopped."""
        return StopReason(int(self._state["stop"]))

    @property
    def converged(self) -> bool:
        """Whether the wanted residual was reached."""
        return self.stop_reason is StopReason.CONVERGED

    @property
    def residual_norm(self) -> float:
        """|b - (H + tau I) x|: recomputed by a product where ``verified``, else as the recursion has it."""
        norm = math.sqrt(self._state["rr"]) if self._residual_norm is None else self._residual_norm
        return norm / self._state["scale"]

    @property
    def rhs_norm(self) -> float:
        """|b|; convergence is residual_norm <= cg_tol * rhs_norm."""
        return math.sqrt(self._state["bb"]) / self._state["scale"]

    @property
    def curvature(self) -> float:
        """p·(H + tau I)p / p·p of the last direction (NaN if there was none): an estimate of a typical eigenvalue."""
        return self._state["pq"] / self._state["pp"] if self._state["pp"] > 0 else math.nan

    @property
    def drift(self) -> float:
        """Largest relative miss of a predicted r·z. Far above rounding (say 0.1), the matvec is not symmetric or not
        constant, or the system is too ill-conditioned for its precision.
        """
        return self._state["drift"]

    def __repr__(self) -> str:
        if self._state_block is None:
            return f"CGResult(x of shape {tuple(self.x.shape)}, numbers not read from the device yet)"
        return (
            f"CGResult({self.stop_reason} after {self.iterations} iterations, residual_norm={self.residual_norm:.3g}, "
            f"rhs_norm={self.rhs_norm:.3g}, products={self.products})"
        )
