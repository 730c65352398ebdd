"""Life expectancy from the birth rate of 190 countries by one linear layer: two weights, as in the paper's survey."""

from __future__ import annotations

from typing import Any

from .data import DataFile, Dataset, ScenarioDataError, drop_incomplete_rows, standardised_regression
from .scenario import Scenario, glorot, root_mean_squared_error

FILE = DataFile(
    folder="birth_rate",
    name="birth_rate.csv",
    columns=("Birth rate", "Life expectancy"),
    rows=190,
    obtain="It is the World Bank's table of 2010: 190 countries, the columns Country, Birth rate, Life expectancy.",
)


def load() -> Dataset:
    """Birth rate (births per woman) x ``[n, 1]``, life expectancy (years) y ``[n, 1]``, both standardised."""
    path = FILE.require()
    table = FILE.read(path)
    complete = drop_incomplete_rows(table)
    if len(complete) < len(table):
        raise ScenarioDataError(
            f"{path} has {len(table) - len(complete)} rows with a missing cell; it should have none."
        )
    return standardised_regression(complete[:, :1], complete[:, 1], str(path))


def locate() -> str:
    """The file's path, or what to put where."""
    path = FILE.find()
    return str(path) if path else f"absent: {FILE.absent()}"


def present() -> bool:
    """Whether the file is there."""
    return FILE.find() is not None


def build(seed: int, data: Dataset) -> Any:
    """One linear unit with bias: two weights."""
    import keras

    inputs = keras.Input(data.x_train.shape[1:])
    return keras.Model(inputs, keras.layers.Dense(1, kernel_initializer=next(glorot(seed)))(inputs))


def loss() -> Any:
    """Mean squared error, in units of the targets' variance."""
    import keras

    return keras.losses.MeanSquaredError()


SCENARIO = Scenario(
    name="reg-lif",
    title="linear regression, life expectancy of 190 countries from their birth rate",
    source=(
        "birth_rate.csv, World Bank 2010 (file to be provided); no missing cells; input and target standardised by "
        "the training part; fixed split"
    ),
    load=load,
    locate=locate,
    present=present,
    build=build,
    loss=loss,
    metric=root_mean_squared_error("years"),
    train_size=152,
    val_size=38,
    parameters=2,
    epochs=10,
    batch_size=32,
    newton={"learning_rate": 0.2, "tau": 1e-5, "cg_tol": 1e-5, "max_iter": 20, "max_step": 100.0},
    learning_rates={
        "adam": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
        "sgd": (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
    },
)
