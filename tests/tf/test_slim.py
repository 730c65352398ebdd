"""NewtonCGOptimizer on models of TF-Slim: its layers, its regularizers and losses, its training loop."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from ncg_cuda import StopReason
from ncg_cuda.tf.v1 import NewtonCGOptimizer

slim = pytest.importorskip("tf_slim", reason="TF-Slim is not installed", exc_type=ImportError)

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:UserWarning")

v1 = tf.compat.v1
RNG = np.random.default_rng(3)
IMAGES, LABELS = RNG.normal(size=(6, 4, 4, 1)), RNG.integers(0, 2, 6)
FULL: dict[str, Any] = {"cg_tol": 1e-13, "max_iter": 80, "max_step": None}


@pytest.fixture(params=["control-flow-v2", "control-flow-v1"], autouse=True)
def graph(request: pytest.FixtureRequest) -> Iterator[None]:
    """A graph under construction; with control flow v1, also with reference variables."""
    old = request.param == "control-flow-v1"
    if old:
        v1.disable_control_flow_v2()
    try:
        with tf.Graph().as_default(), v1.variable_scope("model", use_resource=not old):
            v1.set_random_seed(1)
            yield
    finally:
        v1.enable_control_flow_v2()


def total_loss(normalizer: Any = None, keep: float = 1.0) -> Any:
    """Softmax cross-entropy of a small convolutional network, with weight regularization."""
    with slim.arg_scope([slim.conv2d, slim.fully_connected], weights_regularizer=slim.l2_regularizer(0.25)):
        h = slim.conv2d(tf.constant(IMAGES), 2, [2, 2], activation_fn=tf.tanh, normalizer_fn=normalizer)
        h = slim.dropout(slim.avg_pool2d(h, [2, 2]), keep)
        logits = slim.fully_connected(slim.flatten(h)[:, :5], 2, activation_fn=None)
    v1.losses.softmax_cross_entropy(tf.one_hot(LABELS, 2), logits)
    return v1.losses.get_total_loss()


def row(tensors: Any) -> Any:
    return tf.concat([tf.reshape(t, [-1]) for t in tensors], 0)


def gradient_of(loss: Any) -> Any:
    return row(tf.gradients(loss, v1.trainable_variables()))


class Differences:
    """The Hessian by central differences of the gradient, which TensorFlow has right, in a session."""

    def __init__(self, loss: Any) -> None:
        self.variables = v1.trainable_variables()
        self.flat, self.gradient = row(self.variables), gradient_of(loss)
        self.feed = v1.placeholder(tf.float64, self.flat.shape)
        parts = tf.split(self.feed, [v.shape.num_elements() for v in self.variables])
        self.assign = tf.group(*(v.assign(tf.reshape(p, v.shape)) for v, p in zip(self.variables, parts, strict=True)))

    def newton_direction(self, session: Any, tau: float, eps: float = 1e-4) -> np.ndarray:
        start = session.run(self.flat)

        def at(x: np.ndarray) -> np.ndarray:
            session.run(self.assign, {self.feed: x})
            return np.asarray(session.run(self.gradient))

        steps = eps * np.eye(len(start))
        hessian = np.stack(
            [(8 * (at(start + s) - at(start - s)) - at(start + 2 * s) + at(start - 2 * s)) / (12 * eps) for s in steps]
        )
        hessian = (hessian + hessian.T) / 2 + tau * np.eye(len(start))
        assert np.linalg.eigvalsh(hessian)[0] > 0
        return -np.linalg.solve(hessian, at(start))


@pytest.mark.parametrize("normalizer", [None, "layer_norm", "batch_norm"])
def test_newton_step(normalizer: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if normalizer == "batch_norm":
        # Where TensorFlow 2.16 to 2.21 looks for the layers of version 1; tf_keras has moved them.
        for name in ("legacy_tf_layers", "legacy_tf_layers.normalization"):
            pytest.importorskip("tf_keras", exc_type=ImportError)
            monkeypatch.setitem(sys.modules, f"tf_keras.{name}", import_module(f"tf_keras.src.{name}"))
    loss = total_loss(normalizer and getattr(slim, normalizer))
    differences = Differences(loss)
    optimizer = NewtonCGOptimizer(1.0, 0.5, **FULL)
    step = slim.training.create_train_op(loss, optimizer)
    with v1.Session() as session:
        session.run(v1.global_variables_initializer())
        wanted = session.run(differences.flat) + differences.newton_direction(session, 0.5)
        found, report = session.run([step, optimizer.last_step])
        np.testing.assert_allclose(session.run(differences.flat), wanted, rtol=1e-6, atol=1e-8)
        assert report["stop_reason"] == StopReason.CONVERGED
        np.testing.assert_allclose(found, report["loss"])
        assert session.run(v1.train.get_global_step()) == 1


def test_dropout_and_clipping() -> None:
    """One mask for gradient and products; what the train op clips is the right-hand side only."""
    loss = total_loss(keep=0.6)
    gradient = gradient_of(loss)
    sources = [v if hasattr(v, "handle") else v._ref() for v in v1.trainable_variables()]
    hessian = tf.stack(
        [row(tf.gradients(gradient[i], sources, unconnected_gradients="zero")) for i in range(gradient.shape[0])]
    )

    def clip(pairs: Any) -> Any:
        with tf.control_dependencies([gradient, hessian]):  # which read the memory of reference variables
            clipped, _ = tf.clip_by_global_norm([g for g, _ in pairs], 0.1)
        return [(g, v) for g, (_, v) in zip(clipped, pairs, strict=True)]

    step = slim.training.create_train_op(loss, NewtonCGOptimizer(1.0, 0.5, **FULL), transform_grads_fn=clip)
    with v1.Session() as session:
        session.run(v1.global_variables_initializer())
        before = session.run(row(v1.trainable_variables()))
        g, h, _ = session.run([gradient, hessian, step])  # of one draw
        assert np.linalg.norm(g) > 0.1
        wanted = before - np.linalg.solve(h + 0.5 * np.eye(len(g)), g * 0.1 / np.linalg.norm(g))
        np.testing.assert_allclose(session.run(row(v1.trainable_variables())), wanted, rtol=1e-8)


@pytest.mark.parametrize("graph", ["control-flow-v1"], indirect=True)
def test_learning_train(tmp_path: Path) -> None:
    """TF-Slim's own loop, with its checkpoints; it works without the behaviour of TensorFlow 2 only."""
    code = f"""
import numpy as np, tensorflow as tf
tf.compat.v1.disable_v2_behavior()
import tf_slim as slim
import ncg_cuda.tf
x = np.random.default_rng(0).normal(size=(32, 5)).astype("float32")
labels = (x[:, 0] * x[:, 1] > 0).astype(int)
tf.compat.v1.set_random_seed(1)
logits = slim.fully_connected(
    slim.fully_connected(tf.constant(x), 8, activation_fn=tf.tanh, normalizer_fn=slim.layer_norm), 2, None
)
tf.compat.v1.losses.sparse_softmax_cross_entropy(labels, logits)
loss = tf.compat.v1.losses.get_total_loss()
optimizer = ncg_cuda.tf.v1.NewtonCGOptimizer(0.5, 1.0)
step = slim.learning.create_train_op(loss, optimizer)
saver = tf.compat.v1.train.Saver()
slim.learning.train(step, {str(tmp_path)!r}, number_of_steps=12, save_summaries_secs=0)
with tf.compat.v1.Session() as session:
    saver.restore(session, {str(tmp_path / "model.ckpt-12")!r})
    assert session.run(tf.compat.v1.train.get_global_step()) == 12
    trained = session.run(loss)
    saver.restore(session, {str(tmp_path / "model.ckpt-0")!r})
    first = session.run(loss)
    for _ in range(12):
        session.run(step)
    np.testing.assert_allclose(session.run(loss), trained, rtol=1e-4)
assert trained < 0.8 * first, (first, trained)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
