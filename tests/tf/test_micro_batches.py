"""A batch in pieces against the same batch in one piece, in float64, and against an analytic Hessian."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from problems import flat

from ncg_cuda.tf import CurvatureOperator, HessianOperator, MicroBatchedOperator

layers = keras.layers
WAYS = ["per product", "once"]

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(37, 6)), RNG.normal(size=(37, 2))


def pieces(size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(X[i : i + size], Y[i : i + size]) for i in range(0, len(X), size)]


def network(*extra: Any) -> Any:
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(7, activation="tanh", kernel_regularizer=keras.regularizers.L2(0.125)),
            *extra,
            layers.Dense(2, activation="softplus"),
        ]
    )


def loss_of(model: Any) -> Any:
    def loss(batch: Any) -> Any:
        x, y = batch
        return tf.reduce_mean(tf.square(model(x, training=True) - y)) + tf.add_n(model.losses)

    return loss


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("way", WAYS)
def test_equal_to_one_piece(way: str) -> None:
    """With an unequal last piece (37 = 4 * 8 + 5), from a list and from a data set."""
    model = network()
    loss, variables = loss_of(model), model.trainable_variables
    whole = HessianOperator(lambda: loss((X, Y)), variables)
    dense = whole.to_dense()
    block = RNG.normal(size=(whole.shape[0], 11))  # more columns than go into one call
    data = tf.data.Dataset.from_tensor_slices((X, Y))
    for batches in (pieces(8), pieces(37), data.batch(10)):
        operator = HessianOperator.from_batches(loss, variables, batches, linearise=way)
        assert isinstance(operator, CurvatureOperator)
        want = dense @ block
        assert np.linalg.norm(operator @ block - want) <= 1e-12 * np.linalg.norm(want)
        got = operator.product(whole.unflatten(block[:, 0]))
        assert np.linalg.norm(flat(got) - want[:, 0]) <= 1e-12 * np.linalg.norm(want[:, 0])
        np.testing.assert_allclose(operator @ tf.constant(block[:, 1]), want[:, 1], rtol=1e-10, atol=1e-12)
        assert float(operator.loss) == pytest.approx(float(whole.loss), rel=1e-13)
        np.testing.assert_allclose(flat(operator.gradients), flat(whole.gradients), rtol=1e-11, atol=1e-14)
    assert np.linalg.norm(dense - dense.T) < 1e-13 * np.linalg.norm(dense)
    assert operator.trace(samples=20).value == pytest.approx(whole.trace(samples=20).value, rel=1e-10)
    assert operator.spectrum().largest()[0].value == pytest.approx(np.linalg.eigvalsh(dense)[-1], rel=1e-9)


@pytest.mark.parametrize("way", WAYS)
def test_weights(way: str) -> None:
    """A sum over the examples, with weights of one's own: the Hessian is the sum of weight_i X_iᵀX_i."""
    w = tf.Variable(np.zeros(6))
    batches = [X[:20], X[20:30], X[30:]]
    operator = HessianOperator.from_batches(
        lambda x: tf.reduce_sum(tf.linalg.matvec(x, w) ** 2) / 2, [w], batches, [1, 0.5, -2], linearise=way
    )
    want = sum(k * x.T @ x for k, x in zip([1, 0.5, -2], batches, strict=True))
    np.testing.assert_allclose(operator.to_dense(), want, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(operator.weights, [1, 0.5, -2])


def test_a_piece_is_traced_once_per_shape() -> None:
    w = tf.Variable(np.zeros(6))
    traced = []

    def loss(x: Any) -> Any:
        traced.append(x.shape)
        return tf.reduce_mean(tf.linalg.matvec(x, w) ** 2)

    batches = [x for x, _ in pieces(8)]
    for way in WAYS:
        traced.clear()
        operator = HessianOperator.from_batches(loss, [w], batches, linearise=way)
        for k in (1, 3, 9):
            operator @ RNG.normal(size=(6, k))
        operator.spectrum()
        assert len(traced) == 2, way


@pytest.mark.usefixtures("float64")
def test_state_is_left_alone() -> None:
    """Each product draws the same dropout masks and moves no moving average."""
    model = network(layers.Dropout(0.5), layers.BatchNormalization())
    loss, variables = loss_of(model), model.trainable_variables
    state = [v.numpy() for v in model.non_trainable_variables]
    assert len(state) == 3  # two moving averages, a seed
    operator = HessianOperator.from_batches(loss, variables, pieces(8))
    v = RNG.normal(size=operator.shape[0])
    first = operator @ v
    np.testing.assert_array_equal(operator @ v, first)
    dense = operator.to_dense()
    np.testing.assert_allclose(dense @ v, first, rtol=1e-9, atol=1e-12)
    assert np.linalg.norm(dense - dense.T) < 1e-12 * np.linalg.norm(dense)
    assert operator.loss is not None
    for before, now in zip(state, model.non_trainable_variables, strict=True):
        np.testing.assert_array_equal(before, now)


@pytest.mark.usefixtures("float64")
def test_recurrent() -> None:
    """Possible piece by piece, where the loop lives within one function; not to be kept linearised."""
    model = keras.Sequential([keras.Input((3, 2)), layers.LSTM(3), layers.Dense(2)])
    x, y = X.reshape(37, 3, 2), Y

    def loss(batch: Any) -> Any:
        return tf.reduce_mean((model(batch[0]) - batch[1]) ** 2)

    batches = [(x[i : i + 15], y[i : i + 15]) for i in (0, 15, 30)]
    operator = HessianOperator.from_batches(loss, model.trainable_variables, batches)
    v = RNG.normal(size=operator.shape[0])

    @tf.function(autograph=False)
    def whole(v: Any) -> Any:
        return HessianOperator(lambda: loss((x, y)), model.trainable_variables) @ v

    want = whole(tf.constant(v)).numpy()
    assert np.linalg.norm(operator @ v - want) <= 1e-12 * np.linalg.norm(want)
    with pytest.raises(ValueError, match="runs through a loop"):
        HessianOperator.from_batches(loss, model.trainable_variables, batches, linearise="once")


def test_other_weights() -> None:
    """Linearised once, the operator stays at its point; else it says that it cannot."""
    w = tf.Variable(np.array([1.0, 2.0]))

    def loss(x: Any) -> Any:
        return tf.reduce_mean(x) * tf.reduce_sum(w**3)

    each, once = (HessianOperator.from_batches(loss, [w], [np.ones(3), np.ones(2)], linearise=way) for way in WAYS)
    np.testing.assert_allclose(each @ np.ones(2), [6.0, 12.0])
    w.assign([5.0, 5.0])
    np.testing.assert_allclose(once @ np.ones(2), [6.0, 12.0])
    with pytest.raises(RuntimeError, match=r"variables changed.*build a new operator"):
        each @ np.ones(2)
    w.assign([1.0, 2.0])
    np.testing.assert_allclose(each @ np.ones(2), [6.0, 12.0])


def test_bad_input() -> None:
    w = tf.Variable(np.zeros(6))

    def loss(x: Any) -> Any:
        return tf.reduce_mean(tf.linalg.matvec(x, w) ** 2)

    def build(*args: Any, **options: Any) -> Any:
        return lambda: HessianOperator.from_batches(*args, **options)

    for call, message in [
        (build(loss, [w], (x for x in [X])), "generator, which can be iterated over only once"),
        (build(loss, [w], []), "0 pieces with 0 examples"),
        (build(loss, [w], [X[:0]]), "1 pieces with 0 examples"),
        (build(loss, [w], [1.0]), "no first dimension.*give weights"),
        (build(loss, [w], [X, X], [1.0]), r"shape \(1,\) for 2 pieces"),
        (build(loss, [w], [X, X], [1.0, np.nan]), "one finite number per piece"),
        (build(loss, [w], [X], linearise="never"), "linearise is 'never'; allowed"),
        (build(loss, [], [X]), "variables is empty"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(RuntimeError, match=r"outside of tf\.function"):
        tf.function(lambda: build(loss, [w], [X])().loss)()
    operator = HessianOperator.from_batches(loss, [w], [X])
    with pytest.raises(RuntimeError, match=r"outside of any tf\.function"):
        tf.function(lambda v: operator.product([v]))(tf.zeros(6, tf.float64))
    batches = [X, X]
    operator = HessianOperator.from_batches(loss, [w], batches)
    for change in (batches.pop, lambda: batches.extend([X, X])):
        change()
        with pytest.raises(RuntimeError, match=r"pieces now and had 2"):
            operator @ np.ones(6)


def test_randomness_that_cannot_be_repeated_is_refused() -> None:
    w = tf.Variable(np.ones(6))

    def loss(x: Any) -> Any:
        return tf.reduce_mean(tf.linalg.matvec(x * tf.random.uniform(x.shape, dtype=tf.float64), w) ** 2)

    with pytest.raises(ValueError, match=r"per product.*RandomUniform"):
        HessianOperator.from_batches(loss, [w], [X]) @ np.ones(6)
    once = HessianOperator.from_batches(loss, [w], [X], linearise="once")
    np.testing.assert_array_equal(once @ np.ones(6), once @ np.ones(6))


def test_a_kind_of_ones_own() -> None:
    """Any CurvatureOperator with loss and gradients can be built piece by piece."""

    class SecondMoment(CurvatureOperator):
        """X_iᵀX_i / m of a piece."""

        def __init__(self, x: Any, w: Any) -> None:
            super().__init__([w])
            self.x, self.loss, self.gradients = x, tf.reduce_mean(x), [w.read_value()]

        def _product(self, vectors: list[Any]) -> list[Any]:
            m = tf.cast(tf.shape(self.x)[0], tf.float64)
            return [tf.linalg.matvec(self.x, tf.linalg.matvec(self.x, vectors[0]), transpose_a=True) / m]

    w = tf.Variable(np.zeros(6))
    batches = [x for x, _ in pieces(8)]
    for way in WAYS:
        operator = MicroBatchedOperator(lambda x: SecondMoment(x, w), [w], batches, linearise=way)
        np.testing.assert_allclose(operator.to_dense(), X.T @ X / len(X), rtol=1e-12, atol=1e-13)
        assert float(operator.loss) == pytest.approx(X.mean())
