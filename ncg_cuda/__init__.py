"""Newton-CG on GPUs and CPUs: fused conjugate-gradient kernels and exact curvature products.

``import ncg_cuda`` loads nothing but this file. Every name below is resolved on first use, so that TensorFlow, CuPy and
mpi4py are imported only by the part that needs them, and the package imports on a machine that has none of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import mpi, ops, reference, scenarios, tf
    from .conjugate_gradient import cg
    from .installation import backends
    from .layout import Layout
    from .result import CGResult
    from .state import StopReason

_SUBMODULES = {"mpi", "ops", "reference", "scenarios", "tf"}
_ATTRIBUTES = {
    "backends": "installation",
    "cg": "conjugate_gradient",
    "CGResult": "result",
    "Layout": "layout",
    "StopReason": "state",
}

__all__ = [
    "CGResult",
    "Layout",
    "StopReason",
    "__version__",
    "backends",
    "cg",
    "mpi",
    "ops",
    "reference",
    "scenarios",
    "tf",
]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f"{__name__}.{name}")
    if name in _ATTRIBUTES:
        value = getattr(import_module(f"{__name__}.{_ATTRIBUTES[name]}"), name)
        globals()[name] = value  # from now on a plain attribute
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
