"""Which nodes hold the same, as they tell it themselves; pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from string import ascii_uppercase
from typing import NamedTuple

SHOWN_DIGEST = 8  # characters of a digest that people compare


class Agreement(NamedTuple):
    """Which of the living nodes are alike, as their `Node.status` tells.

    groups: digest to the ids of the nodes that hold it, the largest group first.
    lag: how many charts the node that is furthest behind the repository has yet to take in; 0 if none is behind.
    incomplete: the nodes that lack something of the repository, or cannot know. unheard: those that are not connected.
    """

    groups: dict[str, list[str]]
    lag: int
    incomplete: list[str] = []  # noqa: RUF012 - a NamedTuple's default, which nothing changes
    unheard: list[str] = []  # noqa: RUF012

    @classmethod
    def of(cls, statuses: Iterable[Mapping[str, object]]) -> Agreement:
        """Make it from each node's `Node.status`; nodes that were stopped do not count."""
        groups: defaultdict[str, list[str]] = defaultdict(list)
        living = [status for status in statuses if status["state"] != "stopped"]
        for status in living:
            groups[str(status["digest"])].append(str(status["node"]))
        return cls(
            dict(sorted(groups.items(), key=lambda group: -len(group[1]))),
            max((int(str(status["lag"])) for status in living), default=0),
            [str(status["node"]) for status in living if not status["complete"]],
            [str(status["node"]) for status in living if status["redis"] != "connected"],
        )

    @property
    def alike(self) -> bool:
        """Whether a node is alive and all that are hold the same."""
        return len(self.groups) == 1

    @property
    def complete(self) -> bool:
        """Whether all are alike, connected, and as far as they know hold all that the repository holds."""
        return self.alike and not (self.lag or self.incomplete or self.unheard)

    def letter(self, digest: object) -> str:
        """Name the group with that digest: A for the largest; "" if no living node holds it."""
        if digest not in self.groups:
            return ""
        position = list(self.groups).index(str(digest))
        return ascii_uppercase[position] if position < len(ascii_uppercase) else f"#{position + 1}"

    def __str__(self) -> str:
        if not self.groups:
            return "no node is alive"
        sizes = [len(nodes) for nodes in self.groups.values()]
        if self.alike and self.complete:
            return {1: "one node, alone", 2: "both nodes agree"}.get(sizes[0], f"all {sizes[0]} nodes agree")
        if self.alike:
            alike = {1: "one node, alone", 2: "both nodes are alike"}.get(sizes[0], f"all {sizes[0]} nodes are alike")
            incomplete = f"{len(self.incomplete)} not complete" if self.incomplete else ""
            unheard = f"{len(self.unheard)} not connected" if self.unheard else ""
            return ", ".join(filter(None, [alike, incomplete, unheard]))
        return f"nodes differ: {len(sizes)} versions, held by {' + '.join(map(str, sizes))} nodes"


def short(digest: object) -> str:
    """Cut a digest to what people compare."""
    return str(digest)[:SHOWN_DIGEST]
