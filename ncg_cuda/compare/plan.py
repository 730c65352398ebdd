"""What a comparison is asked to do, and the check that it can be done, made before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .. import scenarios
from ..scenarios import Dataset, Scenario
from .errors import UsageError, unknown
from .optimizers import HESSIAN_PRODUCT_COST, Competitor
from .records import check_writable
from .search import RULE

_NEEDED = ("tensorflow", "keras", "matplotlib", "tqdm")


@dataclass(frozen=True)
class Plan:
    """The arguments of ``ncg-cuda compare``."""

    scenarios: Sequence[str]
    optimizers: Sequence[Competitor]
    out: Path
    seeds: int = 3
    """Number of seeds: 0, 1, …"""
    epochs: int | None = None
    """None: each scenario's own."""
    batch_size: int | None = None
    """None: each scenario's own."""
    learning_rates: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Per first-order optimizer, the grid to search instead of the scenarios' own."""
    newton: Mapping[str, float | int | str] = field(default_factory=dict)
    """Newton-CG settings that override the scenarios' own."""
    quiet: bool = False

    def epochs_of(self, scenario: Scenario) -> int:
        """The length of the runs on a scenario."""
        return self.epochs or scenario.epochs

    def settings_of(self, scenario: Scenario, competitor: Competitor) -> dict[str, float | int | str]:
        """The optimizer's settings besides the learning rate of its grid; none for a first-order optimizer."""
        return {} if competitor.tuned else {**scenario.newton, **self.newton}

    def rates_of(self, scenario: Scenario, competitor: Competitor) -> tuple[float, ...]:
        """The learning rates to run, ascending: a grid, or Newton-CG's one setting."""
        if not competitor.tuned:
            return (float(self.settings_of(scenario, competitor)["learning_rate"]),)
        return tuple(sorted(set(self.learning_rates.get(competitor.name, scenario.learning_rates[competitor.name]))))

    def as_json(self) -> dict[str, Any]:
        """The plan with everything filled in, for ``environment.json``."""
        chosen = [scenarios.get(name) for name in self.scenarios]
        return {
            "scenarios": list(self.scenarios),
            "optimizers": [competitor.name for competitor in self.optimizers],
            "seeds": list(range(self.seeds)),
            "epochs": {scenario.name: self.epochs_of(scenario) for scenario in chosen},
            "batch_size": {scenario.name: self.batch_size or scenario.batch_size or "full" for scenario in chosen},
            "learning_rates": {
                scenario.name: {c.name: list(self.rates_of(scenario, c)) for c in self.optimizers}
                for scenario in chosen
            },
            "settings": {
                scenario.name: {c.name: self.settings_of(scenario, c) for c in self.optimizers} for scenario in chosen
            },
            "learning_rate_rule": RULE,
            "hessian_product_cost": HESSIAN_PRODUCT_COST,
            "seconds": "training alone, without evaluation and tracing; a first step counts as the mean of the others",
        }


def check(plan: Plan) -> dict[str, tuple[Scenario, Dataset]]:
    """The scenarios of the plan with their data; UsageError, with a remedy, if the plan cannot be carried out."""
    known = scenarios.names()
    for name in plan.scenarios:
        if name not in known:
            raise unknown("scenario", name, known)
    for package in _NEEDED:
        if find_spec(package) is None:
            raise UsageError(
                f"compare needs the package {package}, which is not installed: "
                "pip install '.[tensorflow-cpu,scenarios]' in the source directory of ncg_cuda"
            )
    check_writable(plan.out)
    _check_backend()
    chosen = [scenarios.get(name) for name in plan.scenarios]
    for scenario in chosen:
        for competitor in plan.optimizers:
            try:
                competitor.make(plan.rates_of(scenario, competitor)[0], plan.settings_of(scenario, competitor))
            except ValueError as error:
                raise UsageError(f"{competitor.name} refuses its settings on {scenario.name}: {error}") from error
    try:
        return {scenario.name: (scenario, scenario.load()) for scenario in chosen}
    except scenarios.ScenarioDataError as error:
        raise UsageError(str(error)) from error


def _check_backend() -> None:
    import keras

    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise UsageError(
            f"Keras runs on its {backend!r} backend, but compare needs TensorFlow: set KERAS_BACKEND=tensorflow"
        )
