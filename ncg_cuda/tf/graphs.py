"""What the other files need to know about TensorFlow's graphs: nesting, XLA, which operations lie between two tensors.

``tf.function`` traces into a ``FuncGraph``; every nested one (a loop body, a branch, an inner ``tf.function``) has an
``outer_graph`` whose tensors it *captures* through placeholders. Nothing here changes a graph, except that
:func:`handles` captures variables.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.ops import control_flow_util


def graph_chain() -> list[Any]:
    """The graph under construction and the graphs around it, innermost first; empty in eager execution."""
    if tf.executing_eagerly():
        return []
    graph = tf.compat.v1.get_default_graph()
    chain = [graph]
    while getattr(graph, "outer_graph", None) is not None and hasattr(graph.outer_graph, "captures"):
        graph = graph.outer_graph
        chain.append(graph)
    return chain


def in_xla() -> bool:
    """Whether the graph under construction is compiled by XLA (``jit_compile=True`` here or in an outer function)."""
    return any(control_flow_util.GraphOrParentsInXlaContext(g) for g in graph_chain())


def raw_variable(variable: Any) -> Any:
    """The ``tf.Variable`` inside a Keras variable; a ``tf.Variable`` itself is returned as it is."""
    if isinstance(variable, tf.Variable):
        return variable
    return getattr(variable, "_value", variable)


def handles(variable: Any, chain: Sequence[Any]) -> list[Any]:
    """The variable's resource handle as each graph of the chain knows it; for a reference variable, its reference.

    A gradient with respect to the variable itself, taken in a loop body, is None: the body captures the handle anew,
    and nothing that was computed outside depends on that capture. So the handle of every graph is needed.
    """
    raw = raw_variable(variable)
    if not hasattr(raw, "handle"):
        # A reference variable of v1: a nested graph captures what was read, not the reference.
        return [raw._ref()]
    out: dict[int, Any] = {}
    for graph in chain:
        with graph.as_default():
            handle = tf.convert_to_tensor(raw.handle)
        # The handle of a variable in a plain tf.Graph is the same one in all functions inside.
        out[id(handle)] = handle
    return list(out.values())


def _is_eager(tensor: Any) -> bool:
    return not hasattr(tensor, "graph") or isinstance(tensor, tf.__internal__.EagerTensor)


def ancestors(tensors: Iterable[Any]) -> list[Any]:
    """Every operation that the tensors depend on through data, in this graph and, through captures, in outer ones."""
    seen: dict[int, Any] = {}
    pending = [t for t in tensors if not _is_eager(t)]
    captured: dict[int, dict[int, Any]] = {}
    while pending:
        op = pending.pop().op
        if id(op) in seen:
            continue
        seen[id(op)] = op
        pending.extend(op.inputs)
        if op.type == "Placeholder" and hasattr(op.graph, "captures"):
            table = captured.setdefault(id(op.graph), {id(inside): outside for outside, inside in op.graph.captures})
            outside = table.get(id(op.outputs[0]))
            if outside is not None and not _is_eager(outside):
                pending.append(outside)
    return list(seen.values())


def depending_on(sources: Iterable[Any], among: Iterable[Any]) -> list[Any]:
    """Those of the operations ``among`` that depend on one of the tensors ``sources`` (through captures too)."""
    ops = sorted(among, key=lambda op: (_depth(op.graph), op._id))
    hit = {id(t) for t in sources}
    out = _depending_on(hit, ops)
    if any(op.type in ("Switch", "Enter", "NextIteration") for op in ops):
        # Control flow v1: an operation may be older than one that it depends on.
        while len(more := _depending_on(hit, ops)) > len(out):
            out = more
    return out


def _depending_on(hit: set[int], ops: Iterable[Any]) -> list[Any]:
    """One pass over the operations in order of age; adds their results to ``hit``."""
    out = []
    captured: dict[int, dict[int, Any]] = {}
    for op in ops:
        inputs = [id(t) for t in op.inputs]
        if op.type == "Placeholder" and hasattr(op.graph, "captures"):
            table = captured.setdefault(id(op.graph), {id(inside): id(out) for out, inside in op.graph.captures})
            inputs.append(table.get(id(op.outputs[0]), 0))
        if any(i in hit for i in inputs):
            hit.update(id(t) for t in op.outputs)
            out.append(op)
    return out


def _depth(graph: Any) -> int:
    depth = 0
    while getattr(graph, "outer_graph", None) is not None:
        graph, depth = graph.outer_graph, depth + 1
    return depth


def nested_functions(ops: Iterable[Any]) -> Iterator[Any]:
    """The ``FunctionDef`` of every function that the operations call, directly or through other functions."""
    seen: set[str] = set()
    library: dict[int, dict[str, Any]] = {}
    for op in ops:
        pending = list(_called(op.node_def.attr))
        if not pending:
            continue
        for name in pending:
            if name in seen:
                continue
            seen.add(name)
            definition = _definition(op.graph, name, library)
            if definition is not None:
                yield definition
                for node in definition.node_def:
                    pending.extend(_called(node.attr))


def scope(name: str) -> str:
    """Where in the model an operation is: the name scopes around it, which in Keras are the names of the layers."""
    parts = [p for p in name.split("/")[:-1] if p not in ("gradients", "gradient_tape")]
    return "/".join(p for p in parts if not re.fullmatch(r"\w+_grad(_\d+)?|PartitionedCall(_\d+)?", p))


def calling_scope(ops: Iterable[Any], function: str) -> str:
    """For an error message: the scopes of the operations that call the function, directly or through others."""
    if not function:
        return ""
    found: set[str] = set()
    for op in ops:
        if any(f.signature.name == function for f in nested_functions([op])):
            # A backward function is called outside of all scopes, with tensors that its forward function made inside.
            forward = (i.op.name for i in op.inputs if i.op.type.endswith("Call"))
            found.update([scope(op.name)] if scope(op.name) else map(scope, forward))
    found.discard("")
    return f", called in {' and '.join(map(repr, sorted(found)[:3]))}" if found else ""


def _called(attr: Any) -> Iterator[str]:
    for key in attr:
        value = attr[key]
        if value.HasField("func"):
            yield value.func.name
        elif value.HasField("list"):
            for function in value.list.func:
                yield function.name


def _definition(graph: Any, name: str, library: dict[int, dict[str, Any]]) -> Any | None:
    while graph is not None:
        if id(graph) not in library:
            library[id(graph)] = {f.signature.name: f for f in graph.as_graph_def().library.function}
        if name in library[id(graph)]:
            return library[id(graph)][name]
        graph = getattr(graph, "outer_graph", None)
    return None
