"""Nodes on a Redis Cluster, through a client that the caller makes: one server that has all slots."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from redis import RedisCluster
from rest import wait_for_rest
from trial import wait_until

from copilotlab import Chart, ChartRepository, LocalRedis, Node, Policy, load_embedder
from copilotlab.lab.server import ReservedPort

QUICK = Policy(probe_interval=0.05, heartbeat_interval=0.1, redis_timeout=1.0)
SLOTS = 16_384
PAGE = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text()


@pytest.fixture
def server():
    bus = ReservedPort()  # by itself it would be the server's port and 10,000, which may be no port
    with LocalRedis(tcp=True, args=["--cluster-enabled", "yes", "--cluster-port", str(bus.address[1])]) as server:
        form_cluster(server)
        yield server
    bus.close()


def form_cluster(server: LocalRedis) -> None:
    with server.client() as client:
        if "cluster_slots_assigned:0" in words(client):
            client.execute_command("CLUSTER ADDSLOTSRANGE", 0, SLOTS - 1)
        wait_until(lambda: "cluster_state:ok" in words(client), "the cluster serves")


def words(client) -> list[str]:
    answer = client.execute_command("CLUSTER INFO")
    return [f"{key}:{value}" for key, value in answer.items()] if isinstance(answer, dict) else answer.decode().split()


def cluster_client(server: LocalRedis) -> RedisCluster:
    """By the lines of docs/deployment.md."""
    assert server.address is not None
    host, port = server.address
    (lines,) = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "RedisCluster(" in block]
    names: dict = {}
    exec(lines.replace('"redis-1", port=6379', f"{host!r}, port={port}").replace("0.25", "1.0"), names)
    return names["client"]


def test_nodes_on_a_redis_cluster_agree_also_when_it_was_down(server):
    charts = ChartRepository()
    clients = [cluster_client(server) for _ in range(2)]
    a, b = (
        Node(charts, load_embedder("hash"), client, policy=QUICK, node_id=name, namespace="{charts}")
        for client, name in zip(clients, "ab", strict=True)
    )
    with a, b:
        wait_for_rest(a, b)
        assert a.update_chart(Chart(chart_id=1, title="Revenue by region")).outcome == "published"
        wait_until(lambda: 1 in b.store, "the other node hears of it")

        server.kill()
        assert a.update_chart(Chart(chart_id=2, title="Espresso machine uptime")).outcome == "local"
        assert b.update_chart(Chart(chart_id=3, title="Tea kettle uptime")).outcome == "local"
        wait_until(lambda: not (a.coordinator.connected or b.coordinator.connected), "the outage is noticed")
        assert [node.status()["state"] for node in (a, b)] == ["running", "running"]

        server.start()
        form_cluster(server)
        wait_for_rest(a, b)
        assert a.store.digest == b.store.digest
        assert sorted(b.store.manifest().chart_ids.tolist()) == [1, 2, 3]
        assert b.delete_chart(1).outcome == "published"
        wait_until(lambda: 1 not in a.store, "the other node hears of the deletion")
    for client in clients:
        client.close()


def test_on_a_redis_cluster_a_namespace_that_scatters_the_keys_is_refused(server):
    with cluster_client(server) as client:
        for namespace in ("", "charts", "{}charts", "{charts"):
            with pytest.raises(ValueError, match="namespace=") as error:
                Node(ChartRepository(), load_embedder("hash"), client, namespace=namespace)
            assert repr(namespace) in str(error.value)
            assert '"{charts}"' in str(error.value)
