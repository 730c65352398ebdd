"""Print the layer table as Markdown, or measure it."""

from __future__ import annotations

import argparse
import sys

import keras

from . import PRODUCTS, REFUSED, ROWS, directions, in_float64, relative_error
from .document import markdown


def check(product: str, words: list[str]) -> int:
    """Measure the rows whose name contains one of the words (all without words); the number of broken promises."""
    ours, truth = PRODUCTS[product]
    broken = 0
    for row in ROWS:
        if words and not any(w.lower() in row.name.lower() for w in words):
            continue
        keras.utils.set_random_seed(1)
        with in_float64():
            problem = row.build()
            s = directions(problem.variables)
            try:
                found = ours(problem, s)
            except ValueError as error:
                kept, what = row.promise(product) == REFUSED and row.op in str(error), f"refused: {error}"
            else:
                error_size = relative_error(found, truth(problem, s, row))
                kept, what = row.promise(product) != REFUSED and error_size <= row.tolerance, f"{error_size:.1e}"
        broken += not kept
        print(f"{'ok    ' if kept else 'BROKEN'} {row.group}: {row.name}: {what}", flush=True)
    return broken


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m ncg_cuda.tf.layer_table", description=__doc__)
    parser.add_argument("--check", action="store_true", help="measure every row on this installation")
    parser.add_argument("--product", choices=sorted(PRODUCTS), default="hessian", help="which product to measure")
    parser.add_argument("words", nargs="*", help="with --check: only rows with one of these words in their name")
    arguments = parser.parse_args()
    if arguments.check:
        return 1 if check(arguments.product, arguments.words) else 0
    sys.stdout.write(markdown(ROWS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
