"""The table as Markdown."""

from __future__ import annotations

from collections.abc import Iterable

from ..differentiable import remedy
from .row import HELD, REFUSED, Row

_HEAD = """# Layers and operations

What a product with the Hessian, or with the Gauss-Newton matrix, is worth through each layer and operation.
`tests/tf/test_layer_table.py` checks every row; this file is written by

    python -m ncg_cuda.tf.layer_table > docs/layers.md

and `python -m ncg_cuda.tf.layer_table --check` measures all rows on your installation. For your own model, loss and
data use `ncg_cuda.tf.check_curvature`.

- **exact**: agrees with finite differences (of the gradient; for Gauss-Newton, of the outputs and of the loss's slope)
  in float64, relative error at most 1e-6.
- **exact (float32)**: the same at most 1e-4; TensorFlow computes this one in float32 only, so that finite differences
  show no more digits.
- **exact, stops held**: exact for the loss in which the values that the layer itself declares constant
  (`stop_gradient`) are constant, which is also the loss that its gradient belongs to.
- **refused**: an error that names the operation, where it is, and the remedy in the last column.

Activations and operations with kinks (ReLU, max) are exact wherever the loss is twice differentiable; their second
derivative at a kink counts as zero.
"""

_HEADER = """
## {group}

| layer or operation | Hessian | Gauss-Newton | remedy |
|---|---|---|---|
"""


def verdict(row: Row, product: str) -> str:
    """What the table says about a row."""
    promise = row.promise(product)
    if promise == REFUSED:
        return "refused"
    if promise == HELD:
        return "exact, stops held"
    return "exact (float32)" if row.single else "exact"


def markdown(rows: Iterable[Row]) -> str:
    """The document."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    parts = [_HEAD]
    for group, members in groups.items():
        parts.append(_HEADER.format(group=group))
        parts += [
            f"| {row.name} | {verdict(row, 'hessian')} | {verdict(row, 'gauss-newton')} | "
            f"{remedy(row.op) if row.expect == REFUSED else ''} |\n"
            for row in members
        ]
    return "".join(parts)
