"""What the library promises for each layer and operation: a table that the tests check and the documentation prints.

``python -m ncg_cuda.tf.layer_table`` prints it; with ``--check`` it measures every row on this installation.
"""

from __future__ import annotations

from ..double import in_float64
from .layers import ROWS as _LAYERS
from .measure import PRODUCTS, directions, relative_error
from .operations import ROWS as _OPERATIONS
from .programs import ROWS as _PROGRAMS
from .row import EXACT, HELD, REFUSED, Problem, Row

ROWS: list[Row] = [*_LAYERS, *_OPERATIONS, *_PROGRAMS]
"""Every row."""

__all__ = [
    "EXACT",
    "HELD",
    "PRODUCTS",
    "REFUSED",
    "ROWS",
    "Problem",
    "Row",
    "directions",
    "in_float64",
    "relative_error",
]
