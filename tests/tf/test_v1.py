"""NewtonCGOptimizer in graphs and sessions: both kinds of variables, control flow of both versions."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager.context import eager_mode

from ncg_cuda import StopReason
from ncg_cuda.tf import NewtonCG
from ncg_cuda.tf.v1 import NewtonCGOptimizer

v1 = tf.compat.v1
RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 4))
LABELS = (X @ [1.0, -2.0, 0.5, 0.0] + RNG.normal(size=40) > 0).astype(float)
START = [0.5, -0.4, 0.3, 0.9]
FULL: dict[str, Any] = {"cg_tol": 1e-13, "max_iter": 60, "max_step": None}


both = pytest.mark.parametrize("graph", ["control-flow-v2", "control-flow-v1"], indirect=True)


@pytest.fixture(autouse=True)
def graph(request: pytest.FixtureRequest) -> Iterator[tf.Graph]:
    """A graph under construction."""
    if getattr(request, "param", "") == "control-flow-v1":
        v1.disable_control_flow_v2()
    try:
        with tf.Graph().as_default() as graph:
            v1.set_random_seed(1)
            yield graph
    finally:
        v1.enable_control_flow_v2()


def variable(value: Any, resource: bool = True) -> Any:
    return v1.Variable(np.asarray(value, float), use_resource=resource)


def started() -> Any:
    session = v1.Session()
    session.run(v1.global_variables_initializer())
    return session


def row(tensors: Any) -> Any:
    return tf.concat([tf.reshape(t, [-1]) for t in tensors], 0)


def dense_newton(loss: Any, variables: list[Any], tau: float = 0.0) -> tuple[Any, Any]:
    """Tensors: the gradient, and the Newton direction from stock second derivatives, row by row."""
    sources = [v if hasattr(v, "handle") else v._ref() for v in variables]
    gradient = row(tf.convert_to_tensor(g) for g in tf.gradients(loss, sources))
    rows = [
        row(
            tf.zeros(v.shape, tf.float64) if h is None else tf.convert_to_tensor(h)
            for h, v in zip(tf.gradients(gradient[i], sources), variables, strict=True)
        )
        for i in range(gradient.shape[0])
    ]
    matrix = tf.stack(rows) + tau * tf.eye(len(rows), dtype=tf.float64)
    return gradient, -tf.linalg.solve(matrix, gradient[:, None])[:, 0]


def check_step(loss: Any, variables: list[Any], optimizer: NewtonCGOptimizer, tau: float) -> None:
    """One step with learning rate 1 against the dense one."""
    _, direction = dense_newton(loss, variables, tau)
    step = optimizer.minimize(loss, var_list=variables)
    with started() as session:
        before, wanted = session.run([row(variables), direction])
        _, report = session.run([step, optimizer.last_step])
        assert report["stop_reason"] == StopReason.CONVERGED  # not indefinite
        np.testing.assert_allclose(session.run(row(variables)), before + wanted, rtol=1e-8, atol=1e-10)


@both
@pytest.mark.parametrize("resource", [True, False])
@pytest.mark.parametrize("path", ["op", "plain"])
def test_quadratic_against_numpy(path: str, resource: bool) -> None:
    m = RNG.normal(size=(8, 8))
    a, b = m @ m.T + np.eye(8), RNG.normal(size=8)
    u, v = variable(np.ones(3), resource), variable(np.ones((5, 1)), resource)
    w = tf.concat([u, v[:, 0]], 0)
    loss = tf.tensordot(w, tf.linalg.matvec(a, w), 1) / 2 - tf.tensordot(w, b, 1)
    rate, tau = v1.placeholder(tf.float32, []), v1.placeholder(tf.float64, [])
    global_step = v1.train.get_or_create_global_step()
    optimizer = NewtonCGOptimizer(rate, tau, path=path, **FULL)
    assert optimizer.last_step is None
    step = optimizer.minimize(loss, global_step)
    with started() as session:
        x = np.ones(8)
        for k, (lr, t) in enumerate([(0.5, 0.7), (1.0, 3.0)]):
            g = a @ x - b
            d = -np.linalg.solve(a + t * np.eye(8), g)
            _, report = session.run([step, optimizer.last_step], {rate: lr, tau: t})
            np.testing.assert_allclose(report["loss"], x @ a @ x / 2 - b @ x, rtol=1e-12)
            np.testing.assert_allclose(report["gradient_norm"], np.linalg.norm(g))
            np.testing.assert_allclose(report["slope"], g @ d)
            assert report["learning_rate"] == lr
            assert report["stop_reason"] == StopReason.CONVERGED
            assert not report["fallback"]
            x = x + lr * d
            np.testing.assert_allclose(session.run(row([u, v])), x, rtol=1e-10, atol=1e-12)
            assert session.run(global_step) == k + 1
        with pytest.raises(tf.errors.InvalidArgumentError, match="finite number >= 0"):
            session.run(step, {rate: 1.0, tau: -1.0})
        np.testing.assert_allclose(session.run(row([u, v])), x, rtol=1e-10, atol=1e-12)


@both
@pytest.mark.parametrize(("curvature", "resource"), [("hessian", True), ("gauss-newton", False)])
def test_logistic_regression_against_numpy(curvature: str, resource: bool) -> None:
    """For a linear model the Gauss-Newton matrix is the Hessian."""
    w = variable(np.zeros(4), resource)
    x, y = v1.placeholder(tf.float64, [None, 4]), v1.placeholder(tf.float64, [None])
    logits = tf.linalg.matvec(x, w)
    loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=y, logits=logits))
    optimizer = NewtonCGOptimizer(1.0, 0.01, curvature=curvature, **FULL)
    step = optimizer.minimize(loss, outputs=logits)
    truth = np.zeros(4)
    with started() as session:
        for i in range(4):
            batch = slice(10 * (i % 2), 10 * (i % 2) + 30)
            p = 1 / (1 + np.exp(-X[batch] @ truth))
            gradient = X[batch].T @ (p - LABELS[batch]) / 30
            hessian = (X[batch].T * (p * (1 - p))) @ X[batch] / 30
            truth = truth - np.linalg.solve(hessian + 0.01 * np.eye(4), gradient)
            session.run(step, {x: X[batch], y: LABELS[batch]})
            np.testing.assert_allclose(session.run(w), truth, rtol=1e-9)


def network(variables: list[Any]) -> tuple[Any, Any]:
    """Embedding, dense layers and stock moments, whose second derivative TensorFlow alone has wrong."""
    table, w, scale, out = variables
    h = tf.concat([tf.constant(X), tf.nn.embedding_lookup(table, np.arange(40) % 5)], 1) @ w
    mean, variance = tf.nn.moments(h, [0])
    h = tf.tanh((h - mean) / tf.sqrt(variance + 0.1) * scale)
    logits = tf.linalg.matvec(h, out)
    return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=LABELS, logits=logits)), logits


KINDS = [("control-flow-v2", True), ("control-flow-v1", True), ("control-flow-v1", False)]
WEIGHTS = [RNG.normal(size=shape) for shape in [(5, 2), (6, 3), (3,), (3,)]]


@pytest.mark.parametrize(
    ("curvature", "graph", "resource"),
    [("hessian", *kind) for kind in KINDS]
    + [("gauss-newton", "control-flow-v1", True), ("fisher", "control-flow-v2", False)],
    indirect=["graph"],
)
def test_equals_the_keras_optimizer(curvature: str, resource: bool) -> None:
    settings = {"learning_rate": 0.5, "tau": 0.3, "max_iter": 6, "max_step": 0.4, "curvature": curvature}
    variables = [variable(w, resource) for w in WEIGHTS]
    loss, logits = network(variables)
    optimizer = NewtonCGOptimizer(**settings)
    step = optimizer.minimize(loss, outputs=logits, name="step")
    with started() as session:
        found = [session.run([step, optimizer.last_step])[1] for _ in range(3)]
        weights = session.run(variables)
    with eager_mode():
        others = [tf.Variable(w) for w in WEIGHTS]
        newton = NewtonCG(**settings)

        def loss_fn() -> Any:
            return network(others)

        for report in found:
            newton.minimize(loss_fn, others)
            for name in ("iterations", "stop_reason", "loss", "slope", "direction_norm", "curvature", "rhs_norm"):
                np.testing.assert_allclose(report[name], getattr(newton.last_step, name), rtol=1e-9, err_msg=name)
        for mine, other in zip(weights, others, strict=True):
            np.testing.assert_allclose(mine, other.numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("graph", "resource"), KINDS, indirect=["graph"])
def test_convolution_and_branches(resource: bool) -> None:
    rng = np.random.default_rng(1)
    image = rng.normal(size=(3, 4, 4, 1))
    kernel, w = variable(rng.normal(size=(2, 1, 1, 2)), resource), variable([0.6, 0.3], resource)
    h = tf.math.softplus(tf.nn.conv2d(image, kernel, 1, "SAME"))
    switch = v1.placeholder_with_default(True, [])
    h = v1.cond(switch, lambda: h * tf.reduce_sum(w**2), lambda: h * tf.reduce_sum(w))
    loss = tf.reduce_mean(tf.linalg.matvec(tf.reduce_mean(h, [1, 2]), w) ** 2)
    check_step(loss, [kernel, w], NewtonCGOptimizer(1.0, 5.0, **FULL), 5.0)


@both
def test_inner_function() -> None:
    """A tf.function, the loss of which knows the variable by a capture."""
    w = variable([0.3, -0.8])
    inner = tf.function(lambda x: tf.reduce_sum(tf.exp(x * w)), autograph=False)
    check_step(inner(tf.constant([1.0, 2.0], tf.float64)), [w], NewtonCGOptimizer(1.0, 0.1, **FULL), 0.1)


@both
@pytest.mark.parametrize("resource", [True, False])
def test_loop_in_the_loss(resource: bool, request: pytest.FixtureRequest) -> None:
    w = variable([0.3, -0.8], resource)
    x = tf.while_loop(lambda i, _: i < 3, lambda i, x: (i + 1, tf.tanh(x * w) + w), [0, tf.ones(2, tf.float64)])[1]
    optimizer = NewtonCGOptimizer(1.0, 3.0, **FULL)
    if "control-flow-v1" in request.node.name:
        with pytest.raises(ValueError, match=r"enable_control_flow_v2\(\)"):
            optimizer.minimize(tf.reduce_sum(x**2))
    else:
        w0 = np.array([0.3, -0.8])

        def gradient(w: Any, eps: float = 1e-5) -> Any:
            def value(w: Any) -> Any:
                x = np.ones(2)
                for _ in range(3):
                    x = np.tanh(x * w) + w
                return x**2

            return (value(w + eps) - value(w - eps)) / (2 * eps)

        curvature = (gradient(w0 + 1e-4) - gradient(w0 - 1e-4)) / 2e-4  # the loss is separable
        step = optimizer.minimize(tf.reduce_sum(x**2))
        with started() as session:
            session.run(step)
            np.testing.assert_allclose(session.run(w), w0 - gradient(w0) / (curvature + 3.0), rtol=1e-5)


@both
def test_untrained_loop_is_allowed() -> None:
    w = variable([0.3, -0.8])
    x = tf.while_loop(lambda i, _: i < 3, lambda i, x: (i + 1, x * 1.5), [0, tf.ones(2, tf.float64)])[1]
    check_step(tf.reduce_sum(tf.exp(x * w)), [w], NewtonCGOptimizer(1.0, 0.1, **FULL), 0.1)


def tower(part: slice, w: Any) -> Any:
    return tf.reduce_mean(tf.math.softplus(tf.linalg.matvec(tf.constant(X[part]), w))) + tf.reduce_sum(w**4)


def applied(step: Any, w: Any, *fetches: Any) -> Any:
    with started() as session:
        out = session.run(fetches)
        session.run(step)
        return (session.run(w), *out)


def test_clipped_gradient_keeps_the_hessian() -> None:
    w = variable(START)
    loss = tower(slice(None), w)
    optimizer = NewtonCGOptimizer(1.0, 0.2, **FULL)
    pairs = optimizer.compute_gradients(loss)
    clipped, _ = tf.clip_by_global_norm([g for g, _ in pairs], 0.1)
    step = optimizer.apply_gradients([(clipped[0], w)])
    gradient, direction = dense_newton(loss, [w], 0.2)
    after, g, d = applied(step, w, gradient, direction)
    assert np.linalg.norm(g) > 0.2  # else nothing is clipped
    np.testing.assert_allclose(after, np.array(START) + d * 0.1 / np.linalg.norm(g), rtol=1e-9)


@pytest.mark.parametrize("clip", [False, True])
def test_towers(clip: bool) -> None:
    """Means of the gradients of several losses, the way of multi-GPU code in v1."""
    w = variable(START)
    losses = [tower(slice(0, 10), w), tower(slice(10, 40), w)]
    optimizer = NewtonCGOptimizer(1.0, 0.2, **FULL)
    towers = [optimizer.compute_gradients(8.0 * loss)[0][0] for loss in losses]
    mean = (towers[0] + towers[1]) / 16.0
    gradient, direction = dense_newton(sum(losses) / 2.0, [w], 0.2)
    if clip:
        pairs = [(tf.clip_by_norm(mean, 0.1), w)]
        with pytest.raises(ValueError, match="2 calls of compute_gradients"):
            optimizer.apply_gradients(pairs)
        step = optimizer.apply_gradients(pairs, raw_gradients=[(mean, w)])
    else:
        step = optimizer.apply_gradients([(mean, w)])
    after, g, d = applied(step, w, gradient, direction)
    factor = 0.1 / np.linalg.norm(g) if clip else 1.0
    np.testing.assert_allclose(after, np.array(START) + d * factor, rtol=1e-9)


@pytest.mark.parametrize(("graph", "resource"), KINDS, indirect=["graph"])
def test_scaled_loss_and_step_in_a_branch(resource: bool) -> None:
    """As dynamic loss scaling has it: scaled back outside, applied inside of tf.cond."""
    w, finite = variable(START, resource), v1.placeholder_with_default(True, [])
    loss = tower(slice(None), w)
    _, direction = dense_newton(loss, [w], 0.2)
    optimizer = NewtonCGOptimizer(1.0, 0.2, **FULL)
    pairs = [
        (g * v1.placeholder_with_default(tf.constant(0.125, tf.float64), []), v)
        for g, v in optimizer.compute_gradients(8.0 * loss)
    ]

    def apply() -> Any:
        with tf.control_dependencies([optimizer.apply_gradients(pairs)]):
            return tf.constant(1.0)

    step = v1.cond(finite, apply, lambda: tf.constant(0.0))
    after, d = applied(step, w, direction)
    np.testing.assert_allclose(after, np.array(START) + d, rtol=1e-9)


def ancestors_of(op: Any) -> set[Any]:
    seen, pending = set(), [op]
    while pending:
        op = pending.pop()
        if op not in seen:
            seen.add(op)
            pending += [*op.control_inputs, *(t.op for t in op.inputs)]
    return seen


def test_the_loss_is_computed_before_the_weights_change() -> None:
    """Else a loss that reads a reference variable's memory might be that of the new weights."""
    w = variable(START, resource=False)
    loss = tf.add(tower(slice(None), w), tf.nn.l2_loss(w), name="sum_of_losses")
    step = NewtonCGOptimizer().minimize(loss)
    assert loss.op in ancestors_of(step)


