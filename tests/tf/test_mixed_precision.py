"""Products and training in mixed_float16, against the same model in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from problems import directions, flat, relative_error

from ncg_cuda.tf import GaussNewtonOperator, HessianOperator, NewtonCG, half_precision
from ncg_cuda.tf.curvature_batch import Evaluated, linearized
from ncg_cuda.tf.gauss_newton import CURVATURES

layers = keras.layers
RNG = np.random.default_rng(0)
ROUNDING = 2.0**-11
"""The relative error of one float16 operation."""
BOUND = 20 * ROUNDING
"""On a product: a chain of 10 to 30 of them (forward, backward, and their derivatives), most in random directions, and
a variance's division in a normalization. The largest error measured is 9 of them; underflow made it 40 to 4000."""
SIZES = (1.0, 1e-4, 1e-8, 1e4)
BATCH = 16
CROSS_ENTROPY = keras.losses.CategoricalCrossentropy(from_logits=True)


def build(kind: str, policy: str) -> tuple[keras.Model, np.ndarray, np.ndarray]:
    """A model of that dtype policy, with the same weights in every policy; inputs and labels."""
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(3)
    shape = {"dense": (20,), "conv": (8, 8, 3), "LSTM": (5, 5), "attention": (6, 8)}[kind]
    inputs = keras.Input(shape)
    if kind == "dense":
        x = layers.Dense(16, "softplus")(layers.Dense(16, "tanh")(inputs))
    elif kind == "conv":
        x = layers.Activation("softplus")(layers.BatchNormalization()(layers.Conv2D(6, 3)(inputs)))
        x = layers.Activation("tanh")(layers.BatchNormalization()(layers.Conv2D(6, 3)(x)))
        x = layers.GlobalAveragePooling2D()(x)
    elif kind == "LSTM":
        x = layers.LSTM(8)(inputs)
    else:
        x = layers.LayerNormalization()(inputs + layers.MultiHeadAttention(2, 4)(inputs, inputs))
        x = layers.GlobalAveragePooling1D()(x)
    model = keras.Model(inputs, layers.Dense(4)(x))
    rng = np.random.default_rng(1)
    # float16 numbers: the same inputs for both.
    return (
        model,
        rng.normal(size=(BATCH, *shape)).astype("float16").astype("float32"),
        np.eye(4)[rng.integers(0, 4, BATCH)],
    )


@contextmanager
def double() -> Iterator[None]:
    keras.backend.set_floatx("float64")
    yield
    keras.backend.set_floatx("float32")


def loss_of(model: keras.Model, x: Any, y: Any, weight: float = 1.0) -> tuple[Any, Any]:
    z = model(x, training=True)
    dtype = tf.float64 if z.dtype == tf.float64 else tf.float32
    return weight * tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(tf.cast(y, dtype), tf.cast(z, dtype))), z


def truth(kind: str, weights: Any, s: Any, curvature: str, weight: float = 1.0) -> list[np.ndarray]:
    """The product in float64."""
    with double():
        model, x, y = build(kind, "float64")
        model.set_weights(weights)
        vectors = [tf.constant(t, tf.float64) for t in s]

        @tf.function(autograph=False)
        def product() -> Any:
            loss, z = loss_of(model, tf.constant(x, tf.float64), y, weight)
            return linearized(curvature, Evaluated(loss, [z]), model.trainable_variables).product(vectors)

        return [t.numpy() for t in product()]


class Probe(NewtonCG):
    """Notes products with SIZES times a direction, in the step's own graph."""

    def __init__(self, s: Any, **options: Any) -> None:
        super().__init__(1e-9, max_iter=1, **options)
        self.s = s
        self.seen = [tf.Variable(tf.zeros((len(SIZES), *t.shape))) for t in s]

    def _matrix(self, gradients: list[Any], variables: Sequence[Any]) -> Any:
        matrix = super()._matrix(gradients, variables)

        def body(i: Any, *out: Any) -> Any:
            size = tf.gather(tf.constant(SIZES), i)
            found = matrix.product([size * t for t in self.s])
            return i + 1, *[o.write(i, t / size) for o, t in zip(out, found, strict=True)]

        out = [tf.TensorArray(tf.float32, len(SIZES), element_shape=t.shape) for t in self.s]
        out = tf.while_loop(lambda i, *_: i < len(SIZES), body, (0, *out))[1:]
        for v, o in zip(self.seen, out, strict=True):
            v.assign(o.stack())
        return matrix

    def errors(self, want: Any) -> list[float]:
        return [relative_error([v.numpy()[i].astype(float) for v in self.seen], want) for i in range(len(SIZES))]


def unit(model: keras.Model) -> list[np.ndarray]:
    """A direction of norm 1."""
    s = directions(model.trainable_variables)
    return [t / np.float32(np.linalg.norm(flat(s))) for t in s]


