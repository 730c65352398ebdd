"""The list of scenarios, and that each is what it says."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ncg_cuda import scenarios
from ncg_cuda.compare import OPTIMIZERS
from ncg_cuda.scenarios import Scenario

Present = Callable[[str], Scenario]


def test_names_are_those_of_the_files() -> None:
    assert {"cnn-digits", "reg-bos", "reg-diabetes", "reg-lif"} <= set(scenarios.names())
    assert scenarios.names() == sorted(scenarios.names())


def test_unknown_name_lists_the_known_and_the_closest() -> None:
    with pytest.raises(KeyError, match=r"unknown scenario 'reg-diabetis'. Did you mean 'reg-diabetes'\?.*cnn-digits"):
        scenarios.get("reg-diabetis")


@pytest.mark.parametrize("name", scenarios.names())
def test_sizes_and_model_are_as_stated(name: str, present: Present) -> None:
    scenario = present(name)
    loaded = scenario.load()
    assert (len(loaded.x_train), len(loaded.x_val)) == (scenario.train_size, scenario.val_size)
    assert (len(loaded.y_train), len(loaded.y_val)) == (scenario.train_size, scenario.val_size)
    for part in (loaded.x_train, loaded.y_train, loaded.x_val, loaded.y_val):
        assert np.isfinite(part).all()
    model = scenario.build(0, loaded)
    assert sum(variable.numpy().size for variable in model.trainable_variables) == scenario.parameters


@pytest.mark.parametrize("name", scenarios.names())
def test_seed_alone_determines_the_initial_weights(name: str, present: Present) -> None:
    import keras

    scenario = present(name)
    loaded = scenario.load()
    first = scenario.build(3, loaded).get_weights()
    keras.utils.set_random_seed(99)
    again, other = scenario.build(3, loaded).get_weights(), scenario.build(4, loaded).get_weights()
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(first, other, strict=True))
    flat = [weights.ravel() for weights in first if weights.ndim > 1]
    assert len({tuple(np.round(weights[:2], 12)) for weights in flat}) == len(flat)  # every layer has its own seed


@pytest.mark.parametrize("name", scenarios.names())
def test_defaults_make_sense(name: str) -> None:
    scenario = scenarios.get(name)
    for optimizer in (competitor.name for competitor in OPTIMIZERS.values() if competitor.tuned):
        rates = scenario.learning_rates[optimizer]
        assert len(rates) >= 5, "too small a grid to be fair"
        assert list(rates) == sorted(set(rates))
        assert rates[0] > 0
    assert {"learning_rate", "tau", "cg_tol", "max_iter", "max_step"} <= set(scenario.newton)
    assert scenario.title
    assert scenario.source
