"""What a service answers, without a server: its application in this process."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import contextmanager

import msgspec
import pytest
from fastapi.testclient import TestClient
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from copilotlab import Chart, ChartRepository, LocalRedis, Node, Policy, load_embedder
from copilotlab.lab.fragile_model import FragileModel
from copilotlab.lab.simulated_lab import simulated_charts
from copilotlab.monitoring import Alerts, Thresholds
from copilotlab.monitoring.happenings import AlertEnded, AlertRaised
from copilotlab.monitoring.traces import Traces
from copilotlab.protocol.keys import BATCH_IN_PROGRESS
from copilotlab.service.app import create_app
from copilotlab.service.serve import show_config
from copilotlab.service.settings import ClusterSettings, Settings, SettingsError, load_settings

LIMIT = 30.0  # seconds for what is certain to come
CHARTS = 20
TOKEN = "admin-token-0123456789"
AS_ADMIN = {"Authorization": f"Bearer {TOKEN}"}
POLICY = Policy(heartbeat_interval=0.2, probe_interval=0.1, adopt_after=0.2, chunk_size=8)


def wait_for(condition):
    until = time.monotonic() + LIMIT
    while not (found := condition()):
        assert time.monotonic() < until, f"it did not come within {LIMIT:g} s"
        time.sleep(0.01)
    return found


@pytest.fixture(scope="module")
def server():
    with LocalRedis() as server:
        yield server


@pytest.fixture(scope="module")
def charts():
    with ChartRepository() as charts:
        charts.save_many(simulated_charts(CHARTS))
        yield charts


@pytest.fixture
def model():
    model = FragileModel(load_embedder("hash"))
    yield model
    model.gate.mend()


@contextmanager
def serving(server, charts, model, **settings):
    """A client of an application that lives as long as the block."""
    node = Node(charts, model, server.url, policy=POLICY)
    app = create_app(node, Settings(token=TOKEN, **settings))
    with TestClient(app, headers=AS_ADMIN, raise_server_exceptions=False) as client:
        client.node, client.service = node, app.state.service
        yield client


def filled(client):
    wait_for(lambda: client.get("/readyz").status_code == 200)
    return client


def is_problem(answer, status) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.json()["detail"]


# --- how complete an answer is ----------------------------------------------------------------------------------------


def test_an_answer_says_how_complete_it_is_and_who_requires_a_complete_one_gets_a_problem_instead(
    server, charts, model
):
    model.gate.hang()
    one, many = {"q": "revenue"}, {"queries": ["revenue"]}  # alone: the model answers
    with serving(server, charts, model) as client:
        wait_for(lambda: client.node.vitals().behind_charts == CHARTS)
        for answer in (client.get("/v1/search", params=one), client.post("/v1/search", json=many)):
            assert answer.status_code == 200
            assert answer.json()["complete"] is False
            assert answer.json()["completeness"]["held"] == 0
            assert answer.json()["completeness"]["expected"] == CHARTS
            assert answer.json()["completeness"]["reason"]
        for refused in (
            client.get("/v1/search", params={**one, "require_complete": "true"}),
            client.post("/v1/search", json={**many, "require_complete": True}),
        ):
            assert f"0 of {CHARTS} charts" in is_problem(refused, 503)
            assert refused.headers["retry-after"] == "1"

        model.gate.mend()
        filled(client)
        for answer in (
            client.get("/v1/search", params={**one, "require_complete": "true"}),
            client.post("/v1/search", json={**many, "require_complete": True}),
        ):
            assert answer.json()["complete"] is True
            assert answer.json()["completeness"] == {"held": CHARTS, "expected": CHARTS, "reason": ""}


def test_both_ways_to_ask_give_what_the_node_finds(server, charts):
    with serving(server, charts, load_embedder("hash")) as client:
        found = filled(client).node.search("revenue of product 7", 5).to_dicts()
        one = client.get("/v1/search", params={"q": "revenue of product 7", "k": 5}).json()
        many = client.post("/v1/search", json={"queries": ["revenue of product 7"] * 2, "k": 5}).json()
        assert one["results"] == found
        assert [answer["results"] for answer in many["answers"]] == [one["results"]] * 2


def test_a_parameter_that_is_not_understood_is_named_and_never_ignored(server, charts, model):
    wrong = {
        "q=a&chartid=3": "query.chartid",
        "q=a&q=b": "query.q: is there more than once",
        "q=a&k=ten": "query.k",
        "q=a&chart_id=3&chart_id=x": "query.chart_id.1",
        "q=a&require_complete=perhaps": "query.require_complete",
    }
    with serving(server, charts, model) as client:
        for query, said in wrong.items():
            assert said in is_problem(client.get(f"/v1/search?{query}"), 422)


def test_filters_facets_copies_and_what_is_like_a_chart_are_asked_for_over_http(server):
    with ChartRepository() as charts, serving(server, charts, load_embedder("hash")) as client:
        said = [("Sales", "finance"), ("Sales", "hr"), ("HR: people", "hr")]
        for number, (source, tag) in enumerate(said):
            chart = {"title": "Revenue by region", "source": source, "tags": [tag]}
            assert client.put(f"/v1/charts/{number}", json=chart).status_code == 200
        filled(client)
        wait_for(lambda: client.get("/v1/facets").json()["complete"])
        facets = client.get("/v1/facets", params={"where": "tags:hr", "limit": 1}).json()["facets"]
        assert facets == [
            {"field": "source", "value": "HR: people", "charts": 1},
            {"field": "tags", "value": "hr", "charts": 2},
        ]

        def found(path, **params):
            return {row["chart_id"] for row in client.get(path, params=params).json()["results"]}

        assert found("/v1/search", q="revenue", where=["source:Sales", "source:HR: people", "tags:hr"]) == {1, 2}
        assert found("/v1/search", q="revenue", where="source:Sales", chart_id=[1, 2]) == {1}
        assert found("/v1/charts/0/like") == {1, 2}
        assert found("/v1/charts/0/like", where="source:Sales", k=5) == {1}
        asked = {"queries": ["revenue"], "where": {"source": "Sales", "tags": ["hr", "finance"]}}
        (answer,) = client.post("/v1/search", json=asked).json()["answers"]
        assert {row["chart_id"] for row in answer["results"]} == {0, 1}
        assert "copies" not in answer["results"][0]
        (answer,) = client.post("/v1/search", json={**asked, "collapse": True}).json()["answers"]
        assert all("copies" in row for row in answer["results"])
        charts.save(Chart(chart_id=7, title="Costs by region", source="Finance"))  # as another process does
        wait_for(lambda: found("/v1/search", q="costs", where="source:Finance") == {7})
        (row,) = client.get("/v1/search", params={"q": "reveneu peple", "k": 1, "mode": "words"}).json()["results"]
        assert (row["chart_id"], row["why"]["matched"]) == (2, ["revenue", "people"])
        (answer,) = client.post("/v1/search", json={"queries": ["HR"], "mode": "hybrid", "k": 1}).json()["answers"]
        (row,) = answer["results"]
        assert row["score"] == pytest.approx(row["why"]["meaning"] + row["why"]["words"], abs=1e-6)
        assert "why" not in client.get("/v1/search", params={"q": "revenue"}).json()["results"][0]
        assert "chart 9 is not among" in is_problem(client.get("/v1/charts/9/like"), 404)
        for wrong in (
            "/v1/search?q=a&where=owner:Ada",
            "/v1/search?q=a&mode=both",
            "/v1/charts/x/like",
            "/v1/charts/0/like?q=a",
        ):
            is_problem(client.get(wrong), 422)
        is_problem(client.post("/v1/search", json={"queries": ["a"], "where": {"owner": "Ada"}}), 422)


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_a_body_that_does_not_arrive_is_given_up(server, charts, model):
    with serving(server, charts, model, body_seconds=0.01) as client:
        sent = []

        async def ask() -> None:
            async def receive():
                await asyncio.Event().wait()

            async def send(message):
                sent.append(message)

            headers = [(b"authorization", AS_ADMIN["Authorization"].encode()), (b"content-type", b"application/json")]
            scope = {"type": "http", "method": "POST", "path": "/v1/search", "query_string": b"", "headers": headers}
            await client.app(scope, receive, send)

        client.portal.call(ask)
        assert sent[0]["status"] == 408
        assert b"did not arrive in 0.01 s" in sent[1]["body"]


def test_one_long_action_at_a_time_and_only_so_many_admin_calls_a_minute(server, charts, model):
    with serving(server, charts, model, admin_per_minute=3) as client:
        filled(client)
        client.node.charts.save_many(simulated_charts(CHARTS))  # a revision: the rebuild has something to look at
        began, go_on = threading.Event(), threading.Event()

        def rebuild():
            began.set()
            assert go_on.wait(LIMIT)
            return Node.rebuild(client.node)

        client.node.rebuild = rebuild
        assert client.post("/v1/rebuild").status_code == 202
        assert began.wait(LIMIT)
        assert "rebuild is under way" in is_problem(client.post("/v1/sync"), 409)
        go_on.set()
        wait_for(lambda: client.get("/v1/status").json()["actions"]["under_way"] == "")
        assert client.post("/v1/sync").status_code == 202
        limited = client.post("/v1/sync")
        assert "more than 3 admin calls" in is_problem(limited, 429)
        assert 0 < int(limited.headers["retry-after"]) <= 61


# --- actions and openings ---------------------------------------------------------------------------------------------


def test_the_model_is_switched_on_request(server, charts):
    with serving(server, charts, load_embedder("hash", dim=32)) as client:
        before = filled(client).get("/v1/status").json()["status"]["model"]
        assert client.post("/v1/model", json={"name": "hash"}).status_code == 202
        wait_for(lambda: client.get("/v1/status").json()["actions"].get("model") == "hash:64:v1:t2")
        after = client.get("/v1/status").json()["status"]
        assert (before, after["model"], after["charts"]) == ("hash:32:v1:t2", "hash:64:v1:t2", CHARTS)
        assert client.get("/v1/search", params={"q": "product 7", "require_complete": "true"}).status_code == 200


@pytest.mark.parametrize("opened", [None, "open_search", "open_metrics"])
def test_what_is_opened_needs_no_token_and_nothing_else_is_opened(server, charts, model, opened):
    nobody = {"Authorization": ""}
    opens = {
        "/v1/search?q=revenue": "open_search",
        "/v1/charts": "open_search",
        "/v1/charts/1": "open_search",
        "/metrics": "open_metrics",
        "/v1/status": "",
        "/v1/alerts": "",
    }
    with serving(server, charts, model, **({opened: True} if opened else {})) as client:
        for path, by in opens.items():
            assert client.get(path, headers=nobody).status_code == (200 if by == opened else 401), path
        assert client.put("/v1/charts/1", headers=nobody, json={"title": "a"}).status_code == 401
        for path in ("/livez", "/readyz", "/openapi.json"):
            assert client.get(path, headers=nobody).status_code in (200, 503), path


def test_the_lease_of_a_rebuild_under_way_is_given_back_at_the_end(server, charts, model):
    with serving(server, charts, model) as client:
        filled(client)
        model.gate.hang()
        charts.save_many(simulated_charts(2 * CHARTS))
        client.post("/v1/rebuild")
        wait_for(lambda: client.node.replica.batches.present and server.client().exists(BATCH_IN_PROGRESS))
        threading.Thread(target=lambda: wait_for(lambda: client.service.held_back) and model.gate.mend()).start()
    assert client.node.status()["state"] == "stopped"
    assert not server.client().exists(BATCH_IN_PROGRESS)


def test_the_effective_settings_are_printed_with_their_origin_and_without_secrets(tmp_path, monkeypatch, capsys):
    file = tmp_path / "copilotlab.toml"
    file.write_text("max_k = 7\n\n[policy]\nchunk_size = 9\n")
    monkeypatch.setenv("COPILOTLAB_TOKEN", TOKEN)
    monkeypatch.setenv("COPILOTLAB_REDIS", "redis://:secret@127.0.0.1:6379/0")
    assert show_config(["--config", str(file), "--port", "0"]) == 0
    printed = capsys.readouterr().out
    lines = {line.split()[0]: line for line in printed.splitlines()}
    assert lines["max_k"].endswith(f"{file}, line 1")
    assert lines["policy.chunk_size"].split()[1] == "9"
    assert lines["policy.chunk_size"].endswith(f"{file}, line 4")
    assert lines["port"].endswith("flag")
    assert lines["token"].endswith("environment, COPILOTLAB_TOKEN")
    assert lines["model"].endswith("default")
    assert TOKEN not in printed
    assert "secret" not in printed


def test_commands_share_names_and_a_file_and_pass_over_what_is_of_serve_alone(tmp_path, monkeypatch):
    class Telling(ClusterSettings):
        to: str = ""

    file = tmp_path / "copilotlab.toml"
    file.write_text('port = 8001\ncharts = "sqlite:///file.db"\nnamespace = "file"\n\n[policy]\nchunk_size = 9\n')
    monkeypatch.setenv("COPILOTLAB_NAMESPACE", "environment")
    flags = ["--config", str(file), "--to", "prod"]
    settings, effective = load_settings(Telling, flags, program="copilotlab tell")
    assert (settings.charts, settings.namespace, settings.to) == ("sqlite:///file.db", "environment", "prod")
    assert {row.name: row.origin for row in effective}["charts"] == f"{file}, line 2"

    served, _ = load_settings(Settings, ["--config", str(file)])
    assert (served.port, served.charts, served.policy.chunk_size) == (8001, "sqlite:///file.db", 9)
    file.write_text("prot = 8001\n")
    for kind in (Telling, Settings):
        with pytest.raises(SettingsError, match="line 1: prot"):
            load_settings(kind, ["--config", str(file)])


# --- alerts -----------------------------------------------------------------------------------------------------------


def test_a_condition_that_comes_and_goes_is_one_alert_and_ends_once(charts, model):
    with Node(charts, model, "redis://127.0.0.1:1/0", policy=POLICY) as node:
        well = msgspec.structs.replace(node.vitals(), redis="connected", behind_charts=0, skipped=0, peers=())
    told: list[object] = []
    alerts = Alerts(told.append, Thresholds(redis_away=10, calm=5))

    def look(at: float, away_for: float | None) -> None:
        state = {"redis": "connected", "away_for": 0.0} if away_for is None else {"redis": "away", "away_for": away_for}
        alerts.look(msgspec.structs.replace(well, at=at, state="running", **state))

    for at in range(0, 100, 4):  # away for 2 seconds of each 4: never long enough
        look(at, None)
        look(at + 2, 2.0)
    assert told == []
    look(100, None)
    look(111, 11.0)
    for at in range(112, 160, 4):  # back for less than it has to be calm
        look(at, None)
        look(at + 2, 1.0)
    (alert,) = alerts.active()
    assert (alert.name, alert.since, alert.times) == ("redis_away", 100.0, 13)
    look(160, None)
    assert alerts.active() != []
    look(163, None)
    assert alerts.active() == []
    assert [type(one) for one in told] == [AlertRaised, AlertEnded]


def test_what_is_asked_is_in_no_span_where_the_application_is_traced(server, charts, model, monkeypatch):
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)  # set up, as far as FastAPI sees
    with serving(server, charts, model) as client:
        client.node.listen_to(Traces("a", provider))
        assert filled(client).get("/v1/search", params={"q": "Walrus dismissals"}).status_code == 200
        assert client.post("/v1/search", json={"queries": ["Walrus dismissals"]}).status_code == 200
        assert client.get("/v1/search", params={"q": "Walrus dismissals", "k": 0}).status_code == 422
    spans = exporter.get_finished_spans()
    assert {"copilotlab.search", "POST /v1/search"} <= {span.name for span in spans}
    assert [span.name for span in spans if "alrus" in span.to_json()] == []
