"""Proof and figures on a machine with an NVIDIA GPU, with one command and within 8 minutes: make gpu-check

Builds the library for the GPU of this machine (into build/gpu-check; nothing is installed, nothing downloaded), runs
the tests marked gpu, compute-sanitizer's four tools on a short set, and the kernel benchmark. Writes
bench/results/<gpu>-<date>.json and .txt. Needs nvcc, and a Python with NumPy, CuPy, pybind11 and pytest; uses torch,
JAX and matplotlib where they are. Changes no clocks and no modes of the GPU, and shares it with others.

Exit code: 0 all passed, 1 something failed or ran out of time, 3 no GPU, 4 no nvcc, 5 a Python package is missing,
130 interrupted.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import signal
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import building
import machine
import steps
from steps import Clock, Step

REPOSITORY = Path(__file__).resolve().parents[2]
TOTAL = 470.0  # seconds for everything
LIMITS = {"build": 130.0, "tests": 150.0, "sanitizer": 25.0}  # the benchmark gets what is left: 90 at least
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")


class Check:
    """One check: its steps so far, and where they are written."""

    def __init__(self, gpu: machine.Gpu, out: Path, work: Path, total: float) -> None:
        self.gpu, self.out, self.work = gpu, out, work
        self.clock = Clock(total)
        self.steps: list[Step] = []
        self.figures: dict[str, Any] = {}
        self.environment: dict[str, Any] = {}
        self.table = ""
        work.mkdir(parents=True, exist_ok=True)
        self.variables = {**os.environ, "PYTHONPATH": str(work / "site"), "PYTHONSAFEPATH": "1"}

    def run(self, name: str, command: list[str], limit: float) -> Step:
        """Run a step and record it."""
        log = self.work / f"{re.sub(r'[^a-z0-9]+', '-', name)}.log"
        print(f"[{TOTAL - self.clock.left():4.0f} s] {name} ...", flush=True)
        return self.done(
            steps.run(name, command, limit=limit, clock=self.clock, log=log, env=self.variables, cwd=self.work)
        )

    def done(self, step: Step) -> Step:
        self.steps.append(step)
        print(f"         {step.outcome} in {step.seconds:.0f} s{': ' if step.detail else ''}{step.detail}", flush=True)
        return step

    def tests(self, python: str) -> None:
        """The tests marked gpu; at least one of them must have run."""
        report = self.work / "tests.xml"
        report.unlink(missing_ok=True)
        paths = [str(REPOSITORY / "tests" / name) for name in ("gpu", "benchmarks/test_bench_gpu.py")]
        options = ["-c", str(REPOSITORY / "pyproject.toml"), "-m", "gpu", "-q", f"--junitxml={report}"]
        step = self.run("tests", [python, "-m", "pytest", *options, *paths], LIMITS["tests"])
        if report.exists():
            suite = ElementTree.parse(report).getroot().find("testsuite")
            counted = (
                {k: int(suite.get(k, 0)) for k in ("tests", "failures", "errors", "skipped")}
                if suite is not None
                else {}
            )
            step.figures = counted
            ran = counted.get("tests", 0) - counted.get("skipped", 0)
            if step.outcome == steps.PASSED and ran <= 0:
                step.outcome, step.detail = steps.FAILED, "every test was skipped: nothing is proven"

    def sanitize(self, python: str) -> None:
        """The four tools, each on the short set."""
        sanitizer = machine.tool("compute-sanitizer")
        for tool in TOOLS:
            if sanitizer is None:
                why = "no compute-sanitizer: it is in the CUDA toolkit, or pip install nvidia-cuda-sanitizer-api"
                self.done(Step(tool, steps.FAILED, detail=why))
                continue
            # other libraries' kernels are not what is checked, and racecheck is slow on them
            chosen = [] if tool == "memcheck" else ["--kernel-name", "kns=ncg"]
            command = [sanitizer, "--tool", tool, "--error-exitcode", "9", *chosen, python]
            self.run(tool, [*command, str(REPOSITORY / "tests/gpu/sanitized.py"), "--quick"], LIMITS["sanitizer"])

    def benchmark(self, python: str) -> None:
        """The kernel benchmark; its figures go into the record."""
        folder = self.work / "bench"
        limit = self.clock.left()
        command = [python, "-m", "ncg_cuda", "bench", "kernels", "--device", "gpu", "--out", str(folder), "--quiet"]
        self.run("benchmark", [*command, "--repeats", "11", "--time-limit", f"{max(limit - 30, 10):.0f}"], limit)
        record, table = folder / "kernels.json", folder / "kernels.txt"
        if record.exists():
            self.figures = json.loads(record.read_text())
            self.environment = self.figures.pop("environment", {})
        if table.exists():
            self.table = table.read_text()

    def write(self) -> Path:
        """The record and the readable table."""
        from ncg_cuda.files import write_atomic, write_json

        date = datetime.datetime.now(datetime.timezone.utc)
        name = re.sub(r"[^a-z0-9]+", "-", self.gpu.name.lower()).strip("-")
        path = self.out / f"{name}-{date:%Y-%m-%d}.json"
        self.out.mkdir(parents=True, exist_ok=True)
        record = {
            "gpu": vars(self.gpu),
            "date": date.isoformat(timespec="seconds"),
            "passed": self.passed(),
            "steps": [step.as_json() for step in self.steps],
            "environment": self.environment,
            "benchmark": self.figures,
        }
        write_json(path, record)
        write_atomic(path.with_suffix(".txt"), self.report() + "\n")
        return path

    def passed(self) -> bool:
        """Whether every step was made and passed."""
        made = {step.name for step in self.steps}
        wanted = {"build", "tests", *TOOLS, "benchmark"}
        return wanted <= made and all(step.outcome == steps.PASSED for step in self.steps)

    def report(self) -> str:
        """The steps as a table, and the benchmark's own report."""
        lines = [f"{self.gpu.name}, sm_{self.gpu.architecture}, {self.gpu.count} GPU(s)", ""]
        lines += [f"{'step':12}{'outcome':14}{'seconds':>8}  detail"]
        for step in self.steps:
            counted = ", ".join(f"{value} {name}" for name, value in step.figures.items())
            lines.append(f"{step.name:12}{step.outcome:14}{step.seconds:8.0f}  {step.detail or counted}".rstrip())
        return "\n".join([*lines, "", self.table]).rstrip()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def run_all(check: Check, nvcc: str) -> int:
    """The steps in order. Whatever happens, what was found is written."""
    python = sys.executable
    signal.signal(signal.SIGTERM, _interrupt)  # what `timeout` sends: as Ctrl-C, results are written
    try:
        command = building.command(python, nvcc, check.gpu.architecture, check.work)
        if check.run("build", command, LIMITS["build"]).outcome == steps.PASSED:
            check.tests(python)
            check.sanitize(python)
            check.benchmark(python)
    except KeyboardInterrupt:
        check.done(Step("check", steps.INTERRUPTED, detail="by the user"))
    sys.path.insert(0, str(REPOSITORY))
    path = check.write()
    print(f"\n{check.report()}\n\n{path}\n{path.with_suffix('.txt')}")
    if check.steps[-1].outcome == steps.INTERRUPTED:
        return 130
    return 0 if check.passed() else 1


