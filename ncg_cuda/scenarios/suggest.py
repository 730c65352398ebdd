"""What to say about a name that is not in a list."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown_name(kind: str, name: str, allowed: Iterable[str]) -> str:
    """The message for a ``name`` that is no ``kind``: the closest one that is, and the list of all."""
    listed = list(allowed)
    close = difflib.get_close_matches(name, listed, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"unknown {kind} {name!r}.{hint} {kind.capitalize()}s: {', '.join(listed)}."
