"""Which operations of a float64 computation TensorFlow does in float32: a check must know how many digits to expect.

Bilinear and bicubic resizing, for example, take float64 and return float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import op_def_registry

from .graphs import ancestors, depending_on, graph_chain, handles, nested_functions, scope

_NARROW = (tf.float32, tf.float16, tf.bfloat16)


def in_single(results: Iterable[Any], variables: Sequence[Any]) -> list[str]:
    """The operations on the way from the variables to the results that turn float64 into less.

    Args:
        results: tensors of the graph under construction, such as loss and gradient.
        variables: ``tf.Variable`` or Keras variables in float64.

    Returns:
        Each operation's type, with the layer it is in, once, in order; empty where all is float64.
    """
    results = [t for t in results if t is not None]
    chain = graph_chain()
    path = depending_on([h for v in variables for h in handles(v, chain)], ancestors(results))
    made = {id(t) for op in path for t in op.outputs}
    found: dict[str, None] = {}
    after_casts: dict[str, None] = {}
    for op in path:
        # A value that does not depend on the variables is a constant: its rounding is the same in every evaluation.
        enters = any(t.dtype == tf.float64 and id(t) in made for t in op.inputs)
        if not (enters and any(t.dtype in _NARROW for t in op.outputs)):
            continue
        if op.type != "Cast":
            found[_named(op)] = None
            continue
        # What is cast back at once, as a Keras model's inputs, is rounded, but nothing is computed in float32.
        users = [user for t in op.outputs for user in t.consumers() if user.type != "Cast"]
        after_casts.update(dict.fromkeys(map(_named, users)))
    found = found or after_casts
    for function in nested_functions(path):
        for node in function.node_def:
            if _narrows(node):
                found[f"{node.op} (in function {function.signature.name!r})"] = None
    return list(found)


def _named(op: Any) -> str:
    place = scope(op.name)
    return f"{op.type} (in {place!r})" if place else str(op.type)


def _narrows(node: Any) -> bool:
    """Whether a node of a function takes float64 and returns less."""
    if node.op == "Cast":
        return tf.dtypes.as_dtype(node.attr["SrcT"].type) == tf.float64 and _narrow(node.attr["DstT"].type)
    definition = op_def_registry.get(node.op)
    return (
        definition is not None
        and "T" in node.attr
        and node.attr["T"].type == tf.float64.as_datatype_enum
        and any(_narrow(out.type) for out in definition.output_arg)
    )


def _narrow(kind: int) -> bool:
    return kind in [t.as_datatype_enum for t in _NARROW]
