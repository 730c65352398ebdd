"""Running a competitor over its learning rates and seeds, and choosing the rate."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .optimizers import Competitor
from .records import Run

RULE = (
    "the rate of the grid with the lowest median over the seeds of the final loss over the full training set; "
    "a diverged run counts as infinite, and of equal rates the smallest is taken"
)


@dataclass(frozen=True)
class Choice:
    """The learning rate that a competitor runs at on a scenario, and what it was chosen from."""

    scenario: str
    competitor: Competitor
    rates: tuple[float, ...]
    learning_rate: float
    grid_runs: tuple[Run, ...]

    @property
    def runs(self) -> list[Run]:
        """The runs at the chosen rate, one per seed."""
        return [run for run in self.grid_runs if run.learning_rate == self.learning_rate]

    @property
    def at_grid_edge(self) -> bool:
        """Whether a wider grid might hold a better rate."""
        return len(self.rates) > 1 and self.learning_rate in (self.rates[0], self.rates[-1])

    def warning(self) -> str | None:
        """What a reader must know about the choice, if anything."""
        if all(run.diverged for run in self.runs):
            where = "every learning rate of its grid" if len(self.rates) > 1 else f"learning rate {self.rates[0]:g}"
            return f"{self.scenario}: {self.competitor.label} diverged at {where}"
        if self.at_grid_edge:
            return (
                f"{self.scenario}: {self.competitor.label} is best at {self.learning_rate:g}, an edge of its grid "
                f"{self.rates[0]:g} … {self.rates[-1]:g}: a wider grid (--{self.competitor.name}-rates) may do better"
            )
        return None


def choose(scenario: str, competitor: Competitor, rates: tuple[float, ...], runs: list[Run]) -> Choice:
    """Apply :data:`RULE` to the runs of all rates and seeds."""

    def median(rate: float) -> float:
        return statistics.median(run.loss_or_inf() for run in runs if run.learning_rate == rate)

    return Choice(scenario, competitor, rates, min(rates, key=lambda rate: (median(rate), rate)), tuple(runs))


def grid_rows(choices: list[Choice], unfinished: list[Run]) -> Iterator[dict[str, Any]]:
    """The rows of ``grid.json``; ``chosen`` is None while a search is not finished."""
    for choice in choices:
        for run in choice.grid_runs:
            chosen = run.learning_rate == choice.learning_rate
            yield {**run.as_json(), "chosen": chosen, "at_grid_edge": chosen and choice.at_grid_edge}
    for run in unfinished:
        yield {**run.as_json(), "chosen": None, "at_grid_edge": None}
