"""Where a Keras model ends and its loss begins: the tensors z that Gauss-Newton and Fisher matrices are taken at."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from .graphs import ancestors, depending_on

_ACTIVATIONS = ("Softmax", "Sigmoid")


def outputs_of(y_pred: Any) -> list[Any]:
    """The tensors that a loss may have been computed from: each output, and the logits behind a softmax or sigmoid.

    Keras computes cross-entropy from the logits where it finds them (``_keras_logits``, or the activation's input);
    whoever takes these as outputs keeps those that the loss depends on directly.

    Args:
        y_pred: what the model returned, a tensor or any nest of tensors.

    Returns:
        Floating-point tensors.
    """
    found = []
    for output in tf.nest.flatten(y_pred):
        if not (tf.is_tensor(output) and output.dtype.is_floating):
            continue
        found.append(output)
        logits = getattr(output, "_keras_logits", None)
        if logits is not None:
            found.append(logits)
        if output.op.type in _ACTIVATIONS:
            found.append(output.op.inputs[0])
    return found


def local_copy(batch: Any) -> Any:
    """The tensors of a nest in the graph under construction, with what Keras's losses look for on them: a mask, the
    logits.
    """

    def copy(t: Any) -> Any:
        if not tf.is_tensor(t):
            return t
        out = tf.identity(t)
        logits = getattr(t, "_keras_logits", None)
        if logits is None and t.op.type in _ACTIVATIONS:
            logits = t.op.inputs[0]
        if logits is not None:
            out._keras_logits = tf.identity(logits)
        if hasattr(t, "_keras_mask"):
            out._keras_mask = t._keras_mask
        return out

    return tf.nest.map_structure(copy, batch)


def part_of(batch: Any, begin: Any, count: Any) -> Any:
    """Some examples of a :func:`local_copy`."""

    def cut(t: Any) -> Any:
        if not tf.is_tensor(t) or t.shape.rank in (0, None):
            return t
        out = t[begin : begin + count]
        for name in ("_keras_mask", "_keras_logits"):
            more = getattr(t, name, None)
            if more is not None:
                setattr(out, name, more[begin : begin + count])
        return out

    return tf.nest.map_structure(cut, batch)


def expected_labels(loss: Any, y: Any, y_pred: Any) -> Any:
    """The labels that the model itself expects: its outputs, held fixed.

    A loss whose second derivative does not depend on the labels (cross-entropy from logits, whatever form its labels
    have) needs none: there, ``y`` itself is returned.

    Args:
        loss: the loss of y and y_pred.
        y: the labels, in the structure of ``y_pred``.
        y_pred: what the model returned.

    Raises:
        ValueError: labels of another shape than the outputs, and a loss that is not computed from logits.
    """
    if len(tf.nest.flatten(y)) != len(tf.nest.flatten(y_pred)):
        raise ValueError(f"{_REFUSED}; there are {len(tf.nest.flatten(y))} labels for several outputs")
    outputs = iter(tf.nest.flatten(y_pred))
    return tf.nest.map_structure(lambda label: _expected(loss, label, next(outputs)), y)


_REFUSED = (
    "curvature='fisher' replaces the labels by what the model expects, which is possible where they have the shape of "
    "the outputs, or not needed where the loss is a cross-entropy from logits. Use curvature='gauss-newton', one-hot "
    "labels, or a loss with from_logits=True"
)


def _expected(loss: Any, label: Any, output: Any) -> Any:
    if label.shape.is_compatible_with(output.shape) and label.dtype.is_floating:
        return tf.cast(tf.stop_gradient(output), label.dtype)
    # The second derivative of a cross-entropy from logits does not know the labels; that of a logarithm does.
    between = depending_on([output], ancestors([loss]))
    if any(op.type in ("Log", "Log1p") for op in between):
        raise ValueError(f"{_REFUSED}; the labels have shape {label.shape}, the output has {output.shape}")
    return label
