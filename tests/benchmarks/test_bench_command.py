"""``ncg-cuda bench kernels`` from end to end, on tiny vectors."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ncg_cuda.benchmarks import command, devices, memory, peers
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
    assert main([*TINY, *arguments]) == 1
    printed = capsys.readouterr()
    assert "Note: operations: not measured, --time-limit 1e-09 s is over." in printed.out
    assert printed.err == "nothing was measured: the notes in the report say why\n"
    assert not (tmp_path / "kernels.png").exists()


def test_no_memory_for_a_size_is_a_note(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "iteration_bytes", lambda *arguments: 10**18)
    arguments = ["--sizes", "500", "--operations", "dots", "--out", str(tmp_path)]
    assert main([*TINY, *arguments]) == 0
    printed = capsys.readouterr()
    assert "500: about 1,000,000,000 GB; does not fit, left out: iteration" in printed.err
    said = "could not be measured: MemoryError: needs about 1,000,000,000 GB of memory, and "
    assert said in printed.out
    assert re.search(r"and [\d.,]+ GB are free", printed.out)


def test_sizes_that_do_not_fit_are_refused_before_anything_is_written(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    assert main([*TINY, "--sizes", "1e12,9e11", "--peers", "none", "--out", str(out)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(r"--sizes: 1e12 needs about \d\d,\d{3} GB of memory, and [\d.,]+ GB are free; 9e11 needs", said)
    assert not out.exists()


def test_a_run_says_beforehand_what_it_needs(tmp_path: Path, capsys: Capture) -> None:
    arguments = ["--sizes", "2000,1e12", "--operations", "dots", "--peers", "numpy", "--out", str(tmp_path)]
    assert main([*TINY, *arguments]) == 0  # one of two sizes was measured
    err = capsys.readouterr().err
    beforehand = err[: err.index("calls ...")]
    assert re.search(r"[\d.,]+ GB of memory are free\. Forecast", beforehand)
    assert re.search(r"  2000: about 1 MB, \d+ s\n  1e12: about [\d,]+ GB; does not fit, left out: ", beforehand)
    assert re.search(r"In all about \d+ s\.\n", beforehand)
    assert f"After every part, what is measured so far is written to {tmp_path}." in beforehand


def test_a_killed_run_leaves_what_it_had_measured(tmp_path: Path) -> None:
    code = (
        "import os, sys; from ncg_cuda.benchmarks import devices, operations; from ncg_cuda.cli import main\n"
        "devices._last_level_cache = lambda: 1 << 18\n"
        "operations.measure = lambda *a, **o: os.kill(os.getpid(), 9)\n"
        "main(sys.argv[1:])"
    )
    arguments = [*TINY, "--sizes", "500", "--operations", "dots", "--quiet", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, timeout=60)
    assert done.returncode == -9
    record = read(tmp_path / "kernels.json")
    assert record["status"] == "running"
    (at,) = record["sizes"]
    assert "operations" not in at
    assert at["iteration"]["iterations"] == 12
    assert "ncg_cuda passes" in (tmp_path / "kernels.txt").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"kernels.json", "kernels.txt"}


def test_quick_leaves_out_what_compiles_for_long(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = peers.Contender("torch.compile", lambda: pytest.fail("it compiles"))
    torch = peers.Peer("torch", "torch", "torch_peer", ("cpu",), ())
    monkeypatch.setattr(peers, "PEERS", (torch,))
    monkeypatch.setattr(peers.Peer, "contenders", lambda self, problem: [slow])
    arguments = ["--quick", "--sizes", "500,600", "--operations", "dots", "--out", str(tmp_path)]
    assert main([*TINY, *arguments]) == 0
    printed = capsys.readouterr()
    assert printed.out.count("left out by --quick: it compiles for about 11 s (--peers torch runs it)") == 2
    assert "failed" not in printed.out
    assert "compiling" not in printed.err
    record = read(tmp_path / "kernels.json")
    assert record["command"]["quick"] is True
    assert record["command"]["time_limit"] == 60.0
    assert not {"out", "quiet"} & set(record["command"])

    built: list[str] = []

    def compile_() -> Any:
        built.append("now")
        raise RuntimeError("no compiler")

    named = [peers.Contender("torch.compile", compile_)]
    ours = peers.Peer("ours", "ours", "ours", ("cpu",), ())
    monkeypatch.setattr(peers, "PEERS", (ours, torch))
    monkeypatch.setattr(peers.Peer, "contenders", lambda self, problem: named if self is torch else [])
    assert main([*TINY, *arguments, "--sizes", "500", "--peers", "torch"]) == 0
    printed = capsys.readouterr()
    assert built == ["now"]
    assert "failed: RuntimeError: no compiler" in printed.out
    assert "500: iteration: compiling torch.compile, about 11 s ..." in printed.err


def test_committed_results_say_nothing_of_where_they_were_written() -> None:
    files = sorted((Path(__file__).parents[2] / "bench" / "results").glob("*.json"))
    assert files
    for path in files:
        assert not {"out", "quiet"} & set(read(path).get("command", {})), path


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

    monkeypatch.setattr(command.operations, "measure", interrupted)
    assert main([*TINY, "--sizes", "500", "--quiet", "--out", str(tmp_path)]) == 130
    printed = capsys.readouterr()
    assert "interrupted: what is finished is in" in printed.err
    assert "ncg_cuda passes" in printed.out
    record = read(tmp_path / "kernels.json")
    assert record["status"] == "interrupted"
    assert record["sizes"][0]["iteration"]["iterations"] == 12


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
    listed = re.search(r"comma-separated, of: (ours .*?); all, none", " ".join(text.split()))
    assert listed
    allowed = [name.split(" (")[0] for name in listed[1].split(", ")]
    assert allowed == [peer.name for peer in peers.PEERS]  # as the error about an unknown name lists them
    assert main([*TINY, "--peers", "nothing-like-it"]) == 2
    assert f"Peers: {', '.join([*allowed, 'all', 'none'])}." in " ".join(capsys.readouterr().err.split())
    for option in ("--device", "--sizes", "--operations", "--peers", "--repeats", "--threads", "--out", "--quick"):
        assert option in text
