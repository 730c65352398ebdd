"""Progress on standard error: a bar on a terminal, a line per run where output goes to a file."""

from __future__ import annotations

import os
import sys
from typing import Any

from .records import Point, Run
from .table import spread


def terminal() -> bool:
    """Whether standard error is a terminal that can show a bar: in containers, some claim to have no columns."""
    try:
        size = os.get_terminal_size(sys.stderr.fileno())
    except (OSError, ValueError):  # no terminal, or no file at all
        return False
    return size.columns >= 40 and size.lines >= 2


class Progress:
    """Counts the epochs of all runs of a competitor on a scenario. Use as a context manager."""

    def __init__(self, label: str, runs: int, epochs: int, *, quiet: bool) -> None:
        self._label, self._runs, self._quiet = label, runs, quiet
        self._done = 0
        self._bar: Any = None
        if not quiet and terminal():
            from tqdm import tqdm

            self._bar = tqdm(total=runs * epochs, desc=label, unit="epoch", file=sys.stderr, dynamic_ncols=True)
        self._epochs = epochs

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def epoch(self, detail: str, point: Point) -> None:
        """An epoch has ended."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"{detail}, loss {point.train_loss:.4g}", refresh=False)
            self._bar.update()

    def run(self, run: Run) -> None:
        """A run has ended, maybe early."""
        self._done += 1
        if self._bar is not None:
            self._bar.update(run.epochs - run.epochs_completed)
        elif not self._quiet:
            print(
                f"{self._label} {self._done}/{self._runs}: rate {run.learning_rate:g}, seed {run.seed}, "
                f"loss {spread([run.final_train_loss])}, {run.seconds:.1f} s",
                file=sys.stderr,
                flush=True,
            )
