"""Toggles over HTTP, in this process: who may see them, who may set them, and what is refused."""

from __future__ import annotations

import anyio
import httpx
import pytest

from copilotlab import ChartRepository, Node, load_embedder
from copilotlab.clock import ManualClock
from copilotlab.lab.simulated_redis import SimulatedRedis
from copilotlab.service.app import create_app
from copilotlab.service.settings import Settings

READ, ADMIN = "read-token-0123456789", "admin-token-0123456789"


@pytest.fixture
def ask(tmp_path):
    """A function that asks a service whose node is not started: as whom, how, and with what body."""
    tokens = tmp_path / "tokens"
    tokens.write_text(f"read {READ}\nadmin {ADMIN}\n")
    with ChartRepository() as charts:
        node = Node(charts, load_embedder("hash"), SimulatedRedis(ManualClock()).carrier(), node_id="a")
        transport = httpx.ASGITransport(create_app(node, Settings(tokens_file=tokens, admin_per_minute=8)))

        def ask(token, method, body=None):
            async def asked():
                async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
                    headers = {"Authorization": f"Bearer {token}"}
                    return await client.request(method, "/v1/toggles", json=body, headers=headers)

            return anyio.run(asked)

        ask.node = node
        yield ask
        node.stop()


def named(answer, name):
    return next(toggle for toggle in answer.json()["toggles"] if toggle["name"] == name)


def test_who_may_read_sees_the_toggles_and_who_is_admin_sets_them(ask):
    assert named(ask(READ, "GET"), "publishing") == {
        "name": "publishing",
        "value": True,
        "set_by": "",
        "set_on": "",
        "set_at": "",
        "everywhere": False,
        "version": 0,
    }
    assert ask(READ, "PATCH", {"set": {"publishing": False}}).status_code == 403
    assert ask("no-token-of-ours-0123", "GET").status_code == 401

    answer = ask(ADMIN, "PATCH", {"set": {"publishing": False, "sync_interval": 60}, "everywhere": True, "by": "Ada"})
    assert answer.status_code == 200
    publishing = named(answer, "publishing")
    assert (publishing["value"], publishing["set_by"], publishing["set_on"]) == (False, "Ada", "a")
    assert publishing["everywhere"]
    assert named(ask(READ, "GET"), "sync_interval")["value"] == 60
    assert ask.node.policy.sync_interval == 60


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"set": {"fenced": False, "publishing": False}}, "cannot change on a running node"),
        ({"set": {"publishing": 0}}, "expected True or False"),
        ({"set": {"sync_interval": 1e300}}, "seconds"),
        ({"set": {"colour": True}}, "there are publishing, listening"),
        ({"set": {"chunk_size": "64"}}, "set.chunk_size"),
        ({"set": {}}, "set"),
        ({"set": {"publishing": False}, "everywhere": True, "node_id": "b"}, "one of them"),
        ({"set": {"publishing": False}, "by": ""}, "by"),
    ],
)
def test_what_cannot_be_set_is_a_problem_that_says_why_and_changes_nothing(ask, body, why):
    answer = ask(ADMIN, "PATCH", body)

    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert why in answer.json()["detail"]
    assert ask.node.status()["toggles"] == []


def test_setting_counts_as_an_admin_call_and_those_are_bounded(ask):
    statuses = [ask(ADMIN, "PATCH", {"set": {"listening": True}}).status_code for _ in range(9)]

    assert statuses == [200] * 8 + [429]
