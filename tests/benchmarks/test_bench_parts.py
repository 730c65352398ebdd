"""The benchmark's parts: sizes, statistics, yardsticks against NumPy, the recorded problem, targets, report."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ncg_cuda import _core
from ncg_cuda.benchmarks import iteration, measure, operations, sizes, targets, yardsticks
from ncg_cuda.benchmarks.devices import Cpu, choose
from ncg_cuda.benchmarks.measure import Spread, interleave, ratio, reason, spread
from ncg_cuda.benchmarks.peers import PEERS, Contender, Peer, select
from ncg_cuda.benchmarks.problem import TAU, Problem
from ncg_cuda.benchmarks.records import AtSize, Results
from ncg_cuda.benchmarks.report import report, table
from ncg_cuda.catalog import OPERATIONS
from ncg_cuda.compare.errors import UsageError
from ncg_cuda.layout import Layout

N = 5_003  # odd, more than one block, no multiple of anything


@pytest.fixture(scope="module")
def device() -> Cpu:
    device = Cpu(1)  # threads that wait for each other take long where others use the machine
    device.cache_bytes = 1 << 16
    return device


def test_resnet50_has_its_161_tensors() -> None:
    shapes = sizes.resnet50_shapes()
    assert len(shapes) == 161
    assert sum(math.prod(shape) for shape in shapes) == 25_557_032
    assert shapes[0] == (7, 7, 3, 64)
    assert shapes[-2:] == [(2048, 1000), (1000,)]
    assert sum(len(shape) == 4 for shape in shapes) == 53
    assert len(sizes.resnet50_shapes(width=4, classes=10)) == 161


def test_sizes_are_read() -> None:
    found = sizes.parse(sizes.DEFAULT)
    assert [(size.label, size.n, size.tensors) for size in found] == [
        ("1e5", 100_000, 1),
        ("1e6", 1_000_000, 1),
        ("25.6e6", 25_600_000, 1),
        ("resnet50", 25_557_040, 161),
        ("1e8", 100_000_000, 1),
    ]
    assert found[3].title == "n = 25,557,040 float32, 161 tensors (resnet50)"
    assert len(sizes.parse("64, 64")) == 1
    for wrong in ("", "1e5,many", "1.5", "8", "-1e5", "nan", "1e13"):
        with pytest.raises(UsageError, match="whole number of elements"):
            sizes.parse(wrong)


def test_spread_and_ratio() -> None:
    assert spread([3.0, 1.0, 2.0, math.nan, 5.0, 4.0]) == Spread(3.0, 2.0, 4.0, 1.0, 5.0, 5)
    assert spread([7.0]) == Spread(7.0, 7.0, 7.0, 7.0, 7.0, 1)
    assert spread([math.nan, math.inf]) is None
    # repetition by repetition: a slow machine in one of them does not count twice
    found = ratio([2.0, 20.0, 2.2], [1.0, 10.0, 1.0])
    assert found is not None
    assert found.median == 2.0
    assert ratio([1.0, math.nan], [0.0, 1.0]) is None


def test_interleaved_rounds_take_turns_and_survive_a_failure() -> None:
    ran: list[str] = []

    def clock(name: str) -> Any:
        def run() -> float:
            ran.append(name)
            if name == "b" and ran.count("b") == 2:
                raise RuntimeError("gone\nfor good")
            return float(len(ran))

        return run

    rounds = interleave({name: clock(name) for name in "abc"}, 3)
    assert "".join(ran) == "abcbcaca"  # each round starts with another one; b is out after its second
    assert rounds.failed == {"b": "RuntimeError: gone for good"}
    assert [math.isnan(value) for value in rounds.seconds["b"]] == [False, True, True]
    assert all(len(values) == 3 for values in rounds.seconds.values())
    assert reason(ValueError("x" * 500)).endswith("...")
    assert len(reason(ValueError("x" * 500))) == 200


def test_every_operation_has_a_yardstick() -> None:
    for row in OPERATIONS:
        yardsticks.check_shape(*row.stream)


@pytest.mark.parametrize("shape", _core.STREAM_SHAPES)
@pytest.mark.parametrize("variant", range(len(yardsticks.CPU_VARIANTS)))
def test_streams_do_their_work(shape: tuple[int, int, int], variant: int) -> None:
    reads, writes, count = shape
    rng = np.random.default_rng(variant)
    for n, threads in ((N, 1), (3, 1), (200_007, 2)):
        vectors = [rng.random(n, dtype=np.float32) for _ in range(count)]
        before = [v.copy() for v in vectors]
        (total,) = yardsticks.stream(vectors, reads, writes, scale=0.75, variant=variant, threads=threads)()
        exact = sum(float(v.sum(dtype=np.float64)) for v in before[:reads])
        assert total == pytest.approx(exact, rel=1e-6)
        for k, vector in enumerate(vectors):
            stored = k >= count - writes
            expected = np.float32(0.75) * before[k if k < reads else 0] if stored else before[k]
            np.testing.assert_array_equal(vector, expected)


@pytest.mark.parametrize("variant", range(len(yardsticks.CPU_COPIES)))
def test_copies_copy(variant: int) -> None:
    for n, threads in ((N, 1), (N, 2), (3, 2)):
        room = np.zeros(n + 2, np.float32)
        source, target = np.random.default_rng(0).random(n, dtype=np.float32), room[:n]
        yardsticks.copy(source, target, variant=variant, threads=threads)()
        np.testing.assert_array_equal(target, source)
        assert not room[n:].any()


def test_yardsticks_refuse_what_they_cannot_do() -> None:
    a, b = np.ones(9, np.float32), np.ones(9, np.float32)
    with pytest.raises(ValueError, match=r"no yardstick reads 7 .* csrc/ncg/yardsticks/shapes.h"):
        yardsticks.check_shape(7, 7, 7)
    with pytest.raises(ValueError, match="must be float32"):
        yardsticks.stream([a, b.astype(np.float64)], 2, 0)
    with pytest.raises(ValueError, match="variant: 9; known are 0 to 3"):
        yardsticks.stream([a, b], 2, 0, variant=9)
    with pytest.raises(ValueError, match="one size"):
        yardsticks.copy(a, b[:4])


def test_fastest_skips_what_the_device_refuses(device: Cpu) -> None:
    def refused() -> Any:
        raise RuntimeError("too many resources")

    name, clock = yardsticks.fastest(
        device, {"slow": lambda: [lambda: time.sleep(0.002)], "refused": refused, "fast": lambda: [lambda: None]}
    )
    assert name == "fast"
    assert clock() < 0.002
    with pytest.raises(RuntimeError, match="refused: RuntimeError: too many resources"):
        yardsticks.fastest(device, {"refused": refused})


def test_operands_that_take_turns_exceed_the_cache(device: Cpu) -> None:
    assert device.copies(4, 1000) * 4 * 4 * 1000 >= 3 * device.cache_bytes
    assert device.copies(4, 10**9) == 1
    assert device.empty(37).ctypes.data % 64 == 0


@pytest.mark.parametrize("layout", [None, Layout([(40, 5), (3,), (), (77,)])])
def test_operations_are_counted_verified_and_compared(device: Cpu, layout: Layout | None) -> None:
    size = sizes.Size("test", N if layout is None else layout.size, layout)
    measured = operations.measure(device, size, OPERATIONS, 2)
    assert measured.copy_seconds is not None
    traffic = {str(row): row.traffic for row in OPERATIONS}
    names = [(r.operation, r.tensors) for r in measured.results]
    if layout is None:
        assert names == [(str(row), 1) for row in OPERATIONS]
    else:
        assert names == [(str(row), t) for row in OPERATIONS if row.takes_table for t in (1, 4)]
    for r in measured.results:
        assert not r.failed
        assert (r.reads, r.writes) == traffic[r.operation]
        assert r.bytes == 4 * size.n * sum(traffic[r.operation])
        assert r.error is not None
        assert r.error < 1e-5
        assert r.seconds is not None
        assert r.seconds.count == 2
        assert r.percent_of_yardstick is not None
        assert (r.versus_flat is not None) == (r.tensors > 1)


def test_an_operation_that_is_wrong_is_reported(device: Cpu) -> None:
    from dataclasses import replace

    row = next(row for row in OPERATIONS if row.name == "dots")
    wrong = replace(row, exact=lambda a, b: ([], (a @ b + 1e-3 * a.size, a @ a, b @ b)))
    (result,) = operations.measure(device, sizes.Size("test", N), [wrong], 1).results
    assert result.failed.startswith("ArithmeticError: differs from the reference by ")
    assert result.seconds is None


def test_the_problem_is_a_real_solve(device: Cpu) -> None:
    layout = Layout([(500,), (3, 3), ()])
    problem = Problem(device, sizes.Size("test", layout.size, layout), 3)
    d, b = problem.diagonal.astype(np.float64), problem.b.astype(np.float64)
    x, r, p = np.zeros_like(b), b.copy(), b.copy()
    for hp, q_ready in zip(problem.products, problem.damped(), strict=True):
        q = (d + TAU) * p
        np.testing.assert_allclose(hp, d * p, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(q_ready, q, rtol=1e-3, atol=1e-4)
        alpha = (r @ r) / (p @ q)
        x, new = x + alpha * p, r - alpha * q
        p, r = new + (new @ new) / (r @ r) * p, new
    assert problem.error(x.astype(np.float32)) < 1e-5
    assert problem.error(problem.tensors(x.astype(np.float32))) < 1e-5
    assert problem.error(np.zeros(layout.size, np.float32)) == 1.0
    with pytest.raises(ValueError, match="3 elements instead of"):
        problem.error(np.zeros(3))


def fake(monkeypatch: pytest.MonkeyPatch, *contenders: Contender) -> Peer:
    peer = Peer("fake", "Fake", "fake", ("cpu",), ())
    monkeypatch.setattr(Peer, "contenders", lambda self, problem: list(contenders))
    return peer


def test_contenders_that_fail_are_reported(device: Cpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise ImportError("no such library.so")

    def slow() -> Any:
        while True:
            time.sleep(0.01)

    def late() -> Any:
        calls: list[int] = []

        def solve(iterations: int) -> Any:
            calls.append(iterations)
            if len(calls) > 2:
                raise MemoryError("out of memory")
            return truth

        return solve

    size = sizes.Size("test", N)
    problem = Problem(device, size, 12)
    truth = problem.scratch[0].copy()
    peer = fake(
        monkeypatch,
        Contender("broken", broken),
        Contender("slow", slow),
        Contender("wrong", lambda: lambda iterations: np.zeros(N, np.float32)),
        Contender("late", late),
    )
    measured = iteration.measure(device, size, [peer], 2, peer_seconds=0.3)
    said = {r.contender: r.failed for r in measured.results}
    assert said["broken"] == "ImportError: no such library.so"
    assert said["slow"].startswith("TimeoutError: its preparation took longer than 0.3 s")
    assert said["wrong"] == "ArithmeticError: does not solve the system: relative error 1.0e+00"
    assert said["late"] == "MemoryError: out of memory"
    assert all(r.seconds is None for r in measured.results)


def test_peers_that_are_missing_say_so(device: Cpu) -> None:
    absent = Peer("absent", "Absent", "absent", ("cpu",), ("no_such_module_anywhere",))
    assert absent.why_not(device) == "no_such_module_anywhere is not installed"
    (result,) = iteration.measure(device, sizes.Size("test", 640), [absent], 1).results
    assert result.failed == "no_such_module_anywhere is not installed"
    assert next(p for p in PEERS if p.name == "cupyx").why_not(device) == "runs on the gpu only"
    assert [peer.name for peer in select("none", device)] == ["ours"]
    assert [peer.name for peer in select("numpy,ours,numpy", device)] == ["ours", "numpy"]
    assert {"cupy", "cupyx"}.isdisjoint(peer.name for peer in select("all", device))
    with pytest.raises(UsageError, match=r"unknown peer 'nunpy'\. Did you mean 'numpy'"):
        select("nunpy", device)
    with pytest.raises(UsageError, match=r"unknown operation 'dot'\. Did you mean 'dots'"):
        operations.select("dot")


@pytest.mark.parametrize("label", ["2000", "tensors"])
def test_ours_numpy_and_scipy_solve_it(device: Cpu, label: str) -> None:
    layout = Layout([(40, 5), (3,), (), (77,)])
    size = sizes.Size(label, 2000) if label == "2000" else sizes.Size(label, layout.size, layout)
    peers = select("numpy,scipy", device)
    measured = iteration.measure(device, size, peers, 1)
    errors = {r.contender: r.error for r in measured.results if not r.failed or "clock" in r.failed}
    assert set(errors) == {
        "ncg_cuda passes",
        "ncg_cuda passes, 9 vectors",
        "ncg_cuda.cg",
        "NumPy",
        "NumPy, in place",
        "SciPy cg",
    }
    assert all(error is not None and error < 1e-4 for error in errors.values())


def near(value: float) -> Spread:
    return Spread(value, value, value, value, value, 3)


def test_targets_are_judged() -> None:
    large = AtSize(sizes.Size("25.6e6", 25_600_000))
    large.operations = operations.Measured(
        [
            operations.Result("damped_curvature", "25.6e6", 1, 1, 2, 0, 8, percent_of_yardstick=near(95.0)),
            operations.Result("cg_update", "25.6e6", 1, 1, 4, 3, 28, percent_of_yardstick=near(89.0)),
        ]
    )
    times = {"TensorFlow graph": 5.0, "torch.compile": 1.4, "JAX cg": 0.9, "CuPy": 2.4, "CuPy, in place": 1.0}
    large.iteration = iteration.Measured(
        [iteration.Result(name, "x", "25.6e6", 1, 1, 36, ours_is_faster=near(value)) for name, value in times.items()]
    )
    tensors = AtSize(sizes.parse("resnet50")[0])
    tensors.operations = operations.Measured(
        [operations.Result("cg_update", "resnet50", 1, 161, 4, 3, 28, versus_flat=near(1.04))]
    )
    words = {(v.target, v.at): v.word for v in targets.judge([large, tensors], on_gpu=False)}
    assert words == {
        ("damped_curvature against its yardstick", "25.6e6"): "met",
        ("cg_update against its yardstick", "25.6e6"): "missed",
        ("iteration against TensorFlow graph code", "25.6e6"): "met",
        ("iteration against TensorFlow XLA", "25.6e6"): "not measured",
        ("iteration against the best of JAX and torch.compile", "25.6e6"): "missed",
        ("damped_curvature on 161 tensors against flat", "resnet50"): "not measured",
        ("cg_update on 161 tensors against flat", "resnet50"): "met",
    }
    on_gpu = {v.target: v for v in targets.judge([large, tensors], on_gpu=True)}
    assert on_gpu["iteration against plain CuPy"].met is True  # as the formulas read, not in place
    assert "JAX cg" in on_gpu["iteration against the best of torch.compile and JAX"].found
    assert on_gpu["cg_update against its yardstick"].wanted == ">= 92 %"
    assert on_gpu["launches of an iteration"].met is None


def test_the_report_shows_failures_and_notes(tmp_path: Path) -> None:
    at = AtSize(sizes.Size("1e5", 100_000), notes=["the iteration could not be measured: MemoryError: no"])
    at.operations = operations.Measured([operations.Result("dots", "1e5", 100_000, 1, 2, 0, 800_000, failed="E: why")])
    text = report(Results(tmp_path, {}, "cpu: a test", False, [at]))
    assert "dots" in text
    assert "failed: E: why" in text
    assert "Note: the iteration could not be measured: MemoryError: no." in text
    assert max(len(line) for line in text.splitlines()) <= 160
    assert table([("a", "b", "c"), ("x", "10", "y")]) == "a   b  c\n-  --  -\nx  10  y"


def test_a_gpu_that_is_not_there_is_refused_with_the_reason() -> None:
    from ncg_cuda import backends

    found = backends()
    if found["cuda"].available and found["cupy"].available:
        pytest.skip("there is a GPU")
    with pytest.raises(UsageError, match=r"--device gpu: .*Measure the CPU by --device cpu"):
        choose("gpu", None)
    assert choose("auto", 1).name == "cpu"


def test_nothing_of_a_peer_is_imported_early() -> None:
    import subprocess
    import sys

    code = (
        "import sys, ncg_cuda.cli; print('numpy' in sys.modules); import ncg_cuda.benchmarks.command;"
        "print({'tensorflow', 'jax', 'torch', 'scipy', 'matplotlib', 'cupy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split("\n")[1] == "set()"
    assert measure.reason(ValueError()) == "ValueError"
