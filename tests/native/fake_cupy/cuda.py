"""``cupy.cuda`` of the fake CuPy: devices, streams, events, graphs and memory pools."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from .gpu import DEVICES, GPU
from .streams import (
    CAPTURE_INVALIDATED,
    ILLEGAL_STATE,
    INVALID_VALUE,
    Capture,
    CUDARuntimeError,
    Position,
    Queue,
    Work,
)

runtime = SimpleNamespace(CUDARuntimeError=CUDARuntimeError, getDeviceCount=lambda: DEVICES)


def is_available() -> bool:
    """There are GPUs, after a fashion."""
    return True


class Device:
    """A device; in a ``with`` block, the current one."""

    def __init__(self, device: int | None = None) -> None:
        self.id = GPU.device if device is None else int(device)
        if not 0 <= self.id < DEVICES:
            raise CUDARuntimeError(101, "invalid device ordinal")

    def __enter__(self) -> Device:
        self._before, GPU.device = GPU.device, self.id
        return self

    def __exit__(self, *_: object) -> None:
        GPU.device = self._before


class _Stream:
    ptr: int

    @property
    def queue(self) -> Queue:
        """Its work."""
        return GPU.queue(self.ptr)

    def __enter__(self) -> _Stream:
        device = GPU.device if self.ptr == 0 else self.queue.device
        self._before = (device, GPU.current_stream[device])
        GPU.current_stream[device] = self.ptr
        return self

    def __exit__(self, *_: object) -> None:
        device, handle = self._before
        GPU.current_stream[device] = handle

    def synchronize(self) -> None:
        """Wait on the host."""
        GPU.wait(self.queue, "stream")

    def record(self, event: Event | None = None) -> Event:
        """An event behind all that the stream holds."""
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        """Let later work wait for an event."""
        assert event.position is not None
        self.queue.submit(event.position.run)

    def is_capturing(self) -> bool:
        """Whether its work goes into a graph."""
        return self.queue.capture is not None

    def begin_capture(self) -> None:
        """Take what comes into a graph."""
        if self.ptr == 0 or self.is_capturing():
            raise CUDARuntimeError(ILLEGAL_STATE, "this stream cannot begin a capture")
        self.queue.capture = Capture()
        GPU.log.append(("begin_capture", self.ptr))

    def end_capture(self) -> Graph:
        """The graph of what came."""
        queue, capture = self.queue, self.queue.capture
        if capture is None:
            raise CUDARuntimeError(ILLEGAL_STATE, "the stream is not capturing")
        queue.capture = None
        GPU.log.append(("end_capture", self.ptr))
        if capture.spoiled:
            raise CUDARuntimeError(CAPTURE_INVALIDATED, "operation failed due to a previous error during capture")
        return Graph(capture.nodes)


class Stream(_Stream):
    """A new stream of the current device."""

    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        self.ptr = 0 if null else GPU.new_stream()


class ExternalStream(_Stream):
    """A stream by its handle."""

    def __init__(self, ptr: int) -> None:
        self.ptr = 0 if ptr == 1 else ptr


class Event:
    """An event."""

    def __init__(self, disable_timing: bool = False) -> None:
        self.position: Position | None = None

    def record(self, stream: _Stream | None = None) -> None:
        """Stand behind all that the stream holds now."""
        self.position = Position(GPU.current() if stream is None else stream.queue)

    @property
    def done(self) -> bool:
        """Whether it is reached."""
        return self.position is None or self.position.reached

    def synchronize(self) -> None:
        """Wait on the host."""
        if self.position is not None:
            GPU.syncs.append("event")
            GPU.log.append(("sync", "event"))
            self.position.run()


class Graph:
    """Captured work."""

    def __init__(self, nodes: list[Work]) -> None:
        self.nodes = nodes

    def launch(self, stream: _Stream | None = None) -> None:
        """Queue the work."""
        queue = GPU.current() if stream is None else stream.queue
        GPU.log.append(("graph", queue.handle))

        def run() -> None:
            for node in self.nodes:
                node()

        queue.submit(run)


def get_current_stream() -> _Stream:
    """The current stream of the current device."""
    return ExternalStream(GPU.current_stream[GPU.device])


class MemoryPool:
    """A pool: memory that comes from it goes back to it."""

    def malloc(self, nbytes: int) -> Any:
        """Only a name for :func:`using_allocator` here."""
        raise CUDARuntimeError(INVALID_VALUE, "the fake pool gives out no memory by itself")


@contextmanager
def using_allocator(allocator: Callable[[int], Any]) -> Iterator[None]:
    """Take memory from a pool."""
    before, GPU.pool = GPU.pool, getattr(allocator, "__self__", allocator)
    try:
        yield
    finally:
        GPU.pool = before
