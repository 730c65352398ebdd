"""CG on tensors against reference.cg: same iterates, same stop reasons, every way of running it."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from ncg_cuda import StopReason, reference
from ncg_cuda.tf import solver, solver_plain

SHAPES = [(3, 4), (), (7,), (2, 5, 2)]
N = sum(int(np.prod(s)) for s in SHAPES)


def split(vector: Any) -> list[Any]:
    parts, at = [], 0
    for shape in SHAPES:
        size = int(np.prod(shape))
        parts.append(tf.reshape(vector[at : at + size], shape))
        at += size
    return parts


def join(tensors: Any) -> Any:
    return tf.concat([tf.reshape(t, [-1]) for t in tensors], 0)


def matrix(kind: str) -> np.ndarray:
    rng = np.random.default_rng(11)
    q, _ = np.linalg.qr(rng.normal(size=(N, N)))
    spectra = {
        "definite": np.linspace(1, 30, N),
        "clustered": np.repeat([1.0, 5.0, 9.0], [10, 10, N - 20]),
        "indefinite": np.linspace(-0.02, 30, N),
        "negative": np.linspace(-30, -1, N),
        "zero": np.zeros(N),
    }
    return (q * spectra[kind]) @ q.T


RHS = np.random.default_rng(4).normal(size=N)

CASES = {
    "max_iter": dict(a="definite", max_iter=6, stop=StopReason.MAX_ITER),
    "one iteration": dict(a="definite", max_iter=1, stop=StopReason.MAX_ITER),
    "damped": dict(a="definite", tau=3.3, max_iter=8, stop=StopReason.MAX_ITER),
    "converged": dict(a="clustered", cg_tol=1e-8, stop=StopReason.CONVERGED),
    "negative at once": dict(a="negative", stop=StopReason.NEGATIVE_CURVATURE),
    "negative later": dict(a="indefinite", max_iter=16, cg_tol=1e-12, stop=StopReason.NEGATIVE_CURVATURE),
    "damping cures it": dict(a="indefinite", tau=0.55, cg_tol=1e-6, max_iter=60, stop=StopReason.CONVERGED),
    "no curvature at all": dict(a="zero", stop=StopReason.NEGATIVE_CURVATURE),
    "b is zero": dict(a="definite", b=0 * RHS, stop=StopReason.CONVERGED),
    "NaN in b": dict(a="definite", b=np.where(np.arange(N) == 3, np.nan, RHS), stop=StopReason.BREAKDOWN),
    "NaN in the first product": dict(a="definite", nan_from=0, stop=StopReason.BREAKDOWN),
    "NaN in the third product": dict(a="definite", nan_from=2, stop=StopReason.BREAKDOWN),
    "not symmetric": dict(a="definite", skew=4.0, max_iter=5, stop=StopReason.MAX_ITER),
}


def setting(name: str) -> SimpleNamespace:
    case = {"tau": 0.0, "cg_tol": 1e-10, "max_iter": 12, "b": RHS, "nan_from": None, "skew": 0.0, **CASES[name]}
    case = SimpleNamespace(**case)
    case.matrix = matrix(case.a) + case.skew * np.triu(np.ones((N, N)), 1)
    return case


def expected(case: SimpleNamespace) -> tuple[np.ndarray, reference.State, int]:
    calls = 0

    def matvec(p: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        poisoned = case.nan_from is not None and calls > case.nan_from
        return case.matrix @ p * (np.nan if poisoned else 1.0)

    x, state = reference.cg(matvec, case.b, tau=case.tau, cg_tol=case.cg_tol, max_iter=case.max_iter)
    return x, state, calls


def run(case: SimpleNamespace, how: str) -> tuple[np.ndarray, Any]:
    a = tf.constant(case.matrix)
    calls = tf.Variable(0, dtype=tf.int32)

    def product(p: list[Any]) -> list[Any]:
        poisoned = case.nan_from is not None and calls.assign_add(1) > case.nan_from
        factor = tf.where(poisoned, tf.constant(np.nan, tf.float64), 1.0)
        return split(tf.linalg.matvec(a, join(p)) * factor)

    def go(b: Any) -> Any:
        path = "op" if "op" in how.split() else "plain"
        x, report = solver.solve(product, split(b), tau=case.tau, cg_tol=case.cg_tol, max_iter=case.max_iter, path=path)
        return join(x), vars(report)

    if how == "function":
        go = tf.function(go, autograph=False)
    elif how.startswith("xla"):
        go = tf.function(go, autograph=False, jit_compile=True)
    x, report = go(tf.constant(case.b))
    return x.numpy(), SimpleNamespace(**{k: v.numpy() for k, v in report.items()})


@pytest.mark.parametrize(
    ("name", "how"),
    [(name, how) for name in CASES for how in ("eager", "function")]
    + [(name, how) for name in ("damped", "negative later") for how in ("xla", "xla unrolled", "xla op unrolled")]
    + [(name, "xla op") for name in CASES if name != "NaN in b"],
)
def test_agrees_with_the_reference(name: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = setting(name)
    monkeypatch.setattr(solver_plain, "must_unroll", lambda: "unrolled" in how)
    x, report = run(case, how)
    truth, state, products = expected(case)
    scale = 1e-10 * max(1.0, np.linalg.norm(truth))
    assert state.stop == CASES[name]["stop"], "the case does not test what it says"
    assert report.stop_reason == state.stop
    assert report.iterations == state.iteration
    # a product that vanishes is made once more, to see whether only its squares did
    assert report.products == products + (name == "no curvature at all")
    np.testing.assert_allclose(x, truth, rtol=0, atol=scale)
    np.testing.assert_allclose(report.residual_norm**2, state.rr, rtol=1e-8, atol=1e-18)
    np.testing.assert_allclose(report.rhs_norm, np.linalg.norm(case.b), rtol=1e-12)
    if name == "not symmetric":
        np.testing.assert_allclose(report.drift, state.drift, rtol=1e-8)
        assert report.drift > 1e-3
    elif state.iteration and state.stop != StopReason.BREAKDOWN:
        assert report.drift < 1e-6
    if products and np.isfinite(state.pq) and state.pp:
        np.testing.assert_allclose(report.curvature, state.pq / state.pp, rtol=1e-7, atol=1e-12)


def test_solves_the_system() -> None:
    case = setting("converged")
    x, report = run(case, "function")
    np.testing.assert_allclose(x, np.linalg.solve(case.matrix, case.b), atol=1e-7)
    assert report.residual_norm <= 1e-8 * report.rhs_norm


def test_stops_early() -> None:
    """A converged solve makes no further product."""
    case = setting("converged")
    case.max_iter = 50
    _, report = run(case, "function")
    assert report.products == report.iterations == 3


def test_float32() -> None:
    case = setting("max_iter")
    a = tf.constant(case.matrix, tf.float32)
    x, report = solver.solve(
        lambda p: split(tf.linalg.matvec(a, join(p))),
        split(tf.constant(case.b, tf.float32)),
        tau=0.0,
        cg_tol=1e-6,
        max_iter=6,
        path="plain",
    )
    truth, _ = reference.cg(lambda p: case.matrix @ p, case.b, max_iter=6)
    assert all(t.dtype == tf.float32 for t in x)
    np.testing.assert_allclose(join(x), truth, rtol=0, atol=2e-5 * np.linalg.norm(truth))
    assert report.iterations.numpy() == 6


@pytest.mark.parametrize("scale", [1e-37, 1e-24, 1e20, 1e38])
@pytest.mark.parametrize("path", ["op", "plain"])
def test_float32_right_hand_sides_of_any_scale(scale: float, path: str) -> None:
    """Squares of 1e20 overflow and of 1e-24 vanish in float32: the solve runs on a scaled system."""
    b = [tf.constant([scale, -scale], tf.float32)]
    x, report = solver.solve(lambda p: p, b, tau=0.0, cg_tol=1e-5, max_iter=5, path=path)
    assert StopReason(int(report.stop_reason)) is StopReason.CONVERGED
    np.testing.assert_allclose(x[0].numpy(), [scale, -scale], rtol=1e-6)
    assert float(report.rhs_norm) == pytest.approx(np.sqrt(2.0) * scale, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e-15, 1e-10, 1e10, 1e15, 1e22, 1e36])
@pytest.mark.parametrize("path", ["op", "plain"])
def test_float32_losses_of_any_scale(scale: float, path: str) -> None:
    """A loss times 1e-15 has the same Newton step."""
    b = [tf.constant([scale, scale], tf.float32)]
    a = tf.constant([2.0 * scale, scale], tf.float32)
    x, report = solver.solve(lambda p: [a * p[0]], b, tau=0.0, cg_tol=1e-5, max_iter=5, path=path)
    assert StopReason(int(report.stop_reason)) is StopReason.CONVERGED
    np.testing.assert_allclose(x[0].numpy(), [0.5, 1.0], rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(tau=-1.0), "tau=-1.0"),
        (dict(tau=float("nan")), "tau=nan"),
        (dict(cg_tol=-1e-3), "cg_tol=-0.001"),
        (dict(cg_tol=float("inf")), "cg_tol=inf"),
        (dict(max_iter=0), "max_iter=0"),
        (dict(max_iter=2.5), "max_iter=2.5"),
        (dict(max_iter=True), "max_iter=True"),
        (dict(path="fast"), "path='fast'"),
        (dict(b=[]), "b is empty"),
        (dict(b=[tf.zeros(2), tf.zeros(2, tf.float64)]), "float32.*float64"),
        (dict(b=[tf.zeros(2, tf.int32)]), "int32"),
        (dict(b=[tf.zeros(2, tf.float16)]), "float16"),
    ],
)
def test_bad_input(arguments: dict[str, Any], message: str) -> None:
    arguments = {"b": [tf.ones(2)], "tau": 0.0, "cg_tol": 1e-5, "max_iter": 3, "path": "plain", **arguments}
    with pytest.raises(ValueError, match=message):
        solver.solve(lambda p: p, arguments.pop("b"), **arguments)


@pytest.mark.parametrize(
    ("product", "message"),
    [
        (lambda p: p[:1], "1 tensors for 2"),
        (lambda p: [p[0][:1], p[1]], r"tensor 0 has shape \(1,\)"),
        (lambda p: [p[0], tf.cast(p[1], tf.float64)], "float64"),
    ],
)
def test_bad_product(product: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solver.solve(product, [tf.ones(2), tf.ones(3)], tau=0.0, cg_tol=1e-5, max_iter=3, path="plain")


def test_product_that_raises() -> None:
    def product(p: Any) -> Any:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        solver.solve(product, [tf.ones(2)], tau=0.0, cg_tol=1e-5, max_iter=3, path="plain")


def test_op_insisted_on_but_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solver, "_why_no_op", lambda: "it was not built; run this command")
    with pytest.raises(RuntimeError, match="run this command"):
        solver.solve(lambda p: p, [tf.ones(2)], tau=0.0, cg_tol=1e-5, max_iter=3, path="op")


def test_says_once_that_it_is_the_slow_path(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(solver, "_why_no_op", lambda: "no library in this test")
    monkeypatch.setattr(solver, "_said", set())
    with caplog.at_level(logging.WARNING, logger="ncg_cuda"):
        for _ in range(2):
            x, _ = solver.solve(lambda p: p, [tf.ones(2)], tau=0.0, cg_tol=1e-5, max_iter=3)
    assert [r.getMessage() for r in caplog.records if "slow path" in r.getMessage()] == [
        "CG runs on plain TensorFlow operations, the slow path: no library in this test"
    ]
    np.testing.assert_allclose(x[0], [1, 1])


def test_op_and_plain_path_agree() -> None:
    why_not = solver._why_no_op()
    if why_not is not None:
        pytest.skip(why_not)
    case = setting("max_iter")
    a = tf.constant(case.matrix)

    @tf.function(autograph=False)
    def go(path: str) -> Any:
        x, report = solver.solve(
            lambda p: split(tf.linalg.matvec(a, join(p))),
            split(tf.constant(case.b)),
            tau=0.1,
            cg_tol=1e-10,
            max_iter=6,
            path=path,
        )
        return join(x), report.stop_reason, report.iterations, report.products

    for one, other in zip(go("op"), go("plain"), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10)
