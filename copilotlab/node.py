"""A node: its own vectors, answered from memory, kept in step with the other nodes through Redis.

The node is what an application holds: it saves changes, answers questions and shows how it is. Its `Replica` keeps the
vectors in step.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from os import PathLike
from typing import TYPE_CHECKING, Literal, NamedTuple, Self, TypedDict, Unpack

import numpy as np
import polars as pl
import redis as redis_py

from copilotlab.answer import COPIES, FOUND, WHY, Answer, Findings, NodeIncomplete
from copilotlab.charts import (
    Change,
    Chart,
    ChartNotFound,
    ChartRepository,
    RepositoryError,
    check_chart_id,
    plain,
)
from copilotlab.clock import Clock
from copilotlab.details import Details
from copilotlab.embedding import DEFAULT_MODEL, Embedder
from copilotlab.embedding.half import rounded
from copilotlab.filters import FIELDS, Where, checked
from copilotlab.fusion import Mode, Ranking, by_both, by_words, checked_mode, matched
from copilotlab.lifetime import (
    HANDLER_SECONDS,
    STOP_SECONDS,
    Background,
    Latch,
    ends_with_the_interpreter,
    interrupted_one_of_our_calls,
    renewed_by_fork,
)
from copilotlab.markup import DOUBTFUL, GOOD, card
from copilotlab.monitoring import Alerts, Journal, Listener, Vitals
from copilotlab.monitoring.happenings import (
    Deleted,
    LeftBehind,
    ModelSwitched,
    Searched,
    SearchedIncomplete,
    Started,
    Stopped,
    Updated,
)
from copilotlab.orders import Orders
from copilotlab.protocol.batch import Batch, BatchResult, Kind
from copilotlab.protocol.carrier import Carrier
from copilotlab.protocol.changes import Admission
from copilotlab.protocol.context import Context, check_name
from copilotlab.protocol.coordinator import Coordinator, Need
from copilotlab.protocol.follower import Completeness
from copilotlab.protocol.policy import Policy
from copilotlab.protocol.replica import Replica
from copilotlab.protocol.toggles import POLICY_FIELDS, SWITCHES, InForce
from copilotlab.reasons import short
from copilotlab.snapshot_file import SnapshotFile
from copilotlab.store import EXACT_LIMIT, Ints, Matches, VectorStore, as_chart_ids, as_integer
from copilotlab.vocabulary import Terms, vocabulary_of
from copilotlab.watch import MOST_TOLD, NodeState, Watch, collector_of, state_of
from copilotlab.words import WordsKept

if TYPE_CHECKING:
    from tqdm import tqdm

    from copilotlab.monitoring.collector import NodeCollector

MAX_QUERY_LENGTH = 2_000
COPY = 0.99  # cosine from which on two charts are near-copies
MOST_COPIES = 100  # of one chart that are counted
WORDS_SECONDS = 10.0  # that a rebuild waits, at its end, for the words of charts

Outcome = Literal["published", "local", "deferred", "unchanged"]


class UpdateResult(NamedTuple):
    """What became of one change.

    outcome: "published" (embedded here, and the other nodes were told), "local" (embedded here, while Redis is away or
    publishing is off: they are told later), "deferred" (a batch will do it, or the node that has claimed it) or
    "unchanged"; revision: the repository's, for this chart.
    """

    outcome: Outcome
    revision: int


class NodeStatus(TypedDict):
    """A node as it is at one moment: a dict of plain values.

    node: its name; state: "running", "not started", "stopped" or "failed"; trouble: what its threads or listeners
    raised; charts: how many it holds; expected: how many it is to hold, None before it has read the repository;
    complete: whether nothing is missing; incomplete: why it is not, "" if it is; digest: of all that it holds, alike on
    nodes that hold the same; complete_to: the repository's revision up to which nothing is missing; lag: charts to come
    or to come anew; skipped: charts left out, see `Node.skipped`; model: its fingerprint; next_model: that of the
    model it is switching to; redis: "connected", "away" or "refused"; redis_address; redis_reason: why it is not
    connected; away_for: seconds; batch: what this node is at, as in "rebuild 64/200"; lease: "held" or ""; epoch: the
    last one known; peers: other nodes alive; reconciling: the node from which it fetches; owes_rebuild: whether
    something is still missing or unsaid; last_sync_age: seconds since the whole catalogue was compared and nothing
    of it was missing; index: "exact" or "graph"; recall: of searches, None while they are exact;
    snapshot: the file in which its vectors are kept, and how that stands; "" without one;
    alerts: those raised now; toggles: those that were set since the start and are in force here, see
    `Node.toggles`.
    """

    node: str
    state: NodeState
    trouble: str
    charts: int
    expected: int | None
    complete: bool
    incomplete: str
    digest: str
    complete_to: int
    lag: int
    skipped: int
    model: str
    next_model: str
    redis: str
    redis_address: str
    redis_reason: str
    away_for: float
    batch: str
    lease: str
    epoch: int
    peers: int
    reconciling: str
    owes_rebuild: bool
    last_sync_age: float | None
    index: str
    recall: float | None
    snapshot: str
    alerts: list[dict[str, object]]
    toggles: list[dict[str, object]]


class Changeable(TypedDict, total=False):
    """What can be set on a running node: see `Node.configure`."""

    publishing: bool
    listening: bool
    scheduled_sync: bool
    rebuild_at_reconnect: bool
    batch_timeout: float
    sync_interval: float
    claim_timeout: float
    adopt_after: float
    bulk_ttl: float
    chunk_size: int


class ManyOptions(TypedDict, total=False):
    """What `Node.search_many` and `Node.find_many` take besides: see `Node.search`."""

    chart_ids: Collection[int] | None
    where: Where | None
    collapse: bool
    mode: Mode
    require_complete: bool


class SearchOptions(ManyOptions, total=False):
    """What `Node.find` and `Node.asearch` take besides: see `Node.search`."""

    like: int | None


class _Asked(NamedTuple):
    """What a search is asked besides its queries."""

    chart_ids: Collection[int] | None = None
    where: Where | None = None
    like: int | None = None
    collapse: bool = False
    mode: Mode = "meaning"
    require_complete: bool = False

    @property
    def by_words(self) -> bool:
        """Whether words count."""
        return self.mode != "meaning" and self.like is None

    def schema(self) -> dict[str, type[pl.DataType] | pl.DataType]:
        """Return what columns the answer has."""
        return {**FOUND, **(COPIES if self.collapse else {}), **(WHY if self.by_words else {})}


class Node:
    """One application node.

    charts: the repository, shared by all nodes. embedder: text to vectors; all nodes of a cluster use the same model.
    redis: a URL (redis://, rediss://, unix://), a redis-py client, or a `Carrier`; redis://127.0.0.1:6379/0 by default.
    policy: `Policy()` by default. node_id: a random one by default. namespace: "" by default; see `Coordinator`.
    clock: the system's by default. exact_limit: the most charts (20,000) for which a search compares the query with
    each; above it a graph is built in the background, which costs a core for a minute per 100,000 charts.
    snapshot: a file in which this node, and no other, keeps its vectors: written in the background a minute after a
    change, and at `stop`. A node that starts with it answers from it at once, and embeds only what has changed since; a
    file that is damaged or of another model or catalogue is left aside, which the log says. None by default.
    vocabulary: what abbreviations and other names stand for in questions, beside those that ship: a mapping, as in
    ``{"DLQ": "dead letter queue"}``, or the path of a .csv file with the columns term and means. It acts where words
    count, see `search`.
    words: keep the words of charts (some 600 bytes each) from the start, and not only from the first search on that
    filters or goes by words, which finds only those that have been read by then.

    Start it with ``with node:`` or `start`; searching and updating also work on a node that was not started, which
    hears nothing of the others. It ends with `stop`, with the ``with`` block, with the interpreter, and when it is
    garbage: in each case its threads and connections go, and a batch gives its lease back.

    In a forked child a node is another one: its name is followed by the process's id (a random name is drawn anew), its
    session, connections and counters are new, and its vectors are those of the fork. One that ran in the parent does
    not run in the child: there every call raises RuntimeError until it is started.

    Raises ValueError for a wrong URL, name, exact_limit or path, TypeError for what is no policy, clock, repository or
    model, and RuntimeError where another node has the snapshot, before it connects to anything.
    """

    def __init__(
        self,
        charts: ChartRepository,
        embedder: Embedder,
        redis: str | redis_py.Redis | redis_py.RedisCluster | Carrier = "redis://127.0.0.1:6379/0",
        *,
        policy: Policy | None = None,
        node_id: str | None = None,
        namespace: str = "",
        clock: Clock | None = None,
        exact_limit: int = EXACT_LIMIT,
        snapshot: str | PathLike[str] | None = None,
        vocabulary: Terms | None = None,
        words: bool = False,
    ) -> None:
        if not isinstance(charts, ChartRepository):
            raise TypeError(
                f"charts={short(charts)}: expected a ChartRepository, as in ChartRepository.from_frame(...)"
            )
        if not isinstance(embedder, Embedder):
            raise TypeError(f"embedder={short(embedder)}: expected an Embedder, as in load_embedder({DEFAULT_MODEL!r})")
        self._vocabulary = vocabulary_of(vocabulary)
        self.context = Context.of(
            node_id if node_id is not None else _random_id(), namespace=namespace, policy=policy, clock=clock
        )
        self.charts = charts
        self._given_id = node_id
        self._exact_limit = exact_limit
        self._details = Details(charts, self.context.listeners)
        self._words = WordsKept(charts, kept=words)
        self._not_here = ""  # why it may not be used in this process; "" where it may
        self._living: list[Replica] = []
        self._watch = Watch(self.context)
        self.orders = Orders(weakref.ref(self))
        """What a watcher of the cluster may ask of this node."""
        embedder = self._as_chosen(embedder)
        self._snapshot_file = None if snapshot is None else SnapshotFile(snapshot, self.context)
        try:
            self._present = self._make_replica(embedder, redis, self._restored(embedder))
        except BaseException:  # an interrupt too: the file is for the next try
            if self._snapshot_file is not None:
                self._snapshot_file.let_go()
            raise
        self._watch.turn_to(self._present)
        self._collector: NodeCollector | None = None
        self._successor: Replica | None = None  # the next model's, while it is built
        self._switching = threading.Lock()
        self._query_vector = lru_cache(maxsize=256)(_embed_query)
        self._told_incomplete = False
        self._stopping = Latch()
        weakref.finalize(self, _abandon, self._living).atexit = False  # the interpreter calls `stop` at its end
        renewed_by_fork(self)

    def _as_chosen(self, embedder: Embedder) -> Embedder:
        return rounded(embedder) if self.policy.vectors == "float16" else embedder

    def _restored(self, embedder: Embedder) -> VectorStore | None:
        """Return the store that this node has kept in its file; None where it keeps none."""
        if self._snapshot_file is None:
            return None
        store = VectorStore(embedder.dim, ordered=self.policy.ordered, exact_limit=self._exact_limit)
        self._snapshot_file.restore(store, model=embedder.fingerprint, catalogue=self.charts.identity.incarnation)
        return store

    def _make_replica(
        self,
        embedder: Embedder,
        redis: str | redis_py.Redis | redis_py.RedisCluster | Carrier,
        store: VectorStore | None = None,
    ) -> Replica:
        replica = Replica(
            self.context,
            self.charts,
            embedder,
            redis,
            exact_limit=self._exact_limit,
            went_back=_forgets(self._details, self._words),
            watch=_looks(self._watch, self._words, self._snapshot_file),
            report=self._watch.report,
            ordered=self.orders.take,
            store=store,
        )
        self._living.append(replica)
        return replica

    @property
    def replica(self) -> Replica:
        """The protocol of this node's model, which keeps its vectors in step; for tests and studies that drive it."""
        self._check_here()
        return self._present

    def _check_here(self) -> None:
        if self._not_here:
            raise RuntimeError(self._not_here)

    @property
    def node_id(self) -> str:
        """This node's name."""
        return self.context.node_id

    @property
    def policy(self) -> Policy:
        """The policy of this node, with what was set of it since."""
        return self.context.policy

    @property
    def clock(self) -> Clock:
        """The clock that this node goes by."""
        return self.context.clock

    @property
    def journal(self) -> Journal:
        """The last things that happened here."""
        return self.context.journal

    @property
    def alerts(self) -> Alerts:
        """What has been wrong here for longer than it should."""
        return self._watch.alerts

    @property
    def address(self) -> str:
        """Where this node can be reached, as it tells the cluster's watchers: its process, until it is set."""
        return self._watch.address

    @address.setter
    def address(self, address: str) -> None:
        self._watch.address = check_name("address", address)[:MOST_TOLD]

    @property
    def embedder(self) -> Embedder:
        """The model that this node answers with."""
        return self.replica.embedder

    @property
    def store(self) -> VectorStore:
        """The vectors that this node answers from."""
        return self.replica.store

    @property
    def coordinator(self) -> Coordinator:
        """This node's side of Redis."""
        return self.replica.coordinator

    # --- life -------------------------------------------------------------------------------------------------

    def connect(self) -> bool:
        """Connect now, without threads, to drive the node by its steps; False if Redis is away."""
        return self.replica.connect()

    def start(self) -> Self:
        """Connect, and listen and work in the background; a thread that runs already goes on.

        With Redis away the node starts all the same, says so once in the log and in `status`, and connects when Redis
        is there. Raises CarrierRefused for what time does not heal (password, access list, certificate, no Lua), and
        RuntimeError if the node was stopped before.
        """
        if self._stopping.is_set():
            raise RuntimeError(f"node {self.node_id!r} was stopped; make a new Node, it costs nothing to share charts")
        self._not_here = ""
        if self.running:
            return self
        if not self.coordinator.connected:
            self.replica.connect()
        self.context.tell(Started(self.coordinator.link.address))
        ends_with_the_interpreter(self)
        self.replica.threads.start()
        return self

    def stop(self, timeout: float = STOP_SECONDS) -> None:
        """End the threads, give back the lease of a batch under way, leave Redis. A second call does nothing.

        timeout: the most seconds (10) that this takes. A thread that is then still in the model or the database is left
        there, which the log says; it does the rest when it comes back.

        A signal handler may call it. Where the signal has interrupted a call of this node, which may hold locks that
        the threads need, it takes at most 1 second: they end after the handler has returned or raised, and the end of
        the interpreter waits for them.
        """
        interrupted = interrupted_one_of_our_calls()
        self.let_go()
        if self._not_here:
            return
        until = time.monotonic() + (min(timeout, HANDLER_SECONDS) if interrupted else timeout)
        living = list(self._living)
        stopped = [
            replica.threads.stop(max(0.0, until - time.monotonic()), in_handler=interrupted) for replica in living
        ]
        if interrupted:
            return  # the signal may have interrupted the log
        if self._snapshot_file is not None and not self._snapshot_file.close(
            self._present, max(0.0, until - time.monotonic())
        ):
            stopped.append(f"copilotlab-snapshot-of-{self.node_id}")
        if left := ", ".join(filter(None, stopped)):
            said = f"still at work after {timeout:g} s: {left}; it ends when it comes back"
            self.context.tell(LeftBehind(said))
        elif living:
            self._living.clear()
            self.context.tell(Stopped())

    close = stop

    def let_go(self) -> None:
        """Begin to stop, and wait for nothing. Takes no lock."""
        self._stopping.set()
        self._words.let_go()
        if not self._not_here:
            for replica in list(self._living):
                replica.threads.let_go()

    def after_fork(self) -> None:
        """Become another node in a forked child, before anything else runs there."""
        former, stopped = self._present, self._stopping.is_set()
        if former.threads.began and not stopped:
            self._not_here = (
                f"node {self.node_id!r} ran when this process was forked: its threads are in the parent, not here; "
                "start() it here, as another node, or make nodes after the fork"
            )
        before = self.context
        self.context = Context.of(
            f"{self._given_id}-{os.getpid()}" if self._given_id is not None else _random_id(),
            namespace=before.namespace,
            policy=before.toggles.given,
            clock=before.clock,
            listeners=before.listeners.added,
        )
        self.context.toggles.learn(before.toggles.settings)
        self._details = Details(self.charts, self.context.listeners)
        self._words = self._words.after_fork()
        self._switching = threading.Lock()
        self._told_incomplete = False
        self._stopping = Latch()
        self._successor = None
        self._living.clear()
        self._snapshot_file = None  # it is the parent's
        former.store.after_fork()
        carrier = former.coordinator.link.carrier.another()
        self._watch = Watch(self.context)
        self.orders = Orders(weakref.ref(self))
        self._present = self._make_replica(former.embedder, carrier, former.store)
        self._watch.turn_to(self._present)
        if stopped:
            self.let_go()

    @property
    def running(self) -> bool:
        """Whether the background threads are at work."""
        return not self._not_here and self.replica.threads.running

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:  # an interrupt too: a node that did not start leaves nothing running
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()

    def listen(self, timeout: float = 0.0) -> bool:
        """Take one step of listening, to drive the node without threads; see `Replica.listen`."""
        return any([replica.listen(timeout) for replica in self._replicas()])

    def work(self) -> bool:
        """Take one step of work, to drive the node without threads; see `Replica.work`."""
        return any([replica.work() for replica in self._replicas()])

    def _replicas(self) -> list[Replica]:
        successor = self._successor
        return [self.replica] if successor is None else [self.replica, successor]

    def listen_to(self, listener: Listener) -> None:
        """Have ``listener`` called with each `copilotlab.monitoring.Happening` on this node, from now on.

        It is called on the thread on which something happens, so it must be quick, and must not call the node. One that
        raises is logged the first time, shown in `status`, and goes on being called. Raises TypeError for what cannot
        be called.
        """
        self.context.listeners.add(listener)

    # --- toggles ----------------------------------------------------------------------------------------------

    def configure(
        self,
        *,
        everywhere: bool = False,
        node_id: str | None = None,
        by: str = "",
        **changes: Unpack[Changeable],
    ) -> int:
        """Set toggles on this node while it runs, on another one, or everywhere; return the version of that setting.

        publishing: off, this node tells nobody of what changes on it, and runs no batch for others; what it owes them
        is said once it is on again, and what they ask it for they still get. listening: off, what the others say of
        charts is not taken in; once it is on again, what was missed is fetched. scheduled_sync: off, the sync of
        `sync_interval` is left out. The rest are fields of the `Policy`; a batch under way goes on with the chunk_size
        and claim_timeout with which it began.

        everywhere: on all nodes of this namespace and model, also on those that are away or come later: as long as one
        node lives that knows, the others learn it from there. node_id: on that node. by: who sets this, by default the
        process and its host. The last setting of a toggle counts, whether for one node or for all; settings end with
        the nodes, so what is to last belongs into their configuration as well.

        Raises ValueError, before anything is changed, for a toggle that there is not, for a field of the policy that
        cannot change on a running node, with the reason, and for a value that makes no sense.
        """
        if everywhere and node_id is not None:
            raise ValueError(f"everywhere=True beside node_id={short(node_id)}: expected one of them")
        target = "" if everywhere else self.node_id if node_id is None else check_name("node_id", node_id)
        by = by or f"process {os.getpid()} on {socket.gethostname()}"
        first, *others = self._replicas()
        version = first.gossip.set(changes, node=target, by=by, at=time.time())
        for replica in others:
            replica.gossip.say()
        for replica in self._replicas():
            replica.threads.wake.set()
        return version

    def toggles(self) -> list[dict[str, object]]:
        """List what can be set with `configure`: name, value, set_by, set_on, set_at, everywhere, version.

        set_on: the node on which it was set; set_at: when, as in "2026-11-28T10:15:00+00:00". These, and set_by, are
        "" for what nobody has set, and version is 0.
        """
        now = self.context.toggles.now
        return [_toggle(name, now) for name in (*SWITCHES, *POLICY_FIELDS)]

    # --- changes ----------------------------------------------------------------------------------------------

    def update_chart(self, chart: Chart) -> UpdateResult:
        """Save ``chart``, embed it unless a batch will, and tell the other nodes.

        The text is embedded before the chart is saved: where the model fails, it raises and nothing was changed.
        Raises TypeError for what is no Chart, EmbeddingError, RepositoryError.

        Source: the seed document, "Chart Update Workflow".
        """
        if not isinstance(chart, Chart):
            raise TypeError(f"update_chart({short(chart)}): expected a Chart, as in Chart(chart_id=7, title='Revenue')")
        began = self.clock.now()
        replica = self.replica  # the same one all along: a switch of models may come in between
        known = self.charts.get_many([chart.chart_id]).get(chart.chart_id)
        held = replica.store.head(chart.chart_id)
        if known is not None and known.chart == chart and held == (known.revision, chart.content_hash):
            return self._updated("unchanged", chart.chart_id, known.revision, began)
        # Words that are saved already get no new revision: another node may have saved and sent them a moment ago.
        revision = 1 if known is None else known.revision + (known.chart != chart)
        need = Need(chart.chart_id, chart.content_hash, revision)
        if (admission := replica.changes.admit(need)) in ("deferred", "claimed"):
            return self._deferred(replica, admission, chart.chart_id, self.charts.save(chart), began)
        vector = self._vector_of(replica, chart, need)
        try:
            revision = self.charts.save(chart)
        except RepositoryError:
            replica.changes.disclaim(need)
            raise
        return self._spread(replica, chart, revision, vector, began)

    def chart_changed(self, chart_id: int) -> UpdateResult:
        """Read a chart that was saved or deleted elsewhere, and do what `update_chart` or `delete_chart` would do.

        Raises ChartNotFound if the repository never had it, EmbeddingError, RepositoryError.
        """
        chart_id, began = check_chart_id(chart_id), self.clock.now()
        replica = self.replica
        change = self._read(chart_id)
        if change is None:
            raise ChartNotFound(
                f"chart {short(chart_id)} is not in the repository, nor was it ever; save it there first"
            )
        if change.chart is None:
            return self._spread_deletion(chart_id, change.revision, began)
        held = replica.store.head(chart_id)
        if held is not None and (held[0] > change.revision or held == (change.revision, change.chart.content_hash)):
            return self._updated("unchanged", chart_id, change.revision, began)
        need = Need(chart_id, change.chart.content_hash, change.revision)
        if (admission := replica.changes.admit(need)) in ("deferred", "claimed"):
            return self._deferred(replica, admission, chart_id, change.revision, began)
        vector = self._vector_of(replica, change.chart, need)
        return self._spread(replica, change.chart, change.revision, vector, began)

    def delete_chart(self, chart_id: int) -> UpdateResult:
        """Delete the chart from the repository and from this node, and tell the other nodes.

        Raises ChartNotFound if there is no such chart, RepositoryError.
        """
        chart_id = check_chart_id(chart_id)
        self._check_here()  # before anything is deleted
        began = self.clock.now()
        return self._spread_deletion(chart_id, self.charts.delete(chart_id), began)

    def _read(self, chart_id: int) -> Change | None:
        """Read the chart as it is in the repository; what was edited there by hand becomes a change first."""
        change = self.charts.get_many([chart_id]).get(chart_id)
        if change is not None and change.chart is not None and change.content_hash != change.chart.content_hash:
            self.charts.restamp([chart_id])
            change = self.charts.get_many([chart_id]).get(chart_id)
        return change

    def _vector_of(self, replica: Replica, chart: Chart, need: Need) -> np.ndarray:
        failed = True
        try:
            vector = replica.changes.vector_of(chart)
            failed = False
        finally:
            if failed:
                replica.changes.disclaim(need)
        return vector

    def _deferred(
        self, replica: Replica, admission: Admission, chart_id: int, revision: int, began: float
    ) -> UpdateResult:
        # By how it was when the change was left, not by how it is now: the batch may have ended during the save.
        replica.changes.defer(chart_id, revision, patience=self.policy.claim_timeout if admission == "claimed" else 0.0)
        self._follow(replica, chart_id, revision)
        return self._updated("deferred", chart_id, revision, began)

    def _spread(self, replica: Replica, chart: Chart, revision: int, vector: np.ndarray, began: float) -> UpdateResult:
        self._details.note(chart, revision)
        self._words.note(chart, revision)
        told = replica.changes.spread(chart, revision, vector)
        self._follow(replica, chart.chart_id, revision)
        outcome: Outcome = "published" if told else "local"
        if replica is not self.replica:
            outcome = "deferred"  # the model was switched meanwhile: a batch makes the new vector
        return self._updated(outcome, chart.chart_id, revision, began)

    def _updated(self, outcome: Outcome, chart_id: int, revision: int, began: float) -> UpdateResult:
        self.context.tell(Updated(chart_id, revision, outcome, self.clock.now() - began))
        return UpdateResult(outcome, revision)

    def _spread_deletion(self, chart_id: int, revision: int, began: float) -> UpdateResult:
        told = [replica.changes.spread_deletion(chart_id, revision) for replica in self._replicas()]
        self._details.forget(chart_id)
        self._words.forget(chart_id)
        outcome: Outcome = "published" if told[0] else "local"
        self.context.tell(Deleted(chart_id, revision, outcome, self.clock.now() - began))
        return UpdateResult(outcome, revision)

    def _follow(self, replica: Replica, chart_id: int, revision: int) -> None:
        """Leave a change to the other model's vectors too: those that are being built, or have just taken over."""
        for other in self._replicas():
            if other is not replica:
                other.changes.defer(chart_id, revision)

    # --- search -----------------------------------------------------------------------------------------------

    def search(
        self,
        query: str | None = None,
        k: int = 10,
        *,
        chart_ids: Collection[int] | None = None,
        where: Where | None = None,
        like: int | None = None,
        collapse: bool = False,
        mode: Mode = "meaning",
        require_complete: bool = False,
    ) -> Answer:
        """Find the ``k`` charts (10) nearest in meaning to ``query``, from this node's memory alone.

        chart_ids: only these, when given: the charts that a user may see.
        where: only charts that have these words of their own, each as it is written, as in ``{"source": "Sales",
        "tags": ["finance", "hr"]}``: for each of source, chart_type, tags, dimensions, measures and instance (of the
        tool that it comes from, see `Chart.key`) a value or several, of which a chart has one. See `facets`. The words
        are kept from the first search that has a filter on, which waits for them a quarter of a second at most; later
        ones wait for nothing. Where some are not read yet, the answer says so, as where charts are missing.
        like: the id of a chart, in place of a query: charts like that one, which is left out itself.
        collapse: show of near-copies (cosine of 0.99 or more) the best alone, and in a column ``copies`` how many more
        there are among the charts searched, at most 100.
        mode: "meaning" compares vectors; "words" the words themselves, by their trigrams, so that typos do little harm;
        "hybrid" both. Where words count, abbreviations in the query are explained by the node's vocabulary first, words
        are kept as for a filter, and a last column ``why`` tells the words of the chart that were ``matched``, and the
        parts that ``meaning`` and ``words`` have in the score. What is `like` a chart is found by meaning.
        require_complete: raise NodeIncomplete where this node lacks charts, see `completeness`.
        Returns a frame, best first: rank (from 1), chart_id, score (float32: the cosine; with "hybrid" and the part of
        the words; with "words" the share of them that the chart has), title, chart_type, source, dimensions, measures,
        tags, description, key, url. It says where it may lack charts, see `Answer`; the log does so once.
        Raises ValueError for an empty or overlong query, k < 1, another mode, and a filter of another field, TypeError
        for neither or both of query and like, and for values of another type, ChartNotFound where ``like`` is not here.
        """
        began = time.perf_counter()
        asked = _Asked(chart_ids, where, like, collapse, mode, require_complete)
        found = self._find(query, k, asked)
        answer = Answer(found.columns, schema=asked.schema())
        answer.completeness = found.completeness
        self.context.tell(Searched(1, time.perf_counter() - began))
        return answer

    def find(self, query: str | None = None, k: int = 10, **options: Unpack[SearchOptions]) -> Findings:
        """Search without making a frame, which is half the time of a `search`: columns of plain values."""
        began = time.perf_counter()
        found = self._find(query, k, _Asked(**options))
        self.context.tell(Searched(1, time.perf_counter() - began))
        return found

    def _find(self, query: str | None, k: int, asked: _Asked) -> Findings:
        replica = self.replica  # so that query and vectors are of one model, also while the model is switched
        like = asked.like
        if (query is None) == (like is None):
            raise TypeError(f"query={short(query)}, like={short(like)}: expected one of them")
        question = "" if query is None else _question(query)
        allowed, completeness = self._allowed(replica, asked)
        if query is not None:
            if not asked.by_words and not asked.collapse:  # as most often: it takes the shortest way
                nearest = replica.store.search(self._query_vector(replica.embedder, question), k, allowed)
                return Findings(self._described(Ranking(nearest)), completeness)
            said = self._vocabulary.explained(question) if asked.by_words else question
            return Findings(self._answered(replica, said, None, k, allowed, asked), completeness)
        record = replica.store.get(check_chart_id(like))
        if record is None:
            held = f"{len(replica.store):,} that node {self.node_id!r} holds"
            raise ChartNotFound(f"chart {short(like)} is not among the {held}")
        return Findings(self._answered(replica, "", record.vector, k, allowed, asked), completeness)

    async def asearch(self, query: str | None = None, k: int = 10, **options: Unpack[SearchOptions]) -> Answer:
        """Await `search`, which runs in a thread (``asyncio.to_thread``), so that the event loop goes on.

        Any other method is awaited likewise: ``await asyncio.to_thread(node.update_chart, chart)``.
        """
        return await asyncio.to_thread(self.search, query, k, **options)

    def search_many(self, queries: Sequence[str], k: int = 10, **options: Unpack[ManyOptions]) -> Answer:
        """`search` for several queries at once: one frame, which has the query's text in a first column ``query``."""
        began, asked = time.perf_counter(), _Asked(**options)
        questions, found = self._find_many(queries, k, asked)
        schema = {"query": pl.String, **asked.schema()}
        frames = [
            pl.DataFrame({"query": [question] * len(one.columns["rank"]), **one.columns}, schema=schema)
            for question, one in zip(questions, found, strict=True)
        ]
        answer = Answer(pl.concat(frames) if frames else None, schema=schema)
        answer.completeness = found[0].completeness if found else self._completeness_of(self.replica)
        self.context.tell(Searched(len(questions), time.perf_counter() - began))
        return answer

    def find_many(self, queries: Sequence[str], k: int = 10, **options: Unpack[ManyOptions]) -> list[Findings]:
        """`find` for several queries at once, in their order; by meaning, all from one state of this node."""
        began = time.perf_counter()
        questions, found = self._find_many(queries, k, _Asked(**options))
        self.context.tell(Searched(len(questions), time.perf_counter() - began))
        return found

    def _find_many(self, queries: Sequence[str], k: int, asked: _Asked) -> tuple[list[str], list[Findings]]:
        if isinstance(queries, str) or not isinstance(queries, Iterable):
            raise TypeError(f"search_many({short(queries)}): expected a list of queries; for one query use search")
        if asked.like is not None:
            raise TypeError(f"like={short(asked.like)}: expected of search alone, in place of a query")
        questions = [_question(query) for query in queries]
        replica = self.replica
        allowed, completeness = self._allowed(replica, asked)
        said = [self._vocabulary.explained(question) for question in questions] if asked.by_words else questions
        vectors = None if asked.mode == "words" else replica.embedder.embed_query(said)
        if vectors is not None and not asked.by_words and not asked.collapse:
            # In one product, and of one state of the store.
            found = [self._described(Ranking(one)) for one in replica.store.search_many(vectors, k, allowed)]
        else:
            k = as_integer("k", k, smallest=1)
            found = [
                self._answered(replica, question, None if vectors is None else vectors[row], k, allowed, asked)
                for row, question in enumerate(said)
            ]
        return questions, [Findings(columns, completeness) for columns in found]

    def _allowed(self, replica: Replica, asked: _Asked) -> tuple[Collection[int] | Ints | None, Completeness]:
        """Return the charts that may be found, None for all, and how complete an answer is."""
        checked_mode(asked.mode)
        if asked.where is None and not asked.by_words:
            return asked.chart_ids, self._completeness_for_search(replica, asked.require_complete)
        wanted = None if asked.where is None else checked(asked.where)
        self._words.keep(replica.store)
        # Before the words are looked at: what comes in between is found, and said to be missing at worst.
        completeness = self._completeness_for_search(replica, asked.require_complete, words=True)
        if wanted is None:
            return asked.chart_ids, completeness
        found = self._words.lexicon.matching(wanted)
        if asked.chart_ids is not None:
            found = found[np.isin(found, as_chart_ids(asked.chart_ids))]
        return found, completeness

    def _answered(
        self,
        replica: Replica,
        question: str,
        vector: np.ndarray | None,
        k: int,
        allowed: Collection[int] | Ints | None,
        asked: _Asked,
    ) -> dict[str, Sequence[object]]:
        """Find and describe the best k charts.

        question: with what its abbreviations stand for. vector: of it, or of the chart that they are to be like.
        """
        store, but, k = replica.store, asked.like, as_integer("k", k, smallest=1)
        if vector is None and asked.mode != "words":
            vector = self._query_vector(replica.embedder, question)
        shares = self._words.lexicon.shares(question) if asked.by_words else None

        def ranked(count: int) -> Ranking:
            if shares is None:
                assert vector is not None
                return Ranking(_without(store.search(vector, count + (but is not None), allowed), but, count))
            if vector is None or asked.mode == "words":
                return by_words(store, shares, count, allowed)
            return by_both(store, vector, shares, count, allowed)

        if asked.collapse:
            ranking, copies = self._collapsed(store, ranked, k, allowed, but)
            described = self._described(ranking, question)
            why = described.pop("why", None)
            return {**described, "copies": copies, **({} if why is None else {"why": why})}
        return self._described(ranked(k), question)

    @staticmethod
    def _collapsed(
        store: VectorStore,
        ranked: Callable[[int], Ranking],
        k: int,
        allowed: Collection[int] | Ints | None,
        but: int | None,
    ) -> tuple[Ranking, list[int]]:
        """Find the best k charts of which none is a near-copy of a better one, and count those of each."""
        fetched = 4 * k
        while True:
            found = ranked(fetched)
            places, vectors = _distinct(store, found.matches, k)
            if len(vectors) == k or len(found.matches.chart_ids) < fetched:
                break
            fetched *= 4
        best, copies = found.only(places), []
        near = store.search_many(vectors, MOST_COPIES + 2, allowed)
        for chart_id, each in zip(best.matches.chart_ids, near, strict=True):
            others = each.chart_ids[each.scores >= COPY]
            others = others[(others != chart_id) & (others != (-1 if but is None else but))]
            copies.append(min(MOST_COPIES, len(others)))
        return best, copies

    def facets(self, where: Where | None = None) -> Answer:
        """Count the charts by each word that `search` can filter by, among all or those that match ``where``.

        Returns a frame: field, value, charts; the most frequent first within a field. It says where it may lack charts,
        see `Answer`. Raises as `search` does for a wrong filter.
        """
        wanted = checked({} if where is None else where)
        replica = self.replica
        self._words.keep(replica.store)
        completeness = self._completeness_for_search(replica, False, words=True)
        counts = self._words.lexicon.counts(wanted)
        order = sorted(counts, key=lambda facet: (FIELDS.index(facet[0]), -counts[facet], facet[1]))
        columns = {
            "field": [field for field, _ in order],
            "value": [value for _, value in order],
            "charts": [counts[facet] for facet in order],
        }
        answer = Answer(columns, schema={"field": pl.String, "value": pl.String, "charts": pl.Int64})
        answer.completeness = completeness
        return answer

    def _completeness_for_search(self, replica: Replica, required: bool, *, words: bool = False) -> Completeness:
        """Tell how much is here; where something is missing, say so in the log the first time, or raise.

        words: whether the words of charts count, too.
        """
        completeness = self._completeness_of(replica, words=words)
        if completeness.reason:
            if required:
                len(replica.backlog)  # counted anew, however long it is
                completeness = self._completeness_of(replica, words=words)
                if completeness.reason:
                    remedy = "wait_complete() waits for the rest" if self.running else "start() it"
                    raise NodeIncomplete(f"node {self.node_id!r} holds {completeness}; {remedy}", completeness)
            elif not self._told_incomplete:
                self._told_incomplete = True
                self.context.tell(SearchedIncomplete(str(completeness)))
        return completeness

    def _completeness_of(self, replica: Replica, *, words: bool = False) -> Completeness:
        completeness = replica.follower.completeness()
        if words and (lacking := self._words.lacking(replica.store)):
            said = f"the words of {lacking:,} charts are not read yet, so filters and words may not find them"
            return completeness._replace(reason="; ".join(filter(None, [completeness.reason, said])))
        if completeness.complete and not replica.threads.running:
            why = f"{self._state()}, so it hears of no changes"
        elif completeness.complete and replica.looks.refused:
            why = f"the repository does not answer: {replica.looks.refused}"
        else:
            return completeness
        return completeness._replace(reason=why)

    def _described(self, ranking: Ranking, question: str = "") -> dict[str, Sequence[object]]:
        """Return what is told of charts that were found, as columns; where words counted, why they were."""
        matches = ranking.matches
        chart_ids = matches.chart_ids.tolist()
        known = self._details.of({chart_id: self.store.revision(chart_id) or 0 for chart_id in chart_ids})
        charts = [known.get(chart_id) for chart_id in chart_ids]
        columns = {
            name: [None if chart is None else plain(getattr(chart, name)) for chart in charts]
            for name in list(FOUND)[3:]
        }
        scores = matches.scores.tolist()  # given an array, polars imports under a lock, which a fork copies
        told = {"rank": range(1, len(chart_ids) + 1), "chart_id": chart_ids, "score": scores, **columns}
        if ranking.words is None:
            return told
        words = ranking.words.tolist()
        meaning = [None] * len(words) if ranking.meaning is None else ranking.meaning.tolist()
        told["why"] = [
            {"matched": [] if chart is None else matched(question, chart), "meaning": by_meaning, "words": by_word}
            for chart, by_meaning, by_word in zip(charts, meaning, words, strict=True)
        ]
        return told

    # --- batches ----------------------------------------------------------------------------------------------

    def rebuild(self, *, progress: bool = False) -> BatchResult:
        """Bring the whole catalogue into this node and, unless Redis is away, into all others; wait for the end.

        progress: show a bar. Ctrl-C cancels the batch and gives the lease back. What the model or the repository raises
        in the batch is raised here. While another node runs a batch the outcome is "deferred" (or "fenced", where it
        took over): this waits for what that brings, and does what it leaves undone; a node that is not running returns
        at once. On a node that was stopped the outcome is "cancelled". The result says what is missing in the end.
        """
        with _bar(0, f"rebuild by {self.node_id}", progress) as bar:
            result = self._run("rebuild", bar)
            while result.outcome in ("deferred", "fenced") and self._awaits_another(self.replica, bar):
                result = self._run("rebuild", bar)
        until = time.monotonic() + WORDS_SECONDS
        while not self._has_words(self.replica) and time.monotonic() < until and not self._stopping.wait(0.01):
            self._words.follow(self.replica.store)
        return self._with_what_is_missing(result)

    def sync(self, *, progress: bool = False) -> BatchResult:
        """Run the scheduled sync now: make this node hold what the repository holds.

        With `reconcile`, only what differs is fetched from other nodes, or, where none has it, embedded for all, as in
        `rebuild`. As written, it replaces all that this node holds, fills only this node, and is left out ("deferred")
        while a batch is in progress.
        """
        if self.policy.reconcile:
            return self.rebuild(progress=progress)
        with _bar(0, f"sync by {self.node_id}", progress) as bar:
            return self._with_what_is_missing(self._run("sync", bar))

    def _awaits_another(self, replica: Replica, bar: tqdm) -> bool:
        """Wait while another node's batch brings what is missing; True if that has ended, or died, too early."""
        if not self.policy.reconcile:
            return False
        replica.looks.soon()  # what the other node embeds for us is on the backlog then
        replica.threads.wake.set()
        until = time.monotonic() + self.policy.heartbeat_interval  # by then it is known whether there still is a holder
        bar.total = len(self.charts)
        while self.running and not _is_complete(replica, self.charts.revision):
            left_alone = not self.coordinator.connected or replica.view.flags.batch_holder is None
            if left_alone and time.monotonic() >= until:
                return True
            self._stopping.wait(0.05)
            bar.update(len(replica.store) - bar.n)
        return False

    def _with_what_is_missing(self, result: BatchResult) -> BatchResult:
        replica, reasons = self.replica, []
        waiting, skipped = len(replica.backlog), len(replica.follower.skipped)
        if not replica.follower.has_read and result.outcome not in ("published", "local"):
            waiting = max(0, len(self.charts) - len(replica.store))
        if waiting:
            why = {
                "deferred": "another node runs a batch",
                "fenced": "another node has taken the lease over",
                "cancelled": "the batch was cancelled",
            }.get(result.outcome, "they were saved meanwhile")
            reasons.append(f"{waiting:,} charts are still to come: {why}")
        if skipped:
            reasons.append(f"{skipped:,} charts are left out, see skipped()")
        return result._replace(missing=waiting + skipped, reason="; ".join(reasons))

    def _run(self, kind: Kind, bar: tqdm) -> BatchResult:
        replica = self.replica
        ends_with_the_interpreter(self)
        run = _Run(replica, kind)
        try:
            run.start()
            while not run.ended.wait(0.1):
                run.show(bar)
            run.show(bar)
        except BaseException:  # Ctrl-C, or what the handler of another signal raises
            run.cancel()
            run.ended.wait(STOP_SECONDS)
            raise
        if run.error is not None:
            raise run.error
        if run.batch is None:
            return BatchResult("cancelled" if self._stopping.is_set() else "deferred")
        return run.batch.result

    # --- another model ----------------------------------------------------------------------------------------

    def switch_model(self, embedder: Embedder, *, progress: bool = False) -> None:
        """Answer with the vectors of another model, once this node has all of them; until then nothing changes.

        The second set of vectors is built beside the first: fetched from nodes that have switched, or embedded once, by
        one node under the lease. Changes go into both. The nodes of a cluster may switch one after the other or all at
        once; meanwhile nodes of the same model follow each other, and the two models never mix.
        progress: show a bar. Ctrl-C drops the second set. Raises TypeError for what is no Embedder, RuntimeError if a
        switch is under way, the node is not running, or its publishing or listening is off, and what the model or the
        repository raised while embedding.
        """
        if not isinstance(embedder, Embedder):
            raise TypeError(f"embedder={short(embedder)}: expected an Embedder, as in load_embedder({DEFAULT_MODEL!r})")
        embedder = self._as_chosen(embedder)
        if embedder.fingerprint == self.embedder.fingerprint:
            return
        with self._switching:
            if self._successor is not None or not self.running:
                raise RuntimeError(
                    f"node {self.node_id!r} {'is switching its model' if self._successor else 'is not running'}: "
                    "switch_model works on a running node, once at a time"
                )
            now = self.context.toggles.now
            if not (now.publishing and now.listening):
                raise RuntimeError(
                    f"node {self.node_id!r}: {'listening' if now.publishing else 'publishing'} is off, so it would "
                    "wait for another model's vectors until that is on: configure it first"
                )
            self._successor = successor = self._make_replica(embedder, self.coordinator.link.carrier.another())
        try:
            successor.connect()
            successor.threads.start()
            self._await_complete(successor, progress=progress)
            former, self._present = self.replica, successor
            self._watch.turn_to(successor)
            self._query_vector.cache_clear()
        finally:
            self._successor = None
            if self.replica is not successor:
                self._drop(successor)
        self.context.tell(ModelSwitched(embedder.fingerprint))
        self._drop(former)

    def _drop(self, replica: Replica) -> None:
        if left := replica.threads.stop():
            self.context.tell(LeftBehind(f"{left} is still at work"))
        elif replica in self._living:
            self._living.remove(replica)

    def wait_complete(self, timeout: float | None = None, *, progress: bool = False) -> None:
        """Wait until this node holds all that the repository holds, whichever node embeds it.

        timeout: seconds; None waits for as long as it takes. progress: show a bar. Raises TimeoutError, which says how
        much is missing, RuntimeError if the node is not running, and the error that its last batch failed with.
        """
        self._await_complete(self.replica, progress=progress, timeout=timeout)

    def _await_complete(self, replica: Replica, *, progress: bool, timeout: float | None = None) -> None:
        label = f"{replica.embedder.name} on {self.node_id}"
        until = None if timeout is None else time.monotonic() + timeout
        with _bar(len(self.charts), label, progress) as bar:
            while not (_is_complete(replica, self.charts.revision) and self._has_words(replica)):
                if not replica.threads.running or self._stopping.is_set():
                    raise RuntimeError(f"node {self.node_id!r} is not running, so {label} will not become complete")
                if until is not None and time.monotonic() >= until:
                    away = replica.coordinator.link.reason
                    because = f"; Redis is {replica.coordinator.link.state}: {away}" if away else ""
                    raise TimeoutError(f"{label} lacks {len(replica.backlog)} charts after {timeout:g} s{because}")
                if replica.batches.failure is not None:
                    raise replica.batches.failure
                if (
                    replica is not self.replica
                    and not replica.coordinator.connected
                    and replica.batches.present is None
                ):
                    # Redis is away: there is no node to fetch from, and none that could be embedding the same.
                    replica.batches.begin("rebuild", without_redis=True)
                    replica.threads.wake.set()
                self._stopping.wait(0.05)
                bar.update(len(replica.store) - bar.n)

    def _has_words(self, replica: Replica) -> bool:
        """Tell whether the words of its charts are read, if they are kept: as far as the repository has them."""
        return replica is not self._present or self._words.caught_up(replica.store)

    # --- to look at -------------------------------------------------------------------------------------------

    @property
    def completeness(self) -> Completeness:
        """How much of the repository is here: how many of how many charts, and why something is missing.

        As of the last look at the repository, which a running node takes at each heartbeat. A node that is not running
        hears of no changes, so it is never complete.
        """
        len(self.replica.backlog)  # counted anew, however long it is
        return self._completeness_of(self.replica)

    @property
    def complete(self) -> bool:
        """Whether nothing is missing here; see `completeness`."""
        return self.completeness.complete

    def status(self) -> NodeStatus:
        """Describe this node as it is now: name, charts, digest, connection, batch and so on; plain values only."""
        replica, link, completeness = self.replica, self.coordinator.link, self.completeness
        batch, successor = replica.batches.present, self._successor
        return {
            "node": self.node_id,
            "state": self._state(),
            "trouble": "; ".join([*replica.threads.trouble.values(), *self.context.listeners.trouble.values()]),
            "charts": completeness.held,
            "expected": completeness.expected,
            "complete": completeness.complete,
            "incomplete": completeness.reason,
            "digest": self.store.digest,
            "complete_to": replica.follower.complete_to,
            "lag": len(replica.backlog),
            "skipped": len(replica.follower.skipped),
            "model": self.embedder.fingerprint,
            "next_model": "" if successor is None else successor.embedder.fingerprint,
            "redis": link.state,
            "redis_address": link.address,
            "redis_reason": link.reason,
            "away_for": link.away_for,
            "batch": "" if batch is None else f"{batch.kind} {batch.tally.done}/{batch.tally.total}",
            "lease": "held" if batch is not None and batch.grant is not None else "",
            "epoch": replica.coordinator.lease.epoch,
            "peers": len(replica.peers.alive(self.clock.now())),
            "reconciling": replica.transfers.peer,
            "owes_rebuild": replica.unsettled,
            "last_sync_age": None if replica.looks.last is None else self.clock.now() - replica.looks.last,
            "index": self.store.index_state,
            "recall": self.store.recall,
            "snapshot": "" if self._snapshot_file is None else str(self._snapshot_file),
            "alerts": [alert.as_dict(self.clock.now()) for alert in self.alerts.active()],
            "toggles": [toggle for toggle in self.toggles() if toggle["version"]],
        }

    def _state(self) -> NodeState:
        return "stopped" if self._stopping.is_set() else state_of(self.replica)

    def vitals(self) -> Vitals:
        """Return how this node is now, in typed numbers."""
        return self._watch.vitals(self.replica)

    def collector(self) -> NodeCollector:
        """Return this node's metrics for `prometheus_client`'s registry; the same collector each time.

        Raises ImportError, with the command that mends it, where prometheus_client is not installed.
        """
        if self._collector is None:
            self._collector = collector_of(weakref.ref(self))
            self.listen_to(self._collector)
        return self._collector

    def all_vitals(self) -> list[Vitals]:
        """Return `vitals` for each model that this node holds vectors of, the one that it answers with first."""
        return [] if self._not_here else [self._watch.vitals(replica) for replica in self._replicas()]

    def skipped(self) -> pl.DataFrame:
        """List the charts that this node leaves out, and why: chart_id, revision, column, reason, tries, by chart_id.

        column: the one of the row that cannot be read, or "text" where the model fails on the words. A row that is
        mended comes in by itself; a text is tried again after a while.
        """
        left_out = sorted(self.replica.follower.skipped.copy().items())
        rows = [(i, skipped.revision, skipped.column, skipped.reason, skipped.tries) for i, skipped in left_out]
        schema = {"chart_id": pl.Int64, "revision": pl.Int64, "column": pl.String, "reason": pl.String}
        return pl.DataFrame(rows, schema={**schema, "tries": pl.Int64}, orient="row")

    def metrics(self) -> dict[str, float]:
        """Return counters since the node was made, and gauges: charts, store_bytes (of vectors), connected (1 or 0) and
        recall (0 to 1; left out while searches are exact or none was measured)."""
        recall = self.store.recall
        return {
            **self.context.metrics.as_dict(),
            "charts": len(self.store),
            "store_bytes": self.store.nbytes,
            "connected": int(self.coordinator.connected),
            **({} if recall is None else {"recall": recall}),
        }

    def __repr__(self) -> str:
        if self._not_here:
            return f"Node({self.node_id!r}, not started in this process)"
        status = self.status()
        return (
            f"Node({self.node_id!r}, {status['state']}, {status['charts']} charts, "
            f"Redis {status['redis']}, digest {str(status['digest'])[:8]})"
        )

    def _repr_html_(self) -> str:
        status = self.status()
        redis, digest, lag = status["redis"], str(status["digest"])[:8], len(self.replica.backlog)
        facts = {
            "Charts": f"{len(self.store):,}, digest {digest}" + (f", {lag:,} behind the repository" if lag else ""),
            "Model": " → ".join(filter(None, [self.embedder.fingerprint, str(status["next_model"])])),
            "Redis": ", ".join(filter(None, [str(redis), str(status["redis_address"]), str(status["redis_reason"])])),
            "Batch": f"{status['batch'] or '—'}{', holds the lease' if status['lease'] else ''}",
            "Peers": status["peers"],
        }
        well = status["state"] == "running" and redis == "connected" and not lag
        heading = f"Node {self.node_id}: {status['state']}"
        return card(heading, facts, colour=GOOD if well else DOUBTFUL)


class _Run(Background):
    """One batch that a caller waits for.

    It begins in a thread of its own, and goes on there where the node has no threads. No signal is handled in that
    thread, so an interrupt only cuts the waiting short, and never a step between the lease in Redis and what is known
    of it here.
    """

    def __init__(self, replica: Replica, kind: Kind) -> None:
        super().__init__(self._do, f"copilotlab-{kind}-of-{replica.context.node_id}")
        self.batch: Batch | None = None
        self.error: BaseException | None = None
        self.replica = replica
        self._kind = kind
        self._cancelled = False

    def cancel(self) -> None:
        """End the batch after the chunk that is under way."""
        self._cancelled = True
        if self.batch is not None:
            self.batch.cancel()
        self.replica.threads.wake.set()

    def show(self, bar: tqdm) -> None:
        """Bring the bar up to date."""
        if self.batch is not None:
            bar.total = self.batch.tally.total
            bar.update(self.batch.tally.done - bar.n)

    def _do(self) -> None:
        replica = self.replica
        try:
            if replica.context.policy.reconcile:
                replica.follower.adopt_edits()  # so what was edited by hand is embedded anew
            batch = replica.batches.present
            if batch is None or batch.kind != self._kind:
                # A node without threads hears no others while this drives the batch, so it asks none either.
                batch = (
                    replica.batches.begin(self._kind, without_redis=True, ask_peers=replica.threads.running)
                    or replica.batches.present
                )
            if batch is None or batch.kind != self._kind:
                return  # another node has the lease; what our own thread has just begun is waited for
            self.batch = batch
            if self._cancelled:
                batch.cancel()
            self._go_through(batch)
            self.error = batch.error
        except BaseException as error:  # noqa: BLE001 - the caller, who waits, gets it
            self.error = error

    def _go_through(self, batch: Batch) -> None:
        replica = self.replica
        replica.threads.wake.set()
        while not replica.threads.began and not batch.finished.is_set():
            with replica.threads.driving:
                waits = not replica.batches.advance()
            if waits:  # for what another node has claimed
                batch.finished.wait(0.02)
        while not (batch.finished.wait(0.1) or replica.threads.gone):
            pass
        if (
            not replica.threads.began and replica.threads.stopping.is_set()
        ):  # by a caller that did not wait for as long as this took
            replica.threads.leave()


def _looks(watch: Watch, words: WordsKept, file: SnapshotFile | None) -> Callable[[Replica], None]:
    """Return what a replica calls at each step of its listening; it holds no node."""

    def look(replica: Replica) -> None:
        watch.step(replica)
        if not watch.is_of(replica):
            return
        if replica.threads.running:
            words.follow(replica.store)
        if file is not None:
            file.step(replica)

    return look


def _forgets(details: Details, words: WordsKept) -> Callable[[], None]:
    """Return what drops all that was read of charts, where the repository was restored; it holds no node."""

    def forget() -> None:
        details.clear()
        words.clear()

    return forget


def _abandon(replicas: list[Replica]) -> None:
    """Let the replicas of a node go that has become garbage."""
    for replica in replicas:
        replica.threads.let_go()


def _toggle(name: str, now: InForce) -> dict[str, object]:
    setting = now.settings.get(name)
    when = "" if setting is None else datetime.fromtimestamp(setting.at, UTC).isoformat(timespec="seconds")
    return {
        "name": name,
        "value": now.value(name),
        "set_by": "" if setting is None else setting.by,
        "set_on": "" if setting is None else setting.source,
        "set_at": when,
        "everywhere": setting is not None and setting.node == "",
        "version": 0 if setting is None else setting.version,
    }


def _random_id() -> str:
    return uuid.uuid4().hex[:8]


def _bar(total: int, label: str, progress: bool) -> tqdm:
    from tqdm.auto import tqdm

    # None: show a bar in a terminal or a notebook, and none in a log file.
    return tqdm(total=total, desc=label, unit="chart", disable=None if progress else True)


def _is_complete(replica: Replica, revision: int) -> bool:
    """Tell whether the replica holds all that the repository had at that revision."""
    return replica.follower.has_read and replica.follower.complete_to >= revision


def _embed_query(embedder: Embedder, query: str) -> np.ndarray:
    vector: np.ndarray = embedder.embed_query([query])[0]
    return vector


def _without(matches: Matches, but: int | None, most: int) -> Matches:
    """Leave one chart out."""
    kept = matches.chart_ids != (-1 if but is None else but)
    return Matches(matches.chart_ids[kept][:most], matches.scores[kept][:most])


def _distinct(store: VectorStore, found: Matches, k: int) -> tuple[Ints, np.ndarray]:
    """Choose the first k that are no near-copies of one before them; return where they are, and their vectors."""
    chart_ids, _, _, vectors = store.columns(found.chart_ids)
    here = np.flatnonzero(np.isin(found.chart_ids, chart_ids))  # what has gone meanwhile is left out
    by_id = np.argsort(chart_ids)
    vectors = vectors[by_id[np.searchsorted(chart_ids[by_id], found.chart_ids[here])]]
    chosen: list[int] = []
    open_ = np.ones(len(here), dtype=bool)
    while open_.any() and len(chosen) < k:
        first = int(open_.argmax())
        chosen.append(first)
        open_ &= vectors @ vectors[first] < COPY
        open_[first] = False
    return here[chosen], vectors[chosen]


def _question(query: str) -> str:
    if not isinstance(query, str):
        raise TypeError(f"query={short(query)}: expected a text")
    stripped = query.strip()
    if not 1 <= len(stripped) <= MAX_QUERY_LENGTH:
        raise ValueError(
            f"a query of {len(stripped)} characters: expected 1 to {MAX_QUERY_LENGTH:,}, such as 'revenue by region'"
        )
    return stripped
