"""Builds the library with nvcc alone into a folder of its own: no CMake, no network, nothing installed.

    python tests/gpu/building.py NVCC ARCHITECTURE FOLDER

Leaves FOLDER/site for PYTHONPATH, without the TensorFlow op, and imports it: a ncg_cuda that Python finds elsewhere,
such as an editable installation, would otherwise be what is checked.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def command(python: str, nvcc: str, architecture: str, work: Path) -> list[str]:
    """The command that builds the package into ``work/site``."""
    return [python, str(Path(__file__).resolve()), nvcc, architecture, str(work)]


def compilation(nvcc: str, architecture: str, work: Path) -> list[str]:
    """The command that compiles the core, on all processors."""
    import pybind11

    csrc = REPOSITORY / "csrc"
    sources = sorted(csrc.glob("ncg/**/*.cu")) + sorted(csrc.glob("ncg/**/*.cpp"))
    sources += sorted((REPOSITORY / "bindings").glob("*.cpp"))
    host = "-fPIC,-fopenmp,-O3,-ffp-contract=fast,-fno-math-errno,-fvisibility=hidden,-Wno-psabi"
    includes = [csrc, pybind11.get_include(), sysconfig.get_path("include")]
    return [
        nvcc,
        *("-std=c++17", "-O3", f"-arch=sm_{architecture}", "-shared", "-cudart", "static", "--threads", "0"),
        *("-Xcompiler", host, "-DNCG_WITH_CUDA", "-DNCG_TARGET_CLONES", "-lgomp"),
        *(f"-I{path}" for path in includes),
        *(str(source) for source in sources),
        *("-o", str(work / "site" / "ncg_cuda" / f"_core{sysconfig.get_config_var('EXT_SUFFIX')}")),
    ]


def imported(site: Path) -> str:
    """Why what Python imports is not what was built; empty if it is."""
    code = "import ncg_cuda, ncg_cuda._core as core; print(ncg_cuda.__file__); print(core.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment, cwd=site
    )
    if done.returncode != 0:
        return f"it does not import: {done.stderr.strip()}"
    elsewhere = [path for path in done.stdout.split() if not Path(path).resolve().is_relative_to(site.resolve())]
    if elsewhere:
        return (
            f"{sys.executable} imports {elsewhere[0]} instead of what was built: uninstall ncg_cuda there, or use a "
            "Python without it: make gpu-check PYTHON=..."
        )
    return ""


def main() -> int:
    """Arguments: nvcc, architecture, folder."""
    nvcc, architecture, folder = sys.argv[1:4]
    work = Path(folder).resolve()
    package = work / "site" / "ncg_cuda"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(REPOSITORY / "ncg_cuda", package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    compiled = subprocess.run(compilation(nvcc, architecture, work), check=False)
    if compiled.returncode != 0:
        return compiled.returncode
    wrong = imported(work / "site")
    if wrong:
        print(wrong)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
