"""The GPU kernels of the op without a GPU: registered, linked to no CUDA library, run on the CPU by the emulator."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.python.framework import kernels

from ncg_cuda import _core
from ncg_cuda.installation import native_directory
from ncg_cuda.tf import oplib

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
SCALARS = {
    "NcgPack": [],
    "NcgViews": [],
    "NcgMagnitude": [],
    "NcgDots": ["scale_a", "scale_b"],
    "NcgScaled": ["first", "scale", "factor"],
    "NcgCgBegin": ["tau", "cg_tol", "max_iter"],
    "NcgCgIterate": [],
    "NcgCgFinish": [],
}
needs_cuda_build = pytest.mark.skipif(_core.cuda_status()[0] is None, reason="this build has no CUDA engine")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def registered(op: str, device: str) -> dict[int, list[str]]:
    """Data type -> inputs in host memory, of the op's kernels for the device."""
    assert oplib.load() is not None, oplib.why_not()
    found = {}
    for kernel in kernels.get_registered_kernels_for_op(op).kernel:
        if kernel.device_type == device:
            (constraint,) = kernel.constraint
            (dtype,) = constraint.allowed_values.list.type
            found[dtype] = list(kernel.host_memory_arg)
    return found


@needs_cuda_build
@pytest.mark.parametrize("op", SCALARS)
def test_every_op_has_its_gpu_kernels(op: str) -> None:
    scalars = SCALARS[op]
    assert registered(op, "GPU") == {types_pb2.DT_FLOAT: scalars, types_pb2.DT_DOUBLE: scalars}
    assert registered(op, "CPU").keys() == registered(op, "GPU").keys()
    assert oplib.has_gpu_kernels()


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf (binutils)")
def test_the_library_needs_no_cuda_library() -> None:
    """CUDA's runtime is linked in; StreamExecutor is reached through virtual functions alone, so no symbol can miss."""
    library = native_directory() / f"libncg_tf-{oplib.running()}.so"
    needed = subprocess.run(["readelf", "-d", str(library)], capture_output=True, text=True, check=True).stdout
    assert "libtensorflow_framework" in needed
    assert "cuda" not in needed.lower()
    symbols = subprocess.run(
        ["readelf", "--dyn-syms", "--wide", str(library)], capture_output=True, text=True, check=True
    ).stdout
    undefined = [line for line in symbols.splitlines() if " UND " in line]
    assert any("tensorflow" in line for line in undefined)
    assert not [line for line in undefined if "stream_executor" in line or " cuda" in line]


def build(where: Path) -> Path:
    """The GPU kernels and the CUDA engine as C++, in a library whose kernels TensorFlow prefers to the CPU kernels."""
    emulator = HERE.parent / "native" / "emulator"
    flags = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-w", "-DNCG_MAX_BLOCKS=2"]
    flags += [flag for flag in tf.sysconfig.get_compile_flags() if flag.startswith("-D")]
    flags += [f"-I{HERE / 'emulated'}", f"-I{emulator}", f"-I{CSRC}", "-isystem", tf.sysconfig.get_include()]
    sources = [CSRC / "tensorflow" / "kernels_gpu.cc", emulator / "emulator.cc"]
    sources += [HERE / "emulated" / "engine.cc", HERE / "emulated" / "counts.cc"]

    def compiled(source: Path) -> str:
        target = where / f"{source.name}.o"
        subprocess.run(["g++", *flags, "-x", "c++", "-c", str(source), "-o", str(target)], check=True)
        return str(target)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, sources))
    library = where / "libemulated.so"
    subprocess.run(["g++", "-shared", *objects, "-o", str(library), *tf.sysconfig.get_link_flags()], check=True)
    return library


@pytest.fixture(scope="module")
def emulated_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What run_cases.py found."""
    library = build(tmp_path_factory.mktemp("emulated"))
    done = subprocess.run(
        [sys.executable, str(HERE / "emulated" / "run_cases.py"), str(library)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@needs_compiler
def test_emulated_kernels_agree_with_the_reference(emulated_run: dict[str, Any]) -> None:
    """Tables of up to 200 tensors, odd sizes, in place and not; also negative curvature, at once and late."""
    assert len(emulated_run["differences"]) == 2 * (5 * 3 + 4)
    assert {case: found for case, found in emulated_run["differences"].items() if found} == {}


@needs_compiler
def test_an_iteration_is_two_launches_and_no_copy(emulated_run: dict[str, Any]) -> None:
    three, six = emulated_run["three"], emulated_run["six"]
    ops, launches, copies, written_bytes = (late - early for early, late in zip(three, six, strict=True))
    assert (ops, launches, copies, written_bytes) == (3, 6, 0, 0)
