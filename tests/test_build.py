"""The build says clearly what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


def configure(tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run CMake's configuration where no nvcc can be found."""
    pybind11 = subprocess.run(
        [sys.executable, "-m", "pybind11", "--cmakedir"], capture_output=True, text=True, check=True
    ).stdout.strip()
    # an empty directory in nvcc's place: the rest of the machine's tools stay
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("c++", "g++", "cc", "make", "ld", "as", "ar", "uname"):
        for directory in os.environ["PATH"].split(os.pathsep):
            if (Path(directory) / tool).exists():
                (tools / tool).symlink_to(Path(directory) / tool)
                break
    environment = {k: v for k, v in os.environ.items() if k not in ("CUDACXX", "CUDA_PATH", "CUDA_HOME")}
    environment["PATH"] = f"{tools}{os.pathsep}{BIN}"
    command = [str(BIN / "cmake"), "-S", str(ROOT), "-B", str(tmp_path / "build"), "-G", "Ninja"]
    command += [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11}", "-DNCG_TENSORFLOW=OFF", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)


@pytest.mark.skipif(not (BIN / "cmake").exists(), reason="needs the development extra (cmake)")
class TestCuda:
    def test_on_without_nvcc_stops_with_the_remedy(self, tmp_path: Path) -> None:
        done = configure(tmp_path, "-DNCG_CUDA=ON", "-DCMAKE_CUDA_COMPILER=CMAKE_CUDA_COMPILER-NOTFOUND")
        assert done.returncode != 0
        said = " ".join(done.stderr.split())
        assert "NCG_CUDA=ON, but no working nvcc was found" in said
        assert "NCG_CUDA=OFF" in said

    def test_auto_without_nvcc_builds_the_cpu_engine(self, tmp_path: Path) -> None:
        done = configure(tmp_path, "-DNCG_CUDA=AUTO", "-DCMAKE_CUDA_COMPILER=CMAKE_CUDA_COMPILER-NOTFOUND")
        assert done.returncode == 0, done.stderr
        assert "no nvcc found, CPU engine only" in done.stdout

    def test_an_unknown_setting_is_named(self, tmp_path: Path) -> None:
        done = configure(tmp_path, "-DNCG_CUDA=MAYBE")
        assert done.returncode != 0
        assert "NCG_CUDA=MAYBE is none of AUTO, ON, OFF" in " ".join(done.stderr.split())
