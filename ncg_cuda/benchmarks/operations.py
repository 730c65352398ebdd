"""The operations on cold operands, beside a stream of their own shape and a copy, in the same repetitions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import ops
from ..catalog import OPERATIONS, Operation
from ..compare.errors import unknown
from ..layout import Layout
from . import memory, yardsticks
from .devices import Device
from .measure import Rounds, Spread, interleave, ratio, reason, spread, unsteady
from .sizes import Size

CG_PASSES = ("damped_curvature", "cg_update")
_SLICE = 1 << 20
VERIFY_ALL_BELOW = 5 * 10**7
"""From this size on, only the passes of CG are compared with the reference: it takes minutes."""
TOLERANCE = 1e-4
"""Of a verification: relative, for sums of positive float32 numbers."""


@dataclass
class Result:
    """One operation at one size; times in seconds of one call."""

    operation: str
    size: str
    n: int
    tensors: int
    reads: int
    writes: int
    bytes: int
    """Counted: vectors read and written, as the operation declares them."""
    seconds: Spread | None = None
    gb_per_s: float | None = None
    percent_of_copy: Spread | None = None
    percent_of_yardstick: Spread | None = None
    yardstick: str = ""
    """The variant of the stream that was the fastest."""
    yardstick_seconds: Spread | None = None
    versus_flat: Spread | None = None
    """Time over that of the same operation on one flat product, where this one takes tensors."""
    launches: float | None = None
    """Of one call, counted in the CUDA graph; on the CPU 1, a call of the engine."""
    error: float | None = None
    """Largest relative error against float64 NumPy; None where it was not compared at this size."""
    failed: str = ""


@dataclass
class Measured:
    """All operations at one size."""

    results: list[Result] = field(default_factory=list)
    copy: str = ""
    copy_seconds: Spread | None = None
    rounds: Rounds = field(default_factory=Rounds)

    def warnings(self) -> list[str]:
        """Rows that something disturbed."""
        rows = [("copy", self.copy_seconds), *((_name(r), r.seconds) for r in self.results)]
        return unsteady((name, s.median, s.smallest) for name, s in rows if s is not None)


def select(names: str) -> list[Operation]:
    """The rows of the catalog that a comma-separated list names; ``all`` or ``none``.

    Raises:
        UsageError: an unknown name.
    """
    known: dict[str, list[Operation]] = {}
    for row in OPERATIONS:
        known.setdefault(row.name, []).append(row)
    if names == "none":
        return []
    if names == "all":
        return list(OPERATIONS)
    chosen = []
    for name in (name.strip() for name in names.split(",")):
        if name not in known:
            raise unknown("operation", name, [*known, "all", "none"])
        chosen += known[name]
    return list(dict.fromkeys(chosen))


def measure(
    device: Device,
    size: Size,
    rows: Sequence[Operation],
    repeats: int,
    *,
    seconds: float = 0.0,
    step: Callable[[str], Any] = lambda name: None,
    phase: Callable[[str], Any] = lambda text: None,
) -> Measured:
    """Measure the operations at one size. One that fails has its reason in its result. ``seconds``: see
    :func:`ncg_cuda.benchmarks.measure.interleave`.

    Raises:
        MemoryError: the size does not fit into the free memory; nothing was allocated.
    """
    measured = Measured()
    if not rows:
        return measured
    memory.require(memory.operations_bytes(size, rows), device.free_bytes())
    phase("drawing the operands")
    most = memory.most_vectors(rows)
    sets = [
        [device.random(size.n, seed=100 * s + k, low=0.5, high=1.5) for k in range(most)]
        for s in range(device.copies(most, size.n))
    ]
    if size.layout is not None:
        for vectors in sets:
            for vector in vectors:
                clear_padding(size.layout, vector)
    phase("choosing the yardsticks, comparing with the reference")
    clocks: dict[str, Callable[[], float]] = {}
    streams: dict[tuple[int, int, int], str] = {}
    tries = yardsticks.tries(repeats)
    measured.copy, copy = yardsticks.copy_clock(device, sets, tries)
    for row in rows:
        reads, writes = row.traffic
        shape = row.stream
        flat = Result(str(row), size.label, size.n, 1, reads, writes, 4 * size.n * (reads + writes))
        ways = [flat]
        if size.layout is not None:
            if not row.takes_table:
                continue  # the same as on a flat vector
            ways.append(Result(**{**vars(flat), "tensors": size.tensors}))
        try:
            if shape not in streams:
                streams[shape], clocks[f"stream {shape}"] = yardsticks.stream_clock(
                    device, [s[: shape[2]] for s in sets], reads, writes, tries
                )
        except Exception as error:
            streams[shape] = ""
            flat.yardstick = reason(error)
        for result in ways:
            result.yardstick = result.yardstick or streams[shape]
            measured.results.append(result)
            try:
                calls = _calls(device, size, row, sets, result)
                if size.n <= VERIFY_ALL_BELOW or row.name in CG_PASSES:
                    result.error = _verify(device, row, sets[0][: row.vectors], calls[0])
                    if not result.error < TOLERANCE:
                        raise ArithmeticError(f"differs from the reference by {result.error:.1e}")
                clocks[_key(result)] = device.clock(calls, capture=_takes_workspace(row))
                result.launches = _launches(device, row, calls)
            except Exception as error:
                result.failed = reason(error)
            step(str(row))
    phase(f"measuring {len(clocks)} operations and yardsticks up to {repeats} times")
    measured.rounds = interleave(clocks, repeats, beside=copy, seconds=seconds, step=step)
    _evaluate(measured, size.n)
    return measured


def clear_padding(layout: Layout, vector: Any) -> None:
    """Zero what stands between the tensors of a flat vector."""
    ends = layout.offsets + layout.lengths
    for end, following in zip(ends, [*layout.offsets[1:], layout.size], strict=True):
        if following > end:
            vector[int(end) : int(following)] = 0


def _key(result: Result) -> str:
    return f"{result.operation} on {result.tensors}"


def _name(result: Result) -> str:
    return result.operation if result.tensors == 1 else f"{result.operation}, {result.tensors} tensors"


def _takes_workspace(row: Operation) -> bool:
    parameters = inspect.signature(row.native).parameters.values()
    return any(p.name == "workspace" or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def _calls(
    device: Device, size: Size, row: Operation, sets: Sequence[Sequence[Any]], result: Result
) -> list[Callable[[], Any]]:
    options: dict[str, Any] = {}
    if _takes_workspace(row):
        options["workspace"] = ops.Workspace(sets[0][0], result.tensors if result.tensors > 1 else 0)

    def call_on(vectors: Sequence[Any]) -> Callable[[], Any]:
        arguments = list(vectors[: row.vectors])
        if result.tensors > 1:
            assert size.layout is not None
            arguments[0] = size.layout.views(arguments[0])
            options["layout"] = size.layout
        return lambda: row.native(*arguments, **options)

    del device
    return [call_on(vectors) for vectors in sets]


def _launches(device: Device, row: Operation, calls: Sequence[Callable[[], Any]]) -> float | None:
    from .devices import Gpu, graph_nodes

    if not isinstance(device, Gpu):
        return 1.0
    if not _takes_workspace(row):
        return None
    nodes = graph_nodes(device.capture(lambda: [call() for call in calls]))
    return None if nodes is None else nodes / len(calls)


def _verify(device: Device, row: Operation, vectors: Sequence[Any], call: Callable[[], Any]) -> float:
    """The largest relative error of a call: its sums over everything, its vectors on three slices."""
    n = vectors[0].size
    starts = sorted({0, n // 2 // _SLICE * _SLICE, (n - 1) // _SLICE * _SLICE})
    wanted: dict[int, Any] = {}
    totals: Any = None
    for start in range(0, n, _SLICE):
        parts = [_host(v[start : start + _SLICE]).astype(np.float64) for v in vectors]
        written, sums = row.exact(*parts)
        totals = np.array(sums, dtype=np.float64) if totals is None else totals + np.array(sums, dtype=np.float64)
        if start in starts:
            wanted[start] = [np.array(w) for w in written]
    written, sums = call()
    device.synchronize()
    errors = [0.0]
    if len(totals):
        got = np.array([float(s) for s in sums])
        errors.append(float(np.max(np.abs(got - totals) / (np.abs(totals) + 1e-3 * n))))
    for start, expected in wanted.items():
        for vector, exact in zip(written, expected, strict=True):
            part = _host(vector.reshape(-1)[start : start + _SLICE]).astype(np.float64)
            errors.append(float(np.max(np.abs(part - exact)) / (np.max(np.abs(exact)) + 1e-30)))
    return max(errors)


def _host(array: Any) -> Any:
    return array if isinstance(array, np.ndarray) else array.get()


def _evaluate(measured: Measured, n: int) -> None:
    seconds = measured.rounds.seconds
    measured.copy_seconds = measured.rounds.all_beside()
    for result in measured.results:
        key = _key(result)
        result.failed = result.failed or measured.rounds.failed.get(key, "")
        if key not in seconds:
            continue
        result.seconds = spread(seconds[key])
        if result.seconds is None:
            continue
        result.gb_per_s = result.bytes / result.seconds.median / 1e9
        # rates, so that the bytes of both count
        result.percent_of_copy = measured.rounds.percent(key, result.bytes / (8 * n))
        name = f"stream {_shape_of(result)}"
        if name in seconds:
            result.yardstick_seconds = spread(seconds[name])
            found = ratio(seconds[name], seconds[key])
            result.percent_of_yardstick = None if found is None else found.scaled(100.0)
        if result.tensors > 1:
            result.versus_flat = ratio(seconds[key], seconds[f"{result.operation} on 1"])


def _shape_of(result: Result) -> tuple[int, int, int]:
    return next(row.stream for row in OPERATIONS if str(row) == result.operation)
