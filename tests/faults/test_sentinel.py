"""Nodes behind Sentinel, by the client of docs/deployment.md, on Debian's Redis: a master that goes, in four ways."""

from __future__ import annotations

import contextlib
import re
import subprocess

import pytest
import redis
from debian import redis_server
from rest import wait_for_rest
from test_deployments import PAGE, QUICK, node_on
from trial import wait_until

from copilotlab import Chart, ChartRepository, LocalRedis
from copilotlab.lab.server import ReservedPort

(CLIENT,) = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "Sentinel(" in block]


class Watched:
    """A master, a replica of it, and a sentinel that watches them."""

    def __init__(self, folder, closing):
        binary = redis_server()
        self.master = closing.enter_context(LocalRedis(binary, tcp=True))
        host, port = self.master.address
        following = ["--replicaof", f"{host} {port}", "--repl-diskless-sync-delay", "0"]
        self.replica = closing.enter_context(LocalRedis(binary, tcp=True, args=following))
        wait_until(lambda: self.info(self.replica)["master_link_status"] == "up", "the replica follows")
        reserved = closing.enter_context(contextlib.closing(ReservedPort()))
        self.port = reserved.address[1]
        settings = folder / "sentinel.conf"
        settings.write_text(
            f"bind 127.0.0.1\nport {self.port}\ndir {folder}\nlogfile {folder}/sentinel.log\n"
            f"sentinel monitor charts {host} {port} 1\nsentinel down-after-milliseconds charts 500\n"
            "sentinel failover-timeout charts 3000\n"
        )
        process = closing.enter_context(subprocess.Popen([binary, settings, "--sentinel"], stdout=subprocess.DEVNULL))
        closing.callback(process.kill)
        self.sentinel = closing.enter_context(redis.Redis(port=self.port))
        wait_until(self._knows_both, "the sentinel knows master and replica", 30)

    def _knows_both(self):
        try:
            return self.sentinel.sentinel_master("charts")["num-slaves"] == 1
        except redis.ConnectionError:
            return False

    def info(self, server):
        with server.client() as client:
            return client.info("replication")

    def client(self):
        """By the page's own lines."""
        names: dict = {}
        there = f'[("127.0.0.1", {self.port})]'
        exec(re.sub(r"\[\(\"sentinel-1\".*?\)\]", there, CLIENT).replace("0.25", "1.0"), names)
        return names["client"]

    def leads(self):
        """The port of the master, as the sentinel says."""
        return int(self.sentinel.sentinel_get_master_addr_by_name("charts")[1])


@pytest.fixture
def watched(tmp_path):
    with contextlib.ExitStack() as closing:
        yield Watched(tmp_path, closing)


def kill(watched):
    watched.master.kill()


def freeze(watched):
    watched.master.pause()


def fail_over(watched):
    def ordered():
        try:
            return watched.sentinel.sentinel_failover("charts")
        except redis.ResponseError as refused:
            if "NOGOODSLAVE" not in str(refused):
                raise
            return False  # it knows the replica, and has not had its state yet

    wait_until(ordered, "the sentinel takes the order", 30)


def lose_writes(watched):
    """The replica has not what was written last."""
    watched.replica.pause()
    yield
    watched.master.kill()
    watched.replica.resume()


@pytest.mark.parametrize("go", [kill, freeze, fail_over, lose_writes])
def test_nodes_agree_again_after_a_master_that_was_lost(watched, go):
    charts = ChartRepository()
    clients = [watched.client() for _ in "ab"]
    a, b = (node_on(client, name, charts, policy=QUICK) for client, name in zip(clients, "ab", strict=True))
    with a, b:
        wait_for_rest(a, b)
        assert a.coordinator.link.address.startswith("redis-sentinel://127.0.0.1:")
        assert a.coordinator.link.address.endswith("/charts/0")
        assert a.update_chart(Chart(chart_id=1, title="Revenue by region")).outcome == "published"
        going = go(watched)
        if going is not None:
            next(going)
            assert a.rebuild().outcome == "published", "its epoch, and that none is owed, is not replicated"
            list(going)
        a.update_chart(Chart(chart_id=2, title="Espresso machine uptime"))
        b.update_chart(Chart(chart_id=3, title="Tea kettle uptime"))

        new = watched.replica.address[1]
        wait_until(lambda: watched.leads() == new, "another server is master", 60)
        if go is freeze:
            watched.master.resume()
        with watched.replica.client() as client:  # the old master serves until the sentinel has told it otherwise
            wait_until(
                lambda: len(client.pubsub_channels("chart-vector-inbox:*")) == 2, "both listen to the new one", 60
            )
        wait_for_rest(a, b)
        assert a.update_chart(Chart(chart_id=4, title="Parcel weight")).outcome == "published"
        wait_until(lambda: 4 in b.store, "the other node hears of it")
        wait_for_rest(a, b)
        assert sorted(b.store.manifest().chart_ids.tolist()) == [1, 2, 3, 4]
        assert a.store.digest == b.store.digest
        assert [node.context.metrics["refusals"] for node in (a, b)] == [0, 0]
    for client in clients:
        client.close()
