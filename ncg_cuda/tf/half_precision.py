"""Products of models that compute in float16 (``mixed_float16``), kept in float16's range.

Normal float16 numbers lie between 6e-5 and 65504; what is smaller loses digits, then vanishes. A product is linear in
its direction s, so each of its passes may run on a vector scaled by a power of two, undone in float32:

- s is brought to a norm near 1 before it is cast to float16. For a Hessian, s meets float16 behind the division by the
  gradient's loss scale, which is measured, once per linearisation, and counted in.
- What a loss hands back to the model, as derivative or as second derivative, is brought near :data:`_ADJOINT`; what is
  between the casts to float32 is the loss's own business. Where the gradient brings a loss scale of its own, second
  derivatives have it, too: s is then made smaller or larger, so that both fit.
- A product that overflows nevertheless is repeated on a smaller vector, :data:`_ATTEMPTS` times at most.

What remains is float16's rounding, 2⁻¹¹ in each operation. Models without float16 are left alone. bfloat16 has the
range of float32. Source of loss scaling: Micikevicius et al., "Mixed precision training" (ICLR 2018).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from .graphs import ancestors, in_xla, nested_functions
from .scaling import power_of_two_for, times

_ADJOINT = 2.0**4
"""The size that derivatives at the outputs are brought to: see :func:`_peak` for what size means."""
_ADJOINT_MOST = 2.0**10
"""The size up to which they are left as a given loss scale makes them."""
_TARGETS = (2.0**-14, 2.0**8)
"""Between which sizes s is scaled to suit a given loss scale."""
_ATTEMPTS = 4
_SMALLER = 2.0**-5
"""The factor from one attempt to the next."""


def uses_half(ops: Iterable[Any]) -> bool:
    """Whether any of the operations, or of the functions that they call, has a float16 result."""
    ops = list(ops)
    half = tf.float16.as_datatype_enum
    return any(t.dtype == tf.float16 for op in ops for t in op.outputs) or any(
        value.type == half for f in nested_functions(ops) for node in f.node_def for value in node.attr.values()
    )


def boundary(tensors: Sequence[Any]) -> list[Any]:
    """Where float16 ends on the way to the tensors: the nearest ones that were cast from it, or are it."""
    out: list[Any] = []
    seen: set[int] = set()
    pending = list(tensors)
    while pending:
        t = outside(pending.pop())
        if id(t) in seen or not hasattr(t, "graph") or isinstance(t, tf.__internal__.EagerTensor):
            continue
        seen.add(id(t))
        if t.dtype == tf.float16 or (t.op.type == "Cast" and t.op.inputs[0].dtype == tf.float16):
            out.append(t)
        else:
            pending.extend(i for i in t.op.inputs if i.dtype.is_floating)
    return out


def outside(tensor: Any) -> Any:
    """The tensor itself; where a nested graph captured it, the tensor of the outer graph."""
    while getattr(tensor, "op", None) is not None and tensor.op.type == "Placeholder":
        captures = getattr(tensor.op.graph, "captures", ())
        outer = next((o for o, inside in captures if inside is tensor), None)
        if outer is None:
            break
        tensor = outer
    return tensor


def cast_outputs(loss: Any, outputs: Sequence[Any]) -> list[Any]:
    """The outputs, with those in float16 that the loss casts to float32, and uses no otherwise, in float32."""
    casts = [t for t in boundary([loss]) if t.op.type == "Cast"]
    out = []
    for z in outputs:
        mine = [t for t in casts if outside(t.op.inputs[0]) is z]
        whole = z.dtype == tf.float16 and mine and tf.gradients(loss, z, stop_gradients=mine)[0] is None
        out.extend(mine if whole else [z])
    return out


def sources(outputs: Sequence[Any]) -> list[Any]:
    """The float16 tensors that :func:`cast_outputs` replaced."""
    casts = [z.op.inputs[0] for z in outputs if z.op.type == "Cast" and z.op.inputs[0].dtype == tf.float16]
    return [outside(t) for t in casts]


@dataclass(frozen=True)
class LossSide:
    """How large the derivatives are that a loss hands to a model in float16; float64 scalars, see :func:`_peak`."""

    first: Any
    second: Any
    """None where the loss is linear, or has no second derivative."""

    @classmethod
    def of(cls, loss: Any) -> LossSide:
        """Measure them; costs two backward passes through the loss alone."""
        at = boundary([loss])
        if not at:  # float16 is inside of a function: only the loss itself can be seen
            return cls(tf.ones((), tf.float64), None)
        slopes = tf.gradients(loss, at, stop_gradients=at)
        pairs = [(tf.convert_to_tensor(d), t) for d, t in zip(slopes, at, strict=True) if d is not None]
        if not pairs:  # nothing in float16 that the loss depends on
            return cls(tf.ones((), tf.float64), None)
        bends: list[Any] = []
        with suppress(LookupError, NotImplementedError):  # no second derivative: whoever needs it will say so
            bends = tf.gradients([d for d, _ in pairs], at, grad_ys=[_signs(t) for _, t in pairs], stop_gradients=at)
        known = [tf.convert_to_tensor(b) for b in bends if b is not None]
        return cls(_peak([d for d, _ in pairs], 0.5), _peak(known, 0.5) if known else None)

    @property
    def scale(self) -> Any:
        """A loss scale for a gradient that is to be differentiated again, a constant for TensorFlow."""
        size = self.first if self.second is None else tf.maximum(self.first, self.second)
        return tf.stop_gradient(power_of_two_for(size, tf.float32) * _ADJOINT)


def scaled_gradients(loss: Any, differentiate: Callable[[Any], Sequence[Any]]) -> list[Any]:
    """``differentiate(grad_ys)``, the gradients of the loss, in float16's range where they run through it.

    Args:
        loss: a scalar tensor.
        differentiate: gets the loss's own derivative (None for 1) and returns one tensor or None per variable.
    """
    if not uses_half(ancestors([loss])):
        return list(differentiate(None))
    scale = _fitting(LossSide.of(loss).scale, loss.dtype)
    parts = differentiate(tf.cast(scale, loss.dtype) * tf.ones_like(loss))
    return [None if g is None else times([tf.convert_to_tensor(g)], 1.0 / scale)[0] for g in parts]


def target(gradients: Sequence[Any], loss: Any = None) -> Any:
    """What to scale the norm of a direction s to, before it goes backward through the gradients; a float64 scalar.

    Args:
        gradients: what the Hessian is the derivative of: in float32, of any loss scale.
        loss: the loss that they belong to, if it is known: only to measure how large its derivatives are.
    """
    at = boundary(gradients)
    parts = tf.gradients(gradients, at, grad_ys=[tf.ones_like(g) for g in gradients], stop_gradients=at)
    known = [tf.convert_to_tensor(p) for p in parts if p is not None]
    if not known:
        return tf.ones((), tf.float64)
    # By what s is divided before it meets float16: the loss scale.
    divisor = 1.0 / _peak(known, 0.0)
    second = None if loss is None else LossSide.of(loss).second
    adjoint = divisor if second is None else divisor * second
    wanted = tf.maximum(tf.minimum(tf.ones((), tf.float64), _ADJOINT_MOST / adjoint), _ADJOINT / adjoint)
    wanted = tf.where(tf.math.is_finite(wanted), tf.clip_by_value(wanted, *_TARGETS), 1.0)
    return tf.stop_gradient(tf.where(tf.math.is_finite(divisor), wanted * divisor, 1.0))


def in_range(product: Callable[[list[Any], Any], Sequence[Any]], vectors: Sequence[Any], size: Any = 1.0) -> list[Any]:
    """The product of a linear map, part of which runs in float16.

    Args:
        product: product(s, room) with s in range; room, a float64 scalar, is 1, and smaller where that overflowed.
        vectors: the direction, one float32 tensor per variable.
        size: what to scale its norm to.
    """
    start = power_of_two_for(_peak(vectors, 0.25) / size, vectors[0].dtype)

    def attempt(room: Any) -> list[Any]:
        out = times(product(times(vectors, start * room), room), 1.0 / (start * room))
        for t, v in zip(out, vectors, strict=True):
            t.set_shape(v.shape)
        return out

    first = tf.ones((), tf.float64)
    if in_xla():  # its loops on a CPU run convolutions very slowly
        return attempt(first)

    def again(i: Any, room: Any, *out: Any) -> Any:
        del room
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(t)) for t in out])
        return (i == 0) | ((i < _ATTEMPTS) & ~finite)

    def body(i: Any, room: Any, *_: Any) -> Any:
        return (i + 1, room * _SMALLER, *attempt(room))

    zeros = [tf.zeros_like(v) for v in vectors]
    return list(tf.while_loop(again, body, (tf.constant(0), first, *zeros), parallel_iterations=1)[2:])


def adjoint(tensors: Sequence[Any], room: Any) -> tuple[list[Any], Any]:
    """Tensors at the outputs, in range for the way back through the model, and the factor that they were given."""
    factor = power_of_two_for(_peak(tensors, 0.5), tf.float32) * _ADJOINT * room
    for t in tensors:
        factor = _fitting(factor, t.dtype)
    return times(tensors, factor), factor


def _fitting(factor: Any, dtype: Any) -> Any:
    """The factor, or the nearest one that is a normal number of the dtype."""
    limit = 2.0 ** float(np.finfo(dtype.as_numpy_dtype).maxexp - 2)
    return tf.clip_by_value(factor, 1.0 / limit, limit)


def _peak(tensors: Sequence[Any], power: float) -> Any:
    """The largest magnitude times n**power for n elements, a float64 scalar.

    With 1/4, the geometric mean of the least and largest 2-norm that vectors of this largest magnitude can have; with
    1/2, the same of the 1-norm, which bounds a sum over examples. It needs one pass and cannot overflow.
    """
    sizes = [tf.cast(tf.size(t, out_type=tf.int64), tf.float64) for t in tensors]
    peaks = [tf.cast(tf.reduce_max(tf.abs(t)), tf.float64) for t in tensors if t.shape.num_elements() != 0]
    return tf.reduce_max(tf.stack(peaks)) * tf.add_n(sizes) ** power


def _signs(tensor: Any) -> Any:
    """1, -1, 1, ...: not a constant, which the second derivative of a cross-entropy does not see."""
    signs = 1 - 2 * (tf.range(tf.size(tensor)) % 2)
    return tf.cast(tf.reshape(signs, tf.shape(tensor)), tensor.dtype)
