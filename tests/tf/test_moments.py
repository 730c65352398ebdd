"""Exactness through normalization: it works inside fit, reaches nothing else, and what it cannot reach is refused."""

from __future__ import annotations

import contextvars
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from problems import (
    difference_product,
    directions,
    flat,
    normalized,
    raw,
    relative_error,
    small_resnet,
    squared_error,
)

from ncg_cuda.tf import HessianOperator, NewtonCG, exact_moments, hessian_vector_product, newton
from ncg_cuda.tf.curvature import LinearizedGradient

layers = keras.layers


def products_inside_fit(
    model: keras.Model, x: Any, y: Any, s: Any, monkeypatch: Any, **compile: Any
) -> list[np.ndarray]:
    """One step of a real fit, recording H s as the solver's own loop computes it."""
    kept = [tf.Variable(tf.zeros_like(t)) for t in s]
    original = newton.solver.checked

    def recording(product: Any, b: Any) -> Any:
        found = tf.while_loop(lambda i, p: i < 1, lambda i, p: (i + 1, product(p)), (0, [tf.constant(t) for t in s]))[1]
        for variable, value in zip(kept, found, strict=True):
            variable.assign(value)
        return original(product, b)

    monkeypatch.setattr(newton.solver, "checked", recording)
    model.compile(optimizer=NewtonCG(max_iter=2, **compile), loss="mse")
    model.fit(x, y, batch_size=len(x), epochs=1, verbose=0)
    return [v.numpy() for v in kept]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", ["batch", "layer", "group", "resnet with clipping"])
def test_exact_inside_fit(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = small_resnet() if "resnet" in kind else normalized(kind)
    s = directions(model.trainable_variables)
    want = difference_product(squared_error(model, x, y), model.trainable_variables, s)
    options = {"global_clipnorm": 1e-3} if "clipping" in kind else {}
    got = products_inside_fit(model, x, y, s, monkeypatch, **options)
    assert relative_error(got, want) < 1e-6


def stock(loss_fn: Any, variables: Any, s: Any) -> tuple[Any, Any, Any]:
    """Loss, gradient and the product of stock TensorFlow, in the graph under construction."""
    loss = loss_fn()
    gradients = tf.gradients(loss, raw(variables))
    return loss, gradients, tf.gradients(gradients, raw(variables), grad_ys=[tf.constant(t) for t in s])


@pytest.mark.usefixtures("float64")
def test_other_programs_are_left_alone() -> None:
    """Values, first gradients and stock second derivatives elsewhere are bitwise what they were."""
    model, x, y = normalized("batch")
    loss_fn, variables = squared_error(model, x, y), model.trainable_variables
    s = directions(variables)

    def elsewhere() -> list[np.ndarray]:
        loss, gradients, products = tf.function(lambda: stock(loss_fn, variables, s))()
        return [loss.numpy(), flat(gradients), flat(products)]

    before = elsewhere()
    exact = flat(hessian_vector_product(loss_fn, variables, s))
    operator = HessianOperator(loss_fn, variables)
    np.testing.assert_array_equal(before[0], operator.loss)
    np.testing.assert_allclose(before[1], flat(operator.gradients), rtol=1e-13, atol=1e-16)
    for one, other in zip(before, elsewhere(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert relative_error([before[2]], [exact]) > 1e-3


@pytest.mark.usefixtures("float64")
def test_the_same_graph_is_left_alone() -> None:
    """A stock second derivative of the same tensors, built after ours in the same function, is stock."""
    model, x, y = normalized("layer")
    loss_fn, variables = squared_error(model, x, y), model.trainable_variables
    s = directions(variables)

    @tf.function(autograph=False)
    def both(ours: bool) -> Any:
        _, gradients, _ = stock(loss_fn, variables, s)
        exact = LinearizedGradient(gradients, variables).product(s) if ours else gradients
        return exact, tf.gradients(gradients, raw(variables), grad_ys=[tf.constant(t) for t in s])

    _, alone = both(False)
    exact, after = both(True)
    assert relative_error(after, alone) < 1e-13
    assert relative_error(after, exact) > 1e-3


class Nested(layers.Layer):
    """A normalization inside a tf.function of its own."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.norm = norm
        self.inner = tf.function(lambda x: self.norm(x), autograph=False)

    def build(self, shape: Any) -> None:
        self.norm.build(shape)

    def call(self, x: Any) -> Any:
        return self.inner(x)


def nested_model(norm: Any) -> tuple[Any, Any]:
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(5, activation="tanh"), Nested(norm), layers.Dense(3, activation="tanh")]
    )
    rng = np.random.default_rng(0)
    return squared_error(model, rng.normal(size=(6, 4)), rng.normal(size=(6, 3))), model


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("norm", [layers.LayerNormalization, lambda: layers.GroupNormalization(5)])
def test_nested_moments_are_refused_and_cured(norm: Any) -> None:
    loss_fn, model = nested_model(norm())
    s = directions(model.trainable_variables)
    with pytest.raises(ValueError, match=r"nested function.*/nested.*exact_moments\(\)"):
        hessian_vector_product(loss_fn, model.trainable_variables, s)

    with exact_moments():
        loss_fn, model = nested_model(norm())
        got = hessian_vector_product(loss_fn, model.trainable_variables, s)
    assert relative_error(got, difference_product(loss_fn, model.trainable_variables, s)) < 1e-8


def test_nested_moments_are_refused_in_fit() -> None:
    _, model = nested_model(layers.LayerNormalization())
    model.compile(optimizer=NewtonCG(), loss="mse")
    with pytest.raises(ValueError, match=r"exact_moments\(\)"):
        model.fit(np.ones((4, 4)), np.ones((4, 3)), verbose=0)


def stop_count(layer: Any, x: Any) -> int:
    graph = tf.function(lambda: layer(x)).get_concrete_function().graph
    return sum(op.type == "StopGradient" for op in graph.get_operations())


def test_exact_moments_is_confined() -> None:
    """Only inside the context, only in its own thread's context, and the values are the same."""
    from keras.src.backend.tensorflow import nn

    layer, x = layers.LayerNormalization(), np.random.default_rng(0).normal(size=(3, 8)).astype("float32")
    plain, original = layer(x), nn._compute_moments
    outside = contextvars.copy_context()
    assert stop_count(layer, x) == 1
    with exact_moments(), exact_moments():
        assert stop_count(layer, x) == 0
        assert outside.run(stop_count, layer, x) == 1
        np.testing.assert_allclose(layer(x), plain, rtol=1e-6, atol=1e-6)
    assert stop_count(layer, x) == 1
    assert nn._compute_moments is original


def test_exact_moments_restores_after_an_error() -> None:
    from keras.src.backend.tensorflow import nn

    original = nn._compute_moments
    with pytest.raises(KeyError), exact_moments():
        raise KeyError("x")
    assert nn._compute_moments is original
