"""What competes: Newton-CG at a scenario's settings, Adam and SGD at the best of a scenario's learning-rate grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import unknown

HESSIAN_PRODUCT_COST = 2.0
"""Gradients that one Hessian-vector product costs in theory: a second backpropagation through the first (Pearlmutter,
Fast Exact Multiplication by the Hessian, 1994). Linearised once per step, it measures below that, so this is on the
safe side for Newton-CG."""


@dataclass(frozen=True)
class Competitor:
    """An optimizer in the comparison."""

    name: str
    label: str
    """For tables and plots."""
    colour: str
    """The same in every plot; told apart in greyscale and by colour-blind readers."""
    tuned: bool
    """Whether its learning rate is searched on the scenario's grid (else it is the scenario's Newton setting)."""
    make: Callable[[float, Mapping[str, float | int | str]], Any]
    """``(learning rate, further settings) -> keras optimizer``."""


def _newton(learning_rate: float, settings: Mapping[str, float | int | str]) -> Any:
    from ..tf import NewtonCG

    arguments: dict[str, Any] = {**settings, "learning_rate": learning_rate}
    return NewtonCG(**arguments)


def _adam(learning_rate: float, settings: Mapping[str, float | int | str]) -> Any:
    import keras

    del settings
    return keras.optimizers.Adam(learning_rate)


def _sgd(learning_rate: float, settings: Mapping[str, float | int | str]) -> Any:
    import keras

    del settings
    return keras.optimizers.SGD(learning_rate, momentum=0.9)


OPTIMIZERS: dict[str, Competitor] = {
    competitor.name: competitor
    for competitor in (
        Competitor("newton-cg", "Newton-CG", "#d1495b", False, _newton),
        Competitor("adam", "Adam", "#00798c", True, _adam),
        Competitor("sgd", "SGD, momentum 0.9", "#edae49", True, _sgd),
    )
}


def parse_optimizers(text: str) -> list[Competitor]:
    """``"newton-cg,adam"`` as competitors, without duplicates; UsageError for a name that is none."""
    chosen = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in chosen or [text]:
        if name not in OPTIMIZERS:
            raise unknown("optimizer", name, OPTIMIZERS)
    return [OPTIMIZERS[name] for name in chosen]
