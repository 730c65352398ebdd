"""Options of cg: looks at the stop flag, deferred x, preconditioning, micro-batches, bfloat16 products."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest

from ncg_cuda import Layout, StopReason, cg, ops, reference

DTYPES = [np.float32, np.float64]
N = 3 * ops.CHUNK + 37


def diagonal_system(n: int, condition: float, seed: int = 0, dtype: type = np.float32) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([seed, n])
    d = np.exp(rng.uniform(0, np.log(condition), n))
    return d.astype(dtype), rng.standard_normal(n).astype(dtype)


def dense_system(n: int, condition: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([seed, n])
    q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    return (q * np.geomspace(1, condition, n)) @ q.T, rng.standard_normal(n)


class TestPoll:
    """Looking seldom changes nothing but the number of products."""

    @pytest.mark.parametrize("poll", [0, 1, 3, 7, 100])
    @pytest.mark.parametrize("defer_x", [True, False])
    @pytest.mark.parametrize("max_iter", [1, 2, 9, 200])
    def test_same_bits_however_often(self, poll: int, defer_x: bool, max_iter: int) -> None:
        d, b = diagonal_system(N, 30)
        options: dict[str, Any] = {"tau": 0.1, "cg_tol": 1e-3, "max_iter": max_iter, "defer_x": defer_x}
        often = cg(lambda p: d * p, b, poll=1, **options)
        seldom = cg(lambda p: d * p, b, poll=poll, **options)
        assert seldom.x.tobytes() == often.x.tobytes()
        for name in ("iterations", "stop_reason", "residual_norm", "rhs_norm", "curvature", "drift"):
            assert getattr(seldom, name) == getattr(often, name)
        assert seldom.products >= often.products
        if poll == 0:
            assert seldom.products == max_iter

    @pytest.mark.parametrize("poll", [0, 4])
    def test_a_stop_between_two_looks(self, poll: int) -> None:
        indefinite = np.ones(500)
        indefinite[::7] = -0.5
        b = np.random.default_rng(1).standard_normal(500)
        for tau in (0.0, 0.45):
            often = cg(lambda p: indefinite * p, b, tau=tau, poll=1)
            seldom = cg(lambda p: indefinite * p, b, tau=tau, poll=poll)
            assert often.stop_reason is seldom.stop_reason is StopReason.NEGATIVE_CURVATURE
            assert seldom.x.tobytes() == often.x.tobytes()

    def test_callback_at_each_look(self) -> None:
        d, b = diagonal_system(N, 30, dtype=np.float64)
        seen: list[tuple[int, np.ndarray, float]] = []
        cg(lambda p: d * p, b, cg_tol=0.0, max_iter=10, poll=4, callback=lambda k, x, n: seen.append((k, x.copy(), n)))
        assert [k for k, _, _ in seen] == [4, 8, 10]
        for k, x, norm in seen:
            truth, state = reference.cg(lambda p: d * p, b, cg_tol=0.0, max_iter=k)
            np.testing.assert_allclose(x, truth, rtol=1e-9, atol=1e-12)
            assert norm == pytest.approx(np.sqrt(state.rr), rel=1e-9)

    @pytest.mark.parametrize("size", [1e-30, 1e30])
    def test_callback_sees_x_in_its_units_with_a_deferred_step(self, size: float) -> None:
        d, b = diagonal_system(999, 10)
        b = b * np.float32(size)
        seen: list[np.ndarray] = []
        cg(lambda p: d * p, b, max_iter=3, callback=lambda k, x, n: seen.append(x.copy()), defer_x=True)
        for k, x in enumerate(seen, 1):
            truth, _ = reference.cg(lambda p: d.astype(float) * p, b, max_iter=k, cg_tol=0.0)
            assert np.linalg.norm(x - truth) <= 1e-4 * np.linalg.norm(truth)

    @pytest.mark.parametrize("bad", [-1, 2.5, True, "often"])
    def test_bad_poll(self, bad: Any) -> None:
        with pytest.raises(ValueError, match=r"poll: .* integer >= 0"):
            cg(lambda p: p, np.ones(3), poll=bad)

    def test_never_looking_excludes_looking(self) -> None:
        with pytest.raises(ValueError, match="callback: not possible with poll=0"):
            cg(lambda p: p, np.ones(3), poll=0, callback=print)
        with pytest.raises(ValueError, match="verify: not possible with poll=0"):
            cg(lambda p: p, np.ones(3), poll=0, verify=True)


class TestDeferredX:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("condition", [1.0001, 3.0, 1e3])
    @pytest.mark.parametrize("iterations", [1, 2, 3, 6, 7])
    def test_x_is_that_of_plain_cg(self, dtype: type, condition: float, iterations: int) -> None:
        d, b = diagonal_system(N, condition, dtype=dtype)
        truth, _ = reference.cg(lambda p: d.astype(float) * p, b, cg_tol=0.0, max_iter=iterations)
        x = cg(lambda p: d * p, b, cg_tol=0.0, max_iter=iterations, verify=False, defer_x=True).x
        assert np.linalg.norm(x - truth) <= 500 * np.finfo(dtype).eps * np.linalg.norm(truth)

    def test_as_true_a_residual_as_plain_cg(self) -> None:
        """The price of rebuilding p: the residual that x really has, against plain CG's, over long solves."""
        for condition in (10.0, 1e3, 1e5):
            d, b = diagonal_system(N, condition)
            exact = d.astype(float)
            true = {
                defer: np.linalg.norm(
                    b - exact * cg(lambda p, d=d: d * p, b, cg_tol=1e-4, max_iter=300, defer_x=defer).x
                )
                for defer in (True, False)
            }
            assert true[True] <= 1.5 * true[False] + 1e-5 * np.linalg.norm(b)

    def test_breakdown_keeps_the_last_finite_x(self) -> None:
        d, b = diagonal_system(500, 10)
        calls = 0

        def matvec(p: np.ndarray) -> np.ndarray:
            nonlocal calls
            calls += 1
            return d * p if calls < 4 else d * p * np.float32(np.nan)

        result = cg(matvec, b, cg_tol=0.0, defer_x=True)
        assert result.stop_reason is StopReason.BREAKDOWN
        truth, _ = reference.cg(lambda p: d.astype(float) * p, b, cg_tol=0.0, max_iter=3)
        np.testing.assert_allclose(result.x, truth, rtol=1e-3, atol=1e-4)


