"""``ncg-cuda info``: what is installed here, what works, and why the rest does not. It never fails because something
is missing.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator

from . import __version__
from .environment import PACKAGES, cpu_name, gpus, package_version, usable_cpus

Row = tuple[str, str]


def report(*, load_tensorflow: bool = False) -> str:
    """The report as text, one line per fact; ``load_tensorflow`` imports TensorFlow and loads the op library."""
    rows = [*_versions(), *_machine(), *_backends(load_tensorflow), *_mpi(), *_tensorflow_devices(load_tensorflow)]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {text}" for name, text in rows]
    if not load_tensorflow:
        lines.append(
            "\nTensorFlow was not imported; `ncg-cuda info --tensorflow` also loads it, its devices and the op library."
        )
    return "\n".join(lines)


def _versions() -> Iterator[Row]:
    yield "ncg_cuda", __version__
    yield "python", f"{sys.version.split()[0]} ({sys.executable})"
    for name in PACKAGES:
        found = package_version(name)
        if found is not None:
            yield name, found
    if package_version("tensorflow") is None and package_version("tensorflow-cpu") is None:
        yield "tensorflow", "not installed; pip install tensorflow (or tensorflow-cpu)"


def _machine() -> Iterator[Row]:
    yield "processor", f"{cpu_name()}, {usable_cpus()} usable core(s)"
    found, why = gpus()
    yield "GPU", "; ".join(found) if found else f"none: {why}"


def _backends(load_tensorflow: bool) -> Iterator[Row]:
    try:
        from . import backends

        statuses = backends(load_tensorflow=load_tensorflow)
    except Exception as error:  # a report must survive whatever is broken here: that is what it is for
        yield "backends", f"no: the native core does not load ({type(error).__name__}: {error}); reinstall ncg_cuda"
        return
    for name, status in statuses.items():
        yield f"backend {name}", str(status)


def _mpi() -> Iterator[Row]:
    beside = os.path.dirname(
        sys.executable or ""
    )  # where `pip install mpich` puts its own, in an environment not activated
    names = ("mpiexec", "mpirun", "srun")
    launchers = [path for name in names if (path := shutil.which(name) or shutil.which(name, path=beside))]
    yield "MPI launchers", ", ".join(launchers) or f"none on the search path or in {beside} ({', '.join(names)})"


def _tensorflow_devices(load: bool) -> Iterator[Row]:
    if not load:
        return
    try:
        import tensorflow as tf

        devices = [f"{d.device_type}:{d.name.rpartition(':')[2]}" for d in tf.config.list_physical_devices()]
        yield "TensorFlow devices", ", ".join(devices)
        import keras

        yield "Keras backend", keras.backend.backend()
    except Exception as error:  # as above
        yield "TensorFlow devices", f"no: TensorFlow does not import ({type(error).__name__}: {error})"
