"""Device memory: host memory that shows its misuse. new and freed memory is NaN, its borders are guarded."""

from __future__ import annotations

import bisect
from dataclasses import dataclass

import numpy as np

ALIGNMENT = 512  # as CuPy's pool
GUARD = 512
_GUARDED, _UNUSED = 0xA5, 0xFF


@dataclass(eq=False)
class Block:
    """Some memory on a device."""

    address: int
    nbytes: int
    device: int
    room: np.ndarray | None
    """With the guards around it; None where the memory belongs to another library."""
    freed: bool = False

    @property
    def bytes(self) -> np.ndarray:
        """The memory without its guards."""
        assert self.room is not None
        start = self.address - self.room.ctypes.data
        return self.room[start : start + self.nbytes]

    def poison(self) -> None:
        """Overwrite, as the next owner of the memory would."""
        self.bytes[...] = _UNUSED

    def intact(self) -> bool:
        """Whether nobody wrote beyond the memory."""
        if self.room is None:
            return True
        start = self.address - self.room.ctypes.data
        around = (self.room[:start], self.room[start + self.nbytes :])
        return all(bool((part == _GUARDED).all()) for part in around)


class Memory:
    """All memory that was ever allocated; kept, so that a late access hits poison and no other array."""

    def __init__(self) -> None:
        self._addresses: list[int] = []
        self.blocks: list[Block] = []  # by address

    def allocate(self, nbytes: int, device: int) -> Block:
        """New memory, not initialised."""
        room = np.full(nbytes + 2 * GUARD + ALIGNMENT, _GUARDED, np.uint8)
        start = room.ctypes.data + GUARD
        block = Block(start + -start % ALIGNMENT, nbytes, device, room)
        block.poison()
        self._add(block)
        return block

    def foreign(self, array: np.ndarray, device: int) -> None:
        """Memory of another library."""
        self._add(Block(array.ctypes.data, array.nbytes, device, None))

    def _add(self, block: Block) -> None:
        at = bisect.bisect(self._addresses, block.address)
        self._addresses.insert(at, block.address)
        self.blocks.insert(at, block)

    def fault(self, address: int, nbytes: int, device: int) -> str | None:
        """What is wrong with an access, or None."""
        at = bisect.bisect(self._addresses, address) - 1
        block = self.blocks[at] if at >= 0 else None
        if block is None or address + nbytes > block.address + block.nbytes:
            return f"{nbytes} bytes at {address:#x} are not (or not wholly) in memory of a GPU"
        if block.device != device:
            return f"memory at {address:#x} is on device {block.device}, but device {device} is current"
        if block.freed:
            return f"memory at {address:#x} was freed before"
        return None
