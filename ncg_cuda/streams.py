"""On which CUDA stream an operation is launched, and how it is ordered with the work of other array libraries."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from .arrays import Operand, library_of
from .dlpack import CPU, consumer
from .immutable import Immutable
from .libraries import NUMPY, Owner, label
from .table import Table

_MOST_IN_FLIGHT = 8


class Launch:
    """The current stream of one library on one device: where an operation is queued.

    Libraries with a current stream of their own (CuPy, torch) are ordered both ways: the launch stream waits for their
    pending work, and their stream waits for the operation. Arrays of libraries without one (JAX and others) are
    exported to the launch stream when they are described, and kept until the operation has finished with them.
    """

    def __init__(self, library: Owner, device: str) -> None:
        self.library, self.device = library, device
        self.stream = library.stream(device)

    def guard(self) -> AbstractContextManager[Any]:
        """Make the device the current one."""
        return self.library.guard(self.device)

    def join(self, operands: Iterable[Operand]) -> None:
        """Let the stream wait for the pending work of the other libraries."""
        for library, o in {o.library: o for o in operands}.items():
            if library is not self.library:
                library.handshake(o.array, self.stream)

    def part(self, operands: Sequence[Operand]) -> None:
        """Let the other libraries' later work wait for the stream; keep alive what they could not make wait."""
        for library in {o.library for o in operands}:
            if library is self.library or not isinstance(library, Owner):
                continue
            if consumer(library.stream(self.device)) != consumer(self.stream):
                library.follow(self.stream, self.device)
        foreign = [o for o in operands if isinstance(o.library, Immutable)]
        if foreign:
            _keep(foreign, self.library.event(self.stream, self.device))


_in_flight: deque[tuple[Any, list[Operand]]] = deque()
_lock = threading.Lock()


def _keep(operands: list[Operand], event: Any) -> None:
    """Keep operands until the event: their library would give the memory to others meanwhile."""
    drop_finished()
    with _lock:
        _in_flight.append((event, operands))
        oldest = _in_flight.popleft() if len(_in_flight) > _MOST_IN_FLIGHT else None
    if oldest is not None:
        oldest[0].wait()


def drop_finished() -> None:
    """Let go of operands whose operations have finished."""
    with _lock:
        while _in_flight and _in_flight[0][0].done():
            _in_flight.popleft()


def launch_for(operands: Sequence[tuple[Any, str]], written: int) -> Launch | None:
    """Where an operation on these arrays is launched; None for the CPU.

    The written arrays decide, the last one first; then the first array of a library with a current stream; then the
    current stream of the library that makes vectors for the others.
    """
    count = len(operands)
    without_stream = None
    for i in [*range(count - 1, count - 1 - written, -1), *range(count - written)]:
        array, name = operands[i]
        if isinstance(array, Operand):
            library, device = array.library, array.device
        elif isinstance(array, (list, tuple, Table)):
            continue
        else:
            library = library_of(array, name)
            if library is NUMPY:
                return None
            try:
                device = library.device(array)
            except Exception as error:
                raise TypeError(f"{name}: {label(array)} that cannot be read: {error}") from error
        if device == CPU:
            return None
        if isinstance(library, Owner):
            return Launch(library, device)
        without_stream = without_stream or (library, device, name)
    if without_stream is None:
        return None
    immutable, device, name = without_stream
    assert isinstance(immutable, Immutable)
    return Launch(immutable.memory(device, name), device)
