"""Every operation on the GPU: against the float64 reference, against the CPU engine, and against itself."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from gpu_support import DTYPES, bits, check
from test_ops import SIZES, vectors

from ncg_cuda import _core, backends, ops
from ncg_cuda.catalog import OPERATIONS, Operation

pytestmark = pytest.mark.gpu
LARGE = 25_600_000


def test_this_installation_says_that_it_has_a_gpu(cp: Any) -> None:
    version, devices, why = _core.cuda_status()
    assert version is not None, why
    assert devices == cp.cuda.runtime.getDeviceCount()
    assert backends()["cuda"].available
    assert backends()["cupy"].available


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [*SIZES, 40 * ops.CHUNK + 19])
def test_agrees_with_reference_and_with_the_cpu(cp: Any, operation: Operation, dtype: type, n: int) -> None:
    inputs = vectors(operation.vectors, n, dtype)
    got = operation.native(*[cp.asarray(v) for v in inputs])
    check(operation, inputs, got)
    # the CPU engine sums in the same order but for the last bits of a run
    check_pair(inputs, got, operation.native(*[v.copy() for v in inputs]))


def check_pair(inputs: list[np.ndarray], on_gpu: Any, on_cpu: Any) -> None:
    eps = float(np.finfo(inputs[0].dtype).eps)
    for a, b in zip(on_gpu[0], on_cpu[0], strict=True):
        assert np.abs(a.get() - b).max() <= 4 * eps * max(1.0, np.abs(b).max())
    scale = sum(float(np.square(v.astype(np.float64)).sum()) for v in [*inputs, *on_cpu[0]])
    for a, b in zip(on_gpu[1], on_cpu[1], strict=True):
        assert abs(float(a) - b) <= 4 * eps * scale


@lru_cache(maxsize=1)
def many(n: int, dtype: type) -> list[np.ndarray]:
    rng = np.random.default_rng(n)
    return [2 * rng.random(n, dtype=dtype) - dtype(1) for _ in range(max(o.vectors for o in OPERATIONS))]


@pytest.mark.parametrize(("n", "dtype"), [(3_000_017, np.float64), (LARGE, np.float32)])
@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_agrees_with_reference_on_millions(cp: Any, operation: Operation, n: int, dtype: type) -> None:
    inputs = many(n, dtype)[: operation.vectors]
    check(operation, inputs, operation.native(*[cp.asarray(v) for v in inputs]))


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_in_every_run(cp: Any, operation: Operation, dtype: type) -> None:
    """Whatever order the blocks run in, on whichever stream, in a workspace of its own or in one that was used."""
    inputs = vectors(operation.vectors, 1000 * ops.CHUNK + 19, dtype)
    workspace = ops.Workspace(cp.asarray(inputs[0]))
    stream = cp.cuda.Stream(non_blocking=True)
    found = set()
    for run in range(6):
        operands = [cp.asarray(v) for v in inputs]
        cp.cuda.get_current_stream().synchronize()
        if run % 3 == 0:
            found.add(bits(operation.native(*operands)))
        elif run % 3 == 1:
            found.add(bits(operation.native(*operands, workspace=workspace)))
        else:
            with stream:
                found.add(bits(operation.native(*operands)))
    assert len(found) == 1


def test_long_float32_sums_do_not_drift(cp: Any) -> None:
    """Sums of equal terms, where a naive float32 sum would be off by percents."""
    n = 100_000_003
    a = cp.full(n, 0.1, np.float32)
    ab, aa, bb = (float(s) for s in ops.dots(a, a))
    assert ab == aa == bb == pytest.approx(n * float(np.float32(0.1)) ** 2, rel=2e-6)


def test_sums_stay_on_the_gpu(cp: Any) -> None:
    a = cp.asarray(np.arange(100, dtype=np.float32))
    for value in ops.dots(a, a):
        assert type(value) is cp.ndarray
        assert (value.dtype, value.shape) == (np.float64, ())
        assert float(value) == 328350.0


def test_any_shape_is_flat(cp: Any) -> None:
    a, b = (cp.asarray(v) for v in vectors(2, 500, np.float64))
    flat = [float(s) for s in ops.dots(a, b)]
    assert [float(s) for s in ops.dots(a.reshape(10, 50), b.reshape(5, 100))] == flat


def test_weighted_step_with_zero_rate_keeps_the_weights(cp: Any) -> None:
    w, d, g = (cp.asarray(v) for v in vectors(3, 5000, np.float32))
    before = w.get()
    ops.weighted_step(w, d, g, 0.0)
    assert np.array_equal(w.get(), before)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_a_number_that_is_not_finite_shows(cp: Any, operation: Operation, bad: float) -> None:
    """In the sums and in its own element, and in no other."""
    inputs = vectors(operation.vectors, 5000, np.float32)
    inputs[0][4321] = bad
    with np.errstate(invalid="ignore"):
        written, sums = operation.exact(*inputs)
    got, found = operation.native(*[cp.asarray(v) for v in inputs])
    assert [np.isfinite(float(s)) for s in found] == [np.isfinite(s) for s in sums]
    for vector, want in zip(got, written, strict=True):
        assert np.array_equal(np.isfinite(vector.get()), np.isfinite(want))
