"""Progress of long work: on an operator, one line on standard error, or a callback; of tracing, a word in the log."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger("ncg_cuda")

PATIENCE = 3.0
"""Seconds of silence."""

ProgressOption = bool | Callable[[int, int], None] | None
"""None: a bar on standard error where that is a terminal and the work takes more than a second. True: in any case.
False: nothing. A callable: it gets (products done, products in all) after each."""


class Progress:
    """Counts the products of one piece of work. Use as a context manager."""

    def __init__(self, label: str, total: int, option: ProgressOption) -> None:
        if not (option is None or isinstance(option, bool) or callable(option)):
            raise ValueError(f"progress is {option!r}; allowed: None, True, False or a callable of (done, total)")
        self._label, self._total, self._option = label, total, option
        self._done = 0
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if self._option is None or self._option is True:
            self._bar = _bar(self._label, self._total, forced=self._option is True)
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, products: int = 1) -> None:
        """Products are done; more than were announced count as announced."""
        products = min(products, self._total - self._done)
        self._done += products
        if self._bar is not None:
            self._bar.update(products)
        elif callable(self._option):
            self._option(self._done, self._total)

    def finish(self) -> None:
        """Less was needed than announced."""
        if self._done < self._total:
            self.advance(self._total - self._done)


def _bar(label: str, total: int, *, forced: bool) -> Any:
    try:
        from tqdm import tqdm
    except ModuleNotFoundError as error:
        if not forced:
            return None
        raise ModuleNotFoundError(
            "progress=True needs tqdm: pip install tqdm; or give a callable", name="tqdm"
        ) from error
    # disable=None: no bar where standard error is no terminal.
    return tqdm(
        total=total,
        desc=label,
        unit="product",
        file=sys.stderr,
        leave=False,
        delay=0 if forced else 1,
        disable=False if forced else None,
    )


@contextmanager
def told_if_slow(what: str, *values: Any) -> Iterator[None]:
    """Log ``what % values`` as a warning, which is on standard error by default, if the block takes longer than
    :data:`PATIENCE`.
    """
    timer = threading.Timer(PATIENCE, logger.warning, (what, *values))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
