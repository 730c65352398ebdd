"""The seam between the optimizer and the loss: how a step can evaluate the model again, without side effects.

Keras tells an optimizer gradients and variables, nothing else. What needs more (the loss after a step, line search,
damping by reduction ratio, Gauss-Newton products) asks :func:`current` for the :class:`Objective` of the step under
construction. There are two ways to one:

- ``minimize(loss_fn, variables)``: :func:`from_loss_fn`.
- ``fit``: ``compile`` tells the model about its optimizer; for a model compiled with an optimizer that wants an
  objective, :mod:`ncg_cuda.tf.keras_fit` wraps ``train_step`` and ``compute_loss`` of that one model instance.

A loop that calls ``apply_gradients`` by hand has no objective; what needs one raises and says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import keras
import tensorflow as tf

from .curvature import gradient
from .curvature_batch import Evaluated, loss_gradients
from .graphs import ancestors, in_xla, nested_functions, raw_variable

Values = Sequence[Any] | None


logger = logging.getLogger("ncg_cuda")

_ANOTHER_LOSS = (
    "{} is taken of the loss that compute_loss returned, but train_step differentiates another one (scaled, say, or "
    "with something added): the gradients differ. Let train_step differentiate what compute_loss returns (override "
    "compute_loss to change the loss), or take the Hessian of the whole batch, which needs the gradients alone"
)
_UNCHECKED = (
    "train_step is a custom one, and XLA cannot check that it differentiates the loss that compute_loss returns; "
    "compile the model with jit_compile=False to have it checked"
)
_NO_MEAN = (
    "micro_batch_size needs a loss that is a mean over the examples, but here the parts of the batch do not add up to "
    "the whole. Reasons: reduction='sum' or 'mean_with_sample_weight', a mask "
    "that leaves out other numbers of steps in each part, a compute_loss of your own. Use "
    "reduction='sum_over_batch_size', or leave out micro_batch_size"
)


def _agree(one: Sequence[Any], other: Sequence[Any], loss: Any) -> Any:
    """Whether two gradients, None where nothing depends on it, are equal to rounding, or one is not finite."""
    tolerance = {"float64": 1e-8, "float32": 1e-4}.get(loss.dtype.name, 3e-2)
    difference, size = tf.zeros((), tf.float64), tf.zeros((), tf.float64)
    for a, b in zip(one, other, strict=True):
        a, b = (None if t is None else tf.convert_to_tensor(t) for t in (a, b))
        if a is None and b is None:
            continue
        a = tf.zeros_like(b) if a is None else a
        b = tf.zeros_like(a) if b is None else tf.cast(b, a.dtype)
        difference += tf.cast(tf.nn.l2_loss(a - b), tf.float64)
        size += tf.cast(tf.nn.l2_loss(a), tf.float64) + tf.cast(tf.nn.l2_loss(b), tf.float64)
    return (difference <= tolerance**2 * size) | ~tf.math.is_finite(size)


def _examples_in(outputs: Any) -> Any:
    first = tf.nest.flatten(outputs)[0]
    return first.shape[0] or tf.shape(first)[0]


class Objective:
    """The loss of one step as a function of the weights; lives in the graph of that step.

    Attributes:
        variables: the variables the optimizer was given, in order.
        loss: the step's loss, a scalar tensor, before any loss scaling.
        x, y, y_pred, sample_weight: the batch and the model's output in ``fit``; None in ``minimize``.
        outputs: the tensors between the model and its loss, as far as they are known.
        data: in ``fit``, the batch as train_step got it: a nest of tensors; None in ``minimize``.
    """

    def __init__(
        self,
        variables: Sequence[Any],
        loss: Any,
        evaluate: Callable[[Values], Any],
        *,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        outputs: Sequence[Any] = (),
        fisher_loss: Callable[[], Any] | None = None,
        data: Any = None,
        on: Callable[[Any], Evaluated] | None = None,
        parts: Callable[[Sequence[tuple[Any, Any]]], tuple[list[Any], list[Any]]] | None = None,
        certain: bool = True,
    ) -> None:
        self.variables = list(variables)
        self.loss = loss
        self.x, self.y, self.y_pred, self.sample_weight = x, y, y_pred, sample_weight
        self.outputs = list(outputs)
        self._evaluate, self._fisher_loss = evaluate, fisher_loss
        self.data, self._on, self._parts = data, on, parts
        self._certain = certain
        self._refusal: str | None = None

    def refuse(self, why: str) -> None:
        """Make every later :meth:`loss_at` and :meth:`verify` raise: ``loss`` is not the one that is differentiated."""
        self._refusal = self._refusal or why

    def evaluated(self, gradients: Sequence[Any]) -> Evaluated:
        """The loss as it is, with its gradient."""
        return Evaluated(self.loss, self.outputs, self.fisher_loss, gradients)

    def on(self, data: Any) -> Evaluated:
        """The loss on other data, built in the graph under construction; nothing that it assigns takes effect.

        Raises:
            RuntimeError: in ``minimize``, whose loss_fn takes no data.
        """
        self.require_data()
        assert self._on is not None
        return self._on(data)

    def require_data(self) -> None:
        """Raise a RuntimeError where the loss cannot be built on other data."""
        if self._on is None:
            raise RuntimeError(
                "curvature_batch_size, micro_batch_size and curvature_data need the data of fit; for minimize, give it "
                "a curvature_loss_fn, or several"
            )

    def verify(self, gradients: Sequence[Any], what: str) -> None:
        """See to it that ``loss`` is the loss that the gradients belong to, where a custom train_step leaves that open.

        Args:
            gradients: one tensor per variable.
            what: what depends on it, for the message.

        There the gradient of ``loss`` is computed once more and compared while the step runs (not under XLA, which
        knows no assertions).

        Raises:
            RuntimeError: it is known not to be.
        """
        if self._refusal is not None:
            raise RuntimeError(
                f"{what} needs the loss that is differentiated, which is not known here: {self._refusal}"
            )
        if self._certain:
            return
        if in_xla():
            logger.warning("%s: %s", what, _UNCHECKED)
        same = _agree(loss_gradients(self.loss, self.variables), gradients, self.loss)
        tf.debugging.Assert(same, [_ANOTHER_LOSS.format(what)])

    def require_mean(self, count: int) -> None:
        """See to it that the loss is a mean over the examples, so that pieces of ``count`` make up the whole: compared
        on the outputs that are there, while the step runs.

        Raises:
            RuntimeError: in ``minimize``.
            ValueError: it is known not to be one.
        """
        self.require_data()
        assert self._parts is not None
        total = _examples_in(self.y_pred)
        first = tf.minimum(count, tf.maximum(total - 1, 1))
        (whole, a, b), outputs = self._parts([(0, total), (0, first), (first, total - first)])
        share = tf.cast(first, whole.dtype) / tf.cast(total, whole.dtype)
        # the rest of a batch of one is empty, and the mean over nothing is not a number
        parts = share * a + tf.math.multiply_no_nan(b, 1 - share)
        same = _agree(tf.gradients(whole, outputs), tf.gradients(parts, outputs), whole)
        tf.debugging.Assert(same | tf.equal(total, 1), [_NO_MEAN])

    def fisher_loss(self) -> Any:
        """The loss with the labels replaced by what the model expects, held fixed; None where the loss will do.

        Raises:
            ValueError: that is not possible; the message says why.
        """
        return None if self._fisher_loss is None else self._fisher_loss()

    def loss_at(self, values: Values = None) -> Any:
        """The same loss, on the same batch with the same random numbers, at other weights.

        Args:
            values: one tensor per variable, or None for the values that the variables hold at this point of the
                program.

        Returns:
            A scalar tensor. At the weights of the step it equals ``loss`` to the last bit. Weights, moving statistics
            and seed generators are the same afterwards. Costs one forward pass.

        Raises:
            ValueError: wrong number, shape or dtype of values.
            RuntimeError: the loss cannot be evaluated again; the message says why.
        """
        refusal = self._refusal or stateful_randomness(self.loss)
        if refusal is not None:
            raise RuntimeError(f"The loss of this step cannot be evaluated again: {refusal}")
        if values is None:
            return self._evaluate(None)
        if len(values) != len(self.variables):
            raise ValueError(f"{len(values)} values for {len(self.variables)} variables; one per variable is needed")
        tensors = [tf.convert_to_tensor(v) for v in values]
        for i, (t, v) in enumerate(zip(tensors, map(raw_variable, self.variables), strict=True)):
            if t.dtype != v.dtype or not t.shape.is_compatible_with(v.shape):
                raise ValueError(
                    f"values[{i}] has shape {t.shape}, dtype {t.dtype.name}; its variable {v.name!r} needs "
                    f"shape {v.shape}, dtype {v.dtype.name}"
                )
        return self._evaluate(tensors)


_current: ContextVar[tuple[Any, Objective] | None] = ContextVar("ncg_cuda_objective", default=None)


def current(owner: Any) -> Objective | None:
    """The objective of the step that ``owner``, an optimizer, is taking now, or None where nobody provided one."""
    entry = _current.get()
    return entry[1] if entry is not None and entry[0] is owner else None


def provide(owner: Any, objective: Objective | None) -> Any:
    """Make the objective current for ``owner``; returns the token for :func:`withdraw`."""
    return _current.set(None if objective is None else (owner, objective))


def withdraw(token: Any) -> None:
    """Undo :func:`provide`."""
    _current.reset(token)


class RecordingScope(keras.StatelessScope):  # type: ignore[misc]
    """A StatelessScope that remembers which variables were assigned, and reads those without a value as they are."""

    def __init__(self, mapping: Sequence[tuple[Any, Any]] = ()) -> None:
        super().__init__(state_mapping=list(mapping), collect_losses=True)
        self.updates: dict[int, tuple[Any, Any]] = {}

    def add_update(self, update: tuple[Any, Any]) -> None:
        """Record an assignment made inside the scope."""
        super().add_update(update)
        self.updates[id(update[0])] = update

    def get_current_value(self, variable: Any) -> Any:
        """The value inside the scope; the variable itself where it has none (Keras expects one for regularizers)."""
        value = super().get_current_value(variable)
        return getattr(variable, "_value", None) if value is None else value

    def commit(self) -> None:
        """Make the recorded assignments, outside the scope."""
        for variable, value in self.updates.values():
            variable.assign(value)


@contextmanager
def replaced(variables: Sequence[Any], values: Values, state: Sequence[tuple[Any, Any]] = ()) -> Iterator[None]:
    """Inside, the variables have the given values and Keras state starts from ``state``; afterwards all is as before.

    A Keras variable is replaced in a stateless scope. A ``tf.Variable`` cannot be, so it is assigned and assigned back;
    ``tf.function`` keeps that order.
    """
    pairs = [] if values is None else list(zip(variables, values, strict=True))
    mapping = [(v, t) for v, t in pairs if isinstance(v, keras.Variable)]
    plain = [(v, t) for v, t in pairs if not isinstance(v, keras.Variable)]
    saved = [(v, tf.identity(v)) for v, _ in plain]
    for v, t in plain:
        v.assign(t)
    with RecordingScope([*state, *mapping]):
        yield
    for v, t in saved:
        v.assign(t)


def unpacked(value: Any) -> tuple[Any, list[Any], Any]:
    """What a loss_fn returned: the loss, the model's outputs, and the loss for the labels that the model expects.

    Raises:
        ValueError: a tuple of another length.
    """
    if not isinstance(value, tuple):
        return value, [], None
    if len(value) not in (2, 3):
        raise ValueError(
            f"loss_fn returned a tuple of {len(value)}; allowed: loss, or (loss, outputs), or (loss, outputs, "
            "fisher_loss)"
        )
    return value[0], tf.nest.flatten(value[1]), value[2] if len(value) == 3 else None


def from_loss_fn(
    loss_fn: Callable[[], Any], variables: Sequence[Any]
) -> tuple[Objective, list[Any], Callable[[], None]]:
    """The objective of ``loss_fn()``, its gradient, and a function that makes the Keras updates it asked for.

    ``loss_fn`` returns the loss, or (loss, outputs), or (loss, outputs, fisher_loss): see :func:`unpacked`.
    Assignments to Keras variables inside ``loss_fn`` (moving averages, seed generators) are held back until that
    function is called, so that every evaluation in between starts from the same state.
    """
    found: list[tuple[Any, list[Any], Any]] = []

    def first() -> Any:
        found.append(unpacked(loss_fn()))
        return found[0][0]

    with RecordingScope() as scope:
        loss, gradients = gradient(first, [raw_variable(v) for v in variables])
    _, outputs, fisher_loss = found[0]

    def evaluate(values: Values) -> Any:
        with replaced(variables, values):
            return tf.convert_to_tensor(unpacked(loss_fn())[0])

    objective = Objective(variables, loss, evaluate, outputs=outputs, fisher_loss=lambda: fisher_loss)
    return objective, gradients, scope.commit


def evaluated_loss_fn(loss_fn: Callable[[], Any]) -> Evaluated:
    """``loss_fn()`` built in the graph under construction; Keras variables that it assigns keep their values."""
    with RecordingScope():
        loss, outputs, fisher_loss = unpacked(loss_fn())
    return Evaluated(tf.convert_to_tensor(loss), outputs, lambda: fisher_loss)


_RANDOM = {
    "Multinomial",
    "ParameterizedTruncatedNormal",
    "RandomGamma",
    "RandomPoisson",
    "RandomPoissonV2",
    "RandomShuffle",
    "RandomStandardNormal",
    "RandomUniform",
    "RandomUniformInt",
    "RngReadAndSkip",
    "RngSkip",
    "StatefulRandomBinomial",
    "StatefulStandardNormal",
    "StatefulStandardNormalV2",
    "StatefulTruncatedNormal",
    "StatefulUniform",
    "StatefulUniformFullInt",
    "StatefulUniformInt",
    "TruncatedNormal",
}


def stateful_randomness(loss: Any) -> str | None:
    """Why the loss, a graph tensor, differs when it is evaluated again: its random numbers; None if it does not."""
    ops = ancestors([loss])
    kinds = {op.type for op in ops} | {node.op for f in nested_functions(ops) for node in f.node_def}
    found = sorted(kinds & _RANDOM)
    if not found:
        return None
    return (
        f"it draws random numbers that cannot be drawn again ({', '.join(found)}). Use Keras layers and keras.random "
        "with a keras.random.SeedGenerator, or tf.random.stateless_*"
    )
