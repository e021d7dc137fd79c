"""Slow is not dead: a whole catalogue goes past a reader that sleeps, who then misses nothing and held nobody up."""

from __future__ import annotations

import time

import pytest
from request_limit import RequestLimit
from rest import wait_for_rest
from trial import wait_until

from copilotlab import Chart, ChartRepository, LocalRedis, Node, Policy
from copilotlab.lab.instant_model import InstantModel
from copilotlab.protocol.keys import BULK
from copilotlab.protocol.pages import LEAST_PAGE_BYTES

DIM = 384


def subscriptions(client) -> set[str]:
    return {listed["id"] for listed in client.client_list(_type="pubsub")}


@pytest.mark.parametrize("count", [2_000, pytest.param(100_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_a_reader_that_sleeps_loses_nothing_and_slows_nobody(count, notes):
    charts, model = ChartRepository(), InstantModel()
    policy = Policy(bulk_ttl=600.0, redis_timeout=2.0)
    with LocalRedis() as server:
        holder, reader, sleeper = (
            Node(charts, model, server.url, policy=policy, node_id=name) for name in ("holder", "reader", "sleeper")
        )
        with holder, reader:
            wait_for_rest(holder, reader)
            assert sleeper.connect()  # and does not read from now on: it has no threads, and nobody drives it
            before = subscriptions(server.client())
            charts.save_many([Chart(chart_id=i, title=f"Revenue of product {i}") for i in range(count)])

            began = time.monotonic()
            result = holder.rebuild()
            sent = time.monotonic() - began
            assert (result.outcome, result.embedded) == ("published", count)
            wait_until(lambda: reader.store.digest == holder.store.digest, "the reader has all", limit=300)
            read = time.monotonic() - began
            assert len(sleeper.store) == 0  # so nobody has waited for it

            # It slept for so long that what was put aside for readers is gone.
            client = server.client()
            for key in client.scan_iter(f"{BULK}:*"):
                client.delete(key)
            assert subscriptions(client) == before  # the server has not cut it off
            woke = time.monotonic()
            wait_until(lambda: drive(sleeper, holder), "the sleeper has all", limit=300)
            caught_up = time.monotonic() - woke

            assert sleeper.context.metrics["outages"] == 0
            assert sum(node.context.metrics["embeddings"] for node in (holder, reader, sleeper)) == count
            sleeper.stop()
        notes.append(
            f"{count:,} records of {DIM} floats ({4 * DIM * count / 1e6:,.0f} MB) in one batch, past a reader that "
            f"sleeps: sent in {sent:.1f} s, complete on a reader that is awake after {read:.1f} s; the sleeper, who "
            f"finds nothing of it left in Redis, is complete {caught_up:.1f} s after it wakes. It was not cut off."
        )


def drive(sleeper: Node, holder: Node) -> bool:
    """Some steps; True once it holds all."""
    for _ in range(200):
        if not sleeper.listen(0.05) and not sleeper.work():
            break
    return sleeper.store.digest == holder.store.digest


def catalogue(count: int) -> ChartRepository:
    charts = ChartRepository(timeout=60)  # on a busy machine one reading of all takes longer than the usual 5 s
    charts.save_many([Chart(chart_id=i, title=f"Revenue of product {i}") for i in range(count)])
    return charts


@pytest.mark.parametrize(("count", "dim"), [(25_000, 8), (200, 4096), (30, 16_384)])
def test_a_server_that_takes_one_megabyte_takes_all_that_nodes_put_there(count, dim):
    """Manifests of many charts, chunks and pages of long vectors: 1.2 MB, 1 MB and 2 MB, if nothing bounded them."""
    charts, model = catalogue(count), InstantModel(dim)
    policy = Policy(redis_timeout=5.0)
    with LocalRedis() as server:
        server.client().config_set("proto-max-bulk-len", 1024 * 1024)
        full, empty = (
            Node(charts, model, server.url, policy=policy, node_id=name, exact_limit=count)
            for name in ("full", "empty")
        )
        with full:
            full.wait_complete(60)
            wait_for_rest(full)
            with empty:
                wait_for_rest(full, empty)
                assert len(empty.store) == count
                charts.save(Chart(chart_id=1, title="Other words"))
                full.rebuild()
                wait_for_rest(full, empty)
        assert [node.context.metrics["outages"] for node in (full, empty)] == [0, 0]
        assert [node.context.metrics["pages_refused"] for node in (full, empty)] == [0, 0]
        assert (full.context.metrics["embeddings"], empty.context.metrics["embeddings"]) == (count + 1, 0)


def test_what_a_real_server_does_to_a_page_that_is_too_large_is_understood(monkeypatch):
    monkeypatch.setattr("copilotlab.protocol.pages.PAGE_BYTES", 4 * 1024 * 1024)
    charts, model = catalogue(200), InstantModel(4096)
    policy = Policy(redis_timeout=5.0, chunk_size=128)  # chunks and pages of 2 MB
    with LocalRedis() as server:
        server.client().config_set("proto-max-bulk-len", 1024 * 1024)
        full, empty = (Node(charts, model, server.url, policy=policy, node_id=name) for name in ("full", "empty"))
        with full:
            full.wait_complete(60)
            wait_for_rest(full)
            with empty:
                wait_for_rest(full, empty)
                assert len(empty.store) == 200
        assert 0 < full.context.metrics["pages_refused"] <= 4
        assert full.coordinator.link.pages.bytes < 2 * 1024 * 1024
        assert [node.context.metrics["outages"] for node in (full, empty)] == [0, 0]


@pytest.mark.parametrize("manner", ["says so", "cuts the line"])
def test_a_refusal_for_size_is_met_with_smaller_pages_and_is_no_outage(manner, caplog):
    count = 6_000
    charts, model = catalogue(count), InstantModel(64)
    policy = Policy(redis_timeout=5.0, chunk_size=1024)  # chunks of 298 KB, pages of a manifest of 288 KB
    with LocalRedis() as server, RequestLimit(server.endpoint, 100_000, manner) as line:
        full, empty = (Node(charts, model, line.url, policy=policy, node_id=name) for name in ("full", "empty"))
        with full:
            full.wait_complete(60)
            wait_for_rest(full)
            before = full.context.metrics["pages_refused"]
            assert 0 < before <= 6  # from 512 KB to below 100,000 in three steps, each tried twice at most
            with empty:
                wait_for_rest(full, empty)
                assert len(empty.store) == count
                charts.save_many([Chart(chart_id=i, title=f"Other words {i}") for i in range(2_000)])
                empty.rebuild()
                wait_for_rest(full, empty)
        assert line.refused == full.context.metrics["pages_refused"] + empty.context.metrics["pages_refused"]
        assert full.context.metrics["pages_refused"] == before  # what was learned is kept
        assert full.coordinator.link.pages.bytes < 100_000
        assert [node.context.metrics["outages"] for node in (full, empty)] == [0, 0]
        assert full.context.metrics["gaps"] == 0  # what was refused counts as not said
        assert empty.context.metrics["pages_refused"] > 0
        assert full.context.metrics["embeddings"] + empty.context.metrics["embeddings"] == count + 2_000
        said = [r for r in caplog.records if "pages refused" in r.getMessage() and "from now on" in r.getMessage()]
        assert {r.getMessage().split()[1] for r in said} == {"full:", "empty:"}
        assert len(said) == 2


def test_a_server_that_takes_no_page_at_all_is_away_and_the_node_answers(caplog):
    charts, model = catalogue(500), InstantModel(64)
    with LocalRedis() as server, RequestLimit(server.endpoint, LEAST_PAGE_BYTES // 2, "says so") as line:
        with Node(charts, model, line.url, policy=Policy(redis_timeout=5.0, chunk_size=512), node_id="a") as node:
            node.wait_complete(60)
            wait_until(lambda: node.context.metrics["outages"] > 0, "the smallest page is refused, too")
            assert "max request size exceeded" in caplog.text
            assert node.search("revenue", k=3).height == 3
        assert node.context.metrics["pages_refused"] > 0
