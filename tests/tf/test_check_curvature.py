"""check_curvature: right models pass, an injected wrong gradient is found and its layer named, no wolf is cried."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from ncg_cuda.tf import check_curvature

layers = keras.layers
rng = np.random.default_rng(0)
X = rng.normal(size=(8, 6, 6, 2)).astype("float32")
Y = rng.integers(0, 3, size=8)


@tf.custom_gradient
def wrong_tanh(x: Any) -> Any:
    """The first gradient is right; its slope is held constant, so the second is not."""
    slope = 1 - tf.tanh(x) ** 2
    return tf.tanh(x), lambda dy: dy * held(slope)


@tf.custom_gradient
def held(x: Any) -> Any:
    """A gradient that is forgotten."""
    return tf.identity(x), tf.zeros_like


class Wrong(layers.Layer):
    def call(self, x: Any) -> Any:
        return wrong_tanh(x)


class Block(layers.Layer):
    """A layer that calls layers."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.first, self.second = layers.Dense(4, activation="tanh"), Wrong(name="culprit")

    def call(self, x: Any) -> Any:
        return self.second(self.first(x))


def model(*middle: Any, activation: str = "tanh") -> keras.Model:
    made = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(3, 3, activation=activation, name="conv", kernel_regularizer="l2"),
            layers.BatchNormalization(name="norm"),
            *middle,
            layers.Dropout(0.3),
            layers.Flatten(),
            layers.Dense(3, name="head"),
        ]
    )
    made.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return made


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_right_model_passes_and_is_left_as_it_was(activation: str) -> None:
    made = model(activation=activation)
    before = [v.numpy() for v in made.variables]
    report = check_curvature(made, x=X, y=Y)
    assert report.ok, str(report)
    assert report.precision == "float64"
    assert max(row.relative_error for row in report.rows) < 1e-6
    assert [row.layer for row in report.rows][:2] == ["conv", "conv"] or "conv" in report.rows[0].layer
    for value, v in zip(before, made.variables, strict=True):
        np.testing.assert_array_equal(value, v.numpy())
    assert keras.backend.floatx() == "float32"
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.parametrize(("layer", "activation"), [(Wrong, "tanh"), (Wrong, "relu"), (Block, "tanh")])
def test_wrong_gradient_is_found_and_its_layer_named(layer: Any, activation: str) -> None:
    name = "culprit" if layer is Wrong else "block"
    report = check_curvature(model(layer(name=name), activation=activation), x=X, y=Y)
    assert not report.ok
    assert {row.verdict for row in report.rows if "conv" in row.variable} == {"wrong"}
    assert {row.verdict for row in report.rows if "head" in row.variable} == {"ok"}
    assert report.wrong_layers == ["culprit (Wrong)"]
    assert "wrong second derivative in layer: culprit (Wrong)" in str(report)


class Subclassed(keras.Model):
    """Cannot be made again from a config."""

    def __init__(self, middle: Any) -> None:
        super().__init__()
        self.parts = [layers.Dense(4, activation="tanh"), middle, layers.Dense(1)]

    def get_config(self) -> Any:
        raise NotImplementedError("no config")

    def call(self, x: Any) -> Any:
        for part in self.parts:
            x = part(x)
        return x


def test_model_that_cannot_be_copied_is_checked_in_float32() -> None:
    x, y = X[:, 0, 0], X[:, 1, 1, :1]
    for middle, wrong in ((layers.LayerNormalization(), []), (Wrong(name="culprit"), ["culprit (Wrong)"])):
        made = Subclassed(middle)
        made.compile("sgd", "mse")
        report = check_curvature(made, x=x, y=y)
        assert report.precision == "float32"
        assert report.ok == (not wrong), str(report)
        assert report.wrong_layers == wrong
        assert "cannot be copied to float64" in str(report)


def test_refused_model_says_where() -> None:
    made = model(layers.Lambda(lambda x: tf.nn.fractional_max_pool(x, 1.5, seed=3)[0], name="odd"))
    report = check_curvature(made, x=X, y=Y)
    assert not report.ok
    assert {row.verdict for row in report.rows} == {"not twice differentiable"}
    assert "FractionalMaxPoolGrad" in report.refusal
    assert report.wrong_layers == ["odd (Lambda)"]


def test_loss_function_with_plain_variables() -> None:
    w = tf.Variable(rng.normal(size=4), name="weights")
    good = check_curvature(lambda: tf.reduce_sum(tf.exp(w) * w), [w])
    assert good.ok
    assert good.rows[0].variable == "weights"
    bad = check_curvature(lambda: tf.reduce_sum(tf.exp(wrong_tanh(w))), [w])
    assert [row.verdict for row in bad.rows] == ["wrong"]
    assert "outside of layers" in str(bad)


def test_stops_are_told_apart() -> None:
    """A layer that is defined by a stop is not called wrong, and not passed over in silence either."""
    report = check_curvature(model(layers.SpectralNormalization(layers.Dense(4), name="spectral")), x=X, y=Y)
    assert {row.verdict for row in report.rows} <= {"ok", "ok with stops held"}, str(report)
    assert "ok with stops held" in {row.verdict for row in report.rows}
    assert "stop_gradient" in str(report)
    assert not report.ok


def test_asymmetric_product_is_seen() -> None:
    """A first gradient that belongs to no function: the second derivative is right, but not symmetric."""

    @tf.custom_gradient
    def shifted(x: Any) -> Any:
        return tf.reduce_sum(x), lambda dy: dy * tf.roll(x, 1, 0) ** 2

    w = tf.Variable(rng.normal(size=4))
    report = check_curvature(lambda: shifted(w), [w])
    assert not report.symmetric
    assert not report.ok


def test_linear_loss_and_dead_variable_are_ok() -> None:
    w, dead = tf.Variable([1.0, 2.0]), tf.Variable([3.0])
    assert check_curvature(lambda: tf.reduce_sum(w), [w, dead]).ok


def test_kinks_are_not_called_wrong() -> None:
    """Thousands of kinks, in float32, where differences show the curvature of a smoothed loss."""
    w = tf.Variable(rng.normal(size=(50, 200)).astype("float32"))
    x = rng.normal(size=(200, 50)).astype("float32")
    report = check_curvature(lambda: tf.reduce_mean(tf.square(tf.nn.relu(tf.matmul(x, w)) - 1.0) * 5.0), [w])
    assert {row.verdict for row in report.rows} <= {"ok", "unsure"}, str(report)


def test_random_numbers_that_cannot_be_repeated_are_refused() -> None:
    w = tf.Variable([1.0])
    with pytest.raises(ValueError, match=r"random numbers.*SeedGenerator"):
        check_curvature(lambda: tf.reduce_sum(w * w * tf.random.normal([])), [w])


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((3,), {}, "got int"),
        ((lambda: 0.0,), {}, "together with variables"),
        ((lambda: 0.0, []), {}, "variables is empty"),
        ((lambda: 0.0, [1]), {"x": 1}, "a callable has its own data"),
        ((keras.Sequential([layers.Dense(1)]),), {}, "compile"),
    ],
)
def test_bad_input(arguments: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_curvature(*arguments, **options)
