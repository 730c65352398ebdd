"""The survey's scenarios: data, model, loss, metric and defaults, one file each.

A module of this package that defines ``SCENARIO`` is a scenario, named like its file with dashes for underscores
(``reg_bos.py`` is ``reg-bos``). To add one, add one file: nothing here changes.
"""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module

from .data import DataFile, Dataset, ScenarioDataError
from .scenario import Metric, Scenario
from .suggest import unknown_name

__all__ = ["DataFile", "Dataset", "Metric", "Scenario", "ScenarioDataError", "get", "names"]

_HELPERS = {"data", "scenario", "suggest"}


@cache
def _registry() -> dict[str, Scenario]:
    found: dict[str, Scenario] = {}
    for info in pkgutil.iter_modules(__path__):
        if info.name in _HELPERS:
            continue
        scenario = getattr(import_module(f"{__name__}.{info.name}"), "SCENARIO", None)
        expected = info.name.replace("_", "-")
        if not isinstance(scenario, Scenario) or scenario.name != expected:
            raise TypeError(
                f"{info.name}.py must define SCENARIO, a Scenario named {expected!r}; it defines {scenario!r}. "
                "Fix its name, or list the module as a helper."
            )
        found[scenario.name] = scenario
    return dict(sorted(found.items()))


def names() -> list[str]:
    """The names of all scenarios, sorted."""
    return list(_registry())


def get(name: str) -> Scenario:
    """The scenario called ``name``; KeyError with the list, and the closest name, where there is none."""
    registry = _registry()
    if name not in registry:
        raise KeyError(unknown_name("scenario", name, registry))
    return registry[name]
