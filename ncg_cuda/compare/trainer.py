"""One model, one optimizer, many runs: training through Keras ``fit``, with the clock stopped while results are
evaluated.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ..scenarios import Dataset, Scenario
from .optimizers import HESSIAN_PRODUCT_COST, Competitor
from .records import Point, Run, finite_or_none

OnEpoch = Callable[[Point], None]
_EVALUATION_BATCH = 2048
_NOISE_SEED = 12345
EXPLODED = 10.0
"""A run has diverged if its loss is not finite, or ends above this many times the loss of the untrained model."""


class Evaluator:
    """Loss and predictions over a whole set in inference mode, random layers under one fixed noise."""

    def __init__(self, model: Any, loss: Any) -> None:
        self._generators = [variable for variable in model.variables if "seed_generator_state" in variable.path]

        def forward(x: Any, y: Any) -> tuple[Any, Any]:
            y_pred = model(x, training=False)
            return tf.add_n([loss(y, y_pred), *model.losses]), y_pred

        self._forward = tf.function(forward, reduce_retracing=True)

    def __call__(self, x: Any, y: Any) -> tuple[float, Any]:
        """Mean loss (float, may be NaN) over the samples of ``x``, ``y``, and the predictions as one array."""
        total, predictions = 0.0, []
        with self._fixed_noise():
            for start in range(0, len(y), _EVALUATION_BATCH):
                part = slice(start, start + _EVALUATION_BATCH)
                loss, y_pred = self._forward(tf.constant(x[part]), tf.constant(y[part]))
                total += float(loss) * len(y[part])
                predictions.append(y_pred.numpy())
        return total / len(y), np.concatenate(predictions)

    @contextmanager
    def _fixed_noise(self) -> Iterator[None]:
        kept = [generator.numpy() for generator in self._generators]
        for generator, state in zip(self._generators, kept, strict=True):
            generator.assign(np.full_like(state, _NOISE_SEED))
        try:
            yield
        finally:
            for generator, state in zip(self._generators, kept, strict=True):
                generator.assign(state)


@dataclass
class _Work:
    """What the steps of a run have cost so far."""

    steps: int = 0
    products: int = 0
    fallbacks: int = 0
    skipped: int = 0

    @property
    def gradient_equivalents(self) -> float:
        return self.steps + HESSIAN_PRODUCT_COST * self.products

    def update(self, steps: int, optimizer: Any) -> None:
        self.steps = steps
        report = getattr(optimizer, "last_step", None)  # NewtonCG counts its own products; others make none
        if report is not None:
            self.products = report.products_total
            self.fallbacks, self.skipped = report.fallbacks_total, report.skipped_total


class Trainer:
    """Runs of one optimizer on one scenario. The graph is traced once, however many seeds and learning rates follow.

    Every run starts from the weights that ``scenario.build(seed)`` gives and from a fresh optimizer state, so its
    result
    does not depend on the runs before it.
    """

    def __init__(
        self,
        scenario: Scenario,
        data: Dataset,
        competitor: Competitor,
        *,
        batch_size: int | None = None,
        settings: dict[str, float | int | str] | None = None,
    ) -> None:
        self.scenario, self.data, self.competitor = scenario, data, competitor
        self.samples = len(data.y_train)
        self.batch_size = min(batch_size or scenario.batch_size or self.samples, self.samples)
        self.steps_per_epoch = math.ceil(self.samples / self.batch_size)
        self.settings = dict(scenario.newton if settings is None and not competitor.tuned else settings or {})
        self.model = scenario.build(0, data)
        self._state = list(self.model.variables)
        self.optimizer = competitor.make(0.0, self.settings)
        # One setting for all competitors: compilation by XLA would be timed on a GPU and not on a CPU.
        self.model.compile(optimizer=self.optimizer, loss=scenario.loss(), jit_compile=False)
        self.optimizer.build(self.model.trainable_variables)
        self._optimizer_state = [(variable, variable.numpy()) for variable in self.optimizer.variables]
        self._evaluate = Evaluator(self.model, scenario.loss())
        self.tracing_seconds = self._trace()

    def _trace(self) -> float:
        """Build the graphs of step and evaluation by one discarded step; the time of the step's, in seconds."""
        self._reset(0, 0.0)
        batches = self._batches(0)
        start = time.perf_counter()
        self.model.fit(batches, steps_per_epoch=1, epochs=1, shuffle=False, verbose=0)
        seconds = time.perf_counter() - start
        self._evaluate(self.data.x_train, self.data.y_train)
        return seconds

    def _reset(self, seed: int, learning_rate: float) -> None:
        keras.utils.set_random_seed(seed)
        fresh = self.scenario.build(seed, self.data)
        for variable, initial in zip(self._state, fresh.variables, strict=True):
            variable.assign(initial.numpy())
        for variable, value in self._optimizer_state:
            variable.assign(value)
        self.optimizer.learning_rate = learning_rate

    def _batches(self, seed: int) -> Any:
        """Endless batches; shuffled anew in every epoch, in an order that follows from the seed alone."""
        x, y = tf.constant(self.data.x_train), tf.constant(self.data.y_train)
        order = tf.data.Dataset.range(self.samples)
        if self.batch_size < self.samples:
            order = order.shuffle(self.samples, seed=seed, reshuffle_each_iteration=True)
        batches = order.batch(self.batch_size).map(lambda index: (tf.gather(x, index), tf.gather(y, index)))
        return batches.repeat().prefetch(2)

    def run(self, seed: int, learning_rate: float, epochs: int, on_epoch: OnEpoch = lambda point: None) -> Run:
        """Train for ``epochs``; ``on_epoch`` is called with every :class:`Point`. A run whose loss is not finite
        stops.
        """
        self._reset(seed, learning_rate)
        work = _Work()
        curve = [self.point(0, 0.0, work)]
        recorder = _Recorder(self, work, curve, on_epoch)
        if self.steps_per_epoch * epochs > 0:
            self.model.fit(
                self._batches(seed),
                steps_per_epoch=self.steps_per_epoch,
                epochs=epochs,
                shuffle=False,
                verbose=0,
                callbacks=[recorder],
            )
        surplus = recorder.first_step_surplus()
        curve[1:] = [replace(point, seconds=point.seconds - surplus) for point in curve[1:]]
        last = curve[-1]
        diverged = not last.train_loss <= EXPLODED * curve[0].train_loss  # true for NaN, too
        return Run(
            scenario=self.scenario.name,
            optimizer=self.competitor.name,
            seed=seed,
            epochs=epochs,
            learning_rate=learning_rate,
            batch_size=self.batch_size,
            final_train_loss=finite_or_none(last.train_loss),
            final_val_loss=finite_or_none(last.val_loss),
            final_val_metric=finite_or_none(last.val_metric) if math.isfinite(last.train_loss) else None,
            val_metric_name=self.scenario.metric.name,
            seconds=last.seconds,
            tracing_seconds=self.tracing_seconds,
            gradient_equivalents=last.gradient_equivalents,
            hessian_products=work.products,
            steps=work.steps,
            fallback_steps=work.fallbacks,
            skipped_steps=work.skipped,
            epochs_completed=last.epoch,
            diverged=diverged,
            settings=self.settings,
            data=self.data.origin,
            curve=tuple(curve),
        )

    def point(self, epoch: int, seconds: float, work: _Work) -> Point:
        """Evaluate the model as it is now."""
        train_loss, _ = self._evaluate(self.data.x_train, self.data.y_train)
        val_loss, y_pred = self._evaluate(self.data.x_val, self.data.y_val)
        metric = self.scenario.metric.evaluate(self.data, self.data.y_val, y_pred)
        return Point(epoch, train_loss, val_loss, metric, seconds, work.gradient_equivalents)


