"""The Keras layers of the table."""

from __future__ import annotations

from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .row import HELD, REFUSED, Row, layer

L = keras.layers
IMAGE = (2, 5, 5, 3)
SEQUENCE = (2, 4, 3)


def _conv(name: str, make: Any, shape: Any, **options: Any) -> Row:
    return Row("Convolution", name, layer(make, shape), **options)


NORMALIZATION = [
    Row("Normalization", "BatchNormalization", layer(lambda: L.BatchNormalization(), (6, 3))),
    Row("Normalization", "BatchNormalization on images", layer(lambda: L.BatchNormalization(), IMAGE)),
    Row(
        "Normalization",
        "BatchNormalization with a mask",
        layer(lambda: L.BatchNormalization(), SEQUENCE, mask=tf.constant([[True, True, True, False]] * 2)),
    ),
    Row(
        "Normalization",
        "BatchNormalization(renorm=True)",
        layer(lambda: L.BatchNormalization(renorm=True), (6, 3)),
        HELD,
    ),
    Row("Normalization", "LayerNormalization", layer(lambda: L.LayerNormalization(), (4, 5))),
    Row("Normalization", "LayerNormalization(axis=[1, 2])", layer(lambda: L.LayerNormalization(axis=[1, 2]), SEQUENCE)),
    Row("Normalization", "GroupNormalization", layer(lambda: L.GroupNormalization(2), (2, 3, 3, 4))),
    Row("Normalization", "GroupNormalization(groups=-1)", layer(lambda: L.GroupNormalization(-1), (2, 3, 3, 4))),
    Row("Normalization", "RMSNormalization", layer(lambda: L.RMSNormalization(), (4, 5))),
    Row("Normalization", "UnitNormalization", layer(lambda: L.UnitNormalization(), (4, 5))),
    Row("Normalization", "SpectralNormalization", layer(lambda: L.SpectralNormalization(L.Dense(4)), (3, 5)), HELD),
    Row("Normalization", "Normalization", layer(lambda: L.Normalization(mean=[1.0, 0.0], variance=[2.0, 3.0]), (3, 2))),
]

CONVOLUTION = [
    _conv("Conv1D", lambda: L.Conv1D(3, 2), SEQUENCE),
    _conv("Conv1D(padding='causal')", lambda: L.Conv1D(3, 2, padding="causal"), SEQUENCE),
    _conv("Conv2D", lambda: L.Conv2D(3, 3), IMAGE),
    _conv("Conv2D(strides=2, padding='same')", lambda: L.Conv2D(3, 3, strides=2, padding="same"), IMAGE),
    _conv("Conv2D(dilation_rate=2)", lambda: L.Conv2D(3, 2, dilation_rate=2), IMAGE),
    _conv("Conv2D(groups=2)", lambda: L.Conv2D(4, 2, groups=2), (2, 4, 4, 4)),
    _conv("Conv3D", lambda: L.Conv3D(2, 2), (1, 3, 3, 3, 2)),
    _conv("DepthwiseConv1D", lambda: L.DepthwiseConv1D(2), SEQUENCE),
    _conv("DepthwiseConv2D", lambda: L.DepthwiseConv2D(2, depth_multiplier=2), IMAGE),
    _conv("SeparableConv1D", lambda: L.SeparableConv1D(3, 2), SEQUENCE),
    _conv("SeparableConv2D", lambda: L.SeparableConv2D(3, 2), IMAGE),
    _conv("Conv1DTranspose", lambda: L.Conv1DTranspose(3, 2, strides=2), SEQUENCE),
    _conv("Conv2DTranspose", lambda: L.Conv2DTranspose(2, 3, strides=2), (1, 3, 3, 2)),
    _conv("Conv3DTranspose", lambda: L.Conv3DTranspose(2, 2), (1, 2, 2, 2, 2)),
]

