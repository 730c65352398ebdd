"""Products with positive semidefinite curvatures: Gauss-Newton and Fisher matrices.

Let z be the model's outputs, J their Jacobian with respect to the weights, and L the loss as a function of z. All of
these matrices are JᵀCJ for a small matrix C at the outputs:

==================  ==================================================================================================
``gauss-newton``    C = d²L/dz², the loss's own second derivative: positive semidefinite for every loss that is convex
                    in z (squared error, cross-entropy from logits or probabilities, Poisson, Huber)
``fisher``          the expectation of that under the model's own distribution: C of the loss with the labels replaced
                    by what the model expects
``empirical-fisher``  C = N times the sum over examples of (dL/dz_i)(dL/dz_i)ᵀ: with the labels as they are, for a loss
                    that is a mean over N examples
==================  ==================================================================================================

In ``mixed_float16``, z is taken in float32, behind the loss's cast, and both halves of a product are scaled into
float16's range (:mod:`ncg_cuda.tf.half_precision`).

What does not pass through z (weight regularization, ``add_loss``) is added with its exact Hessian. The products by J
and Jᵀ run backward passes only: with w = Jᵀu, which is linear in a dummy u and built once, Js is the derivative of w by
u in the direction s. Sources: N. Schraudolph, "Fast curvature matrix-vector products" (Neural Computation 2002);
J. Martens, "New insights and perspectives on the natural gradient method" (JMLR 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from . import half_precision, second_derivatives
from .curvature import LinearizedGradient, dense
from .differentiable import check_twice_differentiable, explain
from .graphs import ancestors, depending_on, graph_chain, handles
from .scaling import times

CURVATURES = ("hessian", "gauss-newton", "fisher", "empirical-fisher")
"""The names of the curvature matrices; all but the first come from :class:`LinearizedOutputs`."""

PIECEWISE_LINEAR = (
    "The loss is linear in the model's outputs wherever it is differentiable (mean absolute error, hinge), so its "
    "Gauss-Newton matrix is zero. Use a loss with curvature, such as Huber, or curvature='empirical-fisher'"
)


_FLAT = {"Ceil", "Floor", "FloorDiv", "Rint", "Round", "Sign"}
"""Operations whose derivative is zero, for which TensorFlow may return zeros instead of None."""


class LinearizedOutputs:
    """The map s -> JᵀCJ s + B s, held in the graph under construction; B: the Hessian of what by-passes the outputs.

    Args:
        loss: a scalar tensor.
        outputs: the tensors z between the weights and the loss, in any number; those that the loss does not depend on
            are left out. For the empirical Fisher matrix, their first dimension counts the examples.
        variables: ``tf.Variable`` or Keras variables.
        kind: one of :data:`CURVATURES` but ``"hessian"``.
        fisher_loss: for ``"fisher"``: the loss with the labels replaced by the model's expectation, which must not be
            differentiated (``tf.stop_gradient``). By default the loss itself: right where its second derivative does
            not depend on the labels, as with squared error and with cross-entropy from logits.
        gradients: the gradient of the loss, one tensor (or None) per variable, if it is known already.

    Attributes:
        gradients: the gradient, one tensor (or None) per variable.
        has_curvature: whether the matrix can be other than zero.

    Raises:
        ValueError: an operation without a derivative; outputs that the loss does not depend on, or that do not depend
            on the variables; an unknown kind.
        RuntimeError: in eager execution.
    """

    def __init__(
        self,
        loss: Any,
        outputs: Sequence[Any],
        variables: Sequence[Any],
        *,
        kind: str = "gauss-newton",
        fisher_loss: Any = None,
        gradients: Sequence[Any] | None = None,
    ) -> None:
        if kind not in CURVATURES[1:]:
            raise ValueError(f"kind={kind!r} is not known; allowed: {', '.join(map(repr, CURVATURES[1:]))}")
        chain = graph_chain()
        if not chain:
            raise RuntimeError("LinearizedOutputs needs a graph: call it inside a tf.function")
        self.kind, self.variables = kind, list(variables)
        self._handles = [handles(v, chain) for v in self.variables]
        self._flat = [h for hs in self._handles for h in hs]
        with explain():
            if gradients is None:
                gradients = self._sum(tf.gradients(loss, self._flat))
            self.gradients = [None if g is None else dense(g) for g in gradients]
            self._choose_outputs(loss if fisher_loss is None else fisher_loss, list(outputs))
            self._transpose()
            by_passing = self._sum(
                half_precision.scaled_gradients(
                    loss, lambda slope: tf.gradients(loss, self._flat, grad_ys=slope, stop_gradients=self._stops)
                )
            )
        self._rest: LinearizedGradient | None = None
        if any(g is not None for g in by_passing):
            rest = LinearizedGradient(by_passing, self.variables, loss)
            self._rest = rest if rest.has_curvature else None
        self.has_curvature = self._rest is not None or kind == "empirical-fisher" or self._bends()

    def _choose_outputs(self, loss: Any, outputs: list[Any]) -> None:
        """Those outputs that the loss depends on directly, and its derivatives there."""
        outputs = list({id(z): z for z in outputs}.values())
        self._half = half_precision.uses_half(ancestors([loss, *outputs]))
        if self._half:
            outputs = half_precision.cast_outputs(loss, outputs)
        # Each output on its own: one that is a function of another one must not be counted twice.
        slopes = tf.gradients(loss, outputs, stop_gradients=outputs) if outputs else []
        pairs = [(z, dense(d)) for z, d in zip(outputs, slopes, strict=True) if d is not None]
        if not pairs:
            raise ValueError(
                "the loss depends on none of the outputs that were given, so there is no Gauss-Newton matrix. Give the "
                "tensors that the loss was computed from"
            )
        self._z = [z for z, _ in pairs]
        self._slopes = [d for _, d in pairs]
        # Another loss of the same outputs has casts of its own.
        self._stops = [*self._z, *half_precision.sources(self._z)] if self._half else self._z

    def _transpose(self) -> None:
        """W = Jᵀ u, whose derivative by u in the direction s is J s."""
        # Ones: some backward passes, linear as they are, divide by what they are given or take its logarithm.
        self._u = [tf.ones_like(z) for z in self._z]
        parts = tf.gradients(self._z, self._flat, grad_ys=self._u)
        if all(part is None for part in parts):
            raise ValueError("the outputs that were given do not depend on the variables in this graph")
        self._w = [None if part is None else dense(part) for part in parts]
        known = [part for part in self._w if part is not None]
        # From u to w the backward pass is linear: what the forward pass holds constant makes no difference.
        path = depending_on(self._u, ancestors(known))
        check_twice_differentiable(path)
        self._marks = second_derivatives.find_local(path)
        path = depending_on(self._z, ancestors(self._slopes))
        check_twice_differentiable(path)
        self._marks += second_derivatives.find(path)

    def _bends(self) -> bool:
        path = depending_on(self._z, ancestors(self._slopes))
        flat = [t for op in path if op.type in _FLAT for t in op.outputs]
        zeros = [tf.zeros_like(d) for d in self._slopes]
        curved = tf.gradients(self._slopes, self._z, grad_ys=zeros, stop_gradients=flat)
        return any(c is not None for c in curved)

    def _sum(self, parts: Sequence[Any]) -> list[Any]:
        """One tensor per variable, from one per handle; None where all of them are."""
        rest, out = iter(parts), []
        for hs in self._handles:
            mine = [dense(part) for part in (next(rest) for _ in hs) if part is not None]
            out.append(tf.add_n(mine) if mine else None)
        return out

    def jacobian_product(self, vectors: Sequence[Any]) -> list[Any]:
        """J s: one tensor per output that the loss depends on."""
        spread = [s for s, hs in zip(vectors, self._handles, strict=True) for _ in hs]
        pairs = [(w, s) for w, s in zip(self._w, spread, strict=True) if w is not None]
        with second_derivatives.applied(self._marks), explain():
            out = tf.gradients([w for w, _ in pairs], self._u, grad_ys=[s for _, s in pairs])
        return [tf.zeros_like(z) if t is None else dense(t) for t, z in zip(out, self._z, strict=True)]

    def output_product(self, tangents: Sequence[Any]) -> list[Any]:
        """C v for one tensor per output."""
        if self.kind == "empirical-fisher":
            return _outer_products(self._slopes, tangents)
        with second_derivatives.applied(self._marks), explain():
            out = tf.gradients(self._slopes, self._z, grad_ys=list(tangents), stop_gradients=self._z)
        return [tf.zeros_like(z) if t is None else dense(t) for t, z in zip(out, self._z, strict=True)]

    def product(self, vectors: Sequence[Any]) -> list[Any]:
        """(JᵀCJ + B) s for one tensor per variable; may be called in a nested graph, such as the body of a loop.

        Returns:
            One tensor per variable, with its shape and dtype; zero where nothing depends on it.
        """
        vectors = [tf.convert_to_tensor(s) for s in vectors]
        out = half_precision.in_range(self._curved, vectors) if self._half else self._curved(vectors)
        rest = [None] * len(out) if self._rest is None else self._rest.product(vectors)
        sums = []
        for part, more, s in zip(out, rest, vectors, strict=True):
            known = [t for t in (part, more) if t is not None]
            sums.append(tf.add_n(known) if known else tf.zeros_like(s))
        return sums

    def _curved(self, vectors: Sequence[Any], room: Any = None) -> list[Any]:
        """JᵀCJ s, or None; room: see :func:`ncg_cuda.tf.half_precision.in_range`."""
        curved = self.output_product(self.jacobian_product(vectors))
        factor = None
        if self._half:
            curved, factor = half_precision.adjoint(curved, room)
        with explain():
            out = self._sum(tf.gradients(self._z, self._flat, grad_ys=curved))
        if factor is None:
            return out
        known = [tf.zeros_like(s) if t is None else t for t, s in zip(out, vectors, strict=True)]
        return times(known, 1.0 / factor)


def _outer_products(slopes: Sequence[Any], tangents: Sequence[Any]) -> list[Any]:
    """N times, for each example i, slope_i (slope_i · tangent_i): the examples along the first dimension."""
    along, count = [], None
    for d, v in zip(slopes, tangents, strict=True):
        if d.shape.rank is None or d.shape.rank == 0:
            raise ValueError(
                f"curvature='empirical-fisher' needs outputs with one row per example; one has shape {d.shape}"
            )
        count = tf.shape(d)[0] if count is None else count
        along.append(tf.reduce_sum(tf.reshape(d * v, [tf.shape(d)[0], -1]), axis=1))
    total = tf.add_n([tf.cast(a, along[0].dtype) for a in along]) * tf.cast(count, along[0].dtype)
    return [d * tf.cast(tf.reshape(total, [-1] + [1] * (d.shape.rank - 1)), d.dtype) for d in slopes]
