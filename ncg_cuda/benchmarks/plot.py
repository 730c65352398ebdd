"""The picture of a run: rates of the operations beside their yardsticks and the copy; times of the CG iteration."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path
from typing import Any

from ..files import write_atomic
from . import iteration, operations
from .records import AtSize, Results

_OURS, _THEIRS, _TABLE = "#1b6ca8", "#b8b8b8", "#7fb2d6"
_RANGE, _YARDSTICK, _COPY = "0.15", "#d1495b", "0.35"


def plot(results: Results, path: Path) -> None:
    """Draw the results as PNG to ``path``, written atomically. Nothing is drawn where nothing was measured."""
    figure = draw(results)
    if figure is None:
        return
    image = io.BytesIO()
    figure.savefig(image, format="png")
    write_atomic(path, image.getvalue())


def draw(results: Results) -> Any:
    """The figure, on a canvas of its own; None where nothing was measured."""
    shown = [at for at in results.sizes if _bars(at.operations) or _lines(at.iteration)]
    if not shown:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    most = {
        "o": max((len(_bars(at.operations)) for at in shown), default=0),
        "i": max((len(_lines(at.iteration)) for at in shown), default=0),
    }
    rows = [kind for kind, count in most.items() if count]
    heights = [1.1 + 0.32 * most[row] for row in rows]
    title = textwrap.fill(f"Kernels of ncg_cuda, {results.device}: medians and quartiles", 60 * len(shown))
    height = 1.3 + 0.25 * title.count("\n") + sum(heights)
    figure = Figure(
        figsize=(1.5 + 4.6 * len(shown), height), dpi=110, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    )
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
                axes.set_title(at.size.title.replace(", ", "\n", 1), loc="left", fontsize=9, fontweight="bold")
    figure.suptitle(title, fontsize=12)
    _add_legend(figure, shown)
    return figure


def _bars(measured: operations.Measured | None) -> list[operations.Result]:
    return [r for r in measured.results if r.seconds is not None and not r.failed] if measured else []


def _lines(measured: iteration.Measured | None) -> list[iteration.Result]:
    return [r for r in measured.results if r.seconds is not None and not r.failed] if measured else []


def _add_legend(figure: Any, shown: list[AtSize]) -> None:
    """One for all panels, below them: inside of a panel no place stays free, however long its bars are."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries: list[Any] = [Patch(color=_OURS, label="ncg_cuda")]
    bars = [bar for at in shown for bar in _bars(at.operations)]
    if any(bar.tensors > 1 for bar in bars):
        entries.append(Patch(color=_TABLE, label="ncg_cuda, product in tensors"))
    if any(not line.peer.startswith("ours") for at in shown for line in _lines(at.iteration)):
        entries.append(Patch(color=_THEIRS, label="other libraries"))
    entries.append(Line2D([], [], color=_RANGE, linewidth=1.2, label="quartiles"))
    if bars:
        entries.append(Line2D([], [], color=_YARDSTICK, linewidth=2.2, label="yardstick of the operation"))
        entries.append(Line2D([], [], color=_COPY, linestyle="--", linewidth=1.1, label="copy"))
    figure.legend(
        handles=entries, loc="outside lower center", ncols=3 if len(shown) == 1 else 6, frameon=False, fontsize=8
    )


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
        axes.plot([low, high], [y, y], color=_RANGE, linewidth=1.2)
        if r.yardstick_seconds is not None:
            mark = r.bytes / r.yardstick_seconds.median / 1e9
            axes.plot([mark, mark], [y - 0.42, y + 0.42], color=_YARDSTICK, linewidth=2.2)
    if at.operations.copy_seconds is not None:
        copy = 8 * at.size.n / at.operations.copy_seconds.median / 1e9
        axes.axvline(copy, color=_COPY, linestyle="--", linewidth=1.1)
    names = [r.operation if r.tensors == 1 else f"{r.operation}, {r.tensors} tensors" for r in bars]
    axes.set_yticks(range(len(bars)), names, fontsize=8)
    axes.set_ylim(len(bars) - 0.4, -0.6)


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
        axes.plot([1e3 * r.seconds.low, 1e3 * r.seconds.high], [y, y], color=_RANGE, linewidth=1.2)
        axes.annotate(f" {value:.3g}", (max(value, 1e3 * r.seconds.high), y), va="center", fontsize=8)
    most = max([1e3 * r.seconds.high for r in lines if r.seconds is not None] + values)
    if most > 12 * min(values):
        axes.set_xscale("log")
        axes.set_xlim(min(values) / 2, most * (most / min(values)) ** 0.2)
    else:
        axes.set_xlim(0, most * 1.2)  # room for the figure beside the longest bar
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
