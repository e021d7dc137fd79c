"""Whatever a peer says, and whatever this node held: what the repository has not is not so."""

from __future__ import annotations

import pytest
from test_liars import HUGE, Liar
from world import MemoryRepository

from copilotlab import Node, Policy
from copilotlab.lab.simulated_lab import SimulatedLab, simulated_chart
from copilotlab.protocol import events
from copilotlab.store import Record


@pytest.fixture
def c():
    c = SimulatedLab(3, Policy(adopt_after=20, sync_interval=60), charts=MemoryRepository(), tick=0.5)
    for chart_id in range(1, 6):
        c.charts.save(simulated_chart(chart_id))
    c.run(10)
    assert c.agree()
    return c


def test_a_repository_that_is_restored_from_a_backup_is_followed(c):
    c.charts.back_up()
    c.nodes[0].update_chart(simulated_chart(1, "Newer words"))
    c.nodes[1].update_chart(simulated_chart(6, "A newer chart"))
    c.nodes[2].delete_chart(2)
    c.run(5)
    assert c.agree()

    c.charts.restore()
    assert c.run_until_agreed(10) is not None
    assert [node.context.metrics["went_back"] for node in c.nodes] == [1, 1, 1]

    c.nodes[0].update_chart(simulated_chart(3, "Words after the restoration"))
    assert c.run_until_agreed(5) is not None


def test_a_title_that_the_restored_repository_has_not_is_not_shown(c):
    c.charts.back_up()
    c.nodes[0].update_chart(simulated_chart(1, "Newer words"))
    c.run(5)
    shown = [node.search("newer words", k=1)["title"].to_list() for node in c.nodes]
    assert shown == [["Newer words"]] * 3

    c.charts.restore()
    assert c.run_until_agreed(10) is not None
    titles = [node.search("newer words", k=5)["title"].to_list() for node in c.nodes]
    assert [sorted(shown) for shown in titles] == [[chart.title for chart in c.charts]] * 3


def record(c, chart_id, revision):
    vector = c.embedder.embed(["What is not so"])[0]
    return events.ChartUpdated(events.pack(Record.of(chart_id, revision, b"c" * 16, vector)))


@pytest.mark.parametrize(
    "forge",
    [
        lambda c: record(c, 1, HUGE),
        lambda c: record(c, 4_711, 100),
        lambda c: events.ChartDeleted(1, HUGE),
        lambda c: events.ChartDeleted(4_711, 100),
    ],
)
def test_a_revision_that_the_repository_never_gave_is_forgotten(c, forge):
    Liar(c).say(forge(c))
    c.deliver()
    c.nodes[0].update_chart(simulated_chart(1, "True words"))

    assert c.run_until_agreed(2 * c.policy.claim_timeout) is not None
    assert not any(4_711 in node.store for node in c.nodes)
    assert all(node.store.tombstone(4_711) is None for node in c.nodes)


def test_a_chart_that_never_was_is_gone_after_the_next_sync(c):
    Liar(c).say(record(c, 4_711, c.charts.revision))
    c.run(10)
    assert c.run_until_agreed(60) is not None


def test_a_manifest_that_leaves_out_what_there_is_empties_nobody(c):
    lease = c.nodes[0].coordinator.lease.take()
    liar = Liar(c)
    liar.say(events.BatchStarted("forged", lease.epoch))
    liar.say(events.BatchFinished("forged", lease.epoch, 0, c.charts.revision, True, b""))
    c.deliver()
    c.nodes[0].coordinator.lease.release(lease, recovered=False)

    assert c.agree()


@pytest.mark.parametrize("both_write", [True, False])
def test_a_node_of_another_copy_of_the_catalogue_is_named_and_not_heard(c, both_write):
    """Staging was restored from production's backup: the same incarnation and key, and from then on another way."""
    staging = MemoryRepository()
    c.charts.back_up()
    staging._changes, staging._revision = dict(c.charts.backup[0]), c.charts.backup[1]
    staging.identity = c.charts.identity
    carrier = c.redis.carrier()
    stranger = Node(staging, c.embedder, carrier, policy=c.policy, node_id="staging", clock=c.clock)
    stranger.connect()

    def live(seconds):
        until = c.clock.now() + seconds
        while c.clock.now() < until:
            while stranger.listen() or stranger.work():
                pass
            c.run(0.5)

    live(10)
    for number in range(3):
        stranger.update_chart(simulated_chart(1, f"Words of staging {number}"))
        if both_write:
            c.nodes[0].update_chart(simulated_chart(2, f"Words of production {number}"))
        live(1)
    live(20)
    stranger.delete_chart(3)
    live(0.5)

    assert all(node.store.revision(3) is not None for node in c.nodes)
    assert c.agree()
    assert all(node.context.metrics["dropped_copy"] > 0 for node in c.nodes)
    told = [entry.detail for entry in c.nodes[0].journal.entries() if entry.event == "dropped_copy"]
    assert "'staging' reads another copy" in told[0]
    assert stranger.store.head(1) is not None
    assert 3 not in stranger.store
