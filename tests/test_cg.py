"""The CG loop against dense solves, its stop reasons, and every way a caller can get it wrong."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import ncg_cuda
from ncg_cuda import Layout, StopReason, cg, reference

DTYPES = [np.float32, np.float64]


def spectrum(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values), len(values))))
    return (q * values) @ q.T


def problem(n: int, condition: float, dtype: type, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a = spectrum(np.geomspace(1.0, condition, n), seed).astype(dtype)
    b = np.random.default_rng(seed + 1).standard_normal(n).astype(dtype)
    return a, b, np.linalg.solve(a.astype(np.float64), b.astype(np.float64))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 17, 200])
def test_agrees_with_a_dense_solve(dtype: type, n: int) -> None:
    a, b, _ = problem(n, 30.0, dtype)
    tau = 0.5
    exact = np.linalg.solve(a.astype(np.float64) + tau * np.eye(n), b.astype(np.float64))
    tol = 1e-5 if dtype is np.float32 else 1e-12
    result = cg(lambda p: a @ p, b, tau=tau, cg_tol=tol, max_iter=300)
    assert result.converged
    assert result.verified
    assert result.residual_norm <= tol * result.rhs_norm
    assert np.linalg.norm(result.x - exact) <= 30 * tol * np.linalg.norm(exact)
    true = np.linalg.norm(b - a.astype(np.float64) @ result.x - tau * result.x)
    assert result.residual_norm == pytest.approx(true, rel=0.3, abs=1e-7 * result.rhs_norm)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("condition", [1.5, 100.0, 1e4])
def test_converges_like_the_textbook(dtype: type, condition: float) -> None:
    """The predicted beta costs no iterations: residuals follow textbook CG in the same precision."""
    a, b, _ = problem(150, condition, dtype)
    r, x = b.copy(), np.zeros(150, dtype)
    p, rr = r.copy(), r @ r
    textbook = []
    for _ in range(11 if condition < 2 else 25):
        q = a @ p
        alpha = rr / (p @ q)
        x += alpha * p
        r -= alpha * q
        rr, before = r @ r, rr
        p = r + rr / before * p
        textbook.append(math.sqrt(rr) / np.linalg.norm(b))
    got: list[float] = []
    result = cg(lambda v: a @ v, b, cg_tol=0.0, max_iter=len(textbook), callback=lambda i, x, norm: got.append(norm))
    best_of_ours = np.minimum.accumulate(np.array(got) / result.rhs_norm)
    best_of_theirs = np.minimum.accumulate(textbook)
    made = len(best_of_ours)  # ours stops at rounding level
    assert made == len(textbook) or result.stop_reason is StopReason.STAGNATED
    assert (best_of_ours <= 1.2 * best_of_theirs[:made] + 100 * np.finfo(dtype).eps).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_agrees_with_the_reference_step_by_step(dtype: type) -> None:
    a, b, _ = problem(60, 50.0, np.float64)
    low = a.astype(dtype)
    for k in (1, 2, 5, 9):
        result = cg(lambda p: low @ p, b.astype(dtype), tau=0.1, cg_tol=0.0, max_iter=k)
        x, state = reference.cg(lambda p: a @ p, b, tau=0.1, cg_tol=0.0, max_iter=k)
        assert (result.iterations, result.stop_reason, result.products) == (k, StopReason.MAX_ITER, k)
        np.testing.assert_allclose(result.x, x, rtol=0, atol=2000 * np.finfo(dtype).eps)
        assert result.residual_norm == pytest.approx(math.sqrt(state.rr), rel=3e3 * float(np.finfo(dtype).eps))


def test_warm_start() -> None:
    a, b, exact = problem(80, 100.0, np.float64)
    near = exact + 1e-6 * np.random.default_rng(5).standard_normal(80)
    kept = near.copy()
    warm = cg(lambda p: a @ p, b, x0=near, cg_tol=1e-9, max_iter=200)
    cold = cg(lambda p: a @ p, b, cg_tol=1e-9, max_iter=200)
    assert warm.converged
    assert warm.iterations < cold.iterations
    assert np.array_equal(near, kept)
    assert cg(lambda p: a @ p, b, x0=exact, cg_tol=1e-9).iterations == 0


def test_claims_are_verified_in_float32() -> None:
    """Outlying eigenvalues: the recursion claims far less than the truth; the result must not."""
    a = spectrum(np.concatenate([np.geomspace(1.0, 10.0, 195), [1e5, 9e4, 5e4, 3e4, 2e4]]), 3)
    b = a @ np.random.default_rng(4).standard_normal(200)
    low, b32 = a.astype(np.float32), b.astype(np.float32)
    for tol in (1e-5, 1e-7):
        result = cg(lambda p: low @ p, b32, cg_tol=tol, max_iter=400)
        true = np.linalg.norm(b32 - low.astype(np.float64) @ result.x.astype(np.float64)) / np.linalg.norm(b32)
        assert result.verified
        assert result.converged == (result.residual_norm <= tol * result.rhs_norm)
        assert result.residual_norm / result.rhs_norm == pytest.approx(true, rel=0.5, abs=2e-7)
    assert result.stop_reason is StopReason.STAGNATED  # 1e-7 is out of float32's reach here
    unverified = cg(lambda p: low @ p, b32, cg_tol=1e-5, max_iter=400, verify=False)
    assert unverified.stop_reason is StopReason.CONVERGED
    assert not unverified.verified


@pytest.mark.parametrize("magnitude", [1e-38, 1e-30, 1e-23, 1e-12, 1e12, 1e19, 1e30, 1e37])
def test_tiny_and_huge_right_hand_sides_in_float32(magnitude: float) -> None:
    """Squares of 1e19 overflow and of 1e-23 vanish in float32: the solve is scaled, the answer is the same."""
    a, b, exact = problem(70, 20.0, np.float32)
    result = cg(lambda p: a @ p, (b * np.float32(magnitude)).astype(np.float32), cg_tol=1e-4, max_iter=100)
    assert result.converged
    np.testing.assert_allclose(result.x.astype(np.float64) / magnitude, exact, atol=2e-3)


@pytest.mark.parametrize(("dtype", "magnitude"), [(np.float32, 1e-40), (np.float32, 1e-44), (np.float64, 1e-310)])
def test_subnormal_right_hand_sides(dtype: type, magnitude: float) -> None:
    b = np.array([1.0, 2.0, 3.0]) * magnitude
    result = cg(lambda p: p + p, b.astype(dtype), cg_tol=1e-4)
    assert result.converged
    np.testing.assert_allclose(result.x, b / 2, rtol=1e-2, atol=float(np.finfo(dtype).smallest_subnormal))


def test_a_solution_beyond_the_largest_number_is_a_breakdown() -> None:
    result = cg(lambda p: p * np.float32(1e-3), np.full(9, 1e37, np.float32), cg_tol=1e-4)
    assert result.stop_reason is StopReason.BREAKDOWN
    assert np.isfinite(result.x).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_beyond_rounding_is_stagnation(dtype: type) -> None:
    """More than the precision gives was asked for: the solve neither runs away nor blames the matrix."""
    for seed in range(5):
        a, b, exact = problem(40, 10.0, dtype, seed)
        result = cg(lambda p, a=a: a @ p, b, cg_tol=0.0, max_iter=500)
        assert result.stop_reason is StopReason.STAGNATED
        assert np.linalg.norm(result.x - exact) < 100 * np.finfo(dtype).eps * np.linalg.norm(exact)
    parallel = cg(lambda p: dtype(2e10) * p, np.array([1.0, -1.0], dtype), cg_tol=0.0, max_iter=50)
    np.testing.assert_allclose(parallel.x, np.array([0.5e-10, -0.5e-10]), rtol=1e-5)


def test_a_product_that_fails_at_verification_is_a_breakdown() -> None:
    a, b, _ = problem(30, 5.0, np.float64)
    calls: list[int] = []

    def spoiled(p: np.ndarray) -> np.ndarray:
        calls.append(1)
        return a @ p if np.linalg.norm(p) != 0 and len(calls) < limit else np.full_like(p, np.nan)

    limit = 10**6
    needed = cg(spoiled, b, cg_tol=1e-3, max_iter=100, verify=False).products
    calls.clear()
    limit = needed + 1
    result = cg(spoiled, b, cg_tol=1e-3, max_iter=100, verify=True)
    assert result.stop_reason is StopReason.BREAKDOWN
    assert np.isfinite(result.x).all()


def test_a_forked_child_can_solve() -> None:
    """OpenMP's threads do not survive a fork: the child works on one thread instead of waiting for them for ever."""
    code = (
        "import os, numpy as np, ncg_cuda\n"
        "b = np.ones(1_000_000, np.float32)\n"
        "ncg_cuda.cg(lambda p: p + p, b)\n"
        "child = os.fork()\n"
        "if child == 0: os._exit(0 if ncg_cuda.cg(lambda p: p + p, b).converged else 1)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    "options",
    [{}, {"poll": 0}, {"defer_x": False}, {"preconditioner": np.ones(65, np.float32)}],
    ids=["plain", "poll=0", "not deferred", "preconditioned"],
)
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e20])
@pytest.mark.parametrize("curvature", [1e-36, 1e-30, 1e-22, 1e-15, 1e-8, 1e8, 1e16, 1e22, 1e30, 1e36])
def test_matrices_of_any_size_in_float32(curvature: float, size: float, options: dict[str, Any]) -> None:
    """Squares of products beyond 1e19 overflow, and below 1e-23 they vanish; a solution that fits is found."""
    rng = np.random.default_rng(0)
    diagonal, rhs = rng.uniform(1, 20, 65), rng.standard_normal(65)
    d, b = (diagonal * curvature).astype(np.float32), (rhs * size).astype(np.float32)
    result = cg(lambda p: d * p, b, max_iter=60, cg_tol=1e-4, **options)
    assert np.isfinite(result.x).all()
    if size / curvature > 1e40:  # beyond the largest number
        assert result.stop_reason is StopReason.BREAKDOWN
    elif 1e-34 < size / curvature < 1e35:
        assert result.converged, result
        assert result.drift < 1e-2
        np.testing.assert_allclose(result.x * (curvature / size), rhs / diagonal, atol=1e-3)
        assert 1 < result.curvature / curvature < 20


