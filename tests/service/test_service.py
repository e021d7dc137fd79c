"""`copilotlab serve` as a process: what it answers, what it refuses, and how it ends."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from copilotlab import ChartRepository, LocalRedis
from copilotlab.charts import chart_id_of
from copilotlab.lab.services import ServiceProcess
from copilotlab.lab.simulated_lab import simulated_charts

LIMIT = 60.0  # seconds for what is certain to come
READ, WRITE, ADMIN = "read-token-0123456789", "write-token-0123456789", "admin-token-0123456789"
QUICK = ["--policy.heartbeat-interval", "0.3", "--policy.probe-interval", "0.1", "--policy.adopt-after", "0.5"]


def wait_for(condition):
    until = time.monotonic() + LIMIT
    while not (found := condition()):
        assert time.monotonic() < until, f"it did not come within {LIMIT:g} s"
        time.sleep(0.02)
    return found


class Served:
    """A service in a process of its own, and a client of it."""

    def __init__(self, folder, redis_url, node_id="a", *flags, **environment) -> None:
        self.tokens = folder / "tokens"
        self.tokens.write_text(f"# roles\nread {READ}\nwrite {WRITE}\nadmin {ADMIN}\n")
        charts = f"sqlite:///{folder / 'charts.db'}"
        words = ["--charts", charts, "--redis", redis_url, "--model", "hash", "--port", "0", "--node-id", node_id]
        words += ["--tokens-file", str(self.tokens), "--log", "json", "--drain", "0", *QUICK, *flags]
        self.process = ServiceProcess(*words, log=folder / f"{node_id}.log", environment=environment).begin()
        url = self.process.wait_listening(LIMIT)
        self.client = httpx.Client(base_url=url, timeout=30, headers={"Authorization": f"Bearer {ADMIN}"})

    def ready(self) -> None:
        self.process.wait_ready(LIMIT)

    def end(self) -> int:
        self.client.close()
        return self.process.stop(LIMIT)


@pytest.fixture(scope="module")
def server() -> Iterator[LocalRedis]:
    with LocalRedis(tcp=True) as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("service")
    with ChartRepository(f"sqlite:///{folder / 'charts.db'}") as charts:
        charts.save_many(simulated_charts(50))
    return folder


@pytest.fixture(scope="module")
def served(server, folder) -> Iterator[Served]:
    served = Served(folder, server.url)
    try:
        served.ready()
        yield served
    finally:
        served.end()


def as_(token: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {"Authorization": ""}


def is_problem(answer, status) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    told = answer.json()
    assert told["status"] == status
    assert told["request_id"]
    return told["detail"]


# --- what it answers --------------------------------------------------------------------------------------------------


def test_charts_are_put_found_read_listed_and_deleted(served):
    client = served.client
    chart = {"title": "Penguins by island", "measures": ["Penguins"], "tags": ["birds"]}
    put = client.put("/v1/charts/700", json=chart)
    assert put.json()["outcome"] == "published"

    found = client.get("/v1/search", params={"q": "penguins island", "k": 3}).json()
    assert found["query"] == "penguins island"
    assert found["results"][0]["chart_id"] == 700
    assert found["results"][0]["tags"] == ["birds"]
    read = client.get("/v1/charts/700").json()
    assert read["title"] == "Penguins by island"
    assert read["revision"] == put.json()["revision"]
    assert client.put("/v1/charts/700", json=chart).json()["outcome"] == "unchanged"

    ids, after = [], -1
    while after is not None:
        page = client.get("/v1/charts", params={"after": after, "limit": 20}).json()
        ids, after = ids + page["chart_ids"], page["next"]
    assert ids == [*range(1, 51), 700]

    assert client.delete("/v1/charts/700").json()["outcome"] == "published"
    assert "chart 700" in is_problem(client.get("/v1/charts/700"), 404)
    is_problem(client.delete("/v1/charts/700"), 404)


def test_a_chart_of_another_tool_is_put_found_and_read_with_its_key_and_link(served):
    client, key, url = served.client, "grafana:prod:ab/2", "https://grafana.example.org/d/ab?viewPanel=2"
    path = f"/v1/charts/{chart_id_of(key)}"
    put = client.put(path, json={"title": "Walrus dives per day", "key": key, "url": url})
    assert put.json()["outcome"] == "published"

    (found,) = client.get("/v1/search", params={"q": "walrus dives", "k": 1}).json()["results"]
    assert (found["chart_id"], found["key"], found["url"]) == (chart_id_of(key), key, url)
    read = client.get(path).json()
    assert (read["key"], read["url"]) == (key, url)

    for wrong, status, said in (
        ({"url": "javascript:alert(1)"}, 422, "url='javascript:alert(1)': expected one such as https"),
        ({"key": "grafana:prod:other"}, 409, "the chart with the key 'grafana:prod:other' has the id"),
    ):
        assert said in is_problem(client.put(path, json={"title": "Walrus dives per day", **wrong}), status)
    client.delete(path)


def test_several_queries_are_answered_in_their_order_and_restricted_to_what_a_user_may_see(served):
    queries = ["product 7", "product 9", "product 7"]
    asked = {"queries": queries, "k": 2, "chart_ids": [7, 9, 11]}
    answers = served.client.post("/v1/search", json=asked).json()["answers"]
    assert [answer["query"] for answer in answers] == queries
    assert answers[0] == answers[2]
    assert all(row["chart_id"] in (7, 9, 11) for answer in answers for row in answer["results"])
    none = served.client.post("/v1/search", json={"queries": ["product", "other"], "chart_ids": []}).json()
    assert [answer["results"] for answer in none["answers"]] == [[], []]
    one = served.client.get("/v1/search", params={"q": "product", "chart_id": [3, 4]}).json()
    assert {row["chart_id"] for row in one["results"]} == {3, 4}


def test_admin_actions_begin_at_once_and_their_outcome_is_shown(served):
    def outcome(action):
        return served.client.get("/v1/status").json()["actions"].get(action)

    for action in ("rebuild", "sync"):
        assert served.client.post(f"/v1/{action}").status_code == 202
        assert wait_for(lambda action=action: outcome(action)) in ("published", "local")
    assert served.client.post("/v1/model", json={"name": "no such model at all"}).status_code == 202
    assert wait_for(lambda: outcome("model")).startswith("failed")


def test_diagnostics_have_status_policy_peers_alerts_and_timeline_and_hide_no_trouble(served):
    status = served.client.get("/v1/status").json()
    assert status["status"]["state"] == "running"
    assert status["policy"]["heartbeat_interval"] == 0.3
    assert status["health"]["ready"]
    assert {line["event"] for line in status["timeline"]} >= {"started"}
    assert served.client.get("/v1/alerts").json() == {"alerts": []}
    assert served.client.get("/livez").json() == {"live": True}
    assert ADMIN not in json.dumps(status)


def test_metrics_are_those_of_the_node_and_of_the_process(served):
    text = served.client.get("/metrics").text
    assert 'copilotlab_charts{model="hash:64:v1:t2",namespace="",node="a"}' in text
    assert "process_resident_memory_bytes" in text


def test_its_interface_is_described_with_examples(served):
    described = served.client.get("/openapi.json").json()
    assert set(described["paths"]) >= {"/v1/search", "/v1/charts/{chart_id}", "/v1/rebuild", "/v1/model", "/readyz"}
    assert "HTTPBearer" in described["components"]["securitySchemes"]
    assert described["components"]["schemas"]["Question"]["examples"]


# --- what it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "needed"),
    [
        ("GET", "/v1/search?q=revenue", "read"),
        ("GET", "/v1/charts", "read"),
        ("GET", "/v1/charts/1", "read"),
        ("GET", "/v1/status", "read"),
        ("GET", "/v1/alerts", "read"),
        ("GET", "/metrics", "read"),
        ("PUT", "/v1/charts/1", "write"),
        ("DELETE", "/v1/charts/99999", "write"),
        ("POST", "/v1/rebuild", "admin"),
        ("POST", "/v1/sync", "admin"),
        ("POST", "/v1/model", "admin"),
        ("PATCH", "/v1/toggles", "admin"),
    ],
)
def test_each_call_needs_a_token_of_its_role_or_a_higher_one(served, method, path, needed):
    def asked(token):
        return served.client.request(method, path, headers=as_(token), json={} if method in ("PUT", "POST") else None)

    for wrong in (None, "a-token-that-nobody-was-given", READ[:-1]):
        answer = asked(wrong)
        is_problem(answer, 401)
        assert answer.headers["www-authenticate"] == "Bearer"
    for role, token in (("read", READ), ("write", WRITE)):
        refused = asked(token).status_code
        assert (refused == 403) == (["read", "write", "admin"].index(role) < ["read", "write", "admin"].index(needed))


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/search", None),
        ("GET", "/v1/search?q=", None),
        ("GET", "/v1/search?q=%20%20", None),
        ("GET", "/v1/search?q=a&k=0", None),
        ("GET", "/v1/search?q=a&k=101", None),
        ("GET", f"/v1/search?q={'a' * 2001}", None),
        ("GET", "/v1/search?q=a&chart_id=-1", None),
        ("POST", "/v1/search", {"queries": []}),
        ("POST", "/v1/search", {"queries": ["a"] * 65}),
        ("POST", "/v1/search", {"queries": ["a", " "]}),
        ("POST", "/v1/search", {"queries": ["a"], "surplus": 1}),
        ("PUT", "/v1/charts/1", {"title": ""}),
        ("PUT", "/v1/charts/1", {"title": " "}),
        ("PUT", "/v1/charts/1", {"title": "a", "tags": [" "]}),
        ("PUT", "/v1/charts/1", {"title": "a\u0000"}),
        ("PUT", "/v1/charts/-1", {"title": "a"}),
        ("PUT", f"/v1/charts/{2**63}", {"title": "a"}),
        ("GET", "/v1/charts?limit=1001", None),
        ("POST", "/v1/model", {}),
    ],
)
def test_what_makes_no_sense_is_refused_in_words_before_anything_is_done(served, method, path, body):
    assert len(is_problem(served.client.request(method, path, json=body), 422)) > 10


def test_other_wrong_requests_are_problems_too(served):
    is_problem(served.client.get("/no/such/path"), 404)
    is_problem(served.client.post("/livez"), 405)
    broken = served.client.post("/v1/search", content=b"{", headers={"Content-Type": "application/json"})
    is_problem(broken, 422)


def test_a_body_that_is_too_large_is_refused_whether_or_not_it_says_so(served):
    large = b'{"queries": ["' + b"a" * 1_100_000 + b'"]}'
    assert "max_body" in is_problem(served.client.post("/v1/search", content=large), 413)

    def pieces():
        yield from (large[start : start + 100_000] for start in range(0, len(large), 100_000))

    assert "max_body" in is_problem(served.client.post("/v1/search", content=pieces()), 413)


def test_what_was_asked_is_not_in_the_log(served):
    for status, params in ((200, {}), (422, {"k": 0}), (422, {"unknown": 1})):
        asked = {"q": "Walrus dismissals", **params}
        answer = served.client.get("/v1/search", params=asked, headers={"X-Request-ID": f"asked-{len(params)}"})
        assert answer.status_code == status
    wait_for(lambda: "asked-1" in served.process.said())
    assert "asked-0" in served.process.said()
    assert "Walrus" not in served.process.said()


def test_a_request_keeps_its_id_in_the_answer_and_in_the_log(served):
    answer = served.client.get("/v1/charts/99999", headers={"X-Request-ID": "mine-7"})
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "mine-7"

    def logged() -> bool:
        lines = [json.loads(line) for line in served.process.said().splitlines() if line.endswith("}")]
        return any(line["request"] == "mine-7" and line["node"] == "a" and "404" in line["message"] for line in lines)

    wait_for(logged)
    forged = served.client.get("/livez", headers={"X-Request-ID": "a b\tc"})
    assert re.fullmatch("[0-9a-f]{16}", forged.headers["x-request-id"])


def test_clients_that_send_slowly_hold_up_nobody(served):
    host, port = served.client.base_url.host, served.client.base_url.port
    head = f"POST /v1/search HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {READ}\r\nContent-Length: 1000\r\n"
    slow = [socket.create_connection((host, port)) for _ in range(50)]
    try:
        for connection in slow:
            connection.sendall(f"{head}Content-Type: application/json\r\n\r\n{{".encode())
        for _ in range(20):
            assert served.client.get("/v1/search", params={"q": "revenue"}).status_code == 200
    finally:
        for connection in slow:
            connection.close()


# --- how it begins and ends -------------------------------------------------------------------------------------------


def test_it_does_not_start_on_a_public_address_without_a_token_nor_with_a_wrong_setting(tmp_path):
    wrong = tmp_path / "copilotlab.toml"
    wrong.write_text("port = 8000\n\n[policy]\nbatch_timeout = -1\n")
    for flags, said in (
        (["--host", "0.0.0.0"], "set COPILOTLAB_TOKEN or tokens_file"),
        (["--config", str(wrong)], f"{wrong}, line 4: policy.batch_timeout"),
        (["--token", "short"], "expected 16 or more"),
    ):
        words = [sys.executable, "-m", "copilotlab", "serve", *flags]
        done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT, check=False, cwd=tmp_path)
        assert done.returncode == 2
        assert said in done.stderr
        assert "short" not in done.stderr
        assert not (tmp_path / "charts.db").exists(), "nothing was begun"


def test_without_tokens_it_is_read_on_loopback_and_not_written(server, folder):
    words = ["--charts", f"sqlite:///{folder / 'charts.db'}", "--redis", server.url, "--model", "hash", "--port", "0"]
    process = ServiceProcess(*words, "--node-id", "bare", "--drain", "0", *QUICK, log=folder / "bare.log").begin()
    try:
        url = process.wait_listening(LIMIT)
        assert httpx.get(f"{url}/v1/search", params={"q": "revenue"}).status_code == 200
        assert "COPILOTLAB_TOKEN" in is_problem(httpx.put(f"{url}/v1/charts/1", json={"title": "a"}), 403)
        is_problem(httpx.post(f"{url}/v1/rebuild"), 403)
    finally:
        assert process.stop(LIMIT) == 0


def test_it_stays_ready_without_redis_and_says_what_is_wrong(folder, tmp_path):
    with LocalRedis(tcp=True) as server:
        served = Served(folder, server.url, "lonely")
        try:
            served.ready()
            wait_for(lambda: served.client.get("/healthz").status_code == 200)
            server.kill()
            troubled = wait_for(lambda: (a := served.client.get("/healthz")).status_code == 503 and a)
            assert any("Redis is away" in said for said in troubled.json()["troubles"])
            assert served.client.get("/readyz").status_code == 200
            assert served.client.get("/v1/search", params={"q": "revenue"}).status_code == 200
            assert served.client.put("/v1/charts/800", json={"title": "Made alone"}).json()["outcome"] == "local"
            served.client.delete("/v1/charts/800")
        finally:
            assert served.end() == 0


def test_told_to_end_it_is_not_ready_and_answers_on_until_it_is_told_again(server, folder):
    served = Served(folder, server.url, "leaving", "--drain", "300")
    try:
        served.ready()
        served.process.signal(signal.SIGTERM)
        wait_for(lambda: served.client.get("/readyz").status_code == 503)
        for answer in (
            served.client.get("/v1/search", params={"q": "revenue"}),
            served.client.put("/v1/charts/801", json={"title": "Said at the end"}),
        ):
            assert answer.status_code == 200
            assert answer.headers["connection"] == "close", "the next request goes to another service"
        served.client.delete("/v1/charts/801")
        served.process.signal(signal.SIGINT)
        assert served.process.wait(LIMIT) == 0
    finally:
        served.end()


def test_sigterm_loses_no_request_that_was_accepted_and_ends_within_a_bound(server, folder):
    served, other = Served(folder, server.url, "b"), Served(folder, server.url, "c")
    try:
        served.ready()
        other.ready()
        accepted: dict[int, str] = {}
        broken: list[str] = []
        stop = threading.Event()

        def write(first: int) -> None:
            with httpx.Client(base_url=served.client.base_url, headers=as_(WRITE), timeout=30) as client:
                for chart_id in range(first, first + 1_000):
                    if stop.is_set():
                        return
                    try:
                        answer = client.put(f"/v1/charts/{chart_id}", json={"title": f"Written under fire {chart_id}"})
                    except httpx.ConnectError:
                        return  # it takes no more
                    except httpx.HTTPError as error:
                        broken.append(repr(error))
                        return
                    if answer.status_code == 200:
                        accepted[chart_id] = answer.json()["outcome"]
                    elif answer.status_code >= 500:
                        broken.append(answer.text)

        with ThreadPoolExecutor(4) as threads:
            writing = [threads.submit(write, 10_000 * (number + 1)) for number in range(4)]
            wait_for(lambda: len(accepted) > 40)
            began = time.monotonic()
            assert served.end() == 0
            took = time.monotonic() - began
            stop.set()
            for thread in writing:
                thread.result(LIMIT)
        assert took < 25
        assert len(accepted) > 40
        with ChartRepository(f"sqlite:///{folder / 'charts.db'}") as charts:
            kept = charts.get_many(accepted)
            assert {chart_id for chart_id, change in kept.items() if change.chart} == set(accepted)
        total = wait_for(lambda: (s := other.client.get("/v1/status").json()["status"])["lag"] == 0 and s)
        assert total["charts"] >= 50 + len(accepted)
        assert [said for said in broken if "Disconnected" not in said and "ReadError" not in said] == []
        lines = [json.loads(line) for line in served.process.said().splitlines()]
        assert "has ended" in lines[-1]["message"]
    finally:
        served.end()
        other.end()
