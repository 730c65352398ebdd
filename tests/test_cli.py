"""The command line: results and their files, bad input, interruption, and what is imported for what."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import ncg_cuda
from ncg_cuda.cli import main

Capture = pytest.CaptureFixture[str]

SCHEMA: dict[str, Any] = {
    "scenario": str,
    "optimizer": str,
    "seed": int,
    "epochs": int,
    "learning_rate": float,
    "batch_size": int,
    "final_train_loss": (float, type(None)),
    "final_val_metric": (float, type(None)),
    "seconds": float,
    "gradient_equivalents": float,
    "diverged": bool,
    "tracing_seconds": float,
    "hessian_products": int,
    "skipped_steps": int,
    "fallback_steps": int,
}


def no_constants(name: str) -> None:
    raise AssertionError(f"{name} is not valid JSON")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(), parse_constant=no_constants)


def leftovers(directory: Path) -> set[str]:
    written = {"summary.json", "grid.json", "curves.csv", "environment.json", "compare.png"}
    return {path.name for path in directory.iterdir()} - written


def test_compare_writes_table_and_files(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "new" / "out"
    arguments = ["compare", "reg-diabetes", "--seeds", "2", "--epochs", "3", "--out", str(out)]
    assert main([*arguments, "--adam-rates", "0.1,0.01,1", "--sgd-rates", "1e30,0.01"]) == 0
    printed = capsys.readouterr()
    for text in ("Newton-CG", "Adam", "SGD, momentum 0.9", "final training loss", "1 + 2 k", "edge of its grid 0.01"):
        assert text in printed.out
    assert "reg-diabetes sgd 4/4" in printed.err  # no terminal here: a line per run

    runs = read_json(out / "summary.json")
    assert [(run["optimizer"], run["seed"]) for run in runs] == [
        (optimizer, seed) for optimizer in ("newton-cg", "adam", "sgd") for seed in (0, 1)
    ]
    for run in runs:
        for name, kind in SCHEMA.items():
            assert isinstance(run[name], kind), name
        assert math.isfinite(run["final_train_loss"])
        assert run["gradient_equivalents"] == 3 + 2 * run["hessian_products"]

    grid = read_json(out / "grid.json")
    assert len(grid) == 2 * (1 + 3 + 2)
    diverged = [run for run in grid if run["learning_rate"] == 1e30]
    assert len(diverged) == 2
    assert all(run["diverged"] and run["final_train_loss"] is None and run["chosen"] is False for run in diverged)
    for optimizer in ("adam", "sgd"):
        medians: dict[float, float] = {}
        for run in (run for run in grid if run["optimizer"] == optimizer and not run["diverged"]):
            medians[run["learning_rate"]] = medians.get(run["learning_rate"], 0.0) + run["final_train_loss"] / 2
        best = min(medians, key=lambda rate: medians[rate])
        assert {run["learning_rate"] for run in runs if run["optimizer"] == optimizer} == {best}
        assert {run["learning_rate"] for run in grid if run["optimizer"] == optimizer and run["chosen"]} == {best}

    with (out / "curves.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(runs) * 4
    for run in runs:
        last = [row for row in rows if row["optimizer"] == run["optimizer"] and row["seed"] == str(run["seed"])][-1]
        assert float(last["train_loss"]) == run["final_train_loss"]
        assert float(last["seconds"]) == run["seconds"]
        assert float(last["gradient_equivalents"]) == run["gradient_equivalents"]

    environment = read_json(out / "environment.json")
    assert environment["status"] == "complete"
    assert environment["ncg_cuda"] == ncg_cuda.__version__
    assert environment["command"]["settings"]["reg-diabetes"]["newton-cg"]["max_iter"] == 20
    assert (out / "compare.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert leftovers(out) == set()


def test_a_diverged_optimizer_does_not_stop_the_others(tmp_path: Path, capsys: Capture) -> None:
    arguments = ["compare", "reg-diabetes", "--optimizers", "sgd,adam", "--seeds", "1", "--epochs", "2", "--quiet"]
    rates = ["--sgd-rates", "1e30,1e31", "--adam-rates", "0.1"]
    assert main([*arguments, *rates, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert printed.err.strip() == "" or "reg-diabetes" not in printed.err
    assert "SGD, momentum 0.9 diverged at every learning rate" in printed.out
    sgd, adam = read_json(tmp_path / "summary.json")
    assert (sgd["diverged"], sgd["final_train_loss"], sgd["final_val_metric"]) == (True, None, None)
    assert not adam["diverged"]


def test_earlier_results_are_said_to_be_replaced(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ncg_cuda.compare import command

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_compete", interrupted)
    arguments = ["compare", "reg-diabetes", "--out", str(tmp_path)]
    assert main(arguments) == 130
    assert "replaced" not in capsys.readouterr().err
    (tmp_path / "compare.png").write_text("stale")
    (tmp_path / "curves.csv").write_text("stale")
    (tmp_path / "grid.json").write_text("stale")
    assert main(arguments) == 130
    assert f"the results of an earlier run in {tmp_path} are replaced\n" in capsys.readouterr().err
    assert not (tmp_path / "compare.png").exists()
    assert read_json(tmp_path / "grid.json") == []
    assert len((tmp_path / "curves.csv").read_text().splitlines()) == 1
    assert leftovers(tmp_path) == set()


def test_newton_settings_are_taken(tmp_path: Path) -> None:
    arguments = ["compare", "reg-diabetes", "--optimizers", "newton-cg", "--seeds", "1", "--epochs", "2", "--quiet"]
    assert (
        main([*arguments, "--newton", "max_iter=1,learning_rate=0.25,curvature=gauss-newton", "--out", str(tmp_path)])
        == 0
    )
    (run,) = read_json(tmp_path / "summary.json")
    assert run["learning_rate"] == 0.25
    assert run["settings"]["max_iter"] == 1
    assert run["settings"]["curvature"] == "gauss-newton"
    assert run["hessian_products"] <= 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["reg-diabetis"], "unknown scenario 'reg-diabetis'. Did you mean 'reg-diabetes'? Scenarios: cnn-digits, "),
        (["zzz"], "unknown scenario 'zzz'. Scenarios: "),
        (["reg-diabetes", "--optimizers", "newton"], "unknown optimizer 'newton'. Did you mean 'newton-cg'?"),
        (["reg-diabetes", "--optimizers", ","], "unknown optimizer ','"),
        (["reg-diabetes", "--seeds", "0"], "'0' is not a whole number of at least 1"),
        (["reg-diabetes", "--epochs", "many"], "'many' is not a whole number of at least 1"),
        (["reg-diabetes", "--adam-rates", "0.1,-1"], "'0.1,-1' is not a comma-separated list of positive numbers"),
        (["reg-diabetes", "--newton", "damping=1"], "'damping' is not a setting; settings: learning_rate, tau"),
        (["reg-diabetes", "--newton", "max_iter=2.5"], "max_iter must be a whole number"),
        (["reg-diabetes", "--newton", "curvature=gauss"], "curvature must be one of hessian, gauss-newton, fisher"),
        (["reg-diabetes", "--newton", "tau=-1"], "newton-cg refuses its settings on reg-diabetes: "),
        ([], "required: SCENARIO"),
    ],
)
def test_bad_arguments(arguments: list[str], said: str, tmp_path: Path, capsys: Capture) -> None:
    assert main(["compare", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out" / "summary.json").exists()


@pytest.mark.parametrize("where", ["a file", "under a file", "the kernel's"])
def test_unwritable_out_is_refused_before_training(
    where: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ncg_cuda.compare import trainer

    def trained(*arguments: object, **options: object) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr(trainer, "Trainer", trained)
    taken = tmp_path / "taken"
    taken.write_text("mine")
    out = {"a file": taken, "under a file": taken / "out", "the kernel's": Path("/proc/ncg/out")}[where]
    if where == "the kernel's" and not sys.platform.startswith("linux"):
        pytest.skip("/proc is Linux")
    assert main(["compare", "reg-diabetes", "--out", str(out)]) == 2
    assert f"cannot write to --out {out}" in capsys.readouterr().err
    assert taken.read_text() == "mine"


def test_absent_data_are_reported_before_training(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NCG_DATA_DIR", str(tmp_path))
    assert main(["compare", "reg-diabetes", "reg-lif", "--out", str(tmp_path / "out")]) == 2
    assert "Put the file at <directory>/birth_rate/birth_rate.csv" in capsys.readouterr().err
    assert leftovers(tmp_path / "out") == set()
    assert not (tmp_path / "out" / "summary.json").exists()


def test_interruption_leaves_complete_files(tmp_path: Path) -> None:
    """A real SIGINT to a real process, in the middle of a search."""
    command = [sys.executable, "-m", "ncg_cuda", "compare", "reg-diabetes", "--optimizers", "newton-cg,adam"]
    options = ["--seeds", "1", "--epochs", "600", "--out", str(tmp_path), "--newton", "max_iter=1"]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < deadline:
            if (tmp_path / "summary.json").exists() and read_json(tmp_path / "summary.json"):
                break
            time.sleep(0.05)
        time.sleep(0.5)  # into the next competitor's runs
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert "interrupted: what is finished is in" in errors
    assert "Newton-CG" in printed
    assert [run["optimizer"] for run in read_json(tmp_path / "summary.json")] == ["newton-cg"]
    assert read_json(tmp_path / "environment.json")["status"] == "interrupted"
    assert read_json(tmp_path / "grid.json")[0]["optimizer"] == "newton-cg"
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert leftovers(tmp_path) == set()


def test_scenarios_lists_all_and_what_is_missing(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NCG_DATA_DIR", str(tmp_path))
    assert main(["scenarios"]) == 0
    printed = capsys.readouterr().out
    for text in ("reg-diabetes  ", "354 training + 88 validation samples, 11 weights", "full batch", "reg-lif  "):
        assert text in printed
    assert "112 of 506 rows have a missing cell and are dropped" in printed
    assert "data     present: ships with scikit-learn" in printed
    assert "data     absent: birth_rate.csv is missing" in printed


def test_version_help_and_no_command(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ncg-cuda {ncg_cuda.__version__}\n"
    for command in ([], ["compare"], ["scenarios"], ["info"]):
        assert main([*command, "--help"]) == 0
        assert "usage: ncg-cuda" in capsys.readouterr().out
    assert main([]) == 2
    assert "compare" in capsys.readouterr().out
    assert main(["compair"]) == 2
    assert "invalid choice: 'compair'" in capsys.readouterr().err


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_light_commands_do_not_import_tensorflow() -> None:
    printed = run_python(
        "import sys; from ncg_cuda.cli import main; main(['scenarios']); main(['info']);"
        "print({'tensorflow', 'keras', 'matplotlib', 'sklearn'} & set(sys.modules))"
    )
    assert printed.splitlines()[-1] == "set()"
    assert f"ncg_cuda               {ncg_cuda.__version__}" in printed
    assert "GPU  " in printed
    assert "TensorFlow was not imported" in printed


def test_info_survives_whatever_is_missing() -> None:
    printed = run_python(
        "import sys, os; os.environ['PATH'] = '';"
        "sys.modules.update({'ncg_cuda._core': None, 'tensorflow': None, 'mpi4py': None});"
        "from ncg_cuda.cli import main; assert main(['info', '--tensorflow']) == 0"
    )
    assert "none: nvidia-smi is not installed" in printed
    assert "the native core does not load" in printed
    assert "TensorFlow does not import" in printed


def test_info_finds_a_launcher_beside_python(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = tmp_path / "mpiexec"
    launcher.write_text("#!/bin/sh\n")
    launcher.chmod(0o755)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert main(["info"]) == 0
    assert f" {launcher}\n" in capsys.readouterr().out
    launcher.unlink()
    assert main(["info"]) == 0
    assert f"none on the search path or in {tmp_path} (mpiexec, mpirun, srun)" in capsys.readouterr().out


def test_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ncg_cuda", "--version"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"ncg-cuda {ncg_cuda.__version__}\n")


def test_closed_pipe_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "ncg_cuda", "scenarios"],
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writer)
    assert b"Traceback" not in done.stderr


def test_an_empty_directory_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "reg-diabetes", "--out", ""]) == 2
    assert "not a directory" in capsys.readouterr().err


def test_help_survives_a_terminal_without_unicode() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ncg_cuda", "compare", "--help"],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
    )
    assert done.returncode == 0, done.stderr


def test_huge_losses_stay_short_in_the_table() -> None:
    from ncg_cuda.compare.table import spread

    assert len(spread([1.3552e34])) < 12
