"""A short run of every operation and of solves on a GPU, for compute-sanitizer: exact-size memory, no pool, odd sizes.

The results are compared with the float64 reference, so that a run that does nothing cannot pass.
"""

from __future__ import annotations

import sys

import cupy
import numpy as np

import ncg_cuda
from ncg_cuda import Layout, ops
from ncg_cuda.catalog import OPERATIONS


def main(quick: bool) -> int:
    cupy.cuda.set_allocator(None)  # a pool would hide accesses beyond an array's end
    rng = np.random.default_rng(5)
    wrong = 0
    tables = [[(5,), (), (17,)], [(3,)] * 170]
    for dtype in (np.float32, np.float64):
        small = 100 * np.finfo(dtype).eps
        for row in OPERATIONS:
            for n in (1, 4099) if quick else (1, 3, 255, 4096, 4099, 9001):
                vectors = [rng.standard_normal(n).astype(dtype) for _ in range(row.vectors)]
                wrong += _differs(row, vectors, [cupy.asarray(v) for v in vectors], small)
            for shapes in tables if row.takes_table else []:
                layout = Layout(shapes)
                parts = [rng.standard_normal(s).astype(dtype) for s in shapes]
                others = [layout.pack([rng.standard_normal(s).astype(dtype) for s in shapes])] * (row.vectors - 1)
                given = [[cupy.asarray(p) for p in parts], *[cupy.asarray(v) for v in others]]
                wrong += _differs(row, [layout.pack(parts), *others], given, small)
        layout = Layout(tables[0])
        flat = cupy.asarray(rng.standard_normal(layout.size).astype(dtype))
        tensors = [cupy.zeros(s, dtype) for s in layout.shapes]
        ops.unpack(flat, tensors, 0.5)
        views = layout.views(flat.get())
        wrong += any(not np.array_equal(t.get(), dtype(0.5) * v) for t, v in zip(tensors, views, strict=True))
        d = cupy.asarray(rng.uniform(1, 5, 5000).astype(dtype))
        b = cupy.asarray(rng.standard_normal(5000).astype(dtype))
        for options in ({}, {"preconditioner": 1 / d}, {"poll": 0}, {"x0": b}):
            result = ncg_cuda.cg(lambda p, d=d: d * p, b, tau=0.1, cg_tol=1e-4, max_iter=40, **options)
            residual = b.get() - (d.get() + dtype(0.1)) * result.x.get()
            wrong += not np.linalg.norm(residual) < 1e-3 * np.linalg.norm(b.get())
    print(f"{wrong} results differ")
    return 1 if wrong else 0


def _differs(row: object, vectors: list[np.ndarray], given: list[object], small: float) -> bool:
    """Whether an operation on the GPU differs from the reference by more than rounding."""
    written, sums = row.exact(*[v.copy() for v in vectors])
    got, got_sums = row.native(*given)
    scale = 1.0 + sum(float(np.square(v.astype(np.float64)).sum()) for v in [*vectors, *written])
    off = [float(np.abs(g.get() - w).max()) / (1.0 + float(np.abs(w).max())) for g, w in zip(got, written, strict=True)]
    off += [abs(float(g) - w) / scale for g, w in zip(got_sums, sums, strict=True)]
    bad = not all(o <= small for o in off)
    if bad:
        print(f"{row}, {len(vectors[-1])} elements of {vectors[-1].dtype}: off by {max(off):.1e}")
    return bad


if __name__ == "__main__":
    sys.exit(main("--quick" in sys.argv))
