"""Exact second derivatives through BatchNormalization, LayerNormalization and GroupNormalization.

``tf.nn.moments``, which Keras uses, computes the variance as ``mean(squared_difference(x, stop_gradient(mean(x))))``.
The stop is exact for first derivatives, because sum(x - mean) is 0, but it removes terms from second ones: products
with the Hessian come out wrong by 2 to 20 percent, without any error, and still symmetric.

The remedy leaves the forward pass, the first gradient and all other graphs alone: while the second backward pass is
built, those stops, and only those, carry a registered gradient that passes through
(:mod:`ncg_cuda.tf.second_derivatives`). Where the stops sit in a nested function (an inner ``tf.function``,
``tf.cond``, a loop), they cannot be reached: that raises an error, and :func:`exact_moments`, active while the model is
built and traced, avoids the stops in the first place.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import tensorflow as tf

from .graphs import calling_scope, nested_functions

PASS_THROUGH = "NcgCudaPassThrough"
"""The name of the gradient that a stop inside moments is to have."""


@tf.RegisterGradient(PASS_THROUGH)  # type: ignore[untyped-decorator]
def _pass_through_gradient(op: Any, gradient: Any) -> Any:
    del op
    return gradient


def _is_moments_stop(op: Any) -> bool:
    mean = op.inputs[0].op
    if mean.type != "Mean":
        return False
    of = mean.inputs[0]
    users = op.outputs[0].consumers()
    return any(user.type == "SquaredDifference" and any(i is of for i in user.inputs) for user in users)


def _holds_stop(function: Any) -> bool:
    nodes = {node.name: node for node in function.node_def}
    for node in function.node_def:
        if node.op != "SquaredDifference":
            continue
        inputs = [i.split(":")[0] for i in node.input]
        for name in inputs:
            stop = nodes.get(name)
            if stop is None or stop.op != "StopGradient":
                continue
            mean = nodes.get(stop.input[0].split(":")[0])
            if mean is not None and mean.op == "Mean" and mean.input[0] in node.input:
                return True
    return False


def find_stops(ops: Iterable[Any]) -> list[Any]:
    """The stops inside moments among the operations.

    Raises:
        ValueError: such a stop sits in a nested function.
    """
    ops = list(ops)
    nested = [f.signature.name for f in nested_functions(ops) if _holds_stop(f)]
    if nested:
        shown = ", ".join(nested[:3]) + (f" and {len(nested) - 3} more" if len(nested) > 3 else "")
        raise ValueError(
            "A normalization layer (or tf.nn.moments) is computed inside a nested function "
            f"({shown}{calling_scope(ops, nested[0])}), where the second derivative of TensorFlow's moments is wrong "
            "and cannot be corrected from outside. For Keras layers: build and train (or differentiate) the model "
            "inside `with ncg_cuda.tf.exact_moments():`. For tf.nn.moments: compute mean(x) and "
            "mean((x - mean(x))**2) instead. Or move it out of the inner tf.function, tf.cond or loop."
        )
    return [op for op in ops if op.type == "StopGradient" and _is_moments_stop(op)]


_active: ContextVar[bool] = ContextVar("ncg_cuda_exact_moments", default=False)
_lock = threading.Lock()
_users = 0
_original: Any = None


@contextmanager
def exact_moments() -> Iterator[None]:
    """Normalization layers traced inside this context are exact to every order.

    Needed only where a layer's moments are computed inside a nested function (the error says so); otherwise Hessian
    products are exact without it. The context must be active whenever the model is *traced*: around its construction
    and around the first ``fit`` or call. It replaces the Keras function that computes moments by one without
    ``stop_gradient``, for this thread (and context) only, and puts it back at the end. The values and the first
    gradient are the same to rounding.
    """
    _install()
    token = _active.set(True)
    try:
        yield
    finally:
        _active.reset(token)
        _remove()


def _keras_moments() -> tuple[Any, str]:
    import keras

    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(f"Keras runs on the {keras.backend.backend()!r} backend; set KERAS_BACKEND=tensorflow")
    from keras.src.backend.tensorflow import nn

    for name in ("_compute_moments", "_compute_moments_sync"):
        if not hasattr(nn, name):
            raise RuntimeError(
                f"This Keras ({keras.__version__}) has no {name}: exact_moments() knows Keras 3.8 to 3.15"
            )
    return nn, "_compute_moments"


def _install() -> None:
    global _users, _original
    module, name = _keras_moments()
    with _lock:
        if _users == 0:
            original = _original = getattr(module, name)

            def moments(x: Any, axes: Any, keepdims: bool = False) -> Any:
                return _moments(x, axes, keepdims) if _active.get() else original(x, axes, keepdims)

            setattr(module, name, moments)
        _users += 1


def _remove() -> None:
    global _users
    module, name = _keras_moments()
    with _lock:
        _users -= 1
        if _users == 0:
            setattr(module, name, _original)


def _moments(x: Any, axes: Any, keepdims: bool) -> tuple[Any, Any]:
    mean = tf.reduce_mean(x, axes, keepdims=True)
    variance = tf.reduce_mean(tf.math.squared_difference(x, mean), axes, keepdims=True)
    if keepdims:
        return mean, variance
    return tf.squeeze(mean, axes), tf.squeeze(variance, axes)
