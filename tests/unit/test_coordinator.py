"""What a coordinator and a node refuse where they are made, before anything is connected."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise

import pytest

from copilotlab import ChartRepository, Coordinator, Node, Policy, load_embedder
from copilotlab.clock import ManualClock
from copilotlab.lab.simulated_redis import SimulatedCarrier, SimulatedRedis
from copilotlab.protocol.carrier import CarrierAway, CarrierRefused
from copilotlab.protocol.events import ChartDeleted
from copilotlab.protocol.link import REFUSED_PAUSE

RIGHT = {"node_id": "a", "fingerprint": "hash:1", "dim": 8}


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"node_id": "\ud800"}, ValueError, r"node_id='\\ud800'.*surrogate"),
        ({"namespace": "a\udfff"}, ValueError, r"namespace='a\\udfff'.*surrogate"),
        ({"node_id": ""}, ValueError, r"node_id=''.*1 to 200"),
        ({"fingerprint": ""}, ValueError, r"fingerprint=''.*1 to 200"),
        ({"fingerprint": "\ud800"}, ValueError, "fingerprint=.*surrogate"),
        ({"dim": 0}, ValueError, "dim must be an integer from 1 .*got int 0"),
        ({"dim": 8.0}, ValueError, r"dim must be an integer from 1 .*got float 8\.0"),
        ({"policy": "seed"}, TypeError, r"policy='seed'.*Policy\.seed\(\)"),
        ({"clock": 5}, TypeError, r"clock=5: expected .*now\(\)"),
    ],
)
def test_a_coordinator_refuses_what_makes_no_sense(wrong, error, words):
    with pytest.raises(error, match=words):
        Coordinator("redis://127.0.0.1:1/0", **{**RIGHT, **wrong})


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"node_id": "\ud800"}, ValueError, r"node_id='\\ud800'.*surrogate"),
        ({"namespace": "\ud800"}, ValueError, r"namespace='\\ud800'.*surrogate"),
        ({"clock": 5}, TypeError, r"clock=5: expected .*now\(\)"),
        ({"clock": 0}, TypeError, r"clock=0: expected .*now\(\)"),
    ],
)
def test_a_node_refuses_what_makes_no_sense(wrong, error, words):
    with pytest.raises(error, match=words):
        Node(ChartRepository(), load_embedder("hash"), "redis://127.0.0.1:1/0", **wrong)


def test_names_of_any_language_are_taken():
    made = Coordinator("redis://127.0.0.1:1/0", **{**RIGHT, "node_id": "Zürich 東京 🙂"}, namespace="Köln")
    assert (made.context.node_id, made.context.namespace) == ("Zürich 東京 🙂", "Köln")


class Refusing(SimulatedCarrier):
    """Lets everybody in, and refuses or breaks at what ``failing`` names."""

    def __init__(self, server):
        super().__init__(server)
        server._carriers.append(self)
        self.failing: dict = {}

    def publish(self, channel, payload):
        if error := self.failing.get("publish"):
            raise error
        return super().publish(channel, payload)

    def run(self, script, keys, arguments):
        if script == "rehearse":
            allowed = self.failing.get("allowed")
            return [int(pair not in allowed) for pair in arguments[::2]] if allowed else []
        return super().run(script, keys, arguments)


@pytest.fixture
def clock():
    return ManualClock(1000.0)


@pytest.fixture
def carrier(clock):
    return Refusing(SimulatedRedis(clock))


def coordinator_of(carrier, clock, **policy):
    return Coordinator(carrier, **RIGHT, clock=clock, policy=Policy(**policy))


def live(coordinator, clock, seconds, step=0.01, work=lambda: None):
    """Look as often as a listener does; when each connection was made, in seconds from now."""
    began, joined = clock.now(), []
    while clock.now() < began + seconds:
        if coordinator.probe():
            joined.append(clock.now() - began)
        if coordinator.connected:
            with suppress(CarrierAway):
                work()
        clock.advance(step)
    return joined


def test_a_connection_that_is_refused_at_each_event_is_made_more_and_more_rarely(carrier, clock):
    a = coordinator_of(carrier, clock)
    assert a.connect()
    carrier.failing["publish"] = CarrierRefused("no PUBLISH")
    joined = live(a, clock, 120, work=lambda: a.publish(ChartDeleted(1, 1)))

    assert len(joined) < 40, "at each look of a listener it would be thousands"
    assert max(later - earlier for earlier, later in pairwise(joined)) <= REFUSED_PAUSE + 1
    assert len([when for when in joined if when > 60]) < len([when for when in joined if when <= 60])
    assert a.context.metrics["outages"] == 0
    carrier.failing.clear()
    assert live(a, clock, REFUSED_PAUSE + 1), "it comes back by itself"
    assert a.link.state == "connected"


def test_who_was_refused_for_a_moment_is_back_before_what_it_holds_is_made_again(carrier, clock):
    """Many times: each node draws other pauses."""
    for number in range(50):
        a = Coordinator(carrier, **{**RIGHT, "node_id": f"n{number}"}, clock=clock, policy=Policy())
        assert a.connect()
        carrier.failing["allowed"] = {"PUBLISH"}
        carrier.blink()
        with pytest.raises(CarrierAway):
            a.receive()
        grace = a.context.policy.rejoin_grace
        assert live(a, clock, 2 * grace) == []
        carrier.failing.clear()
        (back,) = live(a, clock, 2 * grace)
        assert back < grace
        a.close()


def test_a_refusal_at_the_rehearsal_is_one_refusal_and_no_outage(carrier, clock):
    a = coordinator_of(carrier, clock)
    assert a.connect()
    carrier.failing["allowed"] = {"PUBLISH"}
    carrier.blink()
    with pytest.raises(CarrierAway):
        a.receive()
    assert live(a, clock, 60) == []

    assert a.link.state == "refused"
    assert "the command PUBLISH" in a.link.reason
    assert "+publish" in a.link.reason, "what mends it"
    assert a.context.metrics["refusals"] == 1
    assert a.context.metrics["outages"] == 1, "the cut connection before it"
    assert [entry.event for entry in a.context.journal.entries()].count("redis_refused") == 1
    carrier.failing.clear()
    assert len(live(a, clock, REFUSED_PAUSE + 1)) == 1


def test_a_coordinator_that_is_refused_at_once_says_so_and_counts_nothing(carrier, clock):
    carrier.failing["allowed"] = {"DEL"}
    a = coordinator_of(carrier, clock)
    with pytest.raises(CarrierRefused, match="the command DEL"):
        a.connect()
    assert not a.connected
    assert (a.context.metrics["outages"], a.context.metrics["refusals"]) == (0, 0)


def test_a_short_outage_is_looked_at_each_probe_interval_and_a_long_one_more_rarely(carrier, clock):
    a = coordinator_of(carrier, clock)
    assert a.connect()
    looks = []
    carrier.cut()
    real = carrier.ping
    carrier.ping = lambda: (looks.append(clock.now()), real())[1]
    with pytest.raises(CarrierAway):
        a.receive()
    looks.clear()
    began = clock.now()
    assert live(a, clock, 600) == []

    pauses = [later - earlier for earlier, later in pairwise(looks)]
    early = [pause for pause, when in zip(pauses, looks, strict=False) if when - began < 4]
    late = [pause for pause, when in zip(pauses, looks, strict=False) if when - began > 60]
    assert max(early) < a.context.policy.probe_interval + 0.02
    assert max(pauses) <= a.context.policy.rejoin_grace / 2 + 0.02, "no batch has to wait longer for it"
    assert len({round(pause, 2) for pause in late}) > 10, "nodes do not come back at one moment"
    assert a.context.metrics["outages"] == 1


def test_two_nodes_that_are_refused_do_not_look_at_the_same_moments(clock):
    server = SimulatedRedis(clock)
    looks = []
    for name in "ab":
        clock_of_its_own = ManualClock(1000.0)
        carrier = Refusing(server)
        a = Coordinator(carrier, **{**RIGHT, "node_id": name}, clock=clock_of_its_own)
        assert a.connect()
        carrier.failing["publish"] = CarrierRefused("no PUBLISH")
        looks.append(live(a, clock_of_its_own, 60, work=lambda a=a: a.publish(ChartDeleted(1, 1))))
    assert looks[0] != looks[1]


def test_what_failed_on_an_earlier_connection_is_no_outage_of_this_one(carrier, clock):
    a = coordinator_of(carrier, clock)
    assert a.connect()

    def late(*_):
        """A worker's call; before it notices, the listener has lost and found Redis."""
        carrier.blink()
        with pytest.raises(CarrierAway):
            a.receive()
        clock.advance(1)
        assert a.probe()
        raise CarrierAway("no answer in time")

    carrier.get = late
    with pytest.raises(CarrierAway):
        a.flags()
    assert a.connected
    assert a.context.metrics["outages"] == 1


def test_what_a_node_says_of_its_other_model_is_dropped_without_a_word_and_a_strangers_with_one(clock):
    server = SimulatedRedis(clock)
    listener = Coordinator(server.carrier(), **RIGHT, clock=clock)
    successor = Coordinator(server.carrier(), listener.context, fingerprint="hash:2", dim=8)
    namesake = Coordinator(server.carrier(), **{**RIGHT, "fingerprint": "hash:3"}, clock=clock)
    for coordinator in (listener, successor, namesake):
        assert coordinator.connect()

    successor.publish(ChartDeleted(1, 1))
    assert listener.receive() is None
    assert listener.context.metrics["dropped_foreign_model"] == 0
    namesake.publish(ChartDeleted(1, 1))
    assert listener.receive() is None
    assert listener.context.metrics["dropped_foreign_model"] == 1
