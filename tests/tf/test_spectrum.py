"""The Lanczos process and the densities it gives, against matrices whose eigenvalues are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from test_operators import Matrix, logistic_regression, with_eigenvalues

from ncg_cuda.tf import HessianOperator

EIGENVALUES = np.r_[-4.0, np.linspace(-1, 1, 190), 3.0, 7.0, 9.0, 30.0, 100.0]


def integral(values: np.ndarray, grid: np.ndarray) -> float:
    return float(((values[1:] + values[:-1]) / 2 * np.diff(grid)).sum())


@pytest.mark.parametrize("problem", [logistic_regression, lambda: network()])
def test_extreme_eigenvalues_of_hessians(problem: Any) -> None:
    operator, dense = problem()
    truth = np.linalg.eigvalsh(dense)
    spectrum = operator.spectrum(samples=2)
    for end, want in ((spectrum.largest(3), truth[::-1]), (spectrum.smallest(3), truth)):
        for ritz, value in zip(end, want, strict=False):
            assert ritz.value == pytest.approx(value, rel=1e-6, abs=1e-9)
            assert np.abs(truth - ritz.value).min() <= ritz.bound


def network() -> tuple[HessianOperator, np.ndarray]:
    """A small network with 20 weights, and its Hessian by TensorFlow's own nested tapes."""
    from problems import dense_hessian

    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(30, 3)), rng.normal(size=30)
    a, b = tf.Variable(rng.normal(size=(3, 5))), tf.Variable(rng.normal(size=5))

    def loss() -> Any:
        return tf.reduce_mean((tf.linalg.matvec(tf.tanh(tf.matmul(x, a)), b) - y) ** 2)

    return HessianOperator(loss, [a, b]), dense_hessian(loss, [a, b])


def test_bounds_hold_before_convergence() -> None:
    """After few steps the Ritz values are far off, and their bounds say how far."""
    matrix = with_eigenvalues(EIGENVALUES)
    for steps in (2, 5, 10, 20):
        for run in Matrix(matrix).spectrum(steps=steps, samples=2, width=1.0).runs:
            assert len(run.nodes) == steps
            distance = np.abs(EIGENVALUES[:, None] - run.nodes).min(0)
            assert (distance <= run.bounds).all()
    coarse = Matrix(matrix).spectrum(steps=5, samples=1)
    assert coarse.smallest()[0].bound > 1e-3, "everything converged here, so this test shows nothing"


def test_converged_to_1e_6() -> None:
    spectrum = Matrix(with_eigenvalues(EIGENVALUES)).spectrum(steps=60, samples=1)
    largest = np.array([r.value for r in spectrum.largest(5)])
    np.testing.assert_allclose(largest, [100, 30, 9, 7, 3], rtol=1e-6)
    assert spectrum.smallest()[0].value == pytest.approx(-4, rel=1e-6)
    assert max(r.bound for r in spectrum.largest(3)) < 1e-6


def test_float32_products() -> None:
    spectrum = Matrix(with_eigenvalues(EIGENVALUES).astype(np.float32)).spectrum(steps=60, samples=1)
    ritz = spectrum.largest()[0]
    assert abs(ritz.value - 100) <= ritz.bound < 1e-3


def test_density() -> None:
    matrix = with_eigenvalues(EIGENVALUES)
    spectrum = Matrix(matrix).spectrum(steps=40, samples=30, width=2.0, points=2000)
    assert integral(spectrum.density, spectrum.grid) == pytest.approx(1, abs=1e-7)
    n = len(EIGENVALUES)
    for order in (1, 2):
        moment = spectrum.moment(order)
        assert abs(moment.value - (EIGENVALUES**order).sum() / n) < 4 * moment.standard_error
    widened = np.exp(-0.5 * ((spectrum.grid[:, None] - EIGENVALUES) / 2.0) ** 2).sum(1) / (n * 2.0 * np.sqrt(2 * np.pi))
    error = np.abs(spectrum.density - widened)
    assert error.max() < 0.03 * widened.max()
    assert (error <= 5 * spectrum.standard_error + 1e-6 * widened.max()).mean() > 0.98
    inside = spectrum.fraction(-1.5, 1.5)
    assert abs(inside.value - 190 / n) < 4 * inside.standard_error
    # The density's own moments are those of the eigenvalues, widened.
    first = integral(spectrum.density * spectrum.grid, spectrum.grid)
    second = integral(spectrum.density * spectrum.grid**2, spectrum.grid)
    assert first == pytest.approx(spectrum.moment(1).value, abs=1e-6)
    assert second == pytest.approx(spectrum.moment(2).value + 2.0**2, rel=1e-6)


