"""Do the nodes agree? The one answer for the lab, the simulated lab, the studies and the panels.

Nodes are *alike* where all hold the same vectors, bit for bit. They *agree* where they are alike and hold what the
repository holds. Nothing here waits, or changes anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from copilotlab.charts import ChartRepository, Heads
from copilotlab.node import Node
from copilotlab.store.records import Ints

_DIFFERENCES = {"node": pl.String, "chart_id": pl.Int64, "difference": pl.String}


def held_by(charts: ChartRepository) -> Heads:
    """Read what a repository holds, without the rows that cannot be read, as nodes do. Raises RepositoryError."""
    return Heads.of(
        [
            (chart_id, revision, b"", True) if chart is None else (chart_id, revision, chart.content_hash, False)
            for chart_id, revision, chart, _ in charts.changes_since(0)
        ]
    )


def alike(nodes: Iterable[Node]) -> bool:
    """Tell whether all nodes hold the same vectors, bit for bit; False where there is no node."""
    return len({node.store.digest for node in nodes}) == 1


def agree(nodes: Sequence[Node], charts: ChartRepository | Heads, *, or_newer: bool = False) -> bool:
    """Tell whether all nodes are alike and hold what the repository holds; False where there is no node.

    charts: the repository, which is read only if the nodes are alike; or what `held_by` read of it. or_newer: see
    `differences`. Raises RepositoryError.
    """
    if not alike(nodes):
        return False
    expected = held_by(charts) if isinstance(charts, ChartRepository) else charts
    return not any(ids.size for *_, ids in _found(nodes, expected, or_newer))


def differences(nodes: Iterable[Node], expected: Heads, *, or_newer: bool = False) -> pl.DataFrame:
    """List what the nodes hold otherwise than expected: a row for each node and chart, in this order.

    Parameters:
        nodes: one is looked at after the other.
        expected: what they should hold; `held_by` reads it from a repository.
        or_newer: count a later revision as right, and a chart that was not known or not there yet (False). For nodes
            that may have gone on since ``expected`` was read.

    Returns:
        node; chart_id; difference: "missing", "surplus", "revision", "content", or "vector": bits that differ from
        those of the first node that holds the chart right.
    """
    found = _found(nodes, expected, or_newer)
    rows = [(node_id, chart_id, difference) for node_id, difference, ids in found for chart_id in ids.tolist()]
    return pl.DataFrame(rows, schema=_DIFFERENCES, orient="row").sort("node", "chart_id")


def wrong_charts(node: Node, expected: Heads, *, or_newer: bool = False) -> Ints:
    """Return the ids of the charts that one node holds otherwise than expected, ascending; see `differences`.

    It makes no frame, so it may be asked often beside nodes that are watched.
    """
    return np.unique(np.concatenate([ids for *_, ids in _found([node], expected, or_newer)]))


def _found(nodes: Iterable[Node], expected: Heads, or_newer: bool) -> Iterator[tuple[str, str, Ints]]:
    """Yield the charts of each node that differ: the node's id, what differs, the charts' ids (often none)."""
    live, dead = _rows(expected, ~expected.deleted), _rows(expected, expected.deleted)
    first = np.zeros_like(live.content_hashes)  # hashes of the vectors to compare with
    known = np.zeros(len(live.chart_ids), bool)
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
        yield node.node_id, "missing", np.setdiff1d(live.chart_ids, held.chart_ids)
        yield node.node_id, "surplus", surplus
        yield node.node_id, "revision", live.chart_ids[at[older if or_newer else older | newer]]
        yield node.node_id, "content", live.chart_ids[at[other & ~older & ~newer]]
        yield node.node_id, "vector", live.chart_ids[same[(first[same] != vectors).any(axis=1)]]


def _rows(heads: Heads, rows: npt.NDArray[np.bool_]) -> Heads:
    return Heads(heads.chart_ids[rows], heads.revisions[rows], heads.content_hashes[rows], heads.deleted[rows])


def _rows_of_both(these: Ints, those: Ints) -> tuple[Ints, Ints]:
    """Find the ids that are in both, and return their rows in these and their rows in those. Each id occurs once."""
    _, here, there = np.intersect1d(these, those, assume_unique=True, return_indices=True)
    return here, there
