"""A cluster in one thread, on a simulated server, with time under control: an hour of protocol in a second.

The nodes are ordinary nodes that were not started: the lab takes their steps in turn, and moves the clock on between
them. The time that an embedding takes is charged to the node that makes it: until then it works on nothing else.
"""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from copilotlab.charts import Chart, ChartRepository
from copilotlab.clock import ManualClock
from copilotlab.embedding import Embedder, load_embedder
from copilotlab.lab.agreement import agree, differences, held_by
from copilotlab.lab.simulated_redis import SimulatedCarrier, SimulatedRedis
from copilotlab.monitoring import Journal, timeline
from copilotlab.node import Node
from copilotlab.protocol.policy import Policy

NEVER_AT_REST = 100_000  # rounds at one moment after which something is wrong with the nodes


class SimulatedLab:
    """Nodes that are driven step by step, not started.

    nodes: how many at first (3). policy: of all nodes; `Policy()` by default. charts: the repository; an empty one by
    default. embedder: "hash" by default. seconds_per_text: simulated seconds that an embedding takes (0.0).
    tick: seconds by which the clock moves on where nothing is due sooner (0.1).

    side_by_side: the largest number of nodes that were in a batch at the same moment.
    """

    def __init__(
        self,
        nodes: int = 3,
        policy: Policy | None = None,
        *,
        charts: ChartRepository | None = None,
        embedder: Embedder | None = None,
        seconds_per_text: float = 0.0,
        tick: float = 0.1,
    ) -> None:
        self.policy = policy or Policy()
        self.clock = ManualClock(1_000.0)
        self.redis = SimulatedRedis(self.clock)
        self.charts = ChartRepository() if charts is None else charts  # an empty repository is falsy
        self.embedder = embedder or load_embedder("hash")
        self.nodes: list[Node] = []
        self.carriers: list[SimulatedCarrier] = []
        self.side_by_side = 0
        self._cost = seconds_per_text
        self._tick = tick
        self._faults = Journal("lab", self.clock)
        self._start = self.clock.now()
        self._busy_until: dict[str, float] = {}
        self._still: set[str] = set()
        self._hanging: set[str] = set()
        for _ in range(nodes):
            self.add_node()

    # --- members and faults -----------------------------------------------------------------------------------

    def add_node(self) -> Node:
        """Add one more node, empty, and return it."""
        carrier = self.redis.carrier()
        node = Node(
            self.charts,
            self.embedder,
            carrier,
            policy=self.policy,
            node_id=f"n{len(self.nodes)}",
            clock=self.clock,
        )
        node.connect()
        self.carriers.append(carrier)
        self.nodes.append(node)
        return node

    def note(self, event: str, detail: str = "") -> None:
        """Write into the timeline what is done to the cluster from outside."""
        self._faults.note(event, detail)

    def freeze(self, index: int) -> None:
        """Let a node stand still, as a stopped process; its connection stays, and messages wait for it."""
        self._befall(index, "freeze", self._still.add)

    def resume(self, index: int) -> None:
        """Let a frozen node go on where it stood."""
        self._befall(index, "resume", self._still.discard)

    def hang(self, index: int) -> None:
        """Let the next call of a node's model hang: the node listens and beats, and does no other work."""
        self._befall(index, "hang", self._hanging.add)

    def mend(self, index: int) -> None:
        """Let the hanging model of a node answer."""
        self._befall(index, "mend", self._hanging.discard)

    def kill(self, index: int) -> None:
        """End a node; what it put into Redis stays. The others keep their indexes."""
        self._befall(index, "kill", self._still.add)
        self.carriers[index].cut()

    def _befall(self, index: int, event: str, change: Callable[[str], None]) -> None:
        """Write into the timeline what is done to a node, and call ``change`` with the node's id."""
        node_id = self.nodes[index].node_id
        self._faults.note(event, node_id)
        change(node_id)

    @property
    def living(self) -> list[Node]:
        """The nodes that are neither frozen nor killed."""
        return [node for node in self.nodes if node.node_id not in self._still]

    # --- time -------------------------------------------------------------------------------------------------

    @property
    def seconds(self) -> float:
        """Seconds since the start, as in the timeline."""
        return self.clock.now() - self._start

    def deliver(self) -> None:
        """Let every living node apply the messages on their way to it, and do no other work."""
        while any([node.listen() for node in self.living]):
            pass

    def run(self, seconds: float) -> None:
        """Let the nodes live for so many seconds."""
        until = self.clock.now() + seconds
        while self.clock.now() < until:
            self.turn()
            self._move_on(until)

    def run_until_agreed(self, limit: float) -> float | None:
        """Let the nodes live until they agree with the repository, and return how many seconds that took.

        Returns None if they did not agree within ``limit`` seconds.
        """
        if self.agree():
            return 0.0
        began = self.clock.now()
        while self.clock.now() - began < limit:
            self.turn()
            if self.agree():
                return self.clock.now() - began
            self._move_on(began + limit)
        return None

    def turn(self) -> None:
        """Let the living nodes do all that can be done at this moment. Raises RuntimeError if that never ends."""
        for _ in range(NEVER_AT_REST):
            if not any([self._step(node) for node in self.living]):
                self.side_by_side = max(self.side_by_side, sum(bool(node.status()["batch"]) for node in self.living))
                return
        raise RuntimeError(f"the nodes never come to rest: {[node.status() for node in self.living]}")

    def _step(self, node: Node) -> bool:
        heard = node.listen()
        if node.node_id in self._hanging or self._busy_until.get(node.node_id, 0.0) > self.clock.now():
            return heard
        before = node.context.metrics["embeddings"]
        worked = node.work()
        made = node.context.metrics["embeddings"] - before
        if made and self._cost:
            self._busy_until[node.node_id] = self.clock.now() + made * self._cost
        return heard or worked

    def _move_on(self, until: float) -> None:
        now = self.clock.now()
        due = [moment for moment in self._busy_until.values() if moment > now]
        self.clock.advance(max(0.0, min([now + self._tick, until, *due]) - now))

    # --- agreement --------------------------------------------------------------------------------------------

    def fill(self, count: int) -> None:
        """Save ``count`` charts in the repository, and bring them into all nodes by one rebuild."""
        self.charts.save_many(simulated_charts(count))
        self.nodes[0].rebuild()
        self.deliver()

    def lost(self) -> int:
        """Count the charts that living nodes hold otherwise than the repository, all nodes together."""
        return differences(self.living, held_by(self.charts)).filter(pl.col("difference") != "vector").height

    def agree(self) -> bool:
        """Tell whether every living node holds exactly what the repository holds, with the same bits."""
        return agree(self.living, self.charts)

    def embeddings(self) -> int:
        """Count the embeddings that all nodes have made, those that were killed too."""
        return sum(node.context.metrics["embeddings"] for node in self.nodes)

    def timeline(self) -> pl.DataFrame:
        """List what happened, in order: seconds since the start, node ("lab" for the faults), event, detail."""
        return timeline([self._faults, *(node.journal for node in self.nodes)], start=self._start)

    def __repr__(self) -> str:
        return f"SimulatedLab({len(self.living)} of {len(self.nodes)} nodes alive, at {self.clock.now():g} s)"


def simulated_chart(chart_id: int, title: str = "") -> Chart:
    """Make a chart for simulations."""
    return Chart(chart_id=chart_id, title=title or f"Revenue of product {chart_id}", description="By month")


def simulated_charts(count: int) -> list[Chart]:
    """Make charts for simulations, with the ids 1 to ``count``."""
    return [simulated_chart(chart_id) for chart_id in range(1, count + 1)]
