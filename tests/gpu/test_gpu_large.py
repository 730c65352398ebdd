"""Vectors of more than 2^31 elements: an index of 32 bits anywhere would show."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from ncg_cuda import Layout, ops

pytestmark = pytest.mark.gpu
N = 2**31 + 37
NEEDED = 2 * 4 * N + (1 << 30)
PLACES = {0: 1.0, 4095: 2.0, 2**31 - 1: 3.0, 2**31: 4.0, N - 1: 5.0}
"""Elements that are not zero."""


@pytest.fixture
def two(cp: Any) -> Iterator[list[Any]]:
    """Two vectors of N elements: the first with PLACES, the second with twice that."""
    pool = cp.get_default_memory_pool()
    pool.free_all_blocks()
    free = cp.cuda.runtime.memGetInfo()[0]
    if free < NEEDED:
        pytest.skip(f"needs {NEEDED / 1e9:.0f} GB of GPU memory, and {free / 1e9:.1f} GB are free")
    vectors = [cp.zeros(N, np.float32) for _ in range(2)]
    for at, value in PLACES.items():
        vectors[0][at], vectors[1][at] = value, 2 * value
    yield vectors
    vectors.clear()
    pool.free_all_blocks()


def at_places(vector: Any) -> list[float]:
    return [float(vector[at]) for at in PLACES]


def test_sums(two: list[Any]) -> None:
    a, b = two
    assert [float(s) for s in ops.dots(a, b)] == [110.0, 55.0, 220.0]


def test_pass_a_over_a_table(two: list[Any]) -> None:
    whole = 2**31 + 32  # a multiple of 16: the tensors are views of one vector
    tensors = [two[0][: 2**31 - 1008], two[0][2**31 - 1008 : whole]]
    assert Layout([t.shape for t in tensors]).size == whole
    pq, qq, pp = (float(s) for s in ops.damped_curvature(tensors, two[1][:whole], 0.5))
    # hp has 1 … 4, p twice that, so q = hp + p / 2 is twice that, too
    assert (pq, qq, pp) == (120.0, 120.0, 120.0)


def test_writing(two: list[Any]) -> None:
    """As a weighted step whose direction is its gradient, too: in two vectors."""
    d, w = two
    gd, gg, dd = (float(s) for s in ops.weighted_step(w, d, d, 3.0))
    assert gd == gg == dd == 55.0
    assert at_places(w) == [5 * value for value in PLACES.values()]
    assert float(w[N // 2]) == 0.0
    assert float(ops.dots(w, w)[0]) == 25 * 55.0  # nothing else was written
