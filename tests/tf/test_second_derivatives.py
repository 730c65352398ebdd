"""Second derivatives of our own: against TensorFlow's resizing matrix, in fit's graphs, and nobody else is affected."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from problems import dense_hessian, difference_product, directions, flat, raw, relative_error, squared_error

from ncg_cuda.tf import HessianOperator, hessian_vector_product
from ncg_cuda.tf.curvature import LinearizedGradient

layers = keras.layers


def resizing_matrix(shape: tuple[int, int], size: tuple[int, int], **options: Any) -> np.ndarray:
    """The matrix of a resize of one channel."""
    basis = np.eye(shape[0] * shape[1], dtype="float32").reshape(-1, *shape, 1)
    return np.asarray(tf.image.resize(basis, size, **options)).reshape(len(basis), -1).T.astype("float64")


@pytest.mark.parametrize("how", ["bilinear", "bicubic", "nearest", "lanczos3"])
@pytest.mark.parametrize("size", [(7, 4), (2, 3)])
def test_resize_is_its_matrix(how: str, size: tuple[int, int]) -> None:
    """The loss sum(exp(R w)) has the Hessian R^T diag(exp(R w)) R."""
    shape = (3, 4)
    matrix = resizing_matrix(shape, size, method=how)
    w = tf.Variable(np.random.default_rng(0).normal(size=(1, *shape, 1)).astype("float32"))
    (s,) = directions([w])
    want = matrix.T @ (np.exp(matrix @ w.numpy().ravel()) * (matrix @ s.ravel()))
    (got,) = hessian_vector_product(lambda: tf.reduce_sum(tf.exp(tf.image.resize(w, size, method=how))), [w], [s])
    np.testing.assert_allclose(got.numpy().ravel(), want, rtol=1e-5, atol=1e-5)


def upsampling() -> tuple[Any, Any]:
    model = keras.Sequential(
        [
            keras.Input((3, 3, 2)),
            layers.Conv2D(2, 2, activation="tanh"),
            layers.UpSampling2D(interpolation="bilinear"),
            layers.Conv2D(1, 2),
        ]
    )
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 3, 3, 2)).astype("float32"), rng.normal(size=(2, 3, 3, 1)).astype("float32")
    return squared_error(model, x, y), model.trainable_variables


def test_other_programs_are_left_alone() -> None:
    """A stock second derivative, in the same function as ours, before it and after it, is stock: wrong."""
    loss_fn, variables = upsampling()
    s = directions(variables)

    @tf.function(autograph=False)
    def go(ours: bool) -> Any:
        gradients = tf.gradients(loss_fn(), raw(variables))
        exact = LinearizedGradient(gradients, variables).product(s) if ours else gradients
        return exact, tf.gradients(gradients, raw(variables), grad_ys=[tf.constant(t) for t in s])

    _, alone = go(False)
    exact, after = go(True)
    assert relative_error(after, alone) < 1e-6
    assert relative_error(after, exact) > 1e-2
    np.testing.assert_allclose(flat(HessianOperator(loss_fn, variables).product(s)), flat(exact), rtol=1e-4, atol=1e-5)


def test_every_way_to_a_product() -> None:
    """Also in the body of a loop, where the solver asks for it, and from an operator held eagerly."""
    loss_fn, variables = upsampling()
    s = directions(variables)
    want = flat(hessian_vector_product(loss_fn, variables, s))

    @tf.function(autograph=False)
    def in_loop() -> Any:
        operator = HessianOperator(loss_fn, variables)
        start = [tf.constant(t) for t in s]
        return tf.while_loop(lambda i, p: i < 1, lambda i, p: (i + 1, operator.product(p)), (0, start))[1]

    np.testing.assert_allclose(flat(in_loop()), want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(flat(HessianOperator(loss_fn, variables).product(s)), want, rtol=1e-5, atol=1e-6)


def test_registered_gradients_stay() -> None:
    """What somebody else has registered wins: ours is for operations that have none."""
    from ncg_cuda.tf import second_derivatives

    def other(op: Any, v: Any) -> Any:
        raise AssertionError

    second_derivatives._everywhere("SoftsignGrad")(other)
    w = tf.Variable([0.5])
    (got,) = hessian_vector_product(lambda: tf.reduce_sum(tf.nn.softsign(w)), [w], [[1.0]])
    np.testing.assert_allclose(got, [-2 / 1.5**3], rtol=1e-6)


def test_cross_entropy_with_trained_labels() -> None:
    """TensorFlow's own second derivative leaves the labels out."""
    rng = np.random.default_rng(0)
    a, b = tf.Variable(rng.normal(size=(3, 4))), tf.Variable(rng.normal(size=(3, 4)))

    def by_hand() -> Any:
        return -tf.reduce_sum(tf.nn.softmax(b) * (a - tf.reduce_logsumexp(a, 1, keepdims=True)))

    def loss_fn() -> Any:
        return tf.reduce_sum(tf.nn.softmax_cross_entropy_with_logits(tf.nn.softmax(b), a))

    s = directions([a, b])
    want = dense_hessian(by_hand, [a, b]) @ flat(s)
    np.testing.assert_allclose(flat(hessian_vector_product(loss_fn, [a, b], s)), want, rtol=1e-10, atol=1e-12)
    stock = tf.function(
        lambda: tf.gradients(tf.gradients(loss_fn(), [a, b]), [a, b], grad_ys=[tf.constant(t) for t in s])
    )()
    assert np.linalg.norm(flat(stock) - want) > 1e-2 * np.linalg.norm(want), "stock is exact: this test shows nothing"


