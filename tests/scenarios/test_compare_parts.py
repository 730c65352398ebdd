"""The parts of a comparison that need no training: choosing a rate, summing up seeds, writing files, drawing."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ncg_cuda import files
from ncg_cuda.compare import OPTIMIZERS, Run
from ncg_cuda.compare.plot import band, plot
from ncg_cuda.compare.records import Point, write_runs
from ncg_cuda.compare.search import choose
from ncg_cuda.compare.table import comparison, spread


def run(seed: int, rate: float, losses: list[float]) -> Run:
    """A run that recorded these losses, epoch 0 first."""
    curve = tuple(Point(e, loss, loss, 0.5, 0.1 * e + 0.01 * seed, 3.0 * e) for e, loss in enumerate(losses))
    last = losses[-1] if math.isfinite(losses[-1]) else None
    return Run(
        scenario="s",
        optimizer="adam",
        seed=seed,
        epochs=3,
        learning_rate=rate,
        batch_size=8,
        final_train_loss=last,
        final_val_loss=last,
        final_val_metric=last,
        val_metric_name="metric",
        seconds=curve[-1].seconds,
        tracing_seconds=1.0,
        gradient_equivalents=curve[-1].gradient_equivalents,
        hessian_products=0,
        steps=3,
        fallback_steps=0,
        skipped_steps=0,
        epochs_completed=len(losses) - 1,
        diverged=last is None,
        settings={},
        data="test",
        curve=curve,
    )


ADAM = OPTIMIZERS["adam"]
GOOD = [2.0, 1.0, 0.5, 0.25]


def test_choice_is_the_lowest_median_not_the_lowest_loss() -> None:
    rates = (0.1, 0.2, 0.3)
    finals = {0.1: (5.0, 5.0, 5.0), 0.2: (2.0, 2.1, 2.2), 0.3: (0.1, 3.0, math.inf)}
    runs = [run(seed, rate, [9.0, finals[rate][seed]]) for rate in rates for seed in range(3)]
    choice = choose("s", ADAM, rates, runs)
    assert choice.learning_rate == 0.2
    assert [r.final_train_loss for r in choice.runs] == [2.0, 2.1, 2.2]
    assert not choice.at_grid_edge
    assert choice.warning() is None


def test_choice_at_an_edge_is_visible() -> None:
    runs = [run(0, 0.1, [9.0, 1.0]), run(0, 0.2, [9.0, 2.0])]
    choice = choose("s", ADAM, (0.1, 0.2), runs)
    assert choice.at_grid_edge
    assert "edge of its grid 0.1 … 0.2" in str(choice.warning())
    assert "0.1 (grid edge)" in comparison([choice])
    assert not choose("s", ADAM, (0.1,), runs[:1]).at_grid_edge  # one rate is a setting, not a search


def test_everything_diverged() -> None:
    runs = [run(seed, rate, [9.0, math.nan]) for rate in (0.1, 0.2) for seed in range(2)]
    choice = choose("s", ADAM, (0.1, 0.2), runs)
    assert choice.learning_rate == 0.1
    assert "diverged at every learning rate" in str(choice.warning())
    assert "2 of 2" in comparison([choice])
    single = choose("s", ADAM, (0.1,), runs[:2])
    assert single.warning() == "s: Adam diverged at learning rate 0.1"  # one rate is no grid


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([1.0, 3.0, 2.0], "2 [1 … 3]"),
        ([0.12345678], "0.1235"),
        ([1.0, None, 2.0], "2 [1 … diverged]"),
        ([None, None], "diverged"),
        ([123456.7], "123457"),
        ([1.3552e34, 2.0], "6.776e+33 [2 … 1.355e+34]"),
    ],
)
def test_spread(values: list[float | None], text: str) -> None:
    assert spread(values) == text


def test_band_is_median_and_range_as_far_as_all_seeds_got() -> None:
    runs = [run(0, 0.1, [4.0, 3.0, 2.0, 1.0]), run(1, 0.1, [6.0, 5.0, 4.0, 3.0]), run(2, 0.1, [5.0, 1.0, math.nan])]
    found = band(choose("s", ADAM, (0.1,), runs))
    np.testing.assert_array_equal(found.median, [5.0, 3.0])
    np.testing.assert_array_equal(found.low, [4.0, 1.0])
    np.testing.assert_array_equal(found.high, [6.0, 5.0])
    np.testing.assert_allclose(found.x["seconds"], [0.01, 0.11])
    np.testing.assert_array_equal(found.x["gradient_equivalents"], [0.0, 3.0])
    assert found.diverged == 1


@pytest.mark.parametrize("losses", [GOOD, [math.nan], [1.0, math.inf], [0.0, 0.0, 0.0, 0.0]])
def test_plot_draws_whatever_happened(losses: list[float], tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    plot([choose("s", ADAM, (0.1,), [run(0, 0.1, losses), run(1, 0.1, GOOD)])], path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n")
    plot([], tmp_path / "nothing.png")
    assert [entry.name for entry in tmp_path.iterdir()] == ["picture.png"]


def test_curves_have_empty_cells_for_numbers_that_are_not_finite(tmp_path: Path) -> None:
    write_runs(tmp_path, [run(0, 0.1, [1.0, math.nan])])
    lines = (tmp_path / "curves.csv").read_text().splitlines()
    assert lines[0].startswith("scenario,optimizer,learning_rate,batch_size,seed,epoch,train_loss,val_loss,val_metric")
    assert lines[2] == "s,adam,0.1,8,0,1,,,0.5,0.1,3.0"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    files.write_json(path, [1])
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, [math.nan])

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_json(path, [2])
    assert path.read_text() == "[\n 1\n]\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]


def test_exploded_but_finite_runs_lose_every_choice() -> None:
    exploded = replace(run(0, 0.1, [1.0, 50.0]), diverged=True)
    assert exploded.loss_or_inf() == math.inf
    assert choose("s", ADAM, (0.1, 0.2), [exploded, run(0, 0.2, [1.0, 60.0])]).learning_rate == 0.2
