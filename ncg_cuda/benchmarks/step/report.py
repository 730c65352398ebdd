"""The tables that ``ncg-cuda bench step`` prints."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill

from ..report import table
from .records import OfModel, Results, Row

PARTS = ("linearisation", "products", "vector_work", "rest")

WIDTH = 120
"""The most columns of a line."""

_TIME: Sequence[str] = (
    *("curvature", "design", "gradients", "", "seconds"),
    *("linearise", "products", "vectors", "rest", "a product", "vectors %"),
)
_MEMORY = ("curvature", "design", "MB", "x gradient", "process x", "graph MB", "tracing s", "first s", "nodes")

LEGEND = """\
Times in gradients: over the time of forward pass, backward pass and SGD update of the same model and batch, which runs
before and after the step in the same process; medians [quartiles]. Linearise: what a step computes once, before its
loop. Vectors: everything between gradient and direction, measured with a diagonal in the place of the product, less
the time of that diagonal. Products: the loop less the vector work in it. Rest: the remainder, such as the update of the
weights, and the noise of the differences. 'a product' is products over m. MB: the peak of a fresh process' resident
memory, above that of one that only imports the libraries and builds model and data; so graphs count, and what
allocators keep. 'x gradient': over the same figure of gradient steps; 'process x': with the baseline in both. 'graph
MB': the same peak when the graph had been built, but not run. 'tracing': until the graph is built; 'first': the first
call after it, in which TensorFlow optimises the graph. Designs: fused and plain linearise once; reference has the
structure of the published implementation: a CG recurrence per weight tensor, vectors in TensorFlow operations,
everything differentiated anew for each product (of stock TensorFlow, inexact through batch normalization). It is
written for this benchmark and makes one product of the network per iteration for all tensors, the fewest possible."""


def report(results: Results) -> str:
    """All of it: a block per model, targets, legend."""
    iterations = results.command["iterations"]
    blocks = [f"ncg-cuda bench step: a Newton step of {iterations} CG iterations, in gradients"]
    for of in results.models:
        blocks.append(_model(of, iterations))
    if results.verdicts:
        rows: list[Sequence[str]] = [("target", "at", "wanted", "found", "distance", "")]
        rows += [(v.target, v.at, v.wanted, v.found or "-", v.distance or "-", v.word) for v in results.verdicts]
        blocks.append(table(rows, left=2))
    if any(row.gradients for of in results.models for row in of.rows):
        blocks.append(LEGEND)
    return "\n\n".join(blocks)


def title(of: OfModel) -> str:
    """Model, size and batch."""
    size = f" of {of.image_size} x {of.image_size}" if of.model.images else ""
    return f"{of.model.title}: {of.weights:,} weights in {of.tensors} tensors, batch {of.batch}{size}"


def _model(of: OfModel, iterations: int) -> str:
    lines = [f"== {title(of)} =="]
    unit = of.gradient_seconds
    if unit is not None:
        text = f"a gradient takes {_seconds(unit.median)} [{_seconds(unit.low)} … {_seconds(unit.high)}]"
        if of.gradient_bytes is not None:
            text += f" and {_mb(of.gradient_bytes)} MB"
        lines.append(text)
    measured = [row for row in of.rows if not row.failed and row.gradients is not None]
    if measured:
        lines.append(table([_TIME, *(_time(row, iterations) for row in measured)], left=2))
        lines += ["", table([_MEMORY, *(_memory(of, row) for row in measured)], left=2)]
    for row in of.rows:
        if row not in measured:
            text = f"{row.curvature}, {row.design}: failed: {row.failed}"
            lines.append(fill(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False))
    lines += [f"Note: {note}." for note in of.notes]
    return "\n".join(lines)


def _time(row: Row, iterations: int) -> Sequence[str]:
    assert row.gradients is not None
    products = row.in_gradients("products")
    return (
        row.curvature,
        row.design,
        f"{row.gradients.median:.1f}",
        f"[{row.gradients.low:.1f} … {row.gradients.high:.1f}]",
        "-" if row.step_seconds is None else f"{row.step_seconds.median:.3g}",
        *[_plain(row.in_gradients(part)) for part in PARTS],
        _plain(None if products is None else products / iterations),
        _plain(row.share("vector_work")),
    )


def _memory(of: OfModel, row: Row) -> Sequence[str]:
    return (
        row.curvature,
        row.design,
        "-" if row.peak_bytes is None else _mb(row.peak_bytes),
        _plain(of.memory_ratio(row)),
        _plain(of.process_ratio(row)),
        "-" if row.tracing_bytes is None else _mb(row.tracing_bytes),
        _plain(row.trace_seconds),
        _plain(row.first_seconds),
        "-" if row.nodes is None else f"{row.nodes:,}",
    )


def _plain(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.1f} ms"


def _mb(count: int) -> str:
    return f"{count / 1e6:,.0f}"
