"""The logic of make gpu-check, with stand-ins for the GPU, the compiler, the sanitizer and the benchmark."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent / "gpu"))

import building
import check as gpu_check
import machine
import steps

GPU = Path(__file__).resolve().parent / "gpu"
PYTHON = sys.executable
FAKE = machine.Gpu("NVIDIA Fake 9000", "90", 1, 1 << 30)


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!{PYTHON}\n{text}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> gpu_check.Check:
    """A check whose programs are stand-ins that pass."""
    python = program(
        tmp_path / "python",
        """import sys, pathlib
if "pytest" in sys.argv:
    report = next(a for a in sys.argv if a.startswith("--junitxml=")).partition("=")[2]
    suite = '<testsuites><testsuite tests="5" failures="0" errors="0" skipped="1"/></testsuites>'
    pathlib.Path(report).write_text(suite)
if "bench" in sys.argv:
    out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1]); out.mkdir(exist_ok=True)
    (out / "kernels.json").write_text('{"environment": {"a": 1}, "sizes": []}')
    (out / "kernels.txt").write_text("the table")
""",
    )
    program(tmp_path / "compute-sanitizer", "import sys; print(sys.argv)")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(building, "command", lambda *arguments: ["true"])
    return gpu_check.Check(FAKE, tmp_path / "results", tmp_path / "work", 60.0)


def results(made: gpu_check.Check) -> dict[str, object]:
    (path,) = made.out.glob("nvidia-fake-9000-*.json")
    assert path.with_suffix(".txt").exists()
    return dict(json.loads(path.read_text()))


def outcomes(made: gpu_check.Check) -> dict[str, str]:
    return {step.name: step.outcome for step in made.steps}


ALL = ("build", "tests", "memcheck", "racecheck", "initcheck", "synccheck", "benchmark")


def test_all_steps_pass(made: gpu_check.Check, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.run_all(made, "nvcc") == 0
    assert outcomes(made) == dict.fromkeys(ALL, "passed")
    record = results(made)
    assert record["passed"]
    assert record["environment"] == {"a": 1}
    assert record["benchmark"] == {"sizes": []}
    printed = capsys.readouterr().out
    assert "the table" in printed
    assert "5 tests, 0 failures, 0 errors, 1 skipped" in printed


def test_a_failed_build_is_the_end(made: gpu_check.Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "command", lambda *a: ["sh", "-c", "echo why; exit 7"])
    assert gpu_check.run_all(made, "nvcc") == 1
    assert outcomes(made) == {"build": "failed"}
    assert "exit code 7: why" in made.steps[0].detail
    assert not results(made)["passed"]


def test_one_failure_does_not_stop_the_rest(made: gpu_check.Check, tmp_path: Path) -> None:
    program(tmp_path / "compute-sanitizer", "import sys; sys.exit(9 if 'racecheck' in sys.argv else 0)")
    assert gpu_check.run_all(made, "nvcc") == 1
    assert outcomes(made) == {**dict.fromkeys(ALL, "passed"), "racecheck": "failed"}


def test_no_sanitizer_is_a_failure(made: gpu_check.Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "tool", lambda name, first=None: None)
    assert gpu_check.run_all(made, "nvcc") == 1
    assert outcomes(made)["memcheck"] == "failed"
    assert "no compute-sanitizer" in made.steps[2].detail


def test_only_skipped_tests_prove_nothing(made: gpu_check.Check, tmp_path: Path) -> None:
    python = Path(sys.executable)
    python.write_text(python.read_text().replace('skipped="1"', 'skipped="5"'))
    assert gpu_check.run_all(made, "nvcc") == 1
    assert outcomes(made)["tests"] == "failed"


def test_a_step_that_hangs_is_ended_with_its_children(made: gpu_check.Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpu_check.LIMITS, "build", 0.5)
    monkeypatch.setattr(building, "command", lambda *a: ["sh", "-c", "sleep 1000 & echo $! > child; wait"])
    assert gpu_check.run_all(made, "nvcc") == 1
    assert outcomes(made) == {"build": "timed out"}
    child = int((made.work / "child").read_text())
    status = Path(f"/proc/{child}/stat")
    assert not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"  # nobody may have waited yet


def test_no_time_left(made: gpu_check.Check) -> None:
    made.clock = steps.Clock(0.0)
    assert gpu_check.run_all(made, "nvcc") == 1
    assert outcomes(made) == {"build": "timed out"}
    assert "no time was left" in made.steps[0].detail


def test_an_interruption_leaves_complete_results(made: gpu_check.Check, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(python: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(made, "sanitize", interrupted)
    assert gpu_check.run_all(made, "nvcc") == 130
    record = results(made)
    assert [step["outcome"] for step in record["steps"]] == ["passed", "passed", "interrupted"]  # type: ignore[index,attr-defined]


def run_script(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    return subprocess.run(
        [sys.executable, str(GPU / "check.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=environment,
    )


def has_gpu() -> bool:
    try:
        machine.find_gpu()
    except machine.Missing:
        return False
    return True


@pytest.mark.skipif(has_gpu(), reason="there is a GPU here")
def test_without_a_gpu(tmp_path: Path) -> None:
    done = run_script("--out", str(tmp_path))
    assert done.returncode == machine.NO_GPU == 3
    assert done.stderr.startswith("gpu-check: no GPU: ")
    assert not list(tmp_path.iterdir())


def test_help_says_what_is_needed() -> None:
    done = run_script("--help")
    assert done.returncode == 0
    for word in ("nvcc", "CuPy", "3 no GPU", "--build-only"):
        assert word in done.stdout


def test_missing_compiler_and_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "tool", lambda name, first=None: None)
    with pytest.raises(machine.Missing, match="no nvcc: put the CUDA toolkit's bin") as caught:
        machine.find_nvcc()
    assert caught.value.code == machine.NO_NVCC
    monkeypatch.setattr(machine, "PACKAGES", {"numpy": "numpy", "no_such_module": "such-a-package"})
    with pytest.raises(machine.Missing, match="lacks such-a-package: pip install such-a-package") as caught:
        machine.check_packages()
    assert caught.value.code == machine.NO_PACKAGE


def test_all_sources_are_compiled(tmp_path: Path) -> None:
    command = building.compilation("nvcc", "90", tmp_path)
    assert "-arch=sm_90" in command
    sources = {Path(part).name for part in command if part.endswith((".cu", ".cpp"))}
    assert sources >= {"launch.cu", "solve.cu", "preconditioned.cu", "loop.cu", "stream.cu", "module.cpp", "arrays.cpp"}


@pytest.mark.parametrize(
    ("code", "stdout", "wrong"),
    [
        (0, "{site}/ncg_cuda/__init__.py\n{site}/ncg_cuda/_core.so\n", ""),
        (0, "{site}/ncg_cuda/__init__.py\n/another/_core.so\n", "imports /another/_core.so instead of what was built"),
        (1, "", "does not import: why"),
    ],
)
def test_another_build_is_not_checked_by_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, stdout: str, wrong: str
) -> None:
    done = subprocess.CompletedProcess([], code, stdout.format(site=tmp_path), "why")
    monkeypatch.setattr(building.subprocess, "run", lambda *arguments, **options: done)
    found = building.imported(tmp_path)
    assert wrong in found
    assert bool(found) == bool(wrong)


def test_terminated_as_interrupted(made: gpu_check.Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "command", lambda *a: ["sh", "-c", f"kill -TERM {os.getpid()}; sleep 100"])
    assert gpu_check.run_all(made, "nvcc") == 130
    assert [step.outcome for step in made.steps] == ["interrupted"]
    assert not results(made)["passed"]


@pytest.mark.native
def test_the_build_works(tmp_path: Path) -> None:
    nvcc = machine.tool("nvcc")
    if nvcc is None:
        pytest.skip("needs nvcc")
    done = subprocess.run(
        building.command(PYTHON, nvcc, "90", tmp_path), capture_output=True, text=True, check=False, timeout=600
    )
    # an editable installation comes first here, which the build must notice; it may also be what runs this test
    assert done.returncode == 0 or "instead of what was built" in done.stdout, done.stdout + done.stderr
    numpy = Path(__import__("numpy").__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{numpy}"}
    code = "import ncg_cuda; print(ncg_cuda.__file__, ncg_cuda.backends()['cuda'])"
    command = [PYTHON, "-S", "-c", code]  # -S: without the finder of an editable installation
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert str(tmp_path) in done.stdout, done.stderr
    assert "kernels built with CUDA" in done.stdout
