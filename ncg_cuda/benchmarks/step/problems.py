"""The models that are measured: weights, a batch, a loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ...compare.errors import unknown


@dataclass(frozen=True)
class Model:
    """A model by name."""

    name: str
    title: str
    batch: int
    """The batch of the targets."""
    images: bool
    """Whether ``--image-size`` applies."""


MODELS = {
    model.name: model
    for model in (
        Model("mlp", "MLP 784-1024-1024-10", 128, images=False),
        Model("resnet50", "ResNet-50", 8, images=True),
        Model("mobilenetv2", "MobileNetV2", 8, images=True),
        Model("mlp-small", "MLP 64-48-32-10", 32, images=False),
        Model("cnn-small", "small CNN", 4, images=True),
    )
}
DEFAULT = "mlp,resnet50,mobilenetv2"
QUICK = "cnn-small"


def parse(names: str) -> list[Model]:
    """The models that a comma-separated list names.

    Raises:
        UsageError: an unknown one.
    """
    chosen = list(dict.fromkeys(part.strip() for part in names.split(",")))
    for name in chosen:
        if name not in MODELS:
            raise unknown("model", name, list(MODELS))
    return [MODELS[name] for name in chosen]


@dataclass
class Problem:
    """A model with one batch, on which every step is taken."""

    loss_and_outputs: Callable[[], tuple[Any, Any]]
    """The loss, a scalar tensor, in training mode, and the logits."""
    variables: Sequence[Any]

    @property
    def weights(self) -> int:
        """All elements of the trainable variables."""
        return sum(int(v.value.shape.num_elements()) for v in self.variables)


def build(name: str, batch: int, image_size: int) -> Problem:
    """The model with random weights and a random batch: neither changes what a step costs."""
    import keras
    import numpy as np
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    model, shape, classes = _models(keras, name, image_size)
    rng = np.random.default_rng(0)
    x = tf.constant(rng.standard_normal((batch, *shape)), tf.float32)
    y = tf.constant(rng.integers(0, classes, batch), tf.int32)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def loss_and_outputs() -> tuple[Any, Any]:
        z = model(x, training=True)
        return loss(y, z), z

    return Problem(loss_and_outputs, model.trainable_variables)


def _models(keras: Any, name: str, image_size: int) -> tuple[Any, tuple[int, ...], int]:
    """The model, the shape of one example, the number of classes."""
    image = (image_size, image_size, 3)
    if name == "mlp":
        return _dense(keras, 784, (1024, 1024)), (784,), 10
    if name == "mlp-small":
        return _dense(keras, 64, (48, 32)), (64,), 10
    if name == "cnn-small":
        layers = keras.layers
        model = keras.Sequential(
            [
                keras.Input(image),
                layers.Conv2D(8, 3, strides=2, use_bias=False),
                layers.BatchNormalization(),
                layers.ReLU(),
                layers.DepthwiseConv2D(3, padding="same"),
                layers.GlobalAveragePooling2D(),
                layers.Dense(10),
            ]
        )
        return model, image, 10
    make = {"resnet50": keras.applications.ResNet50, "mobilenetv2": keras.applications.MobileNetV2}[name]
    return make(weights=None, input_shape=image, classes=1000, classifier_activation=None), image, 1000


def _dense(keras: Any, inputs: int, widths: Sequence[int]) -> Any:
    hidden = [keras.layers.Dense(width, activation="relu") for width in widths]
    return keras.Sequential([keras.Input((inputs,)), *hidden, keras.layers.Dense(10)])
