"""``ncg-cuda bench step``: every configuration in a process of its own, with files that are complete at any moment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...compare.errors import UsageError, unknown
from ...compare.records import check_writable
from ..progress import Progress
from . import problems, targets
from .plot import plot
from .records import PICTURE_NAME, TEXT_NAME, OfModel, Results, Row
from .report import report

CURVATURES = ("hessian", "gauss-newton")
DESIGNS = ("fused", "plain", "reference")


@dataclass(frozen=True)
class Plan:
    """What is asked for; texts as on the command line."""

    out: Path
    models: str = problems.DEFAULT
    batch: int | None = None
    image_size: int = 64
    iterations: int = 20
    curvature: str = ",".join(CURVATURES)
    designs: str = ",".join(DESIGNS)
    repeats: int = 7
    part_seconds: float = 120.0
    quick: bool = False
    quiet: bool = False

    def as_json(self) -> dict[str, Any]:
        """What the figures depend on."""
        return {name: value for name, value in vars(self).items() if name not in ("out", "quiet")}


def run(plan: Plan) -> int:
    """Run the plan, print its report, write its files.

    Returns 0; 1 where a configuration failed; 130 after Ctrl-C, with what was finished by then written and printed.

    Raises:
        UsageError: before any measurement, if the plan cannot be carried out.
    """
    import importlib.util

    models = problems.parse(plan.models)
    pairs = _configurations(_names("curvature", plan.curvature, CURVATURES), _names("design", plan.designs, DESIGNS))
    if not pairs:
        raise UsageError("--designs reference has --curvature hessian only: nothing is left to measure")
    if plan.image_size < 32 and any(model.name in ("resnet50", "mobilenetv2") for model in models):
        raise UsageError(f"--image-size {plan.image_size}: these networks need at least 32")
    if importlib.util.find_spec("tensorflow") is None:
        raise UsageError("TensorFlow is not installed: pip install 'ncg_cuda[tensorflow-cpu]'")
    check_writable(plan.out)
    results = Results(plan.out, plan.as_json())
    for name in (PICTURE_NAME, TEXT_NAME):  # of an earlier run
        (plan.out / name).unlink(missing_ok=True)
    status = "interrupted"
    try:
        for model in models:
            of = OfModel(model, plan.batch or model.batch, plan.image_size)
            results.models.append(of)
            _measure(plan, of, pairs, results)
        status = "complete"
    except KeyboardInterrupt:
        print(f"\ninterrupted: what is finished is in {plan.out}", file=sys.stderr)
    text = _write(results, plan, status)
    plot(results, plan.out / PICTURE_NAME)
    print(text)
    print(f"\nRecords, report and picture: {plan.out}")
    if status != "complete":
        return 130
    return 1 if any(of.notes or any(row.failed for row in of.rows) for of in results.models) else 0


def _names(kind: str, text: str, allowed: tuple[str, ...]) -> list[str]:
    chosen = list(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in chosen:
        if name not in allowed:
            raise unknown(kind, name, list(allowed))
    return chosen


def _configurations(curvatures: list[str], designs: list[str]) -> list[tuple[str, str]]:
    """Curvature and design; the published design knows the Hessian only."""
    return [(c, d) for c in curvatures for d in designs if d != "reference" or c == "hessian"]


def _measure(plan: Plan, of: OfModel, pairs: list[tuple[str, str]], results: Results) -> None:
    job = {
        "model": of.model.name,
        "title": of.model.title,
        "batch": of.batch,
        "image_size": of.image_size,
        "iterations": plan.iterations,
        "repeats": plan.repeats,
        "seconds": plan.part_seconds,
    }
    try:
        baseline = _work(plan, job | {"job": "baseline"}, f"{of.label}: baseline")
        of.weights, of.tensors, of.baseline_bytes = baseline["weights"], baseline["tensors"], baseline["peak"]
        found = _work(plan, job | {"job": "gradient"}, f"{of.label}: gradient")
        of.gradient_bytes = found["peak"] - baseline["peak"]
    except WorkerError as error:
        of.notes.append(f"not measured: {error}")
        return
    for curvature, design in pairs:
        label = f"{of.label}: {curvature}, {design}"
        try:
            found = _work(plan, job | {"job": "design", "curvature": curvature, "design": design}, label)
            of.rows.append(Row.of(curvature, design, found, baseline["peak"]))
        except WorkerError as error:
            of.rows.append(Row(curvature, design, failed=str(error)))
        _write(results, plan, "running")


def _write(results: Results, plan: Plan, status: str) -> str:
    results.verdicts = targets.judge(results.models, plan.iterations)
    text = report(results)
    results.write(status, text)
    return text


class WorkerError(Exception):
    """A worker failed; says why."""


def _work(plan: Plan, job: dict[str, Any], label: str) -> dict[str, Any]:
    """Run a job in a process of its own, with its progress shown; returns its result."""
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "ncg_cuda.benchmarks.step.worker", json.dumps(job)]
    with (
        Progress(label, quiet=plan.quiet) as progress,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", env=environment
        ) as process,
    ):
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            said = _Tail(process.stderr)
            message: dict[str, Any] = {}
            for line in process.stdout:
                message = _message(line) or message
                if "phase" in message:
                    progress.phase(message["phase"])
                elif "step" in message:
                    progress.step(message["step"])
            code = process.wait()
        except BaseException:
            process.kill()
            raise
    if "result" in message:
        found: dict[str, Any] = message["result"]
        return found
    if "failed" in message:
        raise WorkerError(message["failed"])
    how = f"was ended by signal {-code} (9: out of memory, most often)" if code < 0 else f"ended with code {code}"
    raise WorkerError(f"its process {how}{said.text()}")


def _message(line: str) -> dict[str, Any] | None:
    """What a worker said; None for a line that a library printed."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


class _Tail:
    """Reads a stream beside the other one, so that its pipe never fills, and keeps the last line."""

    def __init__(self, stream: Any) -> None:
        import threading

        self._last = ""
        self._stream = stream
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self._stream:
            self._last = line.strip() or self._last

    def text(self) -> str:
        self._thread.join(5.0)
        return f"; last it said: {self._last[:200]}" if self._last else ""
