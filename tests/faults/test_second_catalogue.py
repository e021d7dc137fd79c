"""Another catalogue on the same channels: the fault is what it says, and the nodes hold what their own has."""

from __future__ import annotations

import threading

import pytest
from trial import wait_until

from copilotlab import Chart, Lab, Policy, load_embedder
from copilotlab.lab import FAULTS
from copilotlab.protocol.events import DELETIONS, UPDATES

SECOND = FAULTS["second catalogue"]
POLICY = Policy(probe_interval=0.1, heartbeat_interval=0.2, claim_timeout=2.0, adopt_after=3.0, sync_interval=2.0)


@pytest.fixture
def lab():
    with Lab(2, load_embedder("hash"), policy=POLICY) as lab:
        lab.charts.save_many(
            Chart(chart_id=chart_id, title=f"Revenue, product {chart_id}") for chart_id in range(1, 11)
        )
        lab.nodes[0].rebuild()
        lab.wait_converged(30)
        yield lab


def strangers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("copilotlab-stranger")]


def hear(lab, count):
    """Wait for so many messages on the channels of updates and deletions, each."""
    with lab.redis.client() as client, client.pubsub(ignore_subscribe_messages=True) as listener:
        listener.subscribe(UPDATES, DELETIONS)
        heard = dict.fromkeys((UPDATES, DELETIONS), 0)

        def enough():
            message = listener.get_message(timeout=0.1)
            if message is not None:
                heard[message["channel"].decode()] += 1
            return min(heard.values()) >= count

        wait_until(enough, f"{count} messages")


def test_a_stranger_is_heard_and_ends(lab):
    SECOND.end(lab, 0)
    SECOND.start(lab, 0)
    SECOND.start(lab, 0)
    hear(lab, 3)
    with lab.redis.client() as client:
        assert "db3" in client.info("keyspace")
    SECOND.end(lab, 0)
    assert strangers() == []
    SECOND.end(lab, 0)


def test_a_stranger_ends_with_the_lab(lab):
    SECOND.start(lab, 0)
    lab.close()
    wait_until(lambda: strangers() == [], "it has ended")


def test_a_cluster_that_keeps_its_model_elsewhere_says_so():
    class Elsewhere:
        embedder = charts = None

    assert "beside those of a Lab only" in SECOND.hindrance(Elsewhere())
    with pytest.raises(TypeError, match="elsewhere"):
        SECOND.start(Elsewhere(), 0)


def test_the_nodes_hold_what_their_own_catalogue_has(lab):
    SECOND.start(lab, 0)
    try:
        hear(lab, 5)
        for index, node in enumerate(lab.nodes):
            node.update_chart(Chart(chart_id=20 + index, title=f"Espresso {index}"))
        hear(lab, 5)
    finally:
        SECOND.end(lab, 0)
    lab.wait_converged(30)
