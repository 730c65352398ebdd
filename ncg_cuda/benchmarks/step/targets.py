"""What a step is meant to cost, and whether a run reached it. Figures of a benchmark; no test asserts them."""

from __future__ import annotations

from collections.abc import Iterable

from .records import OfModel, Row, Verdict

ITERATIONS = 20
"""The targets hold at so many CG iterations, at the models' own batch, and at images of 64 x 64."""
IMAGE_SIZE = 64

GRADIENTS = {
    ("mlp", "hessian"): 27.0,
    ("resnet50", "hessian"): 38.0,
    ("mobilenetv2", "hessian"): 48.0,
    ("mlp", "gauss-newton"): 20.0,
    ("resnet50", "gauss-newton"): 28.0,
    ("mobilenetv2", "gauss-newton"): 38.0,
}
"""A step of the fused design, in gradients."""
VECTOR_PERCENT = {"resnet50": 4.0, "mobilenetv2": 4.0}
MEMORY = {("resnet50", "hessian"): 2.2, ("resnet50", "gauss-newton"): 1.7}
"""A process's peak over that of one that takes gradient steps. (Above the baseline, the vectors of CG alone would be
more than that.)
"""
TRACING = {"resnet50": 30.0}


def judge(models: Iterable[OfModel], iterations: int) -> list[Verdict]:
    """The verdicts on the targets of the configurations that were asked for; none at other settings."""
    verdicts: list[Verdict] = []
    for of in models:
        if iterations != ITERATIONS or of.batch != of.model.batch or (of.model.images and of.image_size != IMAGE_SIZE):
            continue
        for row in of.rows:
            if row.design == "fused":
                verdicts += _of_row(of, row)
    return verdicts


def _of_row(of: OfModel, row: Row) -> list[Verdict]:
    name, at = of.model.name, f"{of.model.name}, {row.curvature}"
    found: list[Verdict] = []
    wanted = GRADIENTS.get((name, row.curvature))
    if wanted is not None:
        value = None if row.gradients is None else row.gradients.median
        found.append(_verdict("time of a step", at, wanted, value, " gradients"))
    wanted = VECTOR_PERCENT.get(name)
    if wanted is not None:
        found.append(_verdict("vector work in a step", at, wanted, row.share("vector_work"), " %"))
    wanted = MEMORY.get((name, row.curvature))
    if wanted is not None:
        found.append(_verdict("peak memory, of processes", at, wanted, of.process_ratio(row), "x"))
    wanted = TRACING.get(name)
    if wanted is not None:
        found.append(_verdict("tracing", at, wanted, row.trace_seconds, " s"))
    return found


def _verdict(target: str, at: str, wanted: float, value: float | None, unit: str) -> Verdict:
    text = f"<= {wanted:g}{unit}"
    if value is None:
        return Verdict(target, at, text, "", "", None)
    return Verdict(target, at, text, f"{value:.3g}{unit}", f"{100 * (value / wanted - 1):+.0f} %", value <= wanted)
