"""What the threads of a replica see of each other's steps: the order of what is written is meaning."""

from __future__ import annotations

import pytest

from copilotlab import Coordinator, Policy
from copilotlab.digest import as_text as as_text_of
from copilotlab.lab.simulated_lab import SimulatedLab, simulated_chart
from copilotlab.monitoring.happenings import BatchBegan
from copilotlab.protocol import follower as follower_module
from copilotlab.protocol.events import BatchStarted
from copilotlab.protocol.sync import Sync


@pytest.fixture
def lab():
    made = SimulatedLab(2)
    made.charts.save(simulated_chart(1))
    made.run(5.0)
    return made


class LooksMeanwhile:
    """A follower whose next look is taken by another thread, just after what the last one found was read."""

    def __init__(self, follower):
        self.follower = follower
        self.looked = False

    def __getattr__(self, name):
        value = getattr(self.follower, name)
        if name == "last_look" and not self.looked:
            self.looked = True
            self.follower.look()
        return value


def test_a_look_that_ends_while_a_heartbeat_is_weighed_makes_nobody_a_stranger(lab):
    one, other = lab.nodes
    lab.charts.save(simulated_chart(2))  # nobody is told
    lab.clock.advance(1.0)
    other.work()
    other.listen()  # the other has read it, and says so in two heartbeats
    one.listen()
    while one.listen():
        pass
    assert one.replica.follower.read_to == 1, "this one has not looked yet"
    one.replica.hearing.follower = looks = LooksMeanwhile(one.replica.follower)
    lab.clock.advance(1.0)
    other.listen()
    while one.listen():
        pass

    assert (looks.looked, looks.read_to) == (True, 2)
    assert "n1" not in one.replica.hearing.strangers
    assert one.context.metrics["dropped_copy"] == 0


def test_a_node_that_slept_knows_its_peers_for_silent_before_it_counts_as_awake(lab, monkeypatch):
    replica = lab.nodes[0].replica
    awake = []
    went_silent = replica.peers.went_silent

    def note_and_go_silent(now):
        awake.append(not replica.view.slept(lab.clock.now()))
        went_silent(now)

    monkeypatch.setattr(replica.peers, "went_silent", note_and_go_silent)
    lab.clock.advance(400.0)
    lab.nodes[0].listen()

    assert awake == [False], "the worker waits while it sleeps: it must not ask by what was known before"
    assert lab.nodes[0].context.metrics["sleeps"] == 1


def test_what_a_node_tells_of_the_repository_is_whole_at_every_moment_of_a_look(lab, monkeypatch):
    follower = lab.nodes[0].replica.follower
    known, told = follower.catalogue, []
    assert known[0] == 1

    def as_text(digest):
        if digest:
            told.append(follower.catalogue)  # as the listening thread, which says it in a heartbeat
        return as_text_of(digest)

    monkeypatch.setattr(follower_module, "as_text", as_text)
    follower.look()
    follower.start_over()
    follower.look()

    assert told == [known, known]


def test_a_request_to_compare_all_is_not_lost_to_a_look_that_is_asked_for_at_the_same_time(lab):
    class Interrupted(Sync):
        """Between reading and writing what is asked for, another thread asks for the whole catalogue."""

        @property
        def _whole(self):
            value = self.__dict__.get("whole", False)
            if self.__dict__.pop("interrupt", False):
                self.soon(whole=True)
            return value

        @_whole.setter
        def _whole(self, value):
            self.__dict__["whole"] = value

    replica = lab.nodes[0].replica
    looks = Interrupted(replica.context, replica.follower, replica.backlog)
    looks.interrupt = True
    looks.soon()
    if looks.__dict__.get("interrupt"):
        looks.soon(whole=True)

    assert looks.whole
    looks.step(lab.clock.now())
    assert replica.follower.compared


def test_a_node_without_epochs_hears_every_batch_whatever_epoch_another_tells():
    lab = SimulatedLab(1, Policy(fenced=False))
    node = lab.nodes[0]
    other = Coordinator(
        lab.redis.carrier(),
        node_id="other",
        fingerprint=node.embedder.fingerprint,
        dim=node.embedder.dim,
        identity=lab.charts.identity,
        policy=lab.policy,
        clock=lab.clock,
    )
    other.connect()
    for batch, epoch in (("written", 0), ("fenced", 5), ("written again", 0), ("fenced again", 4)):
        other.publish(BatchStarted(batch, epoch))
        node.listen()
        node.listen()
        assert node.replica.view.accepted[0] == batch
    assert node.context.metrics["dropped_epoch"] == 0


def test_a_batch_is_in_the_journal_before_anybody_can_drive_it(lab):
    node = lab.nodes[0]
    seen = []
    node.listen_to(lambda happening: isinstance(happening, BatchBegan) and seen.append(node.replica.batches.present))
    batch = node.replica.batches.begin("rebuild")
    assert seen == [None]
    assert node.replica.batches.present is batch
    assert node.replica.view.accepts(batch.name, batch.epoch)


def test_a_node_that_leaves_in_order_is_missed_by_nobody_and_one_that_dies_is(lab):
    one, other = lab.nodes
    third = lab.add_node()
    lab.run(5.0)
    assert one.status()["peers"] == 2
    lab.carriers[1].cut()  # without a word
    third.stop()
    lab.nodes.remove(third)
    lab.run(12.0)
    assert [peer.node_id for peer in one.replica.peers.known()] == [other.node_id]
    (silent,) = [alert for alert in one.alerts.active() if alert.name == "node_silent"]
    assert silent.evidence["nodes"] == other.node_id
