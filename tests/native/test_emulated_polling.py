"""How often the host waits for an emulated GPU during a solve: exactly as promised; the fake CuPy counts each time."""

from __future__ import annotations

import math
from typing import Any

import pytest
from gpu_problems import system

from ncg_cuda import Layout, StopReason, cg

N = 4000


@pytest.mark.parametrize("poll", [1, 3, 4, 100])
@pytest.mark.parametrize("stop", ["max_iter", "converged"])
def test_one_for_each_look(gpu: Any, poll: int, stop: str) -> None:
    d, b = system(N, "float64")
    there, right = gpu.cupy.asarray(d), gpu.cupy.asarray(b)
    tol, most = (0.0, 10) if stop == "max_iter" else (1e-6, 60)
    gpu.syncs.clear()
    gpu.uploads.clear()
    result = cg(lambda p: there * p, right, cg_tol=tol, max_iter=most, poll=poll, verify=False)
    iterations = result.iterations
    assert result.stop_reason is (StopReason.MAX_ITER if stop == "max_iter" else StopReason.CONVERGED)
    assert len(gpu.syncs) == 1 + math.ceil(iterations / poll)  # one after the start, then one per look
    assert gpu.uploads == []
    assert result.products == min(poll * math.ceil(iterations / poll), most)
    passes = [call.name for call in gpu.calls]
    assert len(gpu.launches) == len(passes) == 2 + 2 * result.products + 1
    assert min(result.residual_norm, result.rhs_norm, result.curvature, result.drift) >= 0
    assert len(gpu.syncs) == 1 + math.ceil(iterations / poll)  # the numbers are known


@pytest.mark.parametrize(
    "options", [{}, {"preconditioner": True}, {"x0": True}, {"parts": 3}, {"tensors": 170}], ids=str
)
def test_none_at_all_without_looks(gpu: Any, options: dict[str, Any]) -> None:
    layout = Layout([(7,)] * options.get("tensors", 1)) if "tensors" in options else None
    d, b = system(N if layout is None else layout.size, "float32")
    there, right = gpu.cupy.asarray(d), gpu.cupy.asarray(b)
    product = (lambda p: layout.views(there * p)) if layout else lambda p: there * p
    extra = {name: there for name in ("preconditioner", "x0") if name in options}
    gpu.syncs.clear()
    gpu.uploads.clear()
    result = cg(
        [product] * options["parts"] if "parts" in options else product,
        right,
        max_iter=12,
        poll=0,
        layout=layout,
        **extra,
    )
    assert gpu.syncs == []
    assert gpu.uploads == []
    assert gpu.runs == 0  # nothing has run: the host is far ahead
    assert "not read" in repr(result)
    assert gpu.syncs == []
    assert result.stop_reason is not StopReason.RUNNING
    assert len(gpu.syncs) == 1
    assert result.iterations <= 12
    assert result.residual_norm >= 0
    assert len(gpu.syncs) == 1  # read once


def test_what_runs_after_the_stop_changes_nothing(gpu: Any) -> None:
    d, b = system(N, "float32")
    there, right = gpu.cupy.asarray(d), gpu.cupy.asarray(b)
    results = [
        cg(lambda p: there * p, right, cg_tol=1e-3, max_iter=40, poll=poll, verify=False) for poll in (1, 0, 9, 40)
    ]
    assert len({r.iterations for r in results}) == 1
    assert results[0].iterations < 20
    assert len({r.x.get().tobytes() for r in results}) == 1


def test_a_verified_claim_costs_two_more(gpu: Any) -> None:
    d, b = system(N, "float64")
    there, right = gpu.cupy.asarray(d), gpu.cupy.asarray(b)
    gpu.syncs.clear()
    result = cg(lambda p: there * p, right, cg_tol=1e-6, max_iter=60, poll=60, verify=True)
    assert (result.converged, result.verified) == (True, True)
    assert len(gpu.syncs) == 1 + 1 + 2  # r.z and r.r of the true residual
