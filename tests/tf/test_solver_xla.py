"""CG inside functions that XLA compiles for the CPU: custom calls of the native library, or else the plain path."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from ncg_cuda import StopReason, reference
from ncg_cuda.tf import NewtonCG, oplib, solver, solver_plain, solver_xla

layers = keras.layers
ODD = [(7, 5), (0, 3), (), (13,), (4097,), (0,), (2, 3, 5), (1000, 201)]  # the last one keeps several threads busy
EMPTY = [(0,), (2, 0)]


@pytest.fixture
def kernels() -> None:
    """Built at set-up wherever TensorFlow's headers allow it."""
    if not any(path.name.startswith("libncg_tf_xla") for path in oplib.native_directory().iterdir()):
        pytest.skip("built without kernels for XLA: this TensorFlow's headers do not compile")


class Problem:
    """A well-conditioned system, diagonal but for one rank: H p = d p + (u·p) u on tensors of these shapes."""

    def __init__(self, shapes: list[tuple[int, ...]], dtype: str, *, sign: float = 1.0, size: float = 1.0) -> None:
        rng = np.random.default_rng(3)
        self.shapes, self.dtype = shapes, dtype
        self.n = sum(int(np.prod(shape)) for shape in shapes)
        self.diagonal = (sign * rng.uniform(0.5, 3.0, self.n)).astype(dtype)
        self.u = (rng.normal(size=self.n) / np.sqrt(max(1, self.n))).astype(dtype)
        self.b = (size * rng.normal(size=self.n)).astype(dtype)

    def split(self, vector: np.ndarray) -> list[Any]:
        ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes])
        return [tf.constant(part.reshape(s)) for part, s in zip(np.split(vector, ends)[:-1], self.shapes, strict=True)]

    def product(self, p: list[Any]) -> list[Any]:
        u = self.split(self.u)
        along = tf.add_n([tf.reduce_sum(a * b) for a, b in zip(u, p, strict=True)])
        return [d * v + along * a for d, v, a in zip(self.split(self.diagonal), p, u, strict=True)]

    def solve(self, path: str, **options: Any) -> Any:
        """The solution, flat, and the report."""
        options = {"tau": 0.25, "cg_tol": 1e-4, "max_iter": 30, **options}
        x, report = solver.solve(self.product, self.split(self.b), path=path, **options)
        return tf.concat([tf.reshape(t, [-1]) for t in x], 0), vars(report)

    def exact(self, **options: Any) -> tuple[np.ndarray, reference.State]:
        options = {"tau": 0.25, "cg_tol": 1e-4, "max_iter": 30, **options}
        diagonal, u = self.diagonal.astype(float), self.u.astype(float)
        return reference.cg(lambda p: diagonal * p + u * (u @ p), self.b.astype(float), **options)


def compiled(f: Any, *arguments: Any, **options: Any) -> Any:
    return tf.function(lambda: f(*arguments, **options), autograph=False, jit_compile=True)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1.0, 1e-30])