def errors_in_fit(
    kind: str, curvature: str, scale: float, weight: float = 1.0, policy: str = "mixed_float16", **options: Any
) -> list[float]:
    model, x, y = build(kind, policy)
    s, weights = unit(model), model.get_weights()
    probe = Probe(s, curvature=curvature, **options)
    optimizer = keras.optimizers.LossScaleOptimizer(probe, initial_scale=scale)
    model.compile(optimizer=optimizer, loss=CROSS_ENTROPY, loss_weights=weight, jit_compile=False)
    model.fit(x, y, batch_size=BATCH, epochs=1, verbose=0)
    assert probe.last_step is not None
    assert probe.last_step.fallbacks_total == 0
    return probe.errors(truth(kind, weights, s, curvature, weight))


@pytest.mark.parametrize(
    ("kind", "curvature"), [*(("dense", c) for c in CURVATURES), ("conv", "hessian"), ("conv", "gauss-newton")]
)
def test_products_in_fit(kind: str, curvature: str) -> None:
    """At Keras's initial loss scale, for directions over twelve orders of magnitude."""
    assert max(errors_in_fit(kind, curvature, 2.0**15)) < BOUND


@pytest.mark.parametrize("curvature", ["hessian", "gauss-newton"])
@pytest.mark.parametrize("kind", ["LSTM", "attention"])
def test_products_in_minimize(kind: str, curvature: str) -> None:
    """Without a loss scale from outside."""
    model, x, y = build(kind, "mixed_float16")
    s, weights = unit(model), model.get_weights()
    probe = Probe(s, curvature=curvature)
    probe.minimize(lambda: loss_of(model, x, y), model.trainable_variables)
    assert max(probe.errors(truth(kind, weights, s, curvature))) < BOUND


@pytest.mark.parametrize(
    ("curvature", "scale", "weight"),
    [
        ("hessian", 2.0, 1.0),
        ("hessian", 2.0**15, 1e-6),
        ("hessian", 2.0**34, 1e-6),
        ("hessian", 2.0**8, 100.0),
        ("gauss-newton", 2.0**15, 1e-6),
        ("empirical-fisher", 2.0**8, 100.0),
    ],
)
def test_products_with_other_loss_scales_and_sizes_of_the_gradient(curvature: str, scale: float, weight: float) -> None:
    assert max(errors_in_fit("dense", curvature, scale, weight)) < BOUND


@pytest.mark.parametrize("weight", [1e-6, 100.0])
def test_the_gradient_of_minimize(weight: float) -> None:
    """Scaled like the products: float16 alone would lose a gradient of 1e-6."""
    model, x, y = build("dense", "mixed_float16")
    before = model.get_weights()
    NewtonCG(1.0, tau=1e3 * weight, max_step=None).minimize(
        lambda: loss_of(model, x, y, weight)[0], model.trainable_variables
    )
    step = flat(model.get_weights()) - flat(before)
    with double():
        again, _, _ = build("dense", "float64")
        again.set_weights(before)
        with tf.GradientTape() as tape:
            loss = loss_of(again, tf.constant(x, tf.float64), y)[0]
        gradient = tape.gradient(loss, again.trainable_variables)
    # (H + tau) d = -g with a tau a thousand times as large as H.
    assert relative_error([-1e3 * step], gradient) < BOUND


def test_pieces_of_a_batch() -> None:
    """micro_batch_size differentiates each piece anew, with a loss scale of its own."""
    for curvature in ("hessian", "gauss-newton"):
        assert max(errors_in_fit("dense", curvature, 2.0**15, micro_batch_size=4)) < BOUND


@pytest.mark.parametrize("kind", ["hessian", "gauss-newton"])
def test_operators(kind: str) -> None:
    model, x, y = build("dense", "mixed_float16")
    s, weights = unit(model), model.get_weights()
    want = truth("dense", weights, s, kind)
    variables = model.trainable_variables
    if kind == "hessian":
        pieces = [(x[i : i + 8], y[i : i + 8]) for i in (0, 8)]
        operators = [
            HessianOperator(lambda: loss_of(model, x, y)[0], variables),
            HessianOperator.from_batches(lambda b: loss_of(model, *b)[0], variables, pieces, linearise="once"),
        ]
    else:
        operators = [GaussNewtonOperator(lambda: loss_of(model, x, y), variables)]
    for operator in operators:
        for size in SIZES:
            found = operator.product([np.float32(size) * t for t in s])
            assert relative_error([t.numpy() / np.float64(size) for t in found], want) < BOUND


