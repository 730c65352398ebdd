"""Hessian products against dense Hessians, analytic ones and finite differences, all in float64."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from problems import (
    dense_hessian,
    difference_product,
    directions,
    flat,
    normalized,
    raw,
    relative_error,
    small_resnet,
    squared_error,
)

from ncg_cuda.tf import HessianOperator, hessian_vector_product

layers = keras.layers


def in_function(loss_fn: Any, variables: Any, s: Any) -> Any:
    return tf.function(lambda: hessian_vector_product(loss_fn, variables, s), autograph=False)()


def in_loop(loss_fn: Any, variables: Any, s: Any) -> Any:
    """The product inside the body of a loop: where TensorFlow gives None without any error if one is careless."""

    @tf.function(autograph=False)
    def go() -> Any:
        operator = HessianOperator(loss_fn, variables)
        start = [tf.constant(t) for t in s]
        return tf.while_loop(lambda i, p: i < 1, lambda i, p: (i + 1, operator.product(p)), (0, start))[1]

    return go()


def held(loss_fn: Any, variables: Any, s: Any) -> Any:
    operator = HessianOperator(loss_fn, variables)
    operator.product(directions(variables, seed=1))
    return operator.product(s)


WAYS = {"eager": hessian_vector_product, "function": in_function, "loop": in_loop, "operator": held}


def mlp() -> tuple[Any, Any]:
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(5, activation="tanh", kernel_regularizer=keras.regularizers.L2(0.125)),
            layers.Dense(3, activation="softplus"),
        ]
    )
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(7, 4)), rng.normal(size=(7, 3))
    return lambda: tf.reduce_mean(tf.square(model(x) - y)) + tf.add_n(model.losses), model.trainable_variables


def cnn() -> tuple[Any, Any]:
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(3, 3, activation="tanh"),
            layers.MaxPooling2D(),
            layers.Conv2D(2, 2, activation="relu"),
            layers.Flatten(),
            layers.Dense(3, activation="softmax"),
        ]
    )
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(5, 6, 6, 2)), np.array([0, 2, 1, 1, 0])
    loss = keras.losses.SparseCategoricalCrossentropy()
    return lambda: loss(y, model(x)), model.trainable_variables


def embedding() -> tuple[Any, Any]:
    """Gradients arrive as IndexedSlices, with repeated rows."""
    table = tf.Variable(np.random.default_rng(1).normal(size=(6, 3)))
    w = tf.Variable(np.random.default_rng(2).normal(size=(3,)))
    return lambda: tf.reduce_sum(tf.tanh(tf.linalg.matvec(tf.gather(table, [0, 4, 4, 1]), w)) ** 2), [table, w]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("problem", [mlp, cnn, embedding])
def test_dense_hessian(problem: Any) -> None:
    loss_fn, variables = problem()
    dense = dense_hessian(loss_fn, variables)
    for seed, way in enumerate(WAYS):
        s = directions(variables, seed)
        got = flat(WAYS[way](loss_fn, variables, s))
        want = dense @ flat(s)
        assert np.linalg.norm(got - want) <= 1e-10 * np.linalg.norm(want), way


def test_logistic_regression() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 5)), (rng.random(40) < 0.5).astype(float)
    w = tf.Variable(rng.normal(size=5))
    p = 1 / (1 + np.exp(-x @ w.numpy()))
    hessian = x.T @ (x * (p * (1 - p))[:, None]) / len(y)
    s = rng.normal(size=5)
    (got,) = hessian_vector_product(
        lambda: tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(y, tf.linalg.matvec(x, w))), [w], [s]
    )
    np.testing.assert_allclose(got, hessian @ s, rtol=1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", ["batch", "layer", "group"])
def test_exact_through_normalization(kind: str) -> None:
    model, x, y = normalized(kind)
    loss_fn, variables = squared_error(model, x, y), model.trainable_variables
    s = directions(variables)
    want = difference_product(loss_fn, variables, s)
    for way in ("eager", "loop", "operator"):
        assert relative_error(WAYS[way](loss_fn, variables, s), want) < 1e-8, way

    stock = tf.function(lambda: stock_product(loss_fn, raw(variables), s))()
    assert relative_error(stock, want) > 1e-3, "stock TensorFlow is exact here, so this test shows nothing"


def stock_product(loss_fn: Any, variables: Any, s: Any) -> Any:
    gradients = tf.gradients(loss_fn(), variables)
    return tf.gradients(gradients, variables, grad_ys=[tf.constant(t) for t in s], unconnected_gradients="zero")


@pytest.mark.usefixtures("float64")
def test_small_resnet() -> None:
    model, x, y = small_resnet()
    loss_fn, variables = squared_error(model, x, y), model.trainable_variables
    s = directions(variables)
    want = difference_product(loss_fn, variables, s)
    assert relative_error(hessian_vector_product(loss_fn, variables, s), want) < 1e-6


@pytest.mark.usefixtures("float64")
def test_recurrent() -> None:
    model = keras.Sequential([keras.Input((4, 3)), layers.LSTM(3), layers.Dense(2)])
    rng = np.random.default_rng(0)
    loss_fn = squared_error(model, rng.normal(size=(3, 4, 3)), rng.normal(size=(3, 2)))
    s = directions(model.trainable_variables)
    want = difference_product(loss_fn, model.trainable_variables, s)
    for way in ("eager", "loop"):
        assert relative_error(WAYS[way](loss_fn, model.trainable_variables, s), want) < 1e-8, way


def test_loop_cannot_be_held_eagerly() -> None:
    model = keras.Sequential([keras.Input((4, 3)), layers.LSTM(3)])
    loss_fn = squared_error(model, np.ones((2, 4, 3), "float32"), np.ones((2, 3), "float32"))
    with pytest.raises(ValueError, match=r"loop.*inside one tf\.function"):
        HessianOperator(loss_fn, model.trainable_variables)


@pytest.mark.parametrize("way", WAYS)
def test_variables_without_influence_give_zeros(way: str) -> None:
    used, linear, unused = tf.Variable([1.0, 2.0]), tf.Variable([3.0]), tf.Variable([[4.0]])
    out = WAYS[way](
        lambda: tf.reduce_sum(used**3) + tf.reduce_sum(linear),
        [unused, used, linear],
        [np.ones((1, 1), "float32"), np.ones(2, "float32"), np.ones(1, "float32")],
    )
    np.testing.assert_array_equal(out[0], [[0.0]])
    np.testing.assert_allclose(out[1], [6.0, 12.0])
    np.testing.assert_array_equal(out[2], [0.0])


@pytest.mark.parametrize("way", WAYS)
def test_linear_loss_gives_zeros(way: str) -> None:
    w = tf.Variable([1.0, 2.0])
    (out,) = WAYS[way](lambda: tf.reduce_sum(3.0 * w), [w], [np.ones(2, "float32")])
    np.testing.assert_array_equal(out, [0.0, 0.0])


def test_operator_stays_at_its_point() -> None:
    w = tf.Variable([1.0, 2.0], dtype=tf.float64)
    operator = HessianOperator(lambda: tf.reduce_sum(w**3), [w])
    w.assign([10.0, 10.0])
    np.testing.assert_allclose(operator.product([np.ones(2)])[0], [6.0, 12.0])
    np.testing.assert_allclose(operator.loss, 9.0)
    np.testing.assert_allclose(operator.gradients[0], [3.0, 12.0])


def test_randomness_is_drawn_once() -> None:
    """With dropout, every product of one operator sees the mask of its loss: H is one symmetric matrix."""
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, activation="tanh"), layers.Dropout(0.5), layers.Dense(1)]
    )
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 6)).astype("float32"), rng.normal(size=(4, 1)).astype("float32")
    operator = HessianOperator(squared_error(model, x, y), model.trainable_variables)
    s, t = directions(model.trainable_variables, 1), directions(model.trainable_variables, 2)
    first = operator.product(s)
    np.testing.assert_array_equal(flat(first), flat(operator.product(s)))
    np.testing.assert_allclose(flat(first) @ flat(t), flat(operator.product(t)) @ flat(s), rtol=1e-4)


class _Dilation(layers.Layer):
    def build(self, shape: Any) -> None:
        self.filters = self.add_weight(shape=(2, 2, 2))

    def call(self, x: Any) -> Any:
        return tf.nn.dilation2d(x, self.filters, [1, 1, 1, 1], "VALID", "NHWC", [1, 1, 1, 1])


def _resize_in_function(x: Any) -> Any:
    return tf.function(lambda x: tf.image.resize(x, (6, 6)), autograph=False)(x)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (_Dilation(name="opening"), "Dilation2DBackprop.*opening.*MaxPooling2D"),
        (
            layers.Lambda(_resize_in_function, name="larger"),
            "ResizeBilinearGrad.*/larger.*nested function.*inner",
        ),
        (layers.Lambda(lambda x: tf.image.resize(x, (2, 2), "area"), name="area"), "ResizeArea.*/area.*bilinear"),
        (layers.Lambda(lambda x: tf.recompute_grad(tf.tanh)(x), name="again"), "recompute_grad.*keras.remat"),
        (
            layers.Lambda(lambda x: tf.ensure_shape(tf.py_function(tf.tanh, [x], x.dtype), x.shape), name="eager"),
            "EagerPyFunc.*eager.*TensorFlow operations",
        ),
    ],
)
def test_operations_without_second_derivative_are_named(layer: Any, message: str) -> None:
    model = keras.Sequential([keras.Input((3, 3, 2)), layers.Conv2D(2, 1), layer, layers.Conv2D(1, 1)])
    loss_fn = squared_error(model, np.ones((1, 3, 3, 2), "float32"), np.float32(0.0))
    for way in ("eager", "operator", "loop"):
        with pytest.raises(ValueError, match=message):
            WAYS[way](loss_fn, model.trainable_variables, directions(model.trainable_variables))


def test_bilinear_resize_of_data_is_allowed() -> None:
    """Only what lies between weights and loss matters."""
    w = tf.Variable(tf.ones((2, 2)))
    x = tf.image.resize(np.ones((1, 2, 2, 2), "float32"), (4, 4))
    (out,) = hessian_vector_product(lambda: tf.reduce_sum(tf.matmul(x, w) ** 2), [w], [tf.ones((2, 2))])
    np.testing.assert_allclose(out, 2 * 16 * 2 * np.ones((2, 2)))


W = tf.Variable([1.0, 2.0])


@pytest.mark.parametrize(
    ("loss_fn", "variables", "vectors", "message"),
    [
        (lambda: tf.reduce_sum(W), [W], [], "0 vectors for 1 variables"),
        (lambda: tf.reduce_sum(W), [W], [np.ones(3, "float32")], r"vectors\[0\] has shape \(3,\)"),
        (lambda: tf.reduce_sum(W), [W], [np.ones(2)], "dtype float64"),
        (lambda: tf.reduce_sum(W), [], [], "variables is empty"),
        (lambda: tf.reduce_sum(W), [tf.zeros(2)], [np.ones(2, "float32")], "is a .*Tensor"),
        (lambda: tf.reduce_sum(W), [tf.Variable([1])], [np.ones(1, "int32")], "int32"),
        (
            lambda: tf.reduce_sum(W),
            [W, tf.Variable([1.0], dtype=tf.float64)],
            [np.ones(2), np.ones(1)],
            "float32.*float64",
        ),
        (lambda: W * 2, [W], [np.ones(2, "float32")], "scalar is needed"),
    ],
)
@pytest.mark.parametrize("way", ["eager", "function"])
def test_bad_input(way: str, loss_fn: Any, variables: Any, vectors: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WAYS[way](loss_fn, variables, vectors)
