"""Slow is not dead: a whole catalogue goes past a reader that sleeps, who then misses nothing and held nobody up."""

from __future__ import annotations

import time

import pytest
from rest import wait_for_rest
from trial import wait_until

from copilotlab import Chart, ChartRepository, LocalRedis, Node, Policy
from copilotlab.coordinator import BULK
from copilotlab.lab.instant import InstantModel

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

            assert sleeper.counters["outages"] == 0
            assert sum(node.counters["embeddings"] for node in (holder, reader, sleeper)) == count
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
