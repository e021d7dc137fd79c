"""All nodes of a namespace, watched by one who holds no vectors: driven step by step, with time under control."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Annotated

import msgspec
import pytest

from copilotlab import ChartRepository, Cluster, Node, Policy
from copilotlab.cluster import ActionRefused, NodeSilent
from copilotlab.lab.simulated_lab import SimulatedLab, simulated_chart
from copilotlab.lab.simulated_redis import SimulatedCarrier
from copilotlab.monitoring import Thresholds
from copilotlab.monitoring.happenings import AlertRaised
from copilotlab.picture import HOUR, MOST_SESSIONS, Picture
from copilotlab.protocol import events
from copilotlab.protocol.carrier import Message
from copilotlab.protocol.toggles import POLICY_FIELDS, SWITCHES

CHARTS = 6
SECONDS = 3.0  # three heartbeats


class Stepping(SimulatedCarrier):
    """While the one who watches waits, the nodes take their steps."""

    step: Callable[[], object] = staticmethod(lambda: None)

    def receive(self, timeout: float) -> Message | None:
        if not self.arrived:
            self.step()
        return super().receive(timeout)


class Watched:
    """A simulated lab, and a cluster that watches it."""

    def __init__(self, nodes: int = 3, **options) -> None:
        self.lab = SimulatedLab(nodes, **options)
        self.lab.fill(CHARTS)
        self.carrier = self.carrier_of_its_own()
        self.cluster = self.watched_by(charts=self.lab.charts)

    def carrier_of_its_own(self) -> Stepping:
        carrier = Stepping(self.lab.redis)
        self.lab.redis._carriers.append(carrier)
        return carrier

    def watched_by(self, **options) -> Cluster:
        carrier = options.pop("carrier", self.carrier)
        cluster = Cluster(carrier, policy=self.lab.policy, clock=self.lab.clock, start=False, **options)
        assert cluster.connect()
        return cluster

    def run(self, seconds: float = SECONDS) -> None:
        for _ in range(round(seconds / 0.1)):
            self.lab.run(0.1)
            self.hear()

    def hear(self) -> None:
        while self.cluster.listen():
            pass

    def node(self, name: str) -> dict:
        (row,) = [row for row in self.cluster.nodes().to_dicts() if row["node"] == name]
        return row

    def alerts(self) -> set[tuple[str, str]]:
        return {(row["node"], row["name"]) for row in self.cluster.alerts().to_dicts()}

    def events(self, node: str) -> list[str]:
        return [row["event"] for row in self.cluster.timeline().to_dicts() if row["node"] == node]


@pytest.fixture
def watched() -> Watched:
    watched = Watched()
    watched.run()
    return watched


# --- what is seen -----------------------------------------------------------------------------------------------------


def test_nodes_are_seen_with_what_they_hold_how_they_are_and_who_agrees_with_whom(watched):
    lab, cluster = watched.lab, watched.cluster
    lab.nodes[1].address = "http://127.0.0.1:8001"
    watched.run()

    rows = cluster.nodes()
    assert rows["node"].to_list() == ["n0", "n1", "n2"]
    assert rows["alive"].to_list() == [True] * 3
    assert rows["group"].to_list() == ["A"] * 3
    first = watched.node("n1")
    assert (first["charts"], first["revision"], first["lag"], first["outages"]) == (CHARTS, CHARTS, 0, 0)
    assert first["digest"] == lab.nodes[1].store.digest
    assert first["address"] == "http://127.0.0.1:8001"
    assert first["version"]
    assert (first["connection"], first["lease"], first["alerts"]) == ("connected", "", [])
    assert cluster.agree
    assert "all 3 nodes agree" in repr(cluster)
    assert "all 3 nodes agree" in cluster._repr_html_()
    assert cluster.alerts().is_empty()

    lab.nodes[1].store.remove(2, 99)
    lab.nodes[1].replica._beat()
    watched.hear()
    assert not cluster.agree
    assert cluster.nodes()["group"].to_list() == ["A", "B", "A"]


def test_a_node_that_stops_has_left_and_one_that_dies_is_silent_and_an_alert_until_it_is_forgotten(watched):
    watched.lab.nodes[1].stop()
    watched.lab.freeze(1)  # so that it is not driven on
    watched.lab.kill(2)
    watched.run(12)
    assert (watched.node("n1")["state"], watched.node("n1")["connection"]) == ("stopped", "left")
    assert (watched.node("n2")["state"], watched.node("n2")["alive"]) == ("silent", False)
    assert ("cluster", "node_silent") in watched.alerts()
    (alert,) = watched.cluster.alerts().filter(node="cluster").to_dicts()
    assert "n2" in alert["evidence"]
    assert "n1" not in alert["evidence"]
    assert "stopped" in watched.events("n1")
    assert "silent" in watched.events("n2")
    assert watched.cluster.agreement().popitem()[1].groups.popitem()[1] == ["n0"]

    watched.lab.clock.advance(HOUR + 1)
    watched.run(1)
    assert watched.cluster.nodes()["node"].to_list() == ["n0"]


def test_while_it_is_cut_off_itself_it_says_so_and_claims_nothing_of_the_nodes(watched):
    watched.carrier.cut()
    watched.run(5)
    cluster = watched.cluster
    assert not cluster.connected
    assert "cut off" in repr(cluster)
    assert cluster.nodes()["alive"].to_list() == [None] * 3
    assert cluster.nodes()["connection"].to_list() == ["unknown"] * 3
    assert watched.alerts() == {("cluster", "cut_off")}
    assert not cluster.agree
    watched.carrier.heal()
    watched.run(8)
    assert cluster.agree
    assert watched.alerts() == set()
    assert [event for event in watched.events("cluster") if event in ("cut_off", "connected")] == [
        "connected",
        "cut_off",
        "connected",
    ]
    assert watched.events("n0").count("silent") == 0


def test_a_line_on_which_nothing_comes_any_more_counts_as_cut_off(watched):
    watched.carrier.channels = frozenset({"none"})  # the connection stands, and brings nothing
    watched.run(8)
    assert watched.cluster.agree  # it has noticed, and subscribed anew
    assert "cut_off" in watched.events("cluster")


def test_a_batch_its_lease_and_the_holder_that_is_gone_are_seen(watched):
    lab = watched.lab
    lab.hang(1)
    lab.charts.save_many(simulated_chart(i, f"new {i}") for i in range(1, 40))
    assert lab.nodes[1].replica.batches.begin("rebuild") is not None
    watched.run(2)
    row = watched.node("n1")
    assert row["lease"] == "held"
    assert row["batch"].startswith("rebuild 0/")
    lease = watched.cluster.lease
    assert (lease.holder, lease.alive, lease.epoch) == ("n1", True, lab.nodes[1].coordinator.lease.epoch)
    assert lease.seconds >= 1.0
    assert watched.node("n0")["lag"] > 0
    lab.kill(1)
    lab.freeze(0)
    lab.freeze(2)
    watched.run(5)
    assert watched.cluster.lease.alive is False
    lab.resume(0)
    lab.resume(2)
    watched.run(20)
    assert watched.cluster.lease is None
    assert watched.cluster.agree
    assert "lease_taken" in watched.events("n1")


def test_alerts_of_nodes_are_shown_with_evidence_severity_and_remedy_and_in_the_timeline(watched):
    watched.lab.nodes[0].alerts.look(
        msgspec.structs.replace(watched.lab.nodes[0].vitals(), skipped=1, skipped_example="chart 3: no title")
    )
    watched.lab.nodes[0].listen()
    watched.lab.nodes[0].replica._beat()
    watched.hear()
    (alert,) = watched.cluster.alerts().to_dicts()
    assert (alert["node"], alert["name"], alert["severity"]) == ("n0", "charts_skipped", "warning")
    assert "no title" in alert["evidence"]
    assert "Node.skipped()" in alert["remedy"]
    assert watched.node("n0")["alerts"] == ["charts_skipped"]
    assert "alert_charts_skipped" in watched.events("n0")


def test_stores_that_differ_at_one_revision_are_an_alert_that_names_who_holds_what(watched):
    lab = watched.lab
    for index in (0, 2):
        lab.freeze(index)
    node = lab.nodes[1]
    watched.cluster.thresholds = Thresholds(differ_beats=1)
    row = next(row for row in watched.cluster.rows() if row.node == "n1")
    beat = events.Heartbeat("f" * 32, CHARTS, CHARTS, "", False, row.repository, row.catalogue)
    for _ in range(4):  # what a node that holds something else would say
        lab.clock.advance(0.5)
        envelope = events.Envelope("n1", row.model, row.session, 0, beat)
        lab.redis._publish(Message(events.HEARTBEATS, events.encode(envelope, lab.charts.identity)))
        watched.hear()
    assert ("cluster", "stores_differ") in watched.alerts()
    (alert,) = watched.cluster.alerts().filter(name="stores_differ").to_dicts()
    assert "ffffffff: n1" in alert["evidence"]
    assert node.store.digest[:8] in alert["evidence"]


def test_two_nodes_of_one_name_are_an_alert_and_one_that_was_started_anew_is_not(watched):
    lab = watched.lab
    again = Node(lab.charts, lab.embedder, lab.redis.carrier(), policy=lab.policy, node_id="n1", clock=lab.clock)
    lab.carriers[1].cut()
    again.connect()
    lab.nodes[1] = again
    watched.run(10)
    assert watched.node("n1")["alive"]
    assert watched.alerts() == set()
    namesake = Node(lab.charts, lab.embedder, lab.redis.carrier(), policy=lab.policy, node_id="n1", clock=lab.clock)
    namesake.connect()
    lab.nodes.append(namesake)
    watched.run(8)
    assert ("cluster", "namesakes") in watched.alerts()


def test_the_history_of_an_hour_has_counts_lag_and_outages_and_is_bounded(watched):
    watched.run(25)
    history = watched.cluster.history()
    assert history["seconds"].unique().len() >= 2
    assert set(history.columns) == {"seconds", "node", "alive", "charts", "lag", "outages"}
    assert history.filter(node="n0")["charts"].unique().to_list() == [CHARTS]

    picture = Picture(0.0, 1.0)
    picture.back(0.0)
    beat = events.Heartbeat("0" * 32, 1, 1, "", False, 1, "0" * 32)
    for number in range(MOST_SESSIONS + 50):
        picture.heard(events.Envelope(f"n{number}", "hash", number + 1, 1, beat), 1.0)
    assert len(picture.rows(1.0)) == MOST_SESSIONS
    for number in range(720):  # two hours
        picture.look(10.0 * number)
    samples = picture.samples()
    assert samples[-1][0] - samples[0][0] <= HOUR
    assert sum(len(rows) for _, rows in samples) <= 50_000 + MOST_SESSIONS
    assert len(picture.entries()) <= 2_000


# --- what differs -----------------------------------------------------------------------------------------------------


def test_what_differs_is_listed_chart_by_chart_with_both_revisions_between_nodes_and_with_the_repository(watched):
    lab, cluster = watched.lab, watched.cluster
    watched.carrier.step = lab.deliver
    assert cluster.differences().is_empty()
    for index in range(3):  # they no longer work, and still answer
        lab.hang(index)
    first = lab.nodes[0]
    lab.nodes[1].store.remove(2, 99)
    lab.charts.save(simulated_chart(3, "Anew"))
    lab.charts.delete(4)
    for node in lab.nodes:
        node.replica._beat()
    watched.hear()

    between = cluster.differences("n1", "n0").to_dicts()
    shown = [(row["chart_id"], row["difference"], row["revision"], row["other_revision"]) for row in between]
    assert shown == [(2, "missing", None, first.store.revision(2))]
    assert {(row["node"], row["other"]) for row in between} == {("n1", "n0")}

    with_repository = cluster.differences("n1").to_dicts()
    shown = [(row["chart_id"], row["difference"], row["revision"], row["other_revision"]) for row in with_repository]
    assert shown == [
        (2, "missing", None, 2),
        (3, "revision", 3, CHARTS + 1),
        (4, "surplus", 4, None),
    ]
    everybody = cluster.differences()
    assert everybody["node"].unique().sort().to_list() == ["n0", "n1", "n2"]
    assert everybody.filter(node="n0")["chart_id"].to_list() == [3, 4]


def test_a_large_manifest_comes_in_pages(watched, monkeypatch):
    monkeypatch.setattr("copilotlab.protocol.pages.PageBound.manifest_rows", 4)
    watched.carrier.step = watched.lab.deliver
    lab = watched.lab
    lab.nodes[1].store.remove(5, 99)
    lab.nodes[1].replica._beat()
    watched.hear()
    before = watched.lab.redis.held().keys()
    (row,) = watched.cluster.differences("n1", "n2").to_dicts()
    assert (row["chart_id"], row["difference"]) == (5, "missing")
    assert lab.redis.held().keys() == before  # no page is left behind


def test_who_does_not_answer_is_named_and_the_wait_is_bounded(watched):
    with pytest.raises(NodeSilent, match="'n1'"):
        watched.cluster.differences("n1", timeout=0.1)
    with pytest.raises(ValueError, match=r"'nobody' was not heard of.*n0, n1, n2"):
        watched.cluster.differences("nobody")
    with pytest.raises(TimeoutError, match="expected 4 nodes"):
        watched.cluster.wait(nodes=4, timeout=0.05)
    watched.carrier.cut()
    with pytest.raises(ConnectionError):
        watched.cluster.differences("n1")


def test_who_only_watches_is_no_peer_of_anybody_and_never_missed(watched):
    watched.carrier.step = watched.lab.deliver
    raised = []
    for node in watched.lab.nodes:
        node.listen_to(lambda happening: raised.append(happening) if isinstance(happening, AlertRaised) else None)
    assert watched.cluster.differences("n0").is_empty()
    watched.cluster.close()
    watched.run(20)
    assert [node.status()["peers"] for node in watched.lab.nodes] == [2] * 3
    assert [len(node.replica.peers) for node in watched.lab.nodes] == [2] * 3
    assert raised == []


# --- who is believed --------------------------------------------------------------------------------------------------


def test_without_the_repository_nothing_is_believed_and_it_says_so(watched):
    blind = watched.watched_by(carrier=watched.carrier_of_its_own(), charts=None)
    watched.cluster = blind
    watched.run()
    assert blind.nodes().is_empty()
    assert not blind.agree
    assert not blind.verified
    assert set(blind.speakers()) == {"n0", "n1", "n2"}
    assert "give charts=" in repr(blind)
    assert watched.alerts() == {("cluster", "not_verified")}
    with pytest.raises(ValueError, match="was not heard of"):
        blind.differences("n0")


def test_the_identity_alone_is_enough_to_watch_and_to_compare_nodes(watched):
    watched.cluster = watched.watched_by(carrier=watched.carrier_of_its_own(), charts=watched.lab.charts.identity)
    watched.run()
    assert watched.cluster.agree
    with pytest.raises(ValueError, match="knows no repository"):
        watched.cluster.differences("n0", "repository")


def test_who_does_not_have_the_key_changes_nothing_that_is_shown(watched):
    with ChartRepository() as other:
        stranger = Node(other, watched.lab.embedder, watched.lab.redis.carrier(), node_id="n1", clock=watched.lab.clock)
        stranger.connect()
        watched.lab.nodes.append(stranger)
        watched.run()
        forged = events.Envelope("n9", "hash", 7, 1, events.Report("running", "1", "", 1.0, 1.0, 0))
        identity = watched.lab.charts.identity._replace(key=b"another")
        watched.lab.redis._publish(Message(events.REPORTS, events.encode(forged, identity)))
        watched.lab.redis._publish(Message(events.REPORTS, b"\x03 garbage"))
        watched.run(1)
        assert watched.cluster.nodes()["node"].to_list() == ["n0", "n1", "n2"]
        assert watched.node("n1")["charts"] == CHARTS
        assert watched.cluster.agree
        assert ("cluster", "second_catalogue") in watched.alerts()


def test_what_is_no_repository_is_refused():
    with pytest.raises(TypeError, match=r"charts='sqlite://': expected the ChartRepository"):
        Cluster("redis://127.0.0.1:1/0", charts="sqlite://")
    with pytest.raises(ValueError, match="not a Redis URL"):
        Cluster("http://127.0.0.1:1/0")


# --- old and new ------------------------------------------------------------------------------------------------------


class HeartbeatOf020(
    msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag="Heartbeat"
):  # as released
    digest: str
    charts: int
    complete_to: int
    batch: Annotated[str, msgspec.Meta(max_length=200)]
    newcomer: bool
    revision: int
    catalogue: str


class EnvelopeOf020(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    source: str
    fingerprint: str
    session: int
    number: int
    event: HeartbeatOf020


def test_a_node_of_the_version_before_hears_a_heartbeat_as_ever_and_nothing_else_on_its_channels(watched):
    heard = watched.carrier_of_its_own()
    heard.subscribe([events.UPDATES, events.BATCHES, events.DELETIONS, events.HEARTBEATS, f"{events.INBOX}:n0"])
    watched.run()
    assert len(heard.arrived) >= 6
    for message in heard.arrived:
        body = message.payload[events.HEADER_BYTES :]
        assert msgspec.msgpack.decode(body, type=EnvelopeOf020).event.charts == CHARTS


def test_a_node_of_the_version_before_is_shown_as_far_as_it_tells_and_not_asked(watched):
    row = watched.cluster.rows()[0]
    beat = HeartbeatOf020(row.digest, CHARTS, CHARTS, "", False, row.repository, row.catalogue)
    said = EnvelopeOf020("old", row.model, 5, 1, beat)
    watched.lab.redis._publish(Message(events.HEARTBEATS, events.encode(said, watched.lab.charts.identity)))
    watched.hear()
    old = watched.node("old")
    assert (old["alive"], old["state"], old["group"], old["charts"]) == (True, "not told", "A", CHARTS)
    assert (old["lag"], old["outages"], old["version"], old["alerts"]) == (None, None, "", [])
    with pytest.raises(ValueError, match="of a version that does not answer"):
        watched.cluster.differences("old")


def test_a_report_of_a_later_version_is_read_as_far_as_it_is_known(watched):
    later = ["n7", "hash", 9, 0, ["Report", "running", "9.0", "there", 1.0, 1.0, 3, 0, 0, 0, None, [], "new", {"x": 1}]]
    watched.lab.redis._publish(Message(events.REPORTS, events.encode(later, watched.lab.charts.identity)))
    watched.hear()
    assert (watched.node("n7")["version"], watched.node("n7")["lag"]) == ("9.0", 3)


def test_a_heartbeat_and_its_report_have_one_kilobyte_even_with_every_alert_raised(watched):
    from copilotlab.monitoring.alerts import CONDITIONS, Alert

    node = watched.lab.nodes[0]
    node.address = "https://copilot-7.eu-central.example.com:8443"
    node.alerts._raised = {
        c.name: Alert(c.name, c.severity, 0.0, {"reason": "a long reason, " * 20}, c.remedy) for c in CONDITIONS
    }
    link, replica = node.coordinator.link, node.replica
    report = node._watch.report(replica)
    assert len(report.alerts) == len(CONDITIONS)
    assert len(link.encode(replica._heartbeat(), 10**6)) + len(link.encode(report)) <= 1024


def test_nodes_of_the_written_design_say_no_reports():
    lab = SimulatedLab(2, Policy.seed())
    listener = lab.redis.carrier()
    listener.subscribe([events.REPORTS, events.HEARTBEATS])
    lab.fill(3)
    lab.run(5)
    lab.nodes[0].stop()
    assert not listener.arrived


# --- another model ----------------------------------------------------------------------------------------------------


def test_a_model_that_is_being_built_is_shown_beside_the_one_that_answers(watched):
    row = watched.cluster.rows()[0]
    report = events.Report("building", row.version, "", 1.0, 1.0, CHARTS)
    beat = events.Heartbeat("0" * 32, 0, 0, "", False, CHARTS, row.catalogue)
    for event in (beat, report):
        said = events.Envelope("n0", "another:1", 77, 0, event)
        channel = events.CHANNEL_OF[type(event)]
        watched.lab.redis._publish(Message(channel, events.encode(said, watched.lab.charts.identity)))
    watched.run(1)
    rows = [row for row in watched.cluster.nodes().to_dicts() if row["node"] == "n0"]
    assert [row["state"] for row in rows] == [rows[0]["state"], "building"]
    assert watched.cluster.agree
    assert watched.alerts() == set()


# --- what nodes are asked to do ---------------------------------------------------------------------------------------


def test_a_node_does_what_it_is_asked_once_and_says_what_came_of_it(watched):
    lab, cluster = watched.lab, watched.cluster
    watched.carrier.step = lab.deliver
    node = lab.nodes[1]
    asked = []
    node.sync = lambda: asked.append("sync") or SimpleNamespace(outcome="published")
    assert cluster.act("n1", "sync").startswith("sync begun")
    ended(node)
    watched.hear()
    assert asked == ["sync"]
    assert [event for event in watched.events("n1") if event.startswith("sync")] == ["sync_begun", "sync_done"]
    assert "ordered_sync" in [entry.event for entry in node.journal.entries()]

    (order,) = node.orders._answers
    played_back = events.Order(order, node.coordinator.link.session, "sync")
    cluster._observer.say(next(row for row in cluster.rows() if row.node == "n1"), played_back)
    lab.deliver()
    ended(node)
    assert asked == ["sync"]

    row = next(row for row in cluster.rows() if row.node == "n1")._replace(session=5)
    with pytest.raises(ActionRefused, match="started anew"):
        cluster._observer.order(row, "sync", "", time.monotonic() + 5, cluster._pause)
    with pytest.raises(ActionRefused, match=r"does not know 'format_disk'.*rebuild, sync"):
        cluster.act("n1", "format_disk")
    watched.carrier.step = lambda: None
    with pytest.raises(NodeSilent, match="may not have begun"):
        cluster.act("n1", "sync", timeout=0.05)


def test_what_fails_is_told_and_a_node_that_is_asked_to_stop_leaves(watched):
    watched.carrier.step = watched.lab.deliver
    node = watched.lab.nodes[1]
    watched.cluster.act("n1", "switch_model", "no-such-model")
    ended(node)
    watched.hear()
    (failed,) = watched.cluster.timeline().filter(event="switch_model_failed")["detail"].to_list()
    assert "no-such-model" in failed
    watched.cluster.act("n1", "stop")
    ended(node)
    watched.lab.freeze(1)
    watched.run(1)
    assert node.status()["state"] == "stopped"
    assert watched.node("n1")["state"] == "stopped"


def test_toggles_are_set_on_one_node_or_everywhere_and_every_node_tells_what_is_in_force_there_and_who_set_it(watched):
    lab, cluster = watched.lab, watched.cluster
    watched.carrier.step = lab.deliver

    def told(name: str) -> dict[str, tuple]:
        columns = ("node", "value", "set_by", "set_on", "everywhere", "version")
        return {row[0]: row[1:] for row in cluster.toggles().filter(name=name).select(columns).iter_rows()}

    assert told("publishing") == dict.fromkeys(("n0", "n1", "n2"), ("true", "", "", False, 0))
    assert "version 1, by Ada" in cluster.configure("n1", publishing=False, by="Ada")
    assert told("publishing")["n1"] == ("false", "Ada", "n1", False, 1)
    assert told("publishing")["n0"] == ("true", "", "", False, 0)
    cluster.configure(everywhere=True, publishing=True, batch_timeout=90.0, by='"\\' * 30)
    watched.run()
    assert set(told("batch_timeout").values()) == {("90.0", '"\\' * 30, "n0", True, 2)}
    assert {values[0] for values in told("publishing").values()} == {"true"}
    (at,) = cluster.toggles().filter(name="batch_timeout")["set_at"].unique()
    assert at.endswith("+00:00")

    everything = {name: getattr(lab.policy, name) for name in POLICY_FIELDS} | dict.fromkeys(SWITCHES, True)
    cluster.configure("n2", **everything, by="\\" * 60)  # more than one order, and more than one page
    assert cluster.toggles().filter(node="n2")["set_by"].unique().to_list() == ["\\" * 60]
    assert watched.events("n1") == [*watched.events("n1")[:-1], "configure_done"]  # looks leave no line
    assert not [e for e in (entry.event for entry in lab.nodes[1].journal.entries()) if e == "ordered_tell_toggles"]


def test_what_cannot_be_set_is_refused_with_the_reason_before_anything_is_changed(watched):
    cluster = watched.cluster
    watched.carrier.step = watched.lab.deliver
    for wrong, why in (
        ({"ordered": False}, "cannot change on a running node: the store keeps tombstones"),
        ({"publishing": True, "batch_timeout": 0}, "batch_timeout=0: expected seconds above 0"),
        ({"volume": 11}, "no such toggle; there are publishing"),
        ({}, "nothing to set"),
        ({"publishing": False, "by": "A\nda"}, "printable"),
    ):
        with pytest.raises(ValueError, match=why):
            cluster.configure("n1", **wrong)
    for where in ({}, {"node": "n1", "everywhere": True}):
        with pytest.raises(ValueError, match="expected one of them"):
            cluster.configure(**where, publishing=False)
    with pytest.raises(ValueError, match="'n9' was not heard of"):
        cluster.configure("n9", publishing=False)
    row = next(row for row in cluster.rows() if row.node == "n1")
    for argument, why in (('{"set":{"ordered":false}}', "tombstones"), ('{"set":', "cannot be read"), ("5", "cannot")):
        with pytest.raises(ActionRefused, match=why):  # and the node judges by itself
            cluster._observer.order(row, "configure", argument, time.monotonic() + 5, cluster._pause)
    assert {row["version"] for row in watched.lab.nodes[1].toggles()} == {0}


def test_a_node_that_does_not_tell_its_toggles_is_named_with_the_reason_and_the_others_are_shown(watched):
    watched.carrier.step = watched.lab.deliver
    watched.lab.nodes[1].toggles = lambda: [][int("not a number")]
    found = watched.cluster.toggles()
    assert found.filter(node="n0")["reason"].unique().to_list() == [""]
    silent = found.filter(node="n1")
    assert silent["value"].null_count() == silent.height == found.filter(node="n0").height
    assert "refuses to tell toggles: invalid literal" in silent["reason"][0]


def test_an_order_of_one_without_the_key_is_not_taken(watched):
    link = watched.lab.nodes[1].coordinator.link
    order = events.Order("0" * 32, link.session, "stop")
    said = events.Envelope("n0", link.fingerprint, events.WATCHER, 0, order)
    forged = watched.lab.charts.identity._replace(key=b"another")
    watched.lab.redis._publish(Message(f"{events.INBOX}:n1", events.encode(said, forged)))
    watched.run(1)
    assert watched.lab.nodes[1].status()["state"] == "not started"
    assert watched.lab.nodes[1].metrics()["dropped_forged"] == 1


def test_a_stuck_lease_is_released_only_if_it_is_still_the_one_that_was_seen(watched):
    lab = watched.lab
    lab.charts.save_many(simulated_chart(i, f"new {i}") for i in range(1, 40))
    batch = lab.nodes[1].replica.batches.begin("rebuild")
    lab.hang(1)
    watched.run(2)
    with pytest.raises(ActionRefused, match="another one by now"):
        watched.cluster.release_lease("5 0 0 n1")
    watched.cluster.release_lease(watched.cluster.lease.value)
    watched.run(20)
    assert watched.cluster.lease is None
    assert sum(lab.nodes[index].metrics().get("embeddings", 0) for index in (0, 2)) >= 39
    lab.mend(1)
    watched.run(5)
    assert batch.result.outcome == "fenced"
    assert watched.cluster.agree


def ended(node) -> None:
    """The thread on which an order is done has ended."""
    for thread in threading.enumerate():
        if "ordered" in thread.name and node.node_id in thread.name:
            thread.join(30)
            assert not thread.is_alive()
