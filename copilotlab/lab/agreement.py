"""Do the nodes agree? The one answer for the lab, the simulated lab, the studies and the panels.

Nodes are *alike* where all hold the same vectors, bit for bit. They *agree* where they are alike and hold what the
repository holds. Nothing here waits, or changes anything.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from string import ascii_uppercase
from typing import NamedTuple

import numpy as np
import polars as pl

from copilotlab.charts import ChartRepository, Heads
from copilotlab.node import Node
from copilotlab.store.records import Ints

SHOWN_DIGEST = 8  # characters of a digest that people compare

_DIFFERENCES = {"node": pl.String, "chart_id": pl.Int64, "difference": pl.String}


def held_by(charts: ChartRepository) -> Heads:
    """What a repository holds, as nodes can: without the rows that cannot be read. Raises RepositoryError."""
    return Heads.of(
        [
            (chart_id, revision, b"", True) if chart is None else (chart_id, revision, chart.content_hash, False)
            for chart_id, revision, chart, _ in charts.changes_since(0)
        ]
    )


def alike(nodes: Iterable[Node]) -> bool:
    """Whether all nodes hold the same vectors, bit for bit; not so where there is no node."""
    return len({node.store.digest for node in nodes}) == 1


def agree(nodes: Sequence[Node], charts: ChartRepository | Heads, *, or_newer: bool = False) -> bool:
    """Whether all nodes are alike and hold what the repository holds; not so where there is no node.

    charts: the repository, which is read only where the nodes are alike, or what `held_by` read. or_newer: see
    `differences`. Raises RepositoryError.
    """
    if not alike(nodes):
        return False
    expected = held_by(charts) if isinstance(charts, ChartRepository) else charts
    return differences(nodes, expected, or_newer=or_newer).is_empty()


def differences(nodes: Iterable[Node], expected: Heads, *, or_newer: bool = False) -> pl.DataFrame:
    """What keeps the nodes from agreement: a row for each node and chart that is held otherwise, in this order.

    Parameters:
        nodes: what they hold is read one after the other.
        expected: what they should hold; `held_by` reads it from a repository.
        or_newer: whether a later revision than the expected one is right too, and so is a chart that is not expected:
            for what was read before the nodes went on (False).

    Returns:
        node; chart_id; difference: "missing", "surplus", "revision", "content", or "vector": bits that differ from
        those of the first node that holds the chart right.
    """
    live, dead = (Heads(*(part[rows] for part in expected)) for rows in (~expected.deleted, expected.deleted))
    first = np.zeros_like(live.content_hashes)  # hashes of the vectors to compare with
    known = np.zeros(len(live.chart_ids), bool)
    rows: list[tuple[str, int, str]] = []
    for node in nodes:
        held = node.store.manifest()
        at, here = _rows_of_both(live.chart_ids, held.chart_ids)
        older, newer = held.revisions[here] < live.revisions[at], held.revisions[here] > live.revisions[at]
        other = (held.content_hashes[here] != live.content_hashes[at]).any(axis=1)
        right = ~(older | newer | other)
        same, vectors = at[right], held.vector_hashes[here[right]]
        first[same] = np.where(known[same, None], first[same], vectors)
        known[same] = True
        if or_newer:
            gone, still = _rows_of_both(dead.chart_ids, held.chart_ids)
            surplus = held.chart_ids[still[held.revisions[still] <= dead.revisions[gone]]]
        else:
            surplus = np.setdiff1d(held.chart_ids, live.chart_ids)
        for difference, found in (
            ("missing", np.setdiff1d(live.chart_ids, held.chart_ids)),
            ("surplus", surplus),
            ("revision", live.chart_ids[at[older if or_newer else older | newer]]),
            ("content", live.chart_ids[at[other & ~older & ~newer]]),
            ("vector", live.chart_ids[same[(first[same] != vectors).any(axis=1)]]),
        ):
            rows += [(node.node_id, chart_id, difference) for chart_id in found.tolist()]
    return pl.DataFrame(rows, schema=_DIFFERENCES, orient="row").sort("node", "chart_id")


def _rows_of_both(these: Ints, those: Ints) -> tuple[Ints, Ints]:
    """The rows of the ids that are in both, in these and in those: ids of one length, each once."""
    _, here, there = np.intersect1d(these, those, assume_unique=True, return_indices=True)
    return here, there


class Agreement(NamedTuple):
    """Which of the living nodes are alike, as their `Node.status` tells.

    groups: digest to the ids of the nodes that hold it, the largest group first.
    lag: how many charts the one that is furthest behind the repository has yet to take in; 0 where nobody is.
    """

    groups: dict[str, list[str]]
    lag: int

    @classmethod
    def of(cls, statuses: Iterable[Mapping[str, object]]) -> Agreement:
        """From each node's `Node.status`; nodes that were stopped have no say."""
        groups: defaultdict[str, list[str]] = defaultdict(list)
        living = [status for status in statuses if status["state"] != "stopped"]
        for status in living:
            groups[str(status["digest"])].append(str(status["node"]))
        return cls(
            dict(sorted(groups.items(), key=lambda group: -len(group[1]))),
            max((int(str(status["lag"])) for status in living), default=0),
        )

    @property
    def alike(self) -> bool:
        """Whether somebody is alive and nobody differs."""
        return len(self.groups) == 1

    @property
    def complete(self) -> bool:
        """Whether all are alike and have taken in whatever they know the repository to hold."""
        return self.alike and not self.lag

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
        if self.alike:
            return {1: "one node, alone", 2: "both nodes agree"}.get(sizes[0], f"all {sizes[0]} nodes agree")
        return f"nodes differ: {len(sizes)} versions, held by {' + '.join(map(str, sizes))} nodes"


def short(digest: object) -> str:
    """As much of a digest as people compare."""
    return str(digest)[:SHOWN_DIGEST]
