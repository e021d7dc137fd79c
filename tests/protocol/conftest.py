"""A cluster that a test drives by hand: one thread, one clock, no waiting."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from copilotlab import Chart, ChartRepository, Node, Policy, load_embedder
from copilotlab.clock import ManualClock
from copilotlab.lab.simulation import SimulatedRedis


class Cluster:
    """Nodes on a simulated Redis; nothing happens unless a method here, or the test, makes it happen."""

    def __init__(self, size: int, policy: Policy) -> None:
        self.policy = policy
        self.clock = ManualClock(1_000.0)
        self.redis = SimulatedRedis(self.clock)
        self.charts = ChartRepository()
        self.embedder = load_embedder("hash")
        self.nodes: list[Node] = []
        self.carriers = []
        for _ in range(size):
            self.add_node()

    def add_node(self) -> Node:
        carrier = self.redis.carrier()
        node = Node(
            self.charts,
            self.embedder,
            carrier,
            policy=self.policy,
            node_id=f"n{len(self.nodes)}",
            clock=self.clock,
        )
        node.coordinator.connect()
        self.carriers.append(carrier)
        self.nodes.append(node)
        return node

    def fill(self, count: int) -> None:
        """Save ``count`` charts elsewhere, and bring them into all nodes by one rebuild."""
        self.charts.save_many([chart(chart_id) for chart_id in range(1, count + 1)])
        self.nodes[0].rebuild()
        self.deliver()

    def deliver(self) -> None:
        """Let every node apply all that is on its way to it."""
        while any([node.listen() for node in self.nodes]):
            pass

    def settle(self, seconds: float = 10.0) -> None:
        """Let every node listen and work, with time going on, for ``seconds``."""
        until = self.clock.now() + seconds
        while self.clock.now() < until:
            while any([node.listen() | node.work() for node in self.nodes]):
                pass
            self.clock.advance(self.policy.probe_interval)

    def agree(self) -> bool:
        """Whether every node holds exactly what the repository holds, and all the same bits."""
        expected = {
            change.chart_id: (change.revision, change.chart.content_hash)
            for change in self.charts.changes_since(0)
            if change.chart is not None
        }
        return len({node.store.digest for node in self.nodes}) == 1 and all(
            {i: (r.revision, r.content_hash) for i in expected if (r := node.store.get(i))} == expected
            and len(node.store) == len(expected)
            for node in self.nodes
        )

    def embeddings(self) -> int:
        return sum(node.counters["embeddings"] for node in self.nodes)


def chart(chart_id: int, title: str = "") -> Chart:
    return Chart(chart_id=chart_id, title=title or f"Revenue of product {chart_id}", description="By month")


@pytest.fixture
def cluster() -> Callable[..., Cluster]:
    return lambda size=3, policy=None: Cluster(size, policy or Policy())


@pytest.fixture
def make_chart() -> Callable[..., Chart]:
    return chart
