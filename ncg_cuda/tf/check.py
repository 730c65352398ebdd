"""``check_curvature``: are the Hessian products of your own model right?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .double import double, in_float64
from .graphs import graph_chain, raw_variable
from .locate import wrong_layers
from .probe import HELD, OK, PRECISION, UNSURE, WRONG, Probe, probe_with_stops
from .vectors import check_variables

_NAMED = 3
"""So many operations are named in a note."""
_NOT_IN_FLOAT64 = "TensorFlow cannot compute the gradient in float64"


@dataclass(frozen=True)
class VariableCheck:
    """One variable's part of the product.

    Attributes:
        variable: its name.
        layer: the layer that it belongs to, as far as its name tells.
        relative_error: of the product against differences of the gradient.
        verdict: ``"ok"``; ``"wrong"``; ``"ok with stops held"``: right for the loss in which all values that pass
            through ``stop_gradient`` are constants, but not the derivative of the gradient; ``"not twice
            differentiable"``: there is no product; ``"unsure"``: the differences are not exact enough to say.
    """

    variable: str
    layer: str
    relative_error: float
    verdict: str


@dataclass(frozen=True)
class CurvatureCheck:
    """What :func:`check_curvature` found; ``str()`` is the report.

    Attributes:
        rows: one per variable, in order.
        asymmetry: |s·Ht - t·Hs| for two random directions, relative.
        symmetric: whether that is rounding; False where there was no product to check.
        precision: in what the check was computed.
        tolerance: the relative error that counts as agreement: 1e-6 in float64, 1e-2 in float32; 1e-4 in float64 with
            an operation in between that TensorFlow computes in float32, which a note then names.
        wrong_layers: the layers whose own second derivative is wrong or missing; empty where none is or none was found.
        refusal: the error that a product raises; empty where it raises none.
        notes: what else to know.
    """

    rows: list[VariableCheck]
    asymmetry: float
    symmetric: bool
    precision: str
    tolerance: float
    wrong_layers: list[str] = field(default_factory=list)
    refusal: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every variable's part is right, and the product symmetric."""
        return self.symmetric and all(row.verdict == OK for row in self.rows)

    def __str__(self) -> str:
        width = max(len(row.variable) for row in self.rows) + 2
        doubt = self.symmetric and {row.verdict for row in self.rows} <= {OK, UNSURE}
        word = "ok" if self.ok else "unsure" if doubt else "NOT ok"
        lines = [f"Hessian products: {word} (checked in {self.precision}, relative error at most {self.tolerance:.0e})"]
        layer = None
        for row in self.rows:
            if row.layer != layer:
                layer = row.layer
                lines.append(f"  {layer or 'variables'}")
            lines.append(f"    {row.variable:<{width}}{row.relative_error:8.1e}  {row.verdict}")
        symmetry = f"{self.asymmetry:.1e}  {'ok' if self.symmetric else 'NOT symmetric'}"
        lines.append(f"  symmetry: {'not checked' if np.isnan(self.asymmetry) else symmetry}")
        lines += [f"  wrong second derivative in layer: {name}" for name in self.wrong_layers]
        lines += [f"  error: {self.refusal}"] if self.refusal else []
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


def check_curvature(
    model_or_loss: Any,
    variables: Sequence[Any] | None = None,
    *,
    x: Any = None,
    y: Any = None,
    sample_weight: Any = None,
    seed: int = 0,
) -> CurvatureCheck:
    """Compare Hessian products with finite differences of the gradient, for a model and data of your own.

    Args:
        model_or_loss: a compiled Keras model, whose loss is taken in training mode on the batch ``x, y``; or a callable
            without arguments that returns the loss, a scalar tensor, as for :func:`hessian_vector_product`.
        variables: the variables, ``tf.Variable`` or Keras variables, all float32 or all float64; by default the model's
            trainable ones. Needed for a callable.
        x: inputs of the model, as for ``model.train_on_batch``; a small batch will do.
        y: targets.
        sample_weight: weights of the samples, or None.
        seed: of the two random directions.

    Returns:
        The report: a row per variable, the layers to blame, and ``ok``.

    A Keras model is checked as a copy in float64 if it can be copied; then a relative error of 1e-6 shows, or of 1e-4
    where the loss runs through operations that TensorFlow computes in float32 (bilinear or bicubic resizing). Otherwise
    the check runs in the variables' own type and shows about 1e-2 in float32. Weights, moving averages and random
    seeds are as before afterwards; dropout draws the same masks in every evaluation. Costs about 20 gradients; where
    something is wrong also some of each layer. Not for use inside a ``tf.function`` or from several threads at once:
    while it works, Keras's default type is float64.

    Raises:
        ValueError: bad arguments, a loss whose gradient cannot be computed, or one that draws random numbers that
            cannot be drawn again.
        RuntimeError: inside a ``tf.function``.
    """
    if graph_chain():
        raise RuntimeError("check_curvature runs eagerly: call it outside of tf.function")
    notes: list[str] = []
    if not isinstance(model_or_loss, keras.Model):
        if not callable(model_or_loss) or variables is None:
            raise ValueError(
                "check_curvature needs a compiled Keras model with x and y, or a callable that returns the loss "
                f"together with variables; got {type(model_or_loss).__name__}, variables={variables!r}"
            )
        if x is not None or y is not None or sample_weight is not None:
            raise ValueError("x, y and sample_weight belong to a Keras model; a callable has its own data")
        return _check(model_or_loss, list(variables), list(variables), seed, notes)

    model = model_or_loss
    if not model.compiled or x is None:
        raise ValueError("a Keras model needs compile(loss=...) and the arguments x and y")
    if not model.built:
        model(_tensors(x, None))
    chosen = list(model.trainable_variables if variables is None else variables)
    places = {id(v): i for i, v in enumerate(model.variables)}
    if any(id(v) not in places for v in chosen):
        raise ValueError("variables has one that does not belong to the model; give a callable loss instead")
    with in_float64():
        try:
            copied = double(model, _tensors(x, tf.float64))
        except Exception as error:
            copied = None
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            notes.append(f"the model cannot be copied to float64, so small errors do not show: {reason}")
        if copied is not None:
            mine = [copied.variables[places[id(v)]] for v in chosen]
            loss_fn = _loss_of(copied, x, y, sample_weight, tf.float64)
            try:
                return _check(loss_fn, mine, chosen, seed, notes)
            except (TypeError, tf.errors.OpError) as error:  # such as resizing by 'lanczos3'
                notes.append(_NOT_IN_FLOAT64 + ", so small errors do not show: " + str(error).splitlines()[0])
    return _check(_loss_of(model, x, y, sample_weight, None), chosen, chosen, seed, notes)


