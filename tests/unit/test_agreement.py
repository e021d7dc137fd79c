"""Do the nodes agree? One answer for the lab, the simulated lab, the studies and the panels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from copilotlab import Chart, Node
from copilotlab.lab.agreement import agree, alike, differences, held_by
from copilotlab.lab.simulated_lab import SimulatedLab, simulated_chart
from copilotlab.monitoring.agreement import Agreement
from copilotlab.store import Record


@pytest.fixture
def lab() -> SimulatedLab:
    """Two nodes that hold charts 1 to 3, as the repository does."""
    lab = SimulatedLab(2)
    lab.fill(3)
    lab.run(2)
    return lab


def held(node: Node, chart_id: int) -> Record:
    record = node.store.get(chart_id)
    assert record is not None
    return record


def hold(node: Node, record: Record) -> None:
    """Let a node hold this in the place of what it holds of the chart."""
    for head in (None, (record.revision, record.content_hash)):
        node.store.correct(record.chart_id, head, known=node.store.known(record.chart_id))
    assert node.store.put(record)


def test_nodes_that_hold_what_the_repository_holds_agree(lab: SimulatedLab) -> None:
    assert agree(lab.nodes, lab.charts)
    assert agree(lab.nodes, held_by(lab.charts))
    assert differences(lab.nodes, held_by(lab.charts)).is_empty()
    assert lab.lost() == 0


def test_nobody_does_not_agree(lab: SimulatedLab) -> None:
    assert not alike([])
    assert not agree([], lab.charts)
    assert Agreement.of([]).alike is False
    for index in range(2):
        lab.kill(index)
    assert not lab.agree()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda node: node.store.remove(2, 99), (2, "missing")),
        (lambda node: node.store.put(replace(held(node, 2), chart_id=9, revision=99)), (9, "surplus")),
        (lambda node: node.store.put(replace(held(node, 2), revision=99)), (2, "revision")),
        (lambda node: hold(node, replace(held(node, 2), content_hash=bytes(16))), (2, "content")),
    ],
)
def test_what_one_node_holds_otherwise_is_named_and_lost(
    lab: SimulatedLab, change: Callable[[Node], object], expected: tuple[int, str]
) -> None:
    change(lab.nodes[1])
    assert differences(lab.nodes, held_by(lab.charts)).rows() == [("n1", *expected)]
    assert lab.lost() == 1
    assert not agree(lab.nodes, lab.charts)


def test_other_bits_are_a_difference_from_the_first_node_and_lose_nothing(lab: SimulatedLab) -> None:
    record = held(lab.nodes[1], 2)
    hold(lab.nodes[1], Record.of(2, record.revision, record.content_hash, np.roll(record.vector, 1)))
    assert differences(lab.nodes, held_by(lab.charts)).rows() == [("n1", 2, "vector")]
    assert lab.lost() == 0
    assert not alike(lab.nodes)
    assert not lab.agree()


def test_nodes_that_are_alike_and_all_behind_do_not_agree(lab: SimulatedLab) -> None:
    lab.charts.save(simulated_chart(2, "Saved elsewhere"))
    assert alike(lab.nodes)
    assert differences(lab.nodes, held_by(lab.charts)).rows() == [("n0", 2, "revision"), ("n1", 2, "revision")]
    assert not agree(lab.nodes, lab.charts)


def test_what_is_newer_than_what_was_read_counts_as_right_only_where_it_is_asked_for(lab: SimulatedLab) -> None:
    lab.charts.delete(3)
    read = held_by(lab.charts)
    lab.nodes[0].update_chart(simulated_chart(1, "Newer words"))
    lab.nodes[0].update_chart(simulated_chart(3, "Saved again after its deletion"))
    lab.nodes[0].update_chart(Chart(chart_id=4, title="New"))
    newer = differences(lab.nodes[:1], read)
    assert newer.rows() == [("n0", 1, "revision"), ("n0", 3, "surplus"), ("n0", 4, "surplus")]
    assert differences(lab.nodes[:1], read, or_newer=True).is_empty()
    # The other node has heard nothing yet: the deleted chart is there still.
    assert differences(lab.nodes[1:], read, or_newer=True).rows() == [("n1", 3, "surplus")]


def test_what_is_older_than_what_was_read_is_wrong_also_where_newer_is_right(lab: SimulatedLab) -> None:
    lab.charts.save(simulated_chart(2, "Saved elsewhere"))
    lab.charts.save(Chart(chart_id=9, title="Nowhere yet"))
    found = differences(lab.nodes[:1], held_by(lab.charts), or_newer=True)
    assert found.rows() == [("n0", 2, "revision"), ("n0", 9, "missing")]
