"""One node's connection: what is asked of it, what it tells, and in what order."""

from __future__ import annotations

import threading

import pytest
import redis

from copilotlab import Coordinator, Policy
from copilotlab.charts import Identity
from copilotlab.clock import ManualClock
from copilotlab.lab.simulated_redis import SimulatedRedis
from copilotlab.monitoring.happenings import ConnectionBack, ConnectionLost, PageTurnedAway
from copilotlab.protocol import events
from copilotlab.protocol.carrier import CarrierAway, CarrierRefused
from copilotlab.protocol.context import Context
from copilotlab.protocol.link import Link
from copilotlab.protocol.pages import LEAST_PAGE_BYTES, PAGE_BYTES, PageRefused

CATALOGUE = Identity("1" * 32, b"key")
LIMIT = 30.0  # seconds for what is certain to come


@pytest.fixture
def clock():
    return ManualClock(1_000.0)


@pytest.fixture
def heard():
    return []


@pytest.fixture
def link(clock, heard):
    context = Context.of("a", namespace="one", policy=Policy(), clock=clock, listeners=(heard.append,))
    return Link(
        SimulatedRedis(clock).carrier(), context, ["one:x"], fingerprint="hash:8", identity=CATALOGUE, scripted=False
    )


def test_whoever_is_greeted_finds_the_subscription_there_and_the_connection_counts_only_after_that(link):
    seen = []
    assert link.connect(lambda: seen.append((link.carrier.channels, link.connected)))
    assert seen == [({"one:x"}, False)]
    assert link.connected


def test_a_greeting_that_fails_is_an_outage(link, heard):
    def greet():
        raise CarrierAway("gone again")

    assert not link.connect(greet)
    assert (link.state, link.reason) == ("away", "gone again")
    assert heard == [ConnectionLost("gone again", False)]


def test_before_it_is_connected_nothing_is_asked(link):
    with pytest.raises(CarrierAway, match="not connected to simulated"):
        link.ask(lambda: pytest.fail("it was asked"))
    with pytest.raises(CarrierAway):
        link.put(lambda: pytest.fail("it was asked"), 10)


def test_an_outage_is_told_once_and_its_end_with_its_length(link, heard, clock):
    link.connect(lambda: None)
    link.carrier.cut()
    for _ in range(3):
        with pytest.raises(CarrierAway):
            link.ask(link.carrier.ping)
    clock.advance(7.0)
    assert link.away_for == 7.0
    link.carrier.heal()
    assert link.probe(lambda: None)
    assert heard == [ConnectionLost("the simulated Redis is away", False), ConnectionBack(7.0)]
    assert (link.away_for, link.back_since, link.reason) == (0.0, 1_007.0, "")


def test_a_failure_of_another_kind_is_told_though_the_outage_goes_on(link, heard):
    link.connect(lambda: None)
    for error in (CarrierAway("gone"), CarrierAway("still"), CarrierRefused("no EVALSHA"), CarrierRefused("still")):
        link.lose(error)
    assert heard == [ConnectionLost("gone", False), ConnectionLost("no EVALSHA", True)]
    assert (link.state, link.reason) == ("refused", "still")


def test_a_first_connection_ends_no_outage(link, heard):
    link.connect(lambda: None)
    assert heard == []
    assert link.back_since == float("-inf")


def test_that_it_was_lost_is_told_before_it_is_told_that_it_is_back(link, clock):
    """Whoever follows by what is told whether it stands must end with how it is."""
    link.connect(lambda: None)
    order, prober = [], threading.Thread(target=lambda: link.probe(lambda: None), daemon=True)

    def dawdle(happening):
        if isinstance(happening, ConnectionLost):
            link.carrier.heal()
            clock.advance(60.0)
            prober.start()  # the listening thread finds it back at once
            prober.join(0.3)

    link.context.listeners.add(dawdle)
    link.context.listeners.add(lambda happening: order.append(type(happening)))
    link.carrier.cut()
    with pytest.raises(CarrierAway):
        link.ask(link.carrier.ping)
    prober.join(LIMIT)

    assert order == [ConnectionLost, ConnectionBack]


def test_a_closed_link_says_why_it_is_away(link):
    link.connect(lambda: None)
    link.close()
    assert not link.connected
    with pytest.raises(CarrierAway, match="closed"):
        link.check()


