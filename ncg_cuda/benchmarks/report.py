"""The table that ``ncg-cuda bench kernels`` prints."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from . import iteration, operations
from .measure import Spread
from .peers import LEGEND
from .records import AtSize, Results

_OPERATIONS_LEGEND = """\
Operations run on cold operands. GB/s count the vectors that an operation reads and writes; a copy counts 2. The
yardstick of an operation is a plain stream of its shape (so many reads, so many writes), the fastest of several ways to
write it. Percentages are of rates: of a yardstick formed within a repetition, of a copy with one made right before each
time; medians [quartiles]. 'best' is the shortest time; of an
iteration, the shortest long solve less the shortest short one."""


def table(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Columns two spaces apart, the first ``left`` and the last left-aligned, the others right-aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    last = len(widths) - 1
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if i < left or i == last else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def report(results: Results) -> str:
    """All of it: a block per size, calls, targets, legend."""
    blocks = [f"ncg-cuda bench kernels, {results.device}"]
    for at in results.sizes:
        blocks += _size(at)
    if results.overhead:
        blocks.append(_overhead(results))
    if results.verdicts:
        rows = [("target", "at", "wanted", "found", "")]
        rows += [(v.target, v.at, v.wanted, v.found or "-", v.word) for v in results.verdicts]
        blocks.append(table(rows, left=2))
    legend: list[str] = []
    if any(at.operations and at.operations.results for at in results.sizes):
        legend.append(_OPERATIONS_LEGEND)
    if any(at.iteration and at.iteration.results for at in results.sizes):
        legend.append(LEGEND)
    if legend:
        blocks.append("\n".join(legend))
    return "\n\n".join(blocks)


def _size(at: AtSize) -> list[str]:
    vector = 4 * at.size.n / 1e6
    blocks = [f"== {at.size.title}: {vector:,.1f} MB a vector =="]
    if at.operations is not None and at.operations.results:
        blocks.append(_operations(at.operations, at.size.n))
    if at.iteration is not None and at.iteration.results:
        blocks.append(_iteration(at.iteration, at.size.n))
    warnings = at.warnings()
    if warnings:
        blocks.append("\n".join(textwrap.fill(f"Warning: {warning}.", 120) for warning in warnings))
    if at.notes:
        blocks.append("\n".join(f"Note: {note}." for note in at.notes))
    return blocks


def _operations(measured: operations.Measured, n: int) -> str:
    head = (
        "operation",
        "reads",
        "writes",
        "ms",
        "best",
        "GB/s",
        "% of copy",
        "% of yardstick",
        "launches",
        "error",
        "",
    )
    rows = [head, _copy_row(measured.copy_seconds, n, measured.copy, len(head))]
    for r in measured.results:
        name = r.operation if r.tensors == 1 else f"{r.operation}, {r.tensors} tensors"
        if r.failed or r.seconds is None:
            rows.append((name, str(r.reads), str(r.writes), *["-"] * 7, f"failed: {r.failed}"))
            continue
        note = "" if r.versus_flat is None else f"{r.versus_flat.median:.2f}x the time of flat"
        rows.append(
            (
                name,
                str(r.reads),
                str(r.writes),
                _ms(r.seconds.median),
                _ms(r.seconds.smallest),
                f"{r.gb_per_s:.1f}",
                _percent(r.percent_of_copy),
                _percent(r.percent_of_yardstick, ranged=True),
                "-" if r.launches is None else f"{r.launches:g}",
                "-" if r.error is None else f"{r.error:.0e}",
                note or ("" if r.percent_of_yardstick else r.yardstick),
            )
        )
    return table(rows)


def _copy_row(seconds: Spread | None, n: int, variant: str, columns: int) -> tuple[str, ...]:
    if seconds is None:
        return ("copy", *["-"] * (columns - 2), "failed")
    cells = ["copy", "1", "1", _ms(seconds.median), _ms(seconds.smallest), f"{8 * n / seconds.median / 1e9:.1f}", "100"]
    return (*cells, *["-"] * (columns - len(cells) - 1), variant)


def _iteration(measured: iteration.Measured, n: int) -> str:
    head = ("CG iteration", "ms", "best", "GB/s", "% of copy", "ours is faster by", "launches", "error of x", "")
    rows: list[tuple[str, ...]] = [head]
    if measured.copy_seconds is not None:
        seconds = measured.copy_seconds
        times = (_ms(seconds.median), _ms(seconds.smallest), f"{8 * n / seconds.median / 1e9:.1f}")
        rows.append(("copy", *times, "100", "-", "-", "-", measured.copy))
    for r in measured.results:
        if r.failed or r.seconds is None:
            rows.append((r.contender, *["-"] * 7, r.left_out or f"failed: {r.failed}"))
            continue
        rows.append(
            (
                r.contender,
                _ms(r.seconds.median),
                "-" if r.best_seconds is None or r.best_seconds > r.seconds.median else _ms(r.best_seconds),
                f"{r.gb_per_s:.1f}",
                _percent(r.percent_of_copy),
                _times(r.ours_is_faster),
                "-" if r.launches is None else f"{r.launches:g}",
                "-" if r.error is None else f"{r.error:.0e}",
                r.note,
            )
        )
    lines = [table(rows)]
    lines.append(
        f"{measured.iterations} iterations a solve; counted for everyone: {iteration.VECTORS} vectors. "
        f"'Ours' is {measured.reference or '(none ran)'}."
    )
    return "\n".join(lines)


def _overhead(results: Results) -> str:
    rows = [("one call on tiny vectors" + (", time of the host" if results.on_gpu else ""), "us", "")]
    for name, found in results.overhead.items():
        value = found.get("microseconds")
        rows.append((name, "-" if value is None else f"{value['median']:.1f}", found.get("failed", "")))
    return table(rows)


def _ms(seconds: float) -> str:
    value = 1e3 * seconds
    return f"{value:.1f}" if value >= 100 else f"{value:.2f}" if value >= 1 else f"{value:.4f}"


def _percent(value: Spread | None, ranged: bool = False) -> str:
    if value is None:
        return "-"
    if not ranged:
        return f"{value.median:.0f}"
    return f"{value.median:.0f} [{value.low:.0f} … {value.high:.0f}]"


def _times(value: Spread | None) -> str:
    if value is None:
        return "-"
    return f"{value.median:.2f}x [{value.low:.2f} … {value.high:.2f}]"
