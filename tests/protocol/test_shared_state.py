"""What a node's threads share: the listener's, the worker's and the callers'. Where one comes between two steps of
another is played here by hand, or, where the interpreter decides, by threads."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager

from copilotlab import Policy
from copilotlab.protocol import events
from copilotlab.protocol.carrier import CarrierAway
from copilotlab.protocol.peers import Peers


@contextmanager
def threads_change_places_often():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def test_the_worker_looks_at_the_peers_while_the_listener_meets_new_ones():
    peers = Peers(1.0)
    ended = threading.Event()
    failed: list[RuntimeError] = []

    def look() -> None:
        try:
            while not ended.is_set():
                peers.alive(0.0)
        except RuntimeError as error:
            failed.append(error)

    with threads_change_places_often():
        worker = threading.Thread(target=look)
        worker.start()
        for number in range(20_000):
            peers.note(events.Envelope(f"n{number}", "model", 1, 1, events.ChartDeleted(1, 1)), 0.0)
        ended.set()
        worker.join()
    assert not failed


def test_a_change_of_what_is_being_handed_over_is_handed_over_too(cluster, make_chart):
    c = cluster(2)
    c.settle(5)
    a, b = c.nodes
    c.carriers[0].cut()
    a.update_chart(make_chart(7, "First words"))
    c.carriers[0].heal()
    carrier = c.carriers[0]
    run = carrier.run

    def away_after_the_first(script, keys, arguments):
        """The first words are said; before that returns, a caller saves others, and Redis is away again."""
        answer = run(script, keys, arguments)
        if script == "announce" and carrier.run is away_after_the_first:
            carrier.run = run
            c.carriers[0].cut()
            assert a.update_chart(make_chart(7, "Second words")).outcome == "local"
            c.carriers[0].heal()
        return answer

    carrier.run = away_after_the_first
    for _ in range(20):  # the other node only listens: what it holds then, it was told
        a.listen()
        b.listen()
        c.clock.advance(0.1)

    assert a.store.revision(7) == 2
    assert b.store.revision(7) == 2


def test_a_worker_that_finds_redis_away_late_does_not_undo_that_the_listener_is_back(cluster, make_chart):
    c = cluster(2)
    c.settle(5)
    replica = c.nodes[0].replica
    c.nodes[1].update_chart(make_chart(7))
    c.carriers[0].arrived.clear()
    c.clock.advance(1.0)
    c.nodes[1].listen()
    while c.nodes[0].listen():  # a gap, and a digest that differs
        pass
    tell = replica.coordinator.tell

    def timed_out(node_id, event):
        """What the worker asked is not answered; before it notices, the listener has lost and found Redis."""
        replica.coordinator.tell = tell
        c.carriers[0].blink()
        while not replica.coordinator.connected or not c.carriers[0].channels:
            c.nodes[0].listen()
        raise CarrierAway("no answer in time")

    replica.coordinator.tell = timed_out
    c.nodes[0].work()

    assert replica.coordinator.tell == tell, "it has asked"
    assert not replica.view.away
    c.settle(5)
    assert c.agree()


def test_a_worker_that_asks_for_its_batch_and_finds_redis_away_late_does_not_undo_that_either(cluster, make_chart):
    c = cluster(2)
    c.settle(5)
    c.charts.save(make_chart(7))
    c.nodes[1].chart_changed(7)  # the other node is not told yet, and has to ask for it
    replica = c.nodes[0].replica
    batch = replica.batches.begin("rebuild")
    tell = replica.coordinator.tell

    def timed_out(node_id, event):
        """As above."""
        replica.coordinator.tell = tell
        c.carriers[0].blink()
        while not replica.coordinator.connected or not c.carriers[0].channels:
            c.nodes[0].listen()
        raise CarrierAway("no answer in time")

    replica.coordinator.tell = timed_out
    c.carriers[0].arrived.clear()
    while replica.coordinator.tell is timed_out:
        c.nodes[1].listen()
        c.nodes[0].work()
        if replica.coordinator.tell is timed_out:
            c.nodes[0].listen()
        c.clock.advance(0.1)

    assert not replica.view.away
    while not batch.finished.is_set():
        c.turn()
        c.clock.advance(0.1)
    assert sum(node.context.metrics["embeddings"] for node in c.nodes) == 1, (
        "who was not asked after all is asked again"
    )


def test_whoever_waits_for_a_batch_that_fails_finds_what_it_failed_with_and_may_begin_another(
    cluster, make_chart, monkeypatch
):
    c = cluster(1)
    c.settle(5)
    node = c.nodes[0]
    c.charts.save(make_chart(7))
    monkeypatch.setattr(node.embedder, "_encode", lambda batch: 1 / 0)
    batch = node.replica.batches.begin("rebuild")
    finish = batch.finished.set
    found = []

    def finish_and_look():
        finish()
        found.append((batch.error, node.replica.batches.present))

    batch.finished.set = finish_and_look
    while not batch.finished.is_set():
        c.turn()

    ((error, left),) = found
    assert isinstance(error.__cause__, ZeroDivisionError)
    assert left is None
    monkeypatch.undo()
    assert node.rebuild().outcome == "published"


def test_a_rebuild_that_meets_the_stop_of_its_node_ends_too(cluster, make_chart):
    c = cluster(1)
    c.charts.save(make_chart(7))
    node = c.nodes[0]
    take_lease = node.coordinator.lease.take
    stopping = threading.Thread(target=node.stop)

    def stopped_meanwhile(**arguments):
        stopping.start()
        node.replica.threads.stopping.wait(10)
        return take_lease(**arguments)

    node.coordinator.lease.take = stopped_meanwhile
    batch = node.replica.batches.begin("rebuild")
    stopping.join(10)
    assert batch.finished.is_set()
    assert batch.result.outcome == "cancelled"
    assert "vector:batch:in_progress" not in c.redis.held()
    assert node.rebuild().outcome == "cancelled"


def test_who_sees_late_that_nothing_is_owed_any_more_defers_nobody_by_looking(cluster, make_chart):
    c = cluster(2)
    c.settle(5)
    epoch = c.redis.held()["vector:batch:epoch"]
    late = c.nodes[1].replica
    late.view.saw(late.view.flags._replace(owed=True))  # by a heartbeat from before the rebuild ended
    commands = []
    run = c.carriers[1].run

    def run_and_look(script, keys, arguments):
        answer = run(script, keys, arguments)
        commands.append(script)
        assert "vector:batch:in_progress" not in c.redis.held()
        return answer

    c.carriers[1].run = run_and_look
    c.nodes[1].work()

    assert "take_lease" in commands
    assert c.redis.held()["vector:batch:epoch"] == epoch


def test_a_change_that_was_left_to_a_batch_which_ends_while_it_is_saved_is_not_waited_for(cluster, make_chart):
    c = cluster(2)
    c.settle(5)
    batch = c.nodes[1].replica.batches.begin("rebuild")
    save = c.charts.save

    def save_late(chart):
        c.charts.save = save
        while not batch.finished.is_set():
            c.turn()
        c.turn()
        return save(chart)

    c.charts.save = save_late
    assert c.nodes[0].update_chart(make_chart(7)).outcome == "deferred"
    c.settle(2)

    assert [node.store.revision(7) for node in c.nodes] == [1, 1]


def test_what_came_just_before_it_was_deferred_is_not_waited_for(cluster, make_chart):
    c = cluster(2)
    c.settle(5)
    c.nodes[0].update_chart(make_chart(7))
    c.charts.save(make_chart(8))  # nobody is told: something else is missing all along
    c.settle(2)
    batches = c.nodes[1].context.metrics["batches"]

    c.nodes[1].replica.changes.defer(7, 1)  # a caller that was told "deferred" just before the record arrived
    c.settle(20)

    assert c.nodes[1].context.metrics["batches"] == batches
    assert len(c.nodes[1].replica.backlog) == 1


def test_a_change_that_changes_again_is_not_waited_for_any_longer(cluster, make_chart):
    c = cluster(2, Policy(adopt_after=10))
    c.settle(5)
    for number in range(8):  # by somebody who tells nobody
        c.charts.save(make_chart(7, f"Words {number}"))
        c.settle(3)

    assert c.nodes[0].store.revision(7) is not None


def test_without_tombstones_too_a_deletion_ends_the_wait_for_a_chart(cluster, make_chart):
    c = cluster(2, Policy(ordered=False, adopt_after=5))
    c.settle(5)
    c.charts.save(make_chart(7))
    c.settle(2)
    c.charts.delete(7)
    batches = sum(node.context.metrics["batches"] for node in c.nodes)
    c.settle(60)

    assert sum(node.context.metrics["batches"] for node in c.nodes) == batches
    assert not any(node.replica.unsettled for node in c.nodes)


def test_a_lease_that_could_not_be_given_back_is_given_back_later_whatever_happens_meanwhile(cluster):
    c = cluster(1)
    c.fill(2)
    c.settle(5)
    node = c.nodes[0]
    batch = node.replica.batches.begin("rebuild")
    node.work()
    c.redis.stop()
    while not batch.finished.is_set():
        node.work()
    assert batch.unreleased
    assert node.rebuild().outcome == "local"
    c.redis.start()
    c.settle(1)

    assert "vector:batch:in_progress" not in c.redis.held()


def test_a_short_lease_outlasts_the_wait_for_a_node_that_does_not_come_back(cluster, make_chart):
    c = cluster(3, Policy(batch_timeout=2, adopt_after=5))
    c.fill(2)
    c.settle(5)
    c.redis.stop()
    c.settle(1)
    c.kill(2)
    c.charts.save(make_chart(1, "Changed meanwhile"))
    c.redis.start(keep_data=False)

    assert c.run_until_agreed(20) is not None


def test_a_batch_long_after_an_outage_waits_for_nobody_who_did_not_come_back(cluster, make_chart):
    c = cluster(3)
    c.fill(2)
    c.settle(5)
    c.redis.stop()
    c.settle(1)
    c.kill(2)
    c.redis.start()
    c.settle(60)

    c.charts.save(make_chart(1, "Other words"))
    began = c.clock.now()
    batch = c.nodes[0].replica.batches.begin("rebuild")
    while not batch.finished.is_set():
        c.turn()
        c.clock.advance(0.1)
    assert c.clock.now() - began < c.policy.heartbeat_interval
