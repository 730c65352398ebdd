"""Runs the cases of the GPU check on the emulated GPU kernels: ``run_cases.py LIBRARY``. Prints what differs as JSON.

A process of its own, because the library's kernels replace the CPU kernels of the ops for good.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "gpu"))

import tensorflow as tf
import tensorflow_cases as cases

from ncg_cuda.tf import oplib

CPU = "/CPU:0"


class Counts(ctypes.Structure):
    """As in counts.h."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("ops", "launches", "copies", "written_bytes"))


def main(library: str) -> dict[str, object]:
    """The differences by case, and what a solve of 3 and one of 6 iterations ask of the device."""
    if oplib.load() is None:
        raise SystemExit(oplib.why_not())
    tf.load_library(library)
    native = ctypes.CDLL(library)
    differences: dict[str, list[str]] = {}
    for dtype in cases.DTYPES:
        small = cases.rounding(dtype)
        for name, shapes in cases.SHAPES.items():
            packed = cases.differences(cases.packing(CPU, shapes, dtype), cases.packing_truth(shapes, dtype), 0.0)
            differences[f"pack {name} {dtype}"] = packed
            summed = cases.differences(cases.summing(CPU, shapes, dtype), cases.summing_truth(shapes, dtype), small)
            differences[f"sums {name} {dtype}"] = summed
            for shift in (0.0, -5.0, -40.0) if name == "odd sizes" else (0.0,):  # negative curvature late, and at once
                truth = cases.solving_truth(shapes, dtype, shift=shift)
                solved = cases.solving(CPU, shapes, dtype, shift=shift)
                differences[f"solve {name} {dtype} {shift}"] = cases.differences(solved, truth, small)
        shapes = cases.SHAPES["odd sizes"]
        eager = cases.solving(CPU, shapes, dtype, graph=False)
        differences[f"eager {dtype}"] = cases.differences(eager, cases.solving_truth(shapes, dtype), small)
        differences[f"keep {dtype}"] = cases.differences(cases.keeping(CPU, dtype), cases.keeping_truth(dtype), small)

    def counted(iterations: int) -> list[int]:
        before, after = Counts(), Counts()
        solve, arguments = cases.solve_function(CPU, cases.SHAPES["161 tensors"], "float32", iterations=iterations)
        native.ncg_emulated_counts(ctypes.byref(before))
        tf.function(solve, autograph=False)(*arguments)
        native.ncg_emulated_counts(ctypes.byref(after))
        return [getattr(after, name) - getattr(before, name) for name, _ in Counts._fields_]

    return {"differences": differences, "three": counted(3), "six": counted(6)}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
