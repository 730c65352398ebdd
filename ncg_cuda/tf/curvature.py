"""Exact products with the Hessian of a loss: H s = grad(grad(L)·s) (Pearlmutter, Neural Computation 1994).

The loss is linearised once: its forward and first backward pass run once, and each product runs only the second
backward pass. Products are exact through BatchNormalization, LayerNormalization and GroupNormalization, where stock
TensorFlow is not (see :mod:`ncg_cuda.tf.moments`), and through resizing, softsign and others that have no second
derivative in TensorFlow (see :mod:`ncg_cuda.tf.second_derivatives`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from . import second_derivatives
from .differentiable import check_twice_differentiable, explain
from .graphs import ancestors, depending_on, graph_chain, handles, raw_variable


class LinearizedGradient:
    """The gradient of a loss, held in the graph under construction, as a linear map s -> H s.

    Args:
        gradients: the raw gradients as graph tensors (not clipped, not accumulated); an IndexedSlices is densified,
            None counts as zero.
        variables: the variables they belong to, ``tf.Variable`` or Keras variables.

    Attributes:
        has_curvature: whether any of the gradients depends on any of the variables in this graph.

    Raises:
        ValueError: an operation in the model has no (or a wrong) second derivative; the message names it.
        RuntimeError: in eager execution, where there is no graph to differentiate.
    """

    def __init__(self, gradients: Sequence[Any], variables: Sequence[Any]) -> None:
        chain = graph_chain()
        if not chain:
            raise RuntimeError("LinearizedGradient needs a graph: call it inside a tf.function")
        self.variables = list(variables)
        self.gradients = [None if g is None else dense(g) for g in gradients]
        self._known = [g for g in self.gradients if g is not None]
        # Every graph has its own tensor for a variable's handle: the parts of the derivative are added per variable.
        self._handles = [handles(v, chain) for v in self.variables]
        flat = [h for hs in self._handles for h in hs]
        path = depending_on(flat, ancestors(self._known))
        self.has_curvature = bool({id(g.op) for g in self._known} & {id(op) for op in path})
        check_twice_differentiable(path)
        self._marks = second_derivatives.find(path)
        self._lists = [op.name for op in path if any(t.dtype == tf.variant for t in op.outputs)]

    def product(self, vectors: Sequence[Any]) -> list[Any]:
        """H s for one tensor per variable; may be called in a nested graph, such as the body of a loop.

        Returns:
            One tensor per variable, with its shape and dtype; zero where the gradient does not depend on it.
        """
        vectors = [tf.convert_to_tensor(s) for s in vectors]
        known = [s for s, g in zip(vectors, self.gradients, strict=True) if g is not None]
        flat = [h for hs in self._handles for h in hs]
        with second_derivatives.applied(self._marks), explain():
            parts = iter(tf.gradients(self._known, flat, grad_ys=known) if known else [None] * len(flat))
        out = []
        for hs, s in zip(self._handles, vectors, strict=True):
            mine = [dense(part) for part in (next(parts) for _ in hs) if part is not None]
            # A gradient that does not depend on its variable (a linear loss) is no error: its product is zero.
            out.append(tf.add_n(mine) if mine else tf.zeros_like(s))
        return out

    def refuse_loops(self) -> None:
        """Raise a ValueError if the gradient runs through a loop, whose state cannot outlive the function it ran in."""
        if self._lists:
            raise ValueError(
                f"The loss runs through a loop ({self._lists[0]!r}; recurrent layers have one), which cannot be kept "
                "linearised between eager calls. Build the HessianOperator and call its product inside one "
                "tf.function, or use hessian_vector_product."
            )

    def mark_stops(self) -> None:
        """For a private graph that is differentiated later, by other means: let it be exact for good."""
        second_derivatives.apply(self._marks)


class HessianOperator:
    """The Hessian of ``loss_fn()`` with respect to ``variables``, at their values now, linearised once for many
    products.

    Args:
        loss_fn: a callable without arguments that returns the loss, a scalar tensor, from the variables.
        variables: ``tf.Variable`` or Keras variables, all float32 or all float64.

    In eager execution the forward and first backward pass run here, in a ``tf.function`` of this object; randomness is
    drawn once, and side effects of ``loss_fn`` (moving averages) happen once. Inside a ``tf.function`` they become part
    of that function. Later changes of the variables do not change the operator.

    Attributes:
        variables: the variables, in order.
        loss: the loss at the point of linearisation, a scalar tensor.
        gradients: the gradient there, one tensor per variable.

    Raises:
        ValueError: no or unsuitable variables, a loss that is not a scalar, an operation without second derivative; in
            eager execution also a loop (a recurrent layer) in the loss.
    """

    def __init__(self, loss_fn: Callable[[], Any], variables: Sequence[Any]) -> None:
        self.variables = list(variables)
        check_variables(self.variables)
        self._raw = [raw_variable(v) for v in self.variables]
        self._linear: LinearizedGradient | None = None
        if graph_chain():
            self.loss, known = gradient(loss_fn, self._raw)
            self._linear = LinearizedGradient(known, self._raw)
            self.gradients = _fill(known, self._raw)
            return

        @tf.function(autograph=False)  # type: ignore[untyped-decorator]
        def linearise() -> tuple[Any, list[Any]]:
            loss, known = gradient(loss_fn, self._raw)
            linear = LinearizedGradient(known, self._raw)
            linear.refuse_loops()
            linear.mark_stops()
            return loss, _fill(known, self._raw)

        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as self._tape:
            for v in self._raw:
                self._tape.watch(v)
            with explain():
                self.loss, self.gradients = linearise()

    def product(self, vectors: Sequence[Any]) -> list[Any]:
        """H s.

        Args:
            vectors: one tensor or array per variable, of its shape and dtype.

        Returns:
            One tensor per variable, of its shape and dtype.

        Raises:
            ValueError: wrong number, shape or dtype of vectors.
        """
        tensors = check_vectors(vectors, self._raw)
        if self._linear is not None:
            return self._linear.product(tensors)
        with explain():
            parts = self._tape.gradient(
                self.gradients,
                self._raw,
                output_gradients=tensors,
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )
        return [dense(p) for p in parts]


def hessian_vector_product(loss_fn: Callable[[], Any], variables: Sequence[Any], vectors: Sequence[Any]) -> list[Any]:
    """The product H s of the Hessian of ``loss_fn()`` with one vector per variable.

    Args:
        loss_fn: a callable without arguments that returns the loss, a scalar tensor, from the variables.
        variables: ``tf.Variable`` or Keras variables, all float32 or all float64.
        vectors: one tensor or array per variable, of its shape and dtype.

    Returns:
        One tensor per variable, of its shape and dtype; zero for a variable that the loss does not depend on.

    Works eagerly, where each call traces ``loss_fn`` anew, and inside a ``tf.function``. For several products at the
    same weights use :class:`HessianOperator`, which runs the forward pass once.

    Raises:
        ValueError: wrong variables or vectors, a loss that is not a scalar, an operation without second derivative.
    """
    check_variables(list(variables))
    tensors = check_vectors(vectors, [raw_variable(v) for v in variables])

    def product(*tensors: Any) -> list[Any]:
        return HessianOperator(loss_fn, variables).product(tensors)

    if graph_chain():
        return product(*tensors)
    return list(tf.function(product, autograph=False)(*tensors))


def gradient(loss_fn: Callable[[], Any], variables: Sequence[Any]) -> tuple[Any, list[Any]]:
    """The loss and its gradient with respect to ``tf.Variable`` s, None where it does not depend on one."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        for v in variables:
            tape.watch(v)
        loss = tf.convert_to_tensor(loss_fn())
    if loss.shape.rank != 0 or not loss.dtype.is_floating:
        raise ValueError(
            f"loss_fn returned shape {loss.shape}, dtype {loss.dtype.name}; a floating-point scalar is needed. "
            "Reduce it, for example with tf.reduce_mean"
        )
    with explain("first"):
        known = tape.gradient(loss, variables)
    return loss, [None if g is None else dense(g) for g in known]


