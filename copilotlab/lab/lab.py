"""Several nodes in one process, each behind its own proxy, on one real server: to watch and to break."""

from __future__ import annotations

import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import polars as pl

from copilotlab.charts import ChartRepository, RepositoryError
from copilotlab.clock import SystemClock
from copilotlab.embedding import DEFAULT_MODEL, Embedder, load_embedder
from copilotlab.lab.agreement import agree, alike, differences, held_by
from copilotlab.lab.freezable_clock import FreezableClock
from copilotlab.lab.proxy import Direction, FaultProxy
from copilotlab.lab.server import LocalRedis
from copilotlab.lab.summary import summary_html
from copilotlab.lifetime import Latch, renewed_by_fork
from copilotlab.monitoring import Journal, timeline
from copilotlab.monitoring.agreement import Agreement
from copilotlab.monitoring.happenings import Deleted, Happening, Updated
from copilotlab.node import Node
from copilotlab.protocol.policy import Policy, check_policy
from copilotlab.reasons import short
from copilotlab.store import EXACT_LIMIT
from copilotlab.store.records import as_integer
from copilotlab.urls import hide_password

if TYPE_CHECKING:
    from copilotlab.widgets import LabPanel

POLL_SECONDS = 0.005


class NotConverged(TimeoutError):
    """The nodes did not agree in time. ``differences``: a frame of what differs, see `Lab.differences`."""

    def __init__(self, message: str, differences: pl.DataFrame) -> None:
        super().__init__(message)
        self.differences = differences


class _LastChange:
    """When something last changed that nodes have to follow: a listener of each node, which holds no lab."""

    def __init__(self) -> None:
        self.at = time.monotonic()

    def __call__(self, happening: Happening) -> None:
        if isinstance(happening, Updated | Deleted):
            self.note()

    def note(self) -> None:
        """Note a change now."""
        self.at = time.monotonic()


