"""The package imports in a moment, with none of its companions."""

from __future__ import annotations

import subprocess
import sys

import pytest

import ncg_cuda

BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)
sys.meta_path.insert(0, Block())
"""


def run(code: str, blocked: tuple[str, ...] = ()) -> str:
    script = BLOCK.format(blocked=blocked) + code
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_nothing_heavy() -> None:
    out = run(
        "import ncg_cuda; print([m for m in ('numpy', 'tensorflow', 'keras', 'cupy', 'mpi4py') if m in sys.modules])"
    )
    assert out.strip() == "[]"


def test_everything_native_works_without_tensorflow_cupy_and_mpi() -> None:
    blocked = ("tensorflow", "keras", "cupy", "mpi4py", "sklearn", "matplotlib")
    out = run(
        "import numpy as np, ncg_cuda\n"
        "r = ncg_cuda.cg(lambda p: 2 * p, np.ones(9, np.float32))\n"
        "print(r.stop_reason, float(r.x[0]))\n"
        "for name, backend in ncg_cuda.backends().items(): print(name, backend)\n",
        blocked,
    )
    assert out.splitlines()[0] == "converged 0.5"
    assert "tensorflow_op no: TensorFlow is not installed" in out
    assert "cupy no: CuPy is not installed" in out
    assert "mpi no: mpi4py is not installed" in out


def test_backends_say_why_not() -> None:
    found = ncg_cuda.backends()
    assert found["cpu"].available
    assert set(found) == {"cpu", "cuda", "cupy", "tensorflow_op", "mpi"}
    for backend in found.values():
        assert backend.detail


def test_unknown_names_raise() -> None:
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = ncg_cuda.no_such_thing


def test_no_name_is_shadowed_by_a_submodule() -> None:
    """Importing every module of the package, in any order, must leave its public functions callable."""
    out = run(
        "import importlib, pkgutil, ncg_cuda\n"
        "for m in pkgutil.iter_modules(ncg_cuda.__path__):\n"
        "    if m.name != '__main__': importlib.import_module(f'ncg_cuda.{m.name}')\n"
        "print(callable(ncg_cuda.cg), callable(ncg_cuda.backends), ncg_cuda.CGResult.__name__)\n"
    )
    assert out.split() == ["True", "True", "CGResult"]
