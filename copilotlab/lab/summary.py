"""A lab at a glance: who agrees with whom, and a static page of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from string import ascii_uppercase
from typing import TYPE_CHECKING, NamedTuple

from copilotlab.markup import DOUBTFUL, GOOD, card, rows_table

if TYPE_CHECKING:
    from copilotlab.lab.lab import Lab

SHOWN_DIGEST = 8  # characters of a digest that people compare


class Agreement(NamedTuple):
    """Which of the living nodes hold the same vectors: digest to node ids, the largest group first."""

    groups: dict[str, list[str]]

    @classmethod
    def of(cls, statuses: Iterable[Mapping[str, object]]) -> Agreement:
        """From each node's `Node.status`; nodes that were stopped have no say."""
        groups: defaultdict[str, list[str]] = defaultdict(list)
        for status in statuses:
            if status["state"] != "stopped":
                groups[str(status["digest"])].append(str(status["node"]))
        return cls(dict(sorted(groups.items(), key=lambda group: -len(group[1]))))

    @property
    def agree(self) -> bool:
        """Whether somebody is alive and nobody differs."""
        return len(self.groups) == 1

    def letter(self, digest: object) -> str:
        """A name for the group with that digest: A for the largest; "" if nobody alive holds it."""
        if digest not in self.groups:
            return ""
        position = list(self.groups).index(str(digest))
        return ascii_uppercase[position] if position < len(ascii_uppercase) else f"#{position + 1}"

    def __str__(self) -> str:
        if not self.groups:
            return "no node is alive"
        sizes = [len(nodes) for nodes in self.groups.values()]
        if self.agree:
            return {1: "one node, alone", 2: "both nodes agree"}.get(sizes[0], f"all {sizes[0]} nodes agree")
        return f"nodes differ: {len(sizes)} versions, held by {' + '.join(map(str, sizes))} nodes"


def short(digest: object) -> str:
    """As much of a digest as people compare."""
    return str(digest)[:SHOWN_DIGEST]


def summary_html(lab: Lab) -> str:
    """The lab as static HTML: verdict, server, catalogue, policy, and a table of the nodes; it runs no script."""
    statuses = [node.status() for node in lab.nodes]
    agreement = Agreement.of(statuses)
    facts = {
        "Server": f"{lab.redis.kind} {lab.redis.version}, {lab.redis.state}",
        "Model": lab.embedder.name,
        "Repository": f"{len(lab.charts):,} charts, revision {lab.charts.revision:,}",
        "Policy": repr(lab.policy),
    }
    columns = ("Node", "State", "Charts", "Digest", "Redis", "Line", "Lease", "Lag", "Batch")
    rows = [_row(lab, index, status, agreement) for index, status in enumerate(statuses)]
    closed = " (closed)" if lab.closed else ""
    table = (
        f"<details{' open' if len(statuses) <= 8 else ''}><summary>{len(statuses)} nodes</summary>"
        f"{rows_table(columns, rows)}</details>"
    )
    return card(f"Lab{closed}: {agreement}", facts, colour=GOOD if agreement.agree else DOUBTFUL, more=table)


def _row(lab: Lab, index: int, status: Mapping[str, object], agreement: Agreement) -> list[object]:
    return [
        status["node"],
        status["state"],
        f"{status['charts']:,}",
        f"{agreement.letter(status['digest'])} {short(status['digest'])}".strip(),
        status["redis"],
        lab.proxies[index].state,
        status["lease"] or "—",
        status["lag"],
        status["batch"] or "—",
    ]
