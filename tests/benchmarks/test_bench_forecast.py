"""The benchmark's forecast, its comparison with a copy, its warnings and its picture."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ncg_cuda.benchmarks import iteration, measure, memory, operations, sizes, yardsticks
from ncg_cuda.benchmarks.devices import Cpu
from ncg_cuda.benchmarks.forecast import Forecast, announcement, duration
from ncg_cuda.benchmarks.measure import Rounds, Spread, interleave, unsteady
from ncg_cuda.benchmarks.peers import PEERS, select
from ncg_cuda.benchmarks.peers.compile_times import COMPILATIONS, compile_seconds
from ncg_cuda.benchmarks.plot import draw
from ncg_cuda.benchmarks.records import AtSize, Results
from ncg_cuda.benchmarks.report import report
from ncg_cuda.catalog import OPERATIONS


@pytest.fixture(scope="module")
def device() -> Cpu:
    device = Cpu(1)
    device.cache_bytes = 1 << 16
    return device


def test_the_copy_runs_right_before_what_is_compared_with_it() -> None:
    ran: list[str] = []

    def clock(name: str, seconds: float) -> Any:
        def run() -> float:
            ran.append(name)
            if name == "b" and ran.count("b") == 2:
                raise RuntimeError("gone")
            # the machine is three times as slow in the second repetition, for a and its copy alike
            return seconds * (3.0 if ran.count("a") == 2 else 1.0)

        return run

    rounds = interleave({name: clock(name, 4.0) for name in "ab"}, 3, beside=clock("-", 1.0))
    assert "".join(ran) == "-a-b-b-a-a"  # b is out after its second run
    assert len(rounds.beside["a"]) == len(rounds.seconds["a"]) == 3
    assert [math.isnan(value) for value in rounds.beside["b"]] == [False, False, True]
    assert rounds.all_beside() is not None
    found = rounds.percent("a", 2.0)
    assert found is not None
    assert found.count == 3
    assert rounds.percent("nobody", 1.0) is None


def test_repetitions_end_when_their_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(measure.time, "monotonic", lambda: now[0])

    def clock() -> float:
        now[0] += 1.0
        return 1.0

    for seconds, count in ((0.0, 20), (3.0, measure.LEAST), (10.0, 11), (100.0, 20)):
        assert len(interleave({"a": clock}, 20, seconds=seconds).seconds["a"]) == count


def test_a_percentage_of_an_unsteady_copy_is_not_given() -> None:
    rounds = Rounds({"a": [1.0, 1.0, 1.0], "b": [1.0, 1.0, 1.0]}, beside={"a": [0.5, 0.5, 9.0], "b": [9.0, 9.0, 0.5]})
    steady = rounds.percent("a", 1.0)
    assert steady is not None
    assert steady.median == 50.0
    assert rounds.percent("b", 1.0) is None


def test_rows_whose_median_is_far_from_their_best_are_named() -> None:
    assert unsteady([("steady", 2.9, 1.0), ("unknown", 9.0, None), ("odd", 9.0, 0.0)]) == []
    (text,) = unsteady([("steady", 1.0, 1.0), ("copy", 3.5, 1.0), ("x", 8.0, 2.0)])
    assert text.startswith("other work disturbed the machine")
    assert text.endswith("copy (3.5x), x (4.0x)")
    at = AtSize(sizes.Size("1e5", 100_000))
    at.iteration = iteration.Measured([line("NumPy", 1e-3, best=1e-4)])
    at.operations = operations.Measured(copy_seconds=Spread(4e-3, 1e-3, 5e-3, 1e-3, 5e-3, 5))
    said = " ".join(report(Results(Path(), {}, "cpu: a test", False, [at])).split())
    assert "Warning: other work disturbed the machine" in said
    assert "copy (4.0x)." in said
    assert "NumPy (10.0x)." in said
    assert len(at.as_json()["warnings"]) == 2


def test_the_fastest_variant_is_chosen_in_turns(device: Cpu) -> None:
    ran: list[str] = []
    name, _ = yardsticks.fastest(device, {n: (lambda n=n: [lambda: ran.append(n)]) for n in "ab"}, 3)  # type: ignore[misc]
    assert name in "ab"
    assert "".join(ran) == "abbaab"
    assert [yardsticks.tries(repeats) for repeats in (1, 3, 9, 15, 40)] == [1, 1, 3, 5, 5]


def test_memory_needed_grows_with_what_is_asked_for(device: Cpu) -> None:
    size = sizes.parse("1e8")[0]
    alone, everyone = (memory.iteration_bytes(size, False, select(names, device)) for names in ("none", "all"))
    assert 6e9 < alone < everyone
    assert 12e9 < everyone < 16e9  # 12 GB and more were seen
    assert memory.iteration_bytes(size, False, []) == memory.operations_bytes(size, []) == 0
    assert memory.operations_bytes(size, OPERATIONS) >= 4 * size.n * max(row.vectors for row in OPERATIONS)
    with pytest.raises(MemoryError, match=r"needs about 2\.5 GB of memory, and 1\.0 GB are free"):
        memory.require(2_500_000_000, 1_000_000_000)
    for refused in (
        lambda size: operations.measure(device, size, OPERATIONS, 1),
        lambda size: iteration.measure(device, size, select("none", device), 1),
    ):
        with pytest.raises(MemoryError, match="GB are free"):  # before anything is allocated
            refused(sizes.parse("1e12")[0])


def test_the_forecast_adds_up(device: Cpu) -> None:
    few, many = Forecast(device, 3, 0, quick=True), Forecast(device, 15, 0, quick=False)
    small, large, tensors = sizes.parse("1e5,25.6e6,resnet50")
    everyone = select("all", device)
    torch = [peer for peer in everyone if peer.name == "torch" and not peer.why_not(device)]
    assert 0 < many.operations(small, OPERATIONS) < many.operations(large, OPERATIONS)
    assert 0 < many.iteration(small, everyone) < many.iteration(large, everyone)
    assert many.operations(large, []) == many.iteration(large, []) == 0.0
    if torch:
        assert many.compilation(tensors, torch) == compile_seconds("torch.compile", 161) > 60
        assert few.compilation(tensors, torch) == 0.0
    assert compile_seconds("NumPy", 161) == 0.0
    assert {known.peer for known in COMPILATIONS.values()} <= {peer.name for peer in PEERS}
    text = announcement(many, device, [small, large], OPERATIONS, everyone)
    assert [line.split(":")[0] for line in text.splitlines()[1:3]] == ["  1e5", "  25.6e6"]
    assert [duration(s) for s in (0.2, 44, 700, 9000)] == ["1 s", "40 s", "12 minutes", "2.5 hours"]


def line(name: str, seconds: float, best: float | None = None) -> iteration.Result:
    times = Spread(seconds, 0.9 * seconds, 1.8 * seconds, 0.8 * seconds, 2 * seconds, 5)
    return iteration.Result(
        name, "numpy", "1e5", 100_000, 1, 36, seconds=times, best_seconds=best, error=0.0, gb_per_s=1.0
    )


def picture(count: int, times: tuple[float, ...]) -> Results:
    results = Results(Path(), {}, "cpu: 64 threads of a processor with the long name that some of them have", False)
    for size in sizes.parse("1e5,resnet50,25.6e6")[:count]:
        at = AtSize(size)
        bars = []
        for row in OPERATIONS:
            for pieces in {1, size.tensors}:
                found = operations.Result(str(row), size.label, size.n, pieces, 2, 0, 8 * size.n)
                found.seconds = found.yardstick_seconds = line("", 1e-3 * pieces).seconds
                bars.append(found)
        at.operations = operations.Measured(bars, copy_seconds=line("", 2e-4).seconds)
        lines = [line(f"a contender with a name {k}", value) for k, value in enumerate(times)]
        at.iteration = iteration.Measured(lines)
        results.sizes.append(at)
    return results


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("times", [(1e-3, 2e-3, 3e-3), (1e-4, 5e-2, 1.0)])
def test_nothing_in_the_picture_is_cut_off_or_overlaps(count: int, times: tuple[float, ...]) -> None:
    figure = draw(picture(count, times))
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    whole = figure.bbox
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert len(panels) == 2 * count

    def inside(box: Any) -> bool:
        return bool(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= whole.width and box.y1 <= whole.height)

    (legend,) = figure.legends
    parts = {"title": figure._suptitle.get_window_extent(renderer), "legend": legend.get_window_extent(renderer)}
    for k, axes in enumerate(panels):
        shown = [axes.get_tightbbox(renderer), *(text.get_window_extent(renderer) for text in axes.texts)]
        parts[f"panel {k}"] = type(shown[0]).union(shown)
        ends = axes.get_xlim()
        for drawn in axes.lines:
            assert np.all(np.asarray(drawn.get_xdata(), dtype=float) <= ends[1])  # no range leaves its panel
        labels = [label.get_window_extent(renderer) for label in axes.get_yticklabels()]
        assert not any(a.overlaps(b) for a, b in itertools.pairwise(labels))
    for name, box in parts.items():
        assert inside(box), name
        for other, second in parts.items():
            assert name == other or not box.overlaps(second), (name, other)


def test_a_time_that_the_clock_cannot_tell_is_no_failure(device: Cpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iteration.SolveClock, "__call__", lambda self: -1e-9)
    monkeypatch.setattr(iteration.SolveClock, "best", lambda self: -1e-9)
    size = sizes.Size("640", 640)
    measured = iteration.measure(device, size, select("none", device), 1)
    assert {r.left_out for r in measured.results} == {"shorter than the clock can tell"}
    assert not any(r.failed or r.seconds for r in measured.results)
    assert not AtSize(size, iteration=measured).measured()


def test_the_iteration_is_compared_with_copies_of_its_own(device: Cpu) -> None:
    measured = iteration.measure(device, sizes.Size("20000", 20_000), select("none", device), 3)
    assert set(measured.rounds.beside) == {r.contender for r in measured.results}
    assert measured.copy_seconds is not None
    assert measured.copy_seconds.count == 3 * len(measured.results)
