"""The GPUs that are not there: what is current, what is queued where, and a record of what the host did."""

from __future__ import annotations

import ctypes
import random
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .memory import Block, Memory
from .streams import (
    CAPTURE_UNSUPPORTED,
    ILLEGAL_STATE,
    INVALID_HANDLE,
    Capture,
    CUDARuntimeError,
    Queue,
    Work,
    loop,
)

DEVICES = 2


@dataclass(frozen=True)
class Launch:
    """A launch of the CUDA engine."""

    stream: int
    device: int
    """The one that was current."""
    captured: bool


class Gpu:
    """Two GPUs. ``log`` has what happened in the order of the host: launches, captures, waits."""

    def __init__(self) -> None:
        self.run_native: Callable[[int], None] = lambda work: None
        self.stop_offset = 0
        """Bytes from a state block's start to its stop flag."""
        self.reset()

    def reset(self) -> None:
        """As new."""
        self.memory = Memory()
        self.device = 0
        self.queues: dict[tuple[int, int], Queue] = {}
        self._last_handle = 0x1000
        self.current_stream: dict[int, int] = dict.fromkeys(range(DEVICES), 0)
        self.pool: object = None
        self.log: list[tuple[Any, ...]] = []
        self.launches: list[Launch] = []
        self.syncs: list[str] = []
        """Why the host waited for a stream, each time that it did."""
        self.uploads: list[int] = []
        """Bytes of each copy from the host."""
        self.runs = 0
        """Launches that have run; one in a graph counts each time."""
        self.faults: list[str] = []
        self._reusable: list[Block] = []
        self._bodies: dict[int, tuple[Queue, list[Work]]] = {}

    # streams

    def new_stream(self) -> int:
        self._last_handle += 16
        self.queues[self._last_handle, self.device] = Queue(self._last_handle, self.device)
        return self._last_handle

    def queue(self, handle: int, device: int | None = None) -> Queue:
        """The work of a stream; of the default stream (0 or 1) of a device, by default the current one."""
        if handle in (0, 1):
            number = self.device if device is None else device
            return self.queues.setdefault((0, number), Queue(0, number))
        for number in range(DEVICES):
            if (handle, number) in self.queues:
                return self.queues[handle, number]
        raise CUDARuntimeError(INVALID_HANDLE, f"no stream {handle:#x}")

    def current(self) -> Queue:
        return self.queue(self.current_stream[self.device])

    def submit(self, work: Work) -> None:
        """Queue some work of the fake CuPy on the current stream."""
        queue = self.current()
        if queue.device != self.device:
            raise CUDARuntimeError(INVALID_HANDLE, "the current stream belongs to another device")
        queue.submit(work)

    def wait(self, queue: Queue, why: str) -> None:
        """Let the host wait for a stream."""
        if queue.capture is not None:
            queue.capture.spoiled = True
            raise CUDARuntimeError(CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing")
        self.syncs.append(why)
        self.log.append(("sync", why))
        queue.run_until(queue.submitted)

    def run_all(self, seed: int) -> None:
        """Run all that is queued, from stream to stream at random."""
        choice = random.Random(seed)
        while waiting := [queue for queue in self.queues.values() if queue.items]:
            choice.choice(waiting).step()

    def capturing(self) -> list[int]:
        """The streams that are capturing."""
        return [queue.handle for queue in self.queues.values() if queue.capture is not None]

    # memory

    def allocate(self, nbytes: int, owner: Any) -> Block:
        """Memory on the current device that lives as long as ``owner``."""
        block = self._reused(nbytes) or self.memory.allocate(nbytes, self.device)
        weakref.finalize(owner, self._free, block, self.current(), self.pool).atexit = False
        return block

    def _free(self, block: Block, queue: Queue, pool: object) -> None:
        """Memory goes back to its pool: in the order of its stream, others may have it."""
        block.freed = True
        if queue.capture is not None and pool is None:
            self._reusable.append(block)  # the graph will write it, but the common pool does not know that
        if pool is self.pool:  # a pool of its own that is not in use any more gives it to nobody
            queue.submit(block.poison)

    def _reused(self, nbytes: int) -> Block | None:
        """Memory that was freed in a capture: the common pool gives it to whoever comes next."""
        if self.pool is not None or self.capturing():
            return None
        for block in self._reusable:
            if (block.nbytes, block.device) == (nbytes, self.device):
                self._reusable.remove(block)
                block.freed = False
                return block
        return None

    # what the CUDA engine asks for

    def answer(self, what: bytes, stream: int, a: int, b: int, c: int) -> int:
        """0 or a handle; below 0: minus a CUDA error. See queue.h."""
        try:
            return getattr(self, "_" + what.decode())(stream, a, b, c)
        except CUDARuntimeError as error:
            return -error.status
        except Exception as error:
            self.faults.append(repr(error))
            return -999

    def _own(self, stream: int) -> Queue:
        queue = self.queue(stream)
        if queue.device != self.device:
            raise CUDARuntimeError(INVALID_HANDLE, "a stream of another device")
        return queue

    def _launch(self, stream: int, work: int, *_: int) -> int:
        queue = self._own(stream)

        def run() -> None:
            self.runs += 1
            self.run_native(work)

        queue.submit(run)
        self.launches.append(Launch(queue.handle, self.device, queue.capture is not None))
        self.log.append(("launch", queue.handle))
        return 0

    def _copy(self, stream: int, to: int, source: int, nbytes: int) -> int:
        queue = self._own(stream)
        if queue.capture is not None and queue.capture.body:
            queue.capture.spoiled = True
            return -CAPTURE_UNSUPPORTED
        staged = ctypes.string_at(source, nbytes)  # before the call returns, as CUDA does with pageable memory
        captured = queue.capture is not None  # a node of a graph reads the host's memory at each launch

        def run() -> None:
            if captured and ctypes.string_at(source, nbytes) != staged:
                self.faults.append("the host's memory that a graph copies from has become something else")
            ctypes.memmove(to, staged, nbytes)

        queue.submit(run)
        self.log.append(("copy", queue.handle))
        return 0

    def _loop_open(self, stream: int, body: int, state: int, _: int) -> int:
        outer, inner = self._own(stream), self._own(body)
        if outer.capture is None or inner.capture is not None:
            return -ILLEGAL_STATE
        inner.capture = Capture(body=True)
        outer.capture.nodes.append(loop(inner.capture.nodes, state + self.stop_offset))
        self._bodies[len(self._bodies) + 1] = (inner, inner.capture.nodes)
        self.log.append(("loop_open", outer.handle, inner.handle))
        return len(self._bodies)

    def _loop_close(self, body: int, handle: int, *_: int) -> int:
        queue, nodes = self._bodies[handle]
        if queue.handle != body or queue.capture is None or queue.capture.nodes is not nodes:
            return -ILLEGAL_STATE
        spoiled, queue.capture = queue.capture.spoiled, None
        self.log.append(("loop_close", body))
        return -CAPTURE_UNSUPPORTED if spoiled else 0

    def check_access(self, name: str, address: int, nbytes: int) -> None:
        """Raise if a launch is about to touch memory that it must not."""
        fault = self.memory.fault(address, nbytes, self.device)
        if fault is not None:
            self.faults.append(f"{name}: {fault}")
            raise AssertionError(self.faults[-1])

    def problems(self) -> list[str]:
        """All that went wrong behind the host's back."""
        overruns = [f"{b.nbytes} bytes at {b.address:#x} overrun" for b in self.memory.blocks if not b.intact()]
        return self.faults + overruns + [f"stream {handle:#x} is still capturing" for handle in self.capturing()]


GPU = Gpu()


def bytes_as(block: Block, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A block as an array."""
    return block.bytes.view(dtype).reshape(shape)
