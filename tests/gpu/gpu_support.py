"""What the tests of the GPU share: operands, systems whose products need elementwise kernels only, comparisons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ncg_cuda import Layout
from ncg_cuda.catalog import Operation

DTYPES = [np.float32, np.float64]


def host(array: Any) -> np.ndarray:
    """An array of CuPy, torch or NumPy in host memory."""
    if hasattr(array, "get"):
        return array.get()
    return array.detach().cpu().numpy() if hasattr(array, "detach") else np.asarray(array)


def bits(result: tuple[Sequence[Any], Sequence[Any]]) -> tuple[bytes, ...]:
    """What an operation gave, to the last bit."""
    written, sums = result
    return tuple(host(w).tobytes() for w in written) + tuple(np.float64(float(s)).tobytes() for s in sums)


def check(operation: Operation, inputs: Sequence[np.ndarray], got: tuple[Sequence[Any], Sequence[Any]]) -> None:
    """Compare with the reference: vectors to a few roundings of an element, sums to a few of |a| |b|."""
    eps = float(np.finfo(inputs[-1].dtype).eps)
    written, sums = operation.exact(*inputs)
    assert len(got[0]) == len(written)
    assert len(got[1]) == len(sums)
    for vector, want in zip(got[0], written, strict=True):
        found = host(vector)
        assert found.dtype == inputs[-1].dtype
        error = np.abs(found - want).max()  # NaN compares as false
        assert error <= 8 * eps * max(1.0, np.abs(want).max()), f"a vector is off by {error}"
    scale = sum(float(np.square(v.astype(np.float64)).sum()) for v in [*inputs, *written])
    for value, want in zip(got[1], sums, strict=True):
        assert abs(float(value) - want) <= 8 * eps * scale


def tensors_at_odd_addresses(cp: Any, layout: Layout, values: Sequence[np.ndarray]) -> list[Any]:
    """Arrays on the GPU, each one element beyond an aligned address: a product's own pointer may be anywhere."""
    return [
        cp.asarray(np.concatenate([np.zeros(1, v.dtype), v.ravel()]))[1:].reshape(shape)
        for v, shape in zip(values, layout.shapes, strict=True)
    ]


def diagonal(n: int, condition: float, dtype: type, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A diagonal with logarithmically spread entries from 1 to ``condition``, and a right-hand side."""
    rng = np.random.default_rng([seed, n])
    d = np.exp(rng.uniform(0, np.log(condition), n))
    return d.astype(dtype), rng.standard_normal(n).astype(dtype)


def chain(n: int, middle: float = 2.5) -> np.ndarray:
    """A tridiagonal matrix, ``middle`` on the diagonal and -1 beside it: definite from 2 on."""
    return middle * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)


def chain_product(middle: float = 2.5) -> Callable[[Any], Any]:
    """The product with :func:`chain`, on any array library."""

    def product(p: Any) -> Any:
        hp = p * p.dtype.type(middle)
        hp[1:] -= p[:-1]
        hp[:-1] -= p[1:]
        return hp

    return product


def takes_bfloat16(cp: Any) -> bool:
    """Whether CuPy has arrays of ml_dtypes.bfloat16 (since version 14)."""
    import ml_dtypes

    try:
        cp.asarray(np.ones(2, ml_dtypes.bfloat16))
    except (TypeError, ValueError):
        return False
    return True
