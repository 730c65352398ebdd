"""What a program runs on: versions, processor, threads, accelerators. For records of measurements and for reports of
bugs.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES: tuple[str, ...] = (
    "numpy",
    "scipy",
    "scikit-learn",
    "matplotlib",
    "tensorflow",
    "tensorflow-cpu",
    "keras",
    "cupy-cuda12x",
    "cupy-cuda13x",
    "jax",
    "jaxlib",
    "torch",
    "mpi4py",
)
_PROBE_TIMEOUT = 10.0  # seconds; nvidia-smi can hang on a machine whose driver is broken


def package_version(name: str) -> str | None:
    """The installed version, from the package's metadata (nothing is imported), or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def cpu_name() -> str:
    """The processor's model name where the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown"


def usable_cpus() -> int:
    """Processors that this process may use (not all that the machine has)."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def gpus() -> tuple[list[str], str]:
    """Names of the NVIDIA GPUs with memory and driver, as ``nvidia-smi`` lists them, and why there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return [], "nvidia-smi is not installed, so there is no NVIDIA driver on the search path"
    query = [program, "--query-gpu=name,memory.total,driver_version,compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=_PROBE_TIMEOUT, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return [], f"nvidia-smi failed: {error}"
    if done.returncode != 0:
        return (
            [],
            f"nvidia-smi failed: {' '.join((done.stderr or done.stdout).split()) or f'exit code {done.returncode}'}",
        )
    found = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return found, "" if found else "nvidia-smi lists no GPU"


def environment(*, tensorflow: bool = False) -> dict[str, Any]:
    """A record of the machine and the software, ready for JSON; ``tensorflow`` also asks TensorFlow (and imports
    it).
    """
    from . import __version__

    record: dict[str, Any] = {
        "ncg_cuda": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "usable_cpus": usable_cpus(),
        "gpus": gpus()[0],
        "packages": {name: found for name in PACKAGES if (found := package_version(name)) is not None},
        "threads_from_environment": {
            name: os.environ[name] for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS") if name in os.environ
        },
    }
    if tensorflow:
        record["tensorflow"] = _ask_tensorflow()
    return record


def _ask_tensorflow() -> dict[str, Any]:
    import tensorflow as tf

    return {
        "version": tf.__version__,
        "intra_op_threads": tf.config.threading.get_intra_op_parallelism_threads(),  # 0: as many as there are cores
        "inter_op_threads": tf.config.threading.get_inter_op_parallelism_threads(),
        "devices": [
            device.device_type + ":" + device.name.rpartition(":")[2] for device in tf.config.list_physical_devices()
        ],
    }
