"""The picture of a comparison: training loss against epochs, seconds and gradient equivalents, a row per scenario."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import write_atomic
from .search import Choice

_AXES = (
    ("epoch", "epochs"),
    ("seconds", "training time [s]"),
    ("gradient_equivalents", "gradient equivalents"),
)
_LOG_Y_RATIO = 5.0
_LOG_X_RATIO = 6.0


@dataclass(frozen=True)
class Band:
    """Median and range of the training loss over the seeds, at the epochs that every seed reached with a finite
    loss.
    """

    x: dict[str, NDArray[np.float64]]
    """Per axis, the median over the seeds at each epoch."""
    median: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    diverged: int
    """How many seeds ended in NaN or infinity."""


def band(choice: Choice) -> Band:
    """The band of the runs at the chosen learning rate; shorter than the runs if a seed diverged."""
    curves = [[point for point in run.curve if math.isfinite(point.train_loss)] for run in choice.runs]
    length = min(len(curve) for curve in curves)
    losses = np.array([[point.train_loss for point in curve[:length]] for curve in curves], dtype=np.float64)
    x = {
        name: np.median([[getattr(point, name) for point in curve[:length]] for curve in curves], axis=0)
        for name, _ in _AXES
    }
    diverged = sum(run.diverged for run in choice.runs)
    return Band(x, np.median(losses, axis=0), losses.min(axis=0), losses.max(axis=0), diverged)


def plot(choices: list[Choice], path: Path) -> None:
    """Draw ``choices`` as PNG to ``path``, written atomically. Nothing is drawn where there is no run."""
    if not choices:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scenarios = list(dict.fromkeys(choice.scenario for choice in choices))
    figure = Figure(figsize=(13.0, 0.7 + 3.6 * len(scenarios)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(scenarios), len(_AXES), squeeze=False, sharey="row")
    for row, name in zip(panels, scenarios, strict=True):
        _draw_scenario(row, name, [choice for choice in choices if choice.scenario == name])
    seeds = len(choices[0].runs)
    figure.suptitle(
        f"Training loss over the full training set: median and range of {seeds} seed{'s' * (seeds > 1)}", fontsize=12
    )
    image = io.BytesIO()
    figure.savefig(image, format="png")
    write_atomic(path, image.getvalue())


def _draw_scenario(row: Any, name: str, group: list[Choice]) -> None:
    bands = [(choice, band(choice)) for choice in group]
    bands = [(choice, area) for choice, area in bands if len(area.median)]
    for axes, (key, label) in zip(row, _AXES, strict=True):
        for choice, area in bands:
            colour = choice.competitor.colour
            text = f"{choice.competitor.label} ({choice.learning_rate:g})"
            if area.diverged:
                text += f", {area.diverged} of {len(choice.runs)} diverged"
            marker = "o" if len(area.median) <= 12 else None
            axes.plot(area.x[key], area.median, color=colour, label=text, linewidth=1.8, marker=marker, markersize=3.5)
            axes.fill_between(area.x[key], area.low, area.high, color=colour, alpha=0.22, linewidth=0)
            if area.diverged:
                axes.plot(area.x[key][-1:], area.median[-1:], marker="X", color=colour, markersize=9, linestyle="none")
        axes.set_xlabel(label)
        axes.grid(True, which="major", color="0.88", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
        _scale_x(axes, key, [area for _, area in bands])
    _scale_y(row[0], [area for _, area in bands])
    row[0].set_title(name, loc="left", fontsize=11, fontweight="bold")
    row[0].set_ylabel("training loss")
    if bands:
        row[-1].legend(frameon=False, fontsize=9, title="optimizer (learning rate)", title_fontsize=9)


def _scale_x(axes: Any, key: str, bands: list[Band]) -> None:
    """Optimizers whose work differs by an order of magnitude share an axis only on a logarithmic scale."""
    ends = [area.x[key][-1] for area in bands if area.x[key][-1] > 0]
    if key != "epoch" and ends and max(ends) > _LOG_X_RATIO * min(ends):
        axes.set_xscale("log", nonpositive="mask")  # epoch 0, at x = 0, is off: curves begin at their first epoch
    elif ends:
        axes.set_xlim(0, max(ends) * 1.03)


def _scale_y(axes: Any, bands: list[Band]) -> None:
    low = min((float(area.low.min()) for area in bands), default=0.0)
    high = max((float(area.median.max()) for area in bands), default=0.0)
    if low > 0 and high > _LOG_Y_RATIO * low:
        axes.set_yscale("log")
