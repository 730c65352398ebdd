"""Which TensorFlow operations have no second derivative, and what to use instead.

Most of them make TensorFlow raise; a few give a wrong product without any error, and those are refused before use.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from .graphs import nested_functions

_SILENT = {
    # Registered as "not differentiable", so that TensorFlow treats them as constants.
    "ResizeBilinearGrad": (
        "bilinear resizing (UpSampling2D(interpolation='bilinear'), tf.image.resize)",
        "upsample with Conv2DTranspose, or write nearest upsampling as tf.repeat along height and width",
    ),
    "FakeQuantWithMinMaxArgsGradient": ("fake quantization", "train without quantization"),
    "FakeQuantWithMinMaxVarsGradient": ("fake quantization", "train without quantization"),
    "FakeQuantWithMinMaxVarsPerChannelGradient": ("fake quantization", "train without quantization"),
    "PyFunc": ("tf.numpy_function on the way to the gradient", "leave the gradients as TensorFlow computed them"),
    "PyFuncStateless": ("tf.numpy_function on the way to the gradient", "write it in TensorFlow operations"),
    "SparseAddGrad": ("tf.sparse.add", "use dense tensors"),
}

_REMEDIES = {
    "ResizeBicubicGrad": "resize with Conv2DTranspose, or outside the differentiated model",
    "ResizeNearestNeighborGrad": "write nearest upsampling as tf.repeat along height and width",
    "SoftsignGrad": "write softsign as x / (1 + tf.abs(x))",
    "LRNGrad": "use BatchNormalization or LayerNormalization",
    "CudnnRNNBackprop": "build the LSTM or GRU layer with use_cudnn=False",
    "BlockLSTMGrad": "use keras.layers.LSTM",
    "Dilation2DBackpropInput": "use MaxPooling2D",
    "Dilation2DBackpropFilter": "use MaxPooling2D",
    "FractionalMaxPoolGrad": "use MaxPooling2D",
    "FractionalAvgPoolGrad": "use AveragePooling2D",
    "MaxPoolGradWithArgmax": "use tf.nn.max_pool2d",
    "CholeskyGrad": "use another factorization",
}

_OTHERWISE = "replace it by operations that have one"


def check_twice_differentiable(ops: Iterable[Any]) -> None:
    """Raise a ValueError if TensorFlow would silently differentiate one of the operations wrongly.

    Args:
        ops: the operations between the weights and the gradient; functions that they call are searched too.
    """
    ops = list(ops)
    found = {op.type: f"operation {op.name!r}" for op in ops if op.type in _SILENT}
    for function in nested_functions(ops):
        for node in function.node_def:
            if node.op in _SILENT:
                found.setdefault(node.op, f"operation {node.name!r} in function {function.signature.name!r}")
    for kind, where in found.items():
        what, remedy = _SILENT[kind]
        raise ValueError(
            f"{kind} ({where}) comes from {what}: TensorFlow has no derivative of it and would give a wrong "
            f"Hessian product without an error. Remedy: {remedy}."
        )


@contextmanager
def explain() -> Iterator[None]:
    """Turn TensorFlow's LookupError for a missing derivative into an error that names operation and remedy.

    Raises:
        ValueError: instead of the LookupError.
    """
    try:
        yield
    except LookupError as error:
        text = str(error)
        match = re.search(r"op type: (\w+)", text) or re.search(r"type[: ]+'?(\w+)'?", text)
        kind = match.group(1) if match else ""
        base = re.sub(r"V\d+$", "", kind)
        remedy = _REMEDIES.get(kind) or _REMEDIES.get(base, _OTHERWISE)
        named = f"the operation {kind}" if kind else "an operation"
        raise ValueError(
            f"TensorFlow has no second derivative for {named}, so the Hessian product through it does not exist. "
            f"Remedy: {remedy}. (TensorFlow says: {text.splitlines()[0] if text else 'nothing'})"
        ) from error
