"""``ncg-cuda bench kernels``: operations and CG iteration at every size, with files that are complete at any moment."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..catalog import Operation
from ..compare.errors import UsageError
from ..compare.records import check_writable
from . import devices, iteration, memory, operations, overhead, peers, sizes, targets
from .forecast import Forecast, announcement
from .measure import reason
from .plot import plot
from .progress import Progress
from .records import PICTURE_NAME, TEXT_NAME, AtSize, Results
from .report import report


@dataclass(frozen=True)
class Plan:
    """What is asked for; texts as on the command line."""

    out: Path
    device: str = "auto"
    sizes: str = sizes.DEFAULT
    operations: str = "all"
    peers: str = "all"
    repeats: int = 15
    threads: int | None = None
    part_seconds: float = 60.0
    """Seconds after which the operations, or the contenders, of a size are not repeated any more; 0: no limit."""
    peer_seconds: float = 120.0
    time_limit: float = 0.0
    """Seconds after which no further part is begun; 0: no limit."""
    quick: bool = False
    """Leave out what compiles for long, unless ``peers`` names its library."""
    quiet: bool = False

    def as_json(self) -> dict[str, Any]:
        """What the figures depend on."""
        return {name: value for name, value in vars(self).items() if name not in ("out", "quiet")}


def run(plan: Plan) -> int:
    """Run the plan, print its report, write its files.

    Returns 0; 1 where an operation or one of our contenders failed (a peer's failure is reported, no more) or nothing
    was measured; 130 after Ctrl-C, with what was finished by then written and printed.

    Raises:
        UsageError: before any measurement, if the plan cannot be carried out.
    """
    from ..environment import usable_cpus

    chosen = sizes.parse(plan.sizes)
    rows = operations.select(plan.operations)
    if plan.threads is not None and plan.threads > usable_cpus():
        raise UsageError(f"--threads {plan.threads}: this process may use {usable_cpus()} processors")
    with _processors(plan.threads):
        device = devices.choose(plan.device, plan.threads)
        contenders = peers.select(plan.peers, device)
        _check_memory(device, chosen, rows, contenders)
        check_writable(plan.out)
        if not plan.quiet:
            forecast = Forecast(device, plan.repeats, plan.part_seconds, plan.quick and plan.peers == "all")
            print(announcement(forecast, device, chosen, rows, contenders), file=sys.stderr)
            print(f"After every part, what is measured so far is written to {plan.out}.", file=sys.stderr, flush=True)
        results = Results(plan.out, plan.as_json(), f"{device.name}: {device.describe()}", device.on_gpu)
        for name in (PICTURE_NAME, TEXT_NAME):  # of an earlier run
            (plan.out / name).unlink(missing_ok=True)
        results.write("running")
        status = "interrupted"
        try:
            _measure(plan, device, chosen, rows, contenders, results)
            status = "complete"
        except KeyboardInterrupt:
            print(f"\ninterrupted: what is finished is in {plan.out}", file=sys.stderr)
        results.verdicts = targets.judge(results.sizes, device.on_gpu)
        text = report(results)
        results.write(status)
        results.write_report(text)
        plot(results, plan.out / PICTURE_NAME)
    print(text)
    print(f"\nRecords, report and picture: {plan.out}")
    if status != "complete":
        return 130
    if not any(at.measured() for at in results.sizes):
        print("nothing was measured: the notes in the report say why", file=sys.stderr)
        return 1
    return 1 if _ours_failed(results) else 0


def _check_memory(
    device: devices.Device, chosen: list[sizes.Size], rows: list[Operation], contenders: list[peers.Peer]
) -> None:
    """Raise a UsageError where no part of any size fits into the free memory."""
    free = device.free_bytes()
    able = [peer for peer in contenders if not peer.why_not(device)]
    said = []
    for size in chosen:
        needs = [memory.operations_bytes(size, rows), memory.iteration_bytes(size, device.on_gpu, able)]
        least = min((need for need in needs if need), default=0)
        if least <= free:
            return
        said.append(f"{size.label} {memory.lacking(least, free)}")
    raise UsageError(f"--sizes: {'; '.join(said)}. Give smaller sizes")


def _measure(
    plan: Plan,
    device: devices.Device,
    chosen: list[sizes.Size],
    rows: list[Operation],
    contenders: list[peers.Peer],
    results: Results,
) -> None:
    from .. import ops

    started = time.monotonic()
    before = ops.get_num_threads()
    ops.set_num_threads(device.threads)
    try:
        with Progress("calls", quiet=plan.quiet):
            results.overhead = overhead.measure(device)
        for size in chosen:
            at = AtSize(size)
            results.sizes.append(at)
            for part in ("iteration", "operations"):  # what matters most first: time or patience may end
                if plan.time_limit and time.monotonic() - started > plan.time_limit:
                    at.notes.append(f"{part}: not measured, --time-limit {plan.time_limit:g} s is over")
                    continue
                with Progress(f"{size.label}: {part}", quiet=plan.quiet) as progress:
                    try:
                        if part == "operations":
                            at.operations = operations.measure(
                                device,
                                size,
                                rows,
                                plan.repeats,
                                seconds=plan.part_seconds,
                                step=progress.step,
                                phase=progress.phase,
                            )
                        else:
                            at.iteration = iteration.measure(
                                device,
                                size,
                                contenders,
                                plan.repeats,
                                seconds=plan.part_seconds,
                                peer_seconds=plan.peer_seconds,
                                quick=plan.quick and plan.peers == "all",
                                step=progress.step,
                                phase=progress.phase,
                            )
                    except Exception as error:  # no memory for this size, say; the other sizes go on
                        at.notes.append(f"{part}: could not be measured: {reason(error)}")
                results.verdicts = targets.judge(results.sizes, device.on_gpu)
                results.write("running")
                results.write_report(report(results))
    finally:
        ops.set_num_threads(before)


def _ours_failed(results: Results) -> bool:
    for at in results.sizes:
        if any("could not be measured" in note and "MemoryError" not in note for note in at.notes):
            return True
        if at.operations is not None and any(r.failed for r in at.operations.results):
            return True
        if at.iteration is not None and any(r.failed for r in at.iteration.results if r.peer == "ours"):
            return True
    return False


@contextmanager
def _processors(threads: int | None) -> Iterator[None]:
    """Hold the process, and every library that it loads, to so many processors."""
    if threads is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:threads])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
