"""The admin page without a browser: what it gives to whom, its headers, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress

import httpx
import pytest

from copilotlab import ChartRepository, LocalRedis, Node, Policy, load_embedder
from copilotlab.lab.simulated_lab import simulated_charts
from copilotlab.service.app import create_app
from copilotlab.service.settings import Settings

LIMIT = 60.0  # seconds for what is certain to come
READ, ADMIN = "read-token-0123456789", "admin-token-0123456789"
POLICY = Policy(heartbeat_interval=0.2, probe_interval=0.1, redis_timeout=1.0)
PATHS = ["/v1/cluster", "/v1/cluster/events", "/v1/cluster/differences", "/v1/cluster/toggles"]


@pytest.fixture(scope="module")
def server():
    with LocalRedis() as server:
        yield server


@pytest.fixture
def serve(server, tmp_path) -> Callable[[Callable[..., Awaitable[None]]], None]:
    """Run a coroutine of a client, the application and the node, while a service lives in this process."""

    def run(asked: Callable[..., Awaitable[None]], *, tokens: str = f"read {READ}\nadmin {ADMIN}\n", **options) -> None:
        (tmp_path / "tokens").write_text(tokens)
        with ChartRepository() as charts:
            charts.save_many(simulated_charts(5))
            node = Node(charts, load_embedder("hash"), server.url, policy=POLICY, node_id="a", namespace=str(tmp_path))
            app = create_app(node, Settings(tokens_file=tmp_path / "tokens", **options))

            async def live() -> None:
                async with app.state.service.life(app):
                    await asyncio.to_thread(node.rebuild)
                    cluster = app.state.service.page.cluster
                    await asyncio.to_thread(cluster.wait, 1, LIMIT, agree=True)
                    transport = httpx.ASGITransport(app)
                    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                        await asked(client, app, node)
                assert cluster.closed

            asyncio.run(live())

    return run


def as_(token: str, **headers: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}", **headers}


def test_the_page_is_static_loads_nothing_from_elsewhere_and_has_no_script_in_it(serve):
    async def asked(client, _app, _node):
        for path, kind in (("/admin", "html"), ("/admin/admin.css", "css"), ("/admin/admin.js", "javascript")):
            answer = await client.get(path)
            assert answer.status_code == 200
            assert kind in answer.headers["content-type"]
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "script-src 'self';" in policy
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", answer.text)
            if kind == "html":
                assert re.findall(r"<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=|<style", answer.text) == []
            if kind == "javascript":
                assert "innerHTML" not in answer.text
        assert (await client.get("/admin/../secrets")).status_code == 404
        assert (await client.get("/admin/tokens")).status_code == 404

    serve(asked)


def test_what_it_shows_needs_a_token_for_reading_and_what_it_does_one_for_admin(serve):
    async def asked(client, _app, node):
        for path in PATHS:
            assert (await client.get(path)).status_code == 401
            assert (await client.get(path, headers=as_("wrong-token-0123456789"))).status_code == 401
            in_url = await client.get(path, params={"token": READ})
            assert in_url.status_code == 401
        action = {"action": "sync", "node": "a"}
        assert (await client.post("/v1/cluster/actions", json=action)).status_code == 401
        assert (await client.post("/v1/cluster/actions", json=action, headers=as_(READ))).status_code == 403

        told = (await client.get("/v1/cluster", headers=as_(READ))).json()
        assert told["service"]["node"] == "a"
        assert told["verdict"] == "one node, alone"
        (shown,) = told["nodes"]
        assert (shown["node"], shown["charts"], shown["group"], shown["lag"]) == ("a", 5, "A", 0)
        assert told["alerts"] == []
        assert any(line["event"] == "appeared" for line in told["timeline"])
        same = (await client.get("/v1/cluster/differences", headers=as_(READ))).json()
        assert same == {"count": 0, "differences": []}

        done = await client.post("/v1/cluster/actions", json=action, headers=as_(ADMIN))
        assert done.json()["said"].startswith("sync begun")
        for wrong, status, words in (
            ({"action": "sync", "node": "b"}, 409, "'b' was not heard of"),
            ({"action": "format", "node": "a"}, 422, "action"),
            ({"action": "release_lease", "argument": "5 a b c"}, 409, "another one by now"),
        ):
            refused = await client.post("/v1/cluster/actions", json=wrong, headers=as_(ADMIN))
            assert refused.status_code == status
            assert words in refused.json()["detail"]
        assert "ordered_sync" in [entry.event for entry in node.journal.entries()]

    serve(asked)


def test_toggles_of_all_nodes_are_read_with_a_token_for_reading_and_set_with_one_for_admin(serve):
    async def asked(client, _app, node):
        at = "/v1/cluster/toggles"
        wanted = {"set": {"publishing": False}, "node": "", "by": "Ada"}
        assert (await client.get(at)).status_code == 401
        assert (await client.patch(at, json=wanted, headers=as_(READ))).status_code == 403
        told = (await client.get(at, headers=as_(READ))).json()
        assert "runs batches for all" in told["settable"]["publishing"]["meaning"]
        assert told["settable"]["batch_timeout"]["type"] == "number"
        assert "tombstones" in told["fixed"]["ordered"]
        assert (told["nodes"]["a"]["toggles"][0]["version"], told["nodes"]["a"]["reason"]) == (0, "")

        done = await client.patch(at, json=wanted, headers=as_(ADMIN))
        assert "publishing=False everywhere, version 1, by Ada" in done.json()["said"]
        (publishing, *_) = (await client.get(at, headers=as_(READ))).json()["nodes"]["a"]["toggles"]
        assert (publishing["value"], publishing["set_by"], publishing["set_on"]) == (False, "Ada", "a")
        for wrong, status, why in (
            ({"set": {"ordered": False}, "node": "a"}, 422, "cannot change on a running node: the store keeps"),
            ({"set": {"bulk_ttl": 0}, "node": "a"}, 422, "expected seconds above 0"),
            ({"set": {"timeout": 5, "publishing": True}, "node": "a"}, 422, "'timeout': no such toggle"),
            ({"set": {"publishing": True}, "node": "b"}, 409, "'b' was not heard of"),
            ({"set": {"publishing": True}}, 422, "node"),
            ({"set": {"publishing": True}, "node": "a", "by": "A\nda"}, 422, "by"),
        ):
            refused = await client.patch(at, json=wrong, headers=as_(ADMIN))
            assert (refused.status_code, why in refused.json()["detail"]) == (status, True), refused.text
        assert {toggle["version"] for toggle in node.toggles()} == {0, 1}

    serve(asked)


def test_without_any_token_it_may_be_looked_at_on_loopback_and_nothing_can_be_done(serve):
    async def asked(client, _app, _node):
        assert (await client.get("/v1/cluster")).status_code == 200
        refused = await client.post("/v1/cluster/actions", json={"action": "stop", "node": "a"})
        assert refused.status_code == 403
        rebound = await client.get("/v1/cluster", headers={"Host": "evil.example"})
        assert rebound.status_code == 403
        assert "evil.example" in rebound.json()["detail"]

    serve(asked, tokens="")


def test_what_another_site_asks_for_is_refused_and_a_link_to_the_page_is_followed(serve):
    async def asked(client, _app, _node):
        crossed = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}
        for site in ("cross-site", "same-site"):
            refused = await client.get("/v1/cluster", headers=as_(ADMIN, **{**crossed, "Sec-Fetch-Site": site}))
            assert refused.status_code == 403
            assert refused.headers["content-type"] == "application/problem+json"
        action = {"action": "sync", "node": "a"}
        headers = as_(ADMIN, Origin="http://evil.example")
        assert (await client.post("/v1/cluster/actions", json=action, headers=headers)).status_code == 403
        own = as_(ADMIN, **{"Origin": "http://127.0.0.1", "Sec-Fetch-Site": "same-origin"})
        assert (await client.post("/v1/cluster/actions", json=action, headers=own)).status_code == 200
        followed = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
        assert (await client.get("/admin", headers=followed)).status_code == 200

    serve(asked)


def test_actions_are_counted_and_too_many_are_refused(serve):
    async def asked(client, _app, _node):
        for _ in range(2):
            await client.post("/v1/cluster/actions", json={"action": "sync", "node": "a"}, headers=as_(ADMIN))
        refused = await client.post("/v1/cluster/actions", json={"action": "sync", "node": "a"}, headers=as_(ADMIN))
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) > 0

    serve(asked, admin_per_minute=2)


def test_a_stream_tells_the_picture_and_the_history_and_ends_with_the_service_or_its_reader(serve):
    async def asked(_client, app, _node):
        page = app.state.service.page
        gone = asyncio.Event()

        async def is_gone() -> bool:
            return gone.is_set()

        stream = page._events(is_gone)
        first, second = await anext(stream), await anext(stream)
        assert first.startswith(b"event: now\ndata: {")
        assert first.endswith(b"}\n\n")
        assert json.loads(first.partition(b"data: ")[2])["verdict"] == "one node, alone"
        assert second.startswith(b"event: history\n")
        assert (await anext(stream)).startswith(b"event: now\n")
        gone.set()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

        other = page._events(lambda: asyncio.sleep(0, result=False))
        await anext(other)
        assert page._streams == 1
        app.state.service.hold_back("the service is ending")
        with suppress(StopAsyncIteration):
            while True:
                await asyncio.wait_for(anext(other), LIMIT)
        assert page._streams == 0

    serve(asked)
