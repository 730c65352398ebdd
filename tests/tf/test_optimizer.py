"""NewtonCG on functions and by its parameters: the step itself, its guards, its errors."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from ncg_cuda import StopReason, reference
from ncg_cuda.tf import NewtonCG

RNG = np.random.default_rng(0)
FULL = {"tau": 0.0, "cg_tol": 1e-12, "max_iter": 50, "max_step": None}


def variable(values: Any) -> tf.Variable:
    return tf.Variable(np.asarray(values, float))


def quadratic(n: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    m = rng.normal(size=(n, n))
    return m @ m.T + np.eye(n), rng.normal(size=n)


@pytest.mark.parametrize("path", ["auto", "plain"])
@pytest.mark.parametrize("inside", [False, True])
def test_quadratic_in_one_step(path: str, inside: bool) -> None:
    """One CG over all variables: coupled ones, too, reach the minimum together."""
    a, b = quadratic()
    u, v = variable(np.ones(3)), variable(np.ones((5, 1)))

    def loss_fn() -> Any:
        w = tf.concat([u, v[:, 0]], 0)
        return tf.tensordot(w, tf.linalg.matvec(a, w), 1) / 2 - tf.tensordot(w, b, 1)

    optimizer = NewtonCG(1.0, path=path, **FULL)
    start = loss_fn()
    if inside:
        loss = tf.function(lambda: optimizer.minimize(loss_fn, [u, v]), autograph=False)()
    else:
        loss = optimizer.minimize(loss_fn, [u, v])
    np.testing.assert_allclose(loss, start)
    np.testing.assert_allclose(np.r_[u.numpy(), v.numpy()[:, 0]], np.linalg.solve(a, b), rtol=1e-8)
    assert optimizer.last_step.stop_reason is StopReason.CONVERGED
    assert optimizer.last_step.products == optimizer.last_step.iterations
    assert optimizer.last_step.iterations in (8, 9)  # rounding may ask for one more


def test_damping_and_learning_rate() -> None:
    a, b = quadratic()
    w = variable(np.zeros(8))
    optimizer = NewtonCG(0.25, **{**FULL, "tau": 3.3})
    optimizer.minimize(lambda: tf.tensordot(w, tf.linalg.matvec(a, w), 1) / 2 - tf.tensordot(w, b, 1), [w])
    np.testing.assert_allclose(w, 0.25 * np.linalg.solve(a + 3.3 * np.eye(8), b), rtol=1e-7)


def test_truncated_step_is_that_of_the_reference() -> None:
    a, b = quadratic(20)
    w = variable(np.zeros(20))
    optimizer = NewtonCG(1.0, **{**FULL, "max_iter": 4})
    optimizer.minimize(lambda: tf.tensordot(w, tf.linalg.matvec(a, w), 1) / 2 - tf.tensordot(w, b, 1), [w])
    x, state = reference.cg(lambda p: a @ p, b, max_iter=4, cg_tol=0.0)
    np.testing.assert_allclose(w, x, rtol=1e-9, atol=1e-12)
    last = optimizer.last_step
    np.testing.assert_allclose(
        [last.residual_norm, last.rhs_norm, last.gradient_norm, last.direction_norm, last.slope],
        [np.sqrt(state.rr), np.linalg.norm(b), np.linalg.norm(b), np.linalg.norm(x), -b @ x],
        rtol=1e-8,
    )
    assert last.stop_reason is StopReason.MAX_ITER


def test_logistic_regression_against_numpy_and_scipy() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    x = RNG.normal(size=(60, 4))
    y = (x @ [1.0, -2.0, 0.5, 0.0] + RNG.normal(size=60) > 0).astype(float)
    w, c = variable(np.zeros((4, 1))), keras.Variable(np.zeros(1), dtype="float64")

    def loss_fn() -> Any:
        logits = (x @ w + c.value)[:, 0]
        return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(y, logits)) + 0.05 * tf.reduce_sum(w**2)

    z, penalty = np.c_[x, np.ones(60)], np.diag([0.1] * 4 + [0.0])

    def newton(beta: np.ndarray) -> np.ndarray:
        p = 1 / (1 + np.exp(-z @ beta))
        hessian = z.T @ (z * (p * (1 - p))[:, None]) / 60 + penalty
        return beta - np.linalg.solve(hessian, z.T @ (p - y) / 60 + penalty @ beta)

    def value(beta: np.ndarray) -> float:
        t = z @ beta
        return float(np.mean(np.logaddexp(0, t) - y * t) + 0.05 * beta[:4] @ beta[:4])

    optimizer, beta = NewtonCG(1.0, **FULL), np.zeros(5)
    for _ in range(6):
        optimizer.minimize(loss_fn, [w, c])
        beta = newton(beta)
        np.testing.assert_allclose(np.r_[w.numpy()[:, 0], np.asarray(c)], beta, rtol=1e-7, atol=1e-9)
    best = optimize.minimize(value, np.zeros(5), tol=1e-12)
    np.testing.assert_allclose(loss_fn(), best.fun, rtol=1e-9)


def test_indefinite_hessian() -> None:
    """At a saddle the step goes down, and never towards the maximum along the concave direction."""
    w = variable([0.5, 0.1])
    optimizer = NewtonCG(0.1, tau=0.0)

    def loss_fn() -> Any:
        return w[0] ** 2 - w[1] ** 2 + w[1] ** 4

    losses = [float(optimizer.minimize(loss_fn, [w])) for _ in range(60)]
    assert losses[-1] < -0.24  # the minimum is -1/4, at (0, 1/sqrt 2)
    assert max(np.diff(losses)) < 0
    w.assign([0.0, 0.1])
    optimizer.minimize(loss_fn, [w])
    assert optimizer.last_step.stop_reason is StopReason.NEGATIVE_CURVATURE
    assert optimizer.last_step.curvature < 0
    assert optimizer.last_step.slope < 0
    assert not optimizer.last_step.fallback
    assert w.numpy()[1] > 0.1


def test_non_finite_gradient_is_skipped_and_counted() -> None:
    w, poison = variable([1.0, 2.0]), tf.Variable(np.nan, dtype=tf.float64)
    optimizer = NewtonCG(1.0, **FULL)

    def loss_fn() -> Any:
        return tf.reduce_sum(w**2) * poison

    for bad in (np.nan, np.inf):
        poison.assign(bad)
        optimizer.minimize(loss_fn, [w])
        np.testing.assert_array_equal(w, [1.0, 2.0])
        assert optimizer.last_step.skipped
        assert optimizer.last_step.stop_reason is StopReason.BREAKDOWN
    assert optimizer.last_step.skipped_total == 2
    poison.assign(1.0)
    optimizer.minimize(loss_fn, [w])
    np.testing.assert_allclose(w, [0.0, 0.0], atol=1e-12)
    last = optimizer.last_step
    assert (last.skipped, last.skipped_total, last.steps, last.fallback) == (False, 2, 3, False)


def test_non_finite_curvature_falls_back_to_the_gradient() -> None:
    """w^1.5 has the gradient 0 and the curvature infinity at 0."""
    w = variable([0.0, 3.0])
    optimizer = NewtonCG(0.5, **FULL)
    optimizer.minimize(lambda: w[0] ** 1.5 + tf.reduce_sum(w), [w])
    np.testing.assert_allclose(w, [-0.5, 2.5])
    assert optimizer.last_step.fallback
    assert optimizer.last_step.fallbacks_total == 1
    assert optimizer.last_step.stop_reason is StopReason.BREAKDOWN


def test_non_finite_learning_rate_is_skipped() -> None:
    w = variable([1.0])
    optimizer = NewtonCG(lambda: tf.constant(np.nan), **FULL)
    optimizer.minimize(lambda: tf.reduce_sum(w**2), [w])
    np.testing.assert_array_equal(w, [1.0])
    assert optimizer.last_step.skipped


@pytest.mark.parametrize("scale", [1e20, 1e37])
def test_losses_near_the_largest_number(scale: float) -> None:
    """Squares of products overflow in float32, the products do not."""
    w = tf.Variable([1.0, -1.0])
    optimizer = NewtonCG(1.0, max_step=0.5)
    optimizer.minimize(lambda: tf.reduce_sum(w**2) * scale, [w])
    last = optimizer.last_step
    assert (last.stop_reason, last.fallback, last.skipped) == (StopReason.CONVERGED, False, False)
    assert last.gradient_norm == pytest.approx(2.0 * np.sqrt(2.0) * scale, rel=1e-6)
    np.testing.assert_allclose(w, np.array([1.0, -1.0]) * (1.0 - 0.5 / np.sqrt(2.0)), rtol=1e-5)


def test_overflow_never_reaches_the_weights() -> None:
    """The products are infinite: CG breaks down, the fallback is as long as max_step allows."""
    start = np.array([1e-3, -1e-3])
    w = tf.Variable(start, dtype=tf.float32)
    optimizer = NewtonCG(1.0, max_step=5e-4)
    optimizer.minimize(lambda: tf.reduce_sum((1e19 * w) ** 2) * 10.0, [w])
    last = optimizer.last_step
    assert (last.stop_reason, last.fallback, last.skipped) == (StopReason.BREAKDOWN, True, False)
    np.testing.assert_allclose(w, start * (1.0 - 0.5 / np.sqrt(2.0)), rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e-24, 1e-10, 1.0, 1e10, 1e20])
def test_a_scaled_loss_has_the_same_step(scale: float) -> None:
    w = tf.Variable([1.0, -1.0])
    optimizer = NewtonCG(1.0, **FULL)
    optimizer.minimize(lambda: tf.reduce_sum(w**2) * scale, [w])
    np.testing.assert_allclose(w, [0.0, 0.0], atol=1e-6)
    assert not optimizer.last_step.fallback


def test_at_the_minimum_nothing_moves() -> None:
    w = variable([0.0, 0.0])
    optimizer = NewtonCG(1.0, **FULL)
    optimizer.minimize(lambda: tf.reduce_sum(w**2), [w])
    last = optimizer.last_step
    assert (last.stop_reason, last.products, last.fallback, last.skipped) == (StopReason.CONVERGED, 0, False, False)
    np.testing.assert_array_equal(w, [0.0, 0.0])


def test_max_step_limits_the_step() -> None:
    w = variable([30.0, 40.0])
    optimizer = NewtonCG(0.5, **{**FULL, "max_step": 2.0})
    optimizer.minimize(lambda: tf.reduce_sum(w**2), [w])
    np.testing.assert_allclose(w, np.array([30.0, 40.0]) * 48 / 50)
    w.assign([0.3, 0.4])
    optimizer.minimize(lambda: tf.reduce_sum(w**2) * 1.0, [w])
    np.testing.assert_allclose(w, [0.15, 0.2])


def test_variable_without_influence_stays() -> None:
    w, unused = variable([1.0]), variable([5.0])
    optimizer = NewtonCG(1.0, **FULL)
    optimizer.minimize(lambda: tf.reduce_sum(w**2), [unused, w])
    np.testing.assert_array_equal(unused, [5.0])
    np.testing.assert_allclose(w, [0.0], atol=1e-12)


@pytest.mark.parametrize("clip", [{"global_clipnorm": 0.5}, {"clipnorm": 0.5}, {"clipvalue": 0.1}])
def test_clipping_leaves_the_curvature_alone(clip: dict[str, float]) -> None:
    a, b = quadratic(4)
    w = variable(np.zeros(4))
    optimizer = NewtonCG(1.0, **FULL, **clip)
    optimizer.minimize(lambda: tf.tensordot(w, tf.linalg.matvec(a, w), 1) / 2 - tf.tensordot(w, b, 1), [w])
    ((kind, limit),) = clip.items()
    clipped = np.clip(b, -limit, limit) if kind == "clipvalue" else b * min(1, limit / np.linalg.norm(b))
    np.testing.assert_allclose(w, np.linalg.solve(a, clipped), rtol=1e-6)


def test_loss_scale_factor_changes_nothing() -> None:
    a, b = quadratic(4)
    w = variable(np.zeros(4))
    optimizer = NewtonCG(1.0, loss_scale_factor=8.0, **FULL)

    @tf.function(autograph=False)
    def step() -> None:
        with tf.GradientTape() as tape:
            loss = tf.tensordot(w, tf.linalg.matvec(a, w), 1) / 2 - tf.tensordot(w, b, 1)
            scaled = optimizer.scale_loss(loss)
        optimizer.apply_gradients([(tape.gradient(scaled, w), w)])

    step()
    np.testing.assert_allclose(w, np.linalg.solve(a, b), rtol=1e-7)


def test_exponential_moving_average() -> None:
    w = variable([4.0])
    optimizer = NewtonCG(0.5, use_ema=True, ema_momentum=0.5, **FULL)
    for _ in range(2):
        optimizer.minimize(lambda: tf.reduce_sum(w**2), [w])
    np.testing.assert_allclose(w, [1.0])
    np.testing.assert_allclose(optimizer._model_variables_moving_average[0], [1.5])


def test_schedule() -> None:
    w = variable([1.0])
    optimizer = NewtonCG(keras.optimizers.schedules.ExponentialDecay(0.5, 1, 0.5), **FULL)
    seen = []
    for _ in range(3):
        optimizer.minimize(loss_of(w), [w])
        seen.append(optimizer.last_step.learning_rate)
    np.testing.assert_allclose(seen, [0.5, 0.25, 0.125], rtol=1e-6)
    np.testing.assert_allclose(w, [0.5 * 0.75 * 0.875], rtol=1e-6)


def loss_of(w: tf.Variable) -> Any:
    return lambda: tf.reduce_sum(w**2)


def test_learning_rate_can_be_set_between_steps() -> None:
    w = variable([1.0])
    optimizer, loss_fn = NewtonCG(0.5, **FULL), loss_of(w)
    optimizer.minimize(loss_fn, [w])
    optimizer.learning_rate = 0.25
    optimizer.minimize(loss_fn, [w])
    np.testing.assert_allclose(w, [0.375], rtol=1e-6)


def test_same_function_is_traced_once() -> None:
    w, traces = variable([1.0]), []

    def loss_fn() -> Any:
        traces.append(1)
        return tf.reduce_sum(w**2)

    optimizer = NewtonCG(0.5, **FULL)
    for _ in range(4):
        optimizer.minimize(loss_fn, [w])
    assert len(traces) == 1


def test_counts_products() -> None:
    a, b = quadratic(6)
    w = variable(np.zeros(6))
    optimizer = NewtonCG(0.5, **{**FULL, "max_iter": 3})

    def loss_fn() -> Any:
        return tf.tensordot(w, tf.linalg.matvec(a, w), 1) / 2 - tf.tensordot(w, b, 1)

    assert optimizer.last_step is None
    for steps in (1, 2):
        optimizer.minimize(loss_fn, [w])
        assert (optimizer.last_step.steps, optimizer.last_step.products_total) == (steps, 3 * steps)


def test_config_round_trip() -> None:
    schedule = keras.optimizers.schedules.ExponentialDecay(0.5, 10, 0.9)
    for learning_rate in (0.25, schedule):
        one = NewtonCG(
            learning_rate, tau=0.5, cg_tol=1e-3, max_iter=7, max_step=3.0, report_loss_after=True, path="plain",
            clipnorm=2.0, name="mine",
        )  # fmt: skip
        other = keras.optimizers.deserialize(keras.optimizers.serialize(one))
        assert type(other) is NewtonCG
        assert keras.optimizers.serialize(one) == keras.optimizers.serialize(other)
        assert (other.tau, other.max_iter, other.max_step, other.path) == (0.5, 7, 3.0, "plain")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tau": -1.0}, "tau=-1.0"),
        ({"tau": float("nan")}, "tau=nan"),
        ({"cg_tol": -1.0}, "cg_tol=-1.0"),
        ({"max_iter": 0}, "max_iter=0"),
        ({"max_iter": 1.5}, "max_iter=1.5"),
        ({"max_step": 0.0}, "max_step=0.0"),
        ({"learning_rate": -0.1}, "learning_rate=-0.1"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"learning_rate": "fast"}, "learning_rate='fast'"),
        ({"path": "gpu"}, "path='gpu'"),
        ({"gradient_accumulation_steps": 1}, "gradient_accumulation_steps"),
    ],
)
def test_bad_parameters(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NewtonCG(**arguments)


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("clipnorm", -1, "a number > 0, or None"),
        ("clipnorm", "1", "a number > 0, or None"),
        ("clipvalue", -1, "a number > 0, or None"),
        ("global_clipnorm", math.nan, "a number > 0, or None"),
        ("weight_decay", -1, "a number >= 0, or None"),
        ("gradient_accumulation_steps", 0, "an integer >= 2, or None"),
        ("gradient_accumulation_steps", 2.5, "an integer >= 2, or None"),
        ("ema_momentum", 2, "a number from 0 to 1"),
        ("ema_overwrite_frequency", 0, "an integer >= 1, or None"),
    ],
)
def test_options_of_keras_out_of_range_are_refused(option: str, value: Any, allowed: str) -> None:
    with pytest.raises(ValueError, match=rf"^{option}={value!r} is not allowed: give {allowed}"):
        NewtonCG(**{option: value})


def test_options_of_keras_in_range_are_accepted() -> None:
    NewtonCG(clipnorm=np.float32(1), weight_decay=0, gradient_accumulation_steps=np.int64(2), ema_overwrite_frequency=1)


def test_gradients_from_outside_are_refused() -> None:
    """They carry no curvature: without the error, the step would silently be one of gradient descent."""
    w = variable([1.0])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(w**2)
    gradient = tape.gradient(loss, w)
    optimizer = NewtonCG()
    with pytest.raises(ValueError, match="computed outside"):
        tf.function(lambda g: optimizer.apply_gradients([(g, w)]))(gradient)


def test_bad_minimize() -> None:
    w = variable([1.0])
    with pytest.raises(ValueError, match="linear in the weights"):
        NewtonCG().minimize(lambda: tf.reduce_sum(w), [w])
    with pytest.raises(ValueError, match="depends on none of the variables"):
        NewtonCG().minimize(lambda: tf.constant(1.0), [w])
    with pytest.raises(ValueError, match="scalar"):
        NewtonCG().minimize(lambda: w * 2, [w])
    with pytest.raises(ValueError, match="callable"):
        NewtonCG().minimize(tf.constant(1.0), [w])
    with pytest.raises(ValueError, match="variables is empty"):
        NewtonCG().minimize(lambda: tf.reduce_sum(w), [])
    with pytest.raises(ValueError, match="float16"):
        NewtonCG().minimize(lambda: tf.constant(1.0), [tf.Variable([1.0], dtype=tf.float16)])
