"""A cluster is watched on a real server, and whoever watches it ends without a trace."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import weakref

import pytest
from runbook import look

from copilotlab import Cluster, Lab, LocalRedis, Policy
from copilotlab.lab.simulated_lab import simulated_chart, simulated_charts

LIMIT = 60.0  # seconds for what is certain to come
POLICY = Policy(heartbeat_interval=0.2, probe_interval=0.1, adopt_after=0.5, redis_timeout=1.0)


@pytest.fixture(scope="module")
def lab():
    with Lab(2, "hash", charts=_charts(), policy=POLICY) as lab:
        lab.wait_converged(LIMIT)
        yield lab


def _charts():
    from copilotlab import ChartRepository

    charts = ChartRepository()
    charts.save_many(simulated_charts(20))
    return charts


def wait_for(condition) -> None:
    until = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < until, f"it did not come within {LIMIT:g} s"
        time.sleep(0.01)


def own_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("copilotlab-watcher")}


def test_nodes_differences_an_outage_and_a_node_that_dies_are_seen_on_a_real_server(lab):
    with Cluster(lab.redis.url, charts=lab.charts, policy=POLICY) as cluster:
        cluster.wait(nodes=2, timeout=LIMIT, agree=True)
        first, second = lab.nodes
        assert cluster.nodes()["node"].to_list() == [first.node_id, second.node_id]
        assert cluster.differences().is_empty()

        lab.partition(1)
        first.update_chart(simulated_chart(3, "Anew"))
        wait_for(lambda: cluster.nodes()["alive"].to_list() == [True, False])
        wait_for(lambda: "silent" in cluster.timeline()["event"].to_list())
        held = next(row for row in cluster.rows() if row.node == first.node_id)
        wait_for(lambda: next(row for row in cluster.rows() if row.node == first.node_id).revision == 21)
        assert cluster.differences(first.node_id).is_empty()
        assert held.version
        lab.heal(1)
        wait_for(lambda: cluster.agree and cluster.nodes()["revision"].to_list() == [21, 21])

        lab.redis.kill()
        wait_for(lambda: not cluster.connected)
        assert cluster.nodes()["alive"].to_list() == [None, None]
        assert look("cut_off", node=first, cluster=cluster)["cluster.reason"]
        lab.redis.start(keep_data=False)
        wait_for(lambda: cluster.agree)
        wait_for(
            lambda: cluster.nodes()["outages"].to_list() == [first.metrics()["outages"], second.metrics()["outages"]]
        )
        events = cluster.timeline()["event"].to_list()
        assert events.count("cut_off") == 1
        assert lab.nodes[0].status()["peers"] == 1


def test_one_without_the_repository_says_who_claims_to_speak_as_the_runbook_tells(lab):
    with Cluster(lab.redis.url, policy=POLICY) as cluster:
        wait_for(lambda: "not_verified" in cluster.alerts()["name"].to_list())
        claiming = look("not_verified", cluster=cluster)["cluster.speakers()"]
        assert claiming.keys() <= {node.node_id for node in lab.nodes}
        assert claiming
        assert cluster.nodes().is_empty()


def test_one_that_nobody_holds_goes_and_so_do_its_thread_and_its_connections(lab):
    with lab.redis.client() as client:
        wait_for(lambda: not own_threads())
        before = len(client.client_list())
        cluster = Cluster(lab.redis.url, charts=lab.charts, policy=POLICY)
        cluster.wait(nodes=2, timeout=LIMIT)
        assert len(own_threads()) == 1
        assert len(client.client_list()) > before
        gone = weakref.ref(cluster)
        del cluster
        gc.collect()
        assert gone() is None
        wait_for(lambda: not own_threads())
        wait_for(lambda: len(client.client_list()) == before)


def test_without_redis_it_waits_and_says_so_and_close_is_bounded():
    began = time.monotonic()
    with Cluster("redis://127.0.0.1:1/0", policy=POLICY) as cluster:
        assert "cut off" in repr(cluster)
    assert time.monotonic() - began < LIMIT
    assert not cluster.running
    assert "closed" in repr(cluster)
    cluster.close()
    with pytest.raises(RuntimeError, match="was closed"):
        cluster.start()
    with pytest.raises(RuntimeError, match="was closed"):
        cluster.wait()


ENDS = """
import os, sys
from copilotlab import ChartRepository, Cluster
url = sys.argv[1]
cluster = Cluster(url, charts=ChartRepository())
pid = os.fork()
if not pid:
    assert not cluster.running and cluster.nodes().is_empty(), cluster
    cluster.start()
    assert cluster.connected
    cluster.close()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert cluster.running and cluster.connected
print("ends")
"""


def test_it_ends_with_the_interpreter_and_a_forked_child_begins_anew():
    with LocalRedis(tcp=True) as server:
        ended = subprocess.run(
            [sys.executable, "-c", ENDS, server.url],
            capture_output=True,
            text=True,
            timeout=LIMIT,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "ends\n", "")