def test_gradients_from_elsewhere() -> None:
    w, unused = variable(START), variable([7.0])
    loss = tower(slice(None), w)
    _, direction = dense_newton(loss, [w], 0.2)
    optimizer = NewtonCGOptimizer(1.0, 0.2, **FULL)
    step = optimizer.apply_gradients([(tf.gradients(loss, w)[0], w), (None, unused)])
    after, d = applied(step, w, direction)
    np.testing.assert_allclose(after, np.array(START) + d, rtol=1e-9)


@both
@pytest.mark.parametrize("resource", [True, False])
def test_saver_resumes_bitwise(tmp_path: Path, resource: bool) -> None:
    variables = [variable(w, resource) for w in WEIGHTS]
    global_step = v1.train.get_or_create_global_step()
    rate = v1.train.exponential_decay(0.5, global_step, 1, 0.7)
    optimizer = NewtonCGOptimizer(rate, 0.3)
    step = optimizer.minimize(network(variables)[0], global_step)
    saver = v1.train.Saver()
    with started() as session:
        session.run(step)
        saver.save(session, str(tmp_path / "model"))
        wanted = [session.run([step, optimizer.last_step])[1]["loss"] for _ in range(2)]
    with v1.Session() as session:
        saver.restore(session, str(tmp_path / "model"))
        again = [session.run([step, optimizer.last_step])[1]["loss"] for _ in range(2)]
        assert session.run(global_step) == 3
    assert wanted == again
    assert wanted[1] < wanted[0]


