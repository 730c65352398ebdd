"""Handwritten digits of 8x8 pixels by a small convolutional network with batch normalisation."""

from __future__ import annotations

from typing import Any

import numpy as np

from .data import Dataset, load_sklearn, locate_sklearn, sklearn_present, split_indices
from .scenario import Scenario, accuracy, glorot


def load() -> Dataset:
    """1797 grey images x ``[n, 8, 8, 1]`` in [0, 1], digits y ``[n]`` (int32)."""
    x, y = load_sklearn("load_digits")
    images = (x.reshape(-1, 8, 8, 1) / 16.0).astype(np.float32)
    labels = y.astype(np.int32)
    train, val = split_indices(len(images))
    return Dataset(images[train], labels[train], images[val], labels[val], origin="scikit-learn load_digits")


def build(seed: int, data: Dataset) -> Any:
    """Two blocks of convolution, batch normalisation and swish (8 and 16 maps, each halving the image), then ten
    logits.
    """
    import keras

    init = glorot(seed)
    inputs = x = keras.Input(data.x_train.shape[1:])
    for maps in (8, 16):
        x = keras.layers.Conv2D(maps, 3, 2, "same", use_bias=False, kernel_initializer=next(init))(x)
        x = keras.layers.BatchNormalization(momentum=0.9)(x)
        x = keras.layers.Activation("swish")(x)
    return keras.Model(inputs, keras.layers.Dense(10, kernel_initializer=next(init))(keras.layers.Flatten()(x)))


def loss() -> Any:
    """Cross-entropy of the logits against the digit."""
    import keras

    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


SCENARIO = Scenario(
    name="cnn-digits",
    title="small CNN with batch normalisation, 1797 handwritten digits of 8x8 pixels",
    source=(
        "scikit-learn's digits set (Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, 1998); pixels "
        "scaled to [0, 1]; fixed split"
    ),
    load=load,
    locate=locate_sklearn,
    present=sklearn_present,
    build=build,
    loss=loss,
    metric=accuracy(),
    train_size=1438,
    val_size=359,
    parameters=1922,
    epochs=10,
    batch_size=128,
    # The Hessian of this network is strongly indefinite: with more than about two iterations per step, CG follows
    # directions of almost no curvature, and single seeds jump by an order of magnitude. Not so the Gauss-Newton matrix.
    newton={
        "curvature": "gauss-newton",
        "learning_rate": 1.0,
        "tau": 0.01,
        "cg_tol": 1e-2,
        "max_iter": 20,
        "max_step": 2.0,
    },
    learning_rates={
        "adam": (0.003, 0.01, 0.03, 0.1, 0.3),
        "sgd": (0.01, 0.03, 0.1, 0.3, 1.0),
    },
)
