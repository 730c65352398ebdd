"""Cross entropy with trained labels inside nested functions, where TensorFlow's second derivative is silently wrong.

TensorFlow leaves the labels out of the derivative of cross entropy's gradient (softmax - labels). At the top level the
library's own gradient corrects that (:mod:`ncg_cuda.tf.second_derivatives`); in a nested function it cannot. Labels
that are data, which is nearly always so, are no problem: so it matters whether they depend on the weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from .graphs import nested_functions

_CROSS_ENTROPY = "SoftmaxCrossEntropyWithLogits"
# Through these nothing differentiable passes.
_STOPS = {"StopGradient", "ArgMax", "ArgMin", "OneHot", "Shape", "ShapeN", "Size", "Rank", "ZerosLike", "OnesLike"} | {
    "Equal", "NotEqual", "Greater", "GreaterEqual", "Less", "LessEqual", "Round", "Sign", "Floor", "TensorListReserve",
}  # fmt: skip


def function_with_trained_labels(path: Iterable[Any]) -> str:
    """The name of a nested function that computes cross entropy with labels that depend on the weights; empty if none.

    Args:
        path: the operations that depend on the weights.
    """
    path = list(path)
    functions = {f.signature.name: f for f in nested_functions(path)}
    if not any(node.op == _CROSS_ENTROPY for f in functions.values() for node in f.node_def):
        return ""
    known = {id(op) for op in path}
    for op in path:
        flags = [id(t.op) in known or t.dtype == tf.resource for t in op.inputs]
        for name in _functions_of(op.node_def):
            found = _search(name, flags, op.type, functions)
            if found:
                return found
    return ""


def _functions_of(node: Any) -> list[str]:
    out = [v.func.name for v in node.attr.values() if v.HasField("func")]
    return out + [f.name for v in node.attr.values() if v.HasField("list") for f in v.list.func]


def _search(name: str, flags: list[bool], caller: str, functions: dict[str, Any]) -> str:
    function = functions.get(name)
    if function is None:
        return ""
    arguments = [a.name for a in function.signature.input_arg]
    flags = flags[len(flags) - len(arguments) :]  # an If has its condition first
    results = [function.ret[a.name].split(":")[0] for a in function.signature.output_arg]
    while True:
        depends = {a for a, flag in zip(arguments, flags, strict=False) if flag}
        grown = -1
        while grown < len(depends):  # node_def is in no particular order; control inputs (^name) carry no data
            grown = len(depends)
            for node in function.node_def:
                if node.op not in _STOPS and any(i.split(":")[0] in depends for i in node.input):
                    depends.add(node.name)
        # What an iteration of a loop returns is what the next one starts from.
        again = [flag or (i < len(results) and results[i] in depends) for i, flag in enumerate(flags)]
        if "While" not in caller or again == flags or len(results) != len(flags):
            break
        flags = again
    for node in function.node_def:
        inside = [i.split(":")[0] in depends for i in node.input if not i.startswith("^")]
        if node.op == _CROSS_ENTROPY and inside[1]:
            return name
        for inner in _functions_of(node):
            found = _search(inner, inside, node.op, functions)
            if found:
                return found
    return ""
