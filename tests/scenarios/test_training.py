"""Runs: every scenario with every optimizer, what a seed determines, what is counted, and the claims that are made."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import pytest

from ncg_cuda import scenarios
from ncg_cuda.compare import OPTIMIZERS, Run
from ncg_cuda.compare.trainer import Evaluator, Trainer
from ncg_cuda.scenarios import Scenario

Present = Callable[[str], Scenario]


def trainer(scenario: Scenario, optimizer: str, **options: Any) -> Trainer:
    return Trainer(scenario, scenario.load(), OPTIMIZERS[optimizer], **options)


def a_rate(scenario: Scenario, optimizer: str) -> float:
    rates = scenario.learning_rates.get(optimizer)
    return rates[len(rates) // 2] if rates else float(scenario.newton["learning_rate"])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", scenarios.names())
def test_every_scenario_trains_with_every_optimizer(name: str, optimizer: str, present: Present) -> None:
    scenario = present(name)
    session, rate = trainer(scenario, optimizer), a_rate(scenario, optimizer)
    seen: list[int] = []
    run = session.run(0, rate, 2, lambda point: seen.append(point.epoch))
    assert seen == [1, 2]
    assert not run.diverged
    assert [point.epoch for point in run.curve] == [0, 1, 2]
    assert run.final_train_loss == run.curve[-1].train_loss
    assert run.final_train_loss < run.curve[0].train_loss
    assert 0 < run.curve[1].seconds <= run.seconds
    steps = 2 * math.ceil(scenario.train_size / (scenario.batch_size or scenario.train_size))
    assert run.steps == steps
    assert (run.hessian_products > 0) == (optimizer == "newton-cg")
    assert run.hessian_products <= steps * (int(scenario.newton["max_iter"]) + 1)
    assert run.gradient_equivalents == steps + 2.0 * run.hessian_products

    session.run(1, rate, 1)
    again = session.run(0, rate, 2)  # must not remember the runs before it
    assert [point.train_loss for point in again.curve] == pytest.approx(
        [point.train_loss for point in run.curve], rel=1e-5
    )
    assert again.hessian_products == pytest.approx(run.hessian_products, abs=2)


def test_seeds_give_different_runs() -> None:
    session = trainer(scenarios.get("cnn-digits"), "adam")
    first, second = session.run(0, 0.01, 1), session.run(1, 0.01, 1)
    assert first.curve[0].train_loss != second.curve[0].train_loss
    assert first.final_train_loss != second.final_train_loss


def test_batch_size_is_taken_and_capped() -> None:
    scenario = scenarios.get("reg-diabetes")
    assert trainer(scenario, "sgd", batch_size=100).run(0, 0.01, 1).steps == 4
    capped = trainer(scenario, "sgd", batch_size=10_000).run(0, 0.01, 1)
    assert (capped.batch_size, capped.steps) == (scenario.train_size, 1)


@pytest.mark.parametrize("rate", [1e30, 30.0])
def test_divergence_is_recorded(rate: float) -> None:
    run = trainer(scenarios.get("reg-diabetes"), "sgd").run(0, rate, 5)
    assert run.diverged
    assert run.loss_or_inf() == math.inf
    if rate > 1e20:
        assert run.final_train_loss is None
        assert run.final_val_metric is None
        assert run.epochs_completed < run.epochs == 5
    else:  # finite, but far above the loss of the untrained model
        assert run.final_train_loss is not None
        assert run.final_train_loss > 10 * run.curve[0].train_loss


def test_loss_is_over_the_full_set_in_inference_mode() -> None:
    """Against NumPy: cross-entropy of the model's own inference outputs, on every sample."""
    scenario = scenarios.get("cnn-digits")
    loaded = scenario.load()
    session = Trainer(scenario, loaded, OPTIMIZERS["adam"])
    run = session.run(0, 0.01, 1)
    logits = np.asarray(session.model(loaded.x_train, training=False), np.float64)
    top = logits.max(axis=1, keepdims=True)
    log_softmax = logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
    expected = -log_softmax[np.arange(len(logits)), loaded.y_train].mean()
    assert run.final_train_loss == pytest.approx(expected, rel=1e-5)


