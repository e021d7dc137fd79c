"""A rebuild that is owed is owed until a whole one has ended, whatever ends in between."""

from __future__ import annotations

from world import World

from copilotlab import Policy
from copilotlab.protocol.keys import WAS_DOWN


def whole_rebuilds(node):
    return [entry for entry in node.journal.entries() if entry.event == "rebuild_ended" and "published" in entry.detail]


def test_a_lost_memory_found_during_a_batch_is_not_made_up_for_by_its_failure(cluster, monkeypatch):
    c = cluster(2)
    c.fill(4)
    c.settle(5)
    a, b = c.nodes
    c.redis.forget()
    batch = a.replica.batches.begin("rebuild")
    assert batch.grant.owed is False, "nobody has found yet that the memory is lost"
    c.clock.advance(1.0)
    b.listen()  # its heartbeat finds it
    assert c.redis.held()[WAS_DOWN] == b"true"
    batch.cancel()
    a.work()

    assert WAS_DOWN in c.redis.held()
    c.settle(5)
    assert WAS_DOWN not in c.redis.held()
    assert len([entry for node in c.nodes for entry in whole_rebuilds(node)]) == 2


def test_part_of_the_catalogue_does_not_make_up_for_a_lost_memory(cluster, make_chart):
    c = cluster(2)
    c.fill(4)
    c.settle(5)
    a, b = c.nodes
    c.redis.forget()
    c.clock.advance(1.0)
    b.listen()

    batch = a.replica.batches.begin("rebuild", since=c.charts.revision)

    assert batch.grant.owed
    while a.work():
        c.deliver()
    assert (batch.result.charts, batch.result.reused) == (4, 4)
    assert WAS_DOWN not in c.redis.held()


def test_a_batch_that_is_cancelled_owes_nothing_if_nothing_was_owed(cluster):
    c = cluster(2)
    c.fill(4)
    c.settle(5)
    batch = c.nodes[0].replica.batches.begin("rebuild")
    assert WAS_DOWN in c.redis.held()
    batch.cancel()
    c.nodes[0].work()

    assert WAS_DOWN not in c.redis.held()


def test_a_holder_that_dies_leaves_a_rebuild_owed(cluster):
    c = cluster(2, Policy(batch_timeout=20))
    c.fill(4)
    c.settle(5)
    c.nodes[0].replica.batches.begin("rebuild")
    dead = c.nodes.pop(0)
    c.carriers.pop(0).cut()
    c.settle(30)

    assert WAS_DOWN not in c.redis.held()
    assert whole_rebuilds(c.nodes[0])
    assert dead.store.digest == c.nodes[0].store.digest


def test_a_rebuild_that_the_node_begins_by_itself_at_that_moment_is_waited_for(cluster, monkeypatch):
    c = cluster(1)
    replica = c.nodes[0].replica
    begin = replica.batches.begin

    def too_late(kind, **options):
        assert begin(kind, **options) is not None  # as the node's own thread does
        return begin(kind, **options)

    monkeypatch.setattr(replica.batches, "begin", too_late)
    assert c.nodes[0].rebuild().outcome == "published"


def test_an_epoch_given_twice_since_the_memory_was_lost_makes_nobody_embed_again():
    """The batch of a node that has heard of no epoch takes the answers to an earlier one for answers to itself."""
    world = World(3)
    world.nodes[0].replica.batches.begin("rebuild")
    for _ in range(3):
        world.listen(0)
    world.work(0)
    world.work(0)
    world.update(1, world.chart(4))
    world.redis.forget()
    world.carriers[0].cut()
    world.carriers[1].cut()
    assert world.nodes[2].coordinator.lease.epoch == 0
    world.nodes[2].replica.batches.begin("rebuild")
    assert world.nodes[2].replica.batches.present.epoch == world.nodes[0].coordinator.lease.epoch == 1

    world.settle()  # raises Broken
    assert sum(node.context.metrics["embeddings"] for node in world.nodes) == 1