class TestPreconditioner:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("x0", [False, True])
    def test_iterates_of_the_reference(self, dtype: type, x0: bool) -> None:
        a, b = dense_system(150, 50)
        m = 1 / np.diag(a)
        start = np.random.default_rng(5).standard_normal(150) if x0 else None
        for k in (1, 2, 5):
            truth, state = reference.cg(lambda p: a @ p, b, tau=0.2, cg_tol=0.0, max_iter=k, preconditioner=m, x0=start)
            a_t = a.astype(dtype)
            got = cg(
                lambda p, a_t=a_t: a_t @ p,
                b.astype(dtype),
                tau=0.2,
                cg_tol=0.0,
                max_iter=k,
                preconditioner=m.astype(dtype),
                x0=None if start is None else start.astype(dtype),
                verify=False,
            )
            eps = float(np.finfo(dtype).eps)
            assert np.linalg.norm(got.x - truth) <= 200 * eps * np.linalg.norm(truth)
            assert got.residual_norm == pytest.approx(np.sqrt(state.rr), rel=1000 * eps)
            assert got.drift <= 1000 * eps

    def test_exact_inverse_needs_one_iteration(self) -> None:
        d, b = diagonal_system(N, 1e6)
        result = cg(lambda p: d * p, b, tau=0.5, preconditioner=1 / (d + np.float32(0.5)), cg_tol=1e-4)
        assert result.converged
        assert result.iterations <= 2
        assert cg(lambda p: d * p, b, tau=0.5, cg_tol=1e-4).iterations == 20

    def test_a_refuted_claim_goes_on_from_the_true_residual(self) -> None:
        a, b = dense_system(300, 1e4)
        a32, b32 = a.astype(np.float32), b.astype(np.float32)
        result = cg(lambda p: a32 @ p, b32, cg_tol=2e-6, max_iter=2000, preconditioner=1 / np.diag(a32))
        assert result.verified
        true = np.linalg.norm(b32 - a32.astype(float) @ result.x)
        assert result.residual_norm == pytest.approx(true, rel=0.5)
        if result.converged:
            assert true <= 1.2 * 2e-6 * np.linalg.norm(b)

    def test_not_positive(self) -> None:
        d, b = diagonal_system(100, 3)
        result = cg(lambda p: d * p, b, preconditioner=-1 / d)
        assert result.stop_reason is StopReason.BREAKDOWN
        assert not result.x.any()

    def test_mistakes(self) -> None:
        b = np.ones(10, np.float32)
        with pytest.raises(ValueError, match=r"preconditioner: shape \(3,\), but b has \(10,\)"):
            cg(lambda p: p, b, preconditioner=np.ones(3, np.float32))
        with pytest.raises(TypeError, match="preconditioner: got function"):
            cg(lambda p: p, b, preconditioner=lambda r: r)
        with pytest.raises(ValueError, match="defer_x: True with a preconditioner"):
            cg(lambda p: p, b, preconditioner=b, defer_x=True)


