"""``ncg-cuda compare``: every competitor on every scenario, with files that are complete at any moment."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import scenarios
from ..environment import environment
from ..files import write_json
from .errors import UsageError, unknown
from .optimizers import HESSIAN_PRODUCT_COST, Competitor
from .plot import plot
from .progress import Progress
from .records import Run, check_writable, write_grid, write_runs
from .search import RULE, Choice, choose, grid_rows
from .table import comparison

if TYPE_CHECKING:
    from ..scenarios import Dataset, Scenario


@dataclass(frozen=True)
class Plan:
    """What ``compare`` is asked to do."""

    scenarios: Sequence[str]
    optimizers: Sequence[Competitor]
    out: Path
    seeds: int = 3
    epochs: int | None = None
    """None: each scenario's own."""
    batch_size: int | None = None
    """None: each scenario's own."""
    rates: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Learning rates to run instead of the scenarios' own, per optimizer."""
    newton: Mapping[str, float | int] = field(default_factory=dict)
    """Newton-CG settings that override the scenarios' own."""
    quiet: bool = False

    def seed_list(self) -> range:
        """The seeds of the runs: 0, 1, …"""
        return range(self.seeds)


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
        runs = [run for choice in self.choices for run in choice.runs]
        write_runs(out, runs)
        write_grid(out, grid_rows(self.choices, self.unfinished))
        write_json(out / "environment.json", {"status": status, "command": self._command(), **self._environment})

    def _command(self) -> dict[str, Any]:
        plan = self.plan
        return {
            "scenarios": list(plan.scenarios),
            "optimizers": [competitor.name for competitor in plan.optimizers],
            "seeds": list(plan.seed_list()),
            "epochs": {name: plan.epochs or scenarios.get(name).epochs for name in plan.scenarios},
            "batch_size": plan.batch_size,
            "learning_rates": {
                name: {c.name: list(c.rates(scenarios.get(name), plan.rates.get(c.name))) for c in plan.optimizers}
                for name in plan.scenarios
            },
            "newton": {name: {**scenarios.get(name).newton, **plan.newton} for name in plan.scenarios},
            "learning_rate_rule": RULE,
            "hessian_product_cost": HESSIAN_PRODUCT_COST,
            "seconds": "training alone: without evaluation, without tracing (tracing_seconds, once per optimizer)",
        }


def _check(plan: Plan) -> dict[str, tuple[Scenario, Dataset]]:
    """Everything that can be wrong with the plan is found here, before anything is trained."""
    known = scenarios.names()
    for name in plan.scenarios:
        if name not in known:
            raise unknown("scenario", name, known)
    for package in ("tensorflow", "keras", "matplotlib", "tqdm"):
        if find_spec(package) is None:
            raise UsageError(
                f"compare needs the package {package}, which is not installed: pip install 'ncg_cuda[tensorflow-cpu,scenarios]'"
            )
    check_writable(plan.out)
    _check_backend()
    try:
        return {name: (scenarios.get(name), scenarios.get(name).load()) for name in plan.scenarios}
    except scenarios.ScenarioDataError as error:
        raise UsageError(str(error)) from error


def _check_backend() -> None:
    import keras

    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise UsageError(
            f"Keras runs on its {backend!r} backend; compare needs TensorFlow: set KERAS_BACKEND=tensorflow"
        )


def compare(plan: Plan) -> int:
    """Run the plan, print its table, write its files. 0, or 130 after Ctrl-C: what was finished is then written all the same.

    Raises UsageError, before any training, if the plan cannot be carried out.
    """
    loaded = _check(plan)
    results = _Results(plan)
    results.write("running")
    status = "interrupted"
    try:
        for name, (scenario, data) in loaded.items():
            for competitor in plan.optimizers:
                results.choices.append(_compete(results, scenario, data, competitor))
                results.unfinished = []
                results.write("running")
            del name
        status = "complete"
    except KeyboardInterrupt:
        print(f"\ninterrupted: what is finished is in {plan.out}", file=sys.stderr)
    finally:
        results.write(status)
        plot(results.choices, plan.out / "compare.png")
    if results.choices:
        print(comparison(results.choices))
        print(f"\nRuns, curves, grid searches and picture: {plan.out}")
    return 0 if status == "complete" else 130


def _compete(results: _Results, scenario: Scenario, data: Dataset, competitor: Competitor) -> Choice:
    from .trainer import Trainer

    plan = results.plan
    rates = competitor.rates(scenario, plan.rates.get(competitor.name))
    epochs = plan.epochs or scenario.epochs
    settings = {} if competitor.tuned else {**scenario.newton, **plan.newton}
    if not competitor.tuned and "learning_rate" in plan.newton:
        rates = (float(plan.newton["learning_rate"]),)
    try:
        trainer = Trainer(scenario, data, competitor, batch_size=plan.batch_size, settings=settings)
    except (TypeError, ValueError) as error:
        if plan.newton and not competitor.tuned:
            raise UsageError(f"{competitor.label} refuses its settings {settings}: {error}") from error
        raise
    label = f"{scenario.name} {competitor.name}"
    with Progress(label, len(rates) * plan.seeds, epochs, quiet=plan.quiet) as progress:
        for rate in rates:
            for seed in plan.seed_list():
                detail = f"rate {rate:g}, seed {seed},"
                run = trainer.run(seed, rate, epochs, lambda point, detail=detail: progress.epoch(point, detail))  # type: ignore[misc]
                results.unfinished.append(run)
                results.write("running")
                progress.run(run)
    return choose(scenario.name, competitor, rates, results.unfinished)
