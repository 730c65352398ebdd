"""Arrays of torch, JAX and TensorFlow on the CPU: read where they stand, solved in their own library, or refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from ncg_cuda import Layout, cg, ops
from ncg_cuda.adapter import Adapter
from ncg_cuda.arrays import operand

N = 120


@contextmanager
def float64_in_jax(jax: Any, on: bool = True) -> Iterator[None]:
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", on)
    yield
    jax.config.update("jax_enable_x64", before)


@dataclass
class Foreign:
    """A library under test."""

    name: str
    module: ModuleType

    def make(self, values: np.ndarray) -> Any:
        if self.name == "torch":
            return self.module.tensor(values)
        if self.name == "jax":
            return self.module.numpy.array(values)
        return self.module.constant(values)

    def address(self, array: Any) -> int:
        """Where the library itself says that the elements are."""
        if self.name == "torch":
            return int(array.data_ptr())
        if self.name == "jax":
            return int(array.unsafe_buffer_pointer())
        return int(np.from_dlpack(array).ctypes.data)

    def product(self, matrix: Any, p: Any) -> Any:
        return self.module.linalg.matvec(matrix, p) if self.name == "tensorflow" else matrix @ p

    @property
    def kind(self) -> type:
        found: type = getattr(self.module, "Array" if self.name == "jax" else "Tensor")
        return found


@pytest.fixture(params=["torch", "jax", "tensorflow"])
def lib(request: pytest.FixtureRequest) -> Iterator[Foreign]:
    module = pytest.importorskip(request.param)
    with float64_in_jax(module) if request.param == "jax" else nullcontext():
        yield Foreign(request.param, module)


def vectors(count: int, dtype: type = np.float32, n: int = N) -> list[np.ndarray]:
    rng = np.random.default_rng(count)
    return [rng.standard_normal(n).astype(dtype) for _ in range(count)]


def system(dtype: type) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.random.default_rng(5).standard_normal((N, N)), vectors(1, dtype)[0]
    return (a @ a.T / N + np.eye(N)).astype(dtype), b


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_operations_read_where_the_arrays_stand(lib: Foreign, dtype: type) -> None:
    a, b = vectors(2, dtype)
    fa, fb = lib.make(a), lib.make(b)
    assert operand(fa, "a").address == lib.address(fa)
    assert ops.dots(fa, fb) == ops.dots(a, b)
    assert ops.dots(fa, b) == ops.dots(a, fb) == ops.dots(a, b)  # mixed
    assert ops.damped_curvature([lib.make(a[:100]), a[100:]], np.zeros(144, dtype)) == ops.damped_curvature(
        [a[:100], a[100:]], np.zeros(144, dtype)
    )
    assert all(type(s) is float for s in ops.dots(fa, fb))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cg_stays_in_the_callers_library(lib: Foreign, dtype: type) -> None:
    matrix, b = system(dtype)
    fm, fb = lib.make(matrix), lib.make(b)
    seen: list[Any] = []

    def matvec(p: Any) -> Any:
        assert isinstance(p, lib.kind)
        assert (p.dtype, tuple(p.shape)) == (fb.dtype, (N,))
        return lib.product(fm, p)

    tol = 1e-4 if dtype is np.float32 else 1e-11
    result = cg(matvec, fb, tau=0.1, cg_tol=tol, max_iter=200, x0=fb, callback=lambda i, x, norm: seen.append(x))
    assert result.converged
    assert isinstance(result.x, lib.kind)
    exact = np.linalg.solve(matrix.astype(np.float64) + 0.1 * np.eye(N), b.astype(np.float64))
    assert np.linalg.norm(np.asarray(result.x) - exact) <= 20 * tol * np.linalg.norm(exact)
    assert all(isinstance(x, lib.kind) for x in seen)
    assert np.array_equal(np.asarray(fb), b)
    if lib.name != "torch":  # immutable: what the callback got stays as it was
        assert len({np.asarray(x).tobytes() for x in seen}) == len(seen)


def test_cg_gives_the_bits_that_it_gives_for_numpy(lib: Foreign) -> None:
    diagonal, b = np.geomspace(1.0, 20.0, N).astype(np.float32), vectors(1)[0]
    fd = lib.make(diagonal)
    options: dict[str, Any] = {"tau": 0.25, "cg_tol": 1e-6, "max_iter": 100}
    want = cg(lambda p: diagonal * p, b, **options)
    got = cg(lambda p: fd * p, lib.make(b), **options)
    assert (got.iterations, got.residual_norm) == (want.iterations, want.residual_norm)
    assert np.asarray(got.x).tobytes() == want.x.tobytes()


def test_the_direction_and_the_solution_are_not_copies(lib: Foreign) -> None:
    """The direction is the solver's own vector, at one address in all iterations. It may be returned as the product."""
    places: list[int] = []

    def identity(p: Any) -> Any:
        places.append(lib.address(p))
        return p

    b = vectors(1)[0]
    result = cg(identity, lib.make(b), tau=3.0, cg_tol=0.0, max_iter=4, verify=False)
    assert len(set(places)) == 1
    np.testing.assert_allclose(np.asarray(result.x), b / 4, rtol=1e-5)


