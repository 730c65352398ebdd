"""Exact products with the Hessian of a loss: H s = grad(grad(L)·s) (Pearlmutter, Neural Computation 1994).

The loss is linearised once: its forward and first backward pass run once, and each product runs only the second
backward pass. Products are exact through BatchNormalization, LayerNormalization and GroupNormalization, where stock
TensorFlow is not (see :mod:`ncg_cuda.tf.moments`), and through resizing, softsign and others that have no second
derivative in TensorFlow (see :mod:`ncg_cuda.tf.second_derivatives`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from . import half_precision, second_derivatives
from .differentiable import check_twice_differentiable, explain
from .graphs import ancestors, depending_on, graph_chain, handles, raw_variable
from .operators import CurvatureOperator
from .vectors import check_variables, check_vectors

if TYPE_CHECKING:
    from .micro_batches import MicroBatchedOperator


class LinearizedGradient:
    """The gradient of a loss, held in the graph under construction, as a linear map s -> H s.

    Args:
        gradients: the raw gradients as graph tensors (not clipped, not accumulated); an IndexedSlices is densified,
            None counts as zero.
        variables: the variables they belong to, ``tf.Variable`` or Keras variables.
        loss: the loss, if it is known; only for models in float16, see :mod:`ncg_cuda.tf.half_precision`.

    Attributes:
        half_size: what s is scaled to for float16, a float64 scalar; None for a model without.
        has_curvature: whether any of the gradients depends on any of the variables in this graph.

    Raises:
        ValueError: an operation in the model has no (or a wrong) second derivative; the message names it.
        RuntimeError: in eager execution, where there is no graph to differentiate.
    """

    def __init__(self, gradients: Sequence[Any], variables: Sequence[Any], loss: Any = None) -> None:
        chain = graph_chain()
        if not chain:
            raise RuntimeError("LinearizedGradient needs a graph: call it inside a tf.function")
        self.variables = list(variables)
        self.gradients = [None if g is None else dense(g) for g in gradients]
        self._known = [g for g in self.gradients if g is not None]
        # Every graph has its own tensor for a variable's handle: the parts of the derivative are added per variable.
        self._handles = [handles(v, chain) for v in self.variables]
        flat = [h for hs in self._handles for h in hs]
        above = ancestors(self._known)
        path = depending_on(flat, above)
        self.has_curvature = bool({id(g.op) for g in self._known} & {id(op) for op in path})
        check_twice_differentiable(path)
        self._marks = second_derivatives.find(path)
        self.half_size = half_precision.target(self._known, loss) if half_precision.uses_half(above) else None
        self._lists = [op.name for op in path if any(t.dtype == tf.variant for t in op.outputs)]

    def product(self, vectors: Sequence[Any]) -> list[Any]:
        """H s for one tensor per variable; may be called in a nested graph, such as the body of a loop.

        Returns:
            One tensor per variable, with its shape and dtype; zero where the gradient does not depend on it.
        """
        vectors = [tf.convert_to_tensor(s) for s in vectors]
        if self.half_size is None:
            return self._product(vectors)
        return half_precision.in_range(lambda s, _: self._product(s), vectors, self.half_size)

    def _product(self, vectors: list[Any]) -> list[Any]:
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


class HessianOperator(CurvatureOperator):
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
        super().__init__(variables)
        self._linear: LinearizedGradient | None = None
        self._half_size: Any = None
        if graph_chain():
            self.loss, known = gradient(loss_fn, self._raw)
            self._linear = LinearizedGradient(known, self._raw, self.loss)
            self.gradients = _fill(known, self._raw)
            return

        self._linearise(_linearisation(loss_fn, self._raw))

    @classmethod
    def from_batches(
        cls,
        loss_fn: Callable[[Any], Any],
        variables: Sequence[Any],
        batches: Iterable[Any],
        weights: Sequence[float] | None = None,
        *,
        linearise: str = "per product",
    ) -> MicroBatchedOperator:
        """The Hessian of the loss of a large batch, given in pieces, with the memory of one piece.

        Args:
            loss_fn: gets a piece, as tensors in its structure, and returns its loss, a scalar tensor.
            variables: ``tf.Variable`` or Keras variables, all float32 or all float64.
            batches: the pieces: a list, a ``tf.data.Dataset`` or anything else that can be iterated over many times.
            weights: one number per piece. By default its share of all examples, right where ``loss_fn`` is a mean over
                the examples; use ones where it is a sum.
            linearise: ``"per product"`` or ``"once"``, see :class:`~ncg_cuda.tf.MicroBatchedOperator`.

        Returns:
            A :class:`~ncg_cuda.tf.MicroBatchedOperator`: the operator of sum_i weights_i loss_fn(batches_i).

        Example:
            >>> import tensorflow as tf
            >>> from ncg_cuda.tf import HessianOperator
            >>> w, x = tf.Variable([1.0, 2.0]), tf.reshape(tf.range(10.0), (5, 2))
            >>> loss = lambda x: tf.reduce_mean(tf.linalg.matvec(x, w) ** 2)
            >>> pieces = tf.data.Dataset.from_tensor_slices(x).batch(2)
            >>> HessianOperator.from_batches(loss, [w], pieces).product([[1.0, 0.0]])[0].numpy().tolist()
            [48.0, 56.0]
        """
        from .micro_batches import MicroBatchedOperator

        def build(batch: Any) -> HessianOperator:
            if graph_chain():
                return cls(lambda: loss_fn(batch), variables)
            piece = cls.__new__(cls)
            CurvatureOperator.__init__(piece, variables)
            piece._linear, piece._half_size = None, None
            piece._linearise(shared, batch)
            return piece

        shared = _linearisation(loss_fn, [raw_variable(v) for v in variables])  # traced once per shape of a piece
        return MicroBatchedOperator(build, variables, batches, weights, linearise=linearise)

    def _linearise(self, function: Any, *batch: Any) -> None:
        """Keep what a product needs of the function's forward and first backward pass: the tape's one operation."""
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as self._tape:
            for v in self._raw:
                self._tape.watch(v)
            with explain():
                self.loss, self.gradients, *half_size = function(*batch)
        self._half_size = half_size[0] if half_size else None

    def _product(self, vectors: list[Any]) -> list[Any]:
        if self._linear is not None:
            return self._linear.product(vectors)
        if self._half_size is None:
            return self._of_tape(vectors)
        return half_precision.in_range(lambda s, _: self._of_tape(s), vectors, self._half_size)

    def _of_tape(self, vectors: list[Any]) -> list[Any]:
        with explain():
            parts = self._tape.gradient(
                self.gradients,
                self._raw,
                output_gradients=vectors,
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


def _linearisation(loss_fn: Callable[..., Any], variables: Sequence[Any]) -> Any:
    """A ``tf.function`` of ``loss_fn``'s arguments that gives loss and gradients, and can be differentiated again."""

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]
    def linearise(*batch: Any) -> tuple[Any, ...]:
        loss, known = gradient(lambda: loss_fn(*batch), variables)
        linear = LinearizedGradient(known, variables, loss)
        linear.refuse_loops()
        linear.mark_stops()
        gradients = _fill(known, variables)
        return (loss, gradients) if linear.half_size is None else (loss, gradients, linear.half_size)

    return linearise


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
        known = half_precision.scaled_gradients(
            loss, lambda slope: tape.gradient(loss, variables, output_gradients=slope)
        )
    return loss, [None if g is None else dense(g) for g in known]


def dense(value: Any) -> Any:
    """The tensor itself; an IndexedSlices (from an embedding) as a dense tensor."""
    return tf.convert_to_tensor(value)


def _fill(gradients: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
    return [
        tf.zeros(v.shape, v.dtype.base_dtype) if g is None else g for g, v in zip(gradients, variables, strict=True)
    ]
