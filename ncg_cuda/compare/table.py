"""The table that ``ncg-cuda compare`` prints: one line per optimizer, median and range over the seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from .optimizers import HESSIAN_PRODUCT_COST
from .search import RULE, Choice


def spread(values: Iterable[float | None], digits: int = 4) -> str:
    """``median [smallest … largest]``; None or an infinity is a diverged run."""
    numbers = sorted(math.inf if value is None else value for value in values)
    texts = [_number(value, digits) for value in (statistics.median(numbers), numbers[0], numbers[-1])]
    if texts[1] == texts[2]:
        return texts[0]
    return f"{texts[0]} [{texts[1]} … {texts[2]}]"


def _number(value: float, digits: int) -> str:
    if not math.isfinite(value):
        return "diverged"
    return f"{value:.0f}" if 10**digits <= abs(value) < 1e7 else f"{value:.{digits}g}"


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns, two spaces apart, a rule under the first row."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def comparison(choices: list[Choice]) -> str:
    """One block per scenario, the notes that make its figures readable below."""
    blocks = []
    for name in dict.fromkeys(choice.scenario for choice in choices):
        group = [choice for choice in choices if choice.scenario == name]
        first = group[0].runs[0]
        seeds = ", ".join(str(run.seed) for run in group[0].runs)
        title = f"{name}: {first.epochs} epochs, batch {first.batch_size}, seeds {seeds}"
        head = ("optimizer", "learning rate", "final training loss", f"validation {first.val_metric_name}")
        rows = [(*head, "seconds", "(tracing)", "gradient equivalents", "diverged")]
        for choice in group:
            runs = choice.runs
            rows.append(
                (
                    choice.competitor.label,
                    f"{choice.learning_rate:g}" + (" (grid edge)" if choice.at_grid_edge else ""),
                    spread(run.final_train_loss for run in runs),
                    spread(run.final_val_metric for run in runs),
                    spread((run.seconds for run in runs), 3),
                    f"{runs[0].tracing_seconds:.1f}",
                    spread(run.gradient_equivalents for run in runs),
                    f"{sum(run.diverged for run in runs)} of {len(runs)}",
                )
            )
        blocks.append(f"{title}\n{columns(rows)}")
    notes = [
        "Median [range] over the seeds. Losses are over the full training set in inference mode. Seconds are training "
        "alone,",
        "without evaluation and without the first step's tracing, which is given apart. A gradient equivalent is one "
        "gradient",
        f"of one batch; a Newton-CG step with k Hessian-vector products counts 1 + {HESSIAN_PRODUCT_COST:g} k of them.",
        f"Learning rates of Adam and SGD: {RULE}.",
    ]
    warnings = [f"Note: {text}." for text in (choice.warning() for choice in choices) if text]
    return "\n\n".join([*blocks, "\n".join(notes + warnings)])
