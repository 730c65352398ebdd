"""What a scenario is: everything a comparison needs to train one model on one data set, and nothing about how."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .data import Dataset


@dataclass(frozen=True)
class Metric:
    """A figure of merit of the predictions on the validation set."""

    name: str
    """With its unit, for tables: ``"accuracy"``, ``"RMSE [years]"``."""
    evaluate: Callable[[Dataset, Any, Any], float]
    """``(data, y_true, y_pred) -> float`` on whole arrays; ``data`` carries the scale of standardised targets."""
    higher_is_better: bool = False


@dataclass(frozen=True)
class Scenario:
    """One problem of the survey. ``(scenario, optimizer, learning rate, seed)`` determines a run."""

    name: str
    title: str
    """One line: task, model, data."""
    source: str
    """Where the data come from, and how they are treated (missing cells, standardisation, split)."""
    load: Callable[[], Dataset]
    """Read the data. Raises :class:`ScenarioDataError` with a remedy where they are absent or damaged."""
    locate: Callable[[], str]
    """Where the data are, or why not and what to do, in one line and without importing TensorFlow; see ``present``."""
    present: Callable[[], bool]
    """Whether :attr:`load` will find its data on this machine without a download."""
    build: Callable[[int, Dataset], Any]
    """``(seed, data) -> keras.Model``, not compiled, every initialiser seeded from ``seed``."""
    loss: Callable[[], Any]
    """A new Keras loss that averages over the samples."""
    metric: Metric
    train_size: int
    val_size: int
    parameters: int
    """Trainable weights of the model."""
    epochs: int
    """Default length of a run."""
    batch_size: int | None
    """Default batch of every optimizer; None trains on the full batch, one step an epoch."""
    newton: Mapping[str, float | int | str]
    """Keyword arguments of :class:`ncg_cuda.tf.NewtonCG`: the settings that newton-cg runs at. All are stated, so that
    a change of the optimizer's own defaults does not change a survey."""
    learning_rates: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Per first-order optimizer, the grid of learning rates it is tuned on, ascending."""


def glorot(seed: int) -> Iterator[Any]:
    """Glorot-uniform initialisers, one per layer, with independent seeds that follow from ``seed``."""
    import keras

    sequence = np.random.SeedSequence(seed)
    while True:
        layer_seed = int(sequence.spawn(1)[0].generate_state(1)[0] >> 1)
        yield keras.initializers.GlorotUniform(seed=layer_seed)


def root_mean_squared_error(unit: str) -> Metric:
    """RMSE of a regression in the target's own unit, undoing the standardisation of the targets."""

    def evaluate(data: Dataset, y_true: Any, y_pred: Any) -> float:
        error = np.asarray(y_pred, np.float64).ravel() - np.asarray(y_true, np.float64).ravel()
        return float(np.sqrt(np.mean(error * error)) * data.target_scale)

    return Metric(f"RMSE [{unit}]", evaluate)


def accuracy() -> Metric:
    """Share of samples whose largest output is that of the true class (an integer)."""

    def evaluate(data: Dataset, y_true: Any, y_pred: Any) -> float:
        del data
        return float(np.mean(np.argmax(np.asarray(y_pred), axis=-1) == np.asarray(y_true).ravel()))

    return Metric("accuracy", evaluate, higher_is_better=True)
