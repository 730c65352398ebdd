"""What this installation can do, and why not the rest."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

_OP_LIBRARY = re.compile(r"^libncg_tf-(\d+\.\d+)\.so$")


@dataclass(frozen=True)
class Backend:
    """Whether one way of computing is available."""

    available: bool
    detail: str
    """What it is, or why it is not there and what would change that."""

    def __str__(self) -> str:
        return f"{'yes' if self.available else 'no'}: {self.detail}"


def backends(*, load_tensorflow: bool = False) -> dict[str, Backend]:
    """Report every backend of this installation, without importing TensorFlow unless asked.

    Args:
        load_tensorflow: import TensorFlow and try to load the op library, instead of looking for its file only.

    Returns:
        A dict with the keys ``cpu``, ``cuda``, ``cupy``, ``tensorflow_op`` and ``mpi``.
    """
    return {
        "cpu": _cpu(),
        "cuda": _cuda(),
        "cupy": _cupy(),
        "tensorflow_op": _tensorflow_op(load_tensorflow),
        "mpi": _mpi(),
    }


def _cpu() -> Backend:
    from . import _core

    threads = f"{_core.get_num_threads()} OpenMP threads" if _core.openmp else "one thread (built without OpenMP)"
    return Backend(True, f"native kernels, {threads}")


def _cuda() -> Backend:
    from . import _core

    version, devices, why = _core.cuda_status()
    if version is None:
        return Backend(False, f"{why}; install nvcc and build again: pip install -C cmake.define.NCG_CUDA=ON .")
    if devices == 0:
        return Backend(False, f"kernels built with CUDA {version}, but no usable GPU: {why}")
    return Backend(True, f"kernels built with CUDA {version}, {devices} GPU(s)")


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def _cupy() -> Backend:
    if not _installed("cupy"):
        return Backend(False, "CuPy is not installed; pip install cupy-cuda13x (or cupy-cuda12x) for arrays on a GPU")
    try:
        import cupy

        available = bool(cupy.cuda.is_available())
    except Exception as error:  # a broken CUDA installation shows up in many ways, none of them fatal here
        return Backend(False, f"CuPy does not import: {error}")
    if not available:
        return Backend(False, f"CuPy {cupy.__version__} is installed, but it finds no GPU")
    return Backend(True, f"CuPy {cupy.__version__}")


def _tensorflow_op(load: bool) -> Backend:
    if not _installed("tensorflow"):
        return Backend(False, "TensorFlow is not installed; pip install tensorflow (or tensorflow-cpu)")
    if load:
        try:
            from .tf import oplib
        except ImportError as error:
            return Backend(False, f"TensorFlow does not import: {error}")
        if oplib.load() is None:
            return Backend(False, f"{oplib.why_not()}; meanwhile the pure-TensorFlow path serves, more slowly")
        return Backend(True, f"op library for TensorFlow {oplib.running()}")
    versions = op_library_versions(native_directory())
    if not versions:
        return Backend(False, "the op library was not built; build it: pip install --no-build-isolation .")
    running = _tensorflow_version()
    if running and running not in versions:
        return Backend(False, f"the op library is built for TensorFlow {', '.join(versions)}, not {running}")
    return Backend(True, f"op library for TensorFlow {', '.join(versions)} (found, not loaded)")


def native_directory() -> Path:
    """The directory of the native libraries (where the native core stands, also in an editable installation)."""
    from . import _core

    return Path(_core.__file__).parent


def op_library_versions(where: Path) -> list[str]:
    """The TensorFlow minor versions that a directory holds an op library for, such as ``["2.21"]``."""
    return sorted(match[1] for path in where.iterdir() if (match := _OP_LIBRARY.match(path.name)))


def _tensorflow_version() -> str:
    """The minor version of the TensorFlow that is installed, from its metadata; empty where that is not clear."""
    from importlib import metadata

    for name in ("tensorflow", "tensorflow-cpu", "tensorflow-gpu", "tf-nightly"):
        try:
            return ".".join(metadata.version(name).split(".")[:2])
        except metadata.PackageNotFoundError:
            continue
    return ""


def _mpi() -> Backend:
    if not _installed("mpi4py"):
        return Backend(False, "mpi4py is not installed; pip install mpi4py")
    return Backend(True, "mpi4py is installed")
