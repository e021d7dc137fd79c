"""Who shares a server and is none of ours: another namespace, another model, and what is damaged on its way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from world import MemoryRepository, World

from copilotlab import Chart, Node, Policy
from copilotlab.clock import ManualClock
from copilotlab.embedding.hashing import HashEmbedder
from copilotlab.lab.simulated_redis import SimulatedRedis
from copilotlab.protocol.carrier import Message
from copilotlab.protocol.keys import BATCH_IN_PROGRESS

POLICY = Policy(adopt_after=5, chunk_size=2)


class Neighbourhood:
    """Two clusters of two nodes each on one server."""

    def __init__(self, *, namespaces=("", ""), dims=(16, 16), one_repository=False):
        self.clock = ManualClock(1_000.0)
        self.redis = SimulatedRedis(self.clock)
        self.charts = [MemoryRepository()] * 2 if one_repository else [MemoryRepository(), MemoryRepository()]
        self.clusters = [
            [
                Node(
                    charts,
                    HashEmbedder(dim=dim),
                    self.redis.carrier(),
                    policy=POLICY,
                    node_id=name,
                    namespace=namespace,
                    clock=self.clock,
                )
                for name in "ab"
            ]
            for charts, namespace, dim in zip(self.charts, namespaces, dims, strict=True)
        ]
        for node in self.nodes:
            node.connect()

    @property
    def nodes(self):
        return [node for cluster in self.clusters for node in cluster]

    def run(self, seconds):
        until = self.clock.now() + seconds
        while self.clock.now() < until:
            while any([node.listen() | node.work() for node in self.nodes]):
                pass
            self.clock.advance(0.5)

    def deliver(self):
        """All that is on its way arrives, own events too."""
        for node in self.nodes:
            node.listen()
        while any(carrier.arrived for carrier in self.redis._carriers):
            for node in self.nodes:
                node.listen()

    def agree(self):
        for charts, cluster in zip(self.charts, self.clusters, strict=True):
            expected = {c.chart_id: (c.revision, c.chart.content_hash) for c in charts.changes_since(0) if c.chart}
            for node in cluster:
                if {i: node.store.head(i) for i in node.store.manifest().chart_ids.tolist()} != expected:
                    return False
        return all(len({node.store.digest for node in cluster}) == 1 for cluster in self.clusters)


def chart(chart_id, title):
    return Chart(chart_id=chart_id, title=title)


@pytest.mark.parametrize("namespaces", [("", "second"), ("first", "second"), ("{charts}", "{charts}:more")])
def test_two_namespaces_never_mix(namespaces):
    n = Neighbourhood(namespaces=namespaces)
    first, second = n.clusters
    n.run(5)
    n.deliver()
    heard = [node.context.metrics["received"] for node in second]
    for chart_id in (1, 2, 3):  # the same ids, and the same names of nodes, in both catalogues
        first[0].update_chart(chart(chart_id, "Of the first"))
    lease = first[0].coordinator.lease.take()
    n.deliver()

    assert [node.context.metrics["received"] for node in second] == heard
    assert second[0].update_chart(chart(1, "Of the second")).outcome == "published", (
        "a batch there concerns nobody here"
    )
    others = second[1].coordinator.lease.take()
    assert others is not None
    second[1].coordinator.lease.release(others, recovered=False)
    first[0].coordinator.lease.release(lease, recovered=False)
    n.run(20)

    assert n.agree()
    assert [len(cluster[1].store) for cluster in n.clusters] == [3, 1]
    assert not any(name.startswith("dropped") for node in n.nodes for name in node.context.metrics.as_dict())
    keys = {key for key in n.redis.held() if not namespaces[1] or not key.startswith(f"{namespaces[1]}:vector")}
    assert keys, "the first's keys"
    assert all(key.startswith(f"{namespaces[0]}:vector" if namespaces[0] else "vector") for key in keys)


def test_two_models_in_one_namespace_never_mix():
    n = Neighbourhood(dims=(16, 32), one_repository=True)
    small, large = n.clusters
    assert small[0].coordinator.link.fingerprint != large[0].coordinator.link.fingerprint
    n.run(10)
    small[0].update_chart(chart(1, "Saved where the small model is"))
    n.run(20)

    assert n.agree()
    assert {len(node.store.get(1).vector) for node in small} == {16}
    assert {len(node.store.get(1).vector) for node in large} == {32}
    made = [sum(node.context.metrics["embeddings"] for node in cluster) for cluster in n.clusters]
    assert made == [1, 1], "once for each model"


def test_a_batch_of_one_model_does_not_hold_up_the_other():
    n = Neighbourhood(dims=(16, 32), one_repository=True)
    small, large = n.clusters
    n.run(10)
    lease = small[0].coordinator.lease.take()
    assert BATCH_IN_PROGRESS in n.redis.held()

    assert small[1].update_chart(chart(1, "New words")).outcome == "deferred"
    assert large[0].chart_changed(1).outcome == "published"
    assert large[0].coordinator.beat().batch_holder is None
    small[0].coordinator.lease.release(lease, recovered=False)
    n.run(20)
    assert n.agree()


def test_a_claim_of_one_model_is_none_of_the_other():
    n = Neighbourhood(dims=(16, 32), one_repository=True)
    small, large = n.clusters
    n.run(10)
    n.charts[0].save(chart(1, "New words"))

    assert small[0].chart_changed(1).outcome == "published"
    assert large[0].chart_changed(1).outcome == "published"
    assert large[1].chart_changed(1).outcome == "deferred"


# --- damaged on the way -----------------------------------------------------------------------------------------


def damaged(data, payload):
    frame = bytearray(payload)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(frame) - 1))
        match data.draw(st.sampled_from(["change", "cut", "double", "end"])):
            case "change":
                frame[place] ^= data.draw(st.integers(1, 255))
            case "cut":
                del frame[place : place + data.draw(st.integers(1, 20))]
            case "double":
                frame[place:place] = frame[place : place + data.draw(st.integers(1, 20))]
            case "end":
                del frame[place:]
        if not frame:
            break
    return bytes(frame)


@settings(
    max_examples=60, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck), print_blob=True
)
@given(st.data())
def test_real_frames_that_are_damaged_on_the_way_are_dropped_and_all_converges(data):
    w = World(2)
    for chart_id in (1, 2, 3):
        w.charts.save(w.chart(chart_id))
    w.run(3.0)
    receiver = w.carriers[1]
    harmed = 0
    for step in range(6):
        if step % 2:
            w.update(0, w.chart(1 + step % 3))
        else:
            w.do(0, lambda node: node.replica.batches.begin("rebuild"))
        for _ in range(data.draw(st.integers(1, 6))):
            w.work(0)
        for place, message in enumerate(receiver.arrived):
            if data.draw(st.booleans()):
                frame = damaged(data, message.payload)
                harmed += frame != message.payload
                receiver.arrived[place] = Message(message.channel, frame)
        while receiver.arrived:
            w.listen(1)
        w.check()
    bulks = [key for key in w.redis.held() if ":bulk:" in key]
    for key in bulks:
        w.redis._keys[key] = (damaged(data, w.redis.held()[key]), w.redis._keys[key][1])
    w.settle()

    counters = w.nodes[1].context.metrics.as_dict()
    assert sum(count for name, count in counters.items() if name.startswith("dropped")) >= harmed


def test_noise_on_every_channel_is_counted_and_dropped():
    w = World(2)
    w.charts.save(w.chart(1))
    w.run(3.0)
    noise = np.random.default_rng(7)
    channels = sorted(w.carriers[1].channels)
    for number in range(500):
        payload = noise.bytes(int(noise.integers(0, 300)))
        w.carriers[1].arrived.append(Message(channels[number % len(channels)], payload))
    while w.carriers[1].arrived:
        w.listen(1)
    w.settle()

    dropped = {name: n for name, n in w.nodes[1].context.metrics.as_dict().items() if name.startswith("dropped")}
    assert sum(dropped.values()) == 500
    assert len(w.nodes[1].journal) < 1_000
