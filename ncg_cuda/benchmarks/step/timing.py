"""What the time of a step is spent on, by differences of whole runs.

With T(k) the time of a step of k products, W(k) that of its vector work (everything between gradient and direction:
the solve and its checks) with a diagonal stand-in for the product, S that of the m stand-ins alone, L that of what a
step computes once, all of them compiled once and run in turns:

==============  =======================================================================================
linearisation   L: forward and backward pass (for Gauss-Newton also the transposed pass)
vector work     W(m) - S
products        (T(m) - T(0)) - (W(m) - W(0) - S): the loop, less the vector work in it
rest            T(m) less all these: the update of the weights, the report, and what differs from the sum
==============  =======================================================================================
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..measure import Clock, Rounds, Spread, interleave, spread
from .designs import Step

GRADIENTS = 5
"""Gradients in a row, of which the mean counts: one alone is far shorter than a step, and so less steady."""


@dataclass
class Split:
    """Seconds of the parts of a step."""

    linearisation: Spread
    products: Spread
    vector_work: Spread
    rest: Spread


def seconds_of(f: Callable[[], Any]) -> float:
    """One call, to its end: on a CPU TensorFlow returns when the outputs are there."""
    started = time.perf_counter()
    f()
    return time.perf_counter() - started


def clocks(step: Step, vector_work: Callable[[], Any], stand_ins: Callable[[], Any]) -> dict[str, Clock]:
    """All that is run in turns, except the gradient."""

    def solving(f: Callable[[], Any], on: bool) -> Clock:
        def clock() -> float:
            step.set_solving(on)
            return seconds_of(f)

        return clock

    return {
        "step": solving(step.step, True),
        "step of none": solving(step.step, False),
        "vector work": solving(vector_work, True),
        "vector work of none": solving(vector_work, False),
        "stand-ins": lambda: seconds_of(stand_ins),
        "linearisation": lambda: seconds_of(step.linearise),
    }


def run(
    timed: dict[str, Clock], gradient: Callable[[], Any], repeats: int, seconds: float, say: Callable[[str], Any]
) -> Rounds:
    """Warm everything up, then all in turns, the step between two runs of the gradient, whose mean counts: a machine
    whose speed drifts while a step runs (tens of gradients long) shows it on both sides.
    """
    units: list[float] = []
    step = timed["step"]

    def unit() -> float:
        gradient()
        return seconds_of(lambda: [gradient() for _ in range(GRADIENTS)]) / GRADIENTS

    def between() -> float:
        units.append(math.nan)
        before = unit()
        value = step()
        units[-1] = (before + unit()) / 2
        return value

    timed = {**timed, "step": between}
    for clock in timed.values():
        clock()
    units.clear()
    rounds = interleave(timed, repeats, seconds=seconds, step=say)
    if rounds.failed:
        raise RuntimeError("; ".join(f"{name}: {why}" for name, why in rounds.failed.items()))
    rounds.seconds["gradient"] = units
    return rounds


def split(rounds: Rounds) -> Split | None:
    """The parts, formed within each repetition."""
    columns = [
        rounds.seconds[name]
        for name in ("step", "step of none", "vector work", "vector work of none", "stand-ins", "linearisation")
    ]
    parts: list[list[float]] = [[], [], [], []]
    for whole, none, work, no_work, alone, once in zip(*columns, strict=True):
        vector_work = work - alone
        products = (whole - none) - (work - no_work - alone)
        for part, value in zip(
            parts, (once, products, vector_work, whole - once - products - vector_work), strict=True
        ):
            part.append(value)
    found = [spread(part) for part in parts]
    if any(part is None for part in found):
        return None
    return Split(*[part for part in found if part is not None])
