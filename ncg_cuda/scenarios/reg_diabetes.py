"""Linear least squares on the diabetes data: convex, full batch, so the exact optimum is known in closed form."""

from __future__ import annotations

from typing import Any

from .data import Dataset, load_sklearn, locate_sklearn, sklearn_present, standardised_regression
from .scenario import Scenario, glorot, root_mean_squared_error


def load() -> Dataset:
    """442 patients: ten measurements x ``[n, 10]``, disease progression after a year y ``[n, 1]``, both
    standardised.
    """
    x, y = load_sklearn("load_diabetes")
    return standardised_regression(x, y, "scikit-learn load_diabetes")


def build(seed: int, data: Dataset) -> Any:
    """One linear unit with bias: 11 weights."""
    import keras

    init = glorot(seed)
    inputs = keras.Input(data.x_train.shape[1:])
    return keras.Model(inputs, keras.layers.Dense(1, kernel_initializer=next(init))(inputs))


def loss() -> Any:
    """Mean squared error, in units of the targets' variance."""
    import keras

    return keras.losses.MeanSquaredError()


SCENARIO = Scenario(
    name="reg-diabetes",
    title="linear regression, disease progression of 442 diabetes patients from 10 measurements",
    source=(
        "scikit-learn's diabetes set (Efron et al., Least Angle Regression, 2004); no missing cells; inputs and "
        "target standardised by the training part; fixed split"
    ),
    load=load,
    locate=locate_sklearn,
    present=sklearn_present,
    build=build,
    loss=loss,
    metric=root_mean_squared_error("progression"),
    train_size=354,
    val_size=88,
    parameters=11,
    epochs=30,
    batch_size=None,
    newton={"learning_rate": 1.0, "tau": 1e-5, "cg_tol": 1e-5, "max_iter": 20, "max_step": 100.0},
    learning_rates={
        "adam": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
        "sgd": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
    },
)