def test_max_pool_with_argmax_numbers_within_an_image() -> None:
    rng = np.random.default_rng(0)
    w = tf.Variable(rng.normal(size=(2, 4, 4, 2)))
    (s,) = directions([w])
    pool = tf.nn.max_pool_with_argmax
    products = [
        hessian_vector_product(
            lambda b=b: tf.reduce_sum(tf.exp(pool(w, 2, 2, "VALID", include_batch_in_index=b)[0])),
            [w],
            [s],
        )[0]
        for b in (False, True)
    ]
    pooled = hessian_vector_product(lambda: tf.reduce_sum(tf.exp(tf.nn.max_pool2d(w, 2, 2, "VALID"))), [w], [s])[0]
    for product in products:
        np.testing.assert_allclose(product, pooled, rtol=1e-12)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("inside", ["function", "cond", "loop", "loop-carried"])
def test_nested_cross_entropy(inside: str, trained: bool) -> None:
    """Exact with labels that are data; refused with labels that depend on the weights."""
    rng = np.random.default_rng(0)
    a, b = tf.Variable(rng.normal(size=(3, 4))), tf.Variable(rng.normal(size=(3, 4)))
    data = tf.constant(np.eye(4)[:3])

    def entropy(labels: Any) -> Any:
        return tf.reduce_sum(tf.nn.softmax_cross_entropy_with_logits(labels, tf.convert_to_tensor(a)))

    def loss_fn() -> Any:
        return tf.reduce_sum(b**3) + nested()

    def nested() -> Any:
        labels = tf.nn.softmax(b) if trained else data
        if inside == "function":
            return tf.function(entropy, autograph=False)(labels)
        if inside == "cond":
            return tf.cond(a[0, 0] > -9, lambda: entropy(labels), lambda: tf.constant(0.0, tf.float64))
        if inside == "loop":
            return tf.while_loop(lambda i, y: i < 2, lambda i, y: (i + 1, y + entropy(labels)), (0, a[0, 0]))[1]
        start, grow = data, (lambda t: 0.5 * t + 0.5 * labels)
        return tf.while_loop(
            lambda i, y, t: i < 3, lambda i, y, t: (i + 1, y + entropy(t), grow(t)), (0, a[0, 0], start)
        )[1]

    s = directions([a, b])
    if trained:
        with pytest.raises(ValueError, match=r"SoftmaxCrossEntropyWithLogits.*stop_gradient"):
            hessian_vector_product(loss_fn, [a, b], s)
        return
    want = difference_product(loss_fn, [a, b], s)
    assert relative_error(hessian_vector_product(loss_fn, [a, b], s), want) < 1e-8
