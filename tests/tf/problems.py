"""Models and independent truths for the TensorFlow tests: dense Hessians and finite differences in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

layers = keras.layers


def flat(tensors: Any) -> np.ndarray:
    """All tensors as one vector."""
    return np.concatenate([np.ravel(np.asarray(t)) for t in tensors])


def directions(variables: Any, seed: int = 7) -> list[np.ndarray]:
    """One random array per variable."""
    rng = np.random.default_rng(seed)
    return [
        rng.normal(size=tuple(v.shape)).astype(np.dtype(v.dtype if isinstance(v.dtype, str) else v.dtype.name))
        for v in variables
    ]


def relative_error(a: Any, b: Any) -> float:
    """|a - b| / |b| over all tensors."""
    a, b = flat(a), flat(b)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def raw(variables: Any) -> list[tf.Variable]:
    """The tf.Variables inside."""
    return [v if isinstance(v, tf.Variable) else v.value for v in variables]


def difference_product(loss_fn: Callable[[], Any], variables: Any, s: Any, eps: float = 1e-4) -> list[np.ndarray]:
    """H s by fourth-order central differences of first gradients, which stock TensorFlow computes exactly."""
    variables = raw(variables)

    @tf.function(autograph=False)
    def gradient() -> Any:
        return [tf.convert_to_tensor(g) for g in tf.gradients(loss_fn(), variables)]

    start = [v.numpy() for v in variables]

    def at(a: float) -> list[np.ndarray]:
        for v, w, d in zip(variables, start, s, strict=True):
            v.assign(w + a * np.asarray(d))
        return [g.numpy() for g in gradient()]

    near = [p - m for p, m in zip(at(eps), at(-eps), strict=True)]
    far = [p - m for p, m in zip(at(2 * eps), at(-2 * eps), strict=True)]
    for v, w in zip(variables, start, strict=True):
        v.assign(w)
    return [(8 * n - f) / (12 * eps) for n, f in zip(near, far, strict=True)]


def dense_hessian(loss_fn: Callable[[], Any], variables: Any) -> np.ndarray:
    """The whole Hessian by nested tapes and a Jacobian, row by row; stock TensorFlow, so not through normalizations."""
    variables = raw(variables)
    with tf.GradientTape(persistent=True) as outer:
        with tf.GradientTape() as inner:
            loss = loss_fn()
        gradients = inner.gradient(loss, variables)
        row = tf.concat([tf.reshape(g, [-1]) for g in gradients], 0)
    blocks = outer.jacobian(row, variables, experimental_use_pfor=False)
    return np.concatenate([b.numpy().reshape(row.shape[0], -1) for b in blocks], axis=1)


def normalized(kind: str) -> tuple[keras.Model, np.ndarray, np.ndarray]:
    """A small convolutional network with one kind of normalization, its inputs and targets; smooth activations."""
    layer = {
        "batch": layers.BatchNormalization,
        "layer": layers.LayerNormalization,
        "group": lambda: layers.GroupNormalization(2),
    }[kind]
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(4, 3),
            layer(),
            layers.Activation("tanh"),
            layers.Conv2D(4, 3, activation="softplus"),
            layer(),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    rng = np.random.default_rng(3)
    return model, rng.normal(size=(5, 6, 6, 2)), rng.normal(size=(5, 3))


def small_resnet() -> tuple[keras.Model, np.ndarray, np.ndarray]:
    """Two residual blocks with BatchNormalization and smooth activations."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, padding="same")(inputs)
    for stride in (1, 2):
        y = layers.Activation("softplus")(layers.BatchNormalization()(x))
        y = layers.Conv2D(6, 3, strides=stride, padding="same")(y)
        y = layers.Activation("tanh")(layers.BatchNormalization()(y))
        y = layers.Conv2D(6, 3, padding="same")(y)
        x = layers.Add()([layers.Conv2D(6, 1, strides=stride)(x), y])
    outputs = layers.Dense(4)(layers.GlobalAveragePooling2D()(x))
    rng = np.random.default_rng(5)
    return keras.Model(inputs, outputs), rng.normal(size=(6, 8, 8, 3)), rng.normal(size=(6, 4))


def squared_error(model: keras.Model, x: np.ndarray, y: np.ndarray) -> Callable[[], Any]:
    """The mean squared error in training mode, as a loss_fn."""
    return lambda: tf.reduce_mean(tf.square(model(x, training=True) - y))