def test_what_by_passes_the_outputs() -> None:
    """An activity regularizer, in float16, has a Hessian of its own in the Gauss-Newton matrix."""

    def loss(model: keras.Model, hidden: Any, x: Any, y: Any) -> tuple[Any, Any]:
        error, z = loss_of(model, x, y)
        return error + 1e-3 * tf.reduce_mean(tf.cast(hidden(x), error.dtype) ** 2), z

    start, _, _ = build("dense", "float32")

    def product(policy: str, s: Any) -> Any:
        model, x, y = build("dense", policy)
        model.set_weights(start.get_weights())
        hidden = keras.Model(model.inputs, model.layers[1].output)
        dtype = tf.float64 if policy == "float64" else tf.float32
        op = GaussNewtonOperator(lambda: loss(model, hidden, tf.constant(x, dtype), y), model.trainable_variables)
        return [t.numpy() for t in op.product([tf.cast(t, dtype) for t in s])]

    s = unit(start)
    with double():
        want = product("float64", s)
    found = product("mixed_float16", [np.float32(1e-7) * t for t in s])
    assert relative_error([t / 1e-7 for t in found], want) < BOUND


@pytest.mark.parametrize("gain", [1e-6, 1.0, 1e3, 1e7])
def test_an_overflowing_product_is_repeated(gain: float) -> None:
    """A map whose own size nobody knows: float16 holds its result only on a small vector."""

    @tf.function(autograph=False)
    def product(s: Any) -> Any:
        def linear(v: list[Any], _: Any) -> list[Any]:
            return [tf.cast(tf.cast(v[0], tf.float16) * tf.cast(2.0**13, tf.float16), tf.float32) * gain]

        return half_precision.in_range(linear, [s], 2.0**6)[0]

    s = tf.constant([1.0, -3.0, 0.125])
    for size in (1e-20, 1.0, 1e10):
        np.testing.assert_allclose(product(size * s), size * gain * 2.0**13 * s, rtol=2 * ROUNDING)
    assert np.isnan(product(tf.constant([1.0, np.nan, 0.0]))[1])


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_other_models_are_left_alone(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not an operation is added to their graphs."""

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("for float16 alone")

    for name in ("target", "in_range", "adjoint", "cast_outputs", "LossSide", "boundary"):
        monkeypatch.setattr(half_precision, name, fail)
    bound = 1e-5 if policy == "float32" else 8 * BOUND
    for curvature in ("hessian", "gauss-newton"):
        assert max(errors_in_fit("dense", curvature, 2.0**15, policy=policy)) < bound


X = RNG.normal(size=(64, 5)).astype("float32")
Y = np.tanh(X @ RNG.normal(size=(5, 2))).astype("float32")


def training(policy: str, epochs: int = 5, scale: float = 2.0**15, **options: Any) -> tuple[list[float], Any, Any]:
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(7)
    model = keras.Sequential([keras.Input((5,)), layers.Dense(8, "tanh"), layers.Dense(2)])
    inner = NewtonCG(0.5, tau=0.3, **options)
    scaling = policy == "mixed_float16"
    optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=scale) if scaling else inner
    model.compile(optimizer=optimizer, loss="mse", jit_compile=False)
    losses = model.fit(X, Y, batch_size=16, epochs=epochs, shuffle=False, verbose=0).history["loss"]
    return losses, inner, optimizer


@pytest.mark.parametrize(
    "options",
    [
        *[{"curvature": kind} for kind in CURVATURES],
        {"curvature": "gauss-newton", "global_clipnorm": 0.05},
        {"curvature": "gauss-newton", "gradient_accumulation_steps": 2},
        {"curvature": "gauss-newton", "curvature_batch_size": 8},
        {"micro_batch_size": 4, "curvature": "gauss-newton"},
    ],
    ids=str,
)
def test_training_goes_as_in_float32(options: dict[str, Any]) -> None:
    want, _, _ = training("float32", **options)
    found, inner, _ = training("mixed_float16", **options)
    assert found[-1] < 0.8 * found[0]
    np.testing.assert_allclose(found, want, rtol=0.02)
    assert inner.last_step.fallbacks_total == inner.last_step.skipped_total == 0


@pytest.mark.parametrize("curvature", ["hessian", "gauss-newton"])
def test_an_overflowing_loss_scale_is_lowered(curvature: str) -> None:
    """Keras leaves those steps out, and halves the scale, until the gradient is finite; then training goes on."""
    start = 2.0**30
    losses, inner, outer = training("mixed_float16", epochs=8, scale=start, curvature=curvature)
    left_out = 32 - inner.last_step.steps
    assert left_out >= 8
    assert float(outer.dynamic_scale) == start / 2**left_out
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # not one step in two epochs
    assert losses[-1] < 0.5 * losses[0]
    assert inner.last_step.fallbacks_total == 0
