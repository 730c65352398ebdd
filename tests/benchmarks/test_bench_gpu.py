"""The benchmark's GPU side: yardsticks against NumPy, clocks by CUDA graph, counted launches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ncg_cuda import _core
from ncg_cuda.benchmarks import iteration, operations, sizes, yardsticks
from ncg_cuda.benchmarks.devices import Gpu, choose
from ncg_cuda.benchmarks.measure import reason
from ncg_cuda.benchmarks.peers import select
from ncg_cuda.catalog import OPERATIONS
from ncg_cuda.layout import Layout

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def device() -> Any:
    found = choose("gpu", None)
    assert isinstance(found, Gpu)
    found.cache_bytes = 1 << 20
    return found


@pytest.mark.parametrize("shape", _core.STREAM_SHAPES)
def test_streams_do_their_work(device: Gpu, shape: tuple[int, int, int]) -> None:
    reads, writes, count = shape
    rng = np.random.default_rng(0)
    ran = 0
    for n in (3, 5_003, 300_007):
        for variant in range(len(yardsticks.GPU_VARIANTS)):
            before = [rng.random(n, dtype=np.float32) for _ in range(count)]
            vectors = [device.xp.asarray(v) for v in before]
            try:
                (total,) = yardsticks.stream(vectors, reads, writes, scale=0.75, variant=variant)().get()
            except RuntimeError as error:  # a block of 1024 threads may need more registers than there are
                assert "resources" in reason(error)  # noqa: PT017
                continue
            ran += 1
            assert total == pytest.approx(sum(float(v.sum(dtype=np.float64)) for v in before[:reads]), rel=1e-5)
            for k, vector in enumerate(vectors):
                stored = k >= count - writes
                expected = np.float32(0.75) * before[k if k < reads else 0] if stored else before[k]
                np.testing.assert_array_equal(vector.get(), expected)
    assert ran >= 3 * 12


@pytest.mark.parametrize("layout", [None, Layout([(40, 5), (3,), (), (77,)])])
def test_operations_and_iteration_are_measured(device: Gpu, layout: Layout | None) -> None:
    size = sizes.Size("test", 5_003 if layout is None else layout.size, layout)
    measured = operations.measure(device, size, OPERATIONS, 2)
    assert measured.results
    for r in measured.results:
        assert not r.failed
        assert r.launches in (None, 1.0)
        assert r.percent_of_yardstick is not None
    found = iteration.measure(device, size, select("cupy,cupyx", device), 2)
    errors = {r.contender: r.error for r in found.results if not r.failed or "clock" in r.failed}
    assert {
        "ncg_cuda passes",
        "ncg_cuda passes, 9 vectors",
        "ncg_cuda passes, CUDA graph",
        "ncg_cuda.cg",
        "CuPy",
        "cupyx cg",
    } <= set(errors)
    assert all(error is not None and error < 1e-3 for error in errors.values())
    graph = next(r for r in found.results if "graph" in r.contender)
    assert graph.launches in (None, 2.0)
