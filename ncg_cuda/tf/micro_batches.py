"""The curvature of a batch too large for the memory: products accumulated piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from .graphs import graph_chain
from .objective import RecordingScope, stateful_randomness
from .operators import CurvatureOperator


class MicroBatchedOperator(CurvatureOperator):
    """The weighted sum over pieces of a batch of operators that are built for one piece; one piece in memory at a time.

    :meth:`HessianOperator.from_batches <ncg_cuda.tf.HessianOperator.from_batches>` builds one for a loss.

    Args:
        build: gets a piece, as tensors, and returns its operator, a :class:`CurvatureOperator` on ``variables`` with
            the attributes ``loss`` and ``gradients``. It is called while a ``tf.function`` is traced, once for each
            shape of a piece; with ``linearise="once"`` eagerly, once for each piece.
        variables: ``tf.Variable`` or Keras variables, all float32 or all float64.
        batches: the pieces, in a list, ``tf.data.Dataset`` or anything else that can be iterated over many times: each
            a tensor, an array or a structure of them.
        weights: one number per piece. By default a piece weighs what it contributes to a mean over all examples: its
            size, which is the first dimension of its first tensor, divided by the size of all.
        linearise: ``"per product"``: each call linearises a piece again (forward and first backward pass), applies it
            to all vectors of the call, and drops it. ``"once"``: all pieces stay linearised, which
            takes memory for the whole batch. That saves the forward and first backward pass of each call, and still is
            not always faster: measure it.

    Attributes:
        variables: the variables, in order.
        weights: the weights, float64, shape (pieces,).

    Per product, what a piece does to Keras state is held back: moving statistics do not move, and dropout draws the
    same masks again, so that the operator is one matrix. Where examples influence each other (BatchNormalization
    while training), a piece has other statistics than one large batch.

    The operator belongs to the variables' values at its construction. With ``"per product"`` it keeps a copy of them,
    compares it at each call, and refuses after a change. ``@`` with k columns, ``to_dense``, ``diagonal`` and ``trace``
    take several vectors per call, so that a piece is linearised once for all of them.

    Raises:
        ValueError: no pieces, or pieces that can be iterated over only once; weights that do not fit; randomness that
            cannot be drawn again; what ``build`` raises.
        RuntimeError: inside a ``tf.function``; a product after the variables or the number of pieces changed.
    """

    _rows_at_once = 8

    def __init__(
        self,
        build: Callable[[Any], CurvatureOperator],
        variables: Sequence[Any],
        batches: Iterable[Any],
        weights: Sequence[float] | None = None,
        *,
        linearise: str = "per product",
    ) -> None:
        if linearise not in ("per product", "once"):
            raise ValueError(f'linearise is {linearise!r}; allowed: "per product" or "once"')
        if graph_chain():
            raise RuntimeError("MicroBatchedOperator reads its pieces eagerly: build and use it outside of tf.function")
        super().__init__(variables)
        if iter(batches) is batches:
            raise ValueError(
                f"batches is a {type(batches).__name__}, which can be iterated over only once; every product needs all "
                "pieces: give a list or a tf.data.Dataset"
            )
        self._build, self._batches = build, batches
        self.weights = _weights(map(_tensors, batches), weights)
        self._point = None if linearise == "once" else [tf.identity(v) for v in self._raw]
        self._kept = [build(_tensors(batch)) for batch in batches] if linearise == "once" else None

    @property
    def loss(self) -> Any:
        """The weighted sum of the pieces' losses, a scalar tensor."""
        return self._value_and_gradients[0]

    @property
    def gradients(self) -> list[Any]:
        """The weighted sum of the pieces' gradients, one tensor per variable."""
        return list(self._value_and_gradients[1])

    def _product(self, vectors: list[Any]) -> list[Any]:
        raise RuntimeError("a MicroBatchedOperator reads its pieces eagerly: call it outside of any tf.function")

    @property
    def _on_flat(self) -> Any:
        return lambda flat: self._sum(flat[None])[0]

    @property
    def _on_tensors(self) -> Any:
        return lambda tensors: self._flat.split(self._sum(self._flat.join(tensors)[None])[0])

    def _rows(self, rows: NDArray[Any]) -> NDArray[Any]:
        self._need_eager("this")
        return np.asarray(self._sum(tf.convert_to_tensor(rows)))

    def _sum(self, rows: Any) -> Any:
        self._check_point()
        total = tf.zeros_like(rows)
        if self._kept is not None:
            for weight, piece in zip(self._tensor_weights, self._kept, strict=True):
                # Without a tf.function around it: one would have to be traced for each piece.
                flat = [self._flat.join(piece._product(self._flat.split(row))) for row in tf.unstack(rows)]
                total += weight * tf.stack(flat)
            return total
        for weight, batch in self._pieces():
            total += self._on_piece(rows, weight, batch)
        return total

    def _pieces(self) -> Iterator[tuple[Any, Any]]:
        count = 0
        for count, batch in enumerate(self._batches, 1):
            if count <= len(self._tensor_weights):
                yield self._tensor_weights[count - 1], _tensors(batch)
        if count != len(self._tensor_weights):
            raise RuntimeError(
                f"batches has {count} pieces now and had {len(self._tensor_weights)} when this operator was built; "
                "every product needs the same pieces"
            )

    @cached_property
    def _tensor_weights(self) -> list[Any]:
        return [tf.constant(weight, self._flat.dtype) for weight in self.weights]

    @cached_property
    def _on_piece(self) -> Any:
        n = self._flat.size

        @tf.function(autograph=False)  # type: ignore[untyped-decorator]
        def on_piece(rows: Any, weight: Any, batch: Any) -> Any:
            piece = self._repeatable(batch)

            def body(i: Any, out: Any) -> tuple[Any, Any]:
                product = self._flat.join(piece.product(self._flat.split(rows[i])))
                return i + 1, out.write(i, weight * product)

            count = tf.shape(rows)[0]
            out = tf.TensorArray(rows.dtype, count, element_shape=[n])
            # One at a time: the memory of several products is what this class is there to avoid.
            out = tf.while_loop(lambda i, _: i < count, body, (0, out), parallel_iterations=1)[1]
            return tf.reshape(out.stack(), [-1, n])

        def with_any_number_of_rows(rows: Any, weight: Any, batch: Any) -> Any:
            key = repr(tf.nest.map_structure(tf.type_spec_from_value, batch))
            if key not in traced:
                spec = tf.TensorSpec([None, n], self._flat.dtype)
                traced[key] = on_piece.get_concrete_function(spec, weight, batch)
            return traced[key](rows, weight, batch)

        traced: dict[str, Any] = {}
        return with_any_number_of_rows

    @cached_property
    def _value_and_gradients(self) -> tuple[Any, list[Any]]:
        if self._kept is not None:
            parts = [(piece.loss, piece.gradients) for piece in self._kept]  # type: ignore[attr-defined]
        else:
            self._check_point()

            @tf.function(autograph=False)  # type: ignore[untyped-decorator]
            def on_piece(batch: Any) -> tuple[Any, list[Any]]:
                piece = self._repeatable(batch)
                return piece.loss, piece.gradients

            parts = (on_piece(batch) for _, batch in self._pieces())  # type: ignore[assignment]
        loss, gradients = tf.zeros((), self._flat.dtype), [tf.zeros_like(v) for v in self._raw]
        for weight, (value, more) in zip(self._tensor_weights, parts, strict=True):
            loss += weight * tf.cast(value, loss.dtype)
            gradients = [g + weight * m for g, m in zip(gradients, more, strict=True)]
        return loss, gradients

    def _repeatable(self, batch: Any) -> Any:
        with RecordingScope():  # never committed: every evaluation starts from the same state
            piece = self._build(batch)
        found = stateful_randomness(piece.loss)  # type: ignore[attr-defined]
        if found is not None:
            raise ValueError(f'With linearise="per product" the loss is evaluated again for each product: {found}')
        return piece

    def _check_point(self) -> None:
        if self._point is not None and not self._unchanged():
            raise RuntimeError(
                "The variables changed after this operator was built, and a piece can be linearised only at their "
                'present values: build a new operator, or use linearise="once"'
            )

    @cached_property
    def _unchanged(self) -> Any:
        # The difference between NaNs is no change: the product will show them.
        def same(a: Any, b: Any) -> Any:
            return tf.reduce_all((a == b) | (tf.math.is_nan(a) & tf.math.is_nan(b)))

        def unchanged(point: list[Any]) -> Any:
            return tf.reduce_all([same(v.read_value(), p) for v, p in zip(self._raw, point, strict=True)])

        function = tf.function(unchanged, autograph=False)
        return lambda: bool(function(self._point))


def _tensors(batch: Any) -> Any:
    return tf.nest.map_structure(lambda t: t if tf.is_tensor(t) else tf.convert_to_tensor(t), batch)


def _weights(batches: Iterable[Any], weights: Sequence[float] | None) -> NDArray[np.float64]:
    if weights is None:
        sizes = [_size(batch) for batch in batches]
        total = sum(sizes)
        if not total:
            raise ValueError(f"batches has {len(sizes)} pieces with {total} examples in all; at least one is needed")
        return np.array(sizes, dtype=np.float64) / total
    out = np.asarray(weights, dtype=np.float64)
    count = sum(1 for _ in batches)
    if out.shape != (count,) or not count or not np.isfinite(out).all():
        raise ValueError(f"weights has shape {out.shape} for {count} pieces; one finite number per piece is needed")
    return out


def _size(batch: Any) -> int:
    tensors = tf.nest.flatten(batch)
    if not tensors or tensors[0].shape.rank == 0:
        raise ValueError("a piece has no first dimension that tells its number of examples: give weights")
    return int(tensors[0].shape[0])
