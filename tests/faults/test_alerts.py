"""Each alert is raised by a real fault on a real server, with its evidence, and ends by itself when the fault does.
Meanwhile, what the runbook says to look at is there."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from runbook import look, to_see

from copilotlab import Chart, Cluster, Lab, LocalRedis, Node, Policy, load_embedder
from copilotlab.charts import ChartRepository
from copilotlab.lab.faults import FAULTS
from copilotlab.lab.fragile_model import FragileModel
from copilotlab.lab.fragile_repository import FragileRepository
from copilotlab.lab.simulated_lab import simulated_charts
from copilotlab.monitoring import Thresholds
from copilotlab.monitoring.happenings import AlertEnded, AlertRaised

LIMIT = 30.0  # seconds for what is certain to come
CHARTS = 40
POLICY = Policy(heartbeat_interval=0.2, probe_interval=0.1, adopt_after=0.5, claim_timeout=1, chunk_size=8)
PROMPT = Thresholds(
    redis_away=0.3,
    repository_away=0.3,
    behind=0.5,
    node_silent=1.0,
    batch_slack=0.5,
    batch_unknown=0.5,
    recent=1.0,
    calm=0.3,
)


@pytest.fixture
def lab():
    charts = FragileRepository()
    charts.save_many(simulated_charts(CHARTS))
    with Lab(2, FragileModel(load_embedder("hash"), seed=1), charts, POLICY) as lab:
        lab.wait_converged(LIMIT)
        for node in lab.nodes:
            node.alerts.thresholds = PROMPT
        yield lab
        charts.gate.mend()
        lab.embedder.gate.mend()


@pytest.fixture
def cluster(lab):
    with Cluster(lab.redis.url, charts=lab.charts, policy=POLICY) as cluster:
        cluster.wait(2, LIMIT, agree=True)
        yield cluster


def wait_for(condition) -> None:
    until = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < until, f"it did not come within {LIMIT:g} s"
        time.sleep(0.01)


def raised(node, name):
    """The alert of that name, waited for."""
    wait_for(lambda: name in {alert.name for alert in node.alerts.active()})
    return next(alert for alert in node.alerts.active() if alert.name == name)


def wait_for_its_end(node, name) -> None:
    wait_for(lambda: name not in {alert.name for alert in node.alerts.active()})


def told(node, kind, name):
    """What a listener heard of that alert; to be called before the fault."""
    heard = []
    node.listen_to(
        lambda happening: heard.append(happening) if isinstance(happening, kind) and happening.name == name else None
    )
    return heard


def test_redis_away_is_an_alert_in_status_log_and_journal_and_ends_when_it_is_back(lab, caplog):
    node = lab.nodes[0]
    began, ended = told(node, AlertRaised, "redis_away"), told(node, AlertEnded, "redis_away")
    lab.redis.kill()
    alert = raised(node, "redis_away")

    assert alert.severity == "warning"
    assert alert.evidence["state"] == "away"
    assert alert.evidence["away_seconds"] >= PROMPT.redis_away
    assert "come back by themselves" in alert.remedy
    seen = look("redis_away", node=node)
    assert seen['node.status()["redis_reason"]'] == alert.evidence["reason"]
    assert "Redis is away" in seen["/healthz"]
    (shown,) = (row for row in node.status()["alerts"] if row["name"] == "redis_away")
    assert shown["seconds"] >= PROMPT.redis_away
    assert shown["since"] == alert.since
    wait_for(lambda: f"node {node.node_id}: alert redis away" in caplog.text)
    assert [happening.severity for happening in began] == ["warning"]
    assert ended == []

    lab.redis.start(keep_data=False)
    wait_for_its_end(node, "redis_away")
    wait_for(lambda: ended)
    assert ended[0].seconds >= PROMPT.redis_away
    events = [entry.event for entry in node.journal.entries()]
    assert events.index("alert_redis_away") < events.index("alert_redis_away_ended")
    assert lab.status()["alerts"].to_list() is not None  # a frame of it can be made, whatever the nodes have to say


def test_a_batch_that_takes_longer_than_its_own_estimate_is_an_alert(lab, cluster):
    node = lab.nodes[0]
    FAULTS["model hangs"].start(lab, 0)
    lab.charts.save_many(replace(chart, description="anew") for chart in simulated_charts(CHARTS))
    wait_for(lambda: any(n.replica.batches.present for n in lab.nodes))
    holder = next(n for n in lab.nodes if n.replica.batches.present)
    alert = raised(holder, "batch_slow")

    assert alert.evidence["seconds"] >= PROMPT.batch_slack
    assert alert.evidence["done"] < alert.evidence["total"] == CHARTS
    assert holder.search("revenue", k=1).height == 1
    assert f"/{CHARTS}" in look("batch_slow", node=holder)['node.status()["batch"]']
    wait_for(lambda: look("batch_slow", cluster=cluster)["cluster.lease"].holder == holder.node_id)

    FAULTS["model hangs"].end(lab, 0)
    wait_for_its_end(holder, "batch_slow")
    lab.wait_converged(LIMIT)
    assert node.alerts.active() == [] or node is not holder


def test_stores_that_differ_at_one_revision_are_an_alert(lab, cluster, monkeypatch):
    first, second = lab.nodes
    wait_for(lambda: first.replica.follower.complete_to == second.replica.follower.complete_to == CHARTS)
    held = first.store.get(1)
    other = max((replace_vector(held, seed) for seed in range(99)), key=lambda record: record.vector_hash)
    monkeypatch.setattr(second.store, "put_many", lambda _records: 0)  # it takes nothing in
    assert first.store.put(other)
    alert = raised(first, "stores_differ")

    assert alert.severity == "critical"
    assert alert.evidence["nodes"] == second.node_id
    assert alert.evidence["revision"] == CHARTS
    assert alert.evidence["digest_here"] != alert.evidence["digest_there"]
    raised(second, "stores_differ")
    (code,) = (code for code in to_see("stores_differ") if code.startswith("cluster"))
    wait_for(lambda: look("stores_differ", cluster=cluster)[code]["difference"].to_list() == ["vector"])

    monkeypatch.undo()
    for node in lab.nodes:
        wait_for_its_end(node, "stores_differ")
    lab.wait_converged(LIMIT)


def journal(node, alert):
    """The lines of the journal, if the runbook says to read them."""
    return look(alert, node=node)["node.journal.entries()"]


def replace_vector(record, seed):
    """The record with another vector for the same words, as another batch may make it."""
    import numpy as np

    from copilotlab.store import Record

    vector = record.vector + np.float32(1e-4) * np.random.default_rng(seed).standard_normal(len(record.vector))
    vector = (vector / np.linalg.norm(vector)).astype(np.float32)
    return Record.of(record.chart_id, record.revision, record.content_hash, vector)


@pytest.mark.parametrize("fault", ["repository unreachable", "repository hangs"])
def test_a_repository_that_does_not_answer_is_an_alert(lab, fault):
    node = lab.nodes[0]
    FAULTS[fault].start(lab, 0)
    alert = raised(node, "repository_away")
    assert alert.evidence["seconds_without_answer"] >= PROMPT.repository_away
    assert alert.severity == "critical"
    words = [entry.detail for entry in journal(node, "repository_away") if entry.event == "repository_away"]
    assert bool(words) == (fault == "repository unreachable"), "one that hangs says nothing"

    FAULTS[fault].end(lab, 0)
    wait_for_its_end(node, "repository_away")


def test_a_node_that_says_nothing_is_an_alert_until_it_is_heard_or_forgotten(lab, cluster):
    node = lab.nodes[0]
    lab.partition(1)
    alert = raised(node, "node_silent")
    assert alert.evidence["nodes"] == "node-1"
    assert alert.evidence["silent_seconds"] >= PROMPT.node_silent
    assert state_of_second(cluster) == "silent"

    lab.heal(1)
    wait_for_its_end(node, "node_silent")
    lab.partition(1)
    raised(node, "node_silent")
    node.alerts.thresholds = replace(PROMPT, node_forgotten=1.5)
    wait_for_its_end(node, "node_silent")

    lab.heal(1)
    wait_for(lambda: node.status()["peers"] == 1)
    lab.nodes[1].stop()  # in order: nobody misses it
    wait_for(lambda: not node.replica.peers.known())
    wait_for(lambda: state_of_second(cluster) == "stopped")


def state_of_second(cluster):
    return look("node_silent", cluster=cluster)["cluster.nodes()"]["state"].to_list()[1]


def test_a_model_that_fails_is_an_alert_and_charts_that_stay_away_for_it_are_another(lab, cluster):
    FAULTS["model fails"].start(lab, 0)
    lab.charts.save_many(replace(chart, description="anew") for chart in simulated_charts(CHARTS))
    wait_for(lambda: any("embedder_failing" in {alert.name for alert in node.alerts.active()} for node in lab.nodes))
    node = next(n for n in lab.nodes if "embedder_failing" in {alert.name for alert in n.alerts.active()})
    alert = raised(node, "embedder_failing")
    assert "the model has failed" in alert.evidence["error"]
    assert alert.evidence["charts_missing"] == CHARTS
    behind = raised(node, "behind")
    assert behind.evidence["charts"] == CHARTS
    assert behind.evidence["seconds"] >= PROMPT.behind
    words = [entry.detail for entry in journal(node, "embedder_failing") if entry.event == "rebuild_failed"]
    assert "the model has failed" in words[0]
    seen = look("behind", node=node, cluster=cluster)
    assert seen['node.status()["lag"]'] == CHARTS
    assert "still to come" in seen['node.status()["incomplete"]']
    assert {'node.status()["batch"]', "cluster.nodes()"} < seen.keys()

    FAULTS["model fails"].end(lab, 0)
    for node in lab.nodes:
        wait_for_its_end(node, "embedder_failing")
        wait_for_its_end(node, "behind")


def test_charts_that_are_skipped_are_an_alert():
    charts = FragileRepository()
    charts.save_many(simulated_charts(CHARTS))
    charts.spoil()
    with Lab(1, "hash", charts, POLICY) as lab:
        (node,) = lab.nodes
        node.alerts.thresholds = PROMPT
        alert = raised(node, "charts_skipped")
        assert alert.evidence["charts"] == 1
        assert "chart 1" in alert.evidence["example"]
        assert look("charts_skipped", node=node)["node.skipped()"]["chart_id"].to_list() == [1]

        FAULTS["bad row"].end(lab, 0)
        wait_for_its_end(node, "charts_skipped")


def test_two_nodes_of_one_name_are_an_alert(lab, cluster):
    node = lab.nodes[0]
    with Node(lab.charts, lab.embedder, lab.redis.url, policy=POLICY, node_id=node.node_id):
        alert = raised(node, "namesakes")
        assert alert.severity == "critical"
        assert alert.evidence["events_dropped"] >= 1
        seen = look("namesakes", node=node, cluster=cluster)
        assert seen['node.metrics()["dropped_namesake"]'] >= 1
        wait_for(lambda: cluster.nodes()["node"].to_list().count(node.node_id) == 2)
    wait_for_its_end(node, "namesakes")


def test_two_catalogues_on_one_channel_are_an_alert(lab, cluster):
    node = lab.nodes[0]
    with (
        ChartRepository() as others,
        Node(others, lab.embedder, lab.redis.url, policy=POLICY, node_id="stranger") as stranger,
    ):
        stranger.update_chart(Chart(chart_id=1, title="A chart of another catalogue"))
        alert = raised(node, "second_catalogue")
        assert alert.evidence["events_dropped"] >= 1
        assert "namespace" in alert.remedy
        assert list(look("second_catalogue", node=node, cluster=cluster)["cluster.speakers()"]) == ["stranger"]
        assert "dropped_foreign_catalogue" in [entry.event for entry in journal(node, "second_catalogue")]
    wait_for_its_end(node, "second_catalogue")


def test_a_node_alone_that_is_well_has_no_alert():
    with LocalRedis() as server, ChartRepository() as charts:
        charts.save_many(simulated_charts(CHARTS))
        with Node(charts, load_embedder("hash"), server.url, policy=POLICY) as node:
            node.alerts.thresholds = PROMPT
            node.wait_complete(LIMIT)
            looks = node.metrics()["received"]
            wait_for(lambda: node.metrics()["received"] > looks + 5)
            assert node.alerts.active() == []
            assert node.status()["alerts"] == []
