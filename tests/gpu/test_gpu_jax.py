"""JAX arrays on the GPU: read where they stand, never written; solves return JAX arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gpu_support import diagonal

from ncg_cuda import Layout, cg, ops

pytestmark = pytest.mark.gpu
N = 200_003


@pytest.fixture
def jax() -> Any:
    module = pytest.importorskip("jax")
    try:
        found = module.devices("gpu")
    except RuntimeError as error:
        pytest.skip(f"this JAX has no GPU: {error}")
    assert found
    return module


def test_sums(cp: Any, jax: Any) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, N)).astype(np.float32)
    got = ops.dots(jax.device_put(a, jax.devices("gpu")[0]), jax.device_put(b, jax.devices("gpu")[0]))
    assert all(type(s) is cp.ndarray for s in got)
    want = ops.dots(cp.asarray(a), cp.asarray(b))
    assert [float(s) for s in got] == [float(s) for s in want]


def test_results_that_jax_still_computes_are_waited_for(jax: Any) -> None:
    """Products of matrices keep the GPU busy when the operation is queued."""
    gpu = jax.devices("gpu")[0]
    m = jax.device_put(np.eye(4096, dtype=np.float32) * np.float32(0.5), gpu)
    v = jax.device_put(np.ones(4096, np.float32), gpu)

    @jax.jit
    def slow(m: Any, v: Any) -> Any:
        power = m
        for _ in range(20):
            power = jax.numpy.matmul(power, m, precision="highest") * 2
        return power @ v

    want = float(ops.dots(slow(m, v).block_until_ready(), v)[0])
    assert want == 2048.0
    for _ in range(5):
        assert float(ops.dots(slow(m, v), v)[0]) == want


@pytest.mark.parametrize("poll", [0, None])
def test_a_solve_with_a_jitted_matvec(jax: Any, poll: int | None) -> None:
    gpu = jax.devices("gpu")[0]
    d, b = diagonal(N, 20, np.float32)
    d_gpu = jax.device_put(d, gpu)
    matvec = jax.jit(lambda p: d_gpu * p)
    result = cg(matvec, jax.device_put(b, gpu), tau=0.1, cg_tol=1e-4, max_iter=60, poll=poll)
    assert result.converged
    assert isinstance(result.x, jax.Array)
    assert result.x.devices() == {gpu}
    exact = b.astype(float) / (d.astype(float) + 0.1)
    assert np.linalg.norm(np.asarray(result.x) - exact) <= 1e-3 * np.linalg.norm(exact)


def test_tables_beside_cupy_vectors(cp: Any, jax: Any) -> None:
    layout = Layout([(40, 3), (5,), (7, 7), ()])
    rng = np.random.default_rng(1)
    host = [np.asarray(rng.standard_normal(s), np.float32) for s in layout.shapes]
    table = [jax.device_put(t, jax.devices("gpu")[0]) for t in host]
    p = cp.asarray(layout.pack([np.ones(s, np.float32) for s in layout.shapes]))
    got = [float(s) for s in ops.damped_curvature(table, p, 0.5)]
    assert got == [float(s) for s in ops.damped_curvature(cp.asarray(layout.pack(host)), p, 0.5)]
    narrow = [t.astype(jax.numpy.bfloat16) for t in table]
    wide = cp.asarray(layout.pack([np.asarray(t.astype(np.float32)) for t in narrow]))
    got = [float(s) for s in ops.damped_curvature(narrow, p, 0.5)]
    assert got == [float(s) for s in ops.damped_curvature(wide, p, 0.5)]


def test_they_are_not_written(cp: Any, jax: Any) -> None:
    w = jax.device_put(np.ones(64, np.float32), jax.devices("gpu")[0])
    d = cp.asarray(np.ones(64, np.float32))
    with pytest.raises(TypeError, match=r"w: .*cannot be written in place \(JAX arrays are immutable\)"):
        ops.weighted_step(w, d, d, 1.0)
    assert (np.asarray(w) == 1).all()