class TestMicroBatches:
    @pytest.mark.parametrize("count", [1, 2, 3, 6])
    @pytest.mark.parametrize("table", [False, True])
    @pytest.mark.parametrize("preconditioned", [False, True])
    def test_sum_of_parts(self, count: int, table: bool, preconditioned: bool) -> None:
        layout = Layout([(7, 30), (5,), (100,)])
        mask = layout.pack([np.ones(s) for s in layout.shapes])
        rng = np.random.default_rng(count)
        parts = [rng.uniform(0.5, 4, layout.size) * mask for _ in range(count)]
        weights = rng.uniform(0.1, 1, count)
        h = sum(w * part for w, part in zip(weights, parts, strict=True))
        b = rng.standard_normal(layout.size) * mask
        m = 1 / (h + 0.3)

        def matvec(part: np.ndarray) -> Any:
            return lambda p: [v.copy() for v in layout.views(part * p)] if table else part * p

        result = cg(
            [matvec(part) for part in parts],
            b,
            weights=list(weights),
            tau=0.3,
            cg_tol=1e-10,
            max_iter=400,
            layout=layout if table else None,
            preconditioner=m if preconditioned else None,
        )
        np.testing.assert_allclose(result.x, b / (h + 0.3), rtol=0, atol=1e-8)
        assert result.converged
        assert result.products % count == 0

    def test_the_mean_by_default(self) -> None:
        d, b = diagonal_system(1000, 5, dtype=np.float64)
        x = cg([lambda p: d * p, lambda p: 3 * d * p], b, cg_tol=1e-12, max_iter=200).x
        np.testing.assert_allclose(x, b / (2 * d), rtol=1e-9)

    def test_mistakes(self) -> None:
        b = np.ones(10)
        with pytest.raises(ValueError, match="weights: 1 given for 2 matvecs"):
            cg([lambda p: p, lambda p: p], b, weights=[1.0])
        with pytest.raises(ValueError, match="matvec: an empty sequence"):
            cg([], b)
        with pytest.raises(ValueError, match=r"weights: .*nan.*; give finite numbers"):
            cg([lambda p: p, lambda p: p], b, weights=[1.0, float("nan")])
        with pytest.raises(ValueError, match="weights: given for a single matvec"):
            cg(lambda p: p, b, weights=[1.0])
        with pytest.raises(TypeError, match="matvec: got ndarray"):
            cg([lambda p: p, b], b)


class TestBfloat16:
    ml_dtypes = pytest.importorskip("ml_dtypes")

    def test_products_in_half_the_bytes(self) -> None:
        bfloat16 = self.ml_dtypes.bfloat16
        d, b = diagonal_system(N, 5)
        exact = d.astype(float)
        result = cg(lambda p: (d * p).astype(bfloat16), b, bfloat16=True, cg_tol=1e-2, max_iter=30)
        assert result.converged
        assert np.linalg.norm(b - exact * result.x) <= 3e-2 * np.linalg.norm(b)

    def test_only_where_asked_for(self) -> None:
        d, b = diagonal_system(100, 5)
        with pytest.raises(TypeError, match=r"matvec.* bfloat16; allowed are float32 and float64"):
            cg(lambda p: (d * p).astype(self.ml_dtypes.bfloat16), b)
        with pytest.raises(TypeError, match=r"hp.*: dtype bfloat16, but p has float64"):
            ops.damped_curvature(np.ones(4, self.ml_dtypes.bfloat16), np.ones(4))


def test_a_result_keeps_no_vectors_but_x() -> None:
    """Otherwise a list of results would take four times its memory."""
    d, b = diagonal_system(N, 3)
    lent: list[weakref.ref[Any]] = []

    def matvec(p: np.ndarray) -> np.ndarray:
        lent.append(weakref.ref(p.base))
        return d * p

    results = [cg(matvec, b, verify=False) for _ in range(3)]  # a verification lends x, which stays
    assert not [memory for memory in lent if memory() is not None]
    assert "converged after" in repr(results[0])
