"""Finds and loads the TensorFlow op library that was built for the TensorFlow that is running.

The op's C++ ABI belongs to one TensorFlow minor version, which the file name carries (``libncg_tf-2.21.so``): a library
for another version is never opened.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import tensorflow as tf

from .. import _core
from ..installation import native_directory, op_library_versions

REBUILD = "pip install --no-build-isolation --no-deps --force-reinstall . (in the source directory of ncg_cuda)"
"""The one command that builds the op for the TensorFlow that is installed now."""


def running() -> str:
    """The minor version of the TensorFlow that is imported."""
    return ".".join(tf.__version__.split(".")[:2])


def find(where: Path | None = None, version: str | None = None) -> tuple[Path | None, str]:
    """The library for a TensorFlow version (by default the running one), or None and why there is none."""
    where = native_directory() if where is None else where
    version = running() if version is None else version
    built = op_library_versions(where)
    if version in built:
        return where / f"libncg_tf-{version}.so", ""
    if built:
        return (
            None,
            f"the op library is built for TensorFlow {', '.join(built)}, but {version} is running; rebuild: {REBUILD}",
        )
    return None, f"the op library was not built (TensorFlow was not there at installation); build it: {REBUILD}"


@cache
def _load() -> tuple[Any, str]:
    path, why = find()
    if path is None:
        return None, why
    try:
        return tf.load_op_library(str(path)), ""
    except (tf.errors.OpError, OSError, RuntimeError) as error:
        return None, f"{path.name} does not load ({error}); rebuild: {REBUILD}"


def load() -> Any:
    """The module of ops (``ncg_cg_iterate`` and so on), or None where there is no usable library."""
    return _load()[0]


def why_not() -> str:
    """Why :func:`load` returns None, and the command that mends it; empty where it does not."""
    return _load()[1]


@cache
def _load_xla() -> tuple[Any, str]:
    path = native_directory() / f"libncg_tf_xla-{running()}.so"
    if not path.exists():
        return None, (
            f"this function is compiled by XLA, and the op library was built without kernels for XLA in TensorFlow "
            f"{running()}, whose headers may not allow it; use jit_compile=False, or rebuild: {REBUILD}"
        )
    try:
        return tf.load_op_library(str(path)), ""
    except (tf.errors.OpError, OSError, RuntimeError) as error:
        return None, f"{path.name} does not load ({error}); rebuild: {REBUILD}"


def load_xla() -> Any:
    """The module of the ops that XLA compiles for the CPU (``ncg_list_cg_iterate`` and so on), or None."""
    return _load_xla()[0]


def why_not_xla() -> str:
    """Why :func:`load_xla` returns None, and the command that mends it; empty where it does not."""
    return _load_xla()[1]


def has_gpu_kernels() -> bool:
    """Whether the library that is loaded has kernels for GPUs, that is, was built with CUDA."""
    from tensorflow.python.framework.kernels import get_registered_kernels_for_op

    return load() is not None and any(
        kernel.device_type == "GPU" for kernel in get_registered_kernels_for_op("NcgCgIterate").kernel
    )


def why_not_on_gpu() -> str | None:
    """Why the op cannot run on the GPUs that TensorFlow sees, and what mends it; None if it can."""
    if not has_gpu_kernels():
        return (
            "TensorFlow sees a GPU, but the op library was built without GPU kernels (no nvcc was found, or "
            "NCG_CUDA=OFF), and its CPU kernels would copy every vector in every iteration; put nvcc on the PATH and "
            f"rebuild: {REBUILD}"
        )
    version, devices, why = _core.cuda_status()  # of the CUDA runtime that both native libraries were built with
    if devices == 0:
        return (
            f"TensorFlow sees a GPU, but CUDA {version}, which the op library was built with, does not ({why}); update "
            f"the GPU's driver, or rebuild with an older nvcc: {REBUILD}"
        )
    return None
