"""Each call of the service is shown with curl, and does what it says."""

from __future__ import annotations

import re
import shlex
import time
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from copilotlab import Chart, ChartRepository, LocalRedis, Node, load_embedder
from copilotlab.service.app import create_app
from copilotlab.service.settings import Settings

PAGE = Path(__file__).resolve().parents[2] / "docs/how-to/ask-over-http.md"
BASE = "http://127.0.0.1:8000"
TOKEN = "a-token-that-is-long-enough"
LIMIT = 60.0


def calls() -> list[tuple[str, str, dict[str, str], str | None]]:
    """Method, path, headers and body of each line with curl."""
    found = []
    for line in re.findall(r"^curl .*$", PAGE.read_text(), flags=re.MULTILINE):
        words = iter(shlex.split(line.replace("$COPILOTLAB_TOKEN", TOKEN))[1:])
        method, path, headers, body = "", "", {}, None
        for word in words:
            if word == "-X":
                method = next(words)
            elif word == "-H":
                name, _, value = next(words).partition(": ")
                headers[name] = value
            elif word == "-d":
                body = next(words)
            else:
                path = word.removeprefix(BASE)
        found.append((method or ("GET" if body is None else "POST"), path, headers, body))
    return found


@pytest.fixture(scope="module")
def client():
    with LocalRedis() as server, ChartRepository() as charts:
        charts.save_many(Chart(chart_id=i, title=f"Revenue {i}", source="Sales") for i in range(1, 8))
        node = Node(charts, load_embedder("hash"), server.url, node_id="a", words=True)
        app = create_app(node, Settings(token=TOKEN))
        with TestClient(app, base_url=BASE) as client:
            until = time.monotonic() + LIMIT
            while client.get("/readyz").status_code != 200 or not cluster_sees(client):
                assert time.monotonic() < until
                time.sleep(0.05)
            yield client


def cluster_sees(client) -> bool:
    seen = client.get("/v1/cluster", headers={"Authorization": f"Bearer {TOKEN}"}).json()
    return [node["node"] for node in seen["nodes"]] == ["a"]


def test_each_call_that_is_shown_is_answered(client):
    for method, path, headers, body in calls():
        until = time.monotonic() + LIMIT
        while True:
            answer = client.request(method, path, headers=headers, content=body)
            if answer.status_code != 409 or time.monotonic() > until:  # another action is under way
                break
            time.sleep(0.05)
        assert answer.status_code < 300, (method, path, answer.text)


def test_every_call_is_shown(client):
    shown = {
        (method, re.sub(r"/charts/\d+", "/charts/{chart_id}", path.partition("?")[0])) for method, path, *_ in calls()
    }
    described = client.get("/openapi.json").json()["paths"]
    assert shown == {(method.upper(), path) for path, methods in described.items() for method in methods}