def main(arguments: list[str] | None = None) -> int:
    """Look for what is needed, then run the steps."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0],
        epilog=__doc__.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=REPOSITORY / "bench" / "results", help="where the results go")
    parser.add_argument("--work", type=Path, default=REPOSITORY / "build" / "gpu-check", help="where it is built")
    parser.add_argument("--build-only", action="store_true", help="build, also without a GPU, and stop")
    parser.add_argument("--architecture", default="90", help="with --build-only: what to build for (90)")
    options = parser.parse_args(arguments)
    work = options.work.resolve()
    try:
        if options.build_only:
            nvcc = machine.find_nvcc()
            work.mkdir(parents=True, exist_ok=True)
            step = steps.run(
                "build",
                building.command(sys.executable, nvcc, options.architecture, work),
                limit=600.0,
                clock=Clock(600.0),
                log=work / "build.log",
                env=dict(os.environ),
                cwd=work,
            )
            print(f"build {step.outcome} in {step.seconds:.0f} s {step.detail}\n{work / 'site'}")
            return 0 if step.outcome == steps.PASSED else 1
        gpu = machine.find_gpu()
        nvcc = machine.find_nvcc()
        machine.check_packages()
    except machine.Missing as missing:
        print(f"gpu-check: {missing}", file=sys.stderr)
        return missing.code
    print(f"{gpu.name}, sm_{gpu.architecture}; results go to {options.out}")
    return run_all(Check(gpu, options.out.resolve(), work, TOTAL), nvcc)


if __name__ == "__main__":
    sys.exit(main())