def test_quadrature_is_exact_for_polynomials() -> None:
    """The m steps from a vector v give v·A^k v for k up to 2 m - 1, whatever v is."""
    matrix = with_eigenvalues(np.linspace(-1, 2, 50))
    (run,) = Matrix(matrix).spectrum(steps=4, samples=1, seed=8).runs
    v = np.random.default_rng(8).standard_normal(50)
    v /= np.linalg.norm(v)
    assert run.weights.sum() == pytest.approx(1)
    for order in range(1, 8):
        want = v @ np.linalg.matrix_power(matrix, order) @ v
        assert run.weights @ run.nodes**order == pytest.approx(want, rel=1e-10)
    beyond = v @ np.linalg.matrix_power(matrix, 8) @ v
    assert run.weights @ run.nodes**8 != pytest.approx(beyond, rel=1e-6)


def test_no_ghosts() -> None:
    """Without reorthogonalisation, 100 steps would show the dominant eigenvalue several times."""
    matrix = with_eigenvalues(np.r_[np.linspace(0, 1, 199), 1000.0])
    (run,) = Matrix(matrix).spectrum(steps=100, samples=1).runs
    assert (run.nodes > 500).sum() == 1


@pytest.mark.parametrize(("values", "nodes"), [([0.0] * 6, 1), ([2.0] * 6, 1), ([1.0, 1.0, 1.0, 5.0, 5.0, -2.0], 3)])
def test_few_distinct_eigenvalues(values: list[float], nodes: int) -> None:
    """The process ends early, with an exact answer."""
    spectrum = Matrix(with_eigenvalues(np.array(values))).spectrum(samples=3)
    for run in spectrum.runs:
        np.testing.assert_allclose(run.nodes, np.unique(values), atol=1e-13)
        assert len(run.nodes) == nodes
    assert integral(spectrum.density, spectrum.grid) == pytest.approx(1, abs=1e-7)


def test_plot(tmp_path: Any) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    path = tmp_path / "spectrum.png"
    Matrix(with_eigenvalues(EIGENVALUES)).spectrum(samples=2).plot(path, title="Test")
    image = imread(path)
    assert image.shape[0] > 300
    assert image[..., :3].std() > 0.05  # not blank


def test_bad_input() -> None:
    operator = Matrix(np.eye(4) * 3)
    for options, message in [
        ({"steps": 0}, "steps is 0"),
        ({"points": 1}, "points is 1"),
        ({"samples": 0}, "samples is 0; an integer of at least 1"),
        ({"width": -1.0}, "width is -1.0; it must be above 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            operator.spectrum(**options)
    with pytest.raises(ValueError, match="more points or a larger width"):
        Matrix(np.diag([0.0, 1.0])).spectrum(width=1e-5)
    spectrum = operator.spectrum(samples=1)
    assert np.isnan(spectrum.moment(1).standard_error)
    with pytest.raises(ValueError, match="count is 5; this spectrum has 1 to 1 Ritz values"):
        spectrum.largest(5)
    with pytest.raises(ArithmeticError, match="spectrum: a product"):
        Matrix(np.full((4, 4), np.inf)).spectrum()


def test_repr_is_one_line() -> None:
    spectrum = Matrix(np.diag([-2.0, 1.0, 4.0])).spectrum(samples=2)
    assert repr(spectrum) == "Spectrum(n=3, nodes=6, samples=2, eigenvalues from -2 to 4)"


def test_memory_is_checked_first() -> None:
    from ncg_cuda.tf.spectrum import estimate_spectrum

    with pytest.raises(MemoryError, match=r"1000 steps with 1000000000000 weights keep .* fewer steps"):
        estimate_spectrum(lambda r: r, 10**12, 1e-7, 1000, 1, 0)