POOLING = [
    *(
        Row("Pooling", f"{kind}{d}D", layer(partial(getattr(L, f"{kind}{d}D"), 2), (2, *[6 - d] * d, 2)))
        for kind in ("MaxPooling", "AveragePooling")
        for d in (1, 2)
    ),
    Row("Pooling", "MaxPooling3D", layer(lambda: L.MaxPooling3D(2, dtype="float32"), (2, 4, 4, 4, 2)), single=True),
    Row(
        "Pooling",
        "AveragePooling3D",
        layer(lambda: L.AveragePooling3D(2, dtype="float32"), (2, 4, 4, 4, 2)),
        single=True,
    ),
    Row("Pooling", "AveragePooling2D(padding='same')", layer(lambda: L.AveragePooling2D(2, padding="same"), IMAGE)),
    *(
        Row("Pooling", f"{kind}{d}D", layer(getattr(L, f"{kind}{d}D"), (2, *[4] * d, 2)))
        for kind in ("GlobalMaxPooling", "GlobalAveragePooling")
        for d in (1, 2, 3)
    ),
    Row("Pooling", "AdaptiveAveragePooling2D", layer(lambda: L.AdaptiveAveragePooling2D(2), IMAGE)),
    Row("Pooling", "AdaptiveMaxPooling2D", layer(lambda: L.AdaptiveMaxPooling2D(2), IMAGE)),
]

RECURRENT = [
    Row("Recurrent", "SimpleRNN", layer(lambda: L.SimpleRNN(3), SEQUENCE)),
    Row("Recurrent", "LSTM", layer(lambda: L.LSTM(3), SEQUENCE)),
    Row(
        "Recurrent",
        "LSTM(return_sequences=True, unroll=True)",
        layer(lambda: L.LSTM(2, return_sequences=True, unroll=True), SEQUENCE),
    ),
    Row(
        "Recurrent",
        "LSTM with a mask",
        layer(lambda: L.LSTM(3), SEQUENCE, mask=tf.constant([[True, True, True, False]] * 2)),
    ),
    Row("Recurrent", "GRU", layer(lambda: L.GRU(3), SEQUENCE)),
    Row("Recurrent", "GRU(reset_after=False)", layer(lambda: L.GRU(3, reset_after=False), SEQUENCE)),
    Row("Recurrent", "RNN(StackedRNNCells)", layer(lambda: L.RNN([L.LSTMCell(2), L.GRUCell(2)]), SEQUENCE)),
    Row("Recurrent", "Bidirectional(LSTM)", layer(lambda: L.Bidirectional(L.LSTM(2)), SEQUENCE)),
    Row("Recurrent", "ConvLSTM1D", layer(lambda: L.ConvLSTM1D(2, 2), (2, 3, 4, 2))),
    Row("Recurrent", "ConvLSTM2D", layer(lambda: L.ConvLSTM2D(2, 2), (1, 3, 3, 3, 2))),
    Row(
        "Recurrent",
        "LSTM(dropout=0.3, recurrent_dropout=0.3)",
        layer(lambda: L.LSTM(3, dropout=0.3, recurrent_dropout=0.3), SEQUENCE),
    ),
    Row(
        "Recurrent", "TimeDistributed(Dense)", layer(lambda: L.TimeDistributed(L.Dense(2, activation="tanh")), SEQUENCE)
    ),
    Row(
        "Recurrent",
        "TimeDistributed(LayerNormalization)",
        layer(lambda: L.TimeDistributed(L.LayerNormalization()), SEQUENCE),
    ),
]


