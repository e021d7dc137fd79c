"""What stands where in a document of which nothing is certain: what is not there, or is not of a kind, is empty."""

from __future__ import annotations

import json
from typing import Any


def at(value: object, *path: str) -> Any:
    """Return what stands under these keys, one in the other; None where there is nothing."""
    for key in path:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def text(value: object) -> str:
    """Return a string or whole number as a string; "" for anything else."""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else ""


def items(value: object) -> list[Any]:
    """Return the items of a list; anything else as the only one, None as none."""
    if isinstance(value, list):
        return value
    return [] if value is None else [value]


def dicts(value: object) -> list[dict[Any, Any]]:
    """Return those items that are dicts."""
    return [item for item in items(value) if isinstance(item, dict)]


def fields(value: object) -> dict[Any, Any]:
    """Return a dict; {} for anything else."""
    return value if isinstance(value, dict) else {}


def texts(value: object) -> list[str]:
    """Return those items that have words."""
    return [word for item in items(value) if (word := text(item)).strip()]


def unpacked(value: object) -> Any:
    """Return what JSON in a string says, None where it is none; what is not a string is returned as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None
