"""The records of a comparison, and the files they are kept in.

``summary.json``
    A list of runs (:class:`Run`): the chosen learning rate of every optimizer, every seed.
``grid.json``
    A list of all runs of the learning-rate searches, the chosen ones included, each with ``chosen`` and
    ``at_grid_edge``.
``curves.csv``
    One line per run of ``summary.json`` and epoch, epoch 0 being the untrained model.
``environment.json``
    Command, settings, versions, machine, and ``status``: running, interrupted or complete.
"""

from __future__ import annotations

import csv
import io
import math
import os
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..files import write_atomic, write_json
from .errors import UsageError

CURVE_COLUMNS = ("epoch", "train_loss", "val_loss", "val_metric", "seconds", "gradient_equivalents")
RUN_COLUMNS = ("scenario", "optimizer", "learning_rate", "batch_size", "seed")


@dataclass(frozen=True)
class Point:
    """The state of a run after an epoch. Losses and metric over the full sets, in inference mode."""

    epoch: int
    train_loss: float
    val_loss: float
    val_metric: float
    seconds: float
    """Training time so far, without evaluation and without tracing."""
    gradient_equivalents: float
    """Work so far, in gradients (forward and backward pass) of one batch."""


@dataclass(frozen=True)
class Run:
    """One training run. Numbers that are not finite are None in the files."""

    scenario: str
    optimizer: str
    seed: int
    epochs: int
    """Epochs asked for; a diverged run has made fewer (``epochs_completed``)."""
    learning_rate: float
    batch_size: int
    final_train_loss: float | None
    """Over the full training set, in inference mode; None if it is NaN or infinite."""
    final_val_loss: float | None
    final_val_metric: float | None
    val_metric_name: str
    seconds: float
    """Training time, without evaluation and without tracing: a run's first step counts as the mean of its others."""
    tracing_seconds: float
    """Time of the first step, with the building of the graph: spent once per optimizer and scenario, for all its
    runs."""
    gradient_equivalents: float
    hessian_products: int
    steps: int
    fallback_steps: int
    """Newton-CG steps along the negative gradient, because CG gave no descent direction."""
    skipped_steps: int
    """Steps that Newton-CG did not take because the gradient was not finite."""
    epochs_completed: int
    diverged: bool
    """The training loss is NaN or infinite, or more than ten times that of the untrained model."""
    settings: dict[str, float | int | str]
    """Further settings of the optimizer."""
    data: str
    """Where the data came from."""
    curve: tuple[Point, ...] = field(default=(), repr=False)

    def loss_or_inf(self) -> float:
        """The final training loss, infinite for a diverged run: for medians and choices."""
        return math.inf if self.diverged or self.final_train_loss is None else self.final_train_loss

    def as_json(self) -> dict[str, Any]:
        """The run without its curve."""
        record = asdict(self)
        del record["curve"]
        return record


def finite_or_none(value: float) -> float | None:
    """JSON has no NaN: None says that there is no number."""
    return value if math.isfinite(value) else None


def check_writable(out: Path) -> None:
    """Make the directory and try a file in it; UsageError if that fails. Nothing is left but the directory."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle, probe = tempfile.mkstemp(prefix=".probe.", dir=out)
        os.close(handle)
        os.unlink(probe)
    except OSError as error:
        raise UsageError(
            f"cannot write to --out {out}: {error.strerror}. Give a directory that can be created and written to."
        ) from error


def write_runs(out: Path, runs: list[Run]) -> None:
    """``summary.json`` and ``curves.csv``."""
    write_json(out / "summary.json", [run.as_json() for run in runs])
    write_atomic(out / "curves.csv", _curves(runs))


def write_grid(out: Path, rows: Iterable[dict[str, Any]]) -> None:
    """``grid.json``."""
    write_json(out / "grid.json", list(rows))


def _curves(runs: list[Run]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*RUN_COLUMNS, *CURVE_COLUMNS))
    for run in runs:
        head = [getattr(run, name) for name in RUN_COLUMNS]
        for point in run.curve:
            values = [finite_or_none(getattr(point, name)) for name in CURVE_COLUMNS]
            writer.writerow(head + ["" if value is None else value for value in values])
    return text.getvalue()
