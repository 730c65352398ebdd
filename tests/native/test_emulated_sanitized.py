"""The run that make gpu-check gives to compute-sanitizer, on the emulated GPU: it passes, and it can fail."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "gpu" / "sanitized.py"


@pytest.fixture
def sanitized(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(gpu.cupy.cuda, "set_allocator", lambda allocator: None, raising=False)
    spec = importlib.util.spec_from_file_location("sanitized", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_passes(sanitized: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert sanitized.main(quick=True) == 0
    assert capsys.readouterr().out == "0 results differ\n"


def test_it_fails_where_a_result_is_wrong(
    sanitized: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ncg_cuda import reference

    exact = reference.weighted_step
    monkeypatch.setattr(reference, "weighted_step", lambda *a: (exact(*a)[0] + 1e-3, *exact(*a)[1:]))
    assert sanitized.main(quick=True) == 1
    assert "weighted_step, 4099 elements of float32: off by" in capsys.readouterr().out
