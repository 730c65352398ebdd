"""check_curvature: right models pass, an injected wrong gradient is found and its layer named, no wolf is cried."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.ops import gen_image_ops

from ncg_cuda.tf import check_curvature
from ncg_cuda.tf.check import CurvatureCheck, VariableCheck
from ncg_cuda.tf.resizing import resized_in_float64

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


def resizing(*middle: Any, how: str = "bilinear", activation: str = "tanh") -> keras.Model:
    keras.utils.set_random_seed(1)
    made = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(4, 3, activation=activation),
            layers.BatchNormalization(),
            layers.UpSampling2D(2, interpolation=how, name="larger"),
            *middle,
            layers.Dense(1, name="head"),
        ]
    )
    made.compile("sgd", "mse")
    return made


PICTURES = rng.normal(size=(8, 8, 8, 1)).astype("float32")


@pytest.mark.parametrize(
    ("how", "op", "activation"), [("bilinear", "ResizeBilinear", "relu"), ("bicubic", "ResizeBicubic", "tanh")]
)
def test_operation_in_float32_is_no_false_alarm(how: str, op: str, activation: str) -> None:
    """TensorFlow resizes float64 in float32: the layer table's tolerance holds, and the report says why."""
    report = check_curvature(resizing(how=how, activation=activation), x=X, y=PICTURES)
    assert report.ok, str(report)
    assert (report.precision, report.tolerance) == ("float64", 1e-4)
    assert max(row.relative_error for row in report.rows) <= 1e-4
    assert any(op in note and "larger" in note and "float32 only" in note for note in report.notes)
    assert not any("kinks" in note or "in float64" in note for note in report.notes)


def test_wrong_gradient_is_found_behind_an_operation_in_float32() -> None:
    report = check_curvature(resizing(Wrong(name="culprit")), x=X, y=PICTURES)
    assert "wrong" in {row.verdict for row in report.rows}, str(report)
    assert report.wrong_layers == ["culprit (Wrong)"]
    assert str(report).startswith("Hessian products: NOT ok")


def test_what_does_not_depend_on_the_weights_may_be_in_float32() -> None:
    made = keras.Sequential([keras.Input((6, 6, 2)), layers.Resizing(4, 4), layers.Dense(3, "tanh"), layers.Dense(1)])
    made.compile("sgd", "mse")
    report = check_curvature(made, x=X, y=PICTURES[:, :4, :4])
    assert report.ok, str(report)
    assert report.tolerance == 1e-6


def test_gradient_that_does_not_exist_in_float64_is_checked_in_float32() -> None:
    report = check_curvature(resizing(how="lanczos3"), x=X, y=PICTURES)
    assert report.ok, str(report)
    assert report.precision == "float32"
    assert "cannot compute the gradient in float64" in str(report)


@pytest.mark.parametrize("how", ["bilinear", "bicubic"])
@pytest.mark.parametrize("options", [{}, {"align_corners": True}, {"half_pixel_centers": True}])
def test_differences_resize_as_tensorflow_does(how: str, options: dict[str, bool]) -> None:
    image = tf.constant(np.random.default_rng(1).normal(size=(2, 5, 7, 3)))
    resize = getattr(gen_image_ops, f"resize_{how}")
    with resized_in_float64():
        found = getattr(gen_image_ops, f"resize_{how}")(image, [10, 4], **options)
    assert getattr(gen_image_ops, f"resize_{how}") is resize
    assert found.dtype == tf.float64
    np.testing.assert_allclose(found, resize(image, [10, 4], **options), atol=2e-6)


@pytest.mark.parametrize("nested", [False, True])
def test_user_code_in_float32_is_named_and_tolerated(nested: bool) -> None:
    w = tf.Variable(rng.normal(size=(4, 3)))

    def single() -> Any:
        return tf.cast(tf.exp(tf.sin(tf.cast(w, tf.float32))), tf.float64)

    part = tf.function(single, autograph=False) if nested else single
    report = check_curvature(lambda: tf.reduce_mean(part() * w), [w])
    assert report.ok, str(report)
    assert report.tolerance == 1e-4
    assert any(("Cast" if nested else "Sin") in note and "float32 only" in note for note in report.notes), str(report)


def test_head_of_the_report_agrees_with_its_rows() -> None:
    def head(verdict: str, asymmetry: float = 0.0, symmetric: bool = True) -> str:
        rows = [VariableCheck("w", "", 1e-7, "ok"), VariableCheck("v", "", 1e-3, verdict)]
        return str(CurvatureCheck(rows, asymmetry, symmetric, "float64", 1e-6)).split("(")[0].strip()

    assert head("ok") == "Hessian products: ok"
    assert head("unsure") == "Hessian products: unsure"
    assert head("wrong") == "Hessian products: NOT ok"
    assert head("ok", 1.0, symmetric=False) == "Hessian products: NOT ok"


def test_refused_model_says_where() -> None:
    made = model(layers.Lambda(lambda x: tf.nn.fractional_max_pool(x, 1.5, seed=3)[0], name="odd"))
    report = check_curvature(made, x=X, y=Y)
    assert not report.ok
    assert {row.verdict for row in report.rows} == {"not twice differentiable"}
    assert "FractionalMaxPoolGrad" in report.refusal
    assert report.wrong_layers == ["odd (Lambda)"]
    assert "symmetry: not checked" in str(report)
    assert not report.symmetric


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
