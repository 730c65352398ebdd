"""The curvature of other data than the gradient's: a part of the batch, or more data, in pieces of bounded memory.

A product over pieces runs one piece at a time, in a loop: forward pass, backward pass and second backward pass of that
piece, whose memory is then free. That costs 2 to 3 gradients of the data instead of the 1 to 1.7 of a loss that is
linearised once, and as much memory as one piece takes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from . import half_precision
from .curvature import LinearizedGradient
from .gauss_newton import PIECEWISE_LINEAR, LinearizedOutputs
from .graphs import graph_chain, handles, in_xla
from .parameters import NO_CURVATURE, NO_OUTPUTS

logger = logging.getLogger("ncg_cuda")


@dataclass(frozen=True)
class Evaluated:
    """A loss in the graph under construction, and what its curvature needs to know."""

    loss: Any
    outputs: Sequence[Any] = ()
    fisher_loss: Callable[[], Any] | None = None
    gradients: Sequence[Any] | None = None
    """One tensor (or None) per variable, where they are known."""


Matrix = Any
"""Something with ``product(vectors)``: a LinearizedGradient, LinearizedOutputs or :class:`Pieces`."""


def linearized(kind: str, evaluated: Evaluated, variables: Sequence[Any]) -> LinearizedGradient | LinearizedOutputs:
    """The matrix of this kind for a loss, linearised once.

    Raises:
        ValueError: it is zero, or does not exist.
        RuntimeError: the outputs that it is taken at are not known.
    """
    if kind == "hessian":
        gradients = evaluated.gradients
        if gradients is None:
            gradients = loss_gradients(evaluated.loss, variables)
        hessian = LinearizedGradient(gradients, variables, evaluated.loss)
        if not hessian.has_curvature:
            raise ValueError(NO_CURVATURE)
        return hessian
    if not evaluated.outputs:
        raise RuntimeError(f"curvature={kind!r} {NO_OUTPUTS}")
    fisher_loss = evaluated.fisher_loss() if kind == "fisher" and evaluated.fisher_loss is not None else None
    matrix = LinearizedOutputs(
        evaluated.loss,
        evaluated.outputs,
        variables,
        kind=kind,
        fisher_loss=fisher_loss,
        gradients=evaluated.gradients,
    )
    if not matrix.has_curvature:
        raise ValueError(PIECEWISE_LINEAR)
    return matrix


def loss_gradients(loss: Any, variables: Sequence[Any]) -> list[Any]:
    """The raw gradient, one tensor or None per variable."""
    spread = [handles(v, graph_chain()) for v in variables]
    flat = [h for hs in spread for h in hs]
    parts = iter(half_precision.scaled_gradients(loss, lambda slope: tf.gradients(loss, flat, grad_ys=slope)))
    out = []
    for hs in spread:
        mine = [tf.convert_to_tensor(p) for p in (next(parts) for _ in hs) if p is not None]
        out.append(tf.add_n(mine) if mine else None)
    return out


class Feed:
    """Data for the curvature, from step to step.

    Args:
        data: (x, y) or (x, y, sample_weight), arrays of which each step takes all; or a ``tf.data.Dataset`` of such
            batches, of which each step takes the next one, from the beginning again at its end.
    """

    def __init__(self, data: Any) -> None:
        if isinstance(data, tf.data.Dataset):
            self._iterator = iter(data.repeat())
        elif isinstance(data, tuple) and len(data) in (2, 3):
            self._iterator = None
            self._data = tf.nest.map_structure(tf.convert_to_tensor, data)
        else:
            raise ValueError(
                f"curvature_data: got {type(data).__name__}; give (x, y), (x, y, sample_weight) or a tf.data.Dataset"
            )

    def next(self) -> Any:
        """The data of a step."""
        return self._data if self._iterator is None else next(self._iterator)


class Pieces:
    """A sum of matrices, of which a product takes one at a time.

    Args:
        count: their number, an int or an integer tensor.
        part: part(i, vectors) builds, in the graph under construction, the product with matrix i (an integer tensor).
        rest: rest(vectors) builds the product with one more, if there is one.
    """

    def __init__(
        self,
        count: Any,
        part: Callable[[Any, list[Any]], Sequence[Any]],
        rest: Callable[[list[Any]], Sequence[Any]] | None = None,
    ) -> None:
        self.count, self.part, self.rest = count, part, rest

    def product(self, vectors: Sequence[Any]) -> list[Any]:
        """The product, one tensor per variable; may be called in a nested graph."""
        tensors = [tf.convert_to_tensor(s) for s in vectors]

        def add(i: Any, total: list[Any]) -> tuple[Any, list[Any]]:
            return i + 1, [t + part for t, part in zip(total, self.part(i, tensors), strict=True)]

        start = (tf.constant(0), [tf.zeros_like(s) for s in tensors])
        total = list(tf.while_loop(lambda i, *_: i < self.count, add, start, parallel_iterations=1)[1])
        if self.rest is None:
            return total
        # After the loop, so that the memory of its last piece is free.
        with tf.control_dependencies(total):
            tensors = [tf.identity(s) for s in tensors]
        return [t + more for t, more in zip(total, self.rest(tensors), strict=True)]


def of_losses(kind: str, variables: Sequence[Any], losses: Sequence[Callable[[], Evaluated]]) -> Pieces:
    """The mean of the matrices of several losses."""

    def part(i: Any, vectors: list[Any]) -> Sequence[Any]:
        def one(loss: Callable[[], Evaluated]) -> list[Any]:
            found = linearized(kind, loss(), variables).product(vectors)
            return [t / len(losses) for t in found]

        parts: Sequence[Any] = tf.switch_case(i, [lambda loss=loss: one(loss) for loss in losses])
        return parts

    return Pieces(len(losses), part)


def of_data(
    kind: str,
    variables: Sequence[Any],
    on: Callable[[Any], Evaluated],
    data: Any,
    *,
    size: int | None = None,
    micro: int | None = None,
) -> LinearizedGradient | LinearizedOutputs | Pieces:
    """The matrix of a loss that is a mean over examples.

    Args:
        kind: which matrix.
        variables: ``tf.Variable`` or Keras variables.
        on: builds the loss of some data in the graph under construction.
        data: a nest of tensors whose first dimension counts the examples.
        size: take the first so many examples only.
        micro: take so many at a time, a smaller rest at the end; None: all at once, linearised once.

    Equal to the matrix of the whole to rounding, where the loss of each example is its own: not through batch
    statistics, and with dropout the pieces have masks of their own.
    """
    leaves = [t for t in tf.nest.flatten(data) if t is not None]
    total = leaves[0].shape[0] or tf.shape(leaves[0])[0]
    if size is not None:
        total = min(size, total) if isinstance(total, int) else tf.minimum(size, total)
        data = _examples(data, 0, total)
    if micro is None:
        return linearized(kind, on(data), variables)

    def of(begin: Any, count: Any, vectors: list[Any]) -> Sequence[Any]:
        found = linearized(kind, on(_examples(data, begin, count)), variables).product(vectors)
        share = tf.cast(count, tf.float64) / tf.cast(total, tf.float64)
        return [tf.cast(share, t.dtype) * t for t in found]

    if isinstance(total, int):  # pieces of one size, which XLA needs, and a rest
        full, left = divmod(total, micro)
        rest = None if left == 0 else lambda vectors: of(total - left, left, vectors)
        return Pieces(full, lambda i, vectors: of(i * micro, micro, vectors), rest)
    if in_xla():
        logger.warning(
            "micro_batch_size=%d is left out: XLA needs pieces of one size, and the size of the batch is not known. "
            "Give batches of one size (drop_remainder=True)",
            micro,
        )
        return linearized(kind, on(data), variables)
    return Pieces(
        (total + micro - 1) // micro,
        lambda i, vectors: of(i * micro, tf.minimum(micro, total - i * micro), vectors),
    )


def _examples(data: Any, begin: Any, count: Any) -> Any:
    """``count`` examples from ``begin`` on."""

    def cut(t: Any) -> Any:
        if t is None:
            return None
        t = tf.convert_to_tensor(t)
        rest = [0] * (t.shape.rank - 1)
        out = tf.slice(t, [begin, *rest], [count, *[-1] * len(rest)])
        out.set_shape([count if isinstance(count, int) else None, *t.shape[1:]])
        return out

    return tf.nest.map_structure(cut, data)
