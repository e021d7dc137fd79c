"""The runbook, walked: what it says to look at for an alert is looked at, while the alert is raised."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import httpx

from copilotlab import Cluster, Node
from copilotlab.service.app import create_app
from copilotlab.service.settings import Settings

RUNBOOK = Path(__file__).parents[2] / "docs" / "runbook.md"


def to_see(alert: str) -> list[str]:
    """The code under *See* of an alert, as it stands there: expressions of `node` and `cluster`, and paths."""
    section = next(part for part in RUNBOOK.read_text().split("\n## ") if part.startswith(f"{alert}\n"))
    seen = re.search(r"\*\*See\*\*:(.*?)\n- \*\*Do", section, re.DOTALL)
    assert seen, section
    return [code for code in re.findall(r"`([^`]+)`", seen[1]) if re.match("node|cluster|/", code)]


def look(alert: str, *, node: Node | None = None, cluster: Cluster | None = None) -> dict[str, object]:
    """What there is to see, by the words of the runbook: of those that a ``node`` or ``cluster`` that is given says."""
    there = {name: one for name, one in (("node", node), ("cluster", cluster)) if one is not None}
    seen: dict[str, object] = {}
    for code in to_see(alert):
        if code.startswith("/") and node is not None:
            seen[code] = _answer(node, code)
        elif code.partition(".")[0] in there:
            called = re.search(r"\.(stop|switch_model)\(", code)
            seen[code] = getattr(node, called[1]) if called else eval(code, {}, there)
    return seen


def _answer(node: Node, path: str) -> str:
    app = create_app(node, Settings())

    async def asked() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get(path)

    service = app.state.service
    try:
        answer = asyncio.run(asked())
    finally:
        service.page.cluster.close()
        for workers in (service.searches, service.changes, service.looks, service.actions):
            workers.end()
    assert answer.status_code in (200, 503), answer.text
    return answer.text