def dense(value: Any) -> Any:
    """The tensor itself; an IndexedSlices (from an embedding) as a dense tensor."""
    return tf.convert_to_tensor(value)


def _fill(gradients: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
    return [
        tf.zeros(v.shape, v.dtype.base_dtype) if g is None else g for g, v in zip(gradients, variables, strict=True)
    ]


def check_variables(variables: Sequence[Any]) -> None:
    """Raise a ValueError unless the variables are trainable material: at least one, float32 or float64, one dtype."""
    if not variables:
        raise ValueError("variables is empty: give at least one")
    for i, v in enumerate(variables):
        if not isinstance(raw_variable(v), tf.Variable):
            raise ValueError(f"variables[{i}] is a {type(v).__name__}; a tf.Variable or a Keras variable is needed")
        if not raw_variable(v).shape.is_fully_defined():
            raise ValueError(f"variables[{i}] has the unknown shape {raw_variable(v).shape}; a fixed shape is needed")
    dtypes = sorted({tf.as_dtype(raw_variable(v).dtype).base_dtype.name for v in variables})
    if dtypes not in (["float32"], ["float64"]):
        raise ValueError(f"the variables have dtypes {dtypes}; allowed: all float32 or all float64")


def check_vectors(vectors: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
    """The vectors as tensors; raise a ValueError unless each fits its variable in shape and dtype."""
    if len(vectors) != len(variables):
        raise ValueError(f"{len(vectors)} vectors for {len(variables)} variables; one per variable is needed")
    tensors = [tf.convert_to_tensor(s) for s in vectors]
    for i, (s, v) in enumerate(zip(tensors, variables, strict=True)):
        if s.dtype != v.dtype.base_dtype or not s.shape.is_compatible_with(v.shape):
            raise ValueError(
                f"vectors[{i}] has shape {s.shape}, dtype {s.dtype.name}; its variable {v.name!r} has shape {v.shape}, "
                f"dtype {v.dtype.name}, and both must be the same"
            )
    return tensors
