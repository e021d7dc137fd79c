"""A node's metrics as Prometheus scrapes them, and what is made of them: rules and a dashboard name no other."""

from __future__ import annotations

import gc
import json
import os
import re
import statistics
import subprocess
import time
import weakref
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from copilotlab import ChartRepository, Node, load_embedder
from copilotlab.lab.simulated_lab import SimulatedLab, simulated_chart
from copilotlab.monitoring.alerts import CONDITIONS
from copilotlab.monitoring.happenings import Dropped, NotSaid, Searched

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "copilotlab.rules.yml"
RULES_TEST = RULES.with_name("copilotlab.rules_test.yml")
DASHBOARD = ROOT / "deploy" / "grafana" / "copilotlab.json"
UNITS = ("seconds", "bytes", "ratio", "revision", "revisions", "charts", "info", "total")


def scraped(node) -> dict[str, dict[tuple[str, ...], float]]:
    """The samples of a live scrape: name -> the labels' values beside who -> value."""
    registry = CollectorRegistry()
    registry.register(node.collector())
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            own = tuple(v for k, v in sample.labels.items() if k not in ("namespace", "node", "model", "le"))
            found.setdefault(sample.name, {})[own] = sample.value
    return found


def busy_lab() -> SimulatedLab:
    """Two nodes to which nearly everything has happened that is counted."""
    lab = SimulatedLab(2)
    first = lab.nodes[0]
    first.collector()
    lab.fill(20)
    first.search("revenue")
    first.search_many(["revenue", "costs"])
    first.update_chart(simulated_chart(1, "Costs"))
    first.delete_chart(2)
    lab.run(5.0)
    lab.redis.stop()
    lab.run(3.0)
    first.update_chart(simulated_chart(3, "Away"))
    lab.redis.start(keep_data=False)
    lab.run(20.0)
    return lab


def test_a_scrape_says_what_has_happened_on_a_node():
    lab = busy_lab()
    first = lab.nodes[0]
    found = scraped(first)
    one = {name: rows[()] for name, rows in found.items() if () in rows}

    assert one["copilotlab_searches_total"] == 3
    assert one["copilotlab_search_duration_seconds_count"] == 2
    assert one["copilotlab_search_duration_seconds_sum"] > 0
    assert one["copilotlab_charts"] == 19
    assert one["copilotlab_redis_up"] == 1
    assert one["copilotlab_redis_outages_total"] == 1
    assert 2.0 < one["copilotlab_redis_downtime_seconds_total"] < 5.0
    assert one["copilotlab_redis_away_seconds"] == 0
    assert one["copilotlab_redis_memory_losses_total"] == 1
    assert one["copilotlab_repository_revision"] == one["copilotlab_complete_revision"] == lab.charts.revision
    assert one["copilotlab_behind_charts"] == one["copilotlab_behind_revisions"] == 0
    assert one["copilotlab_embeddings_total"] == 22
    assert one["copilotlab_peers"] == 1
    assert abs(one["copilotlab_last_full_sync_timestamp_seconds"] - time.time()) < 3600
    changes = found["copilotlab_changes_total"]
    assert changes == {("update", "published"): 1, ("delete", "published"): 1, ("update", "local"): 1}
    said = found["copilotlab_publications_total"]
    assert said[("ChartDeleted",)] == 1
    assert said[("BatchStarted",)] >= 1
    assert sum(found["copilotlab_batches_total"].values()) >= 2
    assert found["copilotlab_index_state"] == {("exact",): 1, ("graph",): 0, ("building",): 0}
    assert set(found["copilotlab_alert_active"]) == {(condition.name, condition.severity) for condition in CONDITIONS}
    other = scraped(lab.nodes[1])
    assert other["copilotlab_store_digest"] == found["copilotlab_store_digest"], "they hold the same"


def test_what_is_dropped_and_what_could_not_be_said_is_counted_by_kind():
    node = SimulatedLab(1).nodes[0]
    node.collector()
    for kind in ("forged", "forged", "version"):
        node.context.tell(Dropped(kind, "as a test has it"))
    node.context.tell(NotSaid("ChartUpdated"))
    found = scraped(node)

    assert found["copilotlab_events_dropped_total"] == {("forged",): 2, ("version",): 1}
    assert found["copilotlab_publications_failed_total"] == {("ChartUpdated",): 1}
    assert found["copilotlab_publications_total"][("ChartUpdated",)] == 1, "it was tried"


def test_an_outage_shows_while_it_lasts():
    lab = SimulatedLab(1)
    node = lab.nodes[0]
    node.collector()
    lab.run(2.0)
    lab.redis.stop()
    lab.run(15.0)
    found = scraped(node)

    assert found["copilotlab_redis_up"][()] == 0
    assert found["copilotlab_redis_away_seconds"][()] > 10
    assert found["copilotlab_redis_downtime_seconds_total"][()] > 10
    assert found["copilotlab_alert_active"][("redis_away", "warning")] == 1
    lab.redis.start()
    lab.run(10.0)
    assert scraped(node)["copilotlab_alert_active"][("redis_away", "warning")] == 0


