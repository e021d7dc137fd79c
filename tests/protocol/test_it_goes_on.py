"""Promise 7: a batch whose holder died, froze or lost its network is finished by another node in time, and what it has
published is not made again. Hypothesis chooses where in its work the holder is hit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tqdm.auto import tqdm
from world import POLICY, World

from copilotlab.coordinator import WAS_DOWN
from copilotlab.lab.simulated import SimulatedLab

SLACK = POLICY.probe_interval + 2 * POLICY.heartbeat_interval  # to be noticed, and to be done


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
@given(
    size=st.integers(2, 4),
    charts=st.integers(1, 7),
    steps=st.integers(0, 8),
    fate=st.sampled_from(["dies", "dies over an operation", "freezes", "is cut off"]),
    operation=st.integers(1, 6),
    after=st.booleans(),
    saved=st.booleans(),
)
def test_another_node_finishes_the_batch_within_the_timeout_and_a_heartbeat(
    size, charts, steps, fate, operation, after, saved
):
    w = World(size)
    w.run(5.0)
    for chart_id in range(1, charts + 1):
        w.charts.save(w.chart(chart_id))
    holder = w.nodes[0]
    holder._replica.begin("rebuild")
    if fate == "dies over an operation":
        w.carriers[0].crash_in, w.carriers[0].after = operation, after
    for _ in range(steps):
        if holder in w.nodes:
            w.work(0)
        for node in list(w.nodes):
            w.listen(w.nodes.index(node))
    if holder in w.nodes:
        w.carriers[0].crash_in = None
        match fate:
            case "dies" | "dies over an operation":
                w.crash(0)
            case "freezes":
                frozen = w.nodes.pop(0), w.carriers.pop(0)
            case "is cut off":
                w.carriers[0].cut()
    others = [node for node in w.nodes if node is not holder]
    if saved:
        w.update(w.nodes.index(others[0]), w.chart(1))
    expected = {change.chart_id: change.revision for change in w.charts.changes_since(0)}

    w.run(POLICY.batch_timeout + POLICY.heartbeat_interval + SLACK)

    assert WAS_DOWN not in w.redis.held()
    for node in others:
        assert {chart_id: node.store.revision(chart_id) for chart_id in expected} == expected
    if fate == "freezes":
        w.nodes.insert(0, frozen[0])
        w.carriers.insert(0, frozen[1])
    w.settle()
    unpublished = POLICY.chunk_size if fate != "is cut off" else charts
    made_again = sum(len(makings) - 1 for makings in w.made.values())
    assert made_again <= unpublished


@pytest.mark.parametrize("where", ["between two steps", "in the model"])
def test_after_an_interrupt_nothing_is_left_of_the_batch_and_the_next_one_begins(
    cluster: Callable[..., SimulatedLab], make_chart: Callable, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    lab = cluster(2)
    node, other = lab.nodes
    lab.charts.save_many(make_chart(chart_id) for chart_id in range(1, 200))

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*((lab.embedder, "embed") if where == "in the model" else (tqdm, "update")), interrupted)
        with pytest.raises(KeyboardInterrupt):
            node.rebuild()

    assert node.status()["batch"] == ""
    assert other.coordinator.flags().batch_holder is None
    assert node.counters["batches"] == 1
    assert (result := node.rebuild()).outcome == "published", result
    assert len(node.store) == 199
