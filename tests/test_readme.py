"""The README's examples run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow")

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[0])
def test_example_runs(block: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((512, 8)).astype(np.float32)
    names: dict[str, Any] = {"x": x, "y": x[:, :1] ** 2}
    exec(block, names)
    if "optimizer" in names:
        np.testing.assert_allclose(names["w"], [1.0, 1.0], atol=1e-4)  # Rosenbrock's minimum
    if "result" in names:
        assert names["result"].converged


def test_there_are_examples() -> None:
    assert len(BLOCKS) == 3
