"""What a check on a GPU finds on the machine: standard library only, so that it can say what is missing."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

NO_GPU, NO_NVCC, NO_PACKAGE = 3, 4, 5
"""Exit codes of a check that cannot run here."""

PACKAGES = {"numpy": "numpy", "cupy": "cupy-cuda13x", "pybind11": "pybind11", "pytest": "pytest"}
"""Modules that the check needs, and what to install for them."""


class Missing(Exception):
    """Something that the check needs is not there."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Gpu:
    """The first GPU that the driver shows."""

    name: str
    architecture: str
    """Compute capability without the dot, such as ``"90"``."""
    count: int
    memory: int
    """Bytes of device memory."""


def find_gpu() -> Gpu:
    """Ask the driver, not a library that may be missing, too.

    Raises:
        Missing: no driver, or no GPU.
    """
    wanted = "this check needs a machine with an NVIDIA GPU"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise Missing(f"no GPU: there is no NVIDIA driver here (libcuda.so.1); {wanted}", NO_GPU) from None
    status = driver.cuInit(0)
    count = ctypes.c_int(0)
    if status == 0:
        driver.cuDeviceGetCount(ctypes.byref(count))
    if count.value == 0:
        raise Missing(f"no GPU: the driver shows none (cuInit gives {status}; CUDA_VISIBLE_DEVICES?); {wanted}", NO_GPU)
    device = ctypes.c_int(0)
    driver.cuDeviceGet(ctypes.byref(device), 0)
    name = ctypes.create_string_buffer(200)
    driver.cuDeviceGetName(name, 200, device)
    capability = []
    for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
        value = ctypes.c_int(0)
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(str(value.value))
    memory = ctypes.c_size_t(0)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    return Gpu(name.value.decode(errors="replace"), "".join(capability), count.value, memory.value)


def find_nvcc() -> str:
    """The CUDA compiler.

    Raises:
        Missing: none on the PATH, in CUDACXX or in CUDA_HOME.
    """
    found = tool("nvcc", os.environ.get("CUDACXX"))
    if found is None:
        raise Missing(
            "no nvcc: put the CUDA toolkit's bin directory on the PATH, or set CUDACXX=/path/to/nvcc or CUDA_HOME",
            NO_NVCC,
        )
    return found


def check_packages() -> None:
    """Whether this Python has what the check needs.

    Raises:
        Missing: a package is not installed.
    """
    missing = [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise Missing(
            f"{sys.executable} lacks {', '.join(missing)}: pip install {' '.join(missing)}, or name another Python: "
            "make gpu-check PYTHON=/path/to/python",
            NO_PACKAGE,
        )


def tool(name: str, first: str | None = None) -> str | None:
    """A program of the CUDA toolkit: ``first``, on the PATH, in CUDA_HOME, in /usr/local/cuda or in a Python wheel."""
    homes = [os.environ.get(variable) for variable in ("CUDA_HOME", "CUDA_PATH")]
    folders = [Path(home) / sub for home in [*homes, "/usr/local/cuda"] if home for sub in ("bin", name)]
    for entry in sys.path:
        folders += sorted(Path(entry or ".").glob(f"nvidia/*/{name}")) + sorted(Path(entry or ".").glob("nvidia/*/bin"))
    for candidate in (first, shutil.which(name), *(str(folder / name) for folder in folders)):
        if candidate and Path(candidate).is_file() and os.access(candidate, os.X_OK):
            return candidate
    return None