def test_overflow_inside_is_a_breakdown_with_a_finite_x() -> None:
    with np.errstate(over="ignore"):
        result = cg(lambda p: p * np.float32(1e38) * 10, np.ones(20, np.float32))
    assert result.stop_reason is StopReason.BREAKDOWN
    assert np.isfinite(result.x).all()


@pytest.mark.parametrize("options", [{}, {"verify": False}, {"poll": 0}, {"verify": True}])
def test_a_solution_out_of_range_is_a_breakdown_with_a_finite_x(options: dict[str, Any]) -> None:
    result = cg(lambda p: p * np.float32(1e-37), np.full(5, 1e5, np.float32), **options)
    assert (result.stop_reason, result.iterations) == (StopReason.BREAKDOWN, 0)
    assert not result.x.any()


def test_negative_curvature_at_once_is_a_scaled_steepest_descent_step() -> None:
    b = np.arange(1.0, 6.0)
    result = cg(lambda p: -2.0 * p, b)
    assert (result.stop_reason, result.iterations) == (StopReason.NEGATIVE_CURVATURE, 1)
    np.testing.assert_allclose(result.x, b / 2.0)  # rr / |pq| = 1 / 2
    assert result.residual_norm == pytest.approx(np.linalg.norm(b + 2.0 * result.x))
    assert result.curvature == pytest.approx(-2.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_negative_curvature_later_keeps_the_last_iterate(dtype: type) -> None:
    values = np.concatenate([np.linspace(1.0, 4.0, 40), [-0.05]])
    a = spectrum(values, 8).astype(dtype)
    b = np.random.default_rng(9).standard_normal(41).astype(dtype)
    iterates: list[np.ndarray] = []
    result = cg(lambda p: a @ p, b, max_iter=60, callback=lambda i, x, norm: iterates.append(x.copy()))
    assert result.stop_reason is StopReason.NEGATIVE_CURVATURE
    assert result.iterations == len(iterates) > 1
    assert np.array_equal(result.x, iterates[-1])
    assert -b.astype(np.float64) @ result.x < 0  # a descent direction all the same
    assert cg(lambda p: a @ p, b, tau=0.2, max_iter=60).converged  # damping mends it


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_curvature_test_is_scale_free(dtype: type) -> None:
    a, b, _ = problem(30, 10.0, dtype)
    for scale in (1e-12, 1e12):
        scaled = (a * dtype(scale)).astype(dtype)
        assert cg(lambda p, m=scaled: m @ p, b, cg_tol=1e-4, max_iter=80).converged


def test_zero_matrix_and_zero_right_hand_side() -> None:
    flat = cg(lambda p: np.zeros_like(p), np.ones(5))
    assert flat.stop_reason is StopReason.NEGATIVE_CURVATURE
    assert np.array_equal(flat.x, np.zeros(5))
    zero = cg(lambda p: p, np.zeros(5))
    assert (zero.stop_reason, zero.iterations, zero.products) == (StopReason.CONVERGED, 0, 0)
    warm = cg(lambda p: p + p, np.zeros(5), x0=np.ones(5))
    assert (warm.stop_reason, warm.iterations, warm.x.tolist()) == (StopReason.CONVERGED, 0, [0.0] * 5)
    assert cg(lambda p: np.zeros_like(p), np.ones(5), tau=2.0).x == pytest.approx(np.full(5, 0.5))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_numbers_are_a_breakdown(bad: float) -> None:
    b = np.ones(50)
    b[3] = bad
    result = cg(lambda p: p, b)
    assert (result.stop_reason, result.products) == (StopReason.BREAKDOWN, 0)
    a, b, _ = problem(50, 20.0, np.float64)
    calls = []

    def spoiled(p: np.ndarray) -> np.ndarray:
        calls.append(1)
        hp = a @ p
        if len(calls) == 4:
            hp[7] = bad
        return hp

    result = cg(spoiled, b)
    assert (result.stop_reason, result.iterations) == (StopReason.BREAKDOWN, 3)
    np.testing.assert_allclose(result.x, cg(lambda p: a @ p, b, max_iter=3).x)


def test_an_asymmetric_matvec_is_told_by_the_drift() -> None:
    a, b, _ = problem(60, 50.0, np.float64)
    skewed = a + 0.5 * np.triu(np.random.default_rng(0).standard_normal((60, 60)))
    assert cg(lambda p: a @ p, b, max_iter=15, cg_tol=0).drift < 1e-8
    assert cg(lambda p: skewed @ p, b, max_iter=15, cg_tol=0).drift > 0.1


def test_matvec_may_return_its_argument_and_sees_it_read_only() -> None:
    b = np.arange(1.0, 20.0)
    assert cg(lambda p: p, b).x == pytest.approx(b)

    def meddling(p: np.ndarray) -> np.ndarray:
        p[0] = 0.0
        return p

    with pytest.raises(ValueError, match="read-only"):
        cg(meddling, b)


def test_tensors_as_products() -> None:
    layout = Layout([(3, 4), (), (9,)])
    rng = np.random.default_rng(1)
    blocks = [spectrum(np.linspace(1.0, 5.0, int(n)), 2) for n in layout.lengths]
    parts = [rng.standard_normal(s) for s in layout.shapes]

    def matvec(p: np.ndarray) -> list[np.ndarray]:
        return [(m @ v.ravel()).reshape(v.shape) for m, v in zip(blocks, layout.views(p), strict=True)]

    result = cg(matvec, layout.pack(parts), layout=layout, cg_tol=1e-11, max_iter=50)
    assert result.converged
    assert result.verified
    for block, x, b in zip(blocks, layout.views(result.x), parts, strict=True):
        np.testing.assert_allclose((block @ x.ravel()).reshape(b.shape), b, atol=1e-9)
    same = cg(lambda p: layout.views(p), layout.pack(parts), layout=layout)  # the identity, sharing memory with p
    np.testing.assert_allclose(same.x, layout.pack(parts))
    with pytest.raises(ValueError, match=r"matvec: tensor 0 has shape \(4, 3\); this layout has \(3, 4\)"):
        cg(lambda p: [v.T for v in layout.views(p)], layout.pack(parts), layout=layout)
    with pytest.raises(TypeError, match=r"give cg\(\.\.\., layout="):
        cg(matvec, layout.pack(parts))


@pytest.mark.parametrize("poll", [None, 0])
def test_what_stands_between_the_tensors_counts_as_zero(poll: int | None) -> None:
    layout = Layout([(3, 4), (5,), (16,)])
    mask = layout.pack([np.ones(s) for s in layout.shapes])
    rng = np.random.default_rng(1)
    d, b, x0 = rng.uniform(1, 5, layout.size), rng.standard_normal(layout.size), rng.standard_normal(layout.size)
    kept = b.copy(), x0.copy()
    for start in (None, x0):
        result = cg(lambda p: layout.views(d * p), b, x0=start, layout=layout, cg_tol=1e-11, max_iter=50, poll=poll)
        assert result.converged
        np.testing.assert_allclose(result.x, mask * b / d, atol=1e-9)
    assert (b == kept[0]).all()
    assert (x0 == kept[1]).all()
    with pytest.raises(TypeError, match=r"matvec: tensor 1 is None; an array of shape \(5,\) is needed"):
        cg(lambda p: [p[:12].reshape(3, 4), None, p[32:]], b, layout=layout)


def test_arrays_of_any_shape_and_strides() -> None:
    b = np.random.default_rng(2).standard_normal((6, 8))[:, ::2]
    result = cg(lambda p: 4.0 * p, b)
    assert result.x.shape == b.shape
    np.testing.assert_allclose(result.x, b / 4.0)


def test_callback_sees_every_iteration() -> None:
    a, b, _ = problem(40, 10.0, np.float64)
    seen: list[tuple[int, float]] = []
    result = cg(lambda p: a @ p, b, max_iter=6, cg_tol=0.0, callback=lambda i, x, norm: seen.append((i, norm)))
    assert [i for i, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert seen[-1][1] == result.residual_norm


class TestBadInput:
    b = np.ones(10)

    @pytest.mark.parametrize(
        ("options", "error", "match"),
        [
            ({"tau": -0.1}, ValueError, "tau: -0.1"),
            ({"tau": math.nan}, ValueError, "tau: nan"),
            ({"tau": math.inf}, ValueError, "tau: inf"),
            ({"cg_tol": -1e-3}, ValueError, "cg_tol: -0.001"),
            ({"cg_tol": math.nan}, ValueError, "cg_tol: nan"),
            ({"max_iter": 0}, ValueError, "max_iter: 0"),
            ({"max_iter": 2.5}, ValueError, "max_iter: 2.5"),
            ({"x0": np.ones(9)}, ValueError, r"x0: shape \(9,\), but b has \(10,\)"),
            ({"x0": np.ones((2, 5))}, ValueError, r"x0: shape \(2, 5\), but b has \(10,\)"),
            ({"x0": np.ones(10, np.float32)}, TypeError, "x0: dtype float32, but b has float64"),
            ({"weights": 1.0}, TypeError, "weights: got 1.0; give a sequence"),
            ({"weights": np.array([1.0])}, ValueError, "weights: given for a single matvec"),
            ({"x0": [1.0] * 10}, TypeError, "x0: got list"),
            ({"tau": "x"}, TypeError, "tau: got 'x'"),
            ({"cg_tol": None}, TypeError, "cg_tol, max_iter: got None"),
            ({"max_iter": math.nan}, ValueError, "max_iter: nan"),
            ({"callback": 3}, TypeError, "callback: got int"),
            ({"layout": 3}, TypeError, "layout: got int"),
        ],
    )
    def test_options(self, options: dict[str, object], error: type[Exception], match: str) -> None:
        with pytest.raises(error, match=match):
            cg(lambda p: p, self.b, **options)

    @pytest.mark.parametrize(
        ("b", "error", "match"),
        [
            (np.ones(3, np.int64), TypeError, "b: dtype int64; allowed are float32 and float64"),
            ([1.0, 2.0], TypeError, "b: got list"),
            (np.zeros(0), ValueError, "b: an empty vector"),
            (np.ones(3, np.complex128), TypeError, "b: dtype complex128"),
        ],
    )
    def test_right_hand_sides(self, b: object, error: type[Exception], match: str) -> None:
        with pytest.raises(error, match=match):
            cg(lambda p: p, b)

    @pytest.mark.parametrize(
        ("product", "error", "match"),
        [
            (lambda p: p[:5], ValueError, r"matvec: returned shape \(5,\), but b has \(10,\)"),
            (lambda p: p[None], ValueError, r"matvec: returned shape \(1, 10\)"),
            (lambda p: p.astype(np.float32), TypeError, "matvec: returned dtype float32, but b has float64"),
            (lambda p: None, TypeError, "matvec: returned NoneType"),
        ],
    )
    def test_products(self, product: object, error: type[Exception], match: str) -> None:
        with pytest.raises(error, match=match):
            cg(product, self.b)

    def test_a_matrix_instead_of_a_function(self) -> None:
        with pytest.raises(TypeError, match="lambda p: h @ p"):
            cg(np.eye(10), self.b)

    def test_an_exception_of_the_matvec_comes_through(self) -> None:
        def broken(p: np.ndarray) -> np.ndarray:
            raise RuntimeError("mine")

        with pytest.raises(RuntimeError, match=r"^mine$"):
            cg(broken, self.b)


def test_arguments_are_not_changed() -> None:
    a, b, _ = problem(30, 10.0, np.float32)
    kept = b.copy()
    ncg_cuda.cg(lambda p: a @ p, b, tau=0.1)
    assert np.array_equal(b, kept)
