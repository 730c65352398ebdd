"""Learning rates over the epochs, or over the steps, as one Keras callback.

The functions are those of the paper's scripts (S. Reiz, T. Neckel, H.-J. Bungartz, "Neural Nets with a Newton Conjugate
Gradient Method on Multiple GPUs", 2022) and the cyclical ones of L. N. Smith, "Cyclical learning rates for training
neural networks" (WACV 2017)::

    from ncg_cuda.tf import LearningRates, learning_rates

    rate = learning_rates.step_decay(0.1, every=10)
    model.fit(x, y, epochs=40, callbacks=[LearningRates(rate)])
    rate = learning_rates.triangular(0.01, 0.3, half_cycle=200)
    model.fit(x, y, epochs=40, callbacks=[LearningRates(rate, by="step")])
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import keras

Rate = Callable[[int], float]
"""From the number of finished epochs, or steps, to the learning rate."""

UNITS = ("epoch", "step")


def constant(start: float) -> Rate:
    """Always ``start``."""
    _check(start=start)
    return lambda t: start


def step_decay(start: float, factor: float = 0.5, every: int = 10) -> Rate:
    """``start`` times ``factor`` to the power of how often ``every`` has passed."""
    _check(start=start, factor=factor)
    _check_count(every=every)
    return lambda t: start * factor ** (t // every)


def exponential(start: float, decay: float = 0.1) -> Rate:
    """``start * exp(-decay * t)``."""
    _check(start=start, decay=decay)
    return lambda t: start * math.exp(-decay * t)


def time_based(start: float, decay: float = 0.1) -> Rate:
    """``start`` times the product of ``1 / (1 + decay * i)`` over i = 0 ... t, as Keras's former ``decay`` was applied
    once per epoch to the rate it had left.
    """
    _check(start=start, decay=decay)
    # In logarithms: the product itself underflows after some hundred epochs, and that is the rate's own value then.
    return lambda t: start * math.exp(-math.fsum(math.log1p(decay * i) for i in range(t + 1)))


def hold_then_exponential(start: float, decay: float = 0.1, hold: int = 10) -> Rate:
    """``start`` for ``hold``, then ``start * exp(-decay * (t - hold))``: the paper's "custom" rate."""
    _check(start=start, decay=decay)
    _check_count(hold=hold)
    return lambda t: start * math.exp(-decay * max(0, t - hold))


def triangular(base: float, maximum: float, half_cycle: int) -> Rate:
    """From ``base`` to ``maximum`` within ``half_cycle``, back within another, and so on."""
    return _cycles(base, maximum, half_cycle, lambda t, cycle: 1.0)


def triangular2(base: float, maximum: float, half_cycle: int) -> Rate:
    """As :func:`triangular`, with half the height in each cycle of what it was in the one before."""
    return _cycles(base, maximum, half_cycle, lambda t, cycle: 0.5**cycle)


def exp_range(base: float, maximum: float, half_cycle: int, gamma: float = 0.9994) -> Rate:
    """As :func:`triangular`, with the height times ``gamma ** t``."""
    _check(gamma=gamma)
    return _cycles(base, maximum, half_cycle, lambda t, cycle: gamma**t)


def _cycles(base: float, maximum: float, half_cycle: int, height: Callable[[int, int], float]) -> Rate:
    _check(base=base, maximum=maximum)
    _check_count(half_cycle=half_cycle)
    if maximum < base:
        raise ValueError(f"maximum={maximum!r} is below base={base!r}; give base <= maximum")

    def rate(t: int) -> float:
        cycle, place = divmod(t, 2 * half_cycle)
        rise = 1.0 - abs(place / half_cycle - 1.0)
        return base + (maximum - base) * rise * height(t, cycle)

    return rate


class LearningRates(keras.callbacks.Callback):  # type: ignore[misc]
    """Sets the optimizer's learning rate, and reports it as ``learning_rate`` in the logs of each epoch.

    Args:
        rate: one of the functions of this module, or any function from the number of finished epochs (steps) to a
            number >= 0.
        by: ``"epoch"``, or ``"step"``: optimizer steps, counted by the optimizer, so that training that is resumed goes
            on where it was. With ``steps_per_execution`` the rate changes once per execution.

    Raises:
        ValueError: ``by`` is not known; or, in training, a rate that is not allowed, or an optimizer whose rate is a
            schedule of its own.
    """

    def __init__(self, rate: Rate, by: str = "epoch") -> None:
        super().__init__()
        if not callable(rate):
            raise ValueError(f"rate is {rate!r}; give a function of the epoch (or step), such as step_decay(0.1)")
        if by not in UNITS:
            raise ValueError(f"by={by!r} is not known; allowed: {', '.join(map(repr, UNITS))}")
        self.rate, self.by = rate, by

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Set the rate of an epoch."""
        if self.by == "epoch":
            self._set(epoch)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Set the rate of a step."""
        if self.by == "step":
            self._set(int(self.model.optimizer.iterations.numpy()))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Report it."""
        if logs is not None:
            logs["learning_rate"] = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))

    def _set(self, t: int) -> None:
        value = self.rate(t)
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or value < 0:
            raise ValueError(f"the rate of {self.by} {t} is {value!r}; a finite number >= 0 is needed")
        try:
            self.model.optimizer.learning_rate = float(value)
        except TypeError as error:  # Keras's own message
            raise ValueError(
                "the optimizer's learning_rate is a LearningRateSchedule; give it a number to set it by a callback"
            ) from error


def _check(**numbers: Any) -> None:
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or value < 0:
            raise ValueError(f"{name}={value!r} is not allowed: give a finite number >= 0")


def _check_count(**numbers: Any) -> None:
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name}={value!r} is not allowed: give an integer >= 1")