def test_evaluation_holds_noise_fixed_and_leaves_generators_alone() -> None:
    import keras

    class AlwaysNoisy(keras.layers.Layer):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.seeds = keras.random.SeedGenerator(5)

        def call(self, x: Any) -> Any:
            return x + keras.random.normal(keras.ops.shape(x), seed=self.seeds)

    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(1)(AlwaysNoisy()(inputs)))
    evaluate = Evaluator(model, keras.losses.MeanSquaredError())
    x, y = np.ones((3000, 3), np.float32), np.zeros((3000, 1), np.float32)
    (generator,) = [variable for variable in model.variables if "seed" in variable.path]
    before = generator.numpy()
    first, _ = evaluate(x, y)
    np.testing.assert_array_equal(generator.numpy(), before)
    model(x)
    assert (generator.numpy() != before).any()
    assert evaluate(x, y)[0] == first


def test_diabetes_reaches_the_least_squares_optimum_in_five_steps() -> None:
    """Within 1 % of the closed-form optimum after at most five full-batch Newton steps, on five seeds."""
    scenario = scenarios.get("reg-diabetes")
    loaded = scenario.load()
    x = np.hstack([loaded.x_train, np.ones((len(loaded.x_train), 1))]).astype(np.float64)
    y = loaded.y_train.astype(np.float64)
    weights, *_ = np.linalg.lstsq(x, y, rcond=None)
    optimum = float(np.mean((x @ weights - y) ** 2))
    session = Trainer(scenario, loaded, OPTIMIZERS["newton-cg"])
    for seed in range(5):
        run = session.run(seed, float(scenario.newton["learning_rate"]), 5)
        assert run.steps == 5
        assert not run.diverged
        assert optimum * (1 - 1e-5) <= run.loss_or_inf() <= 1.01 * optimum


def test_digits_do_not_diverge() -> None:
    scenario = scenarios.get("cnn-digits")
    session = trainer(scenario, "newton-cg")
    runs = [session.run(seed, float(scenario.newton["learning_rate"]), scenario.epochs) for seed in range(5)]
    assert not any(run.diverged for run in runs)
    assert all(run.skipped_steps == run.fallback_steps == 0 for run in runs)
    assert all(run.loss_or_inf() < 0.4 for run in runs)  # guessing: 2.3


def _median_loss(session: Trainer, rate: float, seeds: int) -> tuple[float, list[Run]]:
    runs = [session.run(seed, rate, session.scenario.epochs) for seed in range(seeds)]
    return median(run.loss_or_inf() for run in runs), runs


def test_boston_newton_is_below_adam_and_sgd(present: Present) -> None:
    """After the default 20 epochs, median of five seeds. The best rate of either grid is among its three largest."""
    scenario = present("reg-bos")
    assert scenario.epochs == 20
    session = trainer(scenario, "newton-cg")
    newton, runs = _median_loss(session, float(scenario.newton["learning_rate"]), 5)
    assert not any(run.diverged for run in runs)
    for optimizer in ("adam", "sgd"):
        rates = scenario.learning_rates[optimizer]
        session = trainer(scenario, optimizer)
        medians = {rate: _median_loss(session, rate, 5)[0] for rate in rates[-3:]}
        best = min(medians, key=lambda rate: medians[rate])
        assert newton < medians[best], f"{optimizer} at {best}"
        assert best not in (min(medians), max(medians)), f"the best of {medians} must lie inside what is tried"


def test_settings_reach_the_optimizer() -> None:
    scenario = scenarios.get("reg-diabetes")
    one = replace(scenario, newton={**scenario.newton, "max_iter": 1})
    run = trainer(one, "newton-cg").run(0, 1.0, 3)
    assert run.hessian_products <= 2 * 3
    assert run.settings["max_iter"] == 1
