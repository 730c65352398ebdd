"""The memory that a part of a run needs: checked before anything is allocated, for a system may promise what it does
not have, and then end the process.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..catalog import Operation
from .peers import Peer
from .sizes import Size, iterations_for

_COMMON = 14.5  # vectors: right-hand side, diagonal, scratch, and those of our own contenders
_OF_PEER = {
    "ours-tf": 3.3,
    "numpy": 5.1,
    "cupy": 5.1,
    "scipy": 1.1,
    "cupyx": 1.1,
    "tensorflow": 8.5,
    "jax": 2.3,
    "torch": 0.5,
}
"""Vectors that a peer adds to the peak of resident memory, measured peer by peer."""
_READY_PRODUCTS = ("scipy", "cupyx")
"""Peers that are given damped products, which are kept beside the plain ones."""


def iteration_bytes(size: Size, on_gpu: bool, peers: Iterable[Peer]) -> int:
    """About the peak of memory of the iteration's contenders; 0 without any."""
    names = [peer.name for peer in peers]
    if not names:
        return 0
    products = 1 + iterations_for(size, on_gpu)
    kept = products * (2 if set(names) & set(_READY_PRODUCTS) else 1)
    own = sorted((_OF_PEER.get(name, 0.0) for name in names), reverse=True)
    # half of what a peer takes it gives back before the next one runs
    return int(4 * size.n * (kept + _COMMON + own[0] + sum(own[1:]) / 2))


def operations_bytes(size: Size, rows: Sequence[Operation]) -> int:
    """About the memory of one set of operands, for more take turns only where there is room, and of what operations
    return; 0 without any operation.
    """
    return 4 * size.n * (most_vectors(rows) + 2) if rows else 0


def most_vectors(rows: Sequence[Operation]) -> int:
    """Of a set of operands, which serves every operation and the copy."""
    return max([2, *(row.vectors for row in rows)])


def require(need: int, free: int) -> None:
    """Raise a MemoryError that gives both where the need exceeds what is free."""
    if need > free:
        raise MemoryError(lacking(need, free))


def lacking(need: int, free: int) -> str:
    """What to say where the need exceeds what is free."""
    return f"needs about {gigabytes(need)} of memory, and {gigabytes(free)} are free"


def gigabytes(count: float) -> str:
    """``12.3 GB``, with the digits that matter."""
    if count < 1e8:
        return f"{max(1.0, count / 1e6):.0f} MB"
    return f"{count / 1e9:,.0f} GB" if count >= 1e11 else f"{count / 1e9:.1f} GB"
