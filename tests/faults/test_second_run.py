"""The same script, run again on the same Redis and database: after it ended in order, and after it was killed."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time

import pytest
from trial import wait_until

from copilotlab import Chart, ChartRepository, LocalRedis, Node, load_embedder
from copilotlab.lab import catalogue

CHARTS = 300
SLOW = textwrap.dedent("""
    import sys, time
    from copilotlab import ChartRepository, Node, load_embedder
    from copilotlab.embedding.hashing import HashEmbedder

    class Slow(HashEmbedder):
        def _encode(self, batch):
            if len(batch) > 1:
                print("embedding", flush=True)
                time.sleep(0.5)
            return super()._encode(batch)

    url, redis, node_id = sys.argv[1:]
    with Node(ChartRepository(url), Slow(), redis=redis, node_id=node_id) as node:
        node.rebuild()
""")


@pytest.fixture
def server():
    with LocalRedis() as server:
        yield server


@pytest.fixture
def url(tmp_path):
    url = f"sqlite:///{tmp_path / 'charts.db'}"
    ChartRepository.from_frame(catalogue.charts().sort("chart_id").head(CHARTS), url).close()
    return url


def the_readmes_script(url, redis, **options):
    """What the README shows, in one piece."""
    with Node(ChartRepository(url), load_embedder("hash"), redis=redis, **options) as node:
        filled = node.rebuild()
        node.update_chart(Chart(chart_id=7, title="Revenue by region", measures=["Revenue"], tags=["finance"]))
        found = node.search("revenue by region", k=5)
        return filled, node.sync(), found


@pytest.mark.parametrize("options", [{}, {"node_id": "a"}])
def test_a_script_that_is_run_twice_fills_its_node_twice(server, url, options):
    for there in (CHARTS, CHARTS + 1):  # the first run adds a chart
        filled, synced, found = the_readmes_script(url, server.url, **options)

        assert (filled.outcome, filled.charts, filled.embedded) == ("published", there, there)
        assert synced.outcome == "published"
        assert len(found) == 5
        assert found["chart_id"][0] == 7


@pytest.mark.parametrize("name", ["a", "another"])
def test_after_it_was_killed_in_its_first_fill_the_next_run_is_filled(server, url, name):
    script = subprocess.Popen([sys.executable, "-c", SLOW, url, server.url, "a"], stdout=subprocess.PIPE, text=True)
    for line in script.stdout:
        if line == "embedding\n":
            break
    os.kill(script.pid, signal.SIGKILL)
    script.wait()
    assert server.client().get("vector:batch:in_progress") is not None

    with Node(ChartRepository(url), load_embedder("hash"), redis=server.url, node_id=name) as node:
        node.wait_complete(timeout=60)
        assert len(node.store) == CHARTS
        if name == "a":  # its own lease of an earlier life is no obstacle, its claims for three heartbeats at most
            wait_until(
                lambda: node.context.metrics["batches"] == 1, "the batch has ended"
            )  # a moment after the last chart


def test_a_sync_takes_in_what_was_edited_by_hand_and_every_node_with_it(server, url):
    charts = ChartRepository(url)
    file = url.removeprefix("sqlite:///")
    with (
        Node(charts, load_embedder("hash"), redis=server.url, node_id="a") as first,
        Node(ChartRepository(url), load_embedder("hash"), redis=server.url, node_id="b") as second,
    ):
        first.rebuild()
        second.wait_complete(timeout=60)
        edited, deleted = first.store.manifest().chart_ids[:2].tolist()
        with sqlite3.connect(file) as database:
            database.execute("UPDATE copilotlab_charts SET title = 'Penguins by island' WHERE chart_id = ?", [edited])
            database.execute("DELETE FROM copilotlab_charts WHERE chart_id = ?", [deleted])

        first.sync()

        assert first.store.head(edited)[1] == charts.get(edited).content_hash
        found = first.search("penguins by island", k=1, chart_ids=[edited])
        assert found["title"].to_list() == ["Penguins by island"]
        until = time.monotonic() + 60
        while second.store.digest != first.store.digest and time.monotonic() < until:
            time.sleep(0.05)
        assert second.store.head(edited) == first.store.head(edited)
        assert deleted not in first.store
        assert deleted not in second.store
