"""docs/deployment.md, line by line, on real servers: what it says is needed is enough, and what is missing is named."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from rest import wait_for_rest
from trial import wait_until

from copilotlab import Chart, ChartRepository, LocalRedis, Node, Policy, load_embedder
from copilotlab.protocol.carrier import CarrierRefused

PAGE = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text()
RULES = re.findall(r"```acl\n(.*?)\n```", PAGE, re.DOTALL)
QUICK = Policy(probe_interval=0.05, heartbeat_interval=0.2, redis_timeout=1.0)


def url_of(server: LocalRedis, user: str = "", database: int = 0) -> str:
    host, port = server.address
    return f"redis://{f'{user}:password@' if user else ''}{host}:{port}/{database}"


def allow(server: LocalRedis, user: str, *rules: str) -> None:
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", user, *(word for rule in rules for word in rule.split()))


def new_user(server: LocalRedis, user: str, *rules: str) -> str:
    allow(server, user, "reset on >password", *rules)
    return url_of(server, user)


def node_on(redis, name: str, charts: ChartRepository, **options) -> Node:
    return Node(charts, load_embedder("hash"), redis, node_id=name, **{"policy": QUICK, **options})


def live_a_little(redis, charts: ChartRepository, **options) -> None:
    """All that nodes do: edits, a deletion, a rebuild, a joiner that fetches, an end in order."""
    with node_on(redis, "a", charts, **options) as a, node_on(redis, "b", charts, **options) as b:
        wait_for_rest(a, b)
        assert a.update_chart(Chart(chart_id=1, title="Revenue by region")).outcome == "published"
        assert b.update_chart(Chart(chart_id=2, title="Tea kettle uptime")).outcome == "published"
        assert a.rebuild().outcome == "published"
        wait_for_rest(a, b)
        assert b.delete_chart(2).outcome == "published"
        with node_on(redis, "c", charts, **options) as c:
            wait_until(lambda: 1 in c.store, "the joiner has fetched what there is")
            wait_for_rest(a, b, c)
            assert sorted(c.store.manifest().chart_ids.tolist()) == [1]
        for node in (a, b, c):
            assert (node.context.metrics["refusals"], node.context.metrics["outages"]) == (0, 0), node.journal.entries()


@pytest.fixture
def server():
    with LocalRedis(tcp=True) as server:
        yield server


# --- the access list ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "namespace"), [(RULES[0], ""), (RULES[1], "t1")])
def test_the_access_list_of_the_page_is_enough(server, rule, namespace):
    live_a_little(new_user(server, "copilot", rule), ChartRepository(), namespace=namespace)


@pytest.mark.parametrize(
    ("word", "named"),
    [
        *(
            (f"+{command}", command.upper())
            for command in ["mget", "set", "del", "exists", "getrange", "pexpire", "publish", "subscribe"]
        ),
        ("+get", "GET"),
        ("+evalsha", "EVALSHA"),
        ("+script|load", "script|load"),
        ("+ping", "PING"),
        ("&chart-deletions", "chart-deletions"),
        ("&chart-vector-*", "chart-vector-updates"),
        ("~vector:*", "vector:generation"),
    ],
)
def test_each_word_of_the_access_list_is_needed_and_named_where_it_is_missing(server, word, named):
    rule = RULES[0].split()
    rule.remove(word)
    url = new_user(server, "copilot", " ".join(rule))
    node = node_on(url, "a", ChartRepository())
    with pytest.raises(CarrierRefused, match=re.escape(named)) as error:
        node.start()
    assert "password" not in str(error.value)
    assert not node.running
    with server.client() as client:
        wait_until(lambda: len(client.client_list()) == 1, "what was refused leaves no connection")


@pytest.mark.parametrize("gone", ["-publish", "-set", "resetchannels &chart-vector-*", "resetkeys ~vector:batch:*"])
def test_an_access_list_that_is_cut_short_and_mended_costs_nothing_but_time(server, gone):
    charts = ChartRepository()
    url = new_user(server, "copilot", RULES[0])
    with node_on(url, "a", charts) as a, node_on(url, "b", charts) as b:
        wait_for_rest(a, b)
        allow(server, "copilot", gone)
        wait_until(lambda: [node.status()["redis"] for node in (a, b)] == ["refused"] * 2, "both are refused")
        assert a.update_chart(Chart(chart_id=1, title="Revenue by region")).outcome == "local"
        assert b.update_chart(Chart(chart_id=2, title="Tea kettle uptime")).outcome == "local"
        assert a.search("revenue", k=1)["chart_id"].to_list() == [1]
        # the server cuts whoever listens to what it forbids from now on: that is an outage, of one look
        most = 1 if "channels" in gone else 0
        for node in (a, b):
            assert node.context.metrics["refusals"] == 1
            assert node.context.metrics["outages"] <= most, node.journal.entries()
            assert "access list" in node.status()["redis_reason"]

        allow(server, "copilot", "~vector:*", "&chart-*", "+publish +set")
        wait_until(lambda: all(node.coordinator.connected for node in (a, b)), "they come back by themselves")
        wait_for_rest(a, b)
        assert sorted(a.store.manifest().chart_ids.tolist()) == [1, 2]
        assert a.store.digest == b.store.digest
        assert sum(node.context.metrics["embeddings"] for node in (a, b)) == 2, "what each had made was handed over"


def test_two_users_with_two_namespaces_do_not_hear_each_other(server):
    one, two = (new_user(server, name, RULES[1].replace("t1:", f"{name}:")) for name in ("t1", "t2"))
    with node_on(one, "a", ChartRepository(), namespace="t1") as a:
        with node_on(two, "b", ChartRepository(), namespace="t2") as b:
            wait_for_rest(a)
            wait_for_rest(b)
            a.update_chart(Chart(chart_id=1, title="Revenue"))
            assert (len(a.store), len(b.store)) == (1, 0)
        with pytest.raises(CarrierRefused, match="vector:generation"):
            node_on(two, "c", ChartRepository(), namespace="t1").start()


# --- what else a server may be --------------------------------------------------------------------------------------


def test_another_database_number_needs_one_command_more(server):
    new_user(server, "copilot", RULES[0])
    url = url_of(server, "copilot", 3)
    with pytest.raises(CarrierRefused, match="select"):
        node_on(url, "a", ChartRepository()).start()
    allow(server, "copilot", RULES[2])
    live_a_little(url, ChartRepository())


def test_a_database_number_that_there_is_not_is_refused(server):
    with pytest.raises(CarrierRefused, match="database number"):
        node_on(url_of(server, database=99), "a", ChartRepository()).start()


def test_publish_and_subscribe_know_no_database_numbers_but_namespaces(server):
    with (
        node_on(url_of(server, database=0), "a", ChartRepository()) as a,
        node_on(url_of(server, database=3), "b", ChartRepository(), namespace="staging") as b,
        server.client() as client,
    ):
        wait_for_rest(a)
        wait_for_rest(b)
        heard = dict(client.pubsub_numsub("chart-vector-updates", "staging:chart-vector-updates"))
        assert heard == {b"chart-vector-updates": 1, b"staging:chart-vector-updates": 1}
        b.update_chart(Chart(chart_id=1, title="Revenue"))
        assert (len(a.store), len(b.store)) == (0, 1)


def without(*commands: str) -> list[str]:
    return [word for command in commands for word in ("--rename-command", command, "")]


def test_a_redis_without_config_and_client_serves():
    with LocalRedis(tcp=True, args=without("CONFIG", "CLIENT")) as server:
        live_a_little(url_of(server), ChartRepository())


@pytest.mark.parametrize(
    ("command", "words"), [("EVALSHA", "no Lua"), ("PUBLISH", "PUBLISH"), ("GETRANGE", "GETRANGE")]
)
def test_a_redis_that_lacks_a_command_is_refused_at_the_start(command, words):
    with LocalRedis(tcp=True, args=without(command)) as server:
        node = node_on(url_of(server), "a", ChartRepository())
        with pytest.raises(CarrierRefused, match=words):
            node.start()


def test_a_server_of_a_cluster_that_has_not_the_slot_is_refused_in_words():
    with LocalRedis(tcp=True, args=["--cluster-enabled", "yes", "--cluster-port", "0"]) as server:
        with server.client() as client:
            client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 1)
        node = node_on(url_of(server), "a", ChartRepository())
        assert not node.connect(), "a cluster without its slots is away"
        assert "CLUSTERDOWN" in node.status()["redis_reason"] or "slot" in node.status()["redis_reason"]


def test_what_is_no_redis_is_refused(tmp_path):
    """A web server, say: it answers, and not as Redis does."""
    import http.server
    import threading

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        try:
            with pytest.raises(CarrierRefused, match="no Redis"):
                node_on(f"redis://127.0.0.1:{web.server_port}/0", "a", ChartRepository()).start()
        finally:
            web.shutdown()


WRITES = """
import sys

