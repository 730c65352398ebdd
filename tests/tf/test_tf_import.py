"""Importing the package loads no TensorFlow; using a name of it does."""

from __future__ import annotations

import subprocess
import sys


def test_import_is_light() -> None:
    code = "import sys, ncg_cuda; ncg_cuda.tf; print('tensorflow' in sys.modules, sorted(dir(ncg_cuda.tf)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.startswith("False")
    assert "'NewtonCG'" in out
    assert "'v1'" in out
