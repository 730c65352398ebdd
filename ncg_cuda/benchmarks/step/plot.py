"""The picture of a run: a bar per configuration, in gradients, divided into the parts of a step."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ...files import write_atomic
from . import targets
from .records import OfModel, Results, Row
from .report import PARTS, title

_COLOURS = dict(zip(PARTS, ("#7fb2d6", "#1b6ca8", "#d1495b", "#b8b8b8"), strict=True))
_LABELS = {"vector_work": "vector work", "rest": "rest (below zero: taken off the longest part)"}
_TARGET = "0.1"


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
    shown = [of for of in results.models if _measured(of)]
    if not shown:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    heights = [0.9 + 0.36 * len(_measured(of)) for of in shown]
    figure = Figure(figsize=(9.0, 1.4 + sum(heights)), dpi=110, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights)
    iterations = results.command["iterations"]
    marked = False
    for of, (axes,) in zip(shown, panels, strict=True):
        marked |= _draw(axes, of, iterations)
    figure.suptitle(
        f"A Newton step of {iterations} CG iterations, in gradients of the same model and batch", fontsize=11
    )
    entries: list[Any] = [Patch(color=_COLOURS[part], label=_LABELS.get(part, part)) for part in PARTS]
    entries.append(Line2D([], [], color="0.15", linewidth=1.2, label="quartiles of the whole"))
    if marked:
        entries.append(Line2D([], [], color=_TARGET, linestyle="--", linewidth=1.4, label="target of the fused design"))
    figure.legend(handles=entries, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def _measured(of: OfModel) -> list[Row]:
    return [row for row in of.rows if row.gradients is not None and row.split is not None]


def lengths(row: Row) -> dict[str, float]:
    """The parts of a measured row's bar in gradients, none negative; they add up to the median of the whole.

    Each part is a difference of times and can fall below zero by their noise, the rest above all; it is then taken off
    the longest part.
    """
    assert row.gradients is not None
    whole = row.gradients.median
    parts = {part: row.in_gradients(part) or 0.0 for part in PARTS}
    # Medians of parts do not quite add up to the median of the whole.
    parts["rest"] = whole - sum(value for part, value in parts.items() if part != "rest")
    negative = sum(min(0.0, value) for value in parts.values())
    out = {part: max(0.0, value) for part, value in parts.items()}
    longest = max(out, key=lambda part: out[part])
    out[longest] += negative
    return out


def _draw(axes: Any, of: OfModel, iterations: int) -> bool:
    rows = _measured(of)
    axes.set_title(title(of), loc="left", fontsize=9, fontweight="bold")
    axes.set_xlabel("gradients", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(True, axis="x", color="0.88", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    marked, most = False, 0.0
    for y, row in enumerate(rows):
        assert row.gradients is not None
        left = 0.0
        for part, width in lengths(row).items():
            axes.barh(y, width, left=left, height=0.66, color=_COLOURS[part])
            left += width
        axes.plot([row.gradients.low, row.gradients.high], [y, y], color="0.15", linewidth=1.2)
        edge = max(left, row.gradients.high)
        axes.annotate(f"  {row.gradients.median:.1f}", (edge, y), va="center", fontsize=8)
        most = max(most, edge)
        target = targets.GRADIENTS.get((of.model.name, row.curvature))
        if row.design == "fused" and target is not None and iterations == targets.ITERATIONS:
            axes.plot([target, target], [y - 0.45, y + 0.45], color=_TARGET, linestyle="--", linewidth=1.4)
            most, marked = max(most, target), True
    axes.set_xlim(0, 1.12 * most)
    axes.set_yticks(range(len(rows)), [f"{row.curvature}, {row.design}" for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    return marked
