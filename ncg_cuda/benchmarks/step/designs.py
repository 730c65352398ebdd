"""The ways to take a step. Each is traced once; how many products a call makes is decided at every call.

A traced step is told by two variables: ``tau``, the damping, and whether to solve at all. So the same graph gives a
step of m products and one of none, whose difference is the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from ...state import StopReason
from ...tf import NewtonCG
from ...tf.gauss_newton import LinearizedOutputs
from ...tf.graphs import raw_variable
from ...tf.newton import newton_step
from ...tf.objective import from_loss_fn
from . import reference_design
from .problems import Problem

DESIGNS = {
    "fused": "linearised once, vector work fused in the custom op",
    "plain": "linearised once, vector work in TensorFlow operations",
    "reference": "relinearised for each product, CG per weight tensor, vector work in TensorFlow operations",
}
_NEVER = 1e30
"""A CG tolerance at which the right-hand side counts as solved."""
_STAND_IN_TAU = 1.0
"""The damping that a network needs may be so large that CG is through with the stand-in at once."""


@dataclass
class Step:
    """A design on a problem."""

    step: Any
    """A ``tf.function``: one step; returns a scalar tensor."""
    make_vector_work: Callable[[], Any]
    """Makes a ``tf.function``: all between gradient and direction, with :func:`stand_in` as the product. Not before it
    is needed, because its vectors are memory that a step does not take."""
    linearise: Any
    """A ``tf.function``: what a step computes once, before its loop."""
    products: Callable[[], int]
    """How many the last call of ``step`` made."""
    converged: Callable[[], bool]
    """Whether the last call of ``step`` ended because it was done."""
    set_tau: Callable[[float], None]
    set_solving: Callable[[bool], None]


class _Adjustable(NewtonCG):
    """NewtonCG with damping and tolerance in variables, so that they change without tracing anew."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(learning_rate=0.0, max_step=None, **settings)
        # In a list: Keras would track a variable as part of the optimizer's state.
        self._adjustable = [(tf.Variable(1.0, dtype=tf.float64), tf.Variable(0.0, dtype=tf.float64))]

    tau = property(lambda self: self._adjustable[0][0].read_value())
    cg_tol = property(lambda self: self._adjustable[0][1].read_value())

    def adjustable(self) -> tuple[Any, Any]:
        """Damping and tolerance."""
        return self._adjustable[0]


def build(problem: Problem, design: str, curvature: str, iterations: int) -> Step:
    """A design, not yet traced. The learning rate is 0: the weights are written, but stay as they are."""
    if design == "reference":
        return _reference(problem, iterations)
    optimizer = _Adjustable(curvature=curvature, max_iter=iterations, path="op" if design == "fused" else "plain")
    optimizer.build(list(problem.variables))
    tau, tolerance = optimizer.adjustable()

    @_function
    def step() -> Any:
        return optimizer.minimize(problem.loss_and_outputs, problem.variables)

    @_function
    def linearise() -> Any:
        known, gradients, commit = from_loss_fn(problem.loss_and_outputs, problem.variables)
        commit()
        if curvature == "hessian":
            return gradients
        matrix = LinearizedOutputs(known.loss, known.outputs, problem.variables, kind=curvature, gradients=gradients)
        return gradients, [w for w in matrix._w if w is not None]

    def make_vector_work() -> Any:
        gradients, diagonal = vectors(problem)

        @_function
        def vector_work() -> Any:
            found = newton_step(
                _StandIn(gradients, diagonal).product,
                gradients,
                clipped=gradients,
                learning_rate=0.0,
                tau=_STAND_IN_TAU,
                cg_tol=tolerance.read_value(),
                max_iter=iterations,
                max_step=None,
                path=optimizer.path,
            )
            return found.moves, found.numbers["products"]

        return vector_work

    def set_solving(on: bool) -> None:
        tolerance.assign(0.0 if on else _NEVER)

    def products() -> int:
        report = optimizer.last_step
        return 0 if report is None else report.products

    def converged() -> bool:
        report = optimizer.last_step
        return report is not None and report.stop_reason is StopReason.CONVERGED

    return Step(step, make_vector_work, linearise, products, converged, tau.assign, set_solving)


def _reference(problem: Problem, iterations: int) -> Step:
    tau, limit = tf.Variable(1.0), tf.Variable(iterations)
    made = tf.Variable(0)
    raw = [raw_variable(v) for v in problem.variables]

    @_function
    def step() -> Any:
        loss, gradients = reference_design.gradient(problem)
        steps, count = reference_design.direction(
            lambda s: reference_design.hessian_product(problem, s), gradients, tau=tau, iterations=limit
        )
        made.assign(count)
        for v, d in zip(raw, steps, strict=True):
            v.assign_add(tf.math.multiply_no_nan(d, 0.0))
        return loss

    def make_vector_work() -> Any:
        gradients, diagonal = vectors(problem)
        return _function(
            lambda: reference_design.direction(
                lambda s: stand_in(diagonal, s), gradients, tau=_STAND_IN_TAU, iterations=limit
            )
        )

    return Step(
        step,
        make_vector_work,
        _function(lambda: reference_design.gradient(problem)),
        lambda: int(made.numpy()),
        lambda: False,
        tau.assign,
        lambda on: limit.assign(iterations if on else 0),
    )


def gradient_step(problem: Problem) -> Any:
    """The unit: forward and backward pass and SGD's update, a ``tf.function`` that returns the loss."""
    import keras

    optimizer = keras.optimizers.SGD(learning_rate=0.0)
    optimizer.build(list(problem.variables))

    @_function
    def step() -> Any:
        loss, gradients = reference_design.gradient(problem)
        optimizer.apply(gradients, problem.variables)
        return loss

    return step


class _StandIn:
    """In the place of a linearised gradient."""

    def __init__(self, gradients: Sequence[Any], diagonal: Sequence[Any]) -> None:
        self.gradients, self._diagonal = list(gradients), diagonal

    def product(self, s: Sequence[Any]) -> list[Any]:
        return stand_in(self._diagonal, s)


def stand_in(diagonal: Sequence[Any], s: Sequence[Any]) -> list[Any]:
    """D s for a diagonal D, tensor by tensor: in the place of a product, to measure what is around it."""
    return [d * v for d, v in zip(diagonal, s, strict=True)]


def vectors(problem: Problem) -> tuple[list[Any], list[Any]]:
    """A right-hand side and a positive diagonal of condition 1e4, over which CG needs far more iterations than are
    measured.
    """
    shapes = [raw_variable(v).shape for v in problem.variables]
    b = [tf.random.stateless_normal(shape, [1, i]) for i, shape in enumerate(shapes)]
    d = [tf.exp(9.2 * tf.random.stateless_uniform(shape, [2, i])) for i, shape in enumerate(shapes)]
    return b, d


def stand_in_alone(problem: Problem, iterations: int) -> Any:
    """So many stand-ins in a loop and nothing else: what must be taken off the time with them."""
    start, _ = vectors(problem)
    factors = [tf.random.stateless_uniform(v.shape, [3, i], 0.9, 1.1) for i, v in enumerate(start)]

    @_function
    def loop() -> Any:
        def body(i: Any, s: list[Any]) -> tuple[Any, list[Any]]:
            return i + 1, stand_in(factors, s)

        return tf.while_loop(lambda i, _: i < iterations, body, (tf.constant(0), start), parallel_iterations=1)

    return loop


def _function(f: Callable[[], Any]) -> Any:
    return tf.function(f, autograph=False)
