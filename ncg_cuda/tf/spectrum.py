"""The eigenvalues of a matrix that is known by its products: density and extreme values by the Lanczos process.

Stochastic Lanczos quadrature (Ubaru, Chen and Saad, SIAM J. Matrix Anal. Appl. 2017; for Hessians of networks Ghorbani,
Krishnan and Xiao, ICML 2019): from a random start vector, m steps give m Ritz values and weights, a quadrature that is
exact for polynomials up to degree 2 m - 1. All vector work is NumPy in float64, every basis vector orthogonalised twice
against all before it, so that no eigenvalue appears twice by rounding.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..files import write_atomic
from .estimates import Estimate, Rows, check_samples, mean
from .progress import Progress, ProgressOption

Vector = NDArray[np.float64]

_MARGIN = 6.0  # the grid ends this many widths beyond the outermost Ritz values: the Gaussian there is below 1e-8


@dataclass(frozen=True)
class RitzValue:
    """An approximate eigenvalue.

    Attributes:
        value: the approximation.
        bound: an eigenvalue lies within this distance of it: the norm of the Ritz vector's residual, with an allowance
            of 10 units in the last place of the largest Ritz value for the rounding of the products.
    """

    value: float
    bound: float


@dataclass(frozen=True)
class Quadrature:
    """What one Lanczos process found.

    Attributes:
        nodes: the Ritz values, ascending.
        weights: their weights, which sum to 1: the square of the start vector's component along each Ritz vector.
        bounds: the bound of each, see :class:`RitzValue`.
    """

    nodes: Vector
    weights: Vector
    bounds: Vector


@dataclass(frozen=True)
class Spectrum:
    """The estimated spectrum of a symmetric matrix of n rows.

    Attributes:
        n: number of rows.
        grid: float64, shape (points,), ascending; where the density is given.
        density: the density of eigenvalues there, each eigenvalue widened to a Gaussian of standard deviation
            ``width``; its integral is 1. n times the integral over an interval is the number of eigenvalues in it.
        standard_error: of ``density``, from the scatter of the start vectors; zeros where there was only one.
        width: standard deviation of the Gaussians.
        runs: one quadrature per start vector.
    """

    n: int
    grid: Vector
    density: Vector
    standard_error: Vector
    width: float
    runs: tuple[Quadrature, ...]

    def __repr__(self) -> str:
        nodes = sum(len(run.nodes) for run in self.runs)
        return (
            f"Spectrum(n={self.n}, nodes={nodes}, samples={len(self.runs)}, eigenvalues from "
            f"{self.smallest()[0].value:.6g} to {self.largest()[0].value:.6g})"
        )

    def largest(self, count: int = 1) -> list[RitzValue]:
        """The ``count`` largest eigenvalues, largest first; a multiple eigenvalue appears once."""
        best = max(self.runs, key=lambda run: float(run.nodes[-1]))  # no Ritz value lies beyond the spectrum
        self._check(count, best)
        return [RitzValue(float(best.nodes[-i]), float(best.bounds[-i])) for i in range(1, count + 1)]

    def smallest(self, count: int = 1) -> list[RitzValue]:
        """The ``count`` smallest (most negative) eigenvalues, smallest first; a multiple eigenvalue appears once."""
        best = min(self.runs, key=lambda run: float(run.nodes[0]))
        self._check(count, best)
        return [RitzValue(float(best.nodes[i]), float(best.bounds[i])) for i in range(count)]

    def moment(self, order: int) -> Estimate:
        """The mean of the eigenvalues' ``order``-th power, trace(A^order) / n, before any widening."""
        return self._mean([float(run.weights @ run.nodes**order) for run in self.runs])

    def fraction(self, low: float, high: float) -> Estimate:
        """The fraction of the eigenvalues in [low, high], before any widening."""
        return self._mean([float(run.weights[(run.nodes >= low) & (run.nodes <= high)].sum()) for run in self.runs])

    def plot(self, path: str | os.PathLike[str], title: str = "Spectrum") -> None:
        """Draw the density, its standard error and the extreme eigenvalues as PNG to ``path``, written atomically.

        The vertical scale is logarithmic and begins a little below the height of a single eigenvalue.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("plot() needs matplotlib: pip install matplotlib", name="matplotlib") from error
        figure = Figure(figsize=(8.0, 4.5), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        floor = 0.3 / (self.n * self.width * np.sqrt(2 * np.pi))
        low, high = self.density - self.standard_error, self.density + self.standard_error
        axes.fill_between(self.grid, np.maximum(low, floor), np.maximum(high, floor), alpha=0.25, linewidth=0)
        axes.plot(self.grid, np.maximum(self.density, floor), linewidth=1.5)
        for name, end in (("smallest", self.smallest()[0]), ("largest", self.largest()[0])):
            label = f"{name}: {end.value:.5g} ± {end.bound:.1g}"
            axes.axvline(end.value, color="0.35", linestyle=":" if name == "smallest" else "--", label=label)
        axes.set_yscale("log")
        axes.set_ylim(bottom=floor)
        axes.set_xlabel("eigenvalue")
        axes.set_ylabel("density")
        axes.set_title(
            f"{title}: {self.n} weights, {len(self.runs)} start vectors, widened by {self.width:.2g}", fontsize=10
        )
        axes.legend(frameon=False, fontsize=9)
        image = io.BytesIO()
        figure.savefig(image, format="png")
        write_atomic(Path(path), image.getvalue())

    def _mean(self, values: list[float]) -> Estimate:
        return mean(values) if len(values) > 1 else Estimate(values[0], float("nan"), 1)

    def _check(self, count: int, run: Quadrature) -> None:
        if not 1 <= count <= len(run.nodes):
            raise ValueError(f"count is {count}; this spectrum has 1 to {len(run.nodes)} Ritz values (see steps)")


def estimate_spectrum(
    rows: Rows,
    n: int,
    epsilon: float,
    steps: int,
    samples: int,
    seed: int,
    points: int = 1024,
    width: float | None = None,
    progress: ProgressOption = None,
) -> Spectrum:
    """The spectrum of a symmetric matrix A.

    Args:
        rows: gives the products.
        n: number of rows and columns of A.
        epsilon: unit of rounding of the products.
        steps: Lanczos steps per start vector, at most n are taken; each costs a product and keeps a float64 vector, so
            the basis takes 8 n steps bytes. More steps resolve more eigenvalues at both ends.
        samples: number of random start vectors, at least 1; more lower the standard error of the density.
        seed: of the start vectors, which are normally distributed.
        points: number of grid points.
        width: standard deviation of the Gaussian that widens each eigenvalue; by default 1 % of the spectrum's range,
            or of its one eigenvalue.
        progress: see :data:`~ncg_cuda.tf.progress.ProgressOption`.

    Raises:
        ValueError: an argument out of range; a width that the grid cannot show.
        MemoryError: the basis does not fit into the machine's memory.
    """
    check_samples(samples, 1)
    if steps < 1 or points < 2:
        raise ValueError(f"steps is {steps}, points is {points}; at least 1 and 2 are needed")
    steps = min(steps, n)
    _check_memory(n, steps)
    generator = np.random.default_rng(seed)
    basis = np.empty((steps, n))
    runs = []
    with Progress("spectrum", samples * steps, progress) as bar:
        for _ in range(samples):
            runs.append(lanczos(rows, generator.standard_normal(n), basis, epsilon, bar))
    low, high = min(run.nodes[0] for run in runs), max(run.nodes[-1] for run in runs)
    if width is None:
        scale = max(abs(low), abs(high))
        spread = high - low > 100 * epsilon * scale  # else there is one eigenvalue, and rounding
        width = 0.01 * (high - low if spread else scale or 1.0)
    if not width > 0:
        raise ValueError(f"width is {width}; it must be above 0")
    grid = np.linspace(low - _MARGIN * width, high + _MARGIN * width, points)
    if grid[1] - grid[0] > width:
        raise ValueError(
            f"width is {width:.3g}, less than the distance {grid[1] - grid[0]:.3g} of the {points} grid points: give "
            f"more points or a larger width"
        )
    densities = np.array([_widened(grid, run, width) for run in runs])
    error = densities.std(axis=0, ddof=1) / np.sqrt(samples) if samples > 1 else np.zeros(points)
    return Spectrum(n, grid, densities.mean(axis=0), error, float(width), tuple(runs))


def lanczos(rows: Rows, start: Vector, basis: Vector, epsilon: float, bar: Progress) -> Quadrature:
    """The Lanczos process from ``start``, for as many steps as ``basis`` (overwritten) has rows, or until it ends."""
    steps = len(basis)
    alpha, beta = np.zeros(steps), np.zeros(steps)
    vector = start / np.linalg.norm(start)
    done = 0
    for k in range(steps):
        basis[k] = vector
        vector = rows(basis[k : k + 1])[0].copy()
        bar.advance()
        done = k + 1
        alpha[k] = basis[k] @ vector
        for _ in range(2):  # once leaves what cancellation brought back; twice is enough (Parlett, ch. 6)
            vector -= (basis[:done] @ vector) @ basis[:done]
        beta[k] = np.linalg.norm(vector)
        # The space is invariant: what is left is rounding, and the quadrature is exact.
        if beta[k] <= 10 * epsilon * max(np.abs(alpha).max(), beta.max()) or done == steps:
            break
        vector /= beta[k]
    bar.advance(steps - done)
    matrix = np.diag(alpha[:done]) + np.diag(beta[: done - 1], 1) + np.diag(beta[: done - 1], -1)
    nodes, vectors = np.linalg.eigh(matrix)
    bounds = beta[done - 1] * np.abs(vectors[-1]) + 10 * epsilon * np.abs(nodes).max()
    return Quadrature(nodes, vectors[0] ** 2, bounds)


def _widened(grid: Vector, run: Quadrature, width: float) -> Vector:
    distance = (grid[:, None] - run.nodes[None, :]) / width
    density: Vector = np.exp(-0.5 * distance**2) @ run.weights / (width * np.sqrt(2 * np.pi))
    return density


def _check_memory(n: int, steps: int) -> None:
    need = 8 * n * (steps + 4)
    try:
        have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not every system tells
        return
    if need > have:
        raise MemoryError(
            f"spectrum: {steps} steps with {n} weights keep {need / 2**30:.1f} GiB of vectors, and this machine has "
            f"{have / 2**30:.1f} GiB: give fewer steps"
        )
