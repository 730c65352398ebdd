"""The contenders of the CG iteration: ours, and other libraries, a file each, imported when they are run.

Each module has ``contenders(problem)``: a list of :class:`Contender`. What all have in common is in :data:`LEGEND`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ...compare.errors import unknown

if TYPE_CHECKING:
    from ..devices import Device
    from ..problem import Problem

Solve = Callable[[int], Any]
"""Runs so many CG iterations from x = 0 and returns x: a vector, or a list of tensors."""

LEGEND = """\
CG iteration: the time of a solve of 1 + k iterations less that of a solve of 1, over k, so that beginning and end of a
solve cancel out. Caches are flushed before a solve; its products come cold, x, r and p as the solve itself left them.
Bytes are counted for everyone as the two fused passes move them. Products are computed before and are not timed.
Hand-written contenders get H p and damp it (q = H p + tau p). Solvers that call a matvec (SciPy, cupyx) get q ready,
which saves them that work; JAX's cg forms (d + tau) p from a diagonal d, which it reads where others read a product.
Nothing is subtracted from anyone. TensorFlow, JAX and torch hold x, r and p as they do by themselves."""


@dataclass(frozen=True)
class Contender:
    """One way to do the iterations."""

    name: str
    build: Callable[[], Solve]
    """Makes the solve; may compile."""
    note: str = ""
    launches: Callable[[], float | None] | None = None
    """Counts the kernel launches of an iteration."""


@dataclass(frozen=True)
class Peer:
    """A library, or ours."""

    name: str
    """As ``--peers`` takes it."""
    title: str
    module: str
    devices: tuple[str, ...]
    needs: tuple[str, ...]

    def why_not(self, device: Device) -> str:
        """Why this peer cannot run on a device; empty if it can be tried."""
        if device.name not in self.devices:
            return f"runs on the {' and '.join(self.devices)} only"
        for module in self.needs:
            try:
                found = importlib.util.find_spec(module) is not None
            except (ImportError, ValueError):
                found = False
            if not found:
                return f"{module} is not installed"
        return ""

    def contenders(self, problem: Problem) -> list[Contender]:
        """Its contenders for a problem; imports the library."""
        found: list[Contender] = import_module(f"{__name__}.{self.module}").contenders(problem)
        return found


PEERS = (
    Peer("ours", "ncg_cuda", "ours", ("cpu", "gpu"), ()),
    Peer("ours-tf", "ncg_cuda TensorFlow op", "ours_tensorflow", ("cpu",), ("tensorflow",)),
    Peer("numpy", "NumPy", "textbook", ("cpu",), ()),
    Peer("scipy", "scipy.sparse.linalg.cg", "sparse_solvers", ("cpu",), ("scipy",)),
    Peer("cupy", "CuPy", "textbook", ("gpu",), ("cupy",)),
    Peer("cupyx", "cupyx.scipy.sparse.linalg.cg", "sparse_solvers", ("gpu",), ("cupyx",)),
    Peer("tensorflow", "TensorFlow", "tensorflow_peer", ("cpu", "gpu"), ("tensorflow",)),
    Peer("jax", "JAX", "jax_peer", ("cpu", "gpu"), ("jax",)),
    Peer("torch", "torch", "torch_peer", ("cpu", "gpu"), ("torch",)),
)


def select(names: str, device: Device) -> list[Peer]:
    """The peers that a comma-separated list names; ``all`` are those of the device, ``none`` is ours alone.

    Raises:
        UsageError: an unknown name.
    """
    of_device = [peer for peer in PEERS if device.name in peer.devices]
    if names == "all":
        return of_device
    known = {peer.name: peer for peer in PEERS}
    wanted = ["ours"] + [name.strip() for name in names.split(",") if name.strip() != "none"]
    for name in wanted:
        if name not in known:
            raise unknown("peer", name, [*known, "all", "none"])
    chosen: Sequence[Peer] = [known[name] for name in dict.fromkeys(wanted)]
    return list(chosen)
