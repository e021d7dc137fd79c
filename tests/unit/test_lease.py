"""The lease of the written design and the fenced one, side by side on a simulated server."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from copilotlab import Policy
from copilotlab.charts import Identity
from copilotlab.clock import ManualClock
from copilotlab.lab.simulated_redis import SimulatedRedis
from copilotlab.protocol import events
from copilotlab.protocol.carrier import CarrierAway, CarrierRefused
from copilotlab.protocol.context import Context
from copilotlab.protocol.keys import BATCH_IN_PROGRESS, BULK, EPOCH, WAS_DOWN
from copilotlab.protocol.lease import MAX_EPOCH, FencedLease, Grant, WrittenLease, lease_of
from copilotlab.protocol.link import Link
from copilotlab.protocol.pages import LEAST_PAGE_BYTES, PageRefused
from copilotlab.store import Record

FENCED, WRITTEN = Policy(batch_timeout=60), Policy.seed(batch_timeout=60)
BOTH = pytest.mark.parametrize("policy", [FENCED, WRITTEN], ids=["fenced", "written"])
PAGE = "0" * 32
CATALOGUE = Identity("1" * 32, b"key")


class Hearer:
    """The server, and who hears what is said under its lease."""

    def __init__(self):
        self.clock = ManualClock(1_000.0)
        self.server = SimulatedRedis(self.clock)
        self.ear = self.server.carrier()
        self.ear.subscribe([events.BATCHES])

    def lease(self, node_id, policy, *, identity=CATALOGUE, fingerprint="hash:8"):
        """A node's side of the lease, connected."""
        context = Context.of(node_id, policy=policy, clock=self.clock)
        carrier = self.server.carrier()
        link = Link(carrier, context, [], fingerprint=fingerprint, identity=identity, scripted=False)
        assert link.connect(lambda: None)
        return lease_of(link)

    def heard(self):
        """The batches of which something was said since."""
        said = [
            events.decode(message.payload, fingerprint="hash:8", identity=CATALOGUE) for message in self.ear.arrived
        ]
        self.ear.arrived.clear()
        return [envelope.event.batch for envelope in said]

    def key(self, name):
        return self.server.held().get(name)


@pytest.fixture
def world():
    return Hearer()


def records(count=1, dim=8):
    return [Record.of(i, 1, bytes([i]) * 16, np.full(dim, dim**-0.5, np.float32)) for i in range(count)]


def test_the_policy_chooses_the_lease(world):
    assert isinstance(world.lease("a", FENCED), FencedLease)
    assert isinstance(world.lease("a", WRITTEN), WrittenLease)
    assert isinstance(world.lease("a", Policy(fenced=False)), WrittenLease)


@BOTH
def test_one_node_at_a_time_has_the_lease(world, policy):
    a, b = world.lease("a", policy), world.lease("b", policy)
    grant = a.take()
    assert grant is not None
    assert b.take() is None
    assert a.take() is None, "nor does its holder get another"
    a.release(grant, recovered=False)
    assert world.key(BATCH_IN_PROGRESS) is None
    assert b.take() is not None


@BOTH
def test_the_holder_is_told_from_the_value_in_redis(world, policy):
    a, b = world.lease("a b c", policy), world.lease("b", policy)
    grant = a.take()
    assert world.key(BATCH_IN_PROGRESS) == grant.value.encode()
    assert b.holder(grant.value.encode()) == "a b c", "spaces of a name and all"
    assert b.holder(b"") is None


def test_a_fenced_lease_of_another_model_or_catalogue_or_garbage_has_no_holder(world):
    b = world.lease("b", FENCED)
    for other in (
        world.lease("a", FENCED, fingerprint="hash:9"),
        world.lease("a", FENCED, identity=Identity("2" * 32, b"k")),
    ):
        grant = other.take()
        assert other.holder(grant.value.encode()) == "a"
        assert b.holder(grant.value.encode()) is None
        other.release(grant, recovered=True)
    for garbage in (b"a", b"\xff\xfe", b"5", b"5 x y", b"   ", b"1 2 3 4"):
        assert b.holder(garbage) is None
    assert world.lease("b", WRITTEN).holder(b"\xff") == "\ufffd", "as written, a value is a name"


