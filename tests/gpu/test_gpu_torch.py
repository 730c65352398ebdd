"""Torch tensors on the GPU, alone and beside CuPy arrays: each library's current stream is honoured."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from gpu_support import DTYPES, bits, chain, chain_product, check, diagonal
from test_ops import SHAPES, vectors

from ncg_cuda import Layout, cg, ops, reference
from ncg_cuda.catalog import OPERATIONS, Operation

pytestmark = pytest.mark.gpu
N = 200_003
STEPS = {"alpha": 0.5, "beta": 0.3, "tau": 0.1}


@pytest.fixture
def torch() -> Any:
    module = pytest.importorskip("torch")
    if not module.cuda.is_available():
        pytest.skip("this torch has no GPU")
    return module


@contextmanager
def torch_stream(torch: Any, cp: Any) -> Iterator[Any]:
    """A stream of torch, current within; as CuPy sees it."""
    torch.cuda.synchronize()
    cp.cuda.get_current_stream().synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        yield cp.cuda.ExternalStream(stream.cuda_stream)
    stream.synchronize()


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [17, 3 * ops.CHUNK + 5])
def test_operations_give_the_bits_of_cupy(cp: Any, torch: Any, operation: Operation, dtype: type, n: int) -> None:
    inputs = vectors(operation.vectors, n, dtype)
    got = operation.native(*[torch.tensor(v, device="cuda") for v in inputs])
    check(operation, inputs, got)
    for value in got[1]:
        assert isinstance(value, torch.Tensor)
        assert value.is_cuda
        assert value.dtype is torch.float64
    assert bits(got) == bits(operation.native(*[cp.asarray(v) for v in inputs]))


@pytest.mark.parametrize("operation", [o for o in OPERATIONS if o.takes_table], ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_tables_and_bfloat16(torch: Any, operation: Operation, name: str) -> None:
    layout = Layout(SHAPES[name])
    rng = np.random.default_rng(4)
    narrow = [torch.tensor(rng.standard_normal(s), device="cuda").to(torch.bfloat16) for s in layout.shapes]
    wide = [t.to(torch.float32) for t in narrow]
    flat = layout.pack([t.cpu().numpy() for t in wide])
    others = [layout.pack([rng.standard_normal(s).astype(np.float32) for s in layout.shapes])] * (operation.vectors - 1)
    found = {
        bits(operation.native(product, *[torch.tensor(v, device="cuda") for v in others]))
        for product in (narrow, wide, torch.tensor(flat, device="cuda"))
    }
    assert len(found) == 1


def test_torchs_current_stream_is_used(cp: Any, torch: Any, hold: Any) -> None:
    rng = np.random.default_rng(0)
    p, hp = rng.standard_normal((2, N))
    p_gpu, hp_gpu = torch.tensor(p, device="cuda"), torch.tensor(hp, device="cuda")
    with torch_stream(torch, cp) as stream:
        p_gpu.mul_(1.0)
        ops.damped_curvature(hp_gpu, p_gpu, 0.5)
        stream.synchronize()
        with hold(stream):
            p_gpu.mul_(3.0)
            sums = ops.damped_curvature(hp_gpu, p_gpu, 0.5)
            p_gpu.mul_(5.0)
        got = [float(s) for s in sums]
    q = hp + 1.5 * p
    np.testing.assert_allclose(got, [3 * p @ q, q @ q, 9 * p @ p], rtol=1e-12)


@pytest.mark.parametrize("poll", [0, None])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_solve(torch: Any, dtype: str, poll: int | None) -> None:
    b = np.random.default_rng(3).standard_normal(500)

    def matvec(p: Any) -> Any:
        hp = 2.5 * p
        hp[1:] -= p[:-1]
        hp[:-1] -= p[1:]
        return hp

    given = torch.tensor(b, dtype=getattr(torch, dtype), device="cuda", requires_grad=True)
    result = cg(matvec, given, tau=0.2, cg_tol=1e-5, max_iter=100, poll=poll)
    assert result.converged
    assert result.x.is_cuda
    assert not result.x.requires_grad
    exact = np.linalg.solve(chain(500) + 0.2 * np.eye(500), b)
    assert np.linalg.norm(result.x.cpu().numpy() - exact) <= 1e-4 * np.linalg.norm(exact)


def test_a_solve_on_a_stream_of_torch(cp: Any, torch: Any, hold: Any) -> None:
    d, b = (torch.tensor(v, device="cuda") for v in diagonal(N, 10, np.float32))
    want = cg(lambda p: d * p, 4 * b, poll=0).x.cpu().numpy()
    with torch_stream(torch, cp) as stream:
        b.mul_(1)
        cg(lambda p: d * p, b, poll=0)
        stream.synchronize()
        with hold(stream):
            b.mul_(4)
            result = cg(lambda p: d * p, b, poll=0)
        assert np.array_equal(result.x.cpu().numpy(), want)


class TestMixed:
    def test_cupy_waits_for_torch_and_torch_for_cupy(self, cp: Any, torch: Any, hold: Any) -> None:
        """The product is changed by held work of torch before the operation, and overwritten by torch behind it."""
        x, r, p, hp = vectors(4, N, np.float64)
        on_gpu = [cp.asarray(v) for v in (x, r, p)]
        product = torch.tensor(hp, device="cuda")
        with torch_stream(torch, cp) as stream, cp.cuda.Stream(non_blocking=True) as launching:
            product.mul_(1.0)
            ops.cg_update(*[v.copy() for v in on_gpu], product, **STEPS)
            launching.synchronize()
            stream.synchronize()
            with hold(stream):
                product.mul_(2.0)
                ops.cg_update(*on_gpu, product, **STEPS)
                product.mul_(0.0)
            got = [v.get() for v in on_gpu]
            assert not product.cpu().numpy().any()
        want = reference.cg_update(x, r, p, 2 * hp, alpha_x=0.5, alpha_r=0.5, beta=0.3, tau=0.1)
        for a, b in zip(got, want, strict=False):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)

    def test_torch_waits_for_cupy(self, cp: Any, torch: Any, hold: Any) -> None:
        x, r, p, hp = vectors(4, N, np.float64)
        on_gpu = [torch.tensor(v, device="cuda") for v in (x, r, p)]
        product = cp.asarray(hp)
        torch.cuda.synchronize()
        cp.cuda.get_current_stream().synchronize()
        with torch_stream(torch, cp) as launching, cp.cuda.Stream(non_blocking=True) as stream:
            product *= 1.0
            ops.cg_update(*[v.clone() for v in on_gpu], product, **STEPS)
            launching.synchronize()
            stream.synchronize()
            with hold(stream):
                product *= 2.0
                ops.cg_update(*on_gpu, product, **STEPS)
                product *= 0.0
            got = [v.cpu().numpy() for v in on_gpu]
            assert not product.get().any()
        want = reference.cg_update(x, r, p, 2 * hp, alpha_x=0.5, alpha_r=0.5, beta=0.3, tau=0.1)
        for a, b in zip(got, want, strict=False):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)

    def test_a_table_of_both(self, cp: Any, torch: Any) -> None:
        layout = Layout([(40, 3), (5,), (7, 7)])
        rng = np.random.default_rng(1)
        host = [rng.standard_normal(s).astype(np.float32) for s in layout.shapes]
        table = [cp.asarray(host[0]), torch.tensor(host[1], device="cuda"), cp.asarray(host[2])]
        flat = cp.zeros(layout.size, np.float32)
        ops.pack(table, flat)
        assert np.array_equal(flat.get(), layout.pack(host))


@pytest.mark.usefixtures("torch")
def test_torch_alone_needs_no_cupy() -> None:
    code = (
        "import sys; sys.modules['cupy'] = None\n"
        "import torch, ncg_cuda\n"
        "b = torch.arange(1.0, 5000.0, device='cuda')\n"
        "result = ncg_cuda.cg(lambda p: 2 * p, b)\n"
        "assert result.converged and result.x.is_cuda and torch.allclose(result.x, b / 2)\n"
        "print(float(ncg_cuda.ops.dots(b, b)[0]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(4999 * 5000 * 9999 / 6, rel=1e-6)


def test_autograd_notices_what_was_written(torch: Any) -> None:
    x = torch.ones(64, device="cuda")
    squared = (x * torch.ones(64, device="cuda", requires_grad=True)).sum()
    ops.weighted_step(x, torch.ones(64, device="cuda"), torch.ones(64, device="cuda"), 1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squared.backward()


def test_the_product_has_to_be_of_the_library_of_b(cp: Any, torch: Any) -> None:
    b = torch.ones(100, device="cuda", dtype=torch.float64)
    with pytest.raises(TypeError, match=r"matvec: returned cupy.ndarray; it must return an array like b"):
        cg(lambda p: chain_product()(cp.from_dlpack(p)), b)
    result = cg(lambda p: torch.from_dlpack(chain_product()(cp.from_dlpack(p))), b, cg_tol=1e-8, max_iter=100)
    exact = np.linalg.solve(chain(100), np.ones(100))
    np.testing.assert_allclose(result.x.cpu().numpy(), exact, rtol=1e-5)
