"""A rough forecast of a run's time, and what it says beforehand."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ..catalog import Operation
from . import iteration, memory, operations, yardsticks
from .devices import Device
from .measure import LEAST
from .peers import Peer
from .peers.compile_times import COMPILATIONS, QUICK_LIMIT
from .sizes import Size, iterations_for

_RANDOM, _EXACT, _PRODUCT = 4e-9, 25e-9, 40e-9
"""Seconds an element: to draw it, to compare an operation with float64, to record a product H p."""
_CALL, _TENSOR = 1e-5, 2e-5
"""Seconds: of a call, of a tensor in an iteration."""
_TIMES = {
    "ours": 3.5,
    "ours-tf": 1.2,
    "numpy": 10.0,
    "cupy": 10.0,
    "scipy": 4.0,
    "cupyx": 4.0,
    "tensorflow": 12.0,
    "jax": 12.0,
    "torch": 9.0,
}
"""An iteration by each of a peer's contenders, in iterations at the memory's speed."""
_IMPORTS = {"ours-tf": 4.0, "tensorflow": 4.0, "jax": 1.0, "torch": 2.0}


class Forecast:
    """Rough seconds on a device, whose speed is taken from a few passes over a buffer."""

    def __init__(self, device: Device, repeats: int, part_seconds: float, quick: bool) -> None:
        self._device, self._repeats, self._quick = device, repeats, quick
        self._part_seconds = part_seconds
        times = []
        for _ in range(4):
            device.synchronize()
            start = time.perf_counter()
            device.flush()
            device.synchronize()
            times.append(time.perf_counter() - start)
        self._flush = min(times)
        self._rate = device.flushed_bytes / self._flush

    def _repeated(self, once: float) -> float:
        """Of repetitions that take ``once`` each."""
        count = float(self._repeats)
        if self._part_seconds:
            count = min(count, max(LEAST, 1 + self._part_seconds / once))
        return count * once

    def operations(self, size: Size, rows: Sequence[Operation]) -> float:
        """Of the operations at a size, with their yardsticks and their comparison with the reference."""
        rows = [row for row in rows if size.layout is None or row.takes_table]
        if not rows:
            return 0.0
        vectors = memory.most_vectors(rows)
        sets = self._device.copies(vectors, size.n)

        def run(moved: int) -> float:
            return self._flush + sets * (_CALL + 4 * size.n * moved / self._rate)

        tries = yardsticks.tries(self._repeats)
        variants = len(yardsticks.GPU_VARIANTS if self._device.on_gpu else yardsticks.CPU_VARIANTS)
        ways = 1 if size.layout is None else 2
        seconds = sets * vectors * size.n * _RANDOM
        once = 0.0
        for row in rows:
            once += ways * (run(sum(row.traffic)) + run(2))
            if size.n <= operations.VERIFY_ALL_BELOW or row.name in operations.CG_PASSES:
                seconds += ways * size.n * _EXACT
        for reads, writes, _ in {row.stream for row in rows}:
            seconds += variants * tries * run(reads + writes)
            once += run(reads + writes) + run(2)
        return seconds + self._repeated(once)

    def iteration(self, size: Size, peers: Sequence[Peer]) -> float:
        """Of the iteration at a size, compilation included."""
        peers = self._able(peers)
        if not peers:
            return 0.0
        count = iterations_for(size, self._device.on_gpu)
        one = 4 * size.n * iteration.VECTORS / self._rate + _TENSOR * size.tensors
        # a solve is made for 1, 1 and 1 + count iterations, and each begins and ends with an iteration's work
        iterations = count + 6
        seconds = (1 + count) * size.n * _PRODUCT
        work = sum(_TIMES.get(peer.name, 10.0) for peer in peers) * iterations * one
        return seconds + work + self._repeated(work + 4 * len(peers) * self._flush) + self.compilation(size, peers)

    def compilation(self, size: Size, peers: Sequence[Peer]) -> float:
        """Of the iteration's contenders at a size."""
        names = {peer.name for peer in self._able(peers)}
        found = [known.seconds(size.tensors) for known in COMPILATIONS.values() if known.peer in names]
        return sum(seconds for seconds in found if not self._quick or seconds <= QUICK_LIMIT)

    def imports(self, peers: Sequence[Peer]) -> float:
        """Of the libraries, once."""
        return sum(_IMPORTS.get(peer.name, 0.0) for peer in self._able(peers))

    def _able(self, peers: Sequence[Peer]) -> list[Peer]:
        return [peer for peer in peers if not peer.why_not(self._device)]


def announcement(
    forecast: Forecast, device: Device, sizes: Sequence[Size], rows: Sequence[Operation], peers: Sequence[Peer]
) -> str:
    """What a run will need, a line per size and one for all."""
    free = device.free_bytes()
    able = [peer for peer in peers if not peer.why_not(device)]
    lines, total, compiling = [], forecast.imports(peers), 0.0
    for size in sizes:
        operands, contenders = memory.operations_bytes(size, rows), memory.iteration_bytes(size, device.on_gpu, able)
        seconds = 0.0
        if operands <= free:
            seconds += forecast.operations(size, rows)
        if contenders <= free:
            seconds += forecast.iteration(size, peers)
            compiling += forecast.compilation(size, peers)
        total += seconds
        left_out = [name for name, need in (("operations", operands), ("iteration", contenders)) if need > free]
        note = f"; does not fit, left out: {' and '.join(left_out)}" if left_out else f", {duration(seconds)}"
        lines.append(f"  {size.label}: about {memory.gigabytes(max(operands, contenders))}{note}")
    compilation = f", of which {duration(compiling)} to compile other libraries' code" if compiling >= 1 else ""
    return "\n".join(
        [
            f"{memory.gigabytes(free)} of memory are free. Forecast for an otherwise idle machine:",
            *lines,
            f"In all about {duration(total)}{compilation}.",
        ]
    )


def duration(seconds: float) -> str:
    """Rounded as a forecast deserves."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s" if seconds < 10 else f"{10 * round(seconds / 10)} s"
    return f"{round(seconds / 60)} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
