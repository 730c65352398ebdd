"""Newton-CG training in TensorFlow and Keras: exact curvature products, the solver inside the graph, the optimizer.

TensorFlow and Keras are imported by the names below on first use, not by this file.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import learning_rates, v1
    from .backup import BackupAndRestore
    from .check import check_curvature
    from .curvature import HessianOperator, hessian_vector_product
    from .estimates import Estimate
    from .gauss_newton_operator import GaussNewtonOperator
    from .learning_rates import LearningRates
    from .micro_batches import MicroBatchedOperator
    from .moments import exact_moments
    from .objective import Objective
    from .operators import CurvatureOperator
    from .optimizer import NewtonCG
    from .report import StepReport
    from .spectrum import Spectrum

_ATTRIBUTES = {
    "BackupAndRestore": "backup",
    "CurvatureOperator": "operators",
    "Estimate": "estimates",
    "GaussNewtonOperator": "gauss_newton_operator",
    "HessianOperator": "curvature",
    "LearningRates": "learning_rates",
    "MicroBatchedOperator": "micro_batches",
    "NewtonCG": "optimizer",
    "Objective": "objective",
    "Spectrum": "spectrum",
    "StepReport": "report",
    "check_curvature": "check",
    "exact_moments": "moments",
    "hessian_vector_product": "curvature",
}

__all__ = [
    "BackupAndRestore",
    "CurvatureOperator",
    "Estimate",
    "GaussNewtonOperator",
    "HessianOperator",
    "LearningRates",
    "MicroBatchedOperator",
    "NewtonCG",
    "Objective",
    "Spectrum",
    "StepReport",
    "check_curvature",
    "exact_moments",
    "hessian_vector_product",
    "learning_rates",
    "v1",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        try:
            module = import_module(f"{__name__}.{_ATTRIBUTES.get(name, name)}")
        except ModuleNotFoundError as error:
            if error.name not in ("tensorflow", "keras"):
                raise
            raise ModuleNotFoundError(
                f"ncg_cuda.tf.{name} needs TensorFlow and Keras, but {error.name} is not installed: "
                "pip install tensorflow (or tensorflow-cpu)",
                name=error.name,
            ) from error
        value = getattr(module, name) if name in _ATTRIBUTES else module
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
