"""Every row of the layer table keeps its promise, and the document that prints the table is current."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ncg_cuda.tf.layer_table import EXACT, PRODUCTS, REFUSED, ROWS, Row, directions, in_float64, relative_error
from ncg_cuda.tf.layer_table.document import markdown

DOCUMENT = Path(__file__).parents[2] / "docs" / "layers.md"


@pytest.fixture
def double() -> Iterator[None]:
    with in_float64():
        yield


def often(row: Row) -> object:
    """A row as a parameter: every fifth one, and all that are refused, in the short set of tests."""
    short = ROWS.index(row) % 5 == 0 or row.expect == REFUSED
    return pytest.param(row, id=row.name, marks=() if short else pytest.mark.slow)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("row", [*map(often, ROWS)])
def test_row(row: Row, product: str) -> None:
    ours, truth = PRODUCTS[product]
    problem = row.build()
    s = directions(problem.variables)
    if row.promise(product) == REFUSED:
        with pytest.raises(ValueError, match=f"(?s){row.op}.*(Remedy|exact_moments)"):
            ours(problem, s)
        return
    want = truth(problem, s, row)
    assert np.linalg.norm(np.concatenate([np.ravel(w) for w in want])) > 1e-3, "a product of zero shows nothing"
    assert relative_error(ours(problem, s), want) <= row.tolerance


def test_names_are_unique() -> None:
    names = [(row.group, row.name) for row in ROWS]
    assert len(set(names)) == len(names)
    assert sum(row.expect == EXACT for row in ROWS) > 150


def test_document_is_current() -> None:
    assert DOCUMENT.read_text() == markdown(ROWS), (
        "the table has changed: python -m ncg_cuda.tf.layer_table > docs/layers.md"
    )
