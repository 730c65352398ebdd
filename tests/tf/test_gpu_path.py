"""Which path CG takes where TensorFlow sees a GPU: the op if it can run there, and otherwise why not and what to do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import tensorflow as tf

from ncg_cuda.tf import oplib, solver, solver_op, solver_plain


def pretend(monkeypatch: pytest.MonkeyPatch, *, kernels: bool, status: tuple[str | None, int, str]) -> None:
    """A GPU that TensorFlow sees, with the op's kernels and CUDA's answer as given."""
    seen = tf.config.list_logical_devices
    gpu = tf.config.LogicalDevice("/device:GPU:0", "GPU")
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind=None: [gpu] if kind == "GPU" else seen(kind))
    monkeypatch.setattr(oplib, "has_gpu_kernels", lambda: kernels)
    monkeypatch.setattr(oplib, "_core", SimpleNamespace(cuda_status=lambda: status))


@pytest.mark.parametrize(
    ("kernels", "status", "said"),
    [
        (False, (None, 0, "built without CUDA"), ["without GPU kernels", "put nvcc on the PATH", oplib.REBUILD]),
        (True, ("13.0", 0, "CUDA driver version is insufficient"), ["CUDA 13.0", "insufficient", "update", "rebuild"]),
    ],
)
def test_a_gpu_without_usable_kernels(
    monkeypatch: pytest.MonkeyPatch, kernels: bool, status: Any, said: list[str]
) -> None:
    pretend(monkeypatch, kernels=kernels, status=status)
    with pytest.raises(RuntimeError) as raised:
        solver.solve(lambda p: p, [tf.ones(3)], tau=0.0, cg_tol=1e-3, max_iter=2, path="op")
    assert [part for part in said if part not in str(raised.value)] == []
    assert solver.choose("auto") is solver_plain


def test_a_gpu_with_kernels_takes_the_op(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, kernels=True, status=("13.0", 1, ""))
    assert solver.choose("auto") is solver_op


def test_xla_names_the_setting_that_lets_the_op_run(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, kernels=True, status=("13.0", 1, ""))

    def go() -> Any:
        return solver.solve(lambda p: p, [tf.ones(2)], tau=0.0, cg_tol=1e-5, max_iter=3, path="op")[0]

    with pytest.raises(RuntimeError, match=r"jit_compile=False"):
        tf.function(go, jit_compile=True)()
