"""The error of a command that cannot run as it was given."""

from __future__ import annotations

from collections.abc import Iterable

from ..scenarios.suggest import unknown_name


class UsageError(ValueError):
    """What was asked for cannot be done; the message says why and what to do. The command line exits with 2."""


def unknown(kind: str, name: str, allowed: Iterable[str]) -> UsageError:
    """The error for a name that is not in a list, with the closest one that is."""
    return UsageError(unknown_name(kind, name, allowed))
