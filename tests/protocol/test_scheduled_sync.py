"""When a node says that it was last in step with the whole repository."""

from __future__ import annotations

import pytest

from copilotlab import Policy
from copilotlab.lab.simulated_lab import SimulatedLab, simulated_chart

INTERVAL = 100.0


def ages(c):
    return [node.status()["last_sync_age"] for node in c.nodes]


@pytest.mark.parametrize("policy", [Policy(sync_interval=INTERVAL), Policy.seed(sync_interval=INTERVAL)])
def test_every_scheduled_sync_counts(policy):
    # One after the other: as written, a sync that falls into another node's is left out.
    c = SimulatedLab(1, policy, tick=0.5)
    c.fill(20)
    for _ in range(2):
        c.run(5)
        c.add_node()
    c.run(10 * INTERVAL)

    assert all(0 <= age <= INTERVAL + 1 for age in ages(c))


def test_a_sync_has_ended_once_nothing_is_missing():
    c = SimulatedLab(1, Policy(sync_interval=10_000, adopt_after=30), tick=0.5)
    c.run(5)
    c.charts.save(simulated_chart(1))  # elsewhere: nobody tells of it
    c.nodes[0].replica.sync()
    c.run(20)
    assert ages(c)[0] >= 20, "the chart is missing, so the sync has not ended"

    c.run(20)
    assert len(c.nodes[0].store) == 1
    assert ages(c)[0] <= 15


def test_what_is_picked_up_later_is_no_sync():
    c = SimulatedLab(1, Policy(sync_interval=10_000, adopt_after=5), tick=0.5)
    c.fill(3)
    c.run(200)
    c.charts.save(simulated_chart(4))  # elsewhere: a batch of what is new takes it up
    c.run(100)

    assert c.nodes[0].context.metrics["batches"] == 2
    assert all(age >= 290 for age in ages(c))
