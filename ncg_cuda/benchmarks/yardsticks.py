"""Plain streams through memory, of the shape of an operation: what the operations are measured by.

They share no code with the engines. A stream loads the first R of its vectors and stores the last W, each stored value
being ``scale`` times what was loaded at its place (or times the first vector, where nothing was); the sum of all loaded
values comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from .. import _core
from ..arrays import operand
from .devices import Device
from .measure import interleave, reason

Call = Callable[[], Any]

CPU_VARIANTS = ("plain", "prefetching", "blocks in turn", "stores past the caches")
CPU_COPIES = ("plain", "stores past the caches", "memcpy")
GPU_VARIANTS = tuple(
    f"{quads} quad{'s' * (quads > 1)} a thread, {threads} threads, {grid}"
    for quads in (1, 2, 4)
    for threads in (256, 512, 1024)
    for grid in ("a block a tile", "resident blocks")
)


def check_shape(reads: int, writes: int, vectors: int) -> None:
    """Raise a ValueError that names the remedy if the native core has no stream of this shape."""
    if (reads, writes, vectors) not in _core.STREAM_SHAPES:
        raise ValueError(
            f"no yardstick reads {reads} and writes {writes} of {vectors} vectors; known (reads, writes, vectors): "
            f"{', '.join(map(str, _core.STREAM_SHAPES))}. Add a line to csrc/ncg/yardsticks/shapes.h"
        )


def stream(
    vectors: Sequence[Any], reads: int, writes: int, *, scale: float = 1.0, variant: int = 0, threads: int = 1
) -> Callable[[], Any]:
    """A function that runs the stream over float32 vectors of one size and returns its sum, a float64 array of 1.

    Raises:
        ValueError: no such shape or variant; sizes, types or devices that do not match.
    """
    check_shape(reads, writes, len(vectors))
    described = [operand(v, f"vector {k}", written=k >= len(vectors) - writes) for k, v in enumerate(vectors)]
    first = described[0]
    for other in described:
        if (other.dtype, other.size, other.device) != ("float32", first.size, first.device):
            raise ValueError(
                f"{other.name}: {other.size} of {other.dtype} on {other.device}; all must be float32 alike"
            )
    on_gpu = first.device != "cpu"
    known = GPU_VARIANTS if on_gpu else CPU_VARIANTS
    if not 0 <= variant < len(known):
        raise ValueError(f"variant: {variant}; known are 0 to {len(known) - 1}: {', '.join(known)}")
    addresses = [d.address for d in described]
    if not on_gpu:
        sum_ = np.zeros(1)
        address = sum_.ctypes.data

        def run() -> Any:
            _core.stream(
                False, reads, writes, addresses, first.size, scale=scale, sum=address, variant=variant, threads=threads
            )
            return sum_

        return run
    import cupy

    total = cupy.zeros(1, dtype=np.float64)  # grows from call to call: read it after the first, or clear it

    def launch() -> Any:
        queue = cupy.cuda.get_current_stream().ptr
        _core.stream(
            True, reads, writes, addresses, first.size, scale=scale, sum=total.data.ptr, variant=variant, stream=queue
        )
        return total

    return launch


def copy(source: Any, target: Any, *, variant: int = 0, threads: int = 1) -> Callable[[], None]:
    """A function that copies a float32 vector on the CPU."""
    if not 0 <= variant < len(CPU_COPIES):
        raise ValueError(f"variant: {variant}; known are 0 to {len(CPU_COPIES) - 1}: {', '.join(CPU_COPIES)}")
    a, b = operand(source, "source"), operand(target, "target", written=True)
    if (a.dtype, a.device, b.dtype, b.device, a.size) != ("float32", "cpu", "float32", "cpu", b.size):
        raise ValueError("copy: source and target must be float32 NumPy arrays of one size")
    return lambda: _core.copy(a.address, b.address, a.size, variant=variant, threads=threads)


def tries(repeats: int) -> int:
    """Times by which the fastest variant is chosen, in a run of so many repetitions."""
    return min(5, max(1, repeats // 3))


def fastest(
    device: Device, candidates: Mapping[str, Callable[[], list[Call]]], tries: int = 5
) -> tuple[str, Callable[[], float]]:
    """The variant with the shortest of a few times, and its clock; variants that the device refuses drop out.

    They take turns, so that a busy moment of the machine does not decide.

    Raises:
        RuntimeError: every variant failed.
    """
    clocks: dict[str, Callable[[], float]] = {}
    failures = {}
    for name, build in candidates.items():
        try:
            clocks[name] = device.clock(build())
        except Exception as error:
            failures[name] = reason(error)
    rounds = interleave(clocks, tries)
    failures |= rounds.failed
    best = {name: min(values) for name, values in rounds.seconds.items() if name not in rounds.failed}
    if not best:
        raise RuntimeError(
            f"no variant of the yardstick runs: {'; '.join(f'{name}: {why}' for name, why in failures.items())}"
        )
    chosen = min(best, key=lambda name: best[name])
    return chosen, clocks[chosen]


def stream_clock(
    device: Device, sets: Sequence[Sequence[Any]], reads: int, writes: int, tries: int = 5
) -> tuple[str, Any]:
    """The fastest stream of a shape over the vectors of ``sets``, which take turns: variant and clock."""
    count = len(sets[0])
    names = GPU_VARIANTS if device.on_gpu else CPU_VARIANTS
    if not device.on_gpu and count == reads:
        names = names[:-1]  # nothing is stored that was not loaded

    candidates = {name: partial(_streams, sets, reads, writes, i, device.threads) for i, name in enumerate(names)}
    return fastest(device, candidates, tries)


def copy_clock(device: Device, sets: Sequence[Sequence[Any]], tries: int = 5) -> tuple[str, Any]:
    """The fastest copy of the first vector of each set to its second: variant and clock."""
    candidates: dict[str, Callable[[], list[Call]]]
    if device.on_gpu:
        candidates = {"cudaMemcpyAsync": partial(_device_copies, sets)}
        for i, name in enumerate(GPU_VARIANTS):
            candidates[name] = partial(_streams, [s[:2] for s in sets], 1, 1, i, 1)
    else:
        candidates = {name: partial(_copies, sets, i, device.threads) for i, name in enumerate(CPU_COPIES)}
    return fastest(device, candidates, tries)


def _streams(sets: Sequence[Sequence[Any]], reads: int, writes: int, variant: int, threads: int) -> list[Call]:
    return [stream(vectors, reads, writes, variant=variant, threads=threads) for vectors in sets]


def _copies(sets: Sequence[Sequence[Any]], variant: int, threads: int) -> list[Call]:
    return [copy(vectors[0], vectors[1], variant=variant, threads=threads) for vectors in sets]


def _device_copies(sets: Sequence[Sequence[Any]]) -> list[Call]:
    return [partial(_device_copy, vectors[0], vectors[1]) for vectors in sets]


def _device_copy(source: Any, target: Any) -> None:
    import cupy

    target.data.copy_from_device_async(source.data, source.nbytes, cupy.cuda.get_current_stream())
