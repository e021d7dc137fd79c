"""What an error says, fit for a line of a message."""

from __future__ import annotations


def reason(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type where the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
