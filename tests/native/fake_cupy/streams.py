"""Streams, events, captures and graphs of a GPU that is not there.

Nothing that is queued runs until the host waits for it, and then no more than has to: what another stream holds is left
undone unless an event orders it. So work that is read too early, or that waits for nobody, shows as wrong numbers.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

Work = Callable[[], object]

INVALID_VALUE, INVALID_HANDLE, ILLEGAL_STATE, CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED = 1, 400, 401, 900, 901
_ENDLESS = 10_000


class CUDARuntimeError(RuntimeError):
    """As CuPy's."""

    def __init__(self, status: int, what: str) -> None:
        super().__init__(f"{what} (CUDA error {status})")
        self.status = status


@dataclass
class Capture:
    """What a stream has captured so far."""

    nodes: list[Work] = field(default_factory=list)
    spoiled: bool = False
    body: bool = False
    """Of a loop: no copies from the host's pageable memory there."""


class Queue:
    """The work of one stream, in its order."""

    def __init__(self, handle: int, device: int) -> None:
        self.handle, self.device = handle, device
        self.items: deque[Work] = deque()
        self.submitted = self.finished = 0
        self.capture: Capture | None = None

    def submit(self, work: Work) -> None:
        """Queue or capture some work."""
        if self.capture is not None:
            self.capture.nodes.append(work)
        else:
            self.items.append(work)
            self.submitted += 1

    def step(self) -> None:
        """Run the next piece of work."""
        work = self.items.popleft()
        work()
        self.finished += 1

    def run_until(self, count: int) -> None:
        """Run the first ``count`` pieces of work ever queued."""
        while self.finished < count:
            self.step()


class Position:
    """A point in a stream's work: an event."""

    def __init__(self, queue: Queue) -> None:
        if queue.capture is not None:
            raise NotImplementedError("events in a capture")
        self.queue, self.count = queue, queue.submitted

    @property
    def reached(self) -> bool:
        """Whether the work before it has run."""
        return self.queue.finished >= self.count

    def run(self) -> None:
        """Run the work before it."""
        self.queue.run_until(self.count)


def loop(nodes: list[Work], stop: int) -> Work:
    """A WHILE node: repeats its body as long as the float64 at address ``stop`` is 0."""
    flag = ctypes.c_double.from_address(stop)

    def run() -> None:
        turns = 0
        while flag.value == 0.0:
            turns += 1
            if turns > _ENDLESS:
                raise AssertionError("a loop on the device does not end")
            for node in nodes:
                node()

    return run
