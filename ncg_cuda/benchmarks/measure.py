"""Interleaved repetitions and what is made of them.

The machine may be shared and its speed may drift. So the contenders take turns within a repetition, and two of them are
compared by the ratio of their times in the same repetition; the median of these ratios counts, and their quartiles say
how far to trust it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

Clock = Callable[[], float]
"""Runs a contender once and returns the seconds of one of its operations."""


@dataclass(frozen=True)
class Spread:
    """What repetitions gave."""

    median: float
    low: float
    """The first quartile."""
    high: float
    """The third quartile."""
    smallest: float
    largest: float
    count: int

    def as_json(self) -> dict[str, float | int]:
        return asdict(self)


def spread(values: Sequence[float]) -> Spread | None:
    """Median, quartiles and range of the finite values; None if there is none."""
    kept = sorted(value for value in values if math.isfinite(value))
    if not kept:
        return None
    quartiles = statistics.quantiles(kept, n=4, method="inclusive") if len(kept) > 1 else [kept[0]] * 3
    return Spread(quartiles[1], quartiles[0], quartiles[2], kept[0], kept[-1], len(kept))


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Spread | None:
    """The ratios of two contenders, repetition by repetition; those without a positive time on both sides drop out."""
    pairs = zip(numerators, denominators, strict=True)
    return spread([a / b for a, b in pairs if a > 0 and b > 0])


@dataclass
class Rounds:
    """Seconds by contender and repetition (NaN after a failure), and why contenders failed."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def interleave(clocks: Mapping[str, Clock], repeats: int, *, step: Callable[[str], Any] = lambda name: None) -> Rounds:
    """Run every clock ``repeats`` times, in turns, starting with another one each time.

    A clock that raises is out, and its reason is kept; the others go on.
    """
    rounds = Rounds({name: [] for name in clocks})
    names = list(clocks)
    for repeat in range(repeats):
        shift = repeat % len(names) if names else 0
        for name in names[shift:] + names[:shift]:
            value = math.nan
            if name not in rounds.failed:
                try:
                    value = clocks[name]()
                except Exception as error:  # a peer may raise anything
                    rounds.failed[name] = reason(error)
            rounds.seconds[name].append(value)
            step(name)
    return rounds


def reason(error: BaseException) -> str:
    """An error in one line of at most 200 characters."""
    text = " ".join(str(error).split())
    line = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return line if len(line) <= 200 else line[:197] + "..."
