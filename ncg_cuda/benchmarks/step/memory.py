"""The memory of this process, as the system counts it: resident pages, whoever allocated them."""

from __future__ import annotations

import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak() -> int:
    """The most bytes that were resident so far.

    ``VmHWM``, not ``getrusage``: the latter also counts the parent's memory at the fork.
    """
    found = _field("VmHWM:")
    if found is not None:
        return found
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _field(name: str) -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(name):
            return 1024 * int(line.split()[1])
    return None