def test_agrees_with_float64(dtype: str, size: float) -> None:
    problem = Problem(ODD, dtype, size=size)
    x, report = compiled(problem.solve, "op")()
    truth, state = problem.exact()
    eps = np.finfo(dtype).eps
    assert state.stop == report["stop_reason"] == StopReason.CONVERGED
    assert state.iteration == report["iterations"]
    assert np.linalg.norm(x - truth) <= 20 * eps * np.linalg.norm(truth)
    np.testing.assert_allclose(report["residual_norm"], np.sqrt(state.rr), rtol=1e4 * eps)
    np.testing.assert_allclose(report["rhs_norm"], np.linalg.norm(problem.b.astype(float)), rtol=10 * eps)
    assert report["drift"] < 1e4 * eps


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("unrolled", [False, True])
@pytest.mark.parametrize("options", [{}, {"tau": 0.0}, {"max_iter": 1}, {"tau": 4.0, "max_iter": 3}])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_same_as_the_op_without_xla(
    sign: float, options: dict[str, Any], unrolled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the curvature is negative at once, and where damping makes up for it."""
    monkeypatch.setattr(solver_plain, "must_unroll", lambda: unrolled)
    problem = Problem([(7, 5), (0, 3), (), (4097,)], "float64", sign=sign)
    want, said = problem.solve("op", **options)
    got, report = compiled(problem.solve, "op", **options)()
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)
    for name, value in report.items():
        if name != "drift":
            np.testing.assert_allclose(value, said[name], rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("path", ["op", "plain"])
def test_nothing_but_empty_tensors(path: str) -> None:
    x, report = compiled(Problem(EMPTY, "float32").solve, path)()
    assert x.shape == (0,)
    assert report["stop_reason"] == StopReason.CONVERGED


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_inner_products(dtype: str) -> None:
    problem = Problem(ODD, dtype)

    def products() -> Any:
        return vars(solver_xla.dots(problem.split(problem.b), problem.split(problem.u)))

    got = {name: float(value) for name, value in compiled(products)().items()}
    a, b = problem.b.astype(float), problem.u.astype(float)
    eps = np.finfo(dtype).eps
    for name, truth in {"ab": a @ b, "aa": a @ a, "bb": b @ b}.items():
        scale = {"a": got["a_scale"], "b": got["b_scale"]}
        size = {"a": np.linalg.norm(a), "b": np.linalg.norm(b)}
        bound = 10 * eps * size[name[0]] * size[name[1]]
        assert abs(got[name] / scale[name[0]] / scale[name[1]] - truth) <= bound, name


@pytest.mark.usefixtures("kernels")
def test_updates_in_place() -> None:
    """XLA finds a place for the loop in which no x, r or p is copied."""
    problem = Problem([(640,), (48, 8)], "float32")
    hlo = compiled(problem.solve, "op").experimental_get_compiler_ir()(stage="optimized_hlo")
    assert hlo.count('"ncg_list_cg_iterate"') == 1
    assert not re.findall(r"= f32\[(?:640|48,8)\]\S* copy\(.*", hlo)


@pytest.mark.usefixtures("kernels")
def test_in_an_outer_loop() -> None:
    """Solves that feed one another: A^-3 b."""
    problem = Problem([(7, 5), (50,)], "float64")

    def repeated() -> Any:
        def again(i: Any, v: list[Any]) -> Any:
            return i + 1, solver.solve(problem.product, v, tau=0.25, cg_tol=1e-12, max_iter=60, path="op")[0]

        x = tf.while_loop(lambda i, v: i < 3, again, (0, problem.split(problem.b)))[1]
        return tf.concat([tf.reshape(t, [-1]) for t in x], 0)

    a = np.diag(problem.diagonal + 0.25) + np.outer(problem.u, problem.u)
    truth = np.linalg.solve(a, np.linalg.solve(a, np.linalg.solve(a, problem.b)))
    np.testing.assert_allclose(compiled(repeated)(), truth, rtol=1e-8, atol=1e-10)


@pytest.mark.usefixtures("kernels")
def test_two_threads_at_once() -> None:
    """Both use XLA's pool, on vectors large enough for all of it; nothing of one call reaches another."""
    problems = [Problem([(300_001,), (5,)], "float32", size=size) for size in (1.0, 3.0)]
    functions = [compiled(problem.solve, "op") for problem in problems]
    want = [f()[0].numpy() for f in functions]
    wrong: list[int] = []

    def work(i: int) -> None:
        wrong.extend(i for _ in range(20) if not np.allclose(functions[i]()[0], want[i], rtol=1e-5, atol=1e-6))

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1, 0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong


@pytest.mark.usefixtures("kernels")
def test_memory_does_not_grow() -> None:
    def resident() -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * 4096

    step = compiled(Problem([(1_000_003,)], "float32").solve, "op", max_iter=2)
    for _ in range(10):
        step()
    before = resident()
    for _ in range(60):
        step()
    assert resident() - before < 10 * 4 * 1_000_003  # 60 calls that left one vector each would be six times as much


ON_ITS_OWN = """
import tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.function(lambda x: x + 1, jit_compile=True)(tf.ones(3))
import sys
sys.path.insert(0, sys.argv[1])
from test_solver_xla import Problem, compiled
x, report = compiled(Problem([(200_003,), (5,)], "float32").solve, "op")()
print("iterations", int(report["iterations"]))
"""


@pytest.mark.usefixtures("kernels")
def test_loaded_after_xla_was_used_and_with_one_thread() -> None:
    command = [sys.executable, "-c", ON_ITS_OWN, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    _, state = Problem([(200_003,), (5,)], "float32").exact()
    assert f"iterations {int(state.iteration)}" in done.stdout


def chosen(path: str = "auto") -> Any:
    found = []
    compiled(lambda: found.append(solver.choose(path)) or tf.ones(()))()
    return found[0]


@pytest.mark.usefixtures("kernels")
def test_which_path(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen() is solver_xla
    assert chosen("plain") is solver_plain
    monkeypatch.setattr(solver_xla, "_trial", lambda: "the trial failed")
    assert chosen() is solver_plain
    with pytest.raises(RuntimeError, match="the trial failed"):
        chosen("op")


@pytest.mark.usefixtures("kernels")
def test_a_failing_trial_is_reported_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise tf.errors.InvalidArgumentError(None, None, "no such custom call")

    monkeypatch.setattr(solver_xla, "_small_solve", broken)
    assert "no such custom call" in solver_xla._trial.__wrapped__()
    monkeypatch.setattr(solver_xla, "_small_solve", lambda: (tf.zeros(3), tf.constant(1), tf.constant(1)))
    assert "instead of [0.5, 1.0, 1.5]" in solver_xla._trial.__wrapped__()


@pytest.mark.parametrize("content", [None, b"garbage"])
def test_without_a_usable_library(content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if content is not None:
        (tmp_path / f"libncg_tf_xla-{oplib.running()}.so").write_bytes(content)
    monkeypatch.setattr(oplib, "native_directory", lambda: tmp_path)
    oplib._load_xla.cache_clear()
    try:
        assert chosen() is solver_plain
        assert oplib.REBUILD in oplib.why_not_xla()
        with pytest.raises(RuntimeError, match="without kernels for XLA" if content is None else "does not load"):
            chosen("op")
    finally:
        monkeypatch.undo()
        oplib._load_xla.cache_clear()


RNG = np.random.default_rng(0)
WORDS = RNG.integers(0, 12, (32, 5))
TARGETS = (WORDS[:, 0] > 5).astype("int32")
MODELS: dict[str, list[Any]] = {
    "embedding": [layers.Embedding, layers.GlobalAveragePooling1D],
    "conv": [layers.Embedding, lambda: layers.Conv1D(4, 3, activation="tanh"), layers.Flatten],
    "LSTM": [layers.Embedding, lambda: layers.LSTM(4)],
}


def trained(kind: str, curvature: str, **options: Any) -> list[float]:
    keras.utils.set_random_seed(2)
    make = [(lambda: layers.Embedding(12, 4)) if m is layers.Embedding else m for m in MODELS[kind]]
    model = keras.Sequential([keras.Input((5,), dtype="int32"), *(m() for m in make), layers.Dense(2)])
    model.compile(
        optimizer=NewtonCG(0.5, tau=0.5, max_iter=3, curvature=curvature),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **options,
    )
    return list(model.fit(WORDS, TARGETS, batch_size=16, epochs=2, verbose=0, shuffle=False).history["loss"])


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("curvature", ["hessian", "gauss-newton"])
@pytest.mark.parametrize("kind", MODELS)
def test_fit(kind: str, curvature: str, monkeypatch: pytest.MonkeyPatch) -> None:
    want = trained(kind, curvature, jit_compile=False)
    np.testing.assert_allclose(trained(kind, curvature, jit_compile="auto"), want, rtol=1e-3)
    solves, solve = [], solver_xla.solve
    monkeypatch.setattr(solver_xla, "solve", lambda *a, **k: solves.append(k) or solve(*a, **k))
    np.testing.assert_allclose(trained(kind, curvature, jit_compile=True), want, rtol=1e-3)
    assert solves
