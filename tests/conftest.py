"""What every test sees: quiet TensorFlow, the data directory, and skips that say why."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
if "NCG_DATA_DIR" not in os.environ and _DATA.is_dir():
    os.environ["NCG_DATA_DIR"] = str(_DATA)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not any("gpu" in item.keywords for item in items):
        return
    from ncg_cuda import backends

    found = backends()
    for item in items:
        if "gpu" in item.keywords and not (found["cuda"].available and found["cupy"].available):
            item.add_marker(pytest.mark.skip(reason=f"needs a GPU: {found['cuda'].detail}; {found['cupy'].detail}"))
