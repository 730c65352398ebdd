"""What a run has found so far, and its files: ``step.json``, ``step.txt``, ``step.png``.

The JSON has ``status`` (running, interrupted or complete), command, environment, targets, and per model its gradient
and its configurations with every repetition's seconds. All but the picture are written anew after every configuration.
"""

from __future__ import annotations

import datetime
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...environment import environment
from ...files import write_atomic, write_json
from ..measure import Rounds, Spread, ratio, spread
from . import timing
from .problems import Model
from .timing import Split

JSON_NAME, TEXT_NAME, PICTURE_NAME = "step.json", "step.txt", "step.png"


@dataclass
class Verdict:
    """One target in one run."""

    target: str
    at: str
    wanted: str
    found: str
    distance: str
    """How much the figure lies above (+) or below (-) the target."""
    met: bool | None
    """None: not measured in this run."""

    @property
    def word(self) -> str:
        return {True: "met", False: "missed", None: "not measured"}[self.met]


@dataclass
class Row:
    """One configuration of a model."""

    curvature: str
    design: str
    failed: str = ""
    step_seconds: Spread | None = None
    gradients: Spread | None = None
    """A step's time over a gradient's, repetition by repetition."""
    split: Split | None = None
    """Seconds of the parts."""
    products: int | None = None
    peak_bytes: int | None = None
    """The process's peak of resident memory above the baseline's."""
    tracing_bytes: int | None = None
    """The same when the graph had been built, but not run yet."""
    trace_seconds: float | None = None
    """Until the graph is built."""
    first_seconds: float | None = None
    """The first call after it, in which TensorFlow optimises the graph and takes one step, of any number of
    products."""
    nodes: int | None = None
    tau: float | None = None
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """Every repetition."""

    @classmethod
    def of(cls, curvature: str, design: str, found: dict[str, Any], baseline: int) -> Row:
        """From a worker's result."""
        rounds = Rounds(found["seconds"])
        step = spread(found["seconds"]["step"])
        return cls(
            curvature,
            design,
            step_seconds=step,
            gradients=ratio(found["seconds"]["step"], found["seconds"]["gradient"]),
            split=timing.split(rounds),
            products=found["products"],
            peak_bytes=found["peak"] - baseline,
            tracing_bytes=found["peak_of_tracing"] - baseline,
            trace_seconds=found["trace_seconds"],
            first_seconds=found["first_seconds"],
            nodes=found["nodes"],
            tau=found["tau"],
            seconds=found["seconds"],
        )

    def share(self, part: str) -> float | None:
        """A part's share of the step, in percent."""
        if self.split is None or self.step_seconds is None:
            return None
        found: Spread = getattr(self.split, part)
        return 100.0 * found.median / self.step_seconds.median

    def in_gradients(self, part: str) -> float | None:
        """A part in gradients: its share of the step's figure."""
        share = self.share(part)
        return None if share is None or self.gradients is None else share * self.gradients.median / 100.0


@dataclass
class OfModel:
    """All figures of one model."""

    model: Model
    batch: int
    image_size: int
    weights: int = 0
    tensors: int = 0
    baseline_bytes: int | None = None
    """Peak of a process that only imports the libraries and builds model and data."""
    gradient_bytes: int | None = None
    """Peak of one that also takes gradient steps, above the baseline."""
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        return self.model.name

    @property
    def gradient_seconds(self) -> Spread | None:
        """Over all configurations."""
        return spread([value for row in self.rows for value in row.seconds.get("gradient", [])])

    def memory_ratio(self, row: Row) -> float | None:
        """A configuration's peak over that of a gradient step, both above the baseline."""
        if row.peak_bytes is None or not self.gradient_bytes:
            return None
        return row.peak_bytes / self.gradient_bytes

    def process_ratio(self, row: Row) -> float | None:
        """The same of whole processes: libraries, model and data included in both."""
        if row.peak_bytes is None or self.gradient_bytes is None or self.baseline_bytes is None:
            return None
        return (row.peak_bytes + self.baseline_bytes) / (self.gradient_bytes + self.baseline_bytes)

    def as_json(self) -> dict[str, Any]:
        record = {name: value for name, value in vars(self).items() if name not in ("model", "rows")}
        rows = [
            asdict(row)
            | {"memory_in_gradients": self.memory_ratio(row), "process_in_gradients": self.process_ratio(row)}
            for row in self.rows
        ]
        return {"model": self.model.name, **record, "rows": rows}


@dataclass
class Results:
    """Everything, and where it goes."""

    out: Path
    command: dict[str, Any]
    models: list[OfModel] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    started: str = field(default_factory=lambda: datetime.datetime.now(datetime.timezone.utc).isoformat("T", "seconds"))
    machine: dict[str, Any] = field(default_factory=environment)

    def write(self, status: str, text: str) -> None:
        """Write JSON and report."""
        write_json(
            self.out / JSON_NAME,
            {
                "status": status,
                "started": self.started,
                "command": self.command,
                "environment": self.machine,
                "targets": [asdict(verdict) | {"verdict": verdict.word} for verdict in self.verdicts],
                "models": [of.as_json() for of in self.models],
            },
        )
        write_atomic(self.out / TEXT_NAME, text + "\n")
