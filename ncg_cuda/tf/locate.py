"""Which layer's second derivative is wrong: every layer that a loss calls, checked on its own inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf

from .graphs import raw_variable
from .objective import RecordingScope
from .probe import NOT_TWICE, WRONG, probe


@dataclass
class _Call:
    layer: Any
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    inner: list[_Call] = field(default_factory=list)


def wrong_layers(loss_fn: Callable[[], Any], seed: int) -> list[str]:
    """The innermost layers called by ``loss_fn()`` whose own second derivative is wrong or missing, by name and class.

    Each layer is a function of its inputs and its weights, and is checked as such, with the inputs it has in the loss.
    """
    return [f"{call.layer.name} ({type(call.layer).__name__})" for call in _wrong(_record(loss_fn), seed)]


def _record(loss_fn: Callable[[], Any]) -> list[_Call]:
    """The calls of layers, the first of each layer, as a tree; runs the loss once, eagerly."""
    root = _Call(None, ((), {}))
    stack, seen = [root], set()
    original = keras.layers.Layer.__call__

    def recording(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = _Call(self, (args, kwargs))
        if id(self) not in seen:
            seen.add(id(self))
            stack[-1].inner.append(call)
        stack.append(call)
        try:
            return original(self, *args, **kwargs)
        finally:
            stack.pop()

    keras.layers.Layer.__call__ = recording
    try:
        with RecordingScope():
            loss_fn()
    finally:
        keras.layers.Layer.__call__ = original
    return root.inner


def _wrong(calls: list[_Call], seed: int) -> list[_Call]:
    out = []
    for call in calls:
        if _is_wrong(call, seed):
            # A layer is to blame for what is wrong in it and in none of the layers it calls.
            out += _wrong(call.inner, seed) or [call]
    return out


def _is_wrong(call: _Call, seed: int) -> bool:
    flat = tf.nest.flatten(call.arguments)
    trained = {
        i: tf.Variable(t)
        for i, t in enumerate(flat)
        if isinstance(t, tf.Tensor) and t.dtype in (tf.float32, tf.float64)
    }
    variables = [*trained.values(), *call.layer.trainable_variables]
    dtypes = {raw_variable(v).dtype for v in variables}
    if len(dtypes) != 1 or any(isinstance(t, tf.Tensor) and not hasattr(t, "numpy") for t in flat):
        return False
    options = {"training": True} if getattr(call.layer, "_call_has_training_arg", False) else {}

    def loss_fn() -> Any:
        values = [tf.convert_to_tensor(trained[i]) if i in trained else t for i, t in enumerate(flat)]
        args, kwargs = tf.nest.pack_sequence_as(call.arguments, values)
        y = call.layer(*args, **{**options, **kwargs})
        tensors = [tf.convert_to_tensor(t) for t in tf.nest.flatten(y)]
        y = tf.concat([tf.reshape(t, [-1]) for t in tensors if t.dtype.is_floating], 0)
        weights = 1.0 + 0.5 * tf.sin(tf.range(tf.cast(tf.size(y), y.dtype), dtype=y.dtype))
        # Neither linear nor quadratic in the outputs, so that every part of the layer's second derivative counts.
        return tf.reduce_mean(weights * (0.5 * tf.square(y) + tf.math.softplus(y)))

    try:
        found = probe(loss_fn, variables, seed)
    except ValueError:
        return False
    return any(f.verdict in (WRONG, NOT_TWICE) for f in found.findings)