def test_every_series_says_whose_it_is_and_every_name_has_its_unit():
    node = SimulatedLab(1).nodes[0]
    without_unit = {"copilotlab_redis_up", "copilotlab_redis_refused", "copilotlab_peers", "copilotlab_skipped_charts"}
    without_unit |= {"copilotlab_lease_held", "copilotlab_batch_running", "copilotlab_batch_charts_done"}
    without_unit |= {"copilotlab_index_state", "copilotlab_alert_active", "copilotlab_store_digest"}
    for family in node.collector().collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        assert name.startswith("copilotlab_")
        assert family.documentation.endswith(".")
        assert name in without_unit or name.rpartition("_")[2] in UNITS, name
        for sample in family.samples:
            whose = {"namespace", "node", "model"} <= sample.labels.keys()
            assert whose or family.name == "copilotlab_build_info"


def test_a_collector_is_made_once_and_does_not_keep_its_node():
    registry = CollectorRegistry()
    node = Node(ChartRepository(), load_embedder("hash"))
    collector, gone = node.collector(), weakref.ref(node)
    assert node.collector() is collector
    registry.register(collector)
    assert b"copilotlab_charts" in generate_latest(registry)
    del node
    gc.collect()
    assert gone() is None
    assert generate_latest(registry) == b""


# --- what is made of them ---------------------------------------------------------------------------------------------


def names_in(text: str) -> set[str]:
    return set(re.findall(r"copilotlab_[a-z_]+", text))


def known_names() -> set[str]:
    """All that a scrape can show: families without a sample at the moment too, since they name themselves."""
    lab = busy_lab()
    lab.nodes[0].context.tell(Dropped("forged", "as a test has it"))
    live = set(scraped(lab.nodes[0]))
    for family in lab.nodes[0].collector().collect():
        live.add(family.name + ("_total" if family.type == "counter" else ""))
    return live


def test_the_rules_name_only_metrics_that_a_live_scrape_has():
    rules = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    named = {name for rule in rules for name in names_in(rule["expr"])}
    assert len(named) > 10
    assert named - known_names() == set()


def test_the_dashboard_names_only_metrics_that_a_live_scrape_has_and_nearly_all_of_those():
    dashboard = json.loads(DASHBOARD.read_text())
    named = {n for panel in dashboard["panels"] for t in panel.get("targets", []) for n in names_in(t["expr"])}
    known = known_names()
    assert named - known == set()
    families = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in known}
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in named}
    assert families - shown == set(), "a metric that no panel shows"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))


def test_prometheus_own_tool_finds_nothing_wrong_with_the_rules_and_they_do_as_their_tests_say():
    tool = Path(os.environ.get("COPILOTLAB_PROMTOOL") or ROOT / "build" / "prometheus" / "promtool")
    if not tool.exists():
        why = "no promtool: make prometheus, or set COPILOTLAB_PROMTOOL"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    for words in (("check", "rules", RULES.name), ("test", "rules", RULES_TEST.name)):
        done = subprocess.run([tool, *words], cwd=RULES.parent, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
    node = busy_lab().nodes[0]
    registry = CollectorRegistry()
    registry.register(node.collector())
    lint = [tool, "check", "metrics"]
    done = subprocess.run(lint, input=generate_latest(registry), capture_output=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_rule_has_a_test():
    rules = {rule["alert"] for rule in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]}
    tested = set(re.findall(r"Copilotlab\w+", RULES_TEST.read_text()))
    assert rules == tested


# --- what it costs ----------------------------------------------------------------------------------------------------


@pytest.mark.alone
def test_recording_costs_a_search_less_than_two_percent():
    lab = SimulatedLab(1)
    lab.fill(1_000)
    node = lab.nodes[0]
    node.collector()
    node.search("revenue by month")  # its vector and its charts are at hand from now on: the quickest search there is
    searched = Searched(1, 0.0005)

    def seconds(call, times: int) -> float:
        began = time.thread_time()
        for _ in range(times):
            call()
        return (time.thread_time() - began) / times

    searches, records = [], []
    for _ in range(40):  # in turns: what else the machine does falls on both alike
        searches.append(seconds(lambda: node.search("revenue by month"), 20))
        records.append(seconds(lambda: node.context.tell(searched), 500))
    share = statistics.median(records) / statistics.median(searches)
    print(f"all recording takes {share:.2%} of a search of {statistics.median(searches) * 1e6:.0f} us")
    assert share < 0.02
