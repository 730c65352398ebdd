"""The memory of this process, as the system counts it: resident pages, whoever allocated them."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from pathlib import Path

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak() -> int:
    """The most bytes that were resident so far, or since :func:`reset`.

    ``VmHWM``, not ``getrusage``: the latter also counts the parent's memory at the fork.
    """
    found = _field("VmHWM:")
    if found is not None:
        return found
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident() -> int | None:
    """Bytes resident now; None where the system does not tell."""
    return _field("VmRSS:")


def reset() -> bool:
    """Give unused memory back to the system and let the peak start from now. Returns whether the system can do that."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
    try:
        _RESET.write_text("5")
    except OSError:
        return False
    return True


def _field(name: str) -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(name):
            return 1024 * int(line.split()[1])
    return None
