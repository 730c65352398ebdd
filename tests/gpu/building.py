"""How a check builds the library: with CMake where it is, else with nvcc alone. Into a folder; nothing is installed."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import sysconfig
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def command(python: str, nvcc: str, architecture: str, work: Path) -> list[str]:
    """The command that builds the package into ``work/site``, without its TensorFlow op."""
    if importlib.util.find_spec("scikit_build_core") is not None and _cmake():
        definitions = {"NCG_CUDA": "ON", "NCG_TENSORFLOW": "OFF", "CMAKE_CUDA_COMPILER": nvcc}
        definitions["CMAKE_CUDA_ARCHITECTURES"] = f"{architecture}-real"
        options = [option for k, v in definitions.items() for option in ("-C", f"cmake.define.{k}={v}")]
        pip = [python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index", "--upgrade"]
        where = ["-C", f"build-dir={work / 'cmake'}", "--target", str(work / "site")]
        return [*pip, *options, *where, str(REPOSITORY)]
    return [python, str(Path(__file__)), nvcc, architecture, str(work)]


def _cmake() -> bool:
    return shutil.which("cmake") is not None or importlib.util.find_spec("cmake") is not None


def by_nvcc(nvcc: str, architecture: str, work: Path) -> list[str]:
    """The one command that compiles the core where there is no CMake."""
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


def main() -> int:
    """Build with nvcc alone: arguments nvcc, architecture, work folder."""
    import subprocess

    nvcc, architecture, folder = sys.argv[1:4]
    site = Path(folder) / "site" / "ncg_cuda"
    shutil.rmtree(site, ignore_errors=True)
    shutil.copytree(REPOSITORY / "ncg_cuda", site, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return subprocess.run(by_nvcc(nvcc, architecture, Path(folder)), check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
