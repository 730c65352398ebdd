"""How ``model.compile(optimizer=...)`` lets an optimizer see its model's objective in ``fit``.

Keras hands an optimizer only gradients and variables, but ``compile`` sees model and optimizer together. So
``compile`` of the Keras trainer is wrapped once per process: it does what it did and then, for a model whose optimizer
has the attribute ``wants_objective``, puts two wrappers on that model *instance*. ``train_step`` notes the values of
non-trainable variables, seed generators included, before the forward pass; ``compute_loss`` notes the batch and the
loss. Other models are not touched, and compiling the model with another optimizer takes the wrappers off again.

To evaluate the loss again, the model's own ``train_step`` runs once more in a stateless scope, from the same
non-trainable values, and is left as soon as ``compute_loss`` has the loss: whatever a custom ``train_step`` does before
its loss is repeated exactly.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import keras
import tensorflow as tf

from .curvature_batch import Evaluated
from .graphs import raw_variable
from .objective import Objective, RecordingScope, Values, provide, replaced, withdraw
from .outputs import expected_labels, local_copy, outputs_of, part_of


class _Reached(Exception):
    """Carries the loss, and what compute_loss was given, out of a repeated train_step."""

    def __init__(self, loss: Any, batch: dict[str, Any]) -> None:
        super().__init__()
        self.loss, self.batch = loss, batch


class _Step:
    """One trace of a model's train_step: what is known so far, and how to repeat it."""

    def __init__(
        self,
        model: Any,
        optimizer: Any,
        train_step: Callable[[Any], Any],
        compute_loss: Callable[..., Any],
        data: Any,
    ) -> None:
        self.model, self.optimizer, self.data = model, optimizer, data
        self.train_step, self.compute_loss = train_step, compute_loss
        self.repeating = False
        self.objective: Objective | None = None
        self.before = {id(v): tf.convert_to_tensor(raw_variable(v)) for v in model.non_trainable_variables}

    def found(self, loss: Any, batch: dict[str, Any]) -> None:
        """Called with the loss each time ``compute_loss`` returns."""
        if self.repeating:
            raise _Reached(loss, batch)
        again = self.objective is not None
        names = ("x", "y", "y_pred", "sample_weight")
        self.objective = Objective(
            self.model.trainable_variables,
            loss,
            self.evaluate,
            outputs=outputs_of(batch.get("y_pred")),
            fisher_loss=lambda: self.fisher_loss(loss, batch),
            data=self.data,
            on=self.on,
            parts=lambda ranges: self.parts(batch, ranges),
            certain=getattr(self.train_step, "__func__", None) is keras.Model.train_step,
            **{name: batch.get(name) for name in names},
        )
        if again:
            self.objective.refuse(
                "train_step calls compute_loss more than once, so it is not clear which loss is meant"
            )
        provide(self.optimizer, self.objective)

    def fisher_loss(self, loss: Any, batch: dict[str, Any]) -> Any:
        """The loss with the labels that the model expects; metrics do not see it."""
        labels = expected_labels(loss, batch.get("y"), batch.get("y_pred"))
        with RecordingScope():
            return self.compute_loss(**{**batch, "y": labels})

    def evaluate(self, values: Values) -> Any:
        """The loss at the values."""
        return self.repeat(values, self.data).loss

    def on(self, data: Any) -> Evaluated:
        """The loss on other data."""
        reached = self.repeat(None, data)
        loss, batch = reached.loss, reached.batch
        return Evaluated(loss, outputs_of(batch.get("y_pred")), lambda: self.fisher_loss(loss, batch))

    def parts(self, batch: dict[str, Any], ranges: Sequence[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
        """The losses of parts of the batch's outputs, each given by where it begins and how many examples it has; and
        the outputs. Metrics do not see it.
        """
        added = [layer.name for layer in self.model._flatten_layers() if layer._losses]
        if added:
            raise ValueError(
                f"micro_batch_size: the layer {added[0]!r} adds a loss of its own (add_loss, activity_regularizer), of "
                "which it is not known whether it is a mean over the examples. Leave out micro_batch_size, or use "
                "minimize with a curvature_loss_fn for each piece"
            )
        batch = {name: local_copy(value) for name, value in batch.items()}
        with RecordingScope():
            losses = [
                self.compute_loss(**{name: part_of(value, begin, count) for name, value in batch.items()})
                for begin, count in ranges
            ]
        return losses, outputs_of(batch["y_pred"])

    def repeat(self, values: Values, data: Any) -> _Reached:
        """Repeat train_step up to its loss."""
        # Variables born in this trace are missing, but tf.function throws such a trace away and makes another one.
        state = [(v, self.before[id(v)]) for v in self.model.non_trainable_variables if id(v) in self.before]
        self.repeating = True
        try:
            with replaced(self.model.trainable_variables, values, state):
                self.train_step(data)
        except _Reached as reached:
            return reached
        finally:
            self.repeating = False
        raise RuntimeError("train_step returned without calling compute_loss, although it did so before")


_step: ContextVar[_Step | None] = ContextVar("ncg_cuda_step", default=None)


def _attach(model: Any, optimizer: Any) -> None:
    train_step, compute_loss = model.train_step, model.compute_loss
    signature = inspect.signature(compute_loss)

    @functools.wraps(train_step)
    def noting_train_step(data: Any) -> Any:
        if tf.executing_eagerly():
            return train_step(data)
        token = _step.set(_Step(model, optimizer, train_step, compute_loss, data))
        objective = provide(optimizer, None)
        try:
            return train_step(data)
        finally:
            withdraw(objective)
            _step.reset(token)

    @functools.wraps(compute_loss)
    def noting_compute_loss(*args: Any, **kwargs: Any) -> Any:
        loss = compute_loss(*args, **kwargs)
        step = _step.get()
        if step is not None and step.model is model:
            step.found(loss, dict(signature.bind(*args, **kwargs).arguments))
        return loss

    _leave_cudnn(model)
    # The instance's dictionary, not setattr: Keras would track the wrappers as part of the model.
    model.__dict__["train_step"] = noting_train_step
    model.__dict__["compute_loss"] = noting_compute_loss
    model.__dict__["_ncg_cuda_attached"] = True


def _leave_cudnn(model: Any) -> None:
    """LSTM and GRU layers take a fused kernel of cuDNN on a GPU, which has no second derivative."""
    chosen = [layer for layer in model._flatten_layers() if getattr(layer, "use_cudnn", False) == "auto"]
    for layer in chosen:
        layer.use_cudnn = False
    model.__dict__["_ncg_cuda_without_cudnn"] = chosen


def _detach(model: Any) -> None:
    for layer in model.__dict__.pop("_ncg_cuda_without_cudnn", ()):
        layer.use_cudnn = "auto"
    if model.__dict__.pop("_ncg_cuda_attached", False):
        model.__dict__.pop("train_step", None)
        model.__dict__.pop("compute_loss", None)


def innermost(optimizer: Any) -> Any:
    """The optimizer itself, or the one inside Keras's LossScaleOptimizer."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def install() -> None:
    """Wrap ``compile`` of the Keras trainer; does nothing the second time."""
    trainer = next(c for c in keras.Model.__mro__ if "compile" in vars(c))
    original = vars(trainer)["compile"]
    if getattr(original, "_ncg_cuda", False):
        return

    @functools.wraps(original)
    def compile(self: Any, *args: Any, **kwargs: Any) -> None:
        _detach(self)
        original(self, *args, **kwargs)
        optimizer = innermost(self.optimizer)
        if getattr(optimizer, "wants_objective", False):
            _attach(self, optimizer)

    compile._ncg_cuda = True  # type: ignore[attr-defined]
    trainer.compile = compile
