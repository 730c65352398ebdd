"""Holding the values of ``stop_gradient`` constant, as a Hessian product does, in finite differences too.

What passes through ``tf.stop_gradient`` (or ``keras.ops.stop_gradient``) is a constant to every derivative, but changes
with the weights when the gradient is evaluated elsewhere. ``SpectralNormalization`` and
``BatchNormalization(renorm=True)`` are defined by it. TensorFlow's own functions (moments, logsumexp), in which a stop
is an implementation detail, do not go through that name and are not held.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf


@contextmanager
def held_stops() -> Iterator[list[Any]]:
    """What ``tf.stop_gradient`` returns in eager evaluations inside, it returns in graphs that are traced later inside.

    Evaluate the function once, eagerly, then trace it. Yields the list of the values. Not for several threads at once.

    Raises:
        RuntimeError: while tracing, the function calls ``stop_gradient`` more often than it did eagerly.
    """
    original, values = tf.stop_gradient, []
    calls: Iterator[Any] = iter(())
    graph: Any = None

    def held(input: Any, name: Any = None) -> Any:
        nonlocal calls, graph
        if tf.executing_eagerly():
            values.append(original(input, name))
            return values[-1]
        here = tf.compat.v1.get_default_graph()
        if here is not graph:
            graph, calls = here, iter(values)
        value = next(calls, None)
        if value is None:
            raise RuntimeError("stop_gradient is called more often in the graph than in eager execution")
        return tf.constant(value.numpy())

    tf.stop_gradient = held
    try:
        yield values
    finally:
        tf.stop_gradient = original
