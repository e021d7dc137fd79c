"""A node is ready from its first fill to its end, whatever becomes of Redis, and says what is wrong meanwhile."""

from __future__ import annotations

import time

from copilotlab import ChartRepository, Lab, LocalRedis, Node, Policy, load_embedder
from copilotlab.lab.fragile_model import FragileModel
from copilotlab.lab.simulated_lab import simulated_charts
from copilotlab.monitoring import Thresholds
from copilotlab.monitoring.health import health_of

LIMIT = 30.0  # seconds for what is certain to come
POLICY = Policy(heartbeat_interval=0.2, probe_interval=0.1, adopt_after=0.5, chunk_size=8)


def health(node, **more):
    return health_of(node.vitals(), node.alerts.active(), **more)


def wait_for(condition) -> None:
    until = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < until, f"it did not come within {LIMIT:g} s"
        time.sleep(0.01)


def test_a_node_is_not_ready_before_its_first_fill_and_says_how_much_is_missing():
    model = FragileModel(load_embedder("hash"))
    with LocalRedis() as server, ChartRepository() as charts:
        charts.save_many(simulated_charts(20))
        model.gate.hang()
        node = Node(charts, model, server.url, policy=POLICY)
        assert health(node).not_ready[0] == "the node is not started"
        try:
            with node:
                wait_for(lambda: node.vitals().behind_charts == 20)
                assert not health(node).ready
                assert health(node).not_ready == ("before the first fill: 0 charts are here, 20 charts are missing",)
                assert health(node).live
                model.gate.mend()
                wait_for(lambda: health(node).ready)
                assert health(node).not_ready == ()
        finally:
            model.gate.mend()
        assert health(node).not_ready == ("the node is stopped",)


def test_a_node_stays_ready_while_redis_is_away_and_says_that_it_is():
    with Lab(2, "hash", policy=POLICY) as lab:
        node = lab.nodes[0]
        node.alerts.thresholds = Thresholds(redis_away=0.3, calm=0.2)
        wait_for(lambda: health(node).ready)
        wait_for(lambda: health(node).well)
        lab.redis.kill()
        wait_for(lambda: node.alerts.active())
        now = health(node)
        assert now.live
        assert now.ready
        assert not now.well
        assert any(said.startswith("Redis is away for") for said in now.troubles)
        assert any(said.startswith("redis_away (warning)") for said in now.troubles)

        lab.redis.start(keep_data=False)
        wait_for(lambda: health(node).well)


def test_a_node_that_is_held_back_is_not_ready_and_says_why():
    with Lab(1, "hash", policy=POLICY) as lab:
        (node,) = lab.nodes
        wait_for(lambda: health(node).ready)
        held = health(node, held_back="it is about to be replaced")
        assert not held.ready
        assert held.not_ready == ("held back: it is about to be replaced",)
        assert health(node).ready


def test_a_node_that_fills_itself_without_redis_becomes_ready():
    with LocalRedis() as server:
        url = server.url
    with ChartRepository() as charts:
        charts.save_many(simulated_charts(5))
        with Node(charts, load_embedder("hash"), url, policy=POLICY) as node:
            assert not health(node).ready
            assert node.rebuild().outcome == "local"
            wait_for(lambda: health(node).ready)
