"""``ncg-cuda bench step``: the whole of it on a tiny model, and its parts on figures made up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ncg_cuda.benchmarks.measure import Rounds, spread
from ncg_cuda.benchmarks.step import command, plot, problems, records, report, targets, timing
from ncg_cuda.cli import main

Capture = pytest.CaptureFixture[str]


def seconds(step: float = 2.0, gradient: float = 0.1) -> dict[str, list[float]]:
    return {
        "gradient": [gradient, 2 * gradient],
        "step": [step, 2 * step],
        "step of none": [0.2, 0.4],
        "vector work": [0.15, 0.3],
        "vector work of none": [0.02, 0.04],
        "stand-ins": [0.05, 0.1],
        "linearisation": [0.1, 0.2],
    }


def found(**changes: Any) -> dict[str, Any]:
    record = {"products": 20, "peak": 500, "peak_of_tracing": 200, "tau": 1.0, "nodes": 12_345}
    return record | {"trace_seconds": 3.0, "first_seconds": 4.0, "seconds": seconds()} | changes


def of_model(name: str = "resnet50", **changes: Any) -> records.OfModel:
    model = problems.MODELS[name]
    of = records.OfModel(model, model.batch, 64, weights=1000, tensors=3, baseline_bytes=100, gradient_bytes=200)
    of.rows.append(records.Row.of("hessian", "fused", found(**changes), 100))
    return of


def test_the_parts_add_up_to_the_step() -> None:
    parts = timing.split(Rounds(seconds()))
    assert parts is not None
    values = {name: part.smallest for name, part in vars(parts).items()}  # of the first repetition
    assert values["linearisation"] == pytest.approx(0.1)
    assert values["vector_work"] == pytest.approx(0.15 - 0.05)
    assert values["products"] == pytest.approx((2.0 - 0.2) - (0.15 - 0.02 - 0.05))
    assert sum(values.values()) == pytest.approx(2.0)


def test_a_step_is_counted_in_gradients_of_its_repetition() -> None:
    row = of_model().rows[0]
    assert row.gradients is not None
    assert (row.gradients.low, row.gradients.high) == pytest.approx((20.0, 20.0))
    assert sum(row.in_gradients(part) or 0.0 for part in report.PARTS) == pytest.approx(20.0)
    assert row.share("vector_work") == pytest.approx(5.0)
    assert (row.peak_bytes, row.tracing_bytes) == (400, 100)
    of = of_model()
    assert (of.memory_ratio(row), of.process_ratio(row)) == pytest.approx((2.0, 500 / 300))


def test_targets_say_how_far_away_they_are() -> None:
    verdicts = {v.target: v for v in targets.judge([of_model()], 20)}
    assert {name: v.word for name, v in verdicts.items()} == {
        "time of a step": "met",
        "vector work in a step": "missed",
        "peak memory, of processes": "met",
        "tracing": "met",
    }
    assert verdicts["time of a step"].distance == "-47 %"
    assert verdicts["vector work in a step"].distance == "+25 %"
    late = targets.judge([of_model(trace_seconds=31.0)], 20)
    assert [v.word for v in late if v.target == "tracing"] == ["missed"]


@pytest.mark.parametrize("change", [{"batch": 9}, {"image_size": 32}])
def test_targets_hold_at_their_own_setting_only(change: dict[str, int]) -> None:
    assert targets.judge([replace(of_model(), **change)], 20) == []
    assert targets.judge([of_model()], 19) == []


def test_a_failed_configuration_is_shown_and_not_judged(tmp_path: Path) -> None:
    of = of_model("mlp")
    of.rows.append(records.Row("gauss-newton", "fused", failed="3 products were made instead of 20"))
    results = records.Results(tmp_path, {"iterations": 20}, [of])
    results.verdicts = targets.judge([of], 20)
    text = report.report(results)
    assert "failed: 3 products were made instead of 20" in text
    assert [v.word for v in results.verdicts] == ["met", "not measured"]
    assert plot.draw(results) is not None
    assert plot.draw(records.Results(tmp_path, {"iterations": 20})) is None


def test_a_bar_ends_where_its_label_says() -> None:
    """A step faster than the sum of its parts, by noise: the rest is negative."""
    quick = seconds()
    quick["step of none"] = [0.05, 0.1]
    row = of_model(seconds=quick).rows[0]
    assert row.gradients is not None
    assert (row.in_gradients("rest") or 0.0) < 0
    lengths = plot.lengths(row)
    assert list(lengths) == list(report.PARTS)
    assert min(lengths.values()) >= 0
    assert lengths["rest"] == 0
    assert lengths["products"] < (row.in_gradients("products") or 0.0)
    assert sum(lengths.values()) == pytest.approx(row.gradients.median)


def test_the_report_fits_into_120_columns(tmp_path: Path) -> None:
    of = of_model(peak=123_456_789_012, nodes=1_234_567, seconds=seconds(step=1234.5))
    of.rows.append(records.Row("gauss-newton", "reference", failed="RuntimeError: " + "many words " * 40))
    results = records.Results(tmp_path, {"iterations": 20}, [of])
    results.verdicts = targets.judge([of], 20)
    lines = report.report(results).splitlines()
    assert max(map(len, lines)) <= 120
    (time,) = (line for line in lines if "vectors %" in line)
    (memory,) = (line for line in lines if "x gradient" in line and "curvature" in line)
    assert "MB" not in time
    assert memory.split()[:3] == ["curvature", "design", "MB"]


def test_the_gradient_runs_before_and_after_each_step() -> None:
    order: list[str] = []

    def clock(name: str) -> Any:
        return lambda: order.append(name) or 1.0

    rounds = timing.run({"step": clock("step"), "other": clock("other")}, clock("g"), 2, 0.0, lambda name: None)
    assert order.count("g") == 3 * 2 * (1 + timing.GRADIENTS)  # a warm-up and two repetitions
    at = order.index("step")
    assert order[at - 1] == order[at + 1] == "g"
    assert len(rounds.seconds["gradient"]) == len(rounds.seconds["step"]) == 2
    assert all(value > 0 for value in rounds.seconds["gradient"])


def test_a_part_that_fails_after_the_warm_up_fails_the_configuration() -> None:
    calls: list[int] = []

    def fails() -> float:
        calls.append(1)
        if len(calls) > 1:
            raise ValueError("no memory")
        return 1.0

    with pytest.raises(RuntimeError, match="other: ValueError: no memory"):
        timing.run({"step": lambda: 1.0, "other": fails}, lambda: None, 2, 0.0, lambda name: None)


def test_nothing_is_made_of_failed_repetitions() -> None:
    assert timing.split(Rounds({name: [float("nan")] for name in seconds()})) is None
    assert spread([]) is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--models", "resnet51"], "resnet50"),
        (["--curvature", "fisher"], "gauss-newton"),
        (["--designs", "unfused"], "reference"),
        (["--designs", "reference", "--curvature", "gauss-newton"], "nothing is left"),
        (["--models", "resnet50", "--image-size", "16"], "at least 32"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_runs(
    arguments: list[str], said: str, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    assert main(["bench", "step", *arguments, "--out", str(out)]) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_a_worker_that_dies_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 'not JSON'\necho 'no more memory' >&2\nkill -9 $$\n")
    program.chmod(0o755)
    monkeypatch.setattr(command.sys, "executable", str(program))
    with pytest.raises(command.WorkerError, match=r"signal 9 .*no more memory"):
        command._work(command.Plan(tmp_path, quiet=True), {}, "x")


def test_it_measures_a_model_from_end_to_end(tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("tensorflow")
    out = tmp_path / "new"
    arguments = ["--models", "mlp-small", "--iterations", "3", "--repeats", "1", "--curvature", "hessian"]
    assert main(["bench", "step", *arguments, "--designs", "fused,reference", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "tracing MLP 64-48-32-10 (hessian, fused)" in printed.err
    assert {path.name for path in out.iterdir()} == {"step.json", "step.txt", "step.png"}
    assert (out / "step.txt").read_text().strip() in printed.out
    assert (out / "step.png").read_bytes().startswith(b"\x89PNG\r\n")
    record = json.loads((out / "step.json").read_text())
    assert record["status"] == "complete"
    (model,) = record["models"]
    assert (model["weights"], model["tensors"], model["batch"]) == (5018, 6, 32)
    for row in model["rows"]:
        assert (row["failed"], row["products"]) == ("", 3)
        assert row["gradients"]["median"] > 0
        assert row["nodes"] > 100
        assert row["peak_bytes"] >= row["tracing_bytes"]
