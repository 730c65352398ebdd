"""Why a CG solve stopped: the typed result that every path (native, TensorFlow op, pure TensorFlow) reports."""

from __future__ import annotations

from enum import IntEnum


class StopReason(IntEnum):
    """Why a CG solve stopped. The numbers are those of ``csrc/ncg/state.h`` and never change."""

    RUNNING = 0
    """Not stopped; never the reason of a finished solve."""
    CONVERGED = 1
    """The residual norm fell to ``cg_tol`` times the norm of b."""
    MAX_ITER = 2
    """``max_iter`` iterations were made first. Usual, and harmless, inside an inexact Newton method."""
    NEGATIVE_CURVATURE = 3
    """A search direction with p·(H + tau I)p <= 0 was met: the matrix is not positive definite."""
    BREAKDOWN = 4
    """A non-finite number appeared (NaN or Inf in b, in a product, or by overflow)."""
    STAGNATED = 5
    """The recursive residual claims convergence, but the true residual, computed by one more product, does not."""

    def __str__(self) -> str:
        return self.name.lower()