class Embedded(keras.layers.Layer):  # type: ignore[misc]
    """Looks up rows 0, 4, 4, 1 (a repeated one) and multiplies by the input."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = L.Embedding(6, 3)

    def call(self, x: Any) -> Any:
        return tf.tanh(self.embedding(np.array([0, 4, 4, 1])) * x)


ATTENTION = [
    Row(
        "Attention",
        "MultiHeadAttention",
        layer(lambda: L.MultiHeadAttention(2, 2), SEQUENCE, value=tf.constant(np.ones(SEQUENCE) / 3)),
    ),
    Row(
        "Attention",
        "MultiHeadAttention, causal",
        layer(lambda: SelfAttention(L.MultiHeadAttention(2, 2), use_causal_mask=True), SEQUENCE),
    ),
    Row(
        "Attention",
        "MultiHeadAttention(dropout=0.3)",
        layer(lambda: SelfAttention(L.MultiHeadAttention(2, 2, dropout=0.3)), SEQUENCE),
    ),
    Row(
        "Attention",
        "MultiHeadAttention(flash_attention=False)",
        layer(lambda: SelfAttention(L.MultiHeadAttention(2, 2, flash_attention=False)), SEQUENCE),
    ),
    Row("Attention", "GroupedQueryAttention", layer(lambda: SelfAttention(L.GroupQueryAttention(2, 4, 2)), SEQUENCE)),
    Row("Attention", "Attention", layer(lambda: L.Attention(use_scale=True), SEQUENCE, SEQUENCE)),
    Row("Attention", "AdditiveAttention", layer(lambda: L.AdditiveAttention(), SEQUENCE, SEQUENCE)),
    Row("Attention", "Embedding", layer(Embedded, (4, 3))),
]


class Rematerialized(keras.layers.Layer):  # type: ignore[misc]
    """A dense layer whose outputs are computed again in the backward pass."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.dense = L.Dense(units, activation="tanh")

    def build(self, shape: Any) -> None:
        self.dense.build(shape)

    def call(self, x: Any) -> Any:
        return keras.remat(self.dense.call)(x)


class SelfAttention(keras.layers.Layer):  # type: ignore[misc]
    """Attention of a sequence to itself."""

    def __init__(self, attention: Any, **call: Any) -> None:
        super().__init__()
        self.attention, self.options = attention, call

    def call(self, x: Any) -> Any:
        return self.attention(x, x, **self.options)


def _activation(name: str) -> Row:
    return Row("Activations", name, layer(partial(L.Activation, name), (4, 5)))


_SMOOTH_AND_KINKED = [
    "celu",
    "elu",
    "exponential",
    "gelu",
    "hard_sigmoid",
    "hard_shrink",
    "hard_swish",
    "hard_tanh",
    "leaky_relu",
    "linear",
    "log_sigmoid",
    "log_softmax",
    "mish",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "soft_shrink",
    "softmax",
    "softplus",
    "softsign",
    "sparse_plus",
    "sparse_sigmoid",
    "squareplus",
    "tanh",
    "tanh_shrink",
]

ACTIVATIONS = [
    *(_activation(name) for name in _SMOOTH_AND_KINKED),
    Row("Activations", "glu", layer(lambda: L.Activation("glu"), (4, 6))),
    Row("Activations", "sparsemax", layer(lambda: L.Activation("sparsemax"), (4, 5))),
    Row("Activations", "PReLU", layer(lambda: L.PReLU("uniform"), (4, 5))),
    Row("Activations", "LeakyReLU", layer(lambda: L.LeakyReLU(0.2), (4, 5))),
    Row("Activations", "ELU", layer(lambda: L.ELU(), (4, 5))),
    Row(
        "Activations",
        "Softmax with a mask",
        layer(lambda: L.Softmax(), (2, 3), mask=tf.constant([[True, True, False]] * 2)),
    ),
]

