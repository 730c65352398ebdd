"""Python threads beside the operations: the GIL is released, and two solves at once do not meet."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from ncg_cuda import cg, ops


@pytest.fixture
def _one_thread() -> Iterator[None]:
    before = ops.get_num_threads()
    ops.set_num_threads(1)
    yield
    ops.set_num_threads(before)


@pytest.mark.usefixtures("_one_thread")
def test_other_threads_run_during_an_operation() -> None:
    """On one thread the engine goes through w from its start to its end. Another Python thread that finds the start
    written and the end not has run in the middle of the operation, which it cannot while the GIL is held.
    """
    n = 4_000_000
    w, d = np.zeros(n, np.float32), np.ones(n, np.float32)
    seen, stop = threading.Event(), threading.Event()

    def watch() -> None:
        while not stop.is_set():
            start = w[0]  # first: the end may only lag behind
            if w[-1] < start:
                seen.set()
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for _ in range(300):  # whether the watcher is scheduled in time is the operating system's business
            ops.weighted_step(w, d, d, 1.0)
            if seen.is_set():
                break
    finally:
        stop.set()
        watcher.join(60)
    assert seen.is_set()


def test_two_solves_at_once_do_not_meet() -> None:
    """In step with each other, product by product, they give the bits that they give one after the other."""
    n, iterations = 70_001, 12
    rng = np.random.default_rng(0)
    problems = [
        (rng.uniform(1.0, 50.0, n).astype(dtype), rng.standard_normal(n).astype(dtype))
        for dtype in (np.float32, np.float32, np.float64)
    ]

    def solve(k: int, before_product: Callable[[], object]) -> bytes:
        diagonal, b = problems[k]

        def matvec(p: np.ndarray) -> np.ndarray:
            before_product()
            return diagonal * p

        result = cg(matvec, b, cg_tol=0.0, max_iter=iterations, verify=False)
        assert result.products == iterations
        return result.x.tobytes() + str((result.residual_norm, result.curvature)).encode()

    alone = [solve(k, lambda: None) for k in range(len(problems))]
    together: list[bytes | None] = [None] * len(problems)
    barrier = threading.Barrier(len(problems), timeout=60)

    def run(k: int) -> None:
        try:
            together[k] = solve(k, barrier.wait)
        except BaseException:
            barrier.abort()
            raise

    threads = [threading.Thread(target=run, args=(k,)) for k in range(len(problems))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert together == alone
