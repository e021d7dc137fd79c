"""A peer that speaks the wire and says what is not so: nobody crashes, waits for it for ever, or believes too much."""

from __future__ import annotations

import secrets

import msgspec
import numpy as np
import pytest

from copilotlab import Node, Policy
from copilotlab.protocol import events
from copilotlab.protocol.keys import BULK
from copilotlab.store import Manifest

HUGE = events.LARGEST
NOTHING = "0" * 32


class Liar:
    """One that says what it likes, on any channel."""

    def __init__(self, cluster, node_id="liar"):
        self.cluster = cluster
        self.node_id = node_id
        self.fingerprint = cluster.embedder.fingerprint
        self.identity = cluster.charts.identity
        self.number = 0
        self.carrier = cluster.redis.carrier()
        self.carrier.subscribe([f"{events.INBOX}:{node_id}"])

    def say(self, event, *, to=None):
        self.number += to is None
        envelope = events.Envelope(self.node_id, self.fingerprint, 1, 0 if to else self.number, event)
        channel = f"{events.INBOX}:{to}" if to else events.CHANNEL_OF[type(event)]
        self.carrier.publish(channel, events.encode(envelope, self.identity))

    def heartbeat(self, *, digest="f" * 32, complete_to=HUGE, batch=""):
        self.say(events.Heartbeat(digest, HUGE, complete_to, batch, False, 0, NOTHING))

    def questions(self):
        """What it is asked, each with who asks."""
        while (message := self.carrier.receive(0.0)) is not None:
            envelope = events.decode(message.payload, fingerprint=self.fingerprint, identity=self.identity)
            yield envelope.source, envelope.event

    def page_of(self, chart_ids, *, more):
        count = len(chart_ids)
        manifest = Manifest(
            np.array(chart_ids, dtype=np.int64),
            np.full(count, HUGE, dtype=np.int64),
            np.zeros((count, 16), dtype=np.uint8),
            np.zeros((count, 16), dtype=np.uint8),
            "",
        )
        page = events.manifest_page(self.fingerprint, manifest, after=-1)
        return msgspec.structs.replace(page, more=more)

    def put(self, bulk, payload):
        self.carrier.set(f"{BULK}:{bulk}", payload)


def living_beside(c, liar, seconds, answer=None):
    """The nodes live, and the liar beats all along."""
    until = c.clock.now() + seconds
    while c.clock.now() < until:
        liar.heartbeat()
        c.settle(1)
        for source, question in liar.questions():
            if answer is not None:
                answer(source, question)


@pytest.fixture
def c(cluster):
    c = cluster(2, Policy(adopt_after=5))
    c.fill(4)
    c.settle(5)
    return c


def test_a_peer_that_claims_to_have_all_and_never_answers_does_not_keep_a_change_from_being_made(c, make_chart):
    liar = Liar(c)
    living_beside(c, liar, 5)
    c.charts.save(make_chart(7))  # nobody is told
    before = c.embeddings()
    living_beside(c, liar, 30)

    assert c.agree()
    assert c.embeddings() == before + 1


def test_a_peer_that_never_says_what_it_holds_does_not_keep_others_from_being_asked(cluster, make_chart):
    c = cluster(2)
    c.fill(4)
    c.settle(5)
    liar = Liar(c, "mute")
    for _ in range(20):
        liar.number += 1  # something of it was missed, again and again
        liar.say(events.ChartDeleted(99, 1))
        c.settle(0.5)
        if liar.number == 4:
            c.nodes[0].update_chart(make_chart(1, "Other words"))
            c.carriers[1].arrived.clear()  # lost: a gap tells, and the repository

    assert c.nodes[1].context.metrics["gaps"] >= 20
    assert c.agree()


def test_a_manifest_that_never_ends_ends(c):
    liar = Liar(c)

    def answer(source, question):
        if isinstance(question, events.ManifestWanted):
            liar.put(question.bulk, events.encode(liar.page_of([5, 6, 7], more=True), liar.identity))
        else:
            liar.put(question.bulk, events.encode(events.page_of(liar.fingerprint, []), liar.identity))
        liar.say(events.BulkReady(question.bulk), to=source)

    living_beside(c, liar, 10, answer)
    assert c.nodes[0].context.metrics["dropped_malformed"] > 0
    living_beside(c, liar, 10)  # now it is silent when asked
    c.settle(10)
    assert c.agree()
    assert not any(node.replica.transfers.peer for node in c.nodes)


def test_pages_of_records_that_never_end_end(c):
    liar, asked = Liar(c), []

    def answer(source, question):
        if isinstance(question, events.ManifestWanted):
            liar.put(question.bulk, events.encode(liar.page_of([5, 6, 7], more=False), liar.identity))
        else:
            asked.append(question)
            page = events.page_of(liar.fingerprint, [])
            liar.put(question.bulk, events.encode(msgspec.structs.replace(page, more=True), liar.identity))
        liar.say(events.BulkReady(question.bulk), to=source)

    living_beside(c, liar, 10, answer)
    assert asked
    assert c.nodes[0].context.metrics["dropped_malformed"] > 0
    living_beside(c, liar, 10)
    c.settle(10)
    assert c.agree()
    assert not any(node.replica.transfers.peer for node in c.nodes)


