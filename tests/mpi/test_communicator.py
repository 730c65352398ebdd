"""Collective operations, with real processes and without MPI."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mpi4py")
from ncg_cuda.mpi import Communicator

MPIEXEC = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")

SCRIPT = """
import numpy as np
from ncg_cuda.mpi import Communicator
c = Communicator()
for dtype in (np.float32, np.float64):
    mine = [np.random.default_rng(rank).standard_normal(100_003).astype(dtype) for rank in range(c.size)]
    v = mine[c.rank].copy()
    c.allreduce_sum(v)
    np.testing.assert_allclose(v, sum(m.astype(np.float64) for m in mine), rtol=1e-6, atol=1e-6)
    v = mine[c.rank].copy()
    c.allreduce_mean(v)
    np.testing.assert_allclose(v, sum(m.astype(np.float64) for m in mine) / c.size, rtol=1e-6, atol=1e-6)
    v = mine[c.rank].copy()
    c.broadcast(v, root=1)
    np.testing.assert_array_equal(v, mine[1])
c.barrier()
print(f"rank {c.rank} of {c.size} local {c.local_rank} ok", flush=True)
"""


@pytest.mark.skipif(MPIEXEC is None, reason="needs mpiexec (pip install mpich)")
def test_two_ranks() -> None:
    done = subprocess.run(
        [str(MPIEXEC), "-n", "2", sys.executable, "-m", "mpi4py", "-c", SCRIPT],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # the launcher may merge the lines of two ranks
    assert sorted(re.findall(r"rank \d of 2 local \d ok", done.stdout)) == [
        "rank 0 of 2 local 0 ok",
        "rank 1 of 2 local 1 ok",
    ]


def test_one_process() -> None:
    c = Communicator()
    v = np.arange(5.0)
    c.allreduce_sum(v)
    c.allreduce_mean(v)
    c.broadcast(v)
    c.barrier()
    assert v.tolist() == [0, 1, 2, 3, 4]
    assert (c.rank, c.size, c.local_rank) == (0, 1, 0)


def test_mistakes_are_named() -> None:
    c = Communicator()
    for bad, error, match in [
        ([1.0], TypeError, "got list of no dtype"),
        (np.arange(3), TypeError, "ndarray of int64"),
        (np.zeros(6)[::2], ValueError, "C-contiguous"),
    ]:
        with pytest.raises(error, match=match):
            c.allreduce_sum(bad)
    with pytest.raises(ValueError, match="root: 3; ranks are 0 to 0"):
        c.broadcast(np.zeros(2), root=3)


def test_without_mpi4py_it_works_alone_and_refuses_to_be_several() -> None:
    code = (
        "import sys\n"
        "sys.modules['mpi4py'] = None\n"
        "import numpy as np\n"
        "from ncg_cuda.mpi import Communicator\n"
        "c = Communicator(); v = np.ones(3); c.allreduce_mean(v); print(c, v.sum())\n"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMI", "SLURM_"))}
    alone = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=clean)
    assert alone.stdout.strip() == "Communicator(rank 0 of 1, without MPI) 3.0"
    several = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**clean, "PMI_SIZE": "2"}
    )
    assert several.returncode != 0
    assert "pip install mpi4py" in several.stderr
