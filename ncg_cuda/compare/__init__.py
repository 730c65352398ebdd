"""The comparison behind ``ncg-cuda compare``: optimizers on scenarios, over seeds, with tables, records and plots.

``plan`` says what is asked for, ``optimizers`` what competes. ``trainer`` makes a run, ``search`` tunes learning
rates, ``records`` writes files, ``table`` and ``plot`` show them, ``command`` ties them together. Importing the package
imports neither TensorFlow nor Matplotlib.
"""

from __future__ import annotations

from .command import compare
from .errors import UsageError
from .optimizers import OPTIMIZERS
from .plan import Plan
from .records import Run

__all__ = ["OPTIMIZERS", "Plan", "Run", "UsageError", "compare"]
