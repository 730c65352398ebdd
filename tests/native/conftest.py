"""The emulated GPU as a fixture: the fake CuPy in place of the real one, and a core whose CUDA engine it runs."""

from __future__ import annotations

import ctypes
import shutil
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from emulated_core import Core, build

import ncg_cuda.graph  # noqa: F401 - what it loads is patched below, and must not be loaded while it is
from ncg_cuda import _core as real_core
from ncg_cuda import ops, streams

ITEMSIZE = (4, 8, 4)  # of ncg::Dtype's vectors


@pytest.fixture(scope="session")
def emulated_core(tmp_path_factory: pytest.TempPathFactory) -> Core:
    """Built once."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    return Core(build(tmp_path_factory.mktemp("emulated_core")))


def watched(core: Core, gpu: Any, calls: list[SimpleNamespace]) -> ModuleType:
    """The module with its operations recorded, and the memory that they are given checked."""
    module = ModuleType("ncg_cuda._core")
    module.__dict__.update(core.module.__dict__)
    sums = 8 * 4

    def wrap(name: str, run: Any) -> Any:
        def call(on_gpu: bool, dtype: int, n: int, operands: list[int], **where: Any) -> None:
            calls.append(SimpleNamespace(name=name, on_gpu=on_gpu, dtype=dtype, n=n, operands=operands, **where))
            if on_gpu:
                count, table = where.get("segment_count", 0), where.get("segments")
                first = 2 if dtype == 2 else ITEMSIZE[dtype]
                for k, address in enumerate(operands):
                    if k > 0 or not count:
                        gpu.check_access(f"{name}, operand {k}", address, n * (first if k == 0 else ITEMSIZE[dtype]))
                if count:
                    for data, _, length in np.ctypeslib.as_array(_pointer(table), (count, 3)):
                        if length:
                            gpu.check_access(f"{name}, a tensor", int(data), int(length) * first)
                room = {"partials": 8 * module.partials_size(n, count), "ticket": 8, "out": sums}
                for part, nbytes in {**room, "state": 8 * len(ops.STATE_FIELDS)}.items():
                    if part in where:
                        gpu.check_access(f"{name}, {part}", where[part], nbytes)
            run(on_gpu, dtype, n, operands, **where)

        return call

    for name in (*core.module.traffic(), "unpack"):
        setattr(module, name, wrap(name, getattr(core.module, name)))
    return module


def _pointer(address: int) -> Any:
    return ctypes.cast(address, ctypes.POINTER(ctypes.c_int64))


@pytest.fixture
def gpu(emulated_core: Core, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The GPU behind the fake CuPy, which stands where CuPy does; ``gpu.cupy`` is it, ``gpu.calls`` what was run."""
    import fake_cupy

    gpu = fake_cupy.GPU
    gpu.reset()
    gpu.cupy, gpu.calls = fake_cupy, []
    gpu.run_native = emulated_core.run
    gpu.stop_offset = 8 * ops.STATE_FIELDS.index("stop")
    emulated_core.listen(gpu.answer)
    emulated_core.forget()
    emulated_core.seed(1)
    module = watched(emulated_core, gpu, gpu.calls)
    for name, loaded in list(sys.modules.items()):
        if name.partition(".")[0] == "ncg_cuda" and loaded.__dict__.get("_core") is real_core:
            monkeypatch.setattr(loaded, "_core", module)
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy)
    monkeypatch.setitem(sys.modules, "torch", None)
    streams._in_flight.clear()
    yield gpu
    streams._in_flight.clear()
    problems = gpu.problems()
    gpu.reset()
    assert problems == []
