"""What a row of the layer table is: a small problem in float64, and what the library promises for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from ..graphs import raw_variable
from ..objective import RecordingScope

EXACT, HELD, REFUSED = "exact", "held", "refused"


@dataclass(frozen=True)
class Problem:
    """A function of variables, in float64.

    Attributes:
        variables: ``tf.Variable`` and Keras variables.
        outputs: returns one vector, computed from the variables; a graph can be built from it again and again, and it
            draws the same random numbers every time.
    """

    variables: Sequence[Any]
    outputs: Callable[[], Any]

    def loss(self, outputs: Any) -> Any:
        """A convex function of the outputs, neither linear nor quadratic, with another weight for each of them."""
        n = outputs.shape[0] or tf.shape(outputs)[0]
        t = tf.range(tf.cast(n, outputs.dtype), dtype=outputs.dtype)
        weights = 1.0 + 0.5 * tf.sin(t)
        return tf.reduce_mean(weights * (0.5 * tf.square(outputs - tf.cos(2.0 * t)) + tf.math.softplus(outputs)))


@dataclass(frozen=True)
class Row:
    """One layer or operation and what is promised for products through it.

    Attributes:
        group: heading in the document.
        name: what is tested, in words of the user's code.
        build: makes the problem.
        expect: ``"exact"``: agrees with finite differences; ``"held"``: agrees with finite differences in which the
            values that the layer itself passes through ``stop_gradient`` keep their values; ``"refused"``: an error.
        op: for ``"refused"``, what the error names.
        single: TensorFlow computes it in float32 only, so that differences show its rounding.
        gauss_newton: what is promised for products with the Gauss-Newton matrix, where that is something else: these
            need no second derivative of the layer.
    """

    group: str
    name: str
    build: Callable[[], Problem]
    expect: str = EXACT
    op: str = ""
    single: bool = False
    gauss_newton: str = ""

    def promise(self, product: str) -> str:
        """What is promised for one of the products."""
        return self.gauss_newton or self.expect if product == "gauss-newton" else self.expect

    @property
    def tolerance(self) -> float:
        """Largest relative error of a product: the figure of the document."""
        return 1e-4 if self.single else 1e-6

    @property
    def step(self) -> float:
        """Step of the finite differences along a direction with entries of order 1."""
        return 1e-2 if self.single else 1e-4


def flat(values: Any) -> Any:
    """All floating-point tensors in a structure, as one vector."""
    tensors = [tf.convert_to_tensor(v) for v in tf.nest.flatten(values)]
    return tf.concat([tf.cast(tf.reshape(t, [-1]), tf.float64) for t in tensors if t.dtype.is_floating], 0)


def inputs(shapes: Sequence[Any], seed: int = 3) -> list[Any]:
    """One normally distributed ``tf.Variable`` of each shape."""
    rng = np.random.default_rng(seed)
    return [tf.Variable(rng.normal(size=shape), name=f"x{i}") for i, shape in enumerate(shapes)]


def op(function: Callable[..., Any], *shapes: Any, single: bool = False) -> Callable[[], Problem]:
    """A problem from a function of tensors: its arguments are the variables, in float32 inside if ``single``."""
    dtype = tf.float32 if single else tf.float64

    def build() -> Problem:
        x = inputs(shapes)
        return Problem(x, lambda: flat(function(*[tf.cast(v, dtype) for v in x])))

    return build


def group(heading: str, rows: dict[str, Any], single: bool = False, **refused: str) -> list[Row]:
    """Rows from ``name: (function, shape, ...)``; with ``op=...`` they are refused because of that operation, with
    ``gauss_newton=EXACT`` only where the product is one with the Hessian.
    """
    expect = {"expect": REFUSED, **refused} if refused else {}
    return [
        Row(heading, name, op(function, *shapes, single=single), single=single, **expect)
        for name, (function, *shapes) in rows.items()
    ]


def layer(make: Callable[[], Any], *shapes: Any, **call: Any) -> Callable[[], Problem]:
    """A problem from a Keras layer in training mode: its inputs and its weights are the variables.

    Args:
        make: makes the layer.
        shapes: of its inputs; several are given to the layer as a list.
        call: further arguments of the layer's call.
    """

    def build() -> Problem:
        made, x = make(), inputs(shapes)

        def outputs() -> Any:
            # In a stateless scope nothing is remembered from one evaluation to the next: the same seeds every time.
            with RecordingScope() as scope:
                tensors = [tf.convert_to_tensor(v) for v in x]
                y = flat(made(tensors if len(tensors) > 1 else tensors[0], training=True, **call))
                extra = [tf.reshape(t, [1]) for t in scope.losses or ()]
            return tf.concat([y, *extra], 0)

        made([tf.convert_to_tensor(v) for v in x] if len(x) > 1 else tf.convert_to_tensor(x[0]), **call)
        rng = np.random.default_rng(5)
        for v in made.trainable_variables:
            raw_variable(v).assign_add(0.3 * rng.normal(size=tuple(v.shape)))
        return Problem([*x, *made.trainable_variables], outputs)

    return build