class _Recorder(keras.callbacks.Callback):  # type: ignore[misc]
    """Stops the clock at the end of an epoch, evaluates, and starts it again."""

    def __init__(self, trainer: Trainer, work: _Work, curve: list[Point], on_epoch: OnEpoch) -> None:
        super().__init__()
        self._trainer, self._work, self._curve, self._on_epoch = trainer, work, curve, on_epoch
        self._seconds = self._start = self._first_step = 0.0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """The clock runs from the first step of an epoch: the building of the input pipeline is not training."""
        del logs
        if batch == 0:
            self._start = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """The run's very first step is timed by itself."""
        del batch, logs
        if not self._first_step:
            self._wait()
            self._first_step = time.perf_counter() - self._start

    def first_step_surplus(self) -> float:
        """Seconds that the first step took beyond the mean of the others: TensorFlow prepares the graph anew in each
        fit.
        """
        others = self._work.steps - 1
        if others < 1:
            return 0.0
        return max(0.0, self._first_step - (self._seconds - self._first_step) / others)

    def _wait(self) -> None:
        self.model.trainable_variables[-1].numpy()  # the last weights of a step arrive when it has ended, on any device

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """The clock stops when the last step has ended; evaluation is not training."""
        del logs
        self._wait()
        self._seconds += time.perf_counter() - self._start
        self._work.update((epoch + 1) * self._trainer.steps_per_epoch, self._trainer.optimizer)
        point = self._trainer.point(epoch + 1, self._seconds, self._work)
        self._curve.append(point)
        self._on_epoch(point)
        if not math.isfinite(point.train_loss):
            self.model.stop_training = True
