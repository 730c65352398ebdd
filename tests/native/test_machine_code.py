"""Gates on the machine code of every kernel, for every architecture that the native core was built for."""

from __future__ import annotations

from pathlib import Path

import machine_code
import pytest

from ncg_cuda import _core

pytestmark = pytest.mark.native

# functor: (name in Python, sums)
NAMES = {
    "Accumulate": ("accumulate", 0),
    "AccumulateCurvature": ("accumulate_curvature", 3),
    "CgBegin": ("cg_begin", 1),
    "CgBeginFrom": ("cg_begin_from", 0),
    "CgFinish": ("cg_finish", 0),
    "CgRestart": ("cg_restart", 3),
    "CgUpdate": ("cg_update", 1),
    "CgUpdateDeferred": ("cg_update_deferred", 1),
    "DampedCurvature": ("damped_curvature", 3),
    "Dots": ("dots", 3),
    "Magnitude": ("magnitude", 1),
    "Pack": ("pack", 0),
    "PreconditionedBegin": ("preconditioned_begin", 2),
    "PreconditionedCurvature": ("preconditioned_curvature", 4),
    "PreconditionedUpdate": ("preconditioned_update", 2),
    "WeightedStep": ("weighted_step", 3),
}
ON_THEIR_OWN = {"Accumulate", "Dots", "Pack", "WeightedStep"}  # no pass of a solve
TAKE_TABLES = {
    "Accumulate",
    "AccumulateCurvature",
    "CgUpdate",
    "CgUpdateDeferred",
    "DampedCurvature",
    "Pack",
    "PreconditionedCurvature",
    "PreconditionedUpdate",
}


@pytest.fixture(scope="module")
def kernels() -> list[machine_code.Kernel]:
    tools = machine_code.find_tools()
    if tools is None:
        pytest.skip("needs cuobjdump and nvdisasm (pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm)")
    if _core.cuda_status()[0] is None:
        pytest.skip("this build has no CUDA engine")
    return machine_code.read(Path(_core.__file__), tools)


def test_every_kernel_is_there(kernels: list[machine_code.Kernel]) -> None:
    found = {(k.arch, k.operation, k.dtype, k.driver, k.place) for k in kernels}
    assert len(found) == len(kernels)
    assert {k.operation for k in kernels} == set(NAMES), "a new operation: add its name to the table"
    for arch in {k.arch for k in kernels}:
        for operation in NAMES:
            places = {0, 1, 2} if operation in TAKE_TABLES else {0}
            for driver in ("Direct",) if operation in ON_THEIR_OWN else ("Direct", "InSolve"):
                for dtype in ("float32", "float64", *(["bfloat16"] if operation in TAKE_TABLES else [])):
                    there = {p for a, o, t, d, p in found if (a, o, t, d) == (arch, operation, dtype, driver)}
                    assert there == places, (arch, operation, dtype, driver)


def test_no_spills_and_no_local_memory(kernels: list[machine_code.Kernel]) -> None:
    assert not [str(k) for k in kernels if k.count(r"LDL|STL")]


def test_vectors_move_in_128_bits(kernels: list[machine_code.Kernel]) -> None:
    traffic = _core.traffic()
    for kernel in kernels:
        reads, writes = traffic[NAMES[kernel.operation][0]]
        # a pointer from a table in device memory may be read by the generic form, LD
        if kernel.dtype == "bfloat16":  # four numbers of operand 0 are 64 bits
            assert kernel.count(r"LDG?\.E.*64") >= 1, str(kernel)
            reads -= 1
        assert kernel.count(r"LDG?\.E.*128") >= reads, str(kernel)
        assert kernel.count(r"STG\.E.*128") >= writes, str(kernel)


def test_float32_kernels_leave_float32_only_with_their_sums(kernels: list[machine_code.Kernel]) -> None:
    for kernel in kernels:
        if kernel.dtype == "float64":
            continue
        assert kernel.count(r"F2F\.F64\.F32") == NAMES[kernel.operation][1], str(kernel)  # one per sum, after its run
        if kernel.driver == "Direct":  # a pass of a solve also updates the float64 state, in one thread
            assert kernel.count(r"DMUL|DFMA|DSETP|MUFU\.RCP64H") == 0, str(kernel)