def test_a_fenced_lease_has_an_epoch_that_grows_and_a_written_one_has_none(world):
    a, b = world.lease("a", FENCED), world.lease("b", FENCED)
    epochs = []
    for lease in (a, b, a):
        grant = lease.take()
        epochs.append((grant.epoch, lease.epoch))
        lease.release(grant, recovered=False)
    assert epochs == [(1, 1), (2, 2), (3, 3)]
    assert world.lease("c", WRITTEN).take() == Grant("c", 0, True)


def test_an_epoch_grows_beyond_what_redis_knows(world):
    a = world.lease("a", FENCED)
    a.learn_epoch(b"41")
    world.server.forget()
    assert a.take().epoch == 42
    assert world.key(EPOCH) == b"42"


@pytest.mark.parametrize(
    "told", [b"", b"-3", b"inf", b"nan", b"1e3", b"4.5", b"\xff", "3٣".encode(), "²".encode(), b"9" * 30]
)
def test_what_is_no_count_of_epochs_is_nobodys(world, told):
    a = world.lease("a", FENCED)
    a.learn_epoch(b"3")
    a.learn_epoch(told)
    a.learn_epoch(str(MAX_EPOCH).encode())
    assert a.epoch == 3
    a.learn_epoch(b"2")
    assert a.epoch == 3, "it does not fall"
    a.learn_epoch(str(MAX_EPOCH - 1).encode())
    assert a.epoch == MAX_EPOCH - 1


def test_an_epoch_is_current_if_redis_knows_of_it(world):
    a, b = world.lease("a", FENCED), world.lease("b", FENCED)
    a.take()
    assert b.epoch == 0
    assert b.is_current(1), "Redis is asked"
    assert b.epoch == 1
    assert not b.is_current(2)
    assert not b.is_current(0), "a lease without an epoch is none of ours"
    b._link.carrier.cut()
    assert b.is_current(1), "what is known need not be asked for"
    with pytest.raises(CarrierAway):
        b.is_current(2)
    assert world.lease("c", WRITTEN).is_current(7), "as written, every batch is heard"


@pytest.mark.parametrize(("renews", "left"), [(True, 60.0), (False, 20.0)])
def test_only_a_renewal_makes_a_fenced_lease_last_and_its_holder_knows_when_it_has_run_out(world, renews, left):
    a = world.lease("a", Policy(batch_timeout=60, renew_lease=renews, redis_timeout=30, heartbeat_interval=30))
    assert a.has_run_out(), "it has none yet"
    grant = a.take()
    assert not a.has_run_out()
    world.clock.advance(40.0)
    assert a.keep(grant) == 0
    world.clock.advance(left - 0.1)
    assert not a.has_run_out()
    assert world.key(BATCH_IN_PROGRESS) == grant.value.encode()
    world.clock.advance(0.2)
    assert a.has_run_out(), "without a word from Redis"
    assert world.key(BATCH_IN_PROGRESS) is None, "which says so too"


@pytest.mark.parametrize(("renews", "lasts"), [(True, True), (False, False)])
def test_a_written_lease_lasts_for_as_long_as_redis_says(world, renews, lasts):
    a = world.lease("a", Policy.seed(batch_timeout=60, renew_lease=renews))
    grant = a.take()
    world.clock.advance(40.0)
    a.keep(grant, events.BatchStarted("mine", 0))
    world.clock.advance(40.0)
    assert (world.key(BATCH_IN_PROGRESS) is not None) == lasts
    assert not a.has_run_out(), "as written, a holder never knows"


@BOTH
def test_what_is_said_under_the_lease_is_heard_and_numbered(world, policy):
    a = world.lease("a", policy)
    grant = a.take()
    assert a.keep(grant, events.BatchStarted("mine", grant.epoch)) == 1
    assert world.heard() == ["mine"]
    assert a._link.said == 1
    assert a._link.context.metrics["published"] == 1
    assert a._link.context.metrics["bytes_published"] > 0


