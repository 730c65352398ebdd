"""The table of operations: how to call each one natively and by the reference. Tests and benchmark are driven by it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import _core, ops, reference

TAU, ALPHA_X, ALPHA_R, BETA, LR = 0.3, 0.7, 0.5, 0.2, -0.1
DEFERRED, SCALE, WEIGHT = 0.6, 0.5, 0.25


Result = tuple[list[Any], tuple[float, ...]]


@dataclass(frozen=True)
class Operation:
    """One operation on the vectors (v0, v1, ...): both callables return (written vectors, sums). ``native`` passes
    keyword arguments, such as a workspace, on to the operation.
    """

    name: str
    vectors: int
    native: Callable[..., Result]
    exact: Callable[..., Result]
    takes_table: bool = False
    """Whether v0 may be a sequence of arrays, and bfloat16."""
    variant: str = ""
    """What tells this row from another of the same operation."""
    moved: tuple[int, int] | None = None
    """Vectors read and written, where it is not what the operation itself declares."""

    def __str__(self) -> str:
        return f"{self.name}, {self.variant}" if self.variant else self.name

    @property
    def traffic(self) -> tuple[int, int]:
        """Vectors read and written by a call."""
        return self.moved or _core.traffic()[self.name]

    @property
    def stream(self) -> tuple[int, int, int]:
        """Reads, writes and vectors of the plain stream that moves as much."""
        reads, writes = self.traffic
        return reads, writes, self.vectors if self.moved is None else max(reads, writes)


def _native_update(hp: Any, x: Any, r: Any, p: Any, **o: Any) -> Result:
    rr = ops.cg_update(x, r, p, hp, alpha=ALPHA_R, alpha_x=ALPHA_X, beta=BETA, tau=TAU, **o)
    return [x, r, p], (rr,)


def _exact_update(hp: Any, x: Any, r: Any, p: Any) -> Result:
    x, r, p, rr = reference.cg_update(x, r, p, hp, alpha_x=ALPHA_X, alpha_r=ALPHA_R, beta=BETA, tau=TAU)
    return [x, r, p], (rr,)


def _deferred(moves: bool) -> tuple[Callable[..., Result], Callable[..., Result]]:
    common: dict[str, Any] = {"beta": BETA, "tau": TAU, "alpha_x": ALPHA_X, "deferred": DEFERRED, "x_moves": moves}

    def native(hp: Any, x: Any, r: Any, p: Any, **o: Any) -> Result:
        rr = ops.cg_update_deferred(x, r, p, hp, alpha=ALPHA_R, **common, **o)
        return [x, r, p], (rr,)

    def exact(hp: Any, x: Any, r: Any, p: Any) -> Result:
        x, r, p, rr = reference.cg_update_deferred(x, r, p, hp, alpha_r=ALPHA_R, **common)
        return [x, r, p], (rr,)

    return native, exact


def _native_preconditioned_update(hp: Any, m: Any, x: Any, r: Any, p: Any, **o: Any) -> Result:
    sums = ops.preconditioned_update(x, r, p, hp, m, alpha=ALPHA_R, alpha_x=ALPHA_X, beta=BETA, tau=TAU, **o)
    return [x, r, p], sums


def _exact_preconditioned_update(hp: Any, m: Any, x: Any, r: Any, p: Any) -> Result:
    x, r, p, *sums = reference.preconditioned_update(
        x, r, p, hp, m, alpha_x=ALPHA_X, alpha_r=ALPHA_R, beta=BETA, tau=TAU
    )
    return [x, r, p], tuple(sums)


def _exact_begin(b: Any, x: Any, r: Any, p: Any) -> Result:
    x, r, p, rr = reference.cg_begin(b, SCALE)
    return [x, r, p], (rr,)


def _native_begin_from(b: Any, x0: Any, x: Any, r: Any, p: Any, **o: Any) -> Result:
    ops.cg_begin_from(b, x0, x, r, p, scale=SCALE, **o)
    return [x, r, p], ()


def _exact_preconditioned_begin(b: Any, m: Any, x: Any, r: Any, p: Any) -> Result:
    x, r, p, *sums = reference.preconditioned_begin(b, m, SCALE)
    return [x, r, p], tuple(sums)


def _native_accumulate(hv: Any, acc: Any, **o: Any) -> Result:
    ops.accumulate(acc, hv, WEIGHT, **o)
    return [acc], ()


def _exact_accumulate_curvature(hv: Any, p: Any, acc: Any) -> Result:
    total, *sums = reference.accumulate_curvature(acc, hv, p, WEIGHT, TAU)
    return [total], tuple(sums)


def _native_pack(tensors: Any, flat: Any, **o: Any) -> Result:
    ops.pack(tensors, flat, SCALE, **o)
    return [flat], ()


def _native_finish(r: Any, p: Any, x: Any, **o: Any) -> Result:
    ops.cg_finish(x, r, p, deferred=DEFERRED, inverse_scale=1 / SCALE, **o)
    return [x], ()


def _exact_step(w: Any, d: Any, g: Any) -> Result:
    w, gd, gg, dd = reference.weighted_step(w, d, g, LR)
    return [w], (gd, gg, dd)


OPERATIONS = [
    Operation(
        "damped_curvature",
        2,
        lambda hp, p, **o: ([], ops.damped_curvature(hp, p, TAU, **o)),
        lambda hp, p: ([], reference.damped_curvature(hp, p, TAU)),
        takes_table=True,
    ),
    Operation("cg_update", 4, _native_update, _exact_update, takes_table=True),
    Operation("cg_update_deferred", 4, *_deferred(True), takes_table=True, variant="x moves"),
    Operation("cg_update_deferred", 4, *_deferred(False), takes_table=True, variant="x stays", moved=(3, 2)),
    Operation(
        "preconditioned_curvature",
        3,
        lambda hp, p, m, **o: ([], ops.preconditioned_curvature(hp, p, m, TAU, **o)),
        lambda hp, p, m: ([], reference.preconditioned_curvature(hp, p, m, TAU)),
        takes_table=True,
    ),
    Operation(
        "preconditioned_update", 5, _native_preconditioned_update, _exact_preconditioned_update, takes_table=True
    ),
    Operation(
        "preconditioned_begin",
        5,
        lambda b, m, x, r, p, **o: ([x, r, p], ops.preconditioned_begin(b, m, x, r, p, scale=SCALE, **o)),
        _exact_preconditioned_begin,
    ),
    Operation(
        "cg_begin", 4, lambda b, x, r, p, **o: ([x, r, p], (ops.cg_begin(b, x, r, p, scale=SCALE, **o),)), _exact_begin
    ),
    Operation(
        "cg_begin_from",
        5,
        _native_begin_from,
        lambda b, x0, x, r, p: (list(reference.cg_begin_from(b, x0, SCALE)), ()),
    ),
    Operation(
        "cg_restart",
        3,
        lambda b, r, p, **o: ([], ops.cg_restart(b, r, p, scale=SCALE, **o)),
        lambda b, r, p: ([], reference.cg_restart(b, r, p, SCALE)),
    ),
    Operation(
        "cg_finish",
        3,
        _native_finish,
        lambda r, p, x: ([reference.cg_finish(x, r, p, deferred=DEFERRED, inverse_scale=1 / SCALE)], ()),
    ),
    Operation(
        "accumulate",
        2,
        _native_accumulate,
        lambda hv, acc: ([reference.accumulate(acc, hv, WEIGHT)], ()),
        takes_table=True,
    ),
    Operation(
        "accumulate_curvature",
        3,
        lambda hv, p, acc, **o: ([acc], ops.accumulate_curvature(acc, hv, p, WEIGHT, TAU, **o)),
        _exact_accumulate_curvature,
        takes_table=True,
    ),
    Operation("pack", 2, _native_pack, lambda tensors, flat: ([reference.pack(tensors, SCALE)], ()), takes_table=True),
    Operation("magnitude", 1, lambda a, **o: ([], (ops.magnitude(a, **o),)), lambda a: ([], (reference.magnitude(a),))),
    Operation("weighted_step", 3, lambda w, d, g, **o: ([w], ops.weighted_step(w, d, g, LR, **o)), _exact_step),
    Operation(
        "dots",
        2,
        lambda a, b, **o: ([], ops.dots(a, b, scale_a=SCALE, scale_b=2 * SCALE, **o)),
        lambda a, b: ([], reference.dots(a, b, SCALE, 2 * SCALE)),
    ),
]
