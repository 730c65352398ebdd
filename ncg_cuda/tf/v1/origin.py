"""Which loss the gradients given to apply_gradients belong to: they may have been averaged or clipped in between."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from ..curvature import dense
from ..graphs import ancestors, depending_on

_AMBIGUOUS = (
    "these gradients were computed from {} calls of compute_gradients and then changed by operations that are not "
    "linear (clipping), so it is not known which function the Hessian belongs to. Give the gradients as they were "
    "before clipping: apply_gradients(clipped, raw_gradients=averaged)"
)


@dataclass(frozen=True)
class Known:
    """What one call of compute_gradients knows of its loss."""

    loss: Any
    outputs: list[Any]
    fisher_loss: Any
    pairs: list[tuple[Any, Any]]

    def gradients_of(self, variables: Sequence[Any]) -> list[Any]:
        mine = {id(v): g for g, v in self.pairs}
        return [mine.get(id(v)) for v in variables]


def origin(
    calls: Sequence[Known],
    given: list[Any],
    right: list[Any],
    variables: list[Any],
    *,
    raw_gradients: Any,
    any_function: bool,
) -> tuple[list[Any], Known | None]:
    """The gradients to linearise, and the call of compute_gradients that they belong to, if it is just one.

    Args:
        calls: all calls of compute_gradients so far.
        given: the gradients given to apply_gradients.
        right: the same as dense tensors.
        variables: the variables of these.
        raw_gradients: as given to apply_gradients.
        any_function: whether gradients of no one call may be linearised, too: sums of several, say.

    Raises:
        ValueError: it is not known of which function to take the curvature.
    """
    if raw_gradients is not None:
        mine = {id(v): g for g, v in raw_gradients}
        missing = [v.name for v in variables if mine.get(id(v)) is None]
        if missing:
            raise ValueError(f"raw_gradients has no gradient for the variable {missing[0]!r}")
        given = [mine[id(v)] for v in variables]
        right = [shaped(g, v) for g, v in zip(given, variables, strict=True)]
    for known in calls:
        if all(a is b for a, b in zip(known.gradients_of(variables), given, strict=True)):
            return right, known
    above = {id(op) for op in ancestors(right)}
    sources = [k for k in calls if any(id(_tensor(g).op) in above for g, _ in k.pairs if g is not None)]
    one = sources[0] if len(sources) == 1 else None
    if raw_gradients is not None or not sources:
        return right, one
    if any_function and _is_linear(given, [g for k in sources for g, _ in k.pairs]):
        return right, one
    if one is None:
        raise ValueError(_AMBIGUOUS.format(len(sources)))
    first = one.gradients_of(variables)
    return [
        tf.zeros(v.shape, v.dtype.base_dtype) if g is None else shaped(g, v)
        for g, v in zip(first, variables, strict=True)
    ], one


def shaped(gradient: Any, variable: Any) -> Any:
    """The gradient as a dense tensor of the variable's shape, which it may not know."""
    tensor = dense(gradient)
    if not tensor.shape.is_compatible_with(variable.shape) or tensor.dtype != variable.dtype.base_dtype:
        raise ValueError(
            f"the gradient of variable {variable.name!r} has shape {tensor.shape}, dtype {tensor.dtype.name}; "
            f"the variable has shape {variable.shape}, dtype {variable.dtype.base_dtype.name}"
        )
    return tf.ensure_shape(tensor, variable.shape)


def _tensor(gradient: Any) -> Any:
    return gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient


def _ones(tensor: Any) -> Any:
    """Of a constant shape where it is known: else they depend on the tensor."""
    return tf.ones(tensor.shape if tensor.shape.is_fully_defined() else tf.shape(tensor), tensor.dtype)


def _is_linear(changed: Sequence[Any], gradients: Sequence[Any]) -> bool:
    """Whether the gradients were only added and scaled: then the derivative by them does not depend on them."""
    sources = [_tensor(g) for g in gradients if g is not None]
    targets = [_tensor(g) for g in changed]
    outside = all(t.op._get_control_flow_context() is None for t in targets)
    # In a branch of control flow v1, what comes from outside would depend on itself.
    with tf.control_dependencies(None) if outside else nullcontext():
        slopes = tf.gradients(targets, sources, grad_ys=[_ones(t) for t in targets])
    slopes = [_tensor(s) for s in slopes if s is not None]
    above = {id(op) for op in depending_on(sources, ancestors(slopes))}
    return not any(id(s.op) in above for s in slopes)