def test_a_page_that_is_refused_for_its_size_is_no_outage_and_the_next_one_is_smaller(link, heard):
    link.connect(lambda: None)

    def refuse():
        raise CarrierAway("away: Protocol error: invalid bulk length")

    with pytest.raises(PageRefused, match=r"a page of 400,000 bytes at simulated"):
        link.put(refuse, 400_000)
    assert link.connected
    assert link.pages.bytes == 200_000
    (told,) = heard
    assert isinstance(told, PageTurnedAway)
    assert told.bound == 200_000


def test_a_line_that_is_cut_at_a_page_has_a_second_try_and_then_a_smaller_one(link, heard):
    link.connect(lambda: None)

    def cut():
        raise CarrierAway("the line was cut") from redis.exceptions.ConnectionError("closed")

    for _ in range(2):
        with pytest.raises(PageRefused):
            link.put(cut, 400_000)
    assert [told.bound for told in heard] == [0, 200_000]
    link.carrier.cut()
    with pytest.raises(CarrierAway):
        link.put(cut, 400_000)
    assert not link.connected, "where it answers no ping either, that is an outage"


@pytest.mark.parametrize("way", ["ask", "put"])
def test_the_end_of_an_earlier_connection_is_no_outage_of_the_next_one(link, heard, clock, way):
    link.connect(lambda: None)

    def cut_and_joined_meanwhile():
        link.lose(CarrierAway("cut"))
        clock.advance(10.0)
        assert link.probe(lambda: None)
        link.carrier.cut()  # and nobody answers a ping, so it is no refusal of a page
        raise CarrierAway("cut")

    with pytest.raises(CarrierAway):
        link.ask(cut_and_joined_meanwhile) if way == "ask" else link.put(cut_and_joined_meanwhile, 10)
    assert link.connected
    assert [type(told) for told in heard] == [ConnectionLost, ConnectionBack]


def test_a_small_page_and_a_server_that_does_not_answer_are_no_refusal(link):
    def silent():
        raise CarrierAway("no answer") from redis.exceptions.TimeoutError("too slow")

    for size in (LEAST_PAGE_BYTES, PAGE_BYTES):
        link.connect(lambda: None)
        with pytest.raises(CarrierAway):
            link.put(silent, size)
        assert not link.connected
        assert link.pages.bytes == PAGE_BYTES


def test_another_connection_may_be_to_another_server_that_takes_larger_pages(link, clock):
    link.connect(lambda: None)
    link.pages.bytes = LEAST_PAGE_BYTES
    link.lose(CarrierAway("gone"))
    clock.advance(60.0)
    assert link.probe(lambda: None)
    assert link.pages.bytes == PAGE_BYTES


def test_what_is_sealed_is_numbered_and_what_is_said_to_one_is_not(link):
    event = events.ChartDeleted(7, 1)
    payloads = [link.seal(event), link.encode(event), link.seal(event)]
    envelopes = [events.decode(payload, fingerprint="hash:8", identity=CATALOGUE) for payload in payloads]
    assert [envelope.number for envelope in envelopes] == [1, 0, 2]
    assert {(envelope.source, envelope.session) for envelope in envelopes} == {("a", link.session)}


def test_names_of_sessions_models_and_signs_of_life_are_those_that_keys_have(link):
    assert link.session_name == f"{link.session:016x}"
    assert link.sign_of_life == f"one:vector:alive:{link.session:016x}"
    assert link.life == (3250, "one:vector:alive:")
    model = link.model_name
    assert len(model) == 16
    link.identity = Identity("2" * 32, b"key")
    assert link.model_name != model, "claims and leases are of one catalogue"


def test_a_coordinator_is_given_a_context_or_its_parts_and_not_both(clock):
    context = Context.of("a", clock=clock)
    carrier = SimulatedRedis(clock).carrier()
    assert Coordinator(carrier, context, fingerprint="hash:8", dim=8).context is context
    with pytest.raises(TypeError, match=r"node_id.*context has it"):
        Coordinator(carrier, context, fingerprint="hash:8", dim=8, node_id="b")
    with pytest.raises(TypeError, match="node_id"):
        Coordinator(carrier, fingerprint="hash:8", dim=8)
