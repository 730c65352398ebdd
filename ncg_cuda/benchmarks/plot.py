"""The picture of a run: rates of the operations beside their yardsticks and the copy; times of the CG iteration."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ..files import write_atomic
from . import iteration, operations
from .records import AtSize, Results

_OURS, _THEIRS, _TABLE = "#1b6ca8", "#b8b8b8", "#7fb2d6"


def plot(results: Results, path: Path) -> None:
    """Draw the results as PNG to ``path``, written atomically. Nothing is drawn where nothing was measured."""
    shown = [at for at in results.sizes if _bars(at.operations) or _lines(at.iteration)]
    if not shown:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    most = {
        "o": max((len(_bars(at.operations)) for at in shown), default=0),
        "i": max((len(_lines(at.iteration)) for at in shown), default=0),
    }
    rows = [kind for kind, count in most.items() if count]
    heights = [1.1 + 0.32 * most[row] for row in rows]
    figure = Figure(figsize=(1.5 + 4.6 * len(shown), 0.9 + sum(heights)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(rows), len(shown), squeeze=False, height_ratios=heights)
    for row, kind in enumerate(rows):
        for column, at in enumerate(shown):
            axes = panels[row][column]
            if kind == "o":
                _draw_operations(axes, at)
            else:
                _draw_iteration(axes, at)
            if row == 0:
                axes.set_title(at.size.title, loc="left", fontsize=9, fontweight="bold")
    figure.suptitle(f"Kernels of ncg_cuda, {results.device}: medians and quartiles", fontsize=12)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    write_atomic(path, image.getvalue())


def _bars(measured: operations.Measured | None) -> list[operations.Result]:
    return [r for r in measured.results if r.seconds is not None and not r.failed] if measured else []


def _lines(measured: iteration.Measured | None) -> list[iteration.Result]:
    return [r for r in measured.results if r.seconds is not None and not r.failed] if measured else []


def _draw_operations(axes: Any, at: AtSize) -> None:
    bars = _bars(at.operations)
    _dress(axes, "GB/s by counted bytes", len(bars))
    if not bars or at.operations is None:
        return
    for y, r in enumerate(bars):
        assert r.seconds is not None
        colour = _OURS if r.tensors == 1 else _TABLE
        rate = r.bytes / r.seconds.median / 1e9
        low, high = r.bytes / r.seconds.high / 1e9, r.bytes / r.seconds.low / 1e9
        axes.barh(y, rate, height=0.62, color=colour)
        axes.plot([low, high], [y, y], color="0.15", linewidth=1.2)
        if r.yardstick_seconds is not None:
            mark = r.bytes / r.yardstick_seconds.median / 1e9
            label = None if axes.get_legend_handles_labels()[1] else "its yardstick"
            axes.plot([mark, mark], [y - 0.42, y + 0.42], color="#d1495b", linewidth=2.2, label=label)
    if at.operations.copy_seconds is not None:
        copy = 8 * at.size.n / at.operations.copy_seconds.median / 1e9
        axes.axvline(copy, color="0.35", linestyle="--", linewidth=1.1, label="copy")
    names = [r.operation if r.tensors == 1 else f"{r.operation}, {r.tensors} t." for r in bars]
    axes.set_yticks(range(len(bars)), names, fontsize=8)
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0.0, -0.02), ncols=2).set_zorder(5)
    axes.margins(y=0.02)
    axes.set_ylim(len(bars) + 0.1, -0.6)


def _draw_iteration(axes: Any, at: AtSize) -> None:
    lines = _lines(at.iteration)
    _dress(axes, "ms per CG iteration", len(lines))
    if not lines:
        return
    values = []
    for y, r in enumerate(lines):
        assert r.seconds is not None
        value = 1e3 * r.seconds.median
        values.append(value)
        axes.barh(y, value, height=0.62, color=_OURS if r.peer.startswith("ours") else _THEIRS)
        axes.plot([1e3 * r.seconds.low, 1e3 * r.seconds.high], [y, y], color="0.15", linewidth=1.2)
        axes.annotate(f" {value:.3g}", (max(value, 1e3 * r.seconds.high), y), va="center", fontsize=8)
    if max(values) > 12 * min(values):
        axes.set_xscale("log")
        axes.set_xlim(min(values) / 2, max(values) * 2.5)
    else:
        axes.set_xlim(0, max(values) * 1.2)
    axes.set_yticks(range(len(lines)), [r.contender for r in lines], fontsize=8)
    axes.set_ylim(len(lines) - 0.4, -0.6)


def _dress(axes: Any, label: str, count: int) -> None:
    axes.set_xlabel(label, fontsize=9)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(True, axis="x", which="major", color="0.88", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    if not count:
        axes.set_visible(False)
