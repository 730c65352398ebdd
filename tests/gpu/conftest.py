"""The tests of the GPU: CuPy as a fixture, and streams that stand still until a test says so."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX would take most of a GPU that others use, too

LONGEST_HOLD = 20.0
"""Seconds after which a held stream goes on by itself: a test that waits for it by mistake then fails, and ends."""


@pytest.fixture
def cp() -> Any:
    """CuPy."""
    import cupy

    return cupy


@pytest.fixture
def hold() -> Iterator[Callable[[Any], AbstractContextManager[None]]]:
    """A context manager for a CuPy stream: nothing that is queued on it within the block runs before the block ends.

    A wrong order of two streams then is a wrong result, whatever the timing. What the block calls must have run before:
    CUDA loads a kernel when it is first launched, and may wait for the GPU then.
    """
    expired: list[bool] = []

    @contextmanager
    def held(stream: Any) -> Iterator[None]:
        released = threading.Event()
        stream.launch_host_func(lambda _: expired.append(not released.wait(LONGEST_HOLD)), None)
        try:
            yield
        finally:
            released.set()

    yield held
    assert not any(expired), f"the host waited for a stream that was held for {LONGEST_HOLD:g} s"