@BOTH
def test_a_chunk_is_put_where_the_event_says(world, policy):
    a = world.lease("a", policy)
    grant = a.take()
    assert a.keep(grant, events.BatchChunkStored("mine", grant.epoch, PAGE), records(3)) == 1
    page = world.key(f"{BULK}:{PAGE}")
    found, more = events.decode_record_page(page, fingerprint="hash:8", dim=8, identity=CATALOGUE)
    assert ([record.chart_id for record in found], more) == ([0, 1, 2], False)
    world.clock.advance(policy.bulk_ttl + 0.1)
    assert world.key(f"{BULK}:{PAGE}") is None


def test_who_has_lost_a_fenced_lease_says_nothing_and_deletes_nothing(world):
    a, b = world.lease("a", FENCED), world.lease("b", FENCED)
    lost = a.take()
    world.server.expire(BATCH_IN_PROGRESS)
    held = b.take()
    said = a._link.context.metrics["published"]

    assert a.keep(lost) is None
    assert a.keep(lost, events.BatchStarted("a's", lost.epoch)) is None
    assert a.keep(lost, events.BatchChunkStored("a's", lost.epoch, PAGE), records()) is None
    a.release(lost, recovered=True)

    assert world.heard() == []
    assert world.key(f"{BULK}:{PAGE}") is None
    assert world.key(BATCH_IN_PROGRESS) == held.value.encode()
    assert world.key(WAS_DOWN) is not None, "nor is nothing owed any more"
    assert a._link.context.metrics["published"] == said
    assert b.keep(held, events.BatchStarted("b's", held.epoch)) == 1


@pytest.mark.parametrize("renews", [True, False])
def test_who_has_lost_a_written_lease_says_it_all_the_same_and_deletes_whosever_it_is(world, renews):
    policy = Policy.seed(batch_timeout=60, renew_lease=renews)
    a, b = world.lease("a", policy), world.lease("b", policy)
    lost = a.take()
    world.server.expire(BATCH_IN_PROGRESS)
    b.take()
    world.server.carrier().set(WAS_DOWN, b"true")

    assert a.keep(lost) == 0
    assert a.keep(lost, events.BatchStarted("a's", 0)) == 1
    assert a.keep(lost, events.BatchChunkStored("a's", 0, PAGE), records()) == 1
    assert world.heard() == ["a's", "a's"]
    assert world.key(f"{BULK}:{PAGE}") is not None
    assert world.key(BATCH_IN_PROGRESS) == b"b"

    a.release(lost, recovered=False)
    assert (world.key(BATCH_IN_PROGRESS), world.key(WAS_DOWN)) == (None, b"true")
    a.release(lost, recovered=True)
    assert world.key(WAS_DOWN) is None


@pytest.mark.parametrize(("recovered", "owed"), [(True, False), (False, True)])
def test_only_a_whole_rebuild_ends_what_was_owed_before(world, recovered, owed):
    world.server.carrier().set(WAS_DOWN, b"true")
    a = world.lease("a", FENCED)
    grant = a.take()
    assert grant.owed
    a.release(grant, recovered=recovered)
    assert (world.key(WAS_DOWN) is not None) == owed


def test_what_is_owed_only_since_the_lease_was_taken_ends_with_it(world):
    a = world.lease("a", FENCED)
    grant = a.take()
    assert not grant.owed
    assert world.key(WAS_DOWN) == grant.value.encode(), "if its holder dies, any node sees that"
    a.release(grant, recovered=False)
    assert world.key(WAS_DOWN) is None


def test_who_wants_it_only_where_a_rebuild_is_owed_does_not_get_it_else(world):
    a = world.lease("a", FENCED)
    assert a.take(if_owed=True) is None
    assert world.key(EPOCH) is None
    world.server.carrier().set(WAS_DOWN, b"true")
    assert a.take(if_owed=True).owed
    assert world.lease("b", WRITTEN).take(if_owed=True) is None, "that is held"
    world.server.forget()
    assert world.lease("b", WRITTEN).take(if_owed=True) is not None, "as written, regardless"


