"""Servers are asked as their documentation says, by small servers of ours that answer as it says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import exports
import pytest

from copilotlab import read_catalogue
from copilotlab.importers import CatalogueError, grafana, metabase, server, superset

Answer = tuple[int, object] | tuple[int, object, dict[str, str]]


class Tool:
    """A server whose `answer` gets the path, the parameters and the headers; it notes each path that was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer: Callable[[str, dict[str, str], dict[str, str]], Answer] = lambda *_: (404, {})
        tool = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                given = {name: values[0] for name, values in parse_qs(parts.query).items()}
                if length := int(self.headers.get("Content-Length") or 0):
                    given |= json.loads(self.rfile.read(length))
                tool.asked.append(parts.path)
                status, content, *more = tool.answer(parts.path, given, dict(self.headers))
                body = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in (more[0] if more else {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Tool]:
    monkeypatch.setattr(server, "_PAUSES", (0.0, 0.0))
    tool = Tool()
    yield tool
    tool.stop()


def charts(**more: Any) -> list[dict[str, Any]]:
    return [
        {
            "id": number,
            "uuid": f"11111111-0000-4000-8000-00000000000{number}",
            "slice_name": f"Chart {number}",
            "viz_type": "pie",
            "url": f"/explore/?slice_id={number}",
            "params": '{"metric": "count", "groupby": ["region"]}',
            "datasource_name_text": "shop.orders",
            "dashboards": [{"id": 1, "dashboard_title": "Sales"}],
            "tags": [{"id": 1, "name": "kpi", "type": 1}],
            **more,
        }
        for number in range(1, 6)
    ]


def superset_with(rows: list[dict[str, Any]], count: int) -> Callable[..., Answer]:
    def answer(path: str, given: dict[str, str], headers: dict[str, str]) -> Answer:
        if path == "/api/v1/security/login":
            known = given == {"username": "me", "password": "secret", "provider": "db"}
            return (200, {"access_token": "t"}) if known else (401, {"message": "Not authorized"})
        if headers.get("Authorization") != "Bearer t":
            return 401, {}
        size, number = 2, int(given["q"].partition("page:")[2].partition(",")[0])
        return 200, {"count": count, "result": rows[size * number : size * (number + 1)]}

    return answer


def test_superset_is_asked_page_by_page_after_a_login(tool: Tool) -> None:
    tool.answer = superset_with(charts(), 5)

    catalogue = read_catalogue(tool.url, "superset", user="me", password="secret")

    assert len(catalogue) == 5
    row = catalogue.frame.row(0, named=True)
    assert (row["key"], row["url"]) == (f"superset:prod:{charts()[0]['uuid']}", f"{tool.url}/explore/?slice_id=1")
    assert (row["measures"], row["dimensions"], row["source"]) == (["count"], ["region"], "orders")
    assert row["tags"] == ["Sales", "kpi"]
    assert tool.asked == ["/api/v1/security/login", *["/api/v1/chart/"] * 3]
    assert read_catalogue(tool.url, "superset", token="t").frame.equals(catalogue.frame)


def test_superset_that_gives_fewer_charts_than_it_says_is_no_catalogue(tool: Tool) -> None:
    tool.answer = superset_with(charts(), 6)
    with pytest.raises(CatalogueError, match="says 6 charts, and gives 5: try again"):
        read_catalogue(tool.url, "superset", token="t")
    tool.answer = superset_with(charts(uuid=None), 5)
    with pytest.raises(CatalogueError, match="gives no uuids: export the charts"):
        read_catalogue(tool.url, "superset", token="t")
    with pytest.raises(CatalogueError, match=r"login answers 401 .*: give token=, or user= and password=") as raised:
        read_catalogue(tool.url, "superset", user="me", password="wrong one")
    assert "wrong one" not in str(raised.value)


def test_grafana_is_found_by_its_health_and_one_dashboard_that_fails_stops_no_other(
    tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grafana, "_PAGE", 2)
    listed = [{"uid": uid, "type": "dash-db"} for uid in ("web", "secret", "web-v2")]

    def answer(path: str, given: dict[str, str], headers: dict[str, str]) -> Answer:
        if path == "/api/health":
            assert "Authorization" not in headers
            return 200, {"database": "ok", "version": "12.0.0"}
        assert headers["Authorization"] == "Bearer glsa_x"
        if path == "/api/search":
            assert given["type"] == "dash-db"
            start = 2 * (int(given["page"]) - 1)
            return 200, listed[start : start + 2]
        if path == "/api/dashboards/uid/web":
            return 200, {"dashboard": exports.GRAFANA_CLASSIC, "meta": {"url": "/d/web/servers", "folderTitle": "Ops"}}
        return (200, {"dashboard": exports.GRAFANA_V2, "meta": {}}) if path.endswith("web-v2") else (403, {})

    tool.answer = answer

    catalogue = read_catalogue(tool.url, token="glsa_x")

    assert catalogue.format == "grafana"
    rows = {row["key"]: row for row in catalogue.frame.to_dicts()}
    assert rows["grafana:prod:web/2"]["url"] == f"{tool.url}/d/web/servers?viewPanel=2"
    assert rows["grafana:prod:web/2"]["tags"] == ["Web servers", "nginx", "Ops"]
    assert "grafana:prod:web-v2/1" in rows
    refused = catalogue.skipped.filter(catalogue.skipped["path"].str.ends_with("/secret"))["reason"].item()
    assert "answers 403 Forbidden: its user or token may not read this" in refused
    assert not catalogue.complete


def test_metabase_is_asked_with_its_key_and_what_it_keeps_to_itself_costs_only_tags(
    tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metabase, "_PAGE", 1)
    content = {f"/api/{name.removesuffix('.json')}": given for name, given in exports.METABASE.items()}

    def answer(path: str, given: dict[str, str], headers: dict[str, str]) -> Answer:
        if path == "/api/health":
            return 200, {"status": "ok"}
        assert headers["X-API-KEY"] == "mb_x"
        if path == "/api/card":
            return 200, [given for name, given in content.items() if "card" in name]
        if path == "/api/search":
            return 200, {"data": [{"id": 2, "model": "dashboard"}] if given["offset"] == "0" else []}
        return (200, content[path]) if path in content else (403, "You don't have permissions to do that.")

    tool.answer = answer

    catalogue = read_catalogue(tool.url, token="mb_x")

    assert catalogue.format == "metabase"
    row = catalogue.frame.row(0, named=True)
    assert (row["key"], row["url"]) == ("metabase:prod:abcdefghijklmnopqrstu", f"{tool.url}/question/4")
    assert (row["tags"], row["source"]) == (["Shop", "Finance"], "")
    assert "/api/table" in catalogue.skipped["path"]
    assert catalogue.complete


def test_a_server_that_is_busy_is_asked_again_and_no_more_than_three_times(tool: Tool) -> None:
    answers = superset_with(charts(), 5)
    busy = iter([(503, {}), (429, {}, {"Retry-After": "0"})])
    tool.answer = lambda *given: next(busy, None) or answers(*given)
    assert len(read_catalogue(tool.url, "superset", token="t")) == 5
    tool.asked.clear()
    tool.answer = lambda *_: (502, {})
    with pytest.raises(CatalogueError, match="answers 502 Bad Gateway"):
        read_catalogue(tool.url, "superset", token="t")
    assert len(tool.asked) == 3


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            (302, {}, {"Location": "https://elsewhere.example.org/"}),
            r"points to 'https://elsewhere.*: give the right address",
        ),
        ((404, {}), "answers 404 Not Found: is this the right address, and the right format"),
        ((200, b"<html>Sign in</html>"), "does not answer in JSON"),
        ((200, b"[" * 200_000), "does not answer in JSON"),
        ((200, [1, None, {}]), "is this a Superset"),
        ((200, {"result": {}, "count": "5"}), "is this a Superset"),
        ((200, b'"' + b"x" * 400_000 + b'"'), "answers with more than 0 MB"),
    ],
)
def test_an_answer_that_is_none_is_an_error_in_words(
    tool: Tool, monkeypatch: pytest.MonkeyPatch, answer: Answer, said: str
) -> None:
    monkeypatch.setattr(server, "MAX_ANSWER", 300_000)
    tool.answer = lambda *_: answer

    with pytest.raises(CatalogueError, match=said):
        read_catalogue(tool.url, "superset", token="t")


def test_what_a_server_may_say_is_never_a_traceback(tool: Tool) -> None:
    tool.answer = lambda path, *_: (
        200,
        {"/api/card": [7, {}, {"name": [], "dataset_query": 1}], "/api/search": []}.get(path),
    )

    assert len(read_catalogue(tool.url, "metabase", token="t")) == 0


def test_a_server_that_is_not_there_or_not_known_is_said(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(superset, "_MOST_PAGES", 3)
    with pytest.raises(CatalogueError, match="does not say at /api/health what it is: say it, as in format='superset'"):
        read_catalogue(tool.url)
    with pytest.raises(CatalogueError, match="format='dbt' is not read from a server: give an export"):
        read_catalogue(tool.url, "dbt")
    with pytest.raises(CatalogueError, match="a password goes into user= and password=") as raised:
        read_catalogue("https://me:secret@bi.example.org", "superset")
    assert "secret" not in str(raised.value)
    with pytest.raises(CatalogueError, match="token: expected printable letters of ASCII"):
        read_catalogue(tool.url, "grafana", token="a\r\nHost: b")
    url = tool.url
    tool.stop()
    with pytest.raises(CatalogueError, match="cannot be reached"):
        read_catalogue(url, "superset", token="t")
