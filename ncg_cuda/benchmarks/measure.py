"""Interleaved repetitions and what is made of them.

The machine may be shared and its speed may drift. So the contenders take turns within a repetition, and two of them are
compared by the ratio of their times in the same repetition; the median of these ratios counts, and their quartiles say
how far to trust it. What all are compared with, a copy, runs anew right before each of them.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

UNSTEADY = 3.0
"""A row whose median exceeds its best time so many times was disturbed: neither is worth a comparison."""

LEAST = 5
"""Repetitions that are made however long they take."""

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

    def scaled(self, factor: float) -> Spread:
        """All values times a positive factor."""
        values = {name: value * factor for name, value in vars(self).items() if name != "count"}
        return Spread(**values, count=self.count)


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


def unsteady(rows: Iterable[tuple[str, float | None, float | None]]) -> list[str]:
    """The warning about rows (name, median, best) whose times differ by more than :data:`UNSTEADY`, if any."""
    found = [
        f"{name} ({median / best:.1f}x)"
        for name, median, best in rows
        if median is not None and best is not None and 0 < UNSTEADY * best < median
    ]
    if not found:
        return []
    return [
        f"other work disturbed the machine: the median time of these rows is more than {UNSTEADY:g} times their best. "
        f"Compare nothing with them, and measure again on a quiet machine: {', '.join(found)}"
    ]


@dataclass
class Rounds:
    """Seconds by contender and repetition (NaN after a failure), and why contenders failed."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    beside: dict[str, list[float]] = field(default_factory=dict)
    """Seconds of the common yardstick right before each of ``seconds``."""

    def all_beside(self) -> Spread | None:
        """Of all runs of the common yardstick."""
        return spread([value for values in self.beside.values() for value in values])

    def percent(self, name: str, share: float) -> Spread | None:
        """A contender's rate in percent of the common yardstick's, which moves ``1 / share`` of its bytes; None where
        the yardstick's times beside it were too unsteady to compare with.
        """
        beside, everything = spread(self.beside.get(name, [])), self.all_beside()
        if beside is None or everything is None or beside.median > UNSTEADY * everything.smallest:
            return None
        found = ratio(self.beside.get(name, []), self.seconds.get(name, []))
        return None if found is None else found.scaled(100.0 * share)


def interleave(
    clocks: Mapping[str, Clock],
    repeats: int,
    *,
    beside: Clock | None = None,
    seconds: float = 0.0,
    step: Callable[[str], Any] = lambda name: None,
) -> Rounds:
    """Run every clock ``repeats`` times, in turns, starting with another one each time; ``beside`` before each run.

    Where that takes longer than ``seconds`` (0: any time), fewer repetitions do, but no fewer than :data:`LEAST`. A
    clock that raises is out, and its reason is kept; the others go on. ``beside`` is a plain stream: its error is
    an error of the whole measurement.
    """
    rounds = Rounds({name: [] for name in clocks}, beside={name: [] for name in clocks})
    names = list(clocks)
    started = time.monotonic()
    for repeat in range(repeats):
        if seconds and repeat >= LEAST and time.monotonic() - started > seconds:
            break
        shift = repeat % len(names) if names else 0
        for name in names[shift:] + names[:shift]:
            value = before = math.nan
            if name not in rounds.failed:
                before = beside() if beside is not None else math.nan
                try:
                    value = clocks[name]()
                except Exception as error:  # a peer may raise anything
                    rounds.failed[name] = reason(error)
            rounds.seconds[name].append(value)
            rounds.beside[name].append(before)
            step(name)
    return rounds


def reason(error: BaseException) -> str:
    """An error in one line of at most 200 characters."""
    text = " ".join(str(error).split())
    line = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return line if len(line) <= 200 else line[:197] + "..."
