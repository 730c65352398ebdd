"""The communicator: collective operations on flat vectors, in place."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

# What the launchers of Open MPI, MPICH/Hydra and Slurm set for each process that they start.
_LAUNCHED = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS")


class Communicator:
    """Collective operations over all ranks, or the same face for a single process where MPI is absent.

    Args:
        comm: an mpi4py communicator; by default ``MPI.COMM_WORLD``, and a single process where mpi4py is not installed.
            The communicator duplicates it, so that its messages never meet others.

    Raises:
        RuntimeError: the process was started by an MPI launcher with several ranks, but mpi4py is not installed: every
            rank would silently work alone.
    """

    def __init__(self, comm: Any = None) -> None:
        self._comm: Any = None
        self._mpi: Any = None
        if comm is None:
            try:
                from mpi4py import MPI
            except ImportError as error:
                if any(os.environ.get(name, "1") not in ("0", "1") for name in _LAUNCHED):
                    raise RuntimeError(
                        f"started by an MPI launcher, but mpi4py does not import ({error}); pip install mpi4py"
                    ) from error
                return
            comm = MPI.COMM_WORLD
        from mpi4py import MPI

        self._mpi = MPI
        self._comm = comm.Dup()
        node = self._comm.Split_type(MPI.COMM_TYPE_SHARED)
        self._local_rank = int(node.Get_rank())
        node.Free()

    @property
    def rank(self) -> int:
        """The number of this process, 0 <= rank < size."""
        return 0 if self._comm is None else int(self._comm.Get_rank())

    @property
    def size(self) -> int:
        """The number of processes."""
        return 1 if self._comm is None else int(self._comm.Get_size())

    @property
    def local_rank(self) -> int:
        """The number of this process on its machine: the index of its GPU."""
        return 0 if self._comm is None else self._local_rank

    def allreduce_sum(self, vector: Any) -> None:
        """Replace the vector by its sum over all ranks.

        Args:
            vector: C-contiguous, writeable NumPy array of float32 or float64, of the same size on every rank.

        Raises:
            TypeError: not such an array (device arrays are not supported yet).
            ValueError: not contiguous or read-only.
        """
        _check(vector)
        if self._comm is not None:
            self._comm.Allreduce(self._mpi.IN_PLACE, vector, op=self._mpi.SUM)

    def allreduce_mean(self, vector: Any) -> None:
        """Replace the vector by its mean over all ranks; see :meth:`allreduce_sum`."""
        self.allreduce_sum(vector)
        vector /= vector.dtype.type(self.size)

    def broadcast(self, vector: Any, root: int = 0) -> None:
        """Replace the vector by that of rank ``root``; see :meth:`allreduce_sum`."""
        _check(vector)
        if not 0 <= root < self.size:
            raise ValueError(f"root: {root}; ranks are 0 to {self.size - 1}")
        if self._comm is not None:
            self._comm.Bcast(vector, root=root)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self._comm is not None:
            self._comm.Barrier()

    def __repr__(self) -> str:
        return f"Communicator(rank {self.rank} of {self.size}{'' if self._comm is not None else ', without MPI'})"


def _check(vector: Any) -> None:
    if not isinstance(vector, np.ndarray) or vector.dtype not in (np.float32, np.float64):
        given = f"{type(vector).__name__} of {getattr(vector, 'dtype', 'no dtype')}"
        raise TypeError(f"vector: got {given}; give a NumPy array of float32 or float64")
    if not vector.flags.c_contiguous or not vector.flags.writeable:
        raise ValueError("vector: must be C-contiguous and writeable; pass a copy")
