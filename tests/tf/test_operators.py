"""Operators as objects against dense matrices that TensorFlow had no part in: analytic Hessians, given matrices."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from ncg_cuda.tf import CurvatureOperator, HessianOperator
from ncg_cuda.tf.estimates import estimate_trace

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 12)) * np.linspace(0.3, 3, 12)
Y = (RNG.random(60) < 0.5).astype(float)
POINT = RNG.normal(size=12)


def least_squares() -> tuple[HessianOperator, np.ndarray]:
    """Half the mean squared error of a linear model: its Hessian is XᵀX / m."""
    a, b = tf.Variable(POINT[:8].reshape(2, 4)), tf.Variable(POINT[8:])

    def loss() -> Any:
        w = tf.concat([tf.reshape(a, [-1]), b], 0)
        return tf.reduce_mean(tf.square(tf.linalg.matvec(X, w) - Y)) / 2

    return HessianOperator(loss, [a, b]), X.T @ X / len(Y)


def logistic_regression() -> tuple[HessianOperator, np.ndarray]:
    """Cross-entropy: its Hessian is Xᵀ diag(p (1 - p)) X / m."""
    a, b = tf.Variable(POINT[:8].reshape(2, 4)), tf.Variable(POINT[8:])

    def loss() -> Any:
        w = tf.concat([tf.reshape(a, [-1]), b], 0)
        return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(Y, tf.linalg.matvec(X, w)))

    p = 1 / (1 + np.exp(-X @ POINT))
    return HessianOperator(loss, [a, b]), X.T @ (X * (p * (1 - p))[:, None]) / len(Y)


class Matrix(CurvatureOperator):
    """A given symmetric matrix: all that a subclass needs."""

    traced = 0

    def __init__(self, matrix: np.ndarray) -> None:
        n = len(matrix)
        super().__init__([tf.Variable(tf.zeros(n // 2, matrix.dtype)), tf.Variable(tf.zeros(n - n // 2, matrix.dtype))])
        self.matrix = matrix

    def _product(self, vectors: list[Any]) -> list[Any]:
        self.traced += 1
        return tf.split(tf.linalg.matvec(self.matrix, tf.concat(vectors, 0)), [v.shape[0] for v in vectors])


def with_eigenvalues(values: np.ndarray, seed: int = 3) -> np.ndarray:
    """A dense symmetric matrix with these eigenvalues."""
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))[0]
    return (q * values) @ q.T


@pytest.mark.parametrize("problem", [least_squares, logistic_regression])
def test_products_in_every_form(problem: Any) -> None:
    operator, dense = problem()
    assert operator.shape == (12, 12)
    assert operator.dtype == np.float64
    v, block = RNG.normal(size=12), RNG.normal(size=(12, 3))
    exact = {"rtol": 1e-12, "atol": 1e-13}
    out = operator @ v
    assert isinstance(out, np.ndarray)
    np.testing.assert_allclose(out, dense @ v, **exact)
    np.testing.assert_allclose(operator @ block, dense @ block, **exact)
    assert tf.is_tensor(operator @ tf.constant(v))
    np.testing.assert_allclose(operator @ tf.constant(v), dense @ v, **exact)
    np.testing.assert_allclose(operator @ tf.constant(block), dense @ block, **exact)
    parts = operator @ operator.unflatten(v)
    assert [p.shape for p in parts] == [(2, 4), (4,)]
    np.testing.assert_allclose(operator.flatten(parts), dense @ v, **exact)
    np.testing.assert_allclose(operator.to_dense(), dense, **exact)
    np.testing.assert_allclose(operator.flatten(operator.gradients), gradient(problem), **exact)
    np.testing.assert_array_equal(operator @ np.ones(12, int), operator @ np.ones(12))


def gradient(problem: Any) -> np.ndarray:
    z = X @ POINT
    return X.T @ ((z if problem is least_squares else 1 / (1 + np.exp(-z))) - Y) / len(Y)


def test_to_scipy() -> None:
    linalg = pytest.importorskip("scipy.sparse.linalg")
    operator, dense = logistic_regression()
    matrix = operator.to_scipy()
    assert matrix.shape == (12, 12)
    assert matrix.dtype == np.float64
    block = RNG.normal(size=(12, 2))
    np.testing.assert_allclose(matrix @ block, dense @ block, rtol=1e-12)
    np.testing.assert_allclose(matrix.T @ block[:, 0], dense @ block[:, 0], rtol=1e-12)
    largest = linalg.eigsh(matrix, 2, return_eigenvectors=False, v0=np.ones(12))
    np.testing.assert_allclose(np.sort(largest), np.linalg.eigvalsh(dense)[-2:], rtol=1e-9)
    x, info = linalg.cg(matrix, dense @ POINT, rtol=1e-10)
    assert info == 0
    np.testing.assert_allclose(x, POINT, rtol=1e-5)


@pytest.mark.parametrize(("name", "call"), [("scipy", "to_scipy"), ("matplotlib", "plot"), ("tqdm", "trace")])
def test_missing_packages_are_named(name: str, call: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    operator, _ = least_squares()
    spectrum = operator.spectrum(samples=1)
    for module in [m for m in sys.modules if m.split(".")[0] == name] + [name]:
        monkeypatch.setitem(sys.modules, module, None)
    calls = {
        "to_scipy": operator.to_scipy,
        "plot": lambda: spectrum.plot(tmp_path / "x.png"),
        "trace": lambda: operator.trace(samples=2, progress=True),
    }
    with pytest.raises(ModuleNotFoundError, match=f"pip install {name}"):
        calls[call]()
    operator.trace(samples=2)  # no bar is no reason to fail


def test_each_form_is_traced_once() -> None:
    operator = Matrix(np.eye(6))
    for seed in range(4):
        v = np.random.default_rng(seed).normal(size=6)
        np.testing.assert_array_equal(operator @ v, v)
        assert operator @ tf.constant(v) is not None
        operator.product(operator.unflatten(v))
    operator.spectrum()
    assert operator.traced == 2  # flat vectors, lists


def test_inside_a_function() -> None:
    operator, dense = least_squares()
    v = RNG.normal(size=12)
    outside = tf.function(lambda v: operator @ v, autograph=False)
    np.testing.assert_allclose(outside(tf.constant(v)), dense @ v, rtol=1e-12)
    kept = []
    w = tf.Variable(POINT[:3])

    @tf.function(autograph=False)
    def inside(v: Any) -> Any:
        kept.append(HessianOperator(lambda: tf.reduce_sum(w**3), [w]))
        return kept[0] @ v

    np.testing.assert_allclose(inside(tf.constant(v[:3])), 6 * POINT[:3] * v[:3])
    for use in (lambda o: o @ v[:3], lambda o: o.product([v[:3]]), lambda o: o.trace(), lambda o: o.to_scipy()):
        with pytest.raises(RuntimeError, match=r"outside of any tf\.function"):
            use(kept[0])


def test_diagonal() -> None:
    exact = Matrix(np.diag(np.arange(1.0, 9.0))).diagonal(samples=2)
    np.testing.assert_array_equal(exact.value, np.arange(1.0, 9.0))
    np.testing.assert_array_equal(exact.standard_error, 0)
    operator, dense = logistic_regression()
    estimate = operator.diagonal(samples=400, seed=1)
    assert estimate.samples == 400
    off = dense - np.diag(np.diag(dense))
    # The standard error itself: known in closed form, estimated from 400 samples to some 4 %.
    np.testing.assert_allclose(estimate.standard_error, np.sqrt((off**2).sum(1) / 400), rtol=0.2)
    assert (np.abs(estimate.value - np.diag(dense)) < 4 * estimate.standard_error).all()
    again = operator.diagonal(samples=400, seed=1)
    np.testing.assert_array_equal(again.value, estimate.value)
    assert (operator.diagonal(samples=400, seed=2).value != estimate.value).any()


@pytest.mark.parametrize("method", ["hutchinson", "hutch++"])
def test_trace(method: str) -> None:
    # Random signs are exact for a diagonal matrix; so is Hutch++ once its subspace is the whole space.
    exact = Matrix(np.diag(np.arange(1.0, 9.0))).trace(samples=6 if method == "hutchinson" else 26, method=method)
    assert exact.value == pytest.approx(36, abs=1e-12)
    assert exact.standard_error <= 1e-12
    matrix = with_eigenvalues(np.r_[50.0, -20.0, 10.0, np.linspace(-0.5, 0.5, 57)])
    estimate = Matrix(matrix).trace(samples=120, method=method)
    assert abs(estimate.value - np.trace(matrix)) < 4 * estimate.standard_error
    if method == "hutchinson":
        off = matrix - np.diag(np.diag(matrix))
        assert estimate.standard_error == pytest.approx(np.sqrt(2 * (off**2).sum() / 120), rel=0.3)
    else:
        assert estimate.standard_error < 0.1 * Matrix(matrix).trace(samples=120).standard_error


def test_hutch_plus_plus_is_exact_at_low_rank() -> None:
    matrix = with_eigenvalues(np.r_[3.0, -2.0, 1.0, np.zeros(37)])
    estimate = Matrix(matrix).trace(samples=12, method="hutch++")
    assert estimate.value == pytest.approx(2.0, abs=1e-12)


def test_estimates_are_unbiased() -> None:
    """Over many seeds, each method's estimates scatter around the truth as their standard errors say."""
    matrix = with_eigenvalues(np.linspace(-1, 3, 20))
    for method in ("hutchinson", "hutch++"):
        estimates = [estimate_trace(lambda r: r @ matrix, 20, 30, seed, method) for seed in range(300)]
        off = np.array([(e.value - 20.0) / e.standard_error for e in estimates])
        assert abs(off.mean()) < 4 / np.sqrt(300)
        assert 0.8 < off.std() < 1.3