def test_vectors_of_any_size_are_shared_both_ways(lib: Foreign) -> None:
    """JAX copies what does not start on 64 bytes, so a solver's vectors do."""
    for n in range(1, 70):
        adapter = Adapter(lib.make(np.ones(n, np.float32)), "b")
        vector = adapter.memory.zeros(adapter.size, adapter.dtype, adapter.device)
        where = adapter.memory.describe(vector, None).address
        assert where % 64 == 0
        assert lib.address(adapter.lend(vector)) == lib.address(adapter.give(vector)) == where
        assert adapter.vector(adapter.operand).tolist() == [1.0] * n
        assert adapter.memory.describe(adapter.vector(adapter.operand), None).address == adapter.operand.address


def test_scaled_systems_shapes_and_tensors(lib: Foreign) -> None:
    b = vectors(1)[0].reshape(10, 12)
    result = cg(lambda p: p + p, lib.make(b * np.float32(1e-30)), cg_tol=1e-4, callback=lambda *_: None)
    assert tuple(result.x.shape) == (10, 12)
    np.testing.assert_allclose(np.asarray(result.x) * np.float32(1e30), b / 2, rtol=1e-3)
    layout = Layout([(3, 5), (), (0,), (17,)])
    parts = [lib.make(np.full(s, i + 1, np.float32)) for i, s in enumerate(layout.shapes)]
    flat = layout.pack(parts)
    assert isinstance(flat, lib.kind)
    for product in (lambda p: [v + v for v in layout.views(p)], lambda p: layout.views(p)):
        result = cg(product, flat, layout=layout, cg_tol=1e-5, verify=True)
        assert result.verified
        for x, part in zip(layout.views(result.x), parts, strict=True):
            assert tuple(x.shape) == tuple(part.shape)
            ratio = np.asarray(product(flat)[0])[0, 0] / np.asarray(parts[0])[0, 0]
            np.testing.assert_allclose(np.asarray(x) * ratio, np.asarray(part), rtol=1e-5)


def test_mistakes_name_the_argument(lib: Foreign) -> None:
    a = np.ones(N, np.float32)
    fa = lib.make(a)
    for bad, error, match in [
        (lib.make(np.ones(N)), TypeError, "b: dtype float64, but a has float32"),
        (lib.make(np.ones(N, np.float16)), TypeError, "b: dtype float16; allowed are float32 and float64"),
        (lib.make(np.ones(N, np.int32)), TypeError, "b: dtype int32"),
        (lib.make(np.ones(N - 1, np.float32)), ValueError, f"b: {N - 1} elements, but a has {N}"),
        (lib.make(np.ones(0, np.float32)), ValueError, "b: an empty vector"),
        (np.float32(1), ValueError, "b: 1 elements, but a has"),
        (1.0, TypeError, r"b: got float; give a NumPy array"),
        ([1.0], TypeError, r"b: got list"),
    ]:
        with pytest.raises(error, match=match):
            ops.dots(fa, bad)
    with pytest.raises(TypeError, match=r"matvec: returned NoneType; it must return an array like b"):
        cg(lambda p: None, fa)
    with pytest.raises(TypeError, match=r"x0: got .*; give an array like b \(numpy.ndarray\)"):
        cg(lambda p: p, a, x0=fa)
    with pytest.raises(TypeError, match=r"matvec: returned .*; it must return an array like b \(numpy.ndarray\)"):
        cg(lambda p: fa, a)


@pytest.mark.parametrize("lib", ["jax", "tensorflow"], indirect=True)
def test_immutable_arrays_are_not_written(lib: Foreign) -> None:
    given = dict(zip(("x", "r", "p", "hp"), vectors(4), strict=True))
    for name in ("x", "r", "p"):
        before = lib.make(given[name])
        with pytest.raises(TypeError, match=rf"{name}: .* cannot be written in place .* use ncg_cuda.cg"):
            ops.cg_update(**{**given, name: before}, alpha=0.5, beta=0.5)
        assert np.array_equal(np.asarray(before), given[name])
    with pytest.raises(TypeError, match=r"w: .* immutable"):
        ops.weighted_step(lib.make(given["x"]), given["r"], given["p"], 0.1)
    ops.cg_update(given["x"], given["r"], given["p"], lib.make(given["hp"]), alpha=0.5, beta=0.5)  # hp is only read


