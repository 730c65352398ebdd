"""Diagonal and trace of a matrix that is known by its products only, with standard errors.

Hutchinson's estimator (Communications in Statistics 1989; for the diagonal Bekas, Kokiopoulou and Saad, Applied
Numerical Mathematics 2007) and Hutch++ (Meyer, Musco, Musco and Woodruff, SOSA 2021). Vectors are float64 NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .progress import Progress, ProgressOption

Rows = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Products with the rows of a (k, n) array, as rows."""


@dataclass(frozen=True)
class Estimate:
    """A mean over random samples.

    Attributes:
        value: the estimate, a float or a float64 array.
        standard_error: its standard error, of the same shape, from the scatter of the samples.
        samples: how many samples the mean is over.
    """

    value: Any
    standard_error: Any
    samples: int

    def __str__(self) -> str:
        if np.ndim(self.value):
            return f"{np.shape(self.value)} values, {self.samples} samples"
        return f"{self.value:.6g} ± {self.standard_error:.2g} ({self.samples} samples)"


def mean(values: Any) -> Estimate:
    """The estimate from independent samples along the first axis, at least two."""
    values = np.asarray(values, dtype=np.float64)
    error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
    average = values.mean(axis=0)
    return (
        Estimate(average, error, len(values))
        if np.ndim(average)
        else Estimate(float(average), float(error), len(values))
    )


def estimate_diagonal(
    rows: Rows, n: int, samples: int, seed: int, at_once: int = 1, progress: ProgressOption = None
) -> Estimate:
    """The diagonal as the mean of v * (A v) over vectors v of random signs; unbiased, exact for a diagonal matrix.

    Args:
        rows: gives the products.
        n: number of rows and columns of A.
        samples: number of products, at least 2.
        seed: of the random signs.
        at_once: how many products ``rows`` is asked for in one call.
        progress: see :data:`~ncg_cuda.tf.progress.ProgressOption`.

    Returns:
        float64 arrays of shape (n,). The error of entry i is sqrt(sum over j != i of A_ij² / samples).

    Raises:
        ValueError: fewer than 2 samples.
    """
    check_samples(samples, 2)
    average, squares = np.zeros(n), np.zeros(n)
    count = 0
    with Progress("diagonal", samples, progress) as bar:
        for signs in _draw(np.random.default_rng(seed), n, samples, at_once):
            for sample in signs * rows(signs):
                count += 1  # Welford's update: no cancellation where the scatter is small
                off = sample - average
                average += off / count
                squares += off * (sample - average)
            bar.advance(len(signs))
    return Estimate(average, np.sqrt(squares / (samples - 1) / samples), samples)


def estimate_trace(
    rows: Rows,
    n: int,
    samples: int,
    seed: int,
    method: str = "hutchinson",
    at_once: int = 1,
    progress: ProgressOption = None,
) -> Estimate:
    """The trace of a symmetric matrix.

    Args:
        rows: gives the products.
        n: number of rows and columns of A.
        samples: number of products in all; at least 2, for Hutch++ 6.
        seed: of the random signs.
        method: ``"hutchinson"``: the mean of v·(A v) over random signs v, with the error
            sqrt(2 sum over i != j of A_ij² / samples).
            ``"hutch++"``: a third of the products finds a subspace that holds most of A, a third gives the exact trace
            there, the last third is Hutchinson's estimator on the rest. Its error falls as 1 / samples instead of
            1 / sqrt(samples), most where few large eigenvalues stand out; it keeps samples / 3 float64 vectors.
        at_once: how many products ``rows`` is asked for in one call.
        progress: see :data:`~ncg_cuda.tf.progress.ProgressOption`.

    Returns:
        Floats; ``samples`` counts the random samples behind the standard error, for Hutch++ those of the rest.

    Raises:
        ValueError: unknown method, too few samples.
    """
    if method not in ("hutchinson", "hutch++"):
        raise ValueError(f'method is {method!r}; allowed: "hutchinson" or "hutch++"')
    check_samples(samples, 2 if method == "hutchinson" else 6)
    rank = min(samples // 3, n) if method == "hutch++" else 0
    with Progress("trace", samples, progress) as bar:

        def products(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
            parts = []
            for start in range(0, len(vectors), at_once):
                parts.append(rows(vectors[start : start + at_once]))
                bar.advance(len(parts[-1]))
            return np.concatenate(parts)

        basis = np.zeros((0, n))
        exact = 0.0
        generator = np.random.default_rng(seed)
        if rank:
            sketch = np.concatenate(list(_draw(generator, n, rank, at_once)))
            basis = np.ascontiguousarray(np.linalg.qr(products(sketch).T)[0].T)
            exact = float(np.vdot(basis, products(basis)))
        values: list[float] = []
        for signs in _draw(generator, n, samples - 2 * rank, at_once):
            rest = signs - (signs @ basis.T) @ basis
            values.extend(np.einsum("ij,ij->i", rest, products(rest)))
    estimate = mean(values)
    return Estimate(exact + estimate.value, estimate.standard_error, estimate.samples)


def check_samples(samples: int, least: int) -> None:
    """Raise a ValueError unless ``samples`` is an integer of at least ``least``."""
    if not isinstance(samples, (int, np.integer)) or isinstance(samples, bool) or samples < least:
        raise ValueError(f"samples is {samples!r}; an integer of at least {least} is needed")


def _draw(generator: np.random.Generator, n: int, samples: int, at_once: int) -> Iterator[NDArray[np.float64]]:
    """Random signs, a vector a row; the same ones whatever ``at_once`` is."""
    for start in range(0, samples, at_once):
        count = min(at_once, samples - start)
        bits = np.stack([generator.integers(0, 2, size=n, dtype=np.int8) for _ in range(count)])
        yield 2.0 * bits.astype(np.float64) - 1.0
