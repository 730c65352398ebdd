"""``ncg-cuda bench kernels`` from end to end, on tiny vectors."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from ncg_cuda.benchmarks import command, devices, iteration
from ncg_cuda.cli import main

Capture = pytest.CaptureFixture[str]
TINY = ["bench", "kernels", "--device", "cpu", "--repeats", "1", "--threads", "1"]


@pytest.fixture(autouse=True)
def small_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer operands take turns."""
    monkeypatch.setattr(devices, "_last_level_cache", lambda: 1 << 18)


def read(path: Path) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not valid JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_it_prints_and_writes_everything(tmp_path: Path, capsys: Capture) -> None:
    before = os.sched_getaffinity(0)
    out = tmp_path / "new" / "out"
    arguments = ["--sizes", "2000,resnet50-small", "--peers", "numpy,scipy,cupyx", "--out", str(out)]
    assert main([*TINY, *arguments]) == 0
    assert os.sched_getaffinity(0) == before
    printed = capsys.readouterr()
    for text in (
        "n = 2,000 float32, flat",
        "161 tensors (resnet50-small)",
        "damped_curvature, 161 tensors",
        "% of yardstick",
        "ours is faster by",
        "failed: runs on the gpu only",
        "one call on tiny vectors",
        "missed",
        f"Records, report and picture: {out}",
    ):
        assert text in printed.out, text
    assert "2000: operations ..." in printed.err
    assert {path.name for path in out.iterdir()} == {"kernels.json", "kernels.txt", "kernels.png"}
    assert (out / "kernels.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert (out / "kernels.txt").read_text().strip() in printed.out

    record = read(out / "kernels.json")
    assert record["status"] == "complete"
    assert record["command"]["threads"] == 1
    assert record["device"].startswith("cpu: 1 thread of ")
    assert record["environment"]["packages"]["numpy"]
    flat, tensors = record["sizes"]
    assert (flat["n"], flat["tensors"], tensors["tensors"]) == (2000, 1, 161)
    by_name = {r["operation"]: r for r in flat["operations"]["results"]}
    assert by_name["cg_update"]["bytes"] == 2000 * 4 * 7
    assert by_name["cg_update"]["seconds"]["count"] == 1
    assert flat["iteration"]["vectors_counted"] == 9
    assert flat["iteration"]["iterations"] == 12
    assert {v["at"] for v in record["targets"]} == {"resnet50-small"}
    assert "damped_curvature, 161 tensors" in record["microseconds_per_call"]


def test_parts_can_be_left_out(tmp_path: Path, capsys: Capture) -> None:
    arguments = ["--sizes", "500", "--operations", "dots", "--peers", "none", "--quiet", "--out", str(tmp_path)]
    assert main([*TINY, *arguments]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    record = read(tmp_path / "kernels.json")["sizes"][0]
    assert [r["operation"] for r in record["operations"]["results"]] == ["dots"]
    assert {r["contender"] for r in record["iteration"]["results"]} == {
        "ncg_cuda passes",
        "ncg_cuda passes, 9 vectors",
        "ncg_cuda.cg",
    }


def test_a_time_limit_leaves_the_rest_out(tmp_path: Path, capsys: Capture) -> None:
    arguments = ["--sizes", "500", "--time-limit", "1e-9", "--quiet", "--out", str(tmp_path)]
    assert main([*TINY, *arguments]) == 0
    assert "Note: the operations were not measured: --time-limit 1e-09 s is over." in capsys.readouterr().out
    assert not (tmp_path / "kernels.png").exists()


def test_no_memory_for_a_size_is_a_note(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iteration, "bytes_needed", lambda n, iterations: 10**18)
    arguments = ["--sizes", "500", "--operations", "none", "--quiet", "--out", str(tmp_path)]
    assert main([*TINY, *arguments]) == 0
    assert "could not be measured: MemoryError: needs about 1000000000.0 GB" in capsys.readouterr().out


def test_failure_of_ours_is_exit_code_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ncg_cuda import ops

    def broken(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(ops, "dots", broken)
    arguments = ["--sizes", "500", "--operations", "dots", "--peers", "none", "--quiet", "--out", str(tmp_path)]
    assert main([*TINY, *arguments]) == 1
    (result,) = read(tmp_path / "kernels.json")["sizes"][0]["operations"]["results"]
    assert result["failed"] == "RuntimeError: broken"


def test_interruption_keeps_what_is_finished(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(command.iteration, "measure", interrupted)
    assert main([*TINY, "--sizes", "500", "--quiet", "--out", str(tmp_path)]) == 130
    printed = capsys.readouterr()
    assert "interrupted: what is finished is in" in printed.err
    assert "damped_curvature" in printed.out
    record = read(tmp_path / "kernels.json")
    assert record["status"] == "interrupted"
    assert record["sizes"][0]["operations"]["results"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sizes", "1e5,lots"], "--sizes: 'lots' is neither a whole number"),
        (["--operations", "dost"], "unknown operation 'dost'. Did you mean 'dots'?"),
        (["--peers", "numpie"], "unknown peer 'numpie'. Did you mean 'numpy'?"),
        (["--threads", "5000"], "--threads 5000: this process may use "),
        (["--repeats", "0"], "'0' is not a whole number of at least 1"),
        (["--peer-seconds", "-1"], "'-1' is not a number of seconds >= 0"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
        (["--out", "/proc/ncg/out"], "cannot write to --out /proc/ncg/out"),
    ],
)
def test_bad_arguments(arguments: list[str], said: str, tmp_path: Path, capsys: Capture) -> None:
    assert main(["bench", "kernels", "--device", "cpu", "--out", str(tmp_path), *arguments]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_help(capsys: Capture) -> None:
    assert main(["bench"]) == 2
    assert "kernels" in capsys.readouterr().out
    assert main(["bench", "kernels", "--help"]) == 0
    text = capsys.readouterr().out
    for option in ("--device", "--sizes", "--operations", "--peers", "--repeats", "--threads", "--out", "--quick"):
        assert option in text