def _loss_of(model: Any, x: Any, y: Any, sample_weight: Any, dtype: Any) -> Callable[[], Any]:
    x, y, sample_weight = (_tensors(t, dtype) for t in (x, y, sample_weight))

    def loss_fn() -> Any:
        y_pred = model(x, training=True)
        return model.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True)

    return loss_fn


def _tensors(data: Any, dtype: Any) -> Any:
    def tensor(value: Any) -> Any:
        t = tf.convert_to_tensor(value)
        return tf.cast(t, dtype) if dtype is not None and t.dtype.is_floating else t

    return None if data is None else tf.nest.map_structure(tensor, data)


def _check(
    loss_fn: Callable[[], Any], variables: list[Any], named: list[Any], seed: int, notes: list[str]
) -> CurvatureCheck:
    check_variables(variables)
    dtype = raw_variable(variables[0]).dtype
    found: Probe = probe_with_stops(loss_fn, variables, seed)
    rows = [
        VariableCheck(name, name.rpartition("/")[0], f.error, f.verdict)
        for name, f in zip(map(_name, named), found.findings, strict=True)
    ]
    verdicts = {row.verdict for row in rows}
    layers = wrong_layers(loss_fn, seed) if verdicts & {WRONG, HELD} or found.refusal else []
    if verdicts & {WRONG, HELD} and not layers:
        notes.append("no layer is wrong by itself: look at the loss and at code outside of layers")
    if HELD in verdicts:
        notes.append(
            "values that depend on the variables pass through stop_gradient, and the product holds them constant. "
            "That is what SpectralNormalization and BatchNormalization(renorm=True) mean; if the stop is your own, "
            "make sure that you mean it, too"
        )
    tolerance = found.precision.tolerance
    if found.single:
        more = f" and {len(found.single) - _NAMED} more" if len(found.single) > _NAMED else ""
        notes.append(
            f"TensorFlow computes in float32 only: {', '.join(found.single[:_NAMED])}{more}. So the tolerance is "
            f"{tolerance:.0e}, not {PRECISION[dtype].tolerance:.0e}"
        )
    if UNSURE in verdicts:
        advice = ["check a smaller batch"]
        if found.kinks:
            advice.append("the model with smooth activations")
        if found.single:
            advice.append("the model without the operations that are in float32")
        elif dtype == tf.float32 and not any(note.startswith(_NOT_IN_FLOAT64) for note in notes):
            advice.append("in float64")
        notes.append(
            "differences over several steps do not agree with each other"
            + (": the loss has kinks (ReLU, max, abs)" if found.kinks else "")
            + "; "
            + ", or ".join(advice)
        )
    if any(row.verdict == OK and row.relative_error > tolerance for row in rows):
        notes.append(
            f"a row above {tolerance:.0e} is ok where the differences themselves are no more exact: it is at most ten "
            "times what they disagree by over two steps"
        )
    symmetric = bool(found.asymmetry <= found.precision.symmetry)  # False for NaN: there was no product
    return CurvatureCheck(rows, found.asymmetry, symmetric, dtype.name, tolerance, layers, found.refusal, notes)


def _name(variable: Any) -> str:
    return str(getattr(variable, "path", None) or variable.name.split(":")[0])


__all__ = ["CurvatureCheck", "VariableCheck", "check_curvature"]
