"""Systems that the tests of the emulated GPU solve."""

from __future__ import annotations

from typing import Any

import numpy as np


def system(n: int, dtype: str, low: float = 1.0, high: float = 10.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A diagonal and a right-hand side."""
    rng = np.random.default_rng(seed)
    return rng.uniform(low, high, n).astype(dtype), rng.standard_normal(n).astype(dtype)


def system_there(gpu: Any, n: int, seed: int, dtype: str = "float32") -> tuple[Any, Any]:
    """The same, on the GPU."""
    d, b = system(n, dtype, 1.0, 20.0, seed)
    return gpu.cupy.asarray(d), gpu.cupy.asarray(b)
