"""The error of a command that cannot run as it was given."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """What was asked for cannot be done; the message says why and what to do. The command line exits with 2."""


def unknown(kind: str, name: str, allowed: Iterable[str]) -> UsageError:
    """The error for a name that is not in a list, with the closest one that is."""
    listed = list(allowed)
    close = difflib.get_close_matches(name, listed, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return UsageError(f"unknown {kind} {name!r}.{hint} {kind.capitalize()}s: {', '.join(listed)}.")
