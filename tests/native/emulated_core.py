"""Builds and loads a ncg_cuda._core whose CUDA engine runs in the emulator, on the streams of the fake CuPy."""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
import os
import subprocess
import sysconfig
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import emulated
import pybind11

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FLAGS = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-w", "-Wno-psabi"]
FLAGS += ["-DNCG_MAX_BLOCKS=2", "-DNCG_WITH_CUDA"]

Hook = ctypes.CFUNCTYPE(
    ctypes.c_int64, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64
)


def _compile(*arguments: str) -> None:
    subprocess.run([os.environ.get("CXX", "g++"), *arguments], check=True)


def build(where: Path, sources: Path = emulated.CSRC) -> Path:
    """Compile the bindings and the CUDA engine, as C++, into an extension module."""
    bindings = ROOT / "bindings"
    own = HERE / "emulated_core"
    include = [own, HERE / "emulator", sources, bindings, pybind11.get_include(), sysconfig.get_path("include")]
    jobs = [bindings / "module.cpp", bindings / "arrays.cpp", HERE / "emulator" / "emulator.cc", own / "core.cc"]
    jobs += sorted((sources / "ncg/cuda").glob("*.cu"))

    def compiled(source: Path) -> str:
        target = where / f"{source.stem}.o"
        flags = [*FLAGS, *(f"-I{path}" for path in include)]
        flags.append("-O0" if source.suffix == ".cpp" else "-O1")  # the bindings are slow to compile
        _compile(*flags, "-x", "c++", "-c", str(source), "-o", str(target))
        return str(target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, jobs))
    module = where / f"_core{sysconfig.get_config_var('EXT_SUFFIX')}"
    _compile("-shared", *objects, "-o", str(module))
    return module


class Core:
    """The extension module, and the emulation behind it."""

    def __init__(self, path: Path) -> None:
        name = "emulated._core"  # under the real module's name, pybind11 would give that one
        loader = importlib.machinery.ExtensionFileLoader(name, str(path))
        spec = importlib.util.spec_from_loader(name, loader)
        assert spec is not None
        self.module: ModuleType = importlib.util.module_from_spec(spec)
        loader.exec_module(self.module)
        self._library = ctypes.CDLL(str(path))
        self._hook: Any = None

    def listen(self, hook: Callable[[bytes, int, int, int, int], int]) -> None:
        """Have launches, copies and loops of the engine reported; see queue.h."""
        self._hook = Hook(lambda what, *rest: hook(what, *(number or 0 for number in rest)))
        self._library.ncg_emulated_hook(self._hook)

    def run(self, work: int) -> None:
        """Run a reported launch, now."""
        self._library.ncg_emulated_run(ctypes.c_int64(work))

    def seed(self, seed: int) -> None:
        """Choose the order of threads and blocks."""
        self._library.ncg_emulated_seed(ctypes.c_uint64(seed))

    def forget(self) -> None:
        """Forget all reported launches."""
        self._library.ncg_emulated_forget()
