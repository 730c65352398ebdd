"""Which TensorFlow operations have no second derivative, and what to use instead.

Most of them make TensorFlow raise; a few give a wrong product without any error, and those are refused before use.
What the library can make exact is in :mod:`ncg_cuda.tf.second_derivatives`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tensorflow.python.framework import op_def_registry

from .graphs import calling_scope, graph_chain, nested_functions, scope
from .nested_labels import function_with_trained_labels
from .second_derivatives import LOCAL

_QUANTIZATION = ("fake quantization", "train without quantization")
_INLINE = "move it out of the inner tf.function, tf.cond or loop, where the product through it is exact"

_SILENT = {
    # Registered as "not differentiable", so that TensorFlow treats them as constants.
    "ResizeBilinearGrad": (
        "bilinear resizing inside a nested function",
        _INLINE + "; or upsample with Conv2DTranspose",
    ),
    "SoftmaxCrossEntropyWithLogits": (
        "cross entropy, inside a nested function, with labels that depend on the weights",
        _INLINE + "; or give the labels through tf.stop_gradient",
    ),
    "SparseAddGrad": ("tf.sparse.add inside a nested function", _INLINE + "; or use dense tensors"),
    "Exit": (
        "a loop of TensorFlow 1's control flow",
        "call tf.compat.v1.enable_control_flow_v2() before the loop is built",
    ),
    "FakeQuantWithMinMaxArgsGradient": _QUANTIZATION,
    "FakeQuantWithMinMaxVarsGradient": _QUANTIZATION,
    "FakeQuantWithMinMaxVarsPerChannelGradient": _QUANTIZATION,
    "PyFunc": ("tf.numpy_function on the way to the gradient", "write it in TensorFlow operations"),
    "PyFuncStateless": ("tf.numpy_function on the way to the gradient", "write it in TensorFlow operations"),
    # Its gradient is a Python function of eager tensors, which TensorFlow cannot differentiate again when it runs.
    "SymbolicGradient": (
        "a function of the old kind (Defun) inside a loop, as tf.nn.ctc_loss (keras.losses.CTC) has it",
        "train with another loss",
    ),
    "EagerPyFunc": ("tf.py_function on the way to the gradient", "write it in TensorFlow operations"),
}

_REMEDIES = {
    "CropAndResizeGradBoxes": "keep the boxes constant (tf.stop_gradient)",
    "CudnnRNNBackprop": "build the LSTM or GRU layer with use_cudnn=False",
    "BlockLSTMGrad": "use keras.layers.LSTM",
    "Dilation2DBackprop": "use MaxPooling2D",
    "Dilation2DBackpropInput": "use MaxPooling2D",
    "Dilation2DBackpropFilter": "use MaxPooling2D",
    "FractionalMaxPoolGrad": "use MaxPooling2D",
    "FractionalAvgPoolGrad": "use AveragePooling2D",
    "nested function": "build and train the model inside `with ncg_cuda.tf.exact_moments():`",
    "ctc_loss": "train with another loss",
    "ResizeArea": "resize with method='bilinear', antialias=True",
    "SparseDenseCwiseAdd": "use dense tensors",
    "recompute_grad": "call the function or layer without tf.recompute_grad (keras.remat, keras.RematScope)",
}

_OTHERWISE = "replace it by operations that have one"


def remedy(kind: str) -> str:
    """What to use instead of an operation type, or of what else an error of ours names."""
    if kind in _SILENT:
        return _SILENT[kind][1]
    return _REMEDIES.get(kind) or _REMEDIES.get(re.sub(r"V\d+$", "", kind), _OTHERWISE)


def _where(name: str) -> str:
    found = scope(name)
    return f"operation {name!r}" + (f", in {found!r}" if found else "")


def check_twice_differentiable(ops: Iterable[Any]) -> None:
    """Raise a ValueError if TensorFlow would silently differentiate one of the operations wrongly.

    Args:
        ops: the operations between the weights and the gradient; functions that they call are searched too.
    """
    ops = list(ops)
    found = {op.type: (_where(op.name), "") for op in ops if op.type in _SILENT and op.type not in LOCAL}
    for function in nested_functions(ops):
        for node in function.node_def:
            where = f"{_where(node.name)}, in function {function.signature.name!r}"
            if node.op in _SILENT and node.op != "SoftmaxCrossEntropyWithLogits":
                found.setdefault(node.op, (where, function.signature.name))
            elif op_def_registry.get(node.op) is None:
                found.setdefault("SymbolicGradient", (where, function.signature.name))
    name = function_with_trained_labels(ops)
    if name:
        found["SoftmaxCrossEntropyWithLogits"] = (f"function {name!r}", name)
    for kind, (where, function) in found.items():
        where += calling_scope(ops, function)
        what, instead = _SILENT[kind]
        raise ValueError(
            f"{kind} ({where}) comes from {what}. TensorFlow has no derivative of it there, so that the Hessian "
            f"product would be wrong or fail. Remedy: {instead}."
        )


@contextmanager
def explain(order: str = "second") -> Iterator[None]:
    """Turn TensorFlow's errors for a missing derivative into one that names operation, layer and remedy.

    Args:
        order: which derivative is being taken, ``"first"`` or ``"second"``.

    Raises:
        ValueError: instead of the LookupError or NotImplementedError.
    """
    try:
        yield
    except (LookupError, NotImplementedError) as error:
        text = str(error)
        if isinstance(error, LookupError) and "radient" not in text:
            raise  # a KeyError or IndexError of the user's own
        named = re.search(r"operation\s*'([^']*)'", text)
        kind = next(
            (m.group(1) for m in (re.search(p, text) for p in _KINDS) if m),
            "",
        )
        what = f"the operation {kind}" if kind else "an operation"
        where = f" ({_where(named.group(1))})" if named else _search(kind)
        raise ValueError(
            f"TensorFlow has no {order} derivative for {what}{where}, so its Hessian product does not exist. "
            f"Remedy: {remedy(kind)}. (TensorFlow says: {text.splitlines()[0] if text else 'nothing'})"
        ) from error


def _search(kind: str) -> str:
    """Where operations of that type are, for an error of TensorFlow that does not say so."""

    def matches(op: Any) -> bool:
        if kind != "recompute_grad":
            return bool(op.type == kind)
        return op.type == "IdentityN" and "_gradient_op_type" in op.node_def.attr

    found = sorted({scope(op.name) for graph in graph_chain() for op in graph.get_operations() if matches(op)} - {""})
    return f" (in {' or '.join(map(repr, found[:3]))})" if found else ""


_KINDS = (
    r"op type: (\w+)",
    r"no entry for: (\w+)",
    r"^(recompute_grad)",
    r"Gradient for (\w+) is not",
    r"type[: ]+'?(\w+)'?",
)