@pytest.mark.parametrize("epoch", [0, 1, 1_000, HUGE])
def test_a_batch_of_an_epoch_that_nobody_took_is_not_obeyed(c, epoch):
    liar = Liar(c)
    before = [node.store.digest for node in c.nodes]
    liar.say(events.BatchStarted("forged", epoch))
    liar.say(events.BatchFinished("forged", epoch, 0, HUGE, True, b""))
    c.deliver()

    assert [node.store.digest for node in c.nodes] == before
    assert all(node.context.metrics["dropped_epoch"] == 2 for node in c.nodes)
    c.settle(10)
    assert c.agree()


def test_what_was_never_asked_is_not_fetched(c):
    liar = Liar(c)
    bulk = secrets.token_hex(16)
    liar.put(bulk, b"\x02" + bytes(1_000))
    fetched = [node.context.metrics["bytes_fetched"] for node in c.nodes]
    for node in c.nodes:
        liar.say(events.BulkReady(bulk), to=node.node_id)
    c.deliver()

    assert [node.context.metrics["bytes_fetched"] for node in c.nodes] == fetched


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        (b"", None),
        (b"garbage", "version"),
        (b"\x01" + bytes(100), "version"),
        (bytes(events.MAX_BULK_BYTES + 100), "oversized"),
    ],
)
def test_a_chunk_that_is_none_is_counted_and_dropped(c, payload, kind):
    lease = c.nodes[0].coordinator.lease.take()
    liar = Liar(c)
    bulk = secrets.token_hex(16)
    liar.put(bulk, payload)
    liar.say(events.BatchStarted("b", lease.epoch))
    liar.say(events.BatchChunkStored("b", lease.epoch, bulk))
    c.deliver()

    for node in c.nodes:
        assert node.context.metrics["bytes_fetched"] <= 10_000 + events.MAX_BULK_BYTES + 1
        assert kind is None or node.context.metrics[f"dropped_{kind}"] == 1
    c.nodes[0].coordinator.lease.release(lease, recovered=False)
    c.settle(10)
    assert c.agree()


def test_two_nodes_of_one_name_are_told_of_and_agree_through_the_repository(c, make_chart):
    first = c.nodes[0]
    carrier = c.redis.carrier()
    namesake = Node(c.charts, c.embedder, carrier, policy=c.policy, node_id=first.node_id, clock=c.clock)
    namesake.connect()
    c.nodes.append(namesake)
    c.carriers.append(carrier)

    first.update_chart(make_chart(3, "Said under a name that two have"))
    c.settle(10)

    assert c.agree()
    assert len(namesake.store) == 4
    for node in (first, namesake):
        told = [entry.detail for entry in node.journal.entries() if entry.event == "dropped_namesake"]
        assert 0 < len(told) <= node.context.metrics["dropped_namesake"], "all are counted, some are written down"
        assert f"another node is called {first.node_id!r} too" in told[0]


def test_a_flood_of_questions_is_answered_and_the_node_beats_all_along(c):
    liar = Liar(c)
    for number in range(50):
        ids = range(number * events.MAX_RECORDS, (number + 1) * events.MAX_RECORDS)
        liar.say(events.RecordsWanted(secrets.token_hex(16), events.pack_ids(ids)), to="n0")
    beats = c.nodes[1].context.metrics["received"]
    c.clock.advance(1.0)
    for _ in range(60):
        c.nodes[0].listen()
    c.nodes[1].listen()

    assert c.nodes[1].context.metrics["received"] > beats, "its heartbeat went out before the questions were answered"
    assert sum(1 for _ in liar.questions()) == 50
    assert sum(map(len, c.redis.held().values())) < 50_000
    c.settle(10)
    assert c.agree()


def test_a_flood_of_names_is_forgotten_again(c):
    liar = Liar(c)
    for number in range(3_000):
        liar.node_id, liar.number = f"name {number}", number % 3
        liar.say(events.ChartDeleted(99, 1))
    c.deliver()
    replica = c.nodes[0].replica

    assert len(replica.peers) <= 1_000
    c.settle(10)
    assert not replica.view.suspects()
    assert c.agree()


def test_a_node_of_an_older_version_is_not_heard_and_all_converges(c, make_chart):
    liar = Liar(c, "older")
    old = bytes([events.WIRE_VERSION - 1])
    chart_id = 7
    c.charts.save(make_chart(chart_id))  # on the older node, which tells in its own words
    for channel in (events.UPDATES, events.BATCHES, events.DELETIONS, events.HEARTBEATS):
        liar.carrier.publish(channel, old + b"\x95\xa5older what it says, in a form that nobody here knows")
    c.settle(20)

    assert all(node.context.metrics["dropped_version"] == 4 for node in c.nodes)
    assert c.agree()
    assert all(node.store.revision(chart_id) == c.charts.revision for node in c.nodes)
