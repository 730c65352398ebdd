"""The vector work of one CG iteration: the custom op against plain TensorFlow graph code, XLA and NumPy, in one run.

    python bench/vector_work.py            # n = 25,000,000, about half a minute, 3 GB
    python bench/vector_work.py --n 1000000 --json out/vector_work.json

Every contender makes the same CG iterations, with products H·p that were computed before (so no product is timed) and
recorded from a real solve (so that no contender stops early or meets denormals). The time of an iteration is
(T(5 iterations) - T(1 iteration)) / 4, which leaves out the beginning of a solve; medians over interleaved repetitions.
Yardstick: a copy of one vector by as many threads, measured in the same run. GB/s count the bytes that the algorithm
must move: 9 vectors for the two fused passes, whatever the contender really moves.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import numpy as np

from ncg_cuda import ops

VECTORS_MOVED = ops.VECTORS_MOVED["damped_curvature"] + ops.VECTORS_MOVED["cg_update"]
TAU = 0.1


def record_products(n: int, iterations: int) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """A right-hand side, the products of a real solve with a diagonal matrix, and its solution; sums in float64."""
    rng = np.random.default_rng(0)
    diagonal = rng.uniform(1.0, 30.0, n).astype(np.float32)
    b = rng.standard_normal(n).astype(np.float32)
    x, r, p, products = np.zeros_like(b), b.copy(), b.copy(), []

    def dot(u: np.ndarray, v: np.ndarray) -> float:
        return float(u.astype(np.float64) @ v.astype(np.float64))

    rr = dot(r, r)
    for _ in range(iterations):
        hp = diagonal * p
        products.append(hp)
        q = hp + np.float32(TAU) * p
        alpha = rr / dot(p, q)
        x += np.float32(alpha) * p
        r -= np.float32(alpha) * q
        rr, before = dot(r, r), rr
        p = r + np.float32(rr / before) * p
    return b, products, x


def numpy_contender(b: np.ndarray, products: list[np.ndarray], in_place: bool) -> Callable[[int], Any]:
    """Textbook CG in NumPy: as the formulas read, or with x and r updated in place, which saves two allocations."""
    tau = np.float32(TAU)

    def run(iterations: int) -> Any:
        x, r, p = np.zeros_like(b), b.copy(), b.copy()
        rr = r @ r
        for hp in products[:iterations]:
            q = hp + tau * p
            alpha = rr / (p @ q)
            if in_place:
                x += alpha * p
                r -= alpha * q
            else:
                x = x + alpha * p
                r = r - alpha * q
            rr, before = r @ r, rr
            p = r + (rr / before) * p
        return x

    return run


def graph_contender(b: np.ndarray, products: list[np.ndarray], xla: bool) -> Callable[[int], Any]:
    """Textbook CG in plain TensorFlow on one flat vector."""
    import tensorflow as tf

    b_t, products_t = tf.constant(b), [tf.constant(hp) for hp in products]

    def solve(b: Any, products: list[Any]) -> Any:
        x, r, p = tf.zeros_like(b), b, b
        rr = tf.tensordot(r, r, 1)
        for hp in products:
            q = hp + TAU * p
            alpha = rr / tf.tensordot(p, q, 1)
            x = x + alpha * p
            r = r - alpha * q
            rr, before = tf.tensordot(r, r, 1), rr
            p = r + (rr / before) * p
        return x, r, p

    function = tf.function(solve, jit_compile=xla)
    return lambda iterations: function(b_t, products_t[:iterations])[0]


def op_contender(b: np.ndarray, products: list[np.ndarray]) -> Callable[[int], Any]:
    """The custom op: both fused passes in one call."""
    import tensorflow as tf

    from ncg_cuda.tf import oplib

    lib = oplib.load()
    if lib is None:
        sys.exit(f"vector_work.py: no op library: {oplib.why_not()}")
    b_t, products_t = tf.constant(b), [tf.constant(hp) for hp in products]

    @tf.function
    def solve(b: Any, products: list[Any]) -> Any:
        x, r, p, state = lib.ncg_cg_begin(
            lib.ncg_pack(tensors=[b]), tau=np.float64(TAU), cg_tol=np.float64(0.0), max_iter=1000
        )
        for hp in products:
            x, r, p, state = lib.ncg_cg_iterate(hp=[hp], x=x, r=r, p=p, state=state)
        return x, r, p, state

    return lambda iterations: solve(b_t, products_t[:iterations])[0]


def measure(contenders: dict[str, Callable[[int], Any]], iterations: int, repeats: int) -> dict[str, float]:
    """Seconds per iteration, medians over interleaved repetitions."""
    for name, run in contenders.items():
        print(f"  warming up: {name}", file=sys.stderr)
        run(1), run(iterations)
    times: dict[str, dict[int, list[float]]] = {name: {1: [], iterations: []} for name in contenders}
    for repeat in range(repeats):
        print(f"  repetition {repeat + 1} of {repeats}", file=sys.stderr)
        for name, run in contenders.items():
            run(1)  # untimed: the first call after another contender pays for the memory that one gave back
            for k in (1, iterations):
                start = time.perf_counter()
                np.asarray(run(k))[:1].sum()
                times[name][k].append(time.perf_counter() - start)
    return {
        name: (statistics.median(t[iterations]) - statistics.median(t[1])) / (iterations - 1)
        for name, t in times.items()
    }


def copy_seconds(n: int, repeats: int) -> float:
    """One read and one write of a float32 vector, by as many threads as the machine has."""
    from concurrent.futures import ThreadPoolExecutor

    threads = os.cpu_count() or 1
    source, target = np.ones(n, np.float32), np.zeros(n, np.float32)
    bounds = [n * i // threads for i in range(threads + 1)]
    times = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeats + 1):
            start = time.perf_counter()
            list(
                pool.map(
                    lambda i: np.copyto(target[bounds[i] : bounds[i + 1]], source[bounds[i] : bounds[i + 1]]),
                    range(threads),
                )
            )
            times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=25_000_000, help="elements of a vector (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="repetitions, of which the median counts")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    iterations = 5
    b, products, truth = record_products(options.n, iterations)
    contenders = {
        "ncg_cuda op": op_contender(b, products),
        "TensorFlow graph": graph_contender(b, products, xla=False),
        "TensorFlow XLA": graph_contender(b, products, xla=True),
        "NumPy": numpy_contender(b, products, in_place=False),
        "NumPy, in place": numpy_contender(b, products, in_place=True),
    }
    errors = {}
    for name, run in contenders.items():
        errors[name] = float(np.linalg.norm(np.asarray(run(iterations)) - truth) / np.linalg.norm(truth))
        if not errors[name] < 0.05:  # plain float32 sums are off by up to percents; beyond that it is another problem
            sys.exit(f"vector_work.py: {name} does not solve the system (relative error {errors[name]:.1e})")
    seconds = measure(contenders, iterations, options.repeats)
    copy = copy_seconds(options.n, options.repeats)
    moved = VECTORS_MOVED * 4 * options.n / 1e9
    copy_rate = 2 * 4 * options.n / 1e9 / copy
    ours = seconds["ncg_cuda op"]
    machine = f"{os.cpu_count()} cores ({platform.processor() or platform.machine()})"
    print(f"CG vector work, n = {options.n:,} float32, {machine}")
    print(f"{'':18}{'ms / iteration':>15}{'GB/s':>8}{'% of copy':>11}{'op is faster by':>17}{'error of x':>12}")
    for name, t in seconds.items():
        rate = moved / t
        print(f"{name:18}{1e3 * t:15.1f}{rate:8.1f}{100 * rate / copy_rate:11.0f}{t / ours:16.1f}x{errors[name]:12.0e}")
    print(f"{'copy':18}{1e3 * copy:15.1f}{copy_rate:8.1f}{100:11.0f}")
    print(f"bytes counted: {VECTORS_MOVED} vectors of {4 * options.n / 1e6:.0f} MB an iteration")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        partial = options.json.with_suffix(".tmp")
        partial.write_text(
            json.dumps(
                {"n": options.n, "seconds": seconds, "errors": errors, "copy_seconds": copy, "vectors": VECTORS_MOVED},
                indent=2,
            )
            + "\n"
        )
        partial.replace(options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
