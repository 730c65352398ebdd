"""Conjugate gradients on the GPU against float64 NumPy: every stop reason and every option."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from gpu_support import DTYPES, chain, chain_product, diagonal, takes_bfloat16, tensors_at_odd_addresses

from ncg_cuda import Layout, StopReason, cg, ops, reference

pytestmark = pytest.mark.gpu
N = 3 * ops.CHUNK + 37


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 17, 300])
@pytest.mark.parametrize("poll", [None, 1])
def test_agrees_with_a_dense_solve(cp: Any, dtype: type, n: int, poll: int | None) -> None:
    tau, tol = 0.25, 1e-5 if dtype is np.float32 else 1e-12
    b = np.random.default_rng(n).standard_normal(n).astype(dtype)
    exact = np.linalg.solve(chain(n) + tau * np.eye(n), b.astype(np.float64))
    given = cp.asarray(b)
    result = cg(chain_product(), given, tau=tau, cg_tol=tol, max_iter=400, poll=poll)
    assert result.converged
    assert result.verified
    assert type(result.x) is cp.ndarray
    assert result.residual_norm <= tol * result.rhs_norm
    assert np.linalg.norm(result.x.get() - exact) <= 30 * tol * np.linalg.norm(exact)
    assert np.array_equal(given.get(), b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("defer_x", [True, False])
def test_agrees_with_the_reference_step_by_step(cp: Any, dtype: type, defer_x: bool) -> None:
    d, b = diagonal(N, 30, dtype)
    d_gpu, b_gpu = cp.asarray(d), cp.asarray(b)
    eps = float(np.finfo(dtype).eps)
    for k in (1, 2, 3, 6, 9):
        truth, state = reference.cg(lambda p: d.astype(float) * p, b, tau=0.1, cg_tol=0.0, max_iter=k)
        result = cg(lambda p: d_gpu * p, b_gpu, tau=0.1, cg_tol=0.0, max_iter=k, defer_x=defer_x, poll=1)
        assert (result.iterations, result.stop_reason, result.products) == (k, StopReason.MAX_ITER, k)
        assert np.linalg.norm(result.x.get() - truth) <= 500 * eps * np.linalg.norm(truth)
        assert result.residual_norm == pytest.approx(math.sqrt(state.rr), rel=1000 * eps)
        assert result.rhs_norm == pytest.approx(np.linalg.norm(b.astype(float)), rel=10 * eps)
        assert result.curvature == pytest.approx(state.pq / state.pp, rel=1000 * eps)
        assert result.drift <= 1000 * eps


def test_agrees_with_the_cpu(cp: Any) -> None:
    d, b = diagonal(300_001, 100, np.float32)
    d_gpu = cp.asarray(d)
    on_gpu = cg(lambda p: d_gpu * p, cp.asarray(b), cg_tol=1e-4, max_iter=200, poll=1)
    on_cpu = cg(lambda p: d * p, b, cg_tol=1e-4, max_iter=200)
    assert (on_gpu.stop_reason, on_gpu.iterations) == (on_cpu.stop_reason, on_cpu.iterations)
    assert np.linalg.norm(on_gpu.x.get() - on_cpu.x) <= 1e-5 * np.linalg.norm(on_cpu.x)


class TestPoll:
    """Looking seldom changes nothing but the number of products."""

    @pytest.mark.parametrize("poll", [0, 3, 4, 100, None])
    @pytest.mark.parametrize("defer_x", [True, False])
    @pytest.mark.parametrize("max_iter", [1, 2, 9, 60])
    def test_same_bits_however_often(self, cp: Any, poll: int | None, defer_x: bool, max_iter: int) -> None:
        d, b = (cp.asarray(v) for v in diagonal(N, 30, np.float32))
        options: dict[str, Any] = {"tau": 0.1, "cg_tol": 1e-3, "max_iter": max_iter, "defer_x": defer_x}
        often = cg(lambda p: d * p, b, poll=1, **options)
        seldom = cg(lambda p: d * p, b, poll=poll, **options)
        assert seldom.x.get().tobytes() == often.x.get().tobytes()
        for name in ("iterations", "stop_reason", "residual_norm", "rhs_norm", "curvature", "drift"):
            assert getattr(seldom, name) == getattr(often, name)
        assert seldom.products >= often.products
        if poll == 0:
            assert seldom.products == max_iter

    def test_never_looking_does_not_wait_for_the_stream(self, cp: Any, hold: Any) -> None:
        d, b = (cp.asarray(v) for v in diagonal(N, 30, np.float32))
        want = cg(lambda p: d * p, b, max_iter=12, poll=0).x.get()
        stream = cp.cuda.Stream(non_blocking=True)
        cp.cuda.get_current_stream().synchronize()
        with stream:
            cg(lambda p: d * p, b, max_iter=12, poll=0)  # the pool has memory for this stream from here on
            stream.synchronize()
            with hold(stream):
                result = cg(lambda p: d * p, b, max_iter=12, poll=0)
                assert not stream.done
                assert "not read from the device yet" in repr(result)
            assert result.x.get().tobytes() == want.tobytes()
            assert result.iterations == 12

    @pytest.mark.parametrize("poll", [0, 4])
    def test_a_stop_between_two_looks(self, cp: Any, poll: int) -> None:
        indefinite = np.ones(5000)
        indefinite[::7] = -0.5
        h, b = cp.asarray(indefinite), cp.asarray(np.random.default_rng(1).standard_normal(5000))
        for tau in (0.0, 0.45):
            often = cg(lambda p: h * p, b, tau=tau, poll=1)
            seldom = cg(lambda p: h * p, b, tau=tau, poll=poll)
            assert often.stop_reason is seldom.stop_reason is StopReason.NEGATIVE_CURVATURE
            assert seldom.x.get().tobytes() == often.x.get().tobytes()

    def test_callback_at_each_look(self, cp: Any) -> None:
        d, b = diagonal(N, 30, np.float64)
        d_gpu, seen = cp.asarray(d), []
        cg(
            lambda p: d_gpu * p,
            cp.asarray(b),
            cg_tol=0.0,
            max_iter=10,
            poll=4,
            callback=lambda k, x, norm: seen.append((k, x.get(), norm)),
        )
        assert [k for k, _, _ in seen] == [4, 8, 10]
        for k, x, norm in seen:
            truth, state = reference.cg(lambda p: d * p, b, cg_tol=0.0, max_iter=k)
            np.testing.assert_allclose(x, truth, rtol=1e-9, atol=1e-12)
            assert norm == pytest.approx(math.sqrt(state.rr), rel=1e-9)


class TestStopReasons:
    def test_negative_curvature_at_once_is_a_scaled_steepest_descent_step(self, cp: Any) -> None:
        b = np.arange(1.0, 6.0)
        result = cg(lambda p: -2.0 * p, cp.asarray(b))
        assert (result.stop_reason, result.iterations) == (StopReason.NEGATIVE_CURVATURE, 1)
        np.testing.assert_allclose(result.x.get(), b / 2.0)  # rr / |pq| = 1 / 2
        assert result.curvature == pytest.approx(-2.0)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("poll", [1, 4])
    def test_negative_curvature_later_keeps_the_last_iterate(self, cp: Any, dtype: type, poll: int) -> None:
        h = np.linspace(1.0, 4.0, 2000).astype(dtype)
        h[77] = dtype(-0.05)
        b = np.random.default_rng(9).standard_normal(2000).astype(dtype)
        h_gpu, b_gpu = cp.asarray(h), cp.asarray(b)
        result = cg(lambda p: h_gpu * p, b_gpu, max_iter=60, poll=poll)
        truth, state = reference.cg(lambda p: h.astype(float) * p, b, max_iter=60)
        assert result.stop_reason is state.stop is StopReason.NEGATIVE_CURVATURE
        assert result.iterations == state.iteration > 1
        assert np.linalg.norm(result.x.get() - truth) <= 1e4 * float(np.finfo(dtype).eps) * np.linalg.norm(truth)
        assert cg(lambda p: h_gpu * p, b_gpu, tau=0.2, max_iter=60, cg_tol=1e-3).converged  # damping mends it

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_non_finite_numbers_are_a_breakdown(self, cp: Any, bad: float) -> None:
        d, b = diagonal(5000, 20, np.float64)
        d_gpu, spoiled = cp.asarray(d), b.copy()
        spoiled[4999] = bad
        result = cg(lambda p: d_gpu * p, cp.asarray(spoiled))
        assert (result.stop_reason, result.products) == (StopReason.BREAKDOWN, 0)
        calls: list[int] = []

        def fails_in_the_fourth(p: Any) -> Any:
            calls.append(1)
            hp = d_gpu * p
            if len(calls) == 4:
                hp[7] = bad
            return hp

        result = cg(fails_in_the_fourth, cp.asarray(b), poll=2)
        assert (result.stop_reason, result.iterations) == (StopReason.BREAKDOWN, 3)
        np.testing.assert_allclose(result.x.get(), cg(lambda p: d * p, b, max_iter=3).x, rtol=1e-9)

    def test_overflow_inside_is_a_breakdown_with_a_finite_x(self, cp: Any) -> None:
        result = cg(lambda p: p * np.float32(1e38) * 10, cp.asarray(np.ones(20, np.float32)))
        assert result.stop_reason is StopReason.BREAKDOWN
        assert np.isfinite(result.x.get()).all()

    @pytest.mark.parametrize("curvature", [1e-25, 1e24])
    @pytest.mark.parametrize("poll", [None, 0])
    def test_matrices_of_any_size(self, cp: Any, curvature: float, poll: int | None) -> None:
        d = np.random.default_rng(0).uniform(1, 9, 5000)
        there = cp.asarray((d * curvature).astype(np.float32))
        result = cg(lambda p: there * p, cp.asarray(np.ones(5000, np.float32)), max_iter=60, cg_tol=1e-4, poll=poll)
        assert result.converged
        np.testing.assert_allclose(result.x.get() * curvature, 1 / d, atol=1e-3)

    def test_a_solution_beyond_the_largest_number_is_a_breakdown(self, cp: Any) -> None:
        result = cg(lambda p: p * np.float32(1e-3), cp.asarray(np.full(9, 1e37, np.float32)), cg_tol=1e-4)
        assert result.stop_reason is StopReason.BREAKDOWN
        assert np.isfinite(result.x.get()).all()

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_beyond_rounding_is_stagnation(self, cp: Any, dtype: type) -> None:
        b = np.random.default_rng(3).standard_normal(40).astype(dtype)
        result = cg(chain_product(), cp.asarray(b), cg_tol=0.0, max_iter=500)
        assert result.stop_reason is StopReason.STAGNATED
        exact = np.linalg.solve(chain(40), b.astype(float))
        assert np.linalg.norm(result.x.get() - exact) < 100 * float(np.finfo(dtype).eps) * np.linalg.norm(exact)

    def test_nothing_to_do(self, cp: Any) -> None:
        zero = cg(lambda p: p, cp.asarray(np.zeros(5)))
        assert (zero.stop_reason, zero.iterations, zero.products) == (StopReason.CONVERGED, 0, 0)
        flat = cg(lambda p: 0.0 * p, cp.asarray(np.ones(5)))
        assert flat.stop_reason is StopReason.NEGATIVE_CURVATURE
        assert not flat.x.get().any()

    def test_an_asymmetric_matvec_is_told_by_the_drift(self, cp: Any) -> None:
        def skewed(p: Any) -> Any:
            hp = 2.5 * p
            hp[1:] -= 1.5 * p[:-1]
            return hp

        b = cp.asarray(np.random.default_rng(0).standard_normal(500))
        assert cg(chain_product(), b, max_iter=15, cg_tol=0).drift < 1e-8
        assert cg(skewed, b, max_iter=15, cg_tol=0).drift > 0.05


class TestOptions:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_warm_start(self, cp: Any, dtype: type) -> None:
        b = np.random.default_rng(5).standard_normal(2000).astype(dtype)
        exact = np.linalg.solve(chain(2000), b.astype(float))
        near = (exact + 1e-3 * np.random.default_rng(6).standard_normal(2000)).astype(dtype)
        start = cp.asarray(near)
        warm = cg(chain_product(), cp.asarray(b), x0=start, cg_tol=1e-5, max_iter=200)
        cold = cg(chain_product(), cp.asarray(b), cg_tol=1e-5, max_iter=200)
        assert warm.converged
        assert warm.iterations < cold.iterations
        assert np.linalg.norm(warm.x.get() - exact) <= 1e-4 * np.linalg.norm(exact)
        assert np.array_equal(start.get(), near)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("x0", [False, True])
    def test_preconditioner(self, cp: Any, dtype: type, x0: bool) -> None:
        rng = np.random.default_rng(8)
        scale = np.exp(rng.uniform(-2, 2, 3000))
        b, start = rng.standard_normal(3000), rng.standard_normal(3000) if x0 else None
        s = cp.asarray(scale.astype(dtype))

        def matvec(p: Any, s: Any = s) -> Any:
            return s * chain_product()(s * p)

        def exact(p: np.ndarray) -> np.ndarray:
            return scale * chain_product()(scale * p)

        m = 1 / (2.5 * scale**2 + 0.2)
        given = {k: cp.asarray(v.astype(dtype)) for k, v in {"b": b, "m": m, "x0": start}.items() if v is not None}
        for k in (1, 2, 5):
            truth, state = reference.cg(exact, b, tau=0.2, cg_tol=0.0, max_iter=k, preconditioner=m, x0=start)
            options: dict[str, Any] = {"tau": 0.2, "cg_tol": 0.0, "max_iter": k, "verify": False}
            got = cg(matvec, given["b"], preconditioner=given["m"], x0=given.get("x0"), **options)
            eps = float(np.finfo(dtype).eps)
            assert np.linalg.norm(got.x.get() - truth) <= 500 * eps * np.linalg.norm(truth)
            assert got.residual_norm == pytest.approx(math.sqrt(state.rr), rel=3000 * eps)
        assert cg(matvec, given["b"], tau=0.2, preconditioner=-given["m"]).stop_reason is StopReason.BREAKDOWN

    @pytest.mark.parametrize("count", [1, 2, 3])
    @pytest.mark.parametrize("table", [False, True])
    @pytest.mark.parametrize("preconditioned", [False, True])
    def test_micro_batches(self, cp: Any, count: int, table: bool, preconditioned: bool) -> None:
        layout = Layout([(7, 30), (5,), (100,)])
        mask = layout.pack([np.ones(s) for s in layout.shapes])
        rng = np.random.default_rng(count)
        parts = [rng.uniform(0.5, 4, layout.size) * mask for _ in range(count)]
        weights = rng.uniform(0.1, 1, count)
        h = sum(w * part for w, part in zip(weights, parts, strict=True))
        b = rng.standard_normal(layout.size) * mask

        def matvec(part: Any) -> Any:
            return lambda p: layout.views(part * p) if table else part * p

        result = cg(
            [matvec(cp.asarray(part)) for part in parts],
            cp.asarray(b),
            weights=list(weights),
            tau=0.3,
            cg_tol=1e-10,
            max_iter=400,
            layout=layout if table else None,
            preconditioner=cp.asarray(1 / (h + 0.3)) if preconditioned else None,
        )
        assert result.converged
        np.testing.assert_allclose(result.x.get(), b / (h + 0.3), rtol=0, atol=1e-8)
        assert result.products % count == 0

    @pytest.mark.parametrize("tensors", [3, 200])
    def test_products_as_tensors_give_the_bits_of_flat_ones(self, cp: Any, tensors: int) -> None:
        """Also beyond 161, where each product's table is copied to the GPU."""
        layout = Layout([(i % 29 + 1, 3) for i in range(tensors)])
        d, b = (layout.pack(layout.views(v)) for v in diagonal(layout.size, 30, np.float32))  # zero in the padding
        d_gpu, b_gpu = cp.asarray(d), cp.asarray(b)
        odd = tensors_at_odd_addresses(cp, layout, [np.zeros(s, np.float32) for s in layout.shapes])

        def in_tensors(p: Any) -> Any:
            for target, view in zip(odd, layout.views(d_gpu * p), strict=True):
                target[...] = view
            return odd

        for poll in (0, 4):
            flat = cg(lambda p: d_gpu * p, b_gpu, tau=0.1, poll=poll)
            table = cg(in_tensors, b_gpu, tau=0.1, layout=layout, poll=poll)
            assert table.x.get().tobytes() == flat.x.get().tobytes()
            assert table.iterations == flat.iterations
        shared = cg(lambda p: layout.views(p), b_gpu, layout=layout)  # the identity, in the memory of p
        np.testing.assert_allclose(shared.x.get(), b, rtol=1e-6)

    def test_a_product_may_be_the_direction_itself(self, cp: Any) -> None:
        b = np.arange(1.0, 5000.0)
        np.testing.assert_allclose(cg(lambda p: p, cp.asarray(b)).x.get(), b)

    def test_products_in_bfloat16(self, cp: Any) -> None:
        bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
        if not takes_bfloat16(cp):
            pytest.skip("this CuPy has no bfloat16")
        d, b = diagonal(N, 5, np.float32)
        result = cg(
            lambda p: cp.asarray((d * p.get()).astype(bfloat16)), cp.asarray(b), bfloat16=True, cg_tol=1e-2, max_iter=30
        )
        assert result.converged
        assert np.linalg.norm(b - d.astype(float) * result.x.get()) <= 3e-2 * np.linalg.norm(b)

    @pytest.mark.parametrize("magnitude", [1e-38, 1e-23, 1e19, 1e37])
    def test_tiny_and_huge_right_hand_sides_in_float32(self, cp: Any, magnitude: float) -> None:
        """Squares of 1e19 overflow and of 1e-23 vanish in float32: the solve is scaled, the answer is the same."""
        b = np.random.default_rng(7).standard_normal(70)
        given = (b * magnitude).astype(np.float32)
        result = cg(chain_product(), cp.asarray(given), cg_tol=1e-4, max_iter=100)
        assert result.converged
        exact = np.linalg.solve(chain(70), given.astype(float))
        np.testing.assert_allclose(result.x.get() / magnitude, exact / magnitude, atol=2e-3)

    def test_shapes_and_strides(self, cp: Any) -> None:
        b = np.random.default_rng(2).standard_normal((6, 8))
        result = cg(lambda p: 4.0 * p, cp.asarray(b)[:, ::2])
        assert result.x.shape == (6, 4)
        np.testing.assert_allclose(result.x.get(), b[:, ::2] / 4.0)
