"""What is specific to torch tensors: in-place operations, autograd, tensors without plain memory."""

from __future__ import annotations

import numpy as np
import pytest
from test_arrays import N, vectors

from ncg_cuda import cg, ops
from ncg_cuda.arrays import operand


class TestTorch:
    @pytest.fixture(autouse=True)
    def _torch(self) -> None:
        self.torch = pytest.importorskip("torch")

    def test_in_place_operations(self) -> None:
        arrays = vectors(4)
        tensors = [self.torch.tensor(v) for v in arrays]
        options = {"alpha": 0.5, "beta": 0.3, "tau": 0.1}
        assert ops.cg_update(*tensors, **options) == ops.cg_update(*arrays, **options)
        assert all(np.array_equal(t.numpy(), v) for t, v in zip(tensors, arrays, strict=True))

    def test_a_matvec_that_writes_to_its_argument(self) -> None:
        with pytest.raises(ValueError, match="matvec: it has written to its argument"):
            cg(lambda p: p.mul_(2.0), self.torch.ones(50))
        with self.torch.inference_mode():
            assert cg(lambda p: 2.0 * p, self.torch.ones(50)).converged

    def test_tensors_that_require_grad(self) -> None:
        torch = self.torch
        w, d, g = (torch.tensor(v) for v in vectors(3))
        weights = torch.nn.Parameter(w.clone())
        assert ops.dots(weights, weights) == ops.dots(w, w)  # read as if detached
        with pytest.raises(ValueError, match=r"w: the tensor requires grad.*w\.detach\(\).*no_grad"):
            ops.weighted_step(weights, d, g, 0.1)
        assert torch.equal(weights, w)
        with torch.no_grad():  # as an optimizer steps
            ops.weighted_step(weights, d, g, 0.1)
        ops.weighted_step(w, d, g, 0.1)
        assert torch.equal(weights, w)
        factor = torch.full((N,), 2.0, requires_grad=True)
        result = cg(lambda p: factor * p, torch.ones(N, requires_grad=True))
        assert not result.x.requires_grad
        torch.testing.assert_close(result.x, torch.full((N,), 0.5))

    def test_autograd_notices_what_was_written(self) -> None:
        torch = self.torch
        x = torch.ones(N)
        squared = (x * torch.ones(N, requires_grad=True)).sum()
        ops.weighted_step(x, torch.ones(N), torch.ones(N), 1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            squared.backward()
        with torch.inference_mode():
            v = torch.ones(N)
            ops.weighted_step(v, v.clone(), v.clone(), 1.0)
            assert v[0] == 2

    def test_tensors_without_plain_memory(self) -> None:
        torch = self.torch
        good = torch.ones(3)
        for bad, error, match in [
            (torch.ones(3, device="meta"), TypeError, "a: .*meta"),
            (torch.ones(3).to_sparse(), TypeError, "a: .*sparse"),
            (torch._neg_view(torch.ones(3)), TypeError, r"a: .*resolve_neg"),
            (torch.ones(6)[::2], ValueError, "a: not contiguous"),
            (torch.ones(1).expand(3), ValueError, "a: not contiguous"),
            (torch.ones(3, dtype=torch.bfloat16), TypeError, "a: dtype bfloat16"),
            (torch.ones(3, dtype=torch.complex64), TypeError, "a: dtype complex64"),
        ]:
            with pytest.raises(error, match=match):
                ops.dots(bad, good)
        from torch._subclasses.fake_tensor import FakeTensorMode

        with FakeTensorMode(), pytest.raises(TypeError, match=r"a: .*fake tensor"):
            ops.dots(torch.ones(3), good)
        with pytest.raises(TypeError, match=r"a: .*torch\.func"):
            torch.func.vmap(lambda v: ops.dots(v, good))(torch.ones(2, 3))
        assert cg(lambda p: 2 * p, torch.ones(6)[::2]).x.tolist() == [0.5] * 3  # copied, as NumPy's are

    def test_bfloat16_can_be_described(self) -> None:
        t = self.torch.ones(5, dtype=self.torch.bfloat16)
        assert operand(t, "hp", allow_bfloat16=True).nbytes == 10


def test_autograd_sees_every_vector_that_is_written_beside_tensors() -> None:
    torch = pytest.importorskip("torch")
    x, r, p = (torch.ones(16) for _ in range(3))
    ops.cg_update(x, r, p, [torch.ones(5)], alpha=0.5, beta=0.5)
    assert [v._version for v in (x, r, p)] == [1, 1, 1]