def test_a_fenced_lease_whose_holder_is_gone_is_taken_over_and_says_so(world):
    a, b = world.lease("a", FENCED), world.lease("b", FENCED)
    assert a.take().left_by == ""
    assert b.take() is None
    world.clock.advance(a._link.lives_for + 0.1)  # no sign of life of a
    grant = b.take()
    assert (grant.epoch, grant.left_by) == (2, "a")

    again = world.lease("b", FENCED).take()  # the same node in a later session: the earlier one is gone
    assert (again.epoch, again.left_by) == (3, "b")
    assert b.keep(grant) is None


def test_garbage_in_the_key_keeps_no_fenced_lease_away_and_is_nobodys(world):
    for garbage in (b"garbage", b"\xff\x00", b"5 6", b"x 1 2 3"):
        a = world.lease("a", FENCED)
        a._link.carrier.set(BATCH_IN_PROGRESS, garbage)
        grant = a.take()
        assert grant is not None
        assert not grant.left_by, "it was no node's"
        a.release(grant, recovered=True)
    a._link.carrier.set(EPOCH, b"garbage")
    assert a.take().epoch == 5


@BOTH
def test_a_page_that_is_refused_was_not_said_and_its_number_is_not_used_up(world, policy):
    a = world.lease("a", policy)
    grant = a.take()
    many = records(200, dim=64)
    run = a._link.carrier.run

    def refuse(script, keys, arguments):
        if len(arguments[2]) > LEAST_PAGE_BYTES:
            raise CarrierRefused("Protocol error: invalid bulk length")
        return run(script, keys, arguments)

    a._link.carrier.run = refuse
    before = a._link.pages.bytes
    with pytest.raises(PageRefused):
        a.keep(grant, events.BatchChunkStored("mine", grant.epoch, PAGE), many)
    assert a._link.said == 0
    assert a._link.connected, "that is no outage"
    assert a._link.pages.bytes < before
    assert a.keep(grant, events.BatchChunkStored("mine", grant.epoch, PAGE), many[:2]) == 1
    assert a._link.said == 1


@BOTH
def test_without_redis_nothing_of_a_lease_waits(world, policy):
    a = world.lease("a", policy)
    grant = a.take()
    a._link.carrier.cut()
    calls = (
        a.take,
        lambda: a.release(grant, recovered=True),
        lambda: a.keep(grant),
        lambda: a.keep(grant, events.BatchStarted("mine", 0)),
    )
    for call in calls:
        with pytest.raises(CarrierAway):
            call()
    assert not a._link.connected
    a._link.carrier.ping = lambda: pytest.fail("it is known to be away")
    for call in calls:
        with pytest.raises(CarrierAway):
            call()


def test_as_written_a_batch_that_cannot_be_told_is_counted_and_waits_for_nobody_who_speaks(world):
    a = world.lease("a", WRITTEN)
    grant = a.take()
    a._link.carrier.cut()
    for _ in range(2):
        with pytest.raises(CarrierAway):
            a.keep(grant, events.BatchStarted("mine", 0))
    assert a._link.context.metrics["publish_failed"] == 2
    assert a._link.said == 1, "while Redis is known to be away, no number is used up"

    raised = threading.Event()

    def tell():
        with pytest.raises(CarrierAway):
            a.keep(grant, events.BatchStarted("mine", 0))
        raised.set()

    with a._link.speaking:  # by who waits for a Redis that does not answer
        threading.Thread(target=tell, daemon=True).start()
        assert raised.wait(10)


@pytest.mark.parametrize("policy", [FENCED, Policy(fenced=False), WRITTEN], ids=["fenced", "renewed", "written"])
def test_what_cannot_be_said_while_redis_is_away_uses_no_number_and_waits_for_nobody_who_speaks(world, policy):
    a = world.lease("a", policy)
    grant = a.take()
    a._link.lose(CarrierAway("gone"))
    said, raised = a._link.said, threading.Event()

    def tell():
        with pytest.raises(CarrierAway):
            a.keep(grant, events.BatchStarted("mine", grant.epoch))
        raised.set()

    with a._link.speaking:
        threading.Thread(target=tell, daemon=True).start()
        assert raised.wait(10)
    assert a._link.said == said
