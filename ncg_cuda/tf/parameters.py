"""What NewtonCG accepts, and what it says where it cannot work."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import keras
import tensorflow as tf

from .gauss_newton import CURVATURES
from .solver import PATHS, check_numbers

RUNS_EAGERLY = (
    "NewtonCG differentiates gradients inside a graph and cannot run eagerly. In fit: compile the model without "
    "run_eagerly=True (and without tf.config.run_functions_eagerly(True)). In a training loop of your own: put the "
    "step into a tf.function, or use minimize(loss_fn, variables)"
)

NO_CURVATURE = (
    "none of the gradients depends on the variables in this graph, so the Hessian would be zero. Either the gradients "
    "were computed outside and passed in: compute them in the same tf.function as the step. Or the loss is linear in "
    "the weights and has no minimum"
)

NO_OBJECTIVE = (
    "This step has no objective: the optimizer was called with gradients only, so it can neither evaluate the loss "
    "again nor build its curvature on other data. Train with fit (after compile(optimizer=...)) or minimize, or leave "
    "out what asks for that (report_loss_after, curvature_batch_size, micro_batch_size, curvature_data)"
)

NO_OUTPUTS = (
    "is taken at the model's outputs, which are not known here. In fit they are (after compile(optimizer=...)); for "
    "minimize let loss_fn return (loss, outputs), the outputs being the tensors that the loss was computed from; a "
    "training loop of your own should call minimize"
)


def check_parameters(
    *, tau: Any, cg_tol: Any, max_iter: Any, max_step: Any, path: Any, curvature: Any, **sizes: Any
) -> None:
    """Raise a ValueError for a parameter out of range."""
    if curvature not in CURVATURES:
        raise ValueError(f"curvature={curvature!r} is not known; allowed: {', '.join(map(repr, CURVATURES))}")
    for name, size in sizes.items():
        if size is not None and (isinstance(size, bool) or not isinstance(size, Integral) or size < 1):
            raise ValueError(f"{name}={size!r} is not allowed: give a number of examples >= 1, or None")
    if tf.is_tensor(tau) or tf.is_tensor(cg_tol):
        raise ValueError(f"tau={tau!r} and cg_tol={cg_tol!r} must be Python numbers")
    check_numbers(tau=tau, cg_tol=cg_tol, max_iter=max_iter)
    if max_step is not None and not (isinstance(max_step, Real) and 0 < float(max_step) < math.inf):
        raise ValueError(f"max_step={max_step!r} is not allowed: give a number > 0, or None for no limit")
    if path not in PATHS:
        raise ValueError(f"path={path!r} is not known; allowed: {', '.join(map(repr, PATHS))}")


_KERAS_OPTIONS: dict[str, tuple[type, Callable[[Any], bool], str]] = {
    "clipnorm": (Real, lambda v: 0 < v < math.inf, "a number > 0, or None for no clipping"),
    "clipvalue": (Real, lambda v: 0 < v < math.inf, "a number > 0, or None for no clipping"),
    "global_clipnorm": (Real, lambda v: 0 < v < math.inf, "a number > 0, or None for no clipping"),
    "weight_decay": (Real, lambda v: 0 <= v < math.inf, "a number >= 0, or None for no decay"),
    "gradient_accumulation_steps": (Integral, lambda v: v >= 2, "an integer >= 2, or None for a step per batch"),
    "ema_momentum": (Real, lambda v: 0 <= v <= 1, "a number from 0 to 1"),
    "ema_overwrite_frequency": (Integral, lambda v: v >= 1, "an integer >= 1, or None for never"),
}


def check_keras_options(**options: Any) -> None:
    """Raise a ValueError for an option out of range that Keras's base class accepts, or stumbles on later."""
    for name, value in options.items():
        kind, allowed, text = _KERAS_OPTIONS[name]
        if value is None and name != "ema_momentum":
            continue
        if isinstance(value, bool) or not isinstance(value, kind) or not allowed(value):
            raise ValueError(f"{name}={value!r} is not allowed: give {text}")


def checked_learning_rate(learning_rate: Any) -> Any:
    """A schedule or callable as it is, a number as a float; raises a ValueError for anything else."""
    if isinstance(learning_rate, keras.optimizers.schedules.LearningRateSchedule) or callable(learning_rate):
        return learning_rate
    try:
        value = float(learning_rate)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise ValueError(
            f"learning_rate={learning_rate!r} is not allowed: give a number >= 0 or a LearningRateSchedule"
        )
    return value
