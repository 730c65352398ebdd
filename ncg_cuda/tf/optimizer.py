"""Newton-CG as a Keras 3 optimizer: one conjugate-gradient solve over all weights per step.

A step takes the gradient g that Keras (or :meth:`NewtonCG.minimize`) computed, solves (H + tau I) d = -g by at most
``max_iter`` CG iterations with exact Hessian products, checks that d is a descent direction, and moves the weights by
``learning_rate * d``. Method: Martens, "Deep learning via Hessian-free optimization" (ICML 2010); Nocedal and Wright,
"Numerical Optimization", chapter 7.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from . import keras_fit, objective, report
from .curvature import dense
from .curvature_batch import Evaluated, Feed, Matrix, linearized, of_data, of_losses
from .graphs import raw_variable
from .newton import Step, newton_step
from .parameters import (
    NO_OBJECTIVE,
    RUNS_EAGERLY,
    check_keras_options,
    check_parameters,
    checked_learning_rate,
)
from .progress import told_if_slow
from .vectors import check_variables

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        f"ncg_cuda.tf needs Keras on TensorFlow, but Keras runs on {keras.backend.backend()!r}. "
        "Set the environment variable KERAS_BACKEND=tensorflow before Keras is imported"
    )

keras_fit.install()

logger = logging.getLogger("ncg_cuda")

_CACHED_LOSSES = 16
_TRACING = (
    "NewtonCG is building the graph of its step for %d weight tensors, and TensorFlow will optimise it in the first "
    "step: tens of seconds for a network of 200 tensors, once"
)


@dataclass
class _Gradients:
    """What a step knows of its gradient beside what Keras hands on."""

    raw: list[Any]
    """Of this batch (on this replica), as TensorFlow differentiated it: the Hessian is its derivative."""
    unclipped: list[Any]
    """What becomes the right-hand side, before clipping: over all replicas and accumulated batches."""


# Not an attribute: the replicas of a tf.distribute strategy trace in turns, each in a thread of its own.
_gradients: ContextVar[_Gradients | None] = ContextVar("ncg_cuda_gradients", default=None)
_curvature_losses: ContextVar[tuple[Callable[[], Any], ...]] = ContextVar("ncg_cuda_curvature_losses", default=())


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
        curvature: the matrix H. ``"hessian"``: the Hessian of the loss. ``"gauss-newton"``, ``"fisher"`` or
            ``"empirical-fisher"``: positive semidefinite ones, see :mod:`ncg_cuda.tf.gauss_newton`; their products are
            cheaper, about 0.7 to 1.1 gradients. For these, a ``loss_fn`` given to :meth:`minimize` returns
            ``(loss, outputs)``; in ``fit`` nothing changes.
        curvature_batch_size: take the curvature on so many examples of each batch (the first ones; under a
            ``tf.distribute`` strategy the first ones of each replica, so many in all) only. The products are cheaper by
            that ratio.
        micro_batch_size: make the products in pieces of so many examples, one after the other, in the memory of one
            piece (of each replica). Costs 2 to 3 gradients per product, as each piece is evaluated anew in every CG
            iteration. The loss must be a mean over the examples; another one is refused.
        max_step: a limit on the length of a step, |learning_rate * d| over all weights together; None for none. Without
            it, a direction of almost no curvature can throw the weights far away.
        report_loss_after: also evaluate the loss at the new weights, on the same batch and with the same random
            numbers, for :attr:`last_step`. Costs about 0.3 gradients per step.
        path: ``"auto"``, ``"op"`` or ``"plain"``: which implementation of CG, see :func:`ncg_cuda.tf.solver.solve`.
        weight_decay: shrink the weights by learning_rate * weight_decay at each step, decoupled from the solve as in
            AdamW. For a penalty that Newton's step sees, use a regularizer on the layers.
        clipnorm, clipvalue, global_clipnorm: clip the right-hand side -g; the curvature is that of the loss as it is.
        gradient_accumulation_steps: batches whose mean gradient makes one step, in the last of them. The curvature is
            that of the last batch alone: Keras keeps no earlier ones.
        use_ema, ema_momentum, ema_overwrite_frequency, loss_scale_factor: as in every Keras optimizer.
        name: the optimizer's name.

    A non-finite gradient or learning rate skips the step; a direction that is not finite or not a descent direction is
    replaced by -g. Both are counted in :attr:`last_step`. All trainable variables must be float32, or all float64.

    In ``mixed_float16``, Keras puts this optimizer into a ``LossScaleOptimizer``. Products are then scaled into
    float16's range, whatever the size of gradient and direction (:mod:`ncg_cuda.tf.half_precision`), and accurate to
    float16's rounding, 1e-3 to 1e-2 of their norm. A step whose gradient overflows is left out, and the scale halved,
    by Keras. A loss scale so small that the gradient itself underflows spoils the Hessian, its derivative, too; not the
    other curvatures. Give a last layer of softmax or sigmoid ``dtype="float32"``, as Keras advises.

    Under a ``tf.distribute`` strategy all replicas solve one system together: gradient and products are summed over
    them.

    Raises:
        ValueError: a parameter out of range.
    """

    wants_objective = True  # read by keras_fit

    def __init__(
        self,
        learning_rate: Any = 0.3,
        tau: float = 1.0,
        cg_tol: float = 1e-4,
        max_iter: int = 10,
        *,
        curvature: str = "hessian",
        curvature_batch_size: int | None = None,
        micro_batch_size: int | None = None,
        max_step: float | None = 1.0,
        report_loss_after: bool = False,
        path: str = "auto",
        weight_decay: float | None = None,
        gradient_accumulation_steps: int | None = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        loss_scale_factor: float | None = None,
        name: str = "newton_cg",
    ) -> None:
        check_parameters(
            tau=tau,
            cg_tol=cg_tol,
            max_iter=max_iter,
            max_step=max_step,
            path=path,
            curvature=curvature,
            curvature_batch_size=curvature_batch_size,
            micro_batch_size=micro_batch_size,
        )
        check_keras_options(
            clipnorm=clipnorm,
            clipvalue=clipvalue,
            global_clipnorm=global_clipnorm,
            weight_decay=weight_decay,
            gradient_accumulation_steps=gradient_accumulation_steps,
            ema_momentum=ema_momentum,
            ema_overwrite_frequency=ema_overwrite_frequency,
        )
        super().__init__(
            checked_learning_rate(learning_rate),
            weight_decay=weight_decay,
            gradient_accumulation_steps=gradient_accumulation_steps,
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
            "curvature": curvature,
            "curvature_batch_size": None if curvature_batch_size is None else int(curvature_batch_size),
            "micro_batch_size": None if micro_batch_size is None else int(micro_batch_size),
            "max_step": None if max_step is None else float(max_step),
            "report_loss_after": bool(report_loss_after),
            "path": path,
        }
        self._report = self.add_variable(
            shape=(len(report.FIELDS),), dtype="float64", name="step_report", aggregation="only_first_replica"
        )
        self._traced: dict[Any, Any] = {}
        self._feed: Feed | None = None

    # Fixed, because traced training functions hold them: for other settings make a new optimizer.
    tau = property(lambda self: self._settings["tau"], doc="The damping.")
    cg_tol = property(lambda self: self._settings["cg_tol"], doc="The relative tolerance of CG.")
    max_iter = property(lambda self: self._settings["max_iter"], doc="The most CG iterations per step.")
    curvature = property(lambda self: self._settings["curvature"], doc="Which matrix H is.")
    curvature_batch_size = property(lambda self: self._settings["curvature_batch_size"], doc="Examples, or None.")
    micro_batch_size = property(lambda self: self._settings["micro_batch_size"], doc="Examples of a piece, or None.")
    max_step = property(lambda self: self._settings["max_step"], doc="The limit on the length of a step, or None.")
    report_loss_after = property(lambda self: self._settings["report_loss_after"], doc="Whether to evaluate it.")
    path = property(lambda self: self._settings["path"], doc="Which implementation of CG is asked for.")

    @property
    def curvature_data(self) -> Feed | None:
        """Data for the curvature in ``fit``, other than the batch of the gradient.

        Set it before training to (x, y) or (x, y, sample_weight), of which every step takes all; or to a
        ``tf.data.Dataset`` of such batches, of which every step takes the next one. Either may be larger than the
        gradient's batch: ``micro_batch_size`` bounds the memory. Not saved with the model.
        """
        return self._feed

    @curvature_data.setter
    def curvature_data(self, data: Any) -> None:
        self._feed = None if data is None else Feed(data)

    @property
    def last_step(self) -> report.StepReport | None:
        """What the last step did, in Python numbers; None before the first. Reading it waits for the step to end."""
        return report.from_numbers(self._report.numpy())

    def minimize(
        self,
        loss_fn: Callable[[], Any],
        variables: Sequence[Any],
        curvature_loss_fn: Callable[[], Any] | Sequence[Callable[[], Any]] | None = None,
    ) -> Any:
        """Take one step on ``loss_fn()``.

        Args:
            loss_fn: a callable without arguments that returns the loss, a scalar tensor, from the variables; or (loss,
                outputs), where outputs are the tensors that the loss was computed from (needed for another curvature
                than the Hessian); or (loss, outputs, fisher_loss), see
                :class:`ncg_cuda.tf.gauss_newton.LinearizedOutputs`. Called eagerly, ``minimize`` traces it once into a
                ``tf.function`` and re-uses that for the same ``loss_fn``: pass the same callable in every step, and
                feed changing data through a ``tf.Variable``.
            variables: ``tf.Variable`` or Keras variables, the same ones in every step.
            curvature_loss_fn: the loss whose curvature is taken, if not that of ``loss_fn``: on other data, say. Of
                several, the mean of their curvatures, one at a time in the memory of one.

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
        losses = () if curvature_loss_fn is None else curvature_loss_fn
        losses = (losses,) if callable(losses) else tuple(losses)
        if not all(callable(fn) for fn in losses):
            raise ValueError(f"curvature_loss_fn is {curvature_loss_fn!r}; give callables without arguments")
        if not tf.executing_eagerly():
            return self._minimize(loss_fn, variables, losses)
        if not self.built:
            self.build(variables)
        key = (loss_fn, losses, tuple(id(v) for v in variables))
        step = self._traced.get(key)
        if step is None:
            while len(self._traced) >= _CACHED_LOSSES:
                self._traced.pop(next(iter(self._traced)))
            step = self._traced[key] = tf.function(lambda: self._minimize(loss_fn, variables, losses), autograph=False)
        return step()

    def _minimize(self, loss_fn: Callable[[], Any], variables: list[Any], losses: tuple[Callable[[], Any], ...]) -> Any:
        self._refuse_eager()
        found, gradients, commit = objective.from_loss_fn(loss_fn, variables)
        if all(g is None for g in gradients):
            names = ", ".join(repr(raw_variable(v).name) for v in variables)
            raise ValueError(f"the loss depends on none of the variables ({names}): there is nothing to minimize")
        token, chosen = objective.provide(self, found), _curvature_losses.set(losses)
        try:
            self.apply(_zeros_for_none(gradients, variables), variables)
        finally:
            _curvature_losses.reset(chosen)
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
        check_variables(trainable_variables)
        if self.gradient_accumulation_steps and _replicas() > 1:
            raise ValueError(
                f"gradient_accumulation_steps={self.gradient_accumulation_steps} with {_replicas()} replicas of a "
                "tf.distribute strategy: Keras cannot accumulate gradients there. Use larger batches"
            )
        raw = [_shaped(g, v) for g, v in zip(grads, trainable_variables, strict=True)]
        if self.gradient_accumulation_steps:
            logger.info("NewtonCG: the curvature of an accumulated step is that of its last batch")
        token = _gradients.set(_Gradients(raw, raw))
        try:
            # Keras accumulates, clips and decays, and calls what follows.
            super()._backend_apply_gradients(_over_replicas(raw), trainable_variables)
        finally:
            _gradients.reset(token)

    def _clip_gradients(self, grads: Sequence[Any]) -> Sequence[Any]:
        known = _gradients.get()
        assert known is not None
        known.unclipped = list(grads)
        clipped: Sequence[Any] = super()._clip_gradients(grads)
        return clipped

    def _backend_update_step(
        self, grads: Sequence[Any], trainable_variables: Sequence[Any], learning_rate: Any
    ) -> None:
        known = _gradients.get()
        assert known is not None
        with told_if_slow(_TRACING, len(trainable_variables)):
            matrix = self._matrix(known.raw, trainable_variables)
            step = newton_step(
                lambda vectors: _over_replicas(matrix.product(vectors)),
                known.unclipped,
                clipped=grads,
                learning_rate=learning_rate,
                tau=self.tau,
                cg_tol=self.cg_tol,
                max_iter=self.max_iter,
                max_step=self.max_step,
                path=self.path,
            )
        # The base class would sum the moves, the same on every replica, over them.
        tf.__internal__.distribute.interim.maybe_merge_call(
            self._distributed_tf_update_step,
            self._distribution_strategy,
            list(zip(step.moves, map(raw_variable, trainable_variables), strict=True)),
            learning_rate,
        )
        self._report.assign(self._numbers(step))

    def _matrix(self, gradients: list[Any], variables: Sequence[Any]) -> Matrix:
        """The matrix H of this step."""
        known = objective.current(self)
        losses = _curvature_losses.get()
        if losses:
            evaluations = [lambda loss_fn=loss_fn: objective.evaluated_loss_fn(loss_fn) for loss_fn in losses]
            if len(losses) == 1:
                return linearized(self.curvature, evaluations[0](), variables)
            return of_losses(self.curvature, variables, evaluations)
        size, micro = self.curvature_batch_size, self.micro_batch_size
        if size is None and micro is None and self.curvature_data is None:
            if known is None:
                return linearized(self.curvature, Evaluated(None, gradients=gradients), variables)
            if self.curvature != "hessian":
                known.verify(gradients, f"curvature={self.curvature!r}")
            return linearized(self.curvature, known.evaluated(gradients), variables)
        known = self._objective()
        known.verify(gradients, "a curvature of other data than the gradient's")
        if micro is not None:
            known.require_mean(micro)
        if size is not None and size % _replicas():
            raise ValueError(f"curvature_batch_size={size} cannot be shared equally by {_replicas()} replicas")
        size = None if size is None else size // _replicas()
        data = known.data if self.curvature_data is None else self.curvature_data.next()
        return of_data(self.curvature, variables, known.on, data, size=size, micro=micro)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Add ``gradient``, which is learning_rate times the direction here, to the variable."""
        self.assign_add(variable, gradient)

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


def _replicas() -> int:
    return int(tf.distribute.get_strategy().num_replicas_in_sync)


def _shaped(gradient: Any, variable: Any) -> Any:
    """The gradient as a dense tensor of the variable's shape, which TensorFlow does not always infer."""
    tensor = dense(gradient)
    tensor.set_shape(raw_variable(variable).shape)
    return tensor


def _over_replicas(tensors: Sequence[Any]) -> list[Any]:
    """The sum over the replicas of a ``tf.distribute`` strategy: Keras divides each replica's loss by their number."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return list(tensors)
    return list(context.all_reduce(tf.distribute.ReduceOp.SUM, list(tensors)))


def _zeros_for_none(gradients: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
    pairs = zip(gradients, map(raw_variable, variables), strict=True)
    return [tf.zeros(v.shape, v.dtype) if g is None else g for g, v in pairs]


def _with_loss_after(numbers: Any, loss: Any) -> Any:
    place = report.FIELDS.index("loss_after")
    numbers = tf.convert_to_tensor(numbers)
    return tf.tensor_scatter_nd_update(numbers, [[place]], [tf.cast(loss, tf.float64)])
