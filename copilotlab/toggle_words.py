"""How toggles are asked for, and told, in an order and its answer: as JSON, a page at a time, since both are short."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

POLICY_MEANINGS: Mapping[str, str] = {
    "rebuild_at_reconnect": "after an outage in which Redis lost its memory, a node starts the rebuild by itself",
    "batch_timeout": "seconds that a batch's lease lasts at most, from when it was taken or renewed",
    "sync_interval": "seconds between two scheduled looks at the whole repository",
    "claim_timeout": "seconds that a claim to embed a change is respected at most",
    "adopt_after": "seconds after which a change that no node has sent is embedded by any node",
    "bulk_ttl": "seconds that a page which was put into Redis for others to fetch stays there",
    "chunk_size": "charts in one step of a batch, and in one of its events",
}
"""What the fields of the policy that can be set on a running node mean, in a line."""

MOST_NAME = 60  # characters of a name in what is told, each printable, so that one toggle always fits


class TogglesWanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is to be set, on the node that is told or everywhere, as `Node.configure` takes it. set: toggles by name."""

    set: dict[str, bool | int | float]
    everywhere: bool = False
    by: str = ""


class ToggleTold(NamedTuple):
    """One toggle as it is in force on a node, as in `Node.toggles`; long names are cut, and printable."""

    name: str
    value: bool | int | float
    set_by: str = ""
    set_on: str = ""
    set_at: str = ""
    everywhere: bool = False
    version: int = 0


class TogglesTold(NamedTuple):
    """A page of the toggles of a node. of: how many there are in all."""

    of: int
    toggles: list[ToggleTold]


def written_wish(wanted: TogglesWanted) -> str:
    """Write what is to be set."""
    return msgspec.json.encode(wanted).decode()


def read_wish(argument: str) -> TogglesWanted:
    """Read what `written_wish` wrote. Raises ValueError."""
    try:
        return msgspec.json.decode(argument, type=TogglesWanted)
    except msgspec.DecodeError as error:
        raise ValueError(f"what is to be set cannot be read: {error}") from error


def written_toggles(toggles: Iterable[Mapping[str, object]], after: int, most: int) -> str:
    """Write a page of `Node.toggles`: from the one at ``after`` on, as many as fit into ``most`` characters."""
    known = list(toggles)
    page: list[ToggleTold] = []
    written = ""
    for toggle in known[after:]:
        page.append(ToggleTold(**{name: _cut(value) for name, value in toggle.items()}))  # type: ignore[arg-type]
        longer = msgspec.json.encode(TogglesTold(len(known), page)).decode()
        if written and len(longer) > most:
            break
        written = longer
    return written or msgspec.json.encode(TogglesTold(len(known), [])).decode()


def read_toggles(said: str) -> TogglesTold:
    """Read what `written_toggles` wrote. Raises ValueError."""
    try:
        return msgspec.json.decode(said, type=TogglesTold)
    except msgspec.DecodeError as error:
        raise ValueError(f"what a node told of its toggles cannot be read: {error}") from error


def _cut(value: object) -> object:
    if not isinstance(value, str):
        return value
    return "".join(character if character.isprintable() else " " for character in value[:MOST_NAME])
