"""The optimizer; see the package."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from ..curvature_batch import Evaluated, linearized
from ..graphs import raw_variable
from ..newton import newton_step
from ..parameters import check_parameters, checked_learning_rate
from ..vectors import check_variables
from .origin import Known, origin, shaped

_EAGER = (
    "NewtonCGOptimizer builds operations for a tf.Graph and a tf.compat.v1.Session and cannot run eagerly. In eager "
    "code use ncg_cuda.tf.NewtonCG().minimize(loss_fn, variables); or work inside `with tf.Graph().as_default():` or a "
    "tf.function"
)
_NO_OUTPUTS = (
    "is taken at the model's outputs. Give the tensors that the loss was computed from: "
    "minimize(loss, outputs=[logits]), or compute_gradients(loss, outputs=[logits]) before apply_gradients"
)
_NO_VARIABLES = (
    "there are no variables to train: give var_list, or create variables with trainable=True in this graph (inside a "
    "tf.function there is no collection of them, so var_list is needed)"
)
_REPLICAS = (
    "NewtonCGOptimizer takes its step on one device, but {} replicas of a tf.distribute strategy call it. Use "
    "ncg_cuda.tf.NewtonCG in a Keras model, which solves one system over all replicas"
)


class NewtonCGOptimizer(tf.compat.v1.train.Optimizer):  # type: ignore[misc]
    """Newton's method with damping, its linear system solved by conjugate gradients, for graphs and sessions.

    Args:
        learning_rate: the step length along d; 1 is Newton's step. A number >= 0, or a scalar tensor (a placeholder, a
            variable, a decay), or a callable that returns one of them.
        tau: the damping of H + tau I, >= 0, in units of curvature; a number, or a scalar tensor, which is checked when
            it is run.
        cg_tol: CG stops at a residual of ``cg_tol`` times the norm of the gradient; a number.
        max_iter: the most CG iterations per step, an int; each costs one Hessian product.
        curvature: ``"hessian"``, ``"gauss-newton"``, ``"fisher"`` or ``"empirical-fisher"``, see
            :class:`ncg_cuda.tf.NewtonCG`. All but the first need ``outputs`` in :meth:`minimize`.
        max_step: a limit on |learning_rate * d| over all weights together; None for none.
        path: ``"auto"``, ``"op"`` or ``"plain"``: which implementation of CG, see :func:`ncg_cuda.tf.solver.solve`.
        use_locking: lock the variables while they are updated, as in every optimizer of v1.
        name: the optimizer's name.

    Attributes:
        last_step: None before a step was built; then the report of the step that was built last, scalar tensors by
            name, to be fetched in the same ``session.run`` as the step. The names are those of
            :class:`ncg_cuda.tf.StepReport`, without totals and ``loss_after``; ``loss`` is NaN where it is not known.

    The optimizer has no variables of its own. A gradient or learning rate that is not finite skips the step; a
    direction that is not finite or not a descent direction is replaced by -g.

    Raises:
        ValueError: a parameter out of range.
    """

    def __init__(
        self,
        learning_rate: Any = 0.3,
        tau: Any = 1.0,
        cg_tol: float = 1e-4,
        max_iter: int = 10,
        *,
        curvature: str = "hessian",
        max_step: float | None = 1.0,
        path: str = "auto",
        use_locking: bool = False,
        name: str = "NewtonCG",
    ) -> None:
        super().__init__(use_locking, name)
        check_parameters(
            tau=0.0 if tf.is_tensor(tau) else tau,
            cg_tol=cg_tol,
            max_iter=max_iter,
            max_step=max_step,
            path=path,
            curvature=curvature,
        )
        self._rate = _checked_rate(learning_rate)
        self._tau, self._curvature = tau, curvature
        self._hessian = curvature == "hessian"
        self._solver: dict[str, Any] = {
            "cg_tol": float(cg_tol),
            "max_iter": int(max_iter),
            "max_step": max_step,
            "path": path,
        }
        self._known: list[Known] = []
        self.last_step: dict[str, Any] | None = None

    def minimize(
        self,
        loss: Any,
        global_step: Any = None,
        var_list: Sequence[Any] | None = None,
        gate_gradients: int = tf.compat.v1.train.Optimizer.GATE_OP,
        aggregation_method: Any = None,
        colocate_gradients_with_ops: bool = False,
        name: str | None = None,
        grad_loss: Any = None,
        *,
        outputs: Any = None,
        fisher_loss: Any = None,
    ) -> Any:
        """Build one step on ``loss``.

        Args:
            loss: the loss, a scalar tensor; or a callable that returns it.
            global_step: a variable that the step increments by one.
            var_list: the variables; by default those in the collection of trainable variables.
            gate_gradients: for the first gradient, as in ``tf.compat.v1.train.Optimizer.minimize``.
            aggregation_method: likewise.
            colocate_gradients_with_ops: likewise.
            name: the name of the operation.
            grad_loss: the derivative of what is minimized by ``loss``, if that is not 1; with the Hessian only.
            outputs: the tensors that the loss was computed from, in any structure; needed for another curvature than
                the Hessian.
            fisher_loss: for ``curvature="fisher"``: see :class:`ncg_cuda.tf.gauss_newton.LinearizedOutputs`.

        Returns:
            An operation that takes the step.

        Raises:
            RuntimeError: eager execution, or several replicas of a ``tf.distribute`` strategy.
            ValueError: no variables, a loss that depends on none of them or is linear in them, no outputs where they
                are needed, an operation without second derivative.
        """
        pairs = self.compute_gradients(
            loss,
            var_list,
            gate_gradients,
            aggregation_method,
            colocate_gradients_with_ops,
            grad_loss,
            outputs=outputs,
            fisher_loss=fisher_loss,
        )
        return self.apply_gradients(pairs, global_step=global_step, name=name)

    def compute_gradients(
        self,
        loss: Any,
        var_list: Sequence[Any] | None = None,
        gate_gradients: int = tf.compat.v1.train.Optimizer.GATE_OP,
        aggregation_method: Any = None,
        colocate_gradients_with_ops: bool = False,
        grad_loss: Any = None,
        *,
        outputs: Any = None,
        fisher_loss: Any = None,
    ) -> list[tuple[Any, Any]]:
        """The first part of :meth:`minimize`; the arguments are explained there.

        Returns:
            (gradient, variable) pairs; None where the loss does not depend on a variable.
        """
        _check_context()
        if not self._hessian and (outputs is None or grad_loss is not None):
            raise ValueError(
                f"curvature={self._curvature!r} {_NO_OUTPUTS if outputs is None else 'does not allow grad_loss'}"
            )
        given = loss() if callable(loss) else loss
        if var_list is None:
            var_list = tf.compat.v1.trainable_variables() + tf.compat.v1.get_collection(
                tf.compat.v1.GraphKeys.TRAINABLE_RESOURCE_VARIABLES
            )
        variables = list({id(v): v for v in map(raw_variable, tf.nest.flatten(var_list))}.values())
        if not variables:
            raise ValueError(_NO_VARIABLES)
        check_variables(variables)
        pairs: list[tuple[Any, Any]] = super().compute_gradients(
            given, variables, gate_gradients, aggregation_method, colocate_gradients_with_ops, grad_loss
        )
        self._known.append(Known(given, tf.nest.flatten([] if outputs is None else outputs), fisher_loss, pairs))
        return pairs

    def apply_gradients(
        self,
        grads_and_vars: Iterable[tuple[Any, Any]],
        global_step: Any = None,
        name: str | None = None,
        *,
        raw_gradients: Iterable[tuple[Any, Any]] | None = None,
    ) -> Any:
        """The second part of :meth:`minimize`: build the solve and the update.

        Args:
            grads_and_vars: (gradient, variable) pairs. The Hessian is the derivative of these gradients, which may be
                sums or means of several. Where they were changed by operations that are not linear (clipping), they
                are the right-hand side only, and the Hessian is that of the loss given to :meth:`compute_gradients`.
                The other curvatures are always those of that loss.
            global_step: a variable that the step increments by one.
            name: the name of the operation.
            raw_gradients: (gradient, variable) pairs, the gradients before clipping, where that is not clear.

        Returns:
            An operation that takes the step.

        Raises:
            RuntimeError: eager execution, or several replicas of a ``tf.distribute`` strategy.
            ValueError: as :meth:`minimize`; or it is not known of which function to take the curvature.
        """
        _check_context()
        pairs = list(grads_and_vars)
        used = [(g, v) for g, v in pairs if g is not None]
        if not used:
            names = ", ".join(repr(v.name) for _, v in pairs)
            raise ValueError(
                f"the loss depends on none of the variables ({names}): there is nothing to minimize"
                if pairs
                else "no gradients and variables were given"
            )
        variables = [raw_variable(v) for _, v in used]
        check_variables(variables)
        with tf.name_scope(name or self._name):
            right = [shaped(g, v) for g, v in used]
            given = [g for g, _ in used]
            raw, known = origin(
                self._known, given, right, variables, raw_gradients=raw_gradients, any_function=self._hessian
            )
            if known is None and not self._hessian:
                raise ValueError(f"curvature={self._curvature!r} {_NO_OUTPUTS}")
            matrix = linearized(self._curvature, _evaluated(known, raw), variables)
            rate = _scalar(self._call_if_callable(self._rate), "learning_rate")
            step = newton_step(
                matrix.product, raw, clipped=right, learning_rate=rate, tau=self._damping(), **self._solver
            )
            unknown = tf.constant(math.nan, tf.float64)
            loss = unknown if known is None else tf.cast(tf.reduce_sum(known.loss), tf.float64)
            self.last_step = {name: tf.identity(t) for name, t in {**step.numbers, "loss": loss}.items()}
            # A loss may read a reference variable's memory: it must have been computed before that changes.
            with tf.control_dependencies(list(self.last_step.values())):
                moves = [tf.identity(move) for move in step.moves]
        return super().apply_gradients(list(zip(moves, variables, strict=True)), global_step=global_step, name=name)

    def _damping(self) -> Any:
        tau = _scalar(self._tau, "tau")
        if not tf.is_tensor(self._tau):
            return tau
        message = "tau is not allowed: feed a finite number >= 0"
        checks = [tf.debugging.Assert(tf.math.is_finite(tau) & (tau >= 0.0), [message, tau])]
        with tf.control_dependencies(checks):
            return tf.identity(tau)

    def _apply_dense(self, grad: Any, var: Any) -> Any:
        """``grad`` is what to add."""
        return var.assign_add(grad, use_locking=self._use_locking, read_value=False)

    def _resource_apply_dense(self, grad: Any, handle: Any) -> Any:
        """Likewise."""
        return handle.assign_add(grad, use_locking=self._use_locking, read_value=False)


def _evaluated(known: Known | None, gradients: list[Any]) -> Evaluated:
    if known is None:
        return Evaluated(None, gradients=gradients)
    fisher_loss = None if known.fisher_loss is None else lambda: known.fisher_loss
    return Evaluated(known.loss, known.outputs, fisher_loss, gradients)


def _check_context() -> None:
    if tf.executing_eagerly():
        raise RuntimeError(_EAGER)
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if replicas > 1:
        raise RuntimeError(_REPLICAS.format(replicas))


def _checked_rate(learning_rate: Any) -> Any:
    if tf.is_tensor(learning_rate):
        return learning_rate
    if isinstance(learning_rate, keras.optimizers.schedules.LearningRateSchedule):
        raise ValueError(
            "learning_rate is a Keras schedule, which no optimizer of v1 knows; give its tensor, schedule(global_step)"
        )
    return checked_learning_rate(learning_rate)


def _scalar(value: Any, name: str) -> Any:
    """A float64 scalar tensor; raises a ValueError for a tensor that is none."""
    if not tf.is_tensor(value):
        return tf.constant(value, tf.float64)
    tensor = tf.convert_to_tensor(value)
    if tensor.shape.rank not in (0, None) or not tensor.dtype.is_floating:
        raise ValueError(
            f"{name} has shape {tensor.shape}, dtype {tensor.dtype.name}; a number or a floating-point scalar is needed"
        )
    return tf.cast(tensor, tf.float64)
