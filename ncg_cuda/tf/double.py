"""A copy of a Keras model that computes in float64."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from .graphs import raw_variable

_FLOATS = {"float16", "bfloat16", "float32", "mixed_float16", "mixed_bfloat16"}


@contextmanager
def in_float64() -> Iterator[None]:
    """Keras layers and losses made inside compute in float64."""
    floatx, policy = keras.backend.floatx(), keras.config.dtype_policy()
    keras.backend.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        yield
    finally:
        keras.backend.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)


def double(model: Any, x: Any) -> Any:
    """A copy of the model, built, compiled with the same loss, with the same weights and state, in float64.

    Call it, and the copy, in :func:`in_float64`.

    Args:
        model: a compiled Keras model.
        x: inputs, in float64 where they are floating-point.

    Raises:
        Exception: whatever keeps the model from being copied, such as a layer that cannot be made from its config.
    """
    classes = {type(part).__name__: type(part) for part in model._flatten_layers()}
    with keras.saving.custom_object_scope(classes), keras.src.saving.serialization_lib.SafeModeScope(False):
        if hasattr(model, "_functional") or isinstance(model, keras.src.models.Functional):
            clone = keras.models.clone_model(model, clone_function=_double_layer)
        else:
            clone = type(model).from_config(_doubled(model.get_config()))
    clone(x)
    pairs = list(zip(model.variables, clone.variables, strict=True))
    for old, new in pairs:
        if old.shape != new.shape:
            raise ValueError(f"the copy's variable {new.path} has shape {new.shape}, not {old.shape}")
        raw_variable(new).assign(tf.cast(raw_variable(old), raw_variable(new).dtype))
    losses = model._compile_loss
    if losses is not None:
        clone.compile(
            loss=tf.nest.map_structure(_double_loss, losses._user_loss), loss_weights=losses._user_loss_weights
        )
    wrong = [v.path for v in clone.trainable_variables if v.dtype != "float64"]
    if wrong:
        raise ValueError(f"the copy's variable {wrong[0]} is not in float64")
    return clone


def _double_layer(layer: Any) -> Any:
    return type(layer).from_config(_doubled(layer.get_config()))


def _doubled(config: Any) -> Any:
    """A configuration with float64 in place of every other floating-point type and policy."""
    if isinstance(config, dict):
        if str(config.get("class_name", "")).endswith("DTypePolicy"):
            return "float64"
        return {
            k: "float64" if "dtype" in str(k) and isinstance(v, str) and v in _FLOATS else _doubled(v)
            for k, v in config.items()
            if not (k == "dtype" and v is None)
        }
    if isinstance(config, (list, tuple)):
        return type(config)(_doubled(v) for v in config)
    return config


def _double_loss(loss: Any) -> Any:
    if not isinstance(loss, keras.losses.Loss):
        return loss
    loss = copy.copy(loss)
    loss._dtype_policy = keras.DTypePolicy("float64")
    loss._dtype = "float64"
    return loss
