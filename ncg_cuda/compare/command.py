"""``ncg-cuda compare``: every competitor on every scenario, with files that are complete at any moment."""

from __future__ import annotations

import sys
from functools import partial

from ..environment import environment
from ..files import write_json
from ..scenarios import Dataset, Scenario
from .optimizers import Competitor
from .plan import Plan, check
from .plot import plot
from .progress import Progress
from .records import Run, write_grid, write_runs
from .search import Choice, choose, grid_rows
from .table import comparison


class _Results:
    """All that is known so far, and its files."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.choices: list[Choice] = []
        self.unfinished: list[Run] = []
        self._environment = environment(tensorflow=True)

    def write(self, status: str) -> None:
        """Write every file but the picture."""
        out = self.plan.out
        write_runs(out, [run for choice in self.choices for run in choice.runs])
        write_grid(out, grid_rows(self.choices, self.unfinished))
        write_json(out / "environment.json", {"status": status, "command": self.plan.as_json(), **self._environment})


def compare(plan: Plan) -> int:
    """Run the plan, print its table, write its files.

    Returns 0, or 130 after Ctrl-C: what was finished by then is written and printed all the same. Raises UsageError,
    before any training, if the plan cannot be carried out.
    """
    loaded = check(plan)
    results = _Results(plan)
    if (plan.out / "summary.json").exists():
        print(f"the results of an earlier run in {plan.out} are replaced", file=sys.stderr)
        (plan.out / "compare.png").unlink(missing_ok=True)
    results.write("running")
    status = "interrupted"
    try:
        for scenario, data in loaded.values():
            for competitor in plan.optimizers:
                results.choices.append(_compete(results, scenario, data, competitor))
                results.unfinished = []
                results.write("running")
        status = "complete"
    except KeyboardInterrupt:
        print(f"\ninterrupted: what is finished is in {plan.out}", file=sys.stderr)
    finally:
        results.write(status)
        plot(results.choices, plan.out / "compare.png")
    if results.choices:
        print(comparison(results.choices))
        print(f"\nRuns, curves, learning-rate searches and picture: {plan.out}")
    return 0 if status == "complete" else 130


def _compete(results: _Results, scenario: Scenario, data: Dataset, competitor: Competitor) -> Choice:
    from .trainer import Trainer  # imports TensorFlow

    plan = results.plan
    rates, epochs = plan.rates_of(scenario, competitor), plan.epochs_of(scenario)
    settings = plan.settings_of(scenario, competitor)
    trainer = Trainer(scenario, data, competitor, batch_size=plan.batch_size, settings=settings)
    label = f"{scenario.name} {competitor.name}"
    with Progress(label, len(rates) * plan.seeds, epochs, quiet=plan.quiet) as progress:
        for rate in rates:
            for seed in range(plan.seeds):
                run = trainer.run(seed, rate, epochs, partial(progress.epoch, f"rate {rate:g}, seed {seed}"))
                results.unfinished.append(run)
                results.write("running")
                progress.run(run)
    return choose(scenario.name, competitor, rates, results.unfinished)