class Lab:
    """A cluster to experiment with.

    nodes: how many to start, 4 by default. model: a name for `load_embedder`, or an Embedder; "minilm-int8" by default.
    charts: a ChartRepository, or a frame or file to make one in memory; an empty one by default.
    policy: of all nodes; `Policy()` by default. redis: a LocalRedis to use, which is then yours to stop; by default
    the lab starts its own. exact_limit: of every node, see `Node`.

    Use it as a context manager, or call `start` and `close`. It closes itself when nobody holds it any more. After a
    fork, the child's copy is closed: nodes and server belong to the parent. `nodes` are ordinary `Node` objects.
    Raises ValueError for less than one node, or a wrong exact_limit; TypeError for what is no model, policy or server.
    """

    def __init__(
        self,
        nodes: int = 4,
        model: str | Embedder = DEFAULT_MODEL,
        charts: ChartRepository | pl.DataFrame | str | Path | None = None,
        policy: Policy | None = None,
        *,
        redis: LocalRedis | None = None,
        exact_limit: int = EXACT_LIMIT,
    ) -> None:
        if isinstance(nodes, bool) or not isinstance(nodes, int) or not 1 <= nodes <= 64:
            raise ValueError(f"Lab(nodes={short(nodes)}): expected a whole number from 1 to 64")
        if not isinstance(model, str | Embedder):
            raise TypeError(f"Lab(model={short(model)}): expected the name of a model, or an Embedder")
        if redis is not None and not isinstance(redis, LocalRedis):
            shown = short(hide_password(redis)) if isinstance(redis, str) else hide_password(short(redis))
            raise TypeError(f"Lab(redis={shown}): expected a LocalRedis, as in Lab(redis=LocalRedis()), or None")
        check_policy(policy)
        self._model = load_embedder(model) if isinstance(model, str) else model
        if isinstance(charts, ChartRepository):
            self.charts = charts
        else:
            self.charts = ChartRepository() if charts is None else ChartRepository.from_frame(charts)
        self.policy = policy or Policy()
        self.redis = redis if redis is not None else LocalRedis()
        self.nodes: list[Node] = []
        self.proxies: list[FaultProxy] = []
        self._clocks: list[FreezableClock] = []
        self._owns_redis = redis is None
        self._exact_limit = as_integer("exact_limit", exact_limit)
        self._size = nodes
        self._clock = SystemClock()
        self._faults = Journal("lab", self._clock)
        self._changed = _LastChange()
        self._started: float | None = None
        self._closed = False
        self._panel: LabPanel | None = None
        self._over = Latch()
        weakref.finalize(self, self._over.set).atexit = False  # the interpreter's end stops each node
        renewed_by_fork(self)

    def after_fork(self) -> None:
        """Close the copy of a forked child: nodes, proxies and server belong to the parent."""
        self._closed = True

    def start(self, *, progress: bool = False) -> Self:
        """Start the server and the nodes, and, if there are charts, bring them into every node.

        progress: a bar while the charts are embedded.
        """
        self._must_be_open()
        if self._started is not None:
            return self
        self._started = self._clock.now()
        # Garbage is collected in the middle of anything, where nothing may be closed: this thread does it.
        parts = (self._over, self.nodes, self._clocks, self.proxies, self.redis if self._owns_redis else None)
        threading.Thread(target=_close_when_over, args=parts, name="copilotlab-lab-end", daemon=True).start()
        noted = weakref.WeakMethod(self._befall_server)  # a server that is not the lab's own must not keep it alive
        self.redis.watcher = lambda event: (note := noted()) and note(event)
        if not self.redis.running:
            self.redis.start()
        for _ in range(self._size):
            self.add_node()
        if len(self.charts):
            self.nodes[0].rebuild(progress=progress)
        return self

    def close(self) -> None:
        """Stop the nodes, the proxies and, if it is the lab's own, the server."""
        self._closed = True
        self.redis.watcher = None
        _close(self.nodes, self._clocks, self.proxies, self.redis if self._owns_redis else None)
        self._over.set()

    def _must_be_open(self) -> None:
        if self._closed:
            raise RuntimeError("this Lab is closed; make another one")

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:  # an interrupt too: a lab that did not start leaves nothing running
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- members and faults -----------------------------------------------------------------------------------

    def add_node(self) -> Node:
        """Start one more node, empty, with the model that the others have now, and return it.

        With `reconcile` it fetches the vectors from them.
        """
        self._must_be_open()
        index = len(self.nodes)
        proxy = FaultProxy(self.redis.endpoint)
        node_id = f"node-{index}"
        clock = FreezableClock(self._clock, node_id)
        node = Node(
            self.charts,
            self.embedder,
            proxy.url(self.redis.password),
            policy=self.policy,
            node_id=node_id,
            clock=clock,
            exact_limit=self._exact_limit,
        )
        self.proxies.append(proxy)
        self._clocks.append(clock)
        self.nodes.append(node)
        self._faults.note("add_node", node.node_id)
        node.listen_to(self._changed)
        self._changed.note()
        return node.start()

    def partition(self, index: int) -> None:
        """Cut node ``index`` off from the server."""
        self._befall(index, "partition").cut()

    def heal(self, index: int) -> None:
        """End the partition and the delay of node ``index``."""
        self._befall(index, "heal").heal()

    def delay(self, index: int, seconds: float) -> None:
        """Let everything between node ``index`` and the server take ``seconds`` longer, each way."""
        self._proxy(index).delay(seconds)
        self._befall(index, "delay", f" by {seconds:g} s")

    def one_way(self, index: int, direction: Direction) -> None:
        """Hold what node ``index`` sends ("to_server") or gets ("to_client"), until it is healed."""
        self._befall(index, "one_way", f", {direction}").one_way(direction)

    def reset(self, index: int) -> None:
        """Reset the connections of node ``index``, once; it may connect again at once."""
        self._befall(index, "reset").reset()

    def kill(self, index: int) -> None:
        """End node ``index`` as a crash does: the others hear nothing, and a lease that it held stays in Redis."""
        self._befall(index, "kill").cut()
        self._clocks[index].resume()
        self.nodes[index].stop()

    def freeze(self, index: int) -> None:
        """Let node ``index`` stand still, as a process that the system has stopped; its connection stays."""
        self._befall(index, "freeze")
        self._clocks[index].freeze()

    def resume(self, index: int) -> None:
        """Let node ``index`` go on where it stood."""
        self._befall(index, "resume")
        self._clocks[index].resume()

    def _befall(self, index: int, event: str, more: str = "") -> FaultProxy:
        """Write into the timeline what is done to node ``index``, and return its proxy."""
        proxy = self._proxy(index)
        self._faults.note(event, f"{self.nodes[index].node_id}{more}")
        self._changed.note()
        return proxy

    def _befall_server(self, event: str) -> None:
        self._faults.note(event, "server")
        self._changed.note()

    def _proxy(self, index: int) -> FaultProxy:
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(self.nodes):
            raise IndexError(f"node {short(index)}: this lab has nodes 0 to {len(self.nodes) - 1}")
        return self.proxies[index]

    # --- agreement --------------------------------------------------------------------------------------------

    @property
    def living(self) -> list[Node]:
        """The nodes that are neither stopped, killed nor frozen."""
        return [
            node for node, clock in zip(self.nodes, self._clocks, strict=False) if node.running and not clock.frozen
        ]

    @property
    def embedder(self) -> Embedder:
        """The model of the first living node; that which the lab was made with where none lives."""
        return next((node.embedder for node in self.living), self._model)

    def wait_converged(self, timeout: float = 10.0) -> float:
        """Wait until every living node is connected, complete, and holds exactly what the repository holds.

        Ids, revisions, content hashes and the vectors' bytes are compared. Returns the seconds from the last change (an
        edit, or what was done to a node, a line or the server) until then; 0.0 where the nodes had converged before the
        call. Raises NotConverged after ``timeout`` seconds (10), with what differs.
        """
        began, revision, waited = time.monotonic(), None, False
        while True:
            try:
                now = self.charts.revision
                if revision not in (None, now):  # also what was saved past the nodes
                    self._changed.note()
                revision = now
                if not self._not_yet() and agree(self.living, self.charts):
                    return max(0.0, time.monotonic() - self._changed.at) if waited else 0.0
            except RepositoryError:
                pass  # it is away: the differences, below, say so where it stays away
            if time.monotonic() - began >= timeout:
                break
            time.sleep(POLL_SECONDS)
            waited = True
        differences = self.differences()
        if not self.living:
            raise NotConverged(f"not converged within {timeout:g} s: no node is alive", differences)
        found = self._not_yet()
        if differences.height:
            found.append(f"{differences.height} differences; the first: {differences.head(5).rows()}")
        raise NotConverged(f"not converged within {timeout:g} s: {'; '.join(found)}", differences)

    def _not_yet(self) -> list[str]:
        """Say of each living node that is not connected or not complete why it is not."""
        found = []
        for status in (node.status() for node in self.living):
            if status["redis"] != "connected":
                found.append(f"{status['node']} is not connected: {status['redis_reason']}")
            elif not status["complete"]:
                found.append(
                    f"{status['node']} has {status['charts']} of {status['expected']} charts: {status['incomplete']}"
                )
        return found

    def differences(self) -> pl.DataFrame:
        """List what the living nodes hold otherwise than the repository: node, chart_id, difference ("missing",
        "surplus", "revision", "content", or "vector": bits that differ from those of the first living node)."""
        return differences(self.living, held_by(self.charts))

    # --- to look at -------------------------------------------------------------------------------------------

    def status(self) -> pl.DataFrame:
        """Return one row for each node: its `Node.status`."""
        return pl.DataFrame([node.status() for node in self.nodes], infer_schema_length=None)

    def timeline(self) -> pl.DataFrame:
        """List what happened, in order: seconds since the lab's start, node ("lab" for the faults), event, detail."""
        return timeline([self._faults, *(node.journal for node in self.nodes)], start=self._started or 0.0)

    def note(self, event: str, detail: str = "") -> None:
        """Write a line of your own into the timeline."""
        self._faults.note(event, detail)

    def panel(self) -> LabPanel:
        """Return the live panel of this lab, to show in a notebook; the same one until it is closed.

        Raises ImportError, with the command that mends it, where ipywidgets is not installed.
        """
        from copilotlab.widgets import LabPanel

        if self._panel is None or self._panel.closed:
            self._panel = LabPanel(self)
        return self._panel

    def __repr__(self) -> str:
        living = self.living
        return f"Lab({len(living)} of {len(self.nodes)} nodes alive, {len(self.charts)} charts, {self._said(living)})"

    def _said(self, living: list[Node]) -> str:
        if not alike(living):
            return "they differ" if living else "no node is alive"
        if not Agreement.of(node.status() for node in living).complete:
            return "they are alike, and not known to hold all that the repository holds"
        return "they agree" if agree(living, self.charts) else "they are alike, and differ from the repository"

    def _repr_html_(self) -> str:
        return summary_html(self)


def _close(
    nodes: list[Node], clocks: list[FreezableClock], proxies: list[FaultProxy], server: LocalRedis | None
) -> None:
    for clock in clocks:
        clock.resume()
    for node in nodes:
        node.let_go()  # all at once
    for node in nodes:
        node.stop()
    for proxy in proxies:
        proxy.close()
    if server is not None:
        server.close()


def _close_when_over(over: Latch, *parts: Any) -> None:
    over.wait()
    _close(*parts)
