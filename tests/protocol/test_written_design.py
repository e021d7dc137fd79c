"""`Policy.seed()`: the written design to the letter, and its known faults, each shown.

A fault test has a twin where the remedy is already a field of `Policy`.
"""

from __future__ import annotations

import pytest

from copilotlab import Policy
from copilotlab.protocol.keys import BATCH_IN_PROGRESS, WAS_DOWN

SEED = Policy.seed(chunk_size=2)


# --- what it does -----------------------------------------------------------------------------------------------


def test_one_node_embeds_a_changed_chart_and_tells_the_others(cluster, make_chart):
    c = cluster(4, SEED)

    result = c.nodes[0].update_chart(make_chart(7))
    c.deliver()

    assert result == ("published", 1)
    assert c.agree()
    assert c.embeddings() == 1


def test_a_node_skips_its_own_events(cluster, make_chart):
    c = cluster(2, SEED)

    c.nodes[0].update_chart(make_chart(7))
    c.deliver()

    assert c.nodes[0].context.metrics["received"] == 1
    assert c.nodes[0].context.metrics["applied"] == 0
    assert c.nodes[1].context.metrics["applied"] == 1


def test_a_deletion_reaches_every_node(cluster, make_chart):
    c = cluster(3, SEED)
    c.nodes[0].update_chart(make_chart(7))
    c.deliver()

    result = c.nodes[1].delete_chart(7)
    c.deliver()

    assert result == ("published", 2)
    assert [7 in node.store for node in c.nodes] == [False, False, False]


def test_a_chart_saved_elsewhere_is_announced_by_whoever_is_told(cluster, make_chart):
    c = cluster(2, SEED)
    c.charts.save(make_chart(7))

    assert c.nodes[1].chart_changed(7) == ("published", 1)
    c.deliver()
    assert c.agree()
    assert c.nodes[1].chart_changed(7) == ("unchanged", 1)
    c.charts.delete(7)
    assert c.nodes[1].chart_changed(7) == ("published", 2)
    c.deliver()
    assert c.agree()


def test_the_batch_flag_is_set_if_absent_under_its_key_for_five_minutes(cluster):
    c = cluster(2, Policy.seed())
    a, b = (node.coordinator for node in c.nodes)

    assert a.lease.take()
    assert not b.lease.take()
    assert c.redis.held() == {"vector:batch:in_progress": b"n0"}
    c.clock.advance(299.9)
    assert not b.lease.take()
    c.clock.advance(0.2)
    assert b.lease.take()


def test_an_update_during_a_batch_is_left_to_it(cluster, make_chart):
    c = cluster(2, SEED)
    c.nodes[0].coordinator.lease.take()

    assert c.nodes[1].update_chart(make_chart(7)).outcome == "deferred"
    assert 7 in c.charts
    assert 7 not in c.nodes[1].store
    assert c.embeddings() == 0


def test_an_outage_is_marked_and_the_next_update_rebuilds_all(cluster, make_chart):
    c = cluster(3, SEED)
    c.fill(5)
    c.redis.stop()
    assert c.nodes[0].update_chart(make_chart(1, "Changed while Redis was away")).outcome == "local"
    assert c.nodes[0].store.revision(1) == 6

    c.redis.start(keep_data=False)
    c.settle()
    assert WAS_DOWN in c.redis.held()

    assert c.nodes[1].update_chart(make_chart(2, "The edit that sets it off")).outcome == "deferred"
    assert c.redis.held()[BATCH_IN_PROGRESS] == b"n1"
    c.settle()
    assert c.agree()
    assert c.redis.held() == {}


def test_searching_goes_on_without_redis(cluster):
    c = cluster(2, SEED)
    c.fill(5)
    c.redis.stop()

    found = c.nodes[1].search("revenue of product 3", k=3)

    assert found["chart_id"][0] == 3
    assert found["rank"].to_list() == [1, 2, 3]


def test_the_scheduled_sync_runs_every_hour_unless_a_batch_is_in_progress(cluster, make_chart):
    c = cluster(2, SEED)
    c.charts.save(make_chart(7))
    c.clock.advance(3_600)
    lease = c.nodes[1].coordinator.lease.take()
    while c.nodes[0].work():
        pass
    assert 7 not in c.nodes[0].store

    c.nodes[1].coordinator.lease.release(lease, recovered=False)
    c.clock.advance(3_600)
    while c.nodes[0].work():
        pass
    assert 7 in c.nodes[0].store
    assert c.redis.held() == {}


