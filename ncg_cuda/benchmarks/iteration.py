"""The vector work of one CG iteration: every contender on the same products, in the same repetitions."""

from __future__ import annotations

import contextlib
import gc
import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import ops
from . import memory, yardsticks
from .devices import Device, SolveClock
from .measure import Rounds, Spread, interleave, ratio, reason, spread, unsteady
from .peers import Contender, Peer
from .peers.compile_times import QUICK_LIMIT, compile_seconds
from .problem import LARGEST_ERROR, Problem
from .sizes import Size, iterations_for

VECTORS = ops.VECTORS_MOVED["damped_curvature"] + ops.VECTORS_MOVED["cg_update"]
"""Vectors that an iteration must move: what the fused passes move. Bytes are counted so for everyone."""


@dataclass
class Result:
    """One contender at one size; times in seconds of one iteration."""

    contender: str
    peer: str
    size: str
    n: int
    tensors: int
    bytes: int
    seconds: Spread | None = None
    best_seconds: float | None = None
    """From the shortest solves: where other work disturbs the machine, more telling than the median."""
    gb_per_s: float | None = None
    percent_of_copy: Spread | None = None
    ours_is_faster: Spread | None = None
    """Its time over that of the reference contender, in the same repetition."""
    launches: float | None = None
    """Kernel launches of an iteration, where they can be counted."""
    error: float | None = None
    """Of its solution, relative."""
    note: str = ""
    failed: str = ""
    left_out: str = ""
    """Why it has no time though it did not fail."""


@dataclass
class Measured:
    """All contenders at one size."""

    results: list[Result] = field(default_factory=list)
    reference: str = ""
    """The contender that the others are compared with: the fastest of ours."""
    copy: str = ""
    copy_seconds: Spread | None = None
    rounds: Rounds = field(default_factory=Rounds)
    iterations: int = 0

    def warnings(self) -> list[str]:
        """Rows that something disturbed."""
        rows = [(r.contender, r.seconds.median, r.best_seconds) for r in self.results if r.seconds is not None]
        if self.copy_seconds is not None:
            rows.insert(0, ("copy", self.copy_seconds.median, self.copy_seconds.smallest))
        return unsteady(rows)


def measure(
    device: Device,
    size: Size,
    peers: Sequence[Peer],
    repeats: int,
    *,
    seconds: float = 0.0,
    peer_seconds: float = 120.0,
    quick: bool = False,
    step: Callable[[str], Any] = lambda name: None,
    phase: Callable[[str], Any] = lambda text: None,
) -> Measured:
    """Measure the iteration at one size by every peer. A contender that cannot run has its reason in its result.
    ``seconds``: see :func:`ncg_cuda.benchmarks.measure.interleave`.

    With ``quick``, contenders that compile for long are left out; their results say so. ``phase`` is told before
    anything that takes long and cannot report its progress.

    Raises:
        MemoryError: the size does not fit into the free memory; nothing was allocated.
    """
    measured = Measured(iterations=iterations_for(size, device.on_gpu))
    if not peers:
        return measured
    able = [peer for peer in peers if not peer.why_not(device)]
    memory.require(memory.iteration_bytes(size, device.on_gpu, able), device.free_bytes())
    phase("preparing the right-hand side and its products")
    problem = Problem(device, size, measured.iterations)
    clocks: dict[str, Callable[[], float]] = {}
    measured.copy, copy = yardsticks.copy_clock(device, [[problem.scratch[0], problem.scratch[1]]])
    counted = 4 * size.n * VECTORS
    for peer in peers:
        why = peer.why_not(device)
        if why:
            measured.results.append(
                Result(peer.title, peer.name, size.label, size.n, size.tensors, counted, failed=why)
            )
            continue
        for contender in _contenders(peer, problem, measured, counted, peer_seconds):
            step(contender.name)
            result = Result(contender.name, peer.name, size.label, size.n, size.tensors, counted, note=contender.note)
            measured.results.append(result)
            compiles = compile_seconds(contender.name, size.tensors)
            if quick and compiles > QUICK_LIMIT:
                result.left_out = (
                    f"left out by --quick: it compiles for about {compiles:.0f} s (--peers {peer.name} runs it)"
                )
                continue
            if compiles >= 1:
                phase(f"compiling {contender.name}, about {compiles:.0f} s")
            prepared = _prepare(problem, contender, result, peer_seconds)
            if prepared is not None:
                clocks[contender.name] = prepared
    phase(f"measuring {len(clocks)} contenders up to {repeats} times")
    measured.rounds = interleave(clocks, repeats, beside=copy, seconds=seconds, step=step)
    for result in measured.results:
        clock = clocks.get(result.contender)
        if isinstance(clock, SolveClock) and not measured.rounds.failed.get(result.contender):
            best = clock.best()
            result.best_seconds = best if best > 0 else None
    _evaluate(measured, size.n)
    clocks.clear()
    gc.collect()
    return measured


def _contenders(
    peer: Peer, problem: Problem, measured: Measured, counted: int, peer_seconds: float
) -> Iterator[Contender]:
    size = problem.size
    try:
        with time_limit(peer_seconds):
            found = peer.contenders(problem)
    except Exception as error:
        measured.results.append(
            Result(peer.title, peer.name, size.label, size.n, size.tensors, counted, failed=reason(error))
        )
        return
    yield from found


def _prepare(problem: Problem, contender: Contender, result: Result, limit: float) -> SolveClock | None:
    """Verify a contender; its clock, or None with the reason in its result."""
    try:
        with time_limit(limit):
            solve = contender.build()
            solve(1)
            x = solve(1 + problem.iterations)
            problem.device.synchronize()
            result.error = problem.error(x)
            del x
            if not result.error <= LARGEST_ERROR:
                raise ArithmeticError(f"does not solve the system: relative error {result.error:.1e}")
            result.launches = contender.launches() if contender.launches is not None else None
            return problem.device.solve_clock(solve, problem.iterations)
    except Exception as error:
        result.failed = reason(error)
        if result.error is not None and not math.isfinite(result.error):
            result.error = None
        return None


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """A TimeoutError in the main thread after so many seconds; no limit in other threads, or for 0.

    It comes between two steps of Python: a library that compiles in one long native call is interrupted after it.
    """
    if seconds <= 0 or threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return

    def alarm(number: int, frame: Any) -> None:
        raise TimeoutError(f"its preparation took longer than {seconds:g} s (--peer-seconds)")

    before = signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _evaluate(measured: Measured, n: int) -> None:
    seconds = measured.rounds.seconds
    measured.copy_seconds = measured.rounds.all_beside()
    timed: list[tuple[float, Result]] = []
    for result in measured.results:
        result.failed = result.failed or measured.rounds.failed.get(result.contender, "")
        if result.failed or result.left_out or result.contender not in seconds:
            continue
        found = spread([value for value in seconds[result.contender] if value > 0])
        if found is None:
            result.left_out = "shorter than the clock can tell"
            continue
        result.seconds = found
        result.gb_per_s = result.bytes / found.median / 1e9
        result.percent_of_copy = measured.rounds.percent(result.contender, result.bytes / (8 * n))
        timed.append((found.median, result))
    ours = [(value, result.contender) for value, result in timed if result.peer == "ours"]
    if not ours:
        return
    measured.reference = min(ours)[1]
    for _, result in timed:
        result.ours_is_faster = ratio(seconds[result.contender], seconds[measured.reference])
