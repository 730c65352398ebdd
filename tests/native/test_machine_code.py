"""Gates on the machine code of every kernel, for every architecture that the native core was built for."""

from __future__ import annotations

from pathlib import Path

import machine_code
import pytest

from ncg_cuda import _core

pytestmark = pytest.mark.native

NAMES = {
    "DampedCurvature": "damped_curvature",
    "CgUpdate": "cg_update",
    "WeightedStep": "weighted_step",
    "Dots": "dots",
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
            drivers = ("Direct",) if operation == "WeightedStep" else ("Direct", "InSolve")
            for driver in drivers:
                for dtype in ("float32", "float64"):
                    assert {p for a, o, t, d, p in found if (a, o, t, d) == (arch, operation, dtype, driver)} == {
                        0,
                        1,
                        2,
                    }


def test_no_spills_and_no_local_memory(kernels: list[machine_code.Kernel]) -> None:
    assert not [str(k) for k in kernels if k.count(r"LDL|STL")]


def test_vectors_move_in_128_bits(kernels: list[machine_code.Kernel]) -> None:
    traffic = _core.traffic()
    for kernel in kernels:
        reads, writes = traffic[NAMES[kernel.operation]]
        # a pointer from a table in device memory may be read by the generic form, LD
        assert kernel.count(r"LDG?\.E.*128") >= reads, str(kernel)
        assert kernel.count(r"STG\.E.*128") >= writes, str(kernel)


def test_float32_kernels_leave_float32_only_with_their_sums(kernels: list[machine_code.Kernel]) -> None:
    sums = {"DampedCurvature": 3, "CgUpdate": 1, "WeightedStep": 3, "Dots": 3}
    for kernel in kernels:
        if kernel.dtype != "float32":
            continue
        assert kernel.count(r"F2F\.F64\.F32") == sums[kernel.operation], str(kernel)  # one per sum, after its run
        if kernel.driver == "Direct":  # a pass of a solve also updates the float64 state, in one thread
            assert kernel.count(r"DMUL|DFMA|DSETP|MUFU\.RCP64H") == 0, str(kernel)