def test_every_operation_is_guarded(cluster, make_chart):
    c = cluster(2, SEED)
    c.fill(3)
    c.redis.stop()
    node = c.nodes[0]

    assert node.update_chart(make_chart(1, "Other words")).outcome == "local"
    assert node.chart_changed(1).outcome == "unchanged"
    assert node.delete_chart(2).outcome == "local"
    assert node.rebuild().outcome == "local"
    assert node.sync().outcome == "local"
    assert node.listen() is False
    assert node.work() is False
    assert node.status()["redis"] == "away"


# --- its faults -------------------------------------------------------------------------------------------------


def test_fault_a_batch_longer_than_the_timeout_runs_twice(cluster):
    c = cluster(2, SEED)
    c.fill(6)
    first = start_rebuild(c.nodes[0])
    c.clock.advance(301)

    second = start_rebuild(c.nodes[1])

    assert second is not None
    assert not first.finished.is_set()
    finish(c)
    assert first.tally.embedded == second.tally.embedded == 6


def test_fault_a_holder_that_lost_its_flag_deletes_the_next_holders(cluster):
    c = cluster(3, SEED)
    c.fill(6)
    start_rebuild(c.nodes[0])
    c.clock.advance(301)
    start_rebuild(c.nodes[1])
    assert c.redis.held()[BATCH_IN_PROGRESS] == b"n1"

    while c.nodes[0].work():
        pass

    assert BATCH_IN_PROGRESS not in c.redis.held()
    assert c.nodes[2].coordinator.lease.take(), "a third batch can now run beside the second"


def reordered_updates(c, make_chart):
    c.nodes[0].update_chart(make_chart(7, "First words"))
    c.nodes[1].update_chart(make_chart(7, "Second words"))
    c.carriers[2].arrived.reverse()
    c.settle()


def test_fault_two_updates_in_different_orders_leave_nodes_different_for_ever(cluster, make_chart):
    c = cluster(3, SEED)
    reordered_updates(c, make_chart)

    assert c.nodes[2].store.revision(7) == 1
    assert not c.agree()


def test_remedy_ordered_two_updates_in_different_orders_end_alike(cluster, make_chart):
    c = cluster(3, Policy.seed(ordered=True))
    reordered_updates(c, make_chart)

    assert [node.store.revision(7) for node in c.nodes] == [2, 2, 2]
    assert c.agree()


def deletion_beside_a_rebuild(c):
    c.fill(6)
    start_rebuild(c.nodes[0])  # has read the catalogue, with chart 3 in it
    c.nodes[1].delete_chart(3)
    c.nodes[0].listen()  # its own batch event
    finish(c)
    c.settle()


def test_fault_a_chart_deleted_beside_a_rebuild_comes_back(cluster):
    c = cluster(3, SEED)
    deletion_beside_a_rebuild(c)

    assert all(3 in node.store for node in c.nodes)
    assert 3 not in c.charts


def test_remedy_ordered_a_chart_deleted_beside_a_rebuild_stays_deleted(cluster):
    c = cluster(3, Policy.seed(ordered=True, chunk_size=2))
    deletion_beside_a_rebuild(c)

    assert not any(3 in node.store for node in c.nodes)
    assert c.agree()


def update_that_the_batch_has_passed(c, make_chart):
    c.fill(6)
    start_rebuild(c.nodes[0])
    assert c.nodes[1].update_chart(make_chart(3, "New words")).outcome == "deferred"
    finish(c)
    c.settle()


def test_fault_an_update_that_the_batch_has_passed_is_lost(cluster, make_chart):
    c = cluster(3, SEED)
    update_that_the_batch_has_passed(c, make_chart)

    assert c.charts.revision == 7
    assert [node.store.revision(3) for node in c.nodes] == [3, 3, 3]


def test_remedy_pick_up_deferred_the_batch_takes_what_is_saved_beside_it(cluster, make_chart):
    c = cluster(3, Policy.seed(pick_up_deferred=True, ordered=True, chunk_size=2))
    update_that_the_batch_has_passed(c, make_chart)

    assert [node.store.revision(3) for node in c.nodes] == [7, 7, 7]
    assert c.agree()


