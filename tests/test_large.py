"""Vectors of more than 2^31 and 2^32 elements on the CPU engine: sizes and indices are 64-bit.

The memory is virtual, so the truth is known by hand: a few numbers in zeros, or one short period many times. The CUDA
engine's indices are tested in native/test_emulated_large.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest
import virtual_memory
from virtual_memory import Periodic, untouched

from ncg_cuda import Layout, _core, ops, reference

pytestmark = pytest.mark.skipif(not virtual_memory.overcommits(), reason="the kernel gives out no untouched memory")

HALF, FULL = 2**31, 2**32
PERIOD = 3 * 2**18  # divides no power of two: an index that wrapped would meet other numbers
N = HALF + 3 * ops.CHUNK + 77


def beyond(limit: int) -> int:
    """Where the tail of a periodic vector begins."""
    return (limit // PERIOD + 1) * PERIOD


@pytest.fixture(autouse=True)
def _stays_small() -> Iterator[None]:
    before = virtual_memory.resident_bytes()
    yield
    assert virtual_memory.resident_bytes() - before < 400e6


def sparse(n: int, values: dict[int, float], dtype: type = np.float32) -> np.ndarray:
    vector = untouched(n, dtype)
    for i, value in values.items():
        vector[i] = value
    return vector


def test_workspaces_of_any_size() -> None:
    for n in (HALF - 1, HALF, HALF + 1, FULL, FULL + 1, 2**40 + 5):
        assert _core.partials_size(n, 0) == -(-n // ops.CHUNK) * 4


def test_pass_a() -> None:
    hp = sparse(N, {0: 2, 77: 5, HALF - 1: 3, HALF: 7, HALF + 77: 11, N - 1: 13})
    p = sparse(N, {0: 1, 77: 1, HALF - 1: 2, HALF: 4, HALF + 77: -1, N - 1: 3, N - 2: 9})
    at = [0, 77, HALF - 1, HALF, HALF + 77, N - 2, N - 1]
    assert ops.dots(hp, p) == reference.dots(hp[at], p[at])
    assert ops.damped_curvature(hp, p, 0.5) == reference.damped_curvature(hp[at], p[at], 0.5)
    assert ops.magnitude(p) == 21.0
    assert ops.cg_restart(hp, p, hp, scale=2.0) == reference.cg_restart(hp[at], p[at], hp[at], 2.0)


def test_pass_a_on_a_table_beyond_both_limits() -> None:
    """Segments that start beyond 2^31 and 2^32, at odd addresses, and long ones that reach across."""
    layout = Layout([(HALF - 40,), (300,), (5000,), (HALF + 9,), (9001,), (33,), (1,)])
    assert (layout.offsets[2] > HALF, layout.offsets[4] > FULL) == (True, True)
    rng = np.random.default_rng(0)
    tensors = [untouched(s[0]) if s[0] > 1e6 else rng.integers(-3, 4, s[0] + 1).astype("f")[1:] for s in layout.shapes]
    tensors[0][[3, -1]], tensors[3][[0, 5000, -1]] = (2, 5), (3, 4, 7)
    p = untouched(layout.size)
    pairs = []  # (hp, p) wherever one of them is not zero
    for view, tensor in zip(layout.views(p), tensors, strict=True):
        at = np.arange(len(tensor)) if len(tensor) < 1e6 else np.array([0, 3, 5000, len(tensor) - 1])
        view[at] = rng.integers(-3, 4, len(at))
        pairs.append((tensor[at], view[at]))
    hp_there, p_there = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    got = ops.damped_curvature(tensors, p, 0.5, layout=layout)
    assert got == reference.damped_curvature(hp_there, p_there, 0.5)


@pytest.mark.parametrize(
    ("limit", "table"),
    [(HALF, True), *(pytest.param(FULL, table, marks=pytest.mark.native) for table in (False, True))],
)
def test_pass_b(limit: int, table: bool) -> None:
    """The period is left as it is, in any order of the chunks, all of which write it; the tail moves."""
    rng = np.random.default_rng(1)
    start = beyond(limit)
    n = start + 3 * ops.CHUNK + 77
    even = 2 * rng.integers(-1, 2, PERIOD).astype(np.float32)
    large = rng.choice(np.float32([-1.5, 1.5]), PERIOD) * np.float32(2**26)  # whose spacing is 8
    periods = [-even / 2, large, even / 2, even]
    steps = {"beta": 0.5, "tau": 0.5, "alpha_x": 0.5}  # hp + tau p = 0, r + beta p = p, and x does not notice
    with contextlib.ExitStack() as stack:
        hp, x, r, p = made = [stack.enter_context(Periodic(v, n)) for v in periods]
        for vector in made:
            vector.tail[:] = rng.integers(-3, 4, len(vector.tail))
        assert len(x.vector) - len(x.tail) == start > limit
        tails = [v.tail.copy() for v in made]
        product, layout, size = hp.vector, None, n
        if table:
            layout = Layout([(start,), (40,), (9003,)])
            size = layout.size
            product = [part.copy() if part.size < 1e6 else part for part in layout.views(hp.vector[:size])]
            tails[0][40:48] = tails[0][48 + 9003 :] = 0  # padding
        vectors = (v.vector[:size] for v in (x, r, p))
        rr = ops.cg_update(*vectors, product, alpha=0.25, layout=layout, **steps)
        want = reference.cg_update(*(tails[k][: size - start] for k in (1, 2, 3, 0)), alpha_r=0.25, **steps)
        for vector, exact in zip((x, r, p), want, strict=False):
            assert np.array_equal(vector.tail[: size - start], exact)
        for vector, period in zip(made, periods, strict=True):
            assert np.array_equal(vector.period, period)
        assert rr == r.times * float(np.square(periods[2], dtype=float).sum()) + want[3]


@pytest.mark.native
@pytest.mark.parametrize("operation", ["cg_begin", "pack", "unpack"])
def test_what_only_writes(operation: str) -> None:
    """Every element, also beyond 2^32, gets its number: all start as NaN."""
    rng = np.random.default_rng(2)
    start = beyond(FULL)
    n = start + 3 * ops.CHUNK + 80
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(Periodic(rng.integers(-3, 4, PERIOD).astype(np.float32), n))
        source.tail[:] = rng.integers(-3, 4, len(source.tail))
        nan = np.full(PERIOD, np.nan, np.float32)
        targets = [stack.enter_context(Periodic(nan, n)) for _ in range(3 if operation == "cg_begin" else 1)]
        for target in targets:
            target.tail[:] = np.nan
        tensors = (slice(0, start), slice(start, start + 1600), slice(start + 1600, n))
        if operation == "cg_begin":
            rr = ops.cg_begin(source.vector, *(t.vector for t in targets), scale=2.0)
            squares = source.times * np.square(source.period, dtype=float).sum()
            assert rr == 4 * (squares + np.square(source.tail, dtype=float).sum())
        elif operation == "pack":
            ops.pack([source.vector[part] for part in tensors], targets[0].vector, 2.0)
        else:
            ops.unpack(source.vector, [targets[0].vector[part] for part in tensors], 2.0)
        for k, target in enumerate(targets):
            factor = 0.0 if operation == "cg_begin" and k == 0 else 2.0
            assert np.array_equal(target.period, factor * source.period)
            assert np.array_equal(target.tail, factor * source.tail)
