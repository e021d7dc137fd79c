"""How a service begins and ends, in this process."""

from __future__ import annotations

import asyncio
import threading

import pytest

from copilotlab import ChartRepository, Node, load_embedder
from copilotlab.service.app import create_app
from copilotlab.service.settings import Settings


def test_a_service_whose_node_does_not_start_leaves_no_threads(monkeypatch):
    with ChartRepository() as charts:
        node = Node(charts, load_embedder("hash"), node_id="unstarted")
        monkeypatch.setattr(node, "start", lambda: 1 / 0)
        before = set(threading.enumerate())
        app = create_app(node, Settings())

        async def live() -> None:
            async with app.state.service.life(app):
                pass

        with pytest.raises(ZeroDivisionError):
            asyncio.run(live())
        for thread in set(threading.enumerate()) - before:
            thread.join(30)
            assert not thread.is_alive(), thread.name
        assert node.status()["state"] == "stopped"
