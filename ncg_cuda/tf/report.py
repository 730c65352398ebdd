"""What one Newton-CG step did, as Python numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..state import StopReason


@dataclass(frozen=True)
class StepReport:
    """The last step of :class:`ncg_cuda.tf.NewtonCG`; norms and sums are over all weights together."""

    iterations: int
    """CG iterations of this step."""
    products: int
    """Hessian products of this step: each costs about 1 to 1.7 gradients."""
    stop_reason: StopReason
    """Why CG stopped."""
    residual_norm: float
    """|b - (H + tau I) d| at the end, as CG's recursion has it."""
    rhs_norm: float
    """|b|, the norm of the right-hand side: the negative gradient, after any clipping."""
    curvature: float
    """p·(H + tau I)p / p·p along CG's last search direction."""
    drift: float
    """The largest relative miss of the predicted r·r: rounding-sized unless the product is not symmetric."""
    gradient_norm: float
    """|g|, before any clipping."""
    direction_norm: float
    """|d|, of the direction that was taken, before the learning rate."""
    slope: float
    """g·d: the change of the loss per unit of learning rate, to first order; negative for a descent direction."""
    fallback: bool
    """CG's direction was no descent direction, or not finite, and steepest descent was taken instead."""
    skipped: bool
    """Gradient or learning rate was not finite, and the weights were left as they were."""
    learning_rate: float
    """The learning rate of this step."""
    loss: float
    """The loss that the step differentiated; NaN where the optimizer cannot know it."""
    loss_after: float
    """The same loss at the new weights, if ``report_loss_after=True``; NaN otherwise."""
    steps: int
    """Steps taken so far, this one and skipped ones included."""
    fallbacks_total: int
    """Steps so far that fell back to steepest descent."""
    skipped_total: int
    """Steps so far that were skipped."""
    products_total: int
    """Hessian products so far: training so far cost ``steps + c * products_total`` gradients, c being the cost of
    one."""


FIELDS = tuple(StepReport.__dataclass_fields__)
"""The order of the numbers in the optimizer's state."""


def from_numbers(numbers: Sequence[float]) -> StepReport | None:
    """The report from the numbers in the order of FIELDS, or None if no step has been taken."""
    values = dict(zip(FIELDS, (float(n) for n in numbers), strict=True))
    if not values["steps"]:
        return None
    kinds = {"int": int, "bool": bool, "float": float, "StopReason": StopReason}
    typed: dict[str, Any] = {name: kinds[StepReport.__annotations__[name]](value) for name, value in values.items()}
    return StepReport(**typed)
