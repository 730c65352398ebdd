"""What a run has found so far, and its files.

``kernels.json``
    ``status`` (running, interrupted or complete), the command, the environment, and per size its operations, iteration,
    notes and warnings; microseconds per call; targets. Written anew, in one step, after every part, as the report is:
    a run that is killed leaves what it had measured, as ``running``.
``kernels.txt``
    The report as it was printed.
``kernels.png``
    The picture.
"""

from __future__ import annotations

import datetime
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..environment import environment
from ..files import write_atomic, write_json
from . import iteration, operations
from .sizes import Size
from .targets import Verdict

JSON_NAME, TEXT_NAME, PICTURE_NAME = "kernels.json", "kernels.txt", "kernels.png"


@dataclass
class AtSize:
    """All figures of one size."""

    size: Size
    operations: operations.Measured | None = None
    iteration: iteration.Measured | None = None
    notes: list[str] = field(default_factory=list)
    """What was left out, and why."""

    def warnings(self) -> list[str]:
        """Rows that something disturbed."""
        return [text for found in (self.operations, self.iteration) if found is not None for text in found.warnings()]

    def measured(self) -> bool:
        """Whether anything has a time."""
        return any(
            result.seconds is not None
            for found in (self.operations, self.iteration)
            if found is not None
            for result in found.results
        )

    def as_json(self) -> dict[str, Any]:
        record: dict[str, Any] = {
            "size": self.size.label,
            "n": self.size.n,
            "tensors": self.size.tensors,
            "notes": self.notes,
            "warnings": self.warnings(),
        }
        for name, found in (("operations", self.operations), ("iteration", self.iteration)):
            if found is None:
                continue
            record[name] = {
                "copy": found.copy,
                "copy_seconds": None if found.copy_seconds is None else found.copy_seconds.as_json(),
                "results": [asdict(result) for result in found.results],
            }
        if self.iteration is not None:
            record["iteration"] |= {
                "reference": self.iteration.reference,
                "iterations": self.iteration.iterations,
                "vectors_counted": iteration.VECTORS,
            }
        return record


@dataclass
class Results:
    """Everything, and where it goes."""

    out: Path
    command: dict[str, Any]
    device: str
    on_gpu: bool
    sizes: list[AtSize] = field(default_factory=list)
    overhead: dict[str, dict[str, Any]] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)
    started: str = field(default_factory=lambda: datetime.datetime.now(datetime.timezone.utc).isoformat("T", "seconds"))
    machine: dict[str, Any] = field(default_factory=environment)

    def write(self, status: str) -> None:
        """Write ``kernels.json``."""
        write_json(
            self.out / JSON_NAME,
            {
                "status": status,
                "started": self.started,
                "device": self.device,
                "command": self.command,
                "environment": self.machine,
                "targets": [asdict(verdict) for verdict in self.verdicts],
                "microseconds_per_call": self.overhead,
                "sizes": [at.as_json() for at in self.sizes],
            },
        )

    def write_report(self, text: str) -> None:
        """Write ``kernels.txt``."""
        write_atomic(self.out / TEXT_NAME, text + "\n")