class TestJax:
    @pytest.fixture(autouse=True)
    def _jax(self) -> None:
        self.jax = pytest.importorskip("jax")

    def test_values_that_are_traced(self) -> None:
        with pytest.raises(TypeError, match=r"a: .*is tracing; .*eagerly only"):
            self.jax.jit(lambda v: ops.dots(v, v))(self.jax.numpy.ones(3))
        with pytest.raises(TypeError, match=r"b: .*is tracing; .*eagerly only"):
            self.jax.jit(lambda v: cg(lambda p: p, v).x)(self.jax.numpy.ones(3))

    def test_results_still_being_computed_are_waited_for(self) -> None:
        """JAX computes asynchronously on the CPU, too."""
        jax, n = self.jax, 600
        slow = jax.jit(lambda m: jax.lax.fori_loop(0, 30, lambda _, v: v @ m, m)[0])
        m = jax.numpy.eye(n)
        slow(m).block_until_ready()
        assert ops.dots(slow(m), slow(m)) == (1.0, 1.0, 1.0)

    def test_float64_needs_the_64_bit_mode(self) -> None:
        """Without it, JAX turns what it is given into float32 by a copy."""
        with float64_in_jax(self.jax):
            b = self.jax.numpy.ones(8)
            assert cg(lambda p: 2.0 * p, b).x.dtype == np.float64
        with (
            float64_in_jax(self.jax, on=False),
            pytest.raises(TypeError, match="float64, but JAX's 64-bit mode is off"),
        ):
            cg(lambda p: 2.0 * p, b)

    def test_a_jitted_product_may_give_its_argument_away(self) -> None:
        give = self.jax.jit(lambda p: 2.0 * p, donate_argnums=0)
        same = self.jax.jit(lambda p: p)
        b = self.jax.numpy.arange(1.0, 9.0)
        np.testing.assert_allclose(cg(give, b).x, np.arange(1.0, 9.0) / 2)
        np.testing.assert_allclose(cg(same, b, tau=1.0).x, np.arange(1.0, 9.0) / 2)

    def test_bfloat16_can_be_described(self) -> None:
        t = self.jax.numpy.ones(5, "bfloat16")
        assert operand(t, "hp", allow_bfloat16=True).nbytes == operand(np.asarray(t), "hp", allow_bfloat16=True).nbytes

    def test_devices_of_one_cpu(self) -> None:
        code = (
            "import jax, ncg_cuda\n"
            "b = jax.device_put(jax.numpy.ones(100), jax.devices()[1])\n"
            "m = jax.device_put(2 * jax.numpy.ones(100), jax.devices()[1])\n"
            "r = ncg_cuda.cg(lambda p: m * p, b)\n"
            "print(r.stop_reason, r.x.devices() == b.devices())\n"
        )
        env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu", "PATH": ""}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
        assert done.stdout.split() == ["converged", "True"], done.stderr


class TestTensorFlow:
    @pytest.fixture(autouse=True)
    def _tensorflow(self) -> None:
        self.tf = pytest.importorskip("tensorflow")

    def test_values_in_a_graph(self) -> None:
        with pytest.raises(TypeError, match=r"a: .*a value in a graph; .*ncg_cuda.tf in graphs"):
            self.tf.function(lambda v: ops.dots(v, v))(self.tf.ones(3))

    def test_variables_strings_and_sparse_tensors(self) -> None:
        tf = self.tf
        v = tf.Variable([1.0, 2.0])
        with pytest.raises(TypeError, match=r"a: got a tf.Variable; give its value: \.value\(\)"):
            ops.dots(v, v)
        assert ops.dots(v.value(), v.value())[0] == 5.0
        with pytest.raises(TypeError, match=r"a: .*dtype string"):  # TensorFlow's own export aborts the process
            ops.dots(tf.constant(["x"]), v.value())
        with pytest.raises(TypeError, match=r"a: got tensorflow.SparseTensor"):
            ops.dots(tf.sparse.from_dense([1.0, 0.0]), v.value())


def test_masked_arrays_are_refused() -> None:
    with pytest.raises(TypeError, match=r"a: a masked array"):
        ops.dots(np.ma.ones(3), np.ones(3))


def test_numpy_arrays_of_bfloat16_and_of_another_byte_order() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    a = np.ones(3, ml_dtypes.bfloat16)
    assert operand(a, "hp", allow_bfloat16=True).dtype == "bfloat16"
    with pytest.raises(TypeError, match="hp: dtype bfloat16; allowed are float32 and float64"):
        operand(a, "hp")
    with pytest.raises(TypeError, match="hp: dtype >f4"):
        operand(np.ones(3, ">f4"), "hp", allow_bfloat16=True)


def test_no_library_is_imported() -> None:
    code = (
        "import sys, numpy as np, ncg_cuda, ncg_cuda.ops as ops\n"
        "ops.dots(np.ones(3), np.ones(3)); ncg_cuda.cg(lambda p: p, np.ones(3))\n"
        "print([m for m in ('torch', 'jax', 'tensorflow', 'cupy', 'ml_dtypes') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
