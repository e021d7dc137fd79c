"""What an error says, fit for a line of a message."""

from __future__ import annotations


def reason(error: BaseException) -> str:
    """The first line of what it says, or the name of its type where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
