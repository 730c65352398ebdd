"""Finding, reading and splitting a scenario's data.

A file is looked up as ``$NCG_DATA_DIR/<folder>/<file>`` and ``$NCG_DATA_DIR/<file>``. Whatever is wrong with it ends
in a
:class:`ScenarioDataError` that names the file, what was found and what to do.
"""

from __future__ import annotations

import csv
import math
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

DATA_DIR_VARIABLE = "NCG_DATA_DIR"
MISSING_CELLS = frozenset({"", "NA", "NaN", "nan", "?"})
_SPLIT_SEED = 2021
_VALIDATION_SHARE = 5  # one fifth


class ScenarioDataError(RuntimeError):
    """The data of a scenario are absent or damaged; the message says which file, and what to do."""


@dataclass(frozen=True)
class Dataset:
    """Arrays in memory, ready to train on: samples along axis 0, inputs float32, targets float32 or class numbers
    int32.
    """

    x_train: Array
    y_train: Array
    x_val: Array
    y_val: Array
    origin: str
    """Where the arrays came from: a path, a package, a download."""
    target_scale: float = 1.0
    """One unit of a standardised target, in its own unit (1 where targets are not standardised)."""


@dataclass(frozen=True)
class DataFile:
    """A file that the user provides, and what it must look like."""

    folder: str
    name: str
    columns: tuple[str, ...]
    """Columns that must be there, in the order of the array that :meth:`read` returns. Others are ignored."""
    rows: int
    """Data rows of the complete file."""
    obtain: str
    """Where people get it, for the error message."""

    def candidates(self) -> list[Path]:
        """The places that are looked at, in order; empty while ``$NCG_DATA_DIR`` is not set."""
        root = os.environ.get(DATA_DIR_VARIABLE, "")
        return [Path(root) / self.folder / self.name, Path(root) / self.name] if root else []

    def find(self) -> Path | None:
        """The first candidate that exists."""
        return next((path for path in self.candidates() if path.exists()), None)

    def absent(self) -> str:
        """The message for a file that is not there."""
        root = os.environ.get(DATA_DIR_VARIABLE, "")
        if not root:
            seen = f"{DATA_DIR_VARIABLE} is not set"
        elif not Path(root).is_dir():
            seen = f"{DATA_DIR_VARIABLE}={root} is not a directory"
        else:
            seen = f"it is not in {DATA_DIR_VARIABLE}={root}"
        return (
            f"{self.name} is missing: {seen}. Put the file at <directory>/{self.folder}/{self.name} (or "
            f"<directory>/{self.name}) "
            f"and set {DATA_DIR_VARIABLE}=<directory>. {self.obtain}"
        )

    def require(self) -> Path:
        """The file's path, or ScenarioDataError."""
        path = self.find()
        if path is None:
            raise ScenarioDataError(self.absent())
        return path

    def read(self, path: Path) -> NDArray[np.float64]:
        """The columns as float64 ``[rows, columns]``; a missing cell (empty, NA, ?) is NaN. Raises
        ScenarioDataError.
        """
        try:
            with path.open(encoding="utf-8-sig", newline="") as stream:
                lines = [[cell.strip() for cell in line] for line in csv.reader(stream, strict=True) if line]
        except OSError as error:
            raise ScenarioDataError(
                f"{path} cannot be read: {error.strerror}. Check the file and its permissions."
            ) from error
        except (UnicodeDecodeError, csv.Error) as error:
            raise self._damaged(path, f"it is not CSV text ({error})") from error
        if not lines:
            raise self._damaged(path, "it is empty")
        header, body = lines[0], lines[1:]
        absent = [column for column in self.columns if column not in header]
        if absent:
            one = len(absent) == 1
            said = f"{'column' if one else 'columns'} {', '.join(map(repr, absent))} {'is' if one else 'are'}"
            raise self._damaged(path, f"{said} not among its columns {', '.join(header)}")
        for number, line in enumerate(body, start=2):
            if len(line) != len(header):
                raise self._damaged(path, f"row {number} has {len(line)} cells where the header has {len(header)}")
        if len(body) != self.rows:
            raise self._damaged(path, f"it has {len(body)} data rows where the complete file has {self.rows}")
        where = [header.index(column) for column in self.columns]
        return np.array(
            [[self._number(path, n, header[i], line[i]) for i in where] for n, line in enumerate(body, start=2)]
        )

    def _number(self, path: Path, row: int, column: str, cell: str) -> float:
        if cell in MISSING_CELLS:
            return math.nan
        try:
            value = float(cell)
        except ValueError:
            value = math.inf
        if not math.isfinite(value):
            raise self._damaged(path, f"row {row}, column {column!r} holds {cell!r}, not a finite number")
        return value

    def _damaged(self, path: Path, what: str) -> ScenarioDataError:
        return ScenarioDataError(
            f"{path} is not the expected file: {what}. Replace it with a complete copy. {self.obtain}"
        )


def drop_incomplete_rows(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rows without a missing cell: nothing is imputed."""
    return table[~np.isnan(table).any(axis=1)]


def split_indices(samples: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Training and validation indices: one fifth is held out, always the same, whatever the seed of a run.

    Sorted by raw PCG64 output, which NumPy guarantees never to change (its shuffling functions may).
    """
    order = np.argsort(np.random.PCG64(_SPLIT_SEED).random_raw(samples), kind="stable")
    held_out = samples // _VALIDATION_SHARE
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def standardised_regression(x: Array, y: Array, origin: str) -> Dataset:
    """Split, then scale inputs ``[n, features]`` and targets ``[n]`` to mean 0 and deviation 1 of the *training*
    part.
    """
    x = np.asarray(x, np.float64)
    y = np.asarray(y, np.float64).reshape(-1, 1)
    train, val = split_indices(len(x))
    x_mean, x_scale = x[train].mean(axis=0), x[train].std(axis=0)
    y_mean, y_scale = y[train].mean(axis=0), y[train].std(axis=0)
    x_scale = np.where(x_scale > 0, x_scale, 1.0)
    x, y = (x - x_mean) / x_scale, (y - y_mean) / y_scale
    x_train, y_train, x_val, y_val = (part.astype(np.float32) for part in (x[train], y[train], x[val], y[val]))
    return Dataset(x_train, y_train, x_val, y_val, origin=origin, target_scale=float(y_scale[0]))


def locate_sklearn() -> str:
    """Where the data sets that ship with scikit-learn are: in the package, or absent with it."""
    return "ships with scikit-learn" if sklearn_present() else "absent: pip install scikit-learn, which brings them"


def sklearn_present() -> bool:
    """Whether scikit-learn is installed (not imported to find out)."""
    return find_spec("sklearn") is not None


def load_sklearn(loader: str) -> tuple[Array, Array]:
    """Inputs and targets of ``sklearn.datasets.<loader>``; a missing package is a ScenarioDataError."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ScenarioDataError(
            f"{loader} ships with scikit-learn, which is not installed: pip install scikit-learn"
        ) from error
    x, y = getattr(datasets, loader)(return_X_y=True)
    return np.asarray(x), np.asarray(y)
