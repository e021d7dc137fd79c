"""What a frozen server costs whoever saves: one wait, bounded, and none after it."""

from __future__ import annotations

import statistics
import time

import pytest
from rest import wait_for_rest

from copilotlab import Chart, Lab, Policy

UPDATES = 50


@pytest.mark.alone
def test_a_frozen_server_costs_the_first_update_alone(notes):
    policy = Policy(redis_timeout=1.0)  # a busy machine stalls for a while; that is no outage here
    with Lab(nodes=2, model="hash", policy=policy) as lab:
        node = lab.nodes[0]
        wait_for_rest(*lab.nodes)

        def update(number: int) -> tuple[str, float]:
            began = time.perf_counter()
            outcome = node.update_chart(Chart(chart_id=number, title=f"Revenue of product {number}")).outcome
            return outcome, time.perf_counter() - began

        before = [update(number) for number in range(UPDATES)]
        lab.redis.pause()
        frozen = [update(number) for number in range(UPDATES, 2 * UPDATES)]
        lab.redis.resume()
        lab.wait_converged()

        assert {outcome for outcome, _ in before} == {"published"}
        assert {outcome for outcome, _ in frozen} == {"local"}
        assert node.context.metrics["outages"] == 1
        assert node.context.metrics["embeddings"] == 2 * UPDATES
        first, *after = (1000 * seconds for _, seconds in frozen)
        notes.append(
            f"`update_chart` on a server that is frozen (redis_timeout {policy.redis_timeout:g} s): the first call "
            f"took {first:.0f} ms, the {len(after)} after it {statistics.median(after):.1f} ms (median) and "
            f"{max(after):.1f} ms at most; before, with Redis, {1000 * statistics.median(s for _, s in before):.1f} ms."
        )
