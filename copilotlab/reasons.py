"""What an error says, and what was given, fit for a line of a message."""

from __future__ import annotations


def reason(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type where the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def short(value: object) -> str:
    """Return what `repr` says of the value in one line, cut to 80 characters; of a table, its type and first line."""
    try:
        shown = repr(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        shown = f"<{type(value).__name__} too long to show>"
    if "\n" in shown:
        shown = f"<{type(value).__name__}, {shown.strip().splitlines()[0]}>"
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
