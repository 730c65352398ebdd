"""NewtonCG.minimize through the Bayesian layers of TensorFlow Probability, which are layers of tf_keras."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from ncg_cuda import StopReason
from ncg_cuda.tf import NewtonCG

tf_keras = pytest.importorskip("tf_keras", reason="tf_keras is not installed", exc_type=ImportError)
tfp = pytest.importorskip("tensorflow_probability", reason="no TensorFlow Probability for it", exc_type=ImportError)

RNG = np.random.default_rng(0)
N = 8
X, Y = RNG.normal(size=(N, 1)), RNG.normal(size=(N, 1))
LAYERS = ["DenseReparameterization", "DenseFlipout", "DenseLocalReparameterization"]

pytestmark = pytest.mark.filterwarnings("ignore:.*add_variable.*:UserWarning", "ignore:.*unseeded.*:UserWarning")


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    tf_keras.utils.set_random_seed(1)
    tf_keras.backend.set_floatx("float64")
    yield
    tf_keras.backend.set_floatx("float32")


class Bayesian:
    """A network with distributions for weights, and its loss: squared error plus the divergences from the prior."""

    def __init__(self, layer: str) -> None:
        kind = getattr(tfp.layers, layer)
        kwargs = {"kernel_divergence_fn": lambda q, p, _: tfp.distributions.kl_divergence(q, p) / 100.0}
        self.model = tf_keras.Sequential([kind(2, activation="tanh", **kwargs), kind(1, **kwargs)])
        self.model(X)
        self.variables = self.model.trainable_variables
        self.drawn: list[Any] = []

    def loss(self) -> Any:
        outputs = self.model(X)
        loss = tf.reduce_mean((outputs - Y) ** 2) + tf.add_n(self.model.losses)
        self.drawn[:] = [loss, outputs]
        return loss

    def loss_and_outputs(self) -> Any:
        return self.loss(), self.drawn[1]

    def row(self) -> Any:
        return tf.concat([tf.reshape(v, [-1]) for v in self.variables], 0)

    def slopes(self, of: Any) -> Any:
        parts = tf.gradients(of, self.variables, unconnected_gradients="zero")
        return tf.concat([tf.reshape(p, [-1]) for p in parts], 0)

    def jacobian(self, of: Any) -> Any:
        """Row by row, from stock derivatives."""
        return tf.stack([self.slopes(of[i]) for i in range(of.shape[0])])


@pytest.mark.parametrize("layer", LAYERS)
def test_one_draw_makes_one_newton_step(layer: str) -> None:
    """The step solves the system of the numbers that were drawn: the gradient's and every product's are the same."""
    net = Bayesian(layer)
    optimizer = NewtonCG(1.0, 4.0, 1e-13, 60, max_step=None)

    @tf.function(autograph=False)
    def step() -> Any:
        before = tf.identity(net.row())
        loss = optimizer.minimize(net.loss, net.variables)
        gradient = net.slopes(net.drawn[0])
        return before, gradient, net.jacobian(gradient), loss

    optimizer.build(net.variables)
    losses = []
    for _ in range(2):
        before, gradient, hessian, loss = (t.numpy() for t in step())
        assert np.linalg.eigvalsh(hessian)[0] > -4.0
        wanted = before - np.linalg.solve(hessian + 4.0 * np.eye(len(hessian)), gradient)
        np.testing.assert_allclose(net.row().numpy(), wanted, rtol=1e-8)
        assert optimizer.last_step.stop_reason is StopReason.CONVERGED
        losses.append(loss)
    assert losses[0] != losses[1]  # drawn anew in each step


def test_gauss_newton() -> None:
    """The matrix of squared error at the outputs, plus the exact Hessian of the divergences."""
    net = Bayesian("DenseFlipout")
    optimizer = NewtonCG(1.0, 0.5, 1e-13, 60, max_step=None, curvature="gauss-newton")

    @tf.function(autograph=False)
    def step() -> Any:
        before = tf.identity(net.row())
        optimizer.minimize(net.loss_and_outputs, net.variables)
        loss, outputs = net.drawn
        by_passing = net.jacobian(net.slopes(loss - tf.reduce_mean((outputs - Y) ** 2)))
        return before, net.slopes(loss), net.jacobian(outputs[:, 0]), by_passing

    optimizer.build(net.variables)
    before, gradient, jacobian, divergences = (t.numpy() for t in step())
    matrix = 2.0 / N * jacobian.T @ jacobian + divergences
    wanted = before - np.linalg.solve(matrix + 0.5 * np.eye(len(before)), gradient)
    np.testing.assert_allclose(net.row().numpy(), wanted, rtol=1e-8)


def test_training_eagerly_lowers_the_loss() -> None:
    net = Bayesian("DenseFlipout")
    optimizer = NewtonCG(0.5, 1.0)
    losses = [float(optimizer.minimize(net.loss, net.variables)) for _ in range(40)]
    assert np.mean(losses[-10:]) < np.mean(losses[:3])


@pytest.mark.parametrize("layer", LAYERS)
def test_the_loss_cannot_be_drawn_again(layer: str) -> None:
    net = Bayesian(layer)
    with pytest.raises(RuntimeError, match="random numbers that cannot be drawn again"):
        NewtonCG(report_loss_after=True).minimize(net.loss, net.variables)


def test_seeded_layers_can_be_drawn_again() -> None:
    """With stateless seeds of their own the layers are functions of their weights."""
    sample = {"kernel_posterior_tensor_fn": lambda q: q.sample(seed=tf.constant([1, 2]))}
    model = tf_keras.Sequential([tfp.layers.DenseReparameterization(1, **sample)])
    model(X)
    variables = model.trainable_variables

    def loss_fn() -> Any:
        return tf.reduce_mean((model(X) - Y) ** 2) + tf.add_n(model.losses) / 100.0

    optimizer = NewtonCG(1.0, 0.1, report_loss_after=True)
    before = float(optimizer.minimize(loss_fn, variables))
    assert optimizer.last_step.loss_after < before
    np.testing.assert_allclose(float(tf.function(loss_fn)()), optimizer.last_step.loss_after, rtol=1e-12)
