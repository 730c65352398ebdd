"""Progress on standard error: a bar on a terminal, a line per part and phase where output goes to a file."""

from __future__ import annotations

import sys
import time
from typing import Any

from ..compare.progress import terminal


class Progress:
    """Says what is measured. Use as a context manager around one part (a size's operations, or its iteration)."""

    def __init__(self, label: str, *, quiet: bool) -> None:
        self._label, self._quiet = label, quiet
        self._bar: Any = None
        self._start = time.monotonic()

    def __enter__(self) -> Progress:
        if self._quiet:
            return self
        if terminal():
            from tqdm import tqdm

            self._bar = tqdm(desc=self._label, unit=" steps", file=sys.stderr, dynamic_ncols=True, leave=False)
        else:
            print(f"{self._label} ...", file=sys.stderr, flush=True)
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()
        if not self._quiet:
            print(f"{self._label}: {time.monotonic() - self._start:.0f} s", file=sys.stderr, flush=True)

    def phase(self, text: str) -> None:
        """Something begins that may take long and cannot report how far it is, such as a compilation."""
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=True)  # nothing refreshes the bar until it is over
        elif not self._quiet:
            print(f"{self._label}: {text} ...", file=sys.stderr, flush=True)

    def step(self, name: str) -> None:
        """Something was measured or prepared."""
        if self._bar is not None:
            self._bar.set_postfix_str(name, refresh=False)
            self._bar.update()
