"""Learning rates over epochs and steps."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import pytest

from ncg_cuda.tf import NewtonCG
from ncg_cuda.tf import learning_rates as rates

X = np.random.default_rng(0).normal(size=(24, 3)).astype("float32")
Y = X.sum(axis=1, keepdims=True)


def model(optimizer: Any) -> keras.Model:
    made = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    made.compile(optimizer=optimizer, loss="mse")
    return made


class Seen(keras.callbacks.Callback):
    """The rates that the steps were taken with; after the callback that sets them."""

    def __init__(self) -> None:
        super().__init__()
        self.rates: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.rates.append(float(self.model.optimizer.learning_rate.numpy()))


def cyclical(t: int, base: float, maximum: float, half: int) -> float:
    """Smith's own formula."""
    cycle = math.floor(1 + t / (2 * half))
    x = abs(t / half - 2 * cycle + 1)
    return (maximum - base) * max(0.0, 1 - x)


@pytest.mark.parametrize(
    ("rate", "formula"),
    [
        (rates.constant(0.3), lambda t: 0.3),
        (rates.step_decay(0.01), lambda t: 0.01 * [1.0, 0.5, 0.25, 0.125, 0.0625][t // 10]),
        (rates.exponential(0.01), lambda t: 0.01 * np.exp(-0.1 * t)),
        (rates.time_based(0.01), lambda t: 0.01 * np.prod([1 / (1 + 0.1 * i) for i in range(t + 1)])),
        (rates.hold_then_exponential(0.01), lambda t: 0.01 if t < 10 else 0.01 * np.exp(-0.1 * (t - 10))),
        (rates.triangular(0.1, 0.7, 6), lambda t: 0.1 + cyclical(t, 0.1, 0.7, 6)),
        (rates.triangular2(0.1, 0.7, 6), lambda t: 0.1 + cyclical(t, 0.1, 0.7, 6) / 2 ** (t // 12)),
        (rates.exp_range(0.1, 0.7, 6, gamma=0.9), lambda t: 0.1 + cyclical(t, 0.1, 0.7, 6) * 0.9**t),
    ],
)
def test_definitions(rate: rates.Rate, formula: Any) -> None:
    assert [rate(t) for t in range(45)] == pytest.approx([formula(t) for t in range(45)], rel=1e-12)


def test_every_epoch_has_its_rate() -> None:
    seen = Seen()
    made = model(NewtonCG(learning_rate=1.0))
    history = made.fit(
        X, Y, batch_size=12, epochs=3, verbose=0, callbacks=[rates.LearningRates(rates.step_decay(0.4, every=1)), seen]
    )
    assert history.history["learning_rate"] == pytest.approx([0.4, 0.2, 0.1])
    assert seen.rates == pytest.approx([0.4, 0.4, 0.2, 0.2, 0.1, 0.1])


def test_every_step_has_its_rate_and_resumed_training_goes_on() -> None:
    rate = rates.triangular(0.1, 0.5, half_cycle=3)
    seen = Seen()
    made = model(NewtonCG(learning_rate=1.0))
    for first in (0, 1):
        made.fit(
            X,
            Y,
            batch_size=6,
            initial_epoch=first,
            epochs=first + 1,
            verbose=0,
            callbacks=[rates.LearningRates(rate, by="step"), seen],
        )
    assert seen.rates == pytest.approx([rate(t) for t in range(8)], rel=1e-6)


def test_the_step_is_as_long_as_the_rate_says() -> None:
    """A rate of 0 leaves the weights where they are, another moves them by that part of the Newton step."""
    moved = []
    for value in (0.0, 0.25, 0.5):
        keras.utils.set_random_seed(4)
        made = model(NewtonCG(learning_rate=1.0, max_step=None))
        before = made.layers[0].kernel.numpy()
        made.fit(X, Y, batch_size=24, verbose=0, callbacks=[rates.LearningRates(rates.constant(value))])
        moved.append(made.layers[0].kernel.numpy() - before)
    assert not moved[0].any()
    np.testing.assert_allclose(moved[2], 2.0 * moved[1], rtol=1e-4)


def test_under_mixed_precision() -> None:
    keras.config.set_dtype_policy("mixed_float16")
    made = model(NewtonCG(learning_rate=1.0))
    assert type(made.optimizer).__name__ == "LossScaleOptimizer"
    made.fit(X, Y, batch_size=24, verbose=0, callbacks=[rates.LearningRates(rates.constant(0.125))])
    assert float(made.optimizer.inner_optimizer.learning_rate.numpy()) == 0.125


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"by='batch' is not known; allowed: 'epoch', 'step'"):
        rates.LearningRates(rates.constant(0.1), by="batch")
    with pytest.raises(ValueError, match=r"rate is 0.1; give a function of the epoch"):
        rates.LearningRates(0.1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"start=-1 is not allowed: give a finite number >= 0"):
        rates.exponential(-1)
    with pytest.raises(ValueError, match=r"half_cycle=0 is not allowed: give an integer >= 1"):
        rates.triangular(0.1, 0.2, 0)
    with pytest.raises(ValueError, match=r"maximum=0.1 is below base=0.2"):
        rates.triangular2(0.2, 0.1, 5)
    made = model(NewtonCG())
    with pytest.raises(ValueError, match=r"the rate of epoch 0 is nan; a finite number >= 0 is needed"):
        made.fit(X, Y, verbose=0, callbacks=[rates.LearningRates(lambda t: math.nan)])
    made = model(NewtonCG(learning_rate=keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)))
    with pytest.raises(ValueError, match="is a LearningRateSchedule; give it a number"):
        made.fit(X, Y, verbose=0, callbacks=[rates.LearningRates(rates.constant(0.1))])