opened = []
sys.dont_write_bytecode = True
sys.addaudithook(lambda event, given: event == "open" and opened.append((given[0], given[1], given[2])))
from copilotlab import Chart, ChartRepository, Node, load_embedder

with Node(ChartRepository(), load_embedder("hash"), sys.argv[1]) as node:
    node.update_chart(Chart(chart_id=1, title="Revenue"))
    assert node.rebuild().outcome == "published"
    assert node.search("revenue", k=1)["chart_id"].to_list() == [1]
O_WRITE = 3  # O_WRONLY, O_RDWR
print([name for name, mode, flags in opened if (flags & O_WRITE) and name != "/dev/null"])
"""


def test_a_node_writes_nothing_to_disk(server):
    """So its container may be read-only."""
    run = subprocess.run(
        [sys.executable, "-c", WRITES, url_of(server)], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.stdout.strip() == "[]", run.stdout + run.stderr


# --- a process of many nodes ----------------------------------------------------------------------------------------


@pytest.mark.alone
def test_many_nodes_of_one_process_count_one_outage_each_and_do_not_shout(notes):
    """Each newcomer asks all the others to say how they are. Answered one by one, 64 of them said 4,096 heartbeats,
    which each of them heard: so busy were they that they took Redis for dead."""
    count = 32
    policy = Policy(redis_timeout=5.0)  # a server that a busy machine does not let run is late, and no outage here
    charts = ChartRepository()
    for number in range(100):
        charts.save(Chart(chart_id=number, title=f"Revenue of product {number}"))
    with LocalRedis() as server:
        nodes = [node_on(server.url, f"n{number}", charts, policy=policy) for number in range(count)]
        try:
            for node in nodes:
                node.start()
            wait_for_rest(*nodes)
            server.kill()
            wait_until(lambda: not any(node.coordinator.connected for node in nodes), "all have noticed")
            heard = sum(node.context.metrics["received"] for node in nodes)
            server.start(keep_data=False)
            wait_until(lambda: all(node.coordinator.connected for node in nodes), "all are back")
            seconds = wait_until(
                lambda: (
                    len({node.store.digest for node in nodes}) == 1 and not any(node.status()["lag"] for node in nodes)
                ),
                "all agree",
            )
            heard = sum(node.context.metrics["received"] for node in nodes) - heard
            told = {entry.detail for node in nodes for entry in node.journal.entries() if entry.event == "redis_away"}
            assert [node.context.metrics["outages"] for node in nodes] == [1] * count, told
            assert heard < 12 * count * count, "not the cube of their number"
        finally:
            for node in nodes:
                node.stop()
    notes.append(f"{count} nodes of one process, after a server that came back empty: all agree {seconds:.1f} s later.")
