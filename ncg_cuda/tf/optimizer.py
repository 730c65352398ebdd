"""Newton-CG as a Keras 3 optimizer: one conjugate-gradient solve over all weights per step.

A step takes the gradient g that Keras (or :meth:`NewtonCG.minimize`) computed, solves (H + tau I) d = -g by at most
``max_iter`` CG iterations with exact Hessian products, checks that d is a descent direction, and moves the weights by
``learning_rate * d``. Method: Martens, "Deep learning via Hessian-free optimization" (ICML 2010); Nocedal and Wright,
"Numerical Optimization", chapter 7.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from . import keras_fit, objective, report
from .curvature import LinearizedGradient, dense
from .graphs import raw_variable
from .newton import Step, newton_step
from .parameters import (
    NO_CURVATURE,
    NO_OBJECTIVE,
    RUNS_EAGERLY,
    check_parameters,
    checked_learning_rate,
    refuse_unsupported,
)
from .vectors import check_variables

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        f"ncg_cuda.tf needs Keras on TensorFlow, but Keras runs on {keras.backend.backend()!r}. "
        "Set the environment variable KERAS_BACKEND=tensorflow before Keras is imported"
    )

keras_fit.install()

_CACHED_LOSSES = 16


@keras.saving.register_keras_serializable(package="ncg_cuda")
class NewtonCG(keras.optimizers.Optimizer):  # type: ignore[misc]
    """Newton's method with damping, its linear system solved by conjugate gradients.

    Use it in ``model.compile(optimizer=NewtonCG())``, or on a function: ``NewtonCG().minimize(loss_fn, variables)``.

    Args:
        learning_rate: the step length along d, a number >= 0 or a ``LearningRateSchedule``. 1 is Newton's step.
        tau: the damping of H + tau I, >= 0, in units of curvature. Larger is more careful and nearer to gradient
            descent.
        cg_tol: CG stops at a residual of ``cg_tol`` times the norm of the gradient.
        max_iter: the most CG iterations per step; each costs one Hessian product, about 1 to 1.7 gradients.
        max_step: a limit on the length of a step, |learning_rate * d| over all weights together; None for none. Without
            it, a direction of almost no curvature can throw the weights far away.
        report_loss_after: also evaluate the loss at the new weights, on the same batch and with the same random
            numbers, for :attr:`last_step`. Costs about 0.3 gradients per step.
        path: ``"auto"``, ``"op"`` or ``"plain"``: which implementation of CG, see :func:`ncg_cuda.tf.solver.solve`.
        clipnorm, clipvalue, global_clipnorm: clip the right-hand side -g; the curvature is that of the loss as it is.
        use_ema, ema_momentum, ema_overwrite_frequency, loss_scale_factor: as in every Keras optimizer.
        name: the optimizer's name.

    A non-finite gradient or learning rate skips the step; a direction that is not finite or not a descent direction is
    replaced by -g. Both are counted in :attr:`last_step`. All trainable variables must be float32, or all float64.

    Raises:
        ValueError: a parameter out of range; ``weight_decay`` (use a regularizer, whose curvature then counts) or
            ``gradient_accumulation_steps``, which are not supported.
    """

    wants_objective = True  # read by keras_fit

    def __init__(
        self,
        learning_rate: Any = 0.3,
        tau: float = 1.0,
        cg_tol: float = 1e-4,
        max_iter: int = 10,
        *,
        max_step: float | None = 1.0,
        report_loss_after: bool = False,
        path: str = "auto",
        weight_decay: None = None,
        gradient_accumulation_steps: None = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        loss_scale_factor: float | None = None,
        name: str = "newton_cg",
    ) -> None:
        check_parameters(tau=tau, cg_tol=cg_tol, max_iter=max_iter, max_step=max_step, path=path)
        refuse_unsupported(weight_decay=weight_decay, gradient_accumulation_steps=gradient_accumulation_steps)
        super().__init__(
            checked_learning_rate(learning_rate),
            clipnorm=clipnorm,
            clipvalue=clipvalue,
            global_clipnorm=global_clipnorm,
            use_ema=use_ema,
            ema_momentum=ema_momentum,
            ema_overwrite_frequency=ema_overwrite_frequency,
            loss_scale_factor=loss_scale_factor,
            name=name,
        )
        self._settings: dict[str, Any] = {
            "tau": float(tau),
            "cg_tol": float(cg_tol),
            "max_iter": int(max_iter),
            "max_step": None if max_step is None else float(max_step),
            "report_loss_after": bool(report_loss_after),
            "path": path,
        }
        self._report = self.add_variable(shape=(len(report.FIELDS),), dtype="float64", name="step_report")
        self._traced: dict[Any, Any] = {}

    # Fixed, because traced training functions hold them: for other settings make a new optimizer.
    tau = property(lambda self: self._settings["tau"], doc="The damping.")
    cg_tol = property(lambda self: self._settings["cg_tol"], doc="The relative tolerance of CG.")
    max_iter = property(lambda self: self._settings["max_iter"], doc="The most CG iterations per step.")
    max_step = property(lambda self: self._settings["max_step"], doc="The limit on the length of a step, or None.")
    report_loss_after = property(lambda self: self._settings["report_loss_after"], doc="Whether to evaluate it.")
    path = property(lambda self: self._settings["path"], doc="Which implementation of CG is asked for.")

    @property
    def last_step(self) -> report.StepReport | None:
        """What the last step did, in Python numbers; None before the first. Reading it waits for the step to end."""
        return report.from_numbers(self._report.numpy())

    def minimize(self, loss_fn: Callable[[], Any], variables: Sequence[Any]) -> Any:
        """Take one step on ``loss_fn()``.

        Args:
            loss_fn: a callable without arguments that returns the loss, a scalar tensor, from the variables. Called
                eagerly, ``minimize`` traces it once into a ``tf.function`` and re-uses that for the same ``loss_fn``:
                pass the same callable in every step, and feed changing data through a ``tf.Variable``.
            variables: ``tf.Variable`` or Keras variables, the same ones in every step.

        Returns:
            The loss before the step, a scalar tensor.

        Raises:
            ValueError: unsuitable variables or loss, no gradient for any variable, a loss that is linear in them, an
                operation without second derivative.
            RuntimeError: functions are set to run eagerly (``tf.config.run_functions_eagerly``).
        """
        variables = list(variables)
        check_variables(variables)
        if not callable(loss_fn):
            raise ValueError(f"loss_fn is a {type(loss_fn).__name__}; a callable without arguments is needed")
        if not tf.executing_eagerly():
            return self._minimize(loss_fn, variables)
        if not self.built:
            self.build(variables)
        key = (loss_fn, tuple(id(v) for v in variables))
        step = self._traced.get(key)
        if step is None:
            while len(self._traced) >= _CACHED_LOSSES:
                self._traced.pop(next(iter(self._traced)))
            step = self._traced[key] = tf.function(lambda: self._minimize(loss_fn, variables), autograph=False)
        return step()

    def _minimize(self, loss_fn: Callable[[], Any], variables: list[Any]) -> Any:
        self._refuse_eager()
        found, gradients, commit = objective.from_loss_fn(loss_fn, variables)
        if all(g is None for g in gradients):
            names = ", ".join(repr(raw_variable(v).name) for v in variables)
            raise ValueError(f"the loss depends on none of the variables ({names}): there is nothing to minimize")
        token = objective.provide(self, found)
        try:
            self.apply(_zeros_for_none(gradients, variables), variables)
        finally:
            objective.withdraw(token)
        commit()
        return found.loss

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Take one step; Keras's entry, inside a graph.

        Args:
            grads: the gradients as TensorFlow differentiated them: the Hessian is their derivative.
            trainable_variables: the variables they belong to.

        Raises:
            RuntimeError: in eager execution, or with ``report_loss_after=True`` where the loss is not known.
        """
        self._refuse_eager()
        super().apply(grads, trainable_variables)
        if self.report_loss_after:
            # Here, not inside the step: variable constraints have been applied by now.
            after = self._objective().loss_at()
            self._report.assign(_with_loss_after(self._report, after))

    def scale_loss(self, loss: Any) -> Any:
        """Keras's hook before differentiation; also where a loss other than compute_loss's becomes visible."""
        known = objective.current(self)
        if known is not None and loss is not known.loss:
            known.refuse("train_step differentiates another loss than the one compute_loss returned")
        return super().scale_loss(loss)

    def _backend_apply_gradients(self, grads: Sequence[Any], trainable_variables: Sequence[Any]) -> None:
        if tf.distribute.get_strategy().num_replicas_in_sync > 1:
            raise ValueError(
                "NewtonCG does not support a tf.distribute strategy with several replicas; train on one device"
            )
        check_variables(trainable_variables)
        gradients = [dense(g) for g in grads]
        linear = LinearizedGradient(gradients, trainable_variables)
        if not linear.has_curvature:
            raise ValueError(NO_CURVATURE)
        step = newton_step(
            linear,
            clipped=super()._clip_gradients(gradients),
            learning_rate=self.learning_rate,
            tau=self.tau,
            cg_tol=self.cg_tol,
            max_iter=self.max_iter,
            max_step=self.max_step,
            path=self.path,
        )
        super()._backend_apply_gradients(step.direction, trainable_variables)
        self._report.assign(self._numbers(step))

    def _clip_gradients(self, grads: Sequence[Any]) -> Sequence[Any]:
        return grads  # Keras would clip the direction; the gradient is clipped above

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Move the variable by learning_rate times ``gradient``, which is the direction d here."""
        # A skipped step has d = 0 and must not move the weights even if the learning rate is NaN.
        self.assign_add(variable, tf.math.multiply_no_nan(tf.cast(learning_rate, variable.dtype), gradient))

    def _numbers(self, step: Step) -> Any:
        known = objective.current(self)
        before = dict(zip(report.FIELDS, tf.unstack(tf.convert_to_tensor(self._report)), strict=True))
        nan = tf.constant(math.nan, tf.float64)
        now = dict(step.numbers, loss=nan if known is None else known.loss, loss_after=nan)
        now["steps"] = before["steps"] + 1.0
        for total, one in (
            ("fallbacks_total", "fallback"),
            ("skipped_total", "skipped"),
            ("products_total", "products"),
        ):
            now[total] = before[total] + tf.cast(now[one], tf.float64)
        return tf.stack([tf.cast(now[name], tf.float64) for name in report.FIELDS])

    def _objective(self) -> objective.Objective:
        known = objective.current(self)
        if known is None:
            raise RuntimeError(NO_OBJECTIVE)
        return known

    def _refuse_eager(self) -> None:
        if tf.executing_eagerly():
            raise RuntimeError(RUNS_EAGERLY)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for saving."""
        config: dict[str, Any] = super().get_config()
        config.update(self._settings)
        return config


def _zeros_for_none(gradients: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
    pairs = zip(gradients, map(raw_variable, variables), strict=True)
    return [tf.zeros(v.shape, v.dtype) if g is None else g for g, v in pairs]


def _with_loss_after(numbers: Any, loss: Any) -> Any:
    place = report.FIELDS.index("loss_after")
    numbers = tf.convert_to_tensor(numbers)
    return tf.tensor_scatter_nd_update(numbers, [[place]], [tf.cast(loss, tf.float64)])
