"""Second derivatives that TensorFlow lacks or has wrong, where an exact one is simple.

Most operations here are linear in the gradient they are given, so that their derivative is the forward operation.
Where TensorFlow has no gradient registered, ours is registered: programs that failed now work, nothing else changes.
Where TensorFlow has one registered (or has registered that there is none), ours is used by the library alone: those
operations, one by one, carry its name in ``_gradient_op_type`` while the second backward pass is built
(:func:`applied`). An operation inside a nested function cannot be reached that way, and is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2

from . import moments

Mark = tuple[Any, str]
"""An operation, and the name of the gradient that it is to have."""

_ATTRIBUTE = "_gradient_op_type"
LOCAL: dict[str, str] = {}
"""Operation types with a gradient for this library alone, and its name."""


def _everywhere(kind: str) -> Callable[[Any], Any]:
    """Register a gradient for an operation that has none; one that somebody else registered is left as it is."""

    def register(function: Any) -> Any:
        with suppress(KeyError):
            tf.RegisterGradient(kind)(function)
        return function

    return register


def _here(kind: str) -> Callable[[Any], Any]:
    """Register a gradient that only operations marked by this library use."""

    def register(function: Any) -> Any:
        LOCAL[kind] = f"NcgCuda{kind}"
        return tf.RegisterGradient(LOCAL[kind])(function)

    return register


def find(path: Iterable[Any]) -> list[Mark]:
    """The operations among ``path`` (those between the weights and the gradient) that need a gradient of ours.

    Raises:
        ValueError: moments in a nested function; see :func:`ncg_cuda.tf.moments.find_stops`.
    """
    path = list(path)
    return [(op, moments.PASS_THROUGH) for op in moments.find_stops(path)] + find_local(path)


def find_local(path: Iterable[Any]) -> list[Mark]:
    """As :func:`find`, but for the stops in moments: for derivatives to which they make no difference."""
    path = list(path)
    between = {id(op) for op in path}
    return [(op, LOCAL[op.type]) for op in path if op.type in LOCAL and _concerned(op, between)]


def _concerned(op: Any, path: set[int]) -> bool:
    # Cross entropy: TensorFlow's is exact unless the labels depend on the weights.
    return op.type != "SoftmaxCrossEntropyWithLogits" or id(op.inputs[1].op) in path


@contextmanager
def applied(marks: Sequence[Mark]) -> Iterator[None]:
    """While active, ``tf.gradients`` uses the gradients of ours."""
    set_here = [(op, name) for op, name in marks if not _has_gradient(op)]
    apply(set_here)
    try:
        yield
    finally:
        for op, _ in set_here:
            op._clear_attr(_ATTRIBUTE)


def apply(marks: Sequence[Mark]) -> None:
    """Use the gradients of ours for good: for a graph that nobody else differentiates."""
    for op, name in marks:
        op._set_attr(_ATTRIBUTE, attr_value_pb2.AttrValue(s=name.encode()))


def _has_gradient(op: Any) -> bool:
    try:
        op.get_attr(_ATTRIBUTE)
    except ValueError:
        return False
    return True


def _size(images: Any) -> Any:
    return tf.shape(images)[1:3]


def _resize(forward: Any) -> Callable[[Any, Any], Any]:
    def gradient(op: Any, v: Any) -> Any:
        back = forward(
            images=v,
            size=_size(op.inputs[0]),
            align_corners=op.get_attr("align_corners"),
            half_pixel_centers=op.get_attr("half_pixel_centers"),
        )
        return tf.cast(back, op.inputs[0].dtype), None

    return gradient


_here("ResizeBilinearGrad")(_resize(tf.raw_ops.ResizeBilinear))
_everywhere("ResizeBicubicGrad")(_resize(tf.raw_ops.ResizeBicubic))
_everywhere("ResizeNearestNeighborGrad")(_resize(tf.raw_ops.ResizeNearestNeighbor))


@_everywhere("ScaleAndTranslateGrad")
def _scale_and_translate(op: Any, v: Any) -> Any:
    back = tf.raw_ops.ScaleAndTranslate(
        images=v,
        size=_size(op.inputs[0]),
        scale=op.inputs[2],
        translation=op.inputs[3],
        kernel_type=op.get_attr("kernel_type").decode(),
        antialias=op.get_attr("antialias"),
    )
    return back, None, None, None


@_everywhere("CropAndResizeGradImage")
def _crop_and_resize(op: Any, v: Any) -> Any:
    grads, boxes, box_ind, _ = op.inputs
    method = op.get_attr("method").decode()
    back = tf.raw_ops.CropAndResize(image=v, boxes=boxes, box_ind=box_ind, crop_size=_size(grads), method=method)
    of_boxes = tf.raw_ops.CropAndResizeGradBoxes(grads=grads, image=v, boxes=boxes, box_ind=box_ind)
    return back, of_boxes, None, None


@_everywhere("SoftsignGrad")
def _softsign(op: Any, v: Any) -> Any:
    g, x = op.inputs
    n = 1.0 + tf.abs(x)
    return v / n**2, -2.0 * v * g * tf.sign(x) / n**3


@_everywhere("LRNGrad")
def _local_response_normalization(op: Any, v: Any) -> Any:
    """Of g n^-b - 2ab x W(g x n^(-b-1)) with n = bias + a W(x²) and W the sum over a window of channels."""
    radius, bias, alpha, beta = (op.get_attr(k) for k in ("depth_radius", "bias", "alpha", "beta"))
    channels = tf.shape(op.inputs[1])[-1]

    def window(t: Any) -> Any:
        padded = tf.pad(t, [[0, 0]] * 3 + [[radius, radius]])
        return tf.add_n([padded[..., i : i + channels] for i in range(2 * radius + 1)])

    g, x = (tf.identity(t) for t in op.inputs[:2])
    n = bias + alpha * window(tf.square(x))
    first = g * n**-beta - 2.0 * alpha * beta * x * window(g * x * n ** (-beta - 1.0))
    # The third input, the layer's output, is a function of x, too: it is not used here, so it has no part.
    return (*tf.gradients(first, [g, x], grad_ys=v), None)


@_everywhere("MaxPoolGradWithArgmax")
def _max_pool_with_argmax(op: Any, v: Any) -> Any:
    x, _, argmax = op.inputs
    if not op.get_attr("include_batch_in_index"):
        one = tf.cast(tf.reduce_prod(tf.shape(x)[1:]), argmax.dtype)
        argmax += tf.reshape(tf.range(tf.cast(tf.shape(x)[0], argmax.dtype)) * one, [-1, 1, 1, 1])
    return None, tf.gather(tf.reshape(v, [-1]), argmax), None


@_here("SparseAddGrad")
def _sparse_add(op: Any, of_a: Any, of_b: Any) -> Any:
    _, a, b, total = op.inputs
    shape = tf.reduce_max(total, 0) + 1
    # A threshold of 0 keeps every entry, so the sum has the entries, in the order, of the first sum.
    return (
        tf.raw_ops.SparseAdd(
            a_indices=a,
            a_values=of_a,
            a_shape=shape,
            b_indices=b,
            b_values=of_b,
            b_shape=shape,
            thresh=tf.zeros([], of_a.dtype.real_dtype),
        ).sum_values,
        None,
        None,
        None,
    )


@_everywhere("SparseFillEmptyRowsGrad")
def _sparse_fill_empty_rows(op: Any, of_values: Any, of_default: Any) -> Any:
    where, grad = op.inputs
    return None, tf.tensor_scatter_nd_update(tf.fill(tf.shape(grad), of_default), where[:, tf.newaxis], of_values)


def _sparse_segment(forward: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def full(op: Any, v: Any) -> Any:
        grad, indices, segments, _ = op.inputs
        rows = tf.shape(grad)[0]
        return forward(data=v, indices=indices, segment_ids=segments, num_segments=rows), None, None, None

    def compact(op: Any, v: Any, _: Any) -> Any:
        grad, indices, segments, _ = op.inputs
        places = tf.searchsorted(op.outputs[1], indices)
        rows = tf.shape(grad)[0]
        return forward(data=v, indices=places, segment_ids=segments, num_segments=rows), None, None, None

    return full, compact


for _kind in ("Sum", "Mean", "SqrtN"):
    _full, _compact = _sparse_segment(getattr(tf.raw_ops, f"SparseSegment{_kind}WithNumSegments"))
    _everywhere(f"SparseSegment{_kind}Grad")(_full)
    _everywhere(f"SparseSegment{_kind}GradV2")(_compact)


@_here("SoftmaxCrossEntropyWithLogits")
def _softmax_cross_entropy(op: Any, of_loss: Any, of_gradient: Any) -> Any:
    """TensorFlow's, with the derivative of its gradient (softmax - labels) in the labels, which TensorFlow omits."""
    logits, labels = op.inputs
    softmax = tf.nn.softmax(logits)
    of_loss = of_loss[:, tf.newaxis]
    of_logits = of_loss * op.outputs[1] + softmax * (
        of_gradient - tf.reduce_sum(of_gradient * softmax, 1, keepdims=True)
    )
    return of_logits, tf.zeros_like(labels) - of_loss * tf.nn.log_softmax(logits) - of_gradient