RESHAPING = [
    Row(
        "Resizing and reshaping",
        f"UpSampling2D('{how}')",
        layer(partial(L.UpSampling2D, (2, 3), interpolation=how, dtype="float32"), (1, 3, 4, 2)),
        single=True,
    )
    for how in ("bilinear", "bicubic", "lanczos3", "lanczos5")
] + [
    Row("Resizing and reshaping", "UpSampling2D('nearest')", layer(lambda: L.UpSampling2D((2, 3)), (1, 3, 4, 2))),
    Row("Resizing and reshaping", "UpSampling1D", layer(lambda: L.UpSampling1D(2), SEQUENCE)),
    Row("Resizing and reshaping", "UpSampling3D", layer(lambda: L.UpSampling3D(2), (1, 2, 2, 2, 2))),
    Row(
        "Resizing and reshaping",
        "Resizing",
        layer(lambda: L.Resizing(3, 7, dtype="float32"), (1, 4, 5, 2)),
        single=True,
    ),
    Row(
        "Resizing and reshaping",
        "Resizing('nearest')",
        layer(lambda: L.Resizing(3, 7, interpolation="nearest"), (1, 4, 5, 2)),
    ),
    Row(
        "Resizing and reshaping",
        "ZeroPadding2D, Cropping2D",
        layer(lambda: keras.Sequential([L.ZeroPadding2D(2), L.Cropping2D(1)]), IMAGE),
    ),
    Row(
        "Resizing and reshaping",
        "Reshape, Permute, Flatten",
        layer(lambda: keras.Sequential([L.Reshape((3, 4)), L.Permute((2, 1)), L.Flatten()]), SEQUENCE),
    ),
    Row("Resizing and reshaping", "RepeatVector", layer(lambda: L.RepeatVector(3), (2, 3))),
    Row(
        "Resizing and reshaping",
        "Rescaling, CenterCrop",
        layer(lambda: keras.Sequential([L.Rescaling(0.5, 0.125), L.CenterCrop(3, 3)]), IMAGE),
    ),
]

CORE = [
    Row("Core and regularization", "Dense", layer(lambda: L.Dense(4, activation="tanh"), (3, 5))),
    Row(
        "Core and regularization",
        "EinsumDense",
        layer(lambda: L.EinsumDense("abc,cd->abd", output_shape=(None, 4), bias_axes="d"), SEQUENCE),
    ),
    Row(
        "Core and regularization",
        "L1, L2, L1L2 and orthogonal regularizers",
        layer(
            lambda: keras.Sequential(
                [
                    L.Dense(4, activation="tanh", kernel_regularizer="l2", bias_regularizer="l1"),
                    L.Dense(3, kernel_regularizer=keras.regularizers.L1L2(0.125, 0.25), activity_regularizer="l2"),
                    L.Dense(3, kernel_regularizer=keras.regularizers.OrthogonalRegularizer(0.125)),
                ]
            ),
            (3, 5),
        ),
    ),
    Row(
        "Core and regularization",
        "ActivityRegularization",
        layer(lambda: L.ActivityRegularization(l1=0.125, l2=0.25), (3, 5)),
    ),
    Row(
        "Core and regularization",
        "kernel and bias constraints",
        layer(lambda: L.Dense(4, activation="tanh", kernel_constraint="max_norm"), (3, 5)),
    ),
    Row("Core and regularization", "Dropout", layer(lambda: L.Dropout(0.4), (4, 5))),
    Row("Core and regularization", "SpatialDropout2D", layer(lambda: L.SpatialDropout2D(0.4), IMAGE)),
    Row("Core and regularization", "AlphaDropout", layer(lambda: L.AlphaDropout(0.4), (4, 5))),
    Row("Core and regularization", "GaussianDropout", layer(lambda: L.GaussianDropout(0.4), (4, 5))),
    Row("Core and regularization", "GaussianNoise", layer(lambda: L.GaussianNoise(0.4), (4, 5))),
    Row(
        "Core and regularization",
        "keras.remat(Dense)",
        layer(lambda: Rematerialized(4), (3, 5)),
        REFUSED,
        op="recompute_grad",
    ),
    Row("Core and regularization", "Masking", layer(lambda: L.Masking(), SEQUENCE)),
]

MERGING = [
    *(
        Row("Merging", name, layer(getattr(L, name), (3, 4), (3, 4)))
        for name in ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Concatenate")
    ),
    Row("Merging", "Dot", layer(lambda: L.Dot(axes=2), SEQUENCE, SEQUENCE)),
    Row("Merging", "Dot(normalize=True)", layer(lambda: L.Dot(axes=1, normalize=True), (3, 4), (3, 4))),
]

ROWS = [*NORMALIZATION, *CONVOLUTION, *POOLING, *RECURRENT, *ATTENTION, *ACTIVATIONS, *RESHAPING, *CORE, *MERGING]
