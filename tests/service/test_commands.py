"""What runs without a service of its own: `copilotlab rebuild`, and the admin page of `copilotlab admin`."""

from __future__ import annotations

import socket

import pytest
from fastapi.testclient import TestClient

from copilotlab import Chart, ChartRepository, Cluster, LocalRedis, Node, load_embedder
from copilotlab.cli import main
from copilotlab.service import serve
from copilotlab.service.app import create_admin
from copilotlab.service.settings import AdminSettings

TOKEN = "admin-token-0123456789"
MODEL = "hash"


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """The logs of this process stay as they are."""
    monkeypatch.setattr(serve, "log_as", lambda form, name: None)


@pytest.fixture(scope="module")
def server():
    with LocalRedis() as server:
        yield server


@pytest.fixture
def url(tmp_path):
    url = f"sqlite:///{tmp_path / 'charts.db'}"
    with ChartRepository(url) as charts:
        charts.save_many(Chart(chart_id=number, title=f"Revenue {number}") for number in range(1, 8))
    return url


def test_rebuild_embeds_what_no_node_has_and_the_others_have_it_then(server, url, capsys):
    flags = ["--charts", url, "--redis", server.url, "--model", MODEL, "--namespace", "rebuilt"]
    with ChartRepository(url) as charts:
        other = Node(charts, load_embedder(MODEL), server.url, namespace="rebuilt", node_id="other").start()
        with other:
            assert main(["rebuild", *flags]) == 0
            other.wait_complete(30)
            assert len(other.store) == 7
    said = capsys.readouterr().out
    assert "7 charts held" in said  # whichever node's batch came first: a node begins one by itself
    assert "missing" not in said


@pytest.fixture
def ended(monkeypatch):
    """A command that would serve looks at what it was to serve, and ends."""
    served = []

    def note(self):
        served.append(self)
        return 0

    monkeypatch.setattr(serve._Server, "serve_until_told", note)
    return served


def test_admin_shows_a_cluster_without_a_node_of_its_own(server, url, ended):
    with ChartRepository(url) as charts, Node(charts, load_embedder(MODEL), server.url, node_id="a") as node:
        node.wait_complete(30)
        assert main(["admin", "--connect", server.url, "--charts", url, "--port", "0"]) == 0
        assert len(ended) == 1
        with Cluster(server.url, charts=charts) as cluster:
            app, page = create_admin(cluster, AdminSettings(token=TOKEN))
            cluster.wait(nodes=1, timeout=30)
            client = TestClient(app, base_url="http://127.0.0.1", headers={"Authorization": f"Bearer {TOKEN}"})
            assert client.get("/livez").json() == {"alive": True}
            assert "script-src" in client.get("/admin").headers["content-security-policy"]
            assert [shown["node"] for shown in client.get("/v1/cluster").json()["nodes"]] == ["a"]
            acted = client.post("/v1/cluster/actions", json={"action": "sync", "node": "a"})
            assert acted.status_code == 200, acted.text
            client.headers.pop("Authorization")
            assert client.get("/v1/cluster").status_code == 401
            assert repr(page).startswith("AdminPage(")


def test_admin_refuses_a_public_address_without_a_token(server, url, ended, capsys):
    assert main(["admin", "--connect", server.url, "--charts", url, "--host", "0.0.0.0"]) == 2
    assert "can be reached by others" in capsys.readouterr().err
    assert not ended


@pytest.mark.parametrize("command", ["serve", "admin"])
def test_a_port_that_is_taken_is_said_before_anything_is_loaded(server, url, ended, capsys, command):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main([command, "--charts", url, "--redis", server.url, "--port", str(port)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"copilotlab {command}: host='127.0.0.1', port={port}: ")
    assert "choose another" in said
    assert not ended


def test_a_service_on_an_empty_repository_says_so(server, tmp_path, ended, caplog):
    empty = f"sqlite:///{tmp_path}/mistyped.db"
    assert main(["serve", "--charts", empty, "--redis", server.url, "--model", MODEL, "--port", "0"]) == 0
    assert [record for record in caplog.records if "holds no charts yet" in record.getMessage()]
