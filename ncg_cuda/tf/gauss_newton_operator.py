"""Gauss-Newton and Fisher matrices as operators."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tensorflow as tf

from .curvature import gradient
from .curvature_batch import Evaluated, linearized
from .gauss_newton import CURVATURES
from .graphs import graph_chain, raw_variable
from .micro_batches import MicroBatchedOperator
from .objective import unpacked
from .operators import CurvatureOperator


class GaussNewtonOperator(CurvatureOperator):
    """JᵀCJ of a loss with respect to ``variables``, at their values now; what by-passes the outputs with its Hessian.

    Args:
        loss_fn: a callable without arguments that returns (loss, outputs): a scalar tensor, and the tensor or nest of
            tensors that it was computed from; or (loss, outputs, fisher_loss), see
            :class:`ncg_cuda.tf.gauss_newton.LinearizedOutputs`.
        variables: ``tf.Variable`` or Keras variables, all float32 or all float64.
        kind: ``"gauss-newton"``, ``"fisher"`` or ``"empirical-fisher"``, see :mod:`ncg_cuda.tf.gauss_newton`.

    Inside a ``tf.function``, the loss is linearised once, and a product costs about 0.7 to 1.1 gradients. In eager
    execution, the forward pass runs again in each call, once for all vectors of the call: keep the loop in a
    ``tf.function`` where that counts.

    Attributes:
        variables: the variables, in order.
        loss: the loss, a scalar tensor.
        gradients: its gradient, one tensor per variable.

    Raises:
        ValueError: no or unsuitable variables; a loss_fn that returns no outputs, or outputs that do not fit; an
            operation without a derivative; an unknown kind.

    Example:
        >>> import tensorflow as tf
        >>> from ncg_cuda.tf import GaussNewtonOperator
        >>> w, x = tf.Variable([1.0, 2.0]), tf.constant([[1.0, 0.0], [1.0, 1.0]])
        >>> def loss():
        ...     z = tf.linalg.matvec(x, w) ** 2
        ...     return tf.reduce_sum((z - 1.0) ** 2), z
        >>> GaussNewtonOperator(loss, [w]).to_dense(progress=False).tolist()
        [[80.0, 72.0], [72.0, 72.0]]
    """

    def __init__(self, loss_fn: Callable[[], Any], variables: Sequence[Any], kind: str = "gauss-newton") -> None:
        super().__init__(variables)
        if kind not in CURVATURES[1:]:
            raise ValueError(f"kind={kind!r} is not known; allowed: {', '.join(map(repr, CURVATURES[1:]))}")
        self.kind = kind
        self._matrix: Any = None
        self._calls: MicroBatchedOperator | None = None
        if graph_chain():
            self.loss, self.gradients = self._linearise(loss_fn)
        else:
            self._calls = MicroBatchedOperator(lambda _: type(self)(loss_fn, variables, kind), variables, [()], [1.0])
            self.loss, self.gradients = self._calls.loss, self._calls.gradients

    @classmethod
    def from_batches(
        cls,
        loss_fn: Callable[[Any], Any],
        variables: Sequence[Any],
        batches: Iterable[Any],
        weights: Sequence[float] | None = None,
        kind: str = "gauss-newton",
    ) -> MicroBatchedOperator:
        """The matrix of a large batch, given in pieces, with the memory of one piece.

        Args:
            loss_fn: gets a piece, as tensors in its structure, and returns (loss, outputs) as above.
            variables: ``tf.Variable`` or Keras variables, all float32 or all float64.
            batches: the pieces: a list, a ``tf.data.Dataset`` or anything else that can be iterated over many times.
            weights: one number per piece. By default its share of all examples, right where the loss is a mean over
                the examples; use ones where it is a sum.
            kind: as above.
        """
        return MicroBatchedOperator(
            lambda batch: cls(lambda: loss_fn(batch), variables, kind), variables, batches, weights
        )

    def _linearise(self, loss_fn: Callable[[], Any]) -> tuple[Any, list[Any]]:
        found: list[tuple[Any, list[Any], Any]] = []

        def first() -> Any:
            found.append(unpacked(loss_fn()))
            return found[0][0]

        raw = [raw_variable(v) for v in self.variables]
        loss, known = gradient(first, raw)
        _, outputs, fisher_loss = found[0]
        if not outputs:
            raise ValueError(
                "GaussNewtonOperator: loss_fn returned a loss only; let it return (loss, outputs), the outputs being "
                "the tensors that the loss was computed from"
            )
        self._matrix = linearized(self.kind, Evaluated(loss, outputs, lambda: fisher_loss, known), self.variables)
        return loss, [tf.zeros(v.shape, v.dtype) if g is None else g for g, v in zip(known, raw, strict=True)]

    def _product(self, vectors: list[Any]) -> list[Any]:
        if self._matrix is None:
            raise RuntimeError(
                "this GaussNewtonOperator was built eagerly; inside a tf.function, build it there, too: then its "
                "loss is linearised once"
            )
        return list(self._matrix.product(vectors))

    @property
    def _on_flat(self) -> Any:
        return self._eagerly()._on_flat

    @property
    def _on_tensors(self) -> Any:
        return self._eagerly()._on_tensors

    def _rows(self, rows: Any) -> Any:
        self._need_eager("this")
        return self._eagerly()._rows(rows)

    def _eagerly(self) -> MicroBatchedOperator:
        assert self._calls is not None
        return self._calls
