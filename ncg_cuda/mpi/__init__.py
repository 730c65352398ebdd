"""Vectors over several processes: one face for MPI and for a single process.

mpi4py is imported by :class:`Communicator` when the first one is made, not by this package.
"""

from .communicator import Communicator

__all__ = ["Communicator"]
