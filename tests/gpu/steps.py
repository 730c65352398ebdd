"""Steps of a check: each a program with a time of its own, whose end is recorded whatever it is."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PASSED, FAILED, TIMED_OUT, SKIPPED, INTERRUPTED = "passed", "failed", "timed out", "skipped", "interrupted"


@dataclass
class Step:
    """What became of a step."""

    name: str
    outcome: str
    seconds: float = 0.0
    detail: str = ""
    """Why it did not pass, or what it counted."""
    figures: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "seconds": round(self.seconds, 1)}


class Clock:
    """What is left of the time that a whole check may take."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()


def run(
    name: str, command: Sequence[str], *, limit: float, clock: Clock, log: Path, env: dict[str, str], cwd: Path
) -> Step:
    """Run a program to its end, or to the end of its time: ``limit`` seconds, and no more than the clock has left.

    Its output goes to ``log``; the last lines of it become the detail of a step that failed.
    """
    limit = min(limit, clock.left())
    if limit <= 0:
        return Step(name, TIMED_OUT, detail="no time was left for it")
    begun = time.monotonic()
    with log.open("wb") as output:
        # a session of its own, so that what the program starts ends with it
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=env, cwd=cwd, start_new_session=True
        )
        try:
            code = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            _end(process)
            return Step(name, TIMED_OUT, time.monotonic() - begun, f"did not end within {limit:.0f} s; see {log}")
        except BaseException:
            _end(process)
            raise
    seconds = time.monotonic() - begun
    if code == 0:
        return Step(name, PASSED, seconds)
    return Step(name, FAILED, seconds, f"exit code {code}: {tail(log)}; see {log}")


def _end(process: subprocess.Popen[bytes]) -> None:
    for how, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=patience)
            return


def tail(log: Path, lines: int = 4) -> str:
    """The last lines of a log that say something."""
    text = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return " | ".join([line.strip() for line in text if line.strip()][-lines:]) or "no output"