def test_bad_input() -> None:
    operator, _ = least_squares()
    for use, message in [
        (lambda: operator @ np.ones(11), r"shape \(11,\); allowed: \(12,\), \(12, k\), or a list of 2"),
        (lambda: operator @ np.ones((3, 12)), r"shape \(3, 12\)"),
        (lambda: operator @ np.ones((12, 1, 1)), "shape"),
        (lambda: operator @ np.ones(12, complex), "dtype complex128; real"),
        (lambda: operator @ tf.ones(12), r"dtype float32; this operator has float64: use tf\.cast"),
        (lambda: operator @ tf.ones(3, tf.float64), r"shape \(3,\)"),
        (lambda: operator @ [np.ones(12)], "1 vectors for 2 variables"),
        (lambda: operator.to_dense(limit=11), r"12 weights.*GiB.*limit is 11.*limit=12"),
        (lambda: operator.unflatten(np.ones(3)), r"\(12,\) is needed"),
        (lambda: operator.diagonal(samples=1), "samples is 1; an integer of at least 2"),
        (lambda: operator.trace(samples=5, method="hutch++"), "at least 6"),
        (lambda: operator.trace(method="exact"), "method is 'exact'; allowed"),
        (lambda: operator.trace(progress="yes"), "progress is 'yes'; allowed"),
    ]:
        with pytest.raises(ValueError, match=message):
            use()
    with pytest.raises(ArithmeticError, match=r"trace: a product with .* is not finite"):
        Matrix(np.full((4, 4), np.nan)).trace()


def test_progress(capsys: pytest.CaptureFixture[str]) -> None:
    operator = Matrix(np.eye(6))
    seen: list[tuple[int, int]] = []
    operator.diagonal(samples=3, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    seen.clear()
    operator.spectrum(samples=2, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (12, 12)
    operator.trace(samples=3)  # standard error is no terminal here
    operator.trace(samples=3, progress=False)
    assert capsys.readouterr().err == ""
    pytest.importorskip("tqdm")
    operator.trace(samples=3, progress=True)
    assert "trace" in capsys.readouterr().err
