"""The table of operations: how to call each one natively and by the reference. Tests and benchmark are driven by it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import ops, reference

TAU, ALPHA_X, ALPHA_R, BETA, LR = 0.3, 0.7, 0.5, 0.2, -0.1


@dataclass(frozen=True)
class Operation:
    """One operation on the vectors (v0, v1, ...): both callables return (written vectors, sums). ``native`` passes
    keyword arguments, such as a workspace, on to the operation.
    """

    name: str
    vectors: int
    native: Callable[..., tuple[list[Any], tuple[float, ...]]]
    exact: Callable[..., tuple[list[Any], tuple[float, ...]]]
    takes_table: bool = False
    """Whether v0 may be a sequence of arrays."""


def _native_update(hp: Any, x: Any, r: Any, p: Any, **options: Any) -> tuple[list[Any], tuple[float, ...]]:
    rr = ops.cg_update(x, r, p, hp, alpha=ALPHA_R, alpha_x=ALPHA_X, beta=BETA, tau=TAU, **options)
    return [x, r, p], (rr,)


def _exact_update(hp: Any, x: Any, r: Any, p: Any) -> tuple[list[Any], tuple[float, ...]]:
    x, r, p, rr = reference.cg_update(x, r, p, hp, alpha_x=ALPHA_X, alpha_r=ALPHA_R, beta=BETA, tau=TAU)
    return [x, r, p], (rr,)


def _exact_step(w: Any, d: Any, g: Any) -> tuple[list[Any], tuple[float, ...]]:
    w, gd, gg, dd = reference.weighted_step(w, d, g, LR)
    return [w], (gd, gg, dd)


OPERATIONS = [
    Operation(
        "damped_curvature",
        2,
        lambda hp, p, **options: ([], ops.damped_curvature(hp, p, TAU, **options)),
        lambda hp, p: ([], reference.damped_curvature(hp, p, TAU)),
        takes_table=True,
    ),
    Operation("cg_update", 4, _native_update, _exact_update, takes_table=True),
    Operation(
        "weighted_step",
        3,
        lambda w, d, g, **options: ([w], ops.weighted_step(w, d, g, LR, **options)),
        _exact_step,
    ),
    Operation(
        "dots",
        2,
        lambda a, b, **options: ([], ops.dots(a, b, **options)),
        lambda a, b: ([], reference.dots(a, b)),
    ),
]
