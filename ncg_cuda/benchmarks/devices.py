"""Where a benchmark runs: arrays, memory, caches and clocks of the CPU and of one GPU."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import _core
from ..compare.errors import UsageError
from ..environment import usable_cpus

CACHE_FACTOR = 3
"""Operands that are used in turns, and what is touched between measurements, exceed the last cache this many times."""
_UNKNOWN_CACHE = 32 << 20
_LARGEST_CACHE = 1 << 30


class Device:
    """What CPU and GPU have in common."""

    name = ""
    on_gpu = False
    xp: Any = np
    threads = 1
    cache_bytes = 0
    memory_share = 0.5
    """How much of the free memory a benchmark may take."""

    def describe(self) -> str:
        """For the report's title."""
        raise NotImplementedError

    def empty(self, n: int) -> Any:
        """A float32 vector that every library can take without a copy."""
        raise NotImplementedError

    def free_bytes(self) -> int:
        """Memory that can be had now."""
        raise NotImplementedError

    @property
    def flushed_bytes(self) -> int:
        """That :meth:`flush` moves."""
        raise NotImplementedError

    def flush(self) -> None:
        """Push everything else out of the caches."""
        raise NotImplementedError

    def synchronize(self) -> None:
        """Wait for whatever was queued, by whichever library."""

    def clock(self, calls: Sequence[Callable[[], Any]], *, capture: bool = True) -> Callable[[], float]:
        """A function that flushes the caches, makes the calls one after another and returns the seconds of one call.

        With ``capture``, a GPU runs them as one CUDA graph, so that the time of a launch by the host does not count.
        """
        raise NotImplementedError

    def solve_clock(self, solve: Callable[[int], Any], iterations: int) -> SolveClock:
        """The clock of an iteration of a solve."""
        return SolveClock(self, solve, iterations)

    def random(self, n: int, seed: int, low: float, high: float) -> Any:
        """Uniform float32 numbers."""
        out = self.empty(n)
        rng = np.random.default_rng(seed)
        for begin in range(0, n, 1 << 24):
            part = rng.random(min(1 << 24, n - begin), dtype=np.float32)
            part *= np.float32(high - low)
            part += np.float32(low)
            out[begin : begin + len(part)] = self.xp.asarray(part)
        return out

    def copies(self, vectors: int, n: int) -> int:
        """How many sets of so many vectors take turns, so that none is found in a cache."""
        size = 4 * n * vectors
        wanted = max(1, -(-CACHE_FACTOR * self.cache_bytes // size))
        return max(1, min(wanted, int(self.memory_share * self.free_bytes()) // size))


class SolveClock:
    """The seconds of an iteration: the difference of a solve of 1 + k iterations and one of 1, each with cold caches,
    over k. Beginning and end of a solve cancel out.
    """

    def __init__(self, device: Device, solve: Callable[[int], Any], iterations: int) -> None:
        self._device, self._solve, self._iterations = device, solve, iterations
        self._short: list[float] = []
        self._long: list[float] = []

    def __call__(self) -> float:
        self._solve(1)  # untimed: the first call after another contender pays for the memory that one gave back
        self._short.append(self._once(1))
        self._long.append(self._once(1 + self._iterations))
        return (self._long[-1] - self._short[-1]) / self._iterations

    def best(self) -> float:
        """From the shortest solves of either length: little disturbed by other work on the machine."""
        return (min(self._long) - min(self._short)) / self._iterations

    def _once(self, count: int) -> float:
        self._device.flush()
        self._device.synchronize()
        start = time.perf_counter()
        self._solve(count)
        self._device.synchronize()
        return time.perf_counter() - start


class Cpu(Device):
    """The CPU, by so many threads."""

    name = "cpu"
    xp = np

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or usable_cpus()
        self.cache_bytes = _last_level_cache()
        count = CACHE_FACTOR * self.cache_bytes // 4
        self._flush = np.zeros(count, np.float32)
        self._sum = np.zeros(1)

    def describe(self) -> str:
        from ..environment import cpu_name

        return f"{self.threads} thread{'s' * (self.threads > 1)} of {cpu_name()}"

    def empty(self, n: int) -> Any:
        room = np.empty(4 * n + 64, np.uint8)
        skip = -room.ctypes.data % 64
        return room[skip : skip + 4 * n].view(np.float32)

    def free_bytes(self) -> int:
        try:
            for line in Path("/proc/meminfo").read_text().splitlines():
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
        except OSError:
            pass
        return 4 << 30

    @property
    def flushed_bytes(self) -> int:
        return int(self._flush.nbytes)

    def flush(self) -> None:
        address, size = self._flush.ctypes.data, self._flush.size
        _core.stream(
            False, 1, 1, [address], size, scale=1.0, sum=self._sum.ctypes.data, variant=0, threads=self.threads
        )

    def clock(self, calls: Sequence[Callable[[], Any]], *, capture: bool = True) -> Callable[[], float]:
        del capture

        def run() -> float:
            self.flush()
            start = time.perf_counter()
            for call in calls:
                call()
            return (time.perf_counter() - start) / len(calls)

        return run


class Gpu(Device):
    """The current CUDA device, through CuPy."""

    name = "gpu"
    on_gpu = True
    memory_share = 0.3

    def __init__(self, threads: int | None = None) -> None:
        import cupy

        self.threads = threads or usable_cpus()
        self.xp = cupy
        self._device = cupy.cuda.Device()
        self.cache_bytes = int(self._device.attributes.get("L2CacheSize", 64 << 20))
        self._flush = cupy.zeros(CACHE_FACTOR * self.cache_bytes // 4, dtype=np.float32)
        self.stream = cupy.cuda.Stream(non_blocking=True)

    def describe(self) -> str:
        found = self.xp.cuda.runtime.getDeviceProperties(self._device.id)["name"]
        return found.decode() if isinstance(found, bytes) else str(found)

    def empty(self, n: int) -> Any:
        return self.xp.empty(n, dtype=np.float32)

    def free_bytes(self) -> int:
        pool = self.xp.get_default_memory_pool()
        pool.free_all_blocks()
        return int(self.xp.cuda.runtime.memGetInfo()[0])

    @property
    def flushed_bytes(self) -> int:
        return 2 * int(self._flush.nbytes)

    def flush(self) -> None:
        self._flush += np.float32(1.0)

    def synchronize(self) -> None:
        self._device.synchronize()

    def clock(self, calls: Sequence[Callable[[], Any]], *, capture: bool = True) -> Callable[[], float]:
        cuda = self.xp.cuda
        self.synchronize()  # the operands were made on another stream, for which this one does not wait
        with self.stream:
            for call in calls:  # what is allocated or loaded on first use is not part of a graph
                call()
        self.synchronize()
        launch: Callable[[], Any]
        if capture:
            graph = self.capture(lambda: [call() for call in calls])
            launch = lambda: graph.launch(self.stream)  # noqa: E731
        else:
            launch = lambda: [call() for call in calls]  # noqa: E731
        start, end = cuda.Event(), cuda.Event()

        def run() -> float:
            with self.stream:
                self.flush()
                start.record(self.stream)
                launch()
                end.record(self.stream)
            end.synchronize()
            return float(cuda.get_elapsed_time(start, end)) / 1e3 / len(calls)

        return run

    def capture(self, work: Callable[[], Any]) -> Any:
        """What ``work`` queues on the current stream, as a CUDA graph; it may not allocate or wait."""
        self.synchronize()
        with self.stream:
            self.stream.begin_capture()
            try:
                work()
            except BaseException:
                try:
                    self.stream.end_capture()
                except Exception:  # the capture is broken already: the first error says why
                    self.stream = self.xp.cuda.Stream(non_blocking=True)
                raise
            return self.stream.end_capture()


def graph_nodes(graph: Any) -> int | None:
    """How many nodes (launches, copies) a CuPy CUDA graph has, asked of the driver; None where it does not say."""
    try:
        count = ctypes.c_size_t(0)
        driver = ctypes.CDLL("libcuda.so.1")
        status = driver.cuGraphGetNodes(ctypes.c_void_p(graph.graph), None, ctypes.byref(count))
    except (OSError, AttributeError, TypeError):
        return None
    return int(count.value) if status == 0 else None


def _last_level_cache() -> int:
    """Bytes of the largest cache of the first processor."""
    found = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        try:
            text = path.read_text().strip()
            unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
            found.append(int(text.rstrip("KMG")) * unit)
        except (OSError, ValueError):
            continue
    return min(max(found, default=_UNKNOWN_CACHE), _LARGEST_CACHE)


def choose(wanted: str, threads: int | None) -> Device:
    """The device that ``--device`` asks for: cpu, gpu, or auto (the GPU where everything for it is there).

    Raises:
        UsageError: the GPU was asked for and cannot be used; the message says why.
    """
    if wanted == "cpu":
        return Cpu(threads)
    from .. import installation

    found = installation.backends()
    missing = [found[name].detail for name in ("cuda", "cupy") if not found[name].available]
    if not missing:
        return Gpu(threads)
    if wanted == "gpu":
        raise UsageError(f"--device gpu: {'; '.join(missing)}. Measure the CPU by --device cpu")
    return Cpu(threads)