def test_remedy_pick_up_deferred_outlives_the_batch(cluster, make_chart):
    c = cluster(3, Policy(chunk_size=2, batch_timeout=60))
    c.fill(6)
    start_rebuild(c.nodes[0])
    assert c.nodes[1].update_chart(make_chart(3, "New words")).outcome == "deferred"
    dead = c.nodes.pop(0)  # dies in its batch, the flag left behind
    c.carriers.pop(0).cut()

    c.settle(seconds=2)
    assert c.nodes[0].store.revision(3) != 7
    c.settle(seconds=10)  # three heartbeats without a word of the holder, and not the lease's 60 s
    assert c.nodes[0].store.revision(3) == 7
    assert c.agree()
    assert dead.store.revision(3) == 3


def outage_with_an_edit(c, make_chart):
    c.fill(4)
    c.redis.stop()
    c.nodes[0].update_chart(make_chart(2, "Changed while Redis was away"))
    c.nodes[1].delete_chart(4)
    c.redis.start(keep_data=False)
    c.settle(seconds=60)


def test_fault_after_an_outage_nothing_happens_until_somebody_edits(cluster, make_chart):
    c = cluster(3, SEED)
    outage_with_an_edit(c, make_chart)

    assert c.nodes[2].store.revision(2) == 2
    assert 4 in c.nodes[2].store
    assert not c.agree()


def test_remedy_rebuild_at_reconnect_the_cluster_agrees_by_itself(cluster, make_chart):
    c = cluster(3, Policy.seed(ordered=True, rebuild_at_reconnect=True, chunk_size=2))
    outage_with_an_edit(c, make_chart)

    assert c.agree()
    assert c.redis.held() == {}


def test_fault_a_deletion_during_an_outage_outlives_the_rebuild(cluster, make_chart):
    c = cluster(3, SEED)
    outage_with_an_edit(c, make_chart)
    c.nodes[0].update_chart(make_chart(1, "The edit that sets it off"))
    c.settle()

    assert 4 in c.nodes[2].store, "as written, a rebuild adds and never removes"


def test_fault_one_nodes_blink_rebuilds_the_whole_cluster(cluster, make_chart):
    c = cluster(3, SEED)
    c.fill(6)
    embedded = c.embeddings()
    c.carriers[2].blink()
    c.settle()

    c.nodes[0].update_chart(make_chart(1, "An edit like any other"))
    c.settle()

    assert c.embeddings() == embedded + 6


def test_fault_a_rebuild_embeds_what_has_not_changed(cluster):
    c = cluster(2, SEED)
    c.fill(6)

    assert c.nodes[0].rebuild().embedded == 6


def test_remedy_reuse_vectors_a_rebuild_embeds_only_what_changed(cluster, make_chart):
    c = cluster(2, Policy.seed(reuse_vectors=True))
    c.fill(6)
    c.charts.save(make_chart(3, "Changed elsewhere, nobody was told"))

    result = c.nodes[0].rebuild()
    c.deliver()

    assert (result.embedded, result.reused) == (1, 5)
    assert c.agree()


def test_fault_whoever_was_away_misses_events_and_nobody_knows(cluster, make_chart):
    c = cluster(3, SEED)
    c.nodes[0].update_chart(make_chart(7))
    c.carriers[2].arrived.clear()  # at most once: this is the once
    c.settle(seconds=60)

    assert 7 not in c.nodes[2].store
    assert c.nodes[2].status()["owes_rebuild"] is False


def test_fault_a_new_node_starts_empty(cluster):
    c = cluster(2, SEED)
    c.fill(4)
    c.add_node()
    c.settle(seconds=60)

    assert [len(node.store) for node in c.nodes] == [4, 4, 0]


def test_fault_the_hourly_sync_fills_only_the_node_that_runs_it(cluster):
    c = cluster(2, SEED)
    c.fill(4)
    c.add_node()
    c.add_node()
    c.nodes[2].sync()
    c.settle()

    assert [len(node.store) for node in c.nodes] == [4, 4, 4, 0]


# --- driving a batch --------------------------------------------------------------------------------------------


def start_rebuild(node):
    """A rebuild under way on ``node``: the catalogue is read, nothing is embedded yet."""
    batch = node.replica.batches.begin("rebuild")
    assert batch is not None
    assert node.work()
    return batch


def finish(c):
    while any([node.work() for node in c.nodes]):
        c.deliver()
    c.deliver()


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_rebuild_fills_every_node(cluster, size):
    c = cluster(size, SEED)
    c.fill(7)

    assert c.agree()
    assert c.embeddings() == 7