def test_step_built_after_the_session_has_run() -> None:
    """The gradient through moments is corrected by an attribute, which a session must not have seen before."""
    variables = [variable(w) for w in WEIGHTS]
    loss, _ = network(variables)
    with started() as session:
        first = session.run(loss)
        optimizer = NewtonCGOptimizer(1.0, 0.3)
        step = optimizer.minimize(loss)
        _, report = session.run([step, optimizer.last_step])
        np.testing.assert_allclose(report["loss"], first, rtol=1e-12)
        assert session.run(loss) < first


@pytest.mark.parametrize("resource", [True, False])
def test_not_finite_gradient_skips(resource: bool) -> None:
    w, feed = variable([1.0, 2.0], resource), v1.placeholder(tf.float64, [])
    optimizer = NewtonCGOptimizer(1.0)
    step = optimizer.minimize(tf.reduce_sum(w**4) * feed)
    with started() as session:
        _, report = session.run([step, optimizer.last_step], {feed: np.nan})
        assert report["skipped"]
        assert session.run(w).tolist() == [1.0, 2.0]


def test_constraint_and_float32() -> None:
    w = v1.get_variable("w", [2], tf.float32, v1.constant_initializer(2.0), constraint=lambda t: tf.maximum(t, 0.5))
    step = NewtonCGOptimizer(1.0, 0.0, max_step=None).minimize(tf.reduce_sum(w**2))
    with started() as session:
        session.run(step)
        assert session.run(w).tolist() == [0.5, 0.5]


