"""Several nodes with their threads on a real server, which is killed, frozen, cut off and emptied."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import replace

import pytest
from rest import wait_for_rest

from copilotlab import Chart, ChartRepository, Lab, LocalRedis, Node, Policy, load_embedder
from copilotlab.embedding.hashing import HashEmbedder
from copilotlab.lab import FAULTS, FragileModel, NotConverged
from copilotlab.protocol.carrier import CarrierRefused
from copilotlab.protocol.coordinator import BATCH_IN_PROGRESS, WAS_DOWN
from copilotlab.protocol.events import DELETIONS, UPDATES

# A busy machine stalls for a while; that is no outage here.
QUICK = Policy(probe_interval=0.05, heartbeat_interval=0.1, redis_timeout=1.0)


def chart(chart_id: int, title: str = "") -> Chart:
    return Chart(chart_id=chart_id, title=title or f"Revenue of product {chart_id}")


def catalogue(count: int) -> ChartRepository:
    charts = ChartRepository()
    charts.save_many([chart(chart_id) for chart_id in range(1, count + 1)])
    return charts


def wait_until(condition, timeout=30.0):
    until = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < until, "the condition did not come true in time"
        time.sleep(0.005)


@pytest.fixture
def lab():
    with Lab(nodes=3, model="hash", charts=catalogue(200), policy=QUICK) as lab:
        lab.wait_converged()
        wait_for_rest(*lab.nodes)
        yield lab


def embeddings(lab):
    return sum(node.counters["embeddings"] for node in lab.nodes)


def test_a_lab_starts_with_all_charts_in_every_node(lab):
    assert [len(node.store) for node in lab.nodes] == [200, 200, 200]
    assert embeddings(lab) == 200


def test_an_update_and_a_deletion_reach_every_node(lab):
    assert lab.nodes[0].update_chart(chart(7, "Espresso consumption")).outcome == "published"
    assert lab.nodes[1].delete_chart(8).outcome == "published"

    lab.wait_converged()
    assert lab.nodes[2].search("espresso consumption", k=1)["chart_id"].to_list() == [7]
    assert 8 not in lab.nodes[2].search("revenue of product 8", k=200)["chart_id"].to_list()
    assert embeddings(lab) == 201


def test_everything_goes_on_without_the_server_and_agrees_when_it_is_back_empty(lab):
    lab.redis.kill()
    assert lab.nodes[0].update_chart(chart(7, "Espresso consumption")).outcome == "local"
    assert lab.nodes[1].update_chart(chart(900, "Tea consumption")).outcome == "local"
    assert lab.nodes[2].delete_chart(9).outcome == "local"
    assert [node.search("revenue of product 5", k=3).height for node in lab.nodes] == [3, 3, 3]
    wait_until(lambda: not any(node.coordinator.connected for node in lab.nodes))

    lab.redis.start(keep_data=False)

    lab.wait_converged()
    assert lab.nodes[2].search("tea consumption", k=1)["chart_id"].to_list() == [900]
    wait_for_rest(*lab.nodes)
    assert not lab.redis.client().exists(BATCH_IN_PROGRESS, WAS_DOWN)


def test_two_nodes_that_changed_one_chart_while_redis_was_away_end_alike(lab):
    lab.redis.kill()
    lab.nodes[0].update_chart(chart(7, "Espresso consumption"))
    lab.nodes[1].update_chart(chart(7, "Tea consumption"))
    lab.nodes[2].chart_changed(7)
    lab.redis.start(keep_data=False)

    lab.wait_converged()
    assert lab.nodes[0].search("tea consumption", k=1)["chart_id"].to_list() == [7]


def test_a_frozen_server_delays_one_call_and_no_other(lab):
    lab.redis.pause()
    outcomes = [lab.nodes[0].update_chart(chart(7, f"Espresso number {number}")).outcome for number in range(20)]

    assert outcomes == ["local"] * 20
    assert lab.nodes[0].counters["outages"] == 1
    lab.redis.resume()
    lab.wait_converged()


def test_a_node_that_was_cut_off_catches_up(lab):
    lab.partition(2)
    wait_until(lambda: not lab.nodes[2].coordinator.connected)
    lab.nodes[0].update_chart(chart(7, "Espresso consumption"))
    lab.nodes[0].delete_chart(8)
    assert lab.nodes[2].update_chart(chart(9, "Tea consumption")).outcome == "local"

    lab.heal(2)

    lab.wait_converged()
    assert lab.nodes[0].search("tea consumption", k=1)["chart_id"].to_list() == [9]


def test_not_converged_says_what_differs(lab):
    lab.partition(2)
    wait_until(lambda: not lab.nodes[2].coordinator.connected)
    revision = lab.nodes[0].update_chart(chart(7, "Espresso consumption")).revision
    wait_until(lambda: lab.nodes[1].store.revision(7) == revision)

    with pytest.raises(NotConverged, match=r"node-2.*7.*revision") as error:
        lab.wait_converged(timeout=0.2)
    assert error.value.differences.rows() == [("node-2", 7, "revision")]


def test_a_batch_whose_holder_was_killed_is_taken_over():
    policy = replace(QUICK, batch_timeout=3.0, chunk_size=8)
    with Lab(nodes=3, model="hash", charts=catalogue(200), policy=policy) as lab:
        wait_for_rest(*lab.nodes)
        holder = lab.nodes[0]
        assert holder.coordinator.take_lease()
        assert lab.nodes[1].update_chart(chart(7, "Espresso consumption")).outcome == "deferred"
        lab.kill(0)

        lab.wait_converged(timeout=30)
        assert lab.nodes[2].search("espresso consumption", k=1)["chart_id"].to_list() == [7]


def test_rubbish_on_the_channels_is_counted_and_dropped(lab):
    client = lab.redis.client()
    for channel in (UPDATES, DELETIONS):
        for payload in (b"", b"rubbish", b"\x01rubbish", b'{"chartId": 1}'):
            client.publish(channel, payload)
    node = lab.nodes[1]

    wait_until(lambda: node.counters["dropped_version"] + node.counters["dropped_malformed"] == 8)
    lab.nodes[0].update_chart(chart(7, "Espresso consumption"))
    lab.wait_converged()
    assert node.running


def test_two_namespaces_on_one_server_never_mix():
    with LocalRedis() as server:
        first, second = (
            Node(ChartRepository(), load_embedder("hash"), server.url, namespace=name, policy=QUICK)
            for name in ("first", "second")
        )
        other = Node(first.charts, first.embedder, server.url, namespace="first", policy=QUICK)
        with first, second, other:
            wait_for_rest(first, other)
            wait_for_rest(second)
            lease = first.coordinator.take_lease()
            assert second.coordinator.flags().batch_holder is None
            first.coordinator.release_lease(lease, recovered=True)
            first.update_chart(chart(7))
            wait_until(lambda: 7 in other.store)
            assert second.counters["applied"] == 0
            assert second.status()["peers"] == 0


def test_two_models_in_one_namespace_never_mix():
    with LocalRedis() as server:
        charts = ChartRepository()
        small, large = (
            Node(charts, load_embedder("hash", dim=dim), server.url, policy=QUICK, node_id=f"dim-{dim}")
            for dim in (64, 128)
        )
        with small, large:
            wait_for_rest(small)
            wait_for_rest(large)
            dropped = large.counters["dropped_foreign_model"]
            small.update_chart(chart(7))
            wait_until(lambda: large.counters["dropped_foreign_model"] > dropped)
            wait_until(
                lambda: large.status()["lag"] == 1
            )  # it sees that it lacks the chart: what it heard did not help
            assert 7 not in large.store


def test_from_how_many_charts_on_a_graph_is_built_is_for_the_owner_to_say():
    charts = ChartRepository()
    charts.save_many([chart(i) for i in range(40)])
    with Lab(1, "hash", charts, QUICK, exact_limit=20) as lab:
        wait_until(lambda: lab.nodes[0].store.index_state == "graph")
    with Lab(1, "hash", charts, QUICK, exact_limit=40) as lab:
        assert lab.nodes[0].store.index_state == "exact"


@pytest.mark.parametrize("wrong", [-1, 0.5, True, None, "never"])
def test_a_limit_that_is_none_is_refused_before_anything_happens(wrong):
    with pytest.raises(ValueError, match="exact_limit must be an integer from 0"):
        Node(ChartRepository(), load_embedder("hash"), exact_limit=wrong)
    with pytest.raises(ValueError, match="exact_limit must be an integer from 0"):
        Lab(1, "hash", exact_limit=wrong)


# --- wrong addresses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["http://127.0.0.1:6379", "127.0.0.1:6379", "", "redis://127.0.0.1:port/0", 6379, None])
def test_a_url_that_is_none_is_refused_before_anything_happens(url):
    with pytest.raises(ValueError, match=r"redis://127\.0\.0\.1:6379/0"):
        Node(ChartRepository(), load_embedder("hash"), url)


def test_a_node_starts_without_redis_and_says_so(caplog):
    with (
        Node(catalogue(3), load_embedder("hash"), "redis://:secret@127.0.0.1:1/0", policy=QUICK) as node,
    ):
        assert node.rebuild().outcome == "local"
        assert node.search("revenue of product 2", k=1)["chart_id"].to_list() == [2]
        status = node.status()

    assert status["redis"] == "away"
    assert "127.0.0.1:1" in status["redis_reason"]
    assert "secret" not in f"{status} {node!r} {caplog.text}"
    assert "redis away" in caplog.text


def test_a_wrong_password_is_an_error_that_says_so():
    with LocalRedis(tcp=True, password="right") as server:
        host, port = server.address
        node = Node(ChartRepository(), load_embedder("hash"), f"redis://:wrong@{host}:{port}/0", policy=QUICK)
        with pytest.raises(CarrierRefused, match="user and password") as error:
            node.start()
        assert "wrong@" not in str(error.value)
        with Node(ChartRepository(), load_embedder("hash"), server.url, policy=QUICK) as node:
            assert node.coordinator.connected


# --- life ---------------------------------------------------------------------------------------------------------


def test_a_closed_lab_leaves_no_thread_and_no_server():

    before = set(threading.enumerate())
    with Lab(nodes=2, model="hash", charts=catalogue(5), policy=QUICK) as lab:
        pid = lab.redis.pid
        assert pid is not None
        assert set(threading.enumerate()) - before

    wait_until(lambda: set(threading.enumerate()) <= before)
    assert not lab.redis.running


def storms():
    return [thread for thread in threading.enumerate() if thread.name == "copilotlab-storm"]


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_storm_outlasts_a_restart_of_the_server_and_ends_with_the_lab():
    with LocalRedis() as server:
        with Lab(nodes=1, model="hash", policy=QUICK, redis=server) as lab:
            FAULTS["client kill storm"].start(lab, 0)
            server.kill()
            wait_until(lambda: lab.nodes[0].coordinator.connected is False)
            assert storms()
            server.start()
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(30)
                client.connect(server.endpoint)
                assert client.recv(1) == b""  # the server hangs up, though it was asked nothing
        wait_until(lambda: not storms())
        assert server.running


def test_what_cuts_nobody_off_leaves_the_server_and_the_line_as_they_were(lab):
    lab.kill(2)
    lab.heal(2)
    with lab.redis.client() as client:
        before = client.config_get("client-output-buffer-limit")
        with pytest.raises(RuntimeError, match="node 2 was not cut off"):
            FAULTS["output buffer cut"].start(lab, 2)
        assert client.config_get("client-output-buffer-limit") == before
    assert lab.proxies[2].state == "open"


def test_the_timeline_tells_the_story(lab):
    lab.partition(1)
    wait_until(lambda: not lab.nodes[1].coordinator.connected)
    lab.heal(1)
    wait_until(lambda: lab.nodes[1].coordinator.connected)

    story = lab.timeline().rows()
    events = [(node, event) for _, node, event, _ in story]
    assert events.index(("lab", "partition")) < events.index(("node-1", "redis_away"))
    assert events.index(("lab", "heal")) < events.index(("node-1", "redis_back"))
    assert [seconds for seconds, *_ in story] == sorted(seconds for seconds, *_ in story)


def test_a_rebuild_can_be_interrupted_and_gives_the_flag_back():
    from copilotlab.embedding import Embedder

    class Interrupted(Embedder):
        def __init__(self):
            super().__init__(name="interrupted", fingerprint="interrupted-1", dim=64)

        def _encode(self, batch):
            raise KeyboardInterrupt

    with LocalRedis() as server:
        node = Node(catalogue(3), Interrupted(), server.url, policy=QUICK)
        node.coordinator.connect()
        with pytest.raises(KeyboardInterrupt):
            node.rebuild()
        assert not server.client().exists(BATCH_IN_PROGRESS)
        node.stop()


def test_a_model_that_fails_is_an_error_and_changes_nothing():
    class Failing(HashEmbedder):
        failing = False

        def _encode(self, batch):
            if self.failing:
                raise OSError("no such device")
            return super()._encode(batch)

    model = Failing()
    with LocalRedis() as server:
        charts = catalogue(3)
        with Node(charts, model, server.url, policy=QUICK) as node:
            wait_for_rest(node)
            model.failing = True
            with pytest.raises(OSError, match="no such device"):
                node.update_chart(chart(2, "Other words"))
            assert (charts.revision, node.store.revision(2)) == (3, 2)
            charts.save(chart(3, "Saved elsewhere"))
            with pytest.raises(OSError, match="no such device"):
                node.rebuild()
            assert not server.client().exists(BATCH_IN_PROGRESS)
            assert node.running
            model.failing = False
            assert node.update_chart(chart(2, "Other words")).outcome == "published"
            assert node.rebuild().outcome == "published"
            assert node.store.revision(3) == 4


def test_stopping_a_node_ends_the_rebuild_that_somebody_waits_for():
    class Slow(HashEmbedder):
        def _encode(self, batch):
            time.sleep(0.05)
            return super()._encode(batch)

    with LocalRedis() as server:
        node = Node(catalogue(2_000), Slow(), server.url, policy=QUICK).start()
        results = []
        waiting = threading.Thread(target=lambda: results.append(node.rebuild()))
        waiting.start()
        wait_until(lambda: 0 < len(node.store) < 2_000)
        node.stop()
        waiting.join(timeout=10)

        assert results[0].outcome == "cancelled"
        assert node.counters["batches"] == 1
        assert not server.client().exists(BATCH_IN_PROGRESS)


def test_a_lab_that_does_not_start_leaves_nothing_running():
    class Broken(HashEmbedder):
        def _encode(self, batch):
            raise OSError("no such device")

    before = set(threading.enumerate())
    lab = Lab(nodes=2, model=Broken(), charts=catalogue(3), policy=QUICK)
    with pytest.raises(OSError, match="no such device"), lab:
        pytest.fail("it started")

    wait_until(lambda: set(threading.enumerate()) <= before)
    assert not lab.redis.running
    for again in (lab.start, lab.add_node):
        with pytest.raises(RuntimeError, match="closed"):
            again()


def test_the_timeline_has_the_faults_of_the_server(lab):
    lab.redis.pause()
    lab.redis.resume()
    lab.redis.kill()
    lab.redis.start(keep_data=False)

    story = lab.timeline().rows()
    assert [event for _, node, event, detail in story if (node, detail) == ("lab", "server")] == [
        "start_with_data",
        "pause",
        "resume",
        "kill",
        "start_empty",
    ]


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"policy": "seed"}, TypeError),
        ({"model": 5}, TypeError),
        ({"nodes": 0}, ValueError),
        ({"redis": "redis://127.0.0.1:6379/0"}, TypeError),
    ],
)
def test_a_lab_of_wrong_things_is_refused_before_anything_starts(wrong, error):
    (name,) = wrong
    with pytest.raises(error, match=name):
        Lab(**{"model": "hash", **wrong})


def test_a_node_of_the_lab_that_is_none_is_named(lab):
    for index in ("a", -1, 3, True):
        with pytest.raises(IndexError, match="0 to 2"):
            lab.partition(index)
    for seconds in ("x", -1, float("nan"), True, None):
        with pytest.raises(ValueError, match=rf"delay\(seconds={seconds!r}\); expected a finite number of seconds"):
            lab.delay(1, seconds)
    assert not {"partition", "delay"} & set(lab.timeline()["event"])


def test_a_lab_without_a_living_node_says_so():
    with Lab(nodes=2, model="hash", policy=QUICK) as lab:
        lab.kill(0)
        lab.freeze(1)
        with pytest.raises(NotConverged, match=r"within 0\.01 s: no node is alive"):
            lab.wait_converged(0.01)


def test_a_fragile_model_can_fail_also_where_its_vectors_are_rounded():
    model = FragileModel(load_embedder("hash"))
    with Lab(1, model, policy=replace(QUICK, vectors="float16")) as lab:
        FAULTS["model fails"].start(lab, 0)
        assert not model.gate.passes()
        FAULTS["model fails"].end(lab, 0)
        assert model.gate.passes()
