"""Promise 7: a batch whose holder died, froze or lost its network is finished by another node in time, and what it has
published is not made again. Hypothesis chooses where in its work the holder is hit. Who beats is not taken for dead."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tqdm.auto import tqdm
from world import POLICY, World

from copilotlab import Policy
from copilotlab.lab.simulated_lab import SimulatedLab, simulated_chart
from copilotlab.protocol.keys import WAS_DOWN
from copilotlab.protocol.link import SILENT_BEATS

SILENCE = SILENT_BEATS * POLICY.heartbeat_interval + POLICY.redis_timeout  # then a holder is taken for dead
ASKING = 6 * POLICY.heartbeat_interval  # the next one asks all others for what they have, before it makes anything
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
def test_another_node_finishes_the_batch_within_three_heartbeats_and_one(
    size, charts, steps, fate, operation, after, saved
):
    w = World(size)
    w.run(5.0)
    for chart_id in range(1, charts + 1):
        w.charts.save(w.chart(chart_id))
    holder = w.nodes[0]
    holder.replica.batches.begin("rebuild")
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

    w.run(SILENCE + POLICY.heartbeat_interval + ASKING + SLACK)

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
    assert node.context.metrics["batches"] == 1
    assert (result := node.rebuild()).outcome == "published", result
    assert len(node.store) == 199


# Who has the lease, of three nodes with a slow model; n0 begins, and something happens to it in the middle


@pytest.fixture
def slow() -> SimulatedLab:
    lab = SimulatedLab(3, Policy(batch_timeout=60, chunk_size=2), seconds_per_text=1.0, tick=0.25)
    lab.run(5)
    lab.charts.save_many([simulated_chart(chart_id) for chart_id in range(1, 101)])
    lab.nodes[0].replica.batches.begin("rebuild")
    lab.run(10)
    assert held_by(lab) == "n0"
    return lab


def held_by(lab: SimulatedLab) -> str | None:
    return lab.nodes[1].coordinator.flags().batch_holder


def ended_as(lab: SimulatedLab, node_id: str) -> str:
    said = lab.timeline().filter(node=node_id, event="rebuild_ended")["detail"]
    return said[-1] if len(said) else "under way"


@pytest.mark.parametrize("fate", [SimulatedLab.kill, SimulatedLab.freeze])
def test_a_holder_that_dies_or_freezes_is_replaced_within_three_heartbeats_and_one(slow, fate) -> None:
    fate(slow, 0)
    slow.run(2 * slow.policy.heartbeat_interval)
    assert held_by(slow) == "n0"  # it may still live

    slow.run(SILENCE - slow.policy.heartbeat_interval)
    assert held_by(slow) in ("n1", "n2")


def test_a_frozen_holder_that_comes_back_is_fenced_and_nothing_is_made_twice(slow) -> None:
    slow.freeze(0)
    slow.run(20)
    successor = held_by(slow)
    slow.resume(0)
    slow.run(5)

    assert ended_as(slow, "n0").startswith("fenced")
    assert held_by(slow) == successor != "n0"
    assert slow.run_until_agreed(120) is not None
    assert slow.side_by_side == 1
    assert slow.embeddings() == 100


def test_a_holder_that_freezes_for_less_than_three_heartbeats_keeps_the_lease(slow) -> None:
    slow.freeze(0)
    slow.run(2 * slow.policy.heartbeat_interval)
    slow.resume(0)
    assert slow.run_until_agreed(120) is not None
    assert ended_as(slow, "n0").startswith("published")
    assert slow.embeddings() == 100


def test_a_holder_that_beats_while_its_model_hangs_keeps_the_lease_until_the_timeout(slow) -> None:
    slow.hang(0)
    slow.run(slow.policy.batch_timeout - 5)
    assert held_by(slow) == "n0"

    slow.run(5 + slow.policy.heartbeat_interval)
    assert held_by(slow) in ("n1", "n2")
    slow.mend(0)
    slow.run(5)
    assert ended_as(slow, "n0").startswith("fenced")
    assert slow.run_until_agreed(120) is not None
    assert slow.embeddings() == 100


@pytest.mark.parametrize("fate", [SimulatedLab.kill, SimulatedLab.freeze, SimulatedLab.hang])
def test_as_written_only_time_ends_a_lease(fate) -> None:
    lab = SimulatedLab(3, Policy.seed(batch_timeout=60, chunk_size=2), seconds_per_text=1.0, tick=0.25)
    lab.run(5)
    lab.charts.save_many([simulated_chart(chart_id) for chart_id in range(1, 101)])
    lab.nodes[0].replica.batches.begin("rebuild")
    lab.run(10)
    holder = held_by(lab)
    assert holder is not None
    fate(lab, 0)
    lab.run(45)
    assert held_by(lab) == holder
    lab.run(10)
    assert held_by(lab) is None