def test_inside_a_function() -> None:
    with eager_mode():
        w = tf.Variable(np.array(START))

        @tf.function(autograph=False)
        def step() -> Any:
            loss = tower(slice(None), w)
            _, direction = dense_newton(loss, [w], 0.2)
            optimizer = NewtonCGOptimizer(1.0, 0.2, **FULL)
            wanted = tf.identity(w) + direction
            with tf.control_dependencies([optimizer.minimize(lambda: loss, var_list=[w])]):
                return wanted, optimizer.last_step["loss"], loss

        wanted, reported, loss = step()
        np.testing.assert_allclose(w.numpy(), wanted, rtol=1e-9)
        assert reported.numpy() == loss.numpy()


def test_eager_is_refused() -> None:
    with eager_mode():
        w = tf.Variable([1.0])
        for call in (
            lambda: NewtonCGOptimizer().minimize(lambda: tf.reduce_sum(w**2), var_list=[w]),
            lambda: NewtonCGOptimizer().apply_gradients([(tf.ones(1), w)]),
        ):
            with pytest.raises(RuntimeError, match=r"NewtonCG\(\).minimize"):
                call()


def test_replicas_are_refused() -> None:
    with eager_mode():
        tf.config.list_logical_devices()
    strategy = tf.distribute.MirroredStrategy(["cpu:0"])
    with strategy.scope(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(strategy), "num_replicas_in_sync", property(lambda _: 2))
        with pytest.raises(RuntimeError, match="2 replicas"):
            NewtonCGOptimizer().minimize(tf.constant(1.0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: NewtonCGOptimizer().minimize(w[0] ** 2, var_list=[]), "no variables to train"),
        (lambda w: NewtonCGOptimizer().apply_gradients([]), "no gradients and variables"),
        (lambda w: NewtonCGOptimizer().minimize(tf.constant(1.0)), "depends on none of the variables"),
        (lambda w: NewtonCGOptimizer().minimize(3.0 * w[0]), "linear in the weights"),
        (lambda w: NewtonCGOptimizer().minimize(tf.cast(w[0], tf.int32), var_list=[w]), "int32"),
        (lambda w: NewtonCGOptimizer(curvature="fisher").minimize(w[0] ** 2), r"outputs=\[logits\]"),
        (
            lambda w: NewtonCGOptimizer(curvature="fisher").apply_gradients([(2.0 * w, w)]),
            r"outputs=\[logits\]",
        ),
        (
            lambda w: NewtonCGOptimizer(curvature="gauss-newton").minimize(w[0] ** 2, outputs=w * 1.0, grad_loss=2.0),
            "does not allow grad_loss",
        ),
        (
            lambda w: NewtonCGOptimizer(curvature="gauss-newton").minimize(3.0 * (z := w[0] ** 2), outputs=z),
            "linear in the model's outputs",
        ),
        (lambda w: NewtonCGOptimizer().apply_gradients([(tf.ones(3, tf.float64), w)]), r"shape \(3,\).*shape \(2,\)"),
        (lambda w: NewtonCGOptimizer(tau=-1.0), "tau=-1.0"),
        (lambda w: NewtonCGOptimizer("fast"), "learning_rate='fast'"),
        (lambda w: NewtonCGOptimizer(tf.ones(2)).minimize(w[0] ** 2), r"learning_rate has shape \(2,\)"),
        (lambda w: NewtonCGOptimizer(tau=tf.ones(2)).minimize(w[0] ** 2), r"tau has shape \(2,\)"),
        (
            lambda w: NewtonCGOptimizer(keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)),
            "Keras schedule",
        ),
        (
            lambda w: NewtonCGOptimizer().apply_gradients([(w, w)], raw_gradients=[(None, w)]),
            "raw_gradients has no gradient for the variable",
        ),
    ],
)
def test_errors(call: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(variable([1.0, 2.0]))


def test_without_any_behaviour_of_tensorflow_2() -> None:
    code = """
import numpy as np, tensorflow as tf
v1 = tf.compat.v1
v1.disable_v2_behavior()
import ncg_cuda.tf
w = v1.get_variable("w", [3, 1], initializer=v1.ones_initializer(), dtype=tf.float64)
assert type(w).__name__ == "RefVariable", type(w)
x = np.random.default_rng(0).normal(size=(9, 3))
h, _ = tf.nn.moments(tf.matmul(x, w) ** 2, [0])
loss = tf.reduce_mean(tf.exp(h)) + tf.reduce_sum(tf.nn.embedding_lookup(w, [0, 2]) ** 4)
hessian = tf.reshape(tf.hessians(loss, w._ref())[0], [3, 3])
gradient = tf.reshape(tf.gradients(loss, w)[0], [3])
optimizer = ncg_cuda.tf.v1.NewtonCGOptimizer(0.5, 0.3, 1e-13, 20, max_step=None)
step = optimizer.minimize(loss)
with v1.Session() as session:
    session.run(v1.global_variables_initializer())
    g, h = session.run([gradient, hessian])
    session.run(step)
    wanted = 1.0 - 0.5 * np.linalg.solve(h + 0.3 * np.eye(3), g)
    np.testing.assert_allclose(session.run(w)[:, 0], wanted, rtol=1e-9)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
