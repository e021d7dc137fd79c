"""A node: its own vectors, answered from memory, kept in step with the other nodes through Redis.

All the work is in step methods (`listen`, `work`), so that a test or a study drives several nodes in one thread, in any
order, with time in its hands. `start` puts a thin thread around each.
"""

from __future__ import annotations

import html
import logging
import threading
import uuid
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple, Self

import numpy as np
import polars as pl
import redis as redis_py

from copilotlab import events
from copilotlab.batch import Batch, BatchResult, Kind
from copilotlab.carrier import Carrier, CarrierAway
from copilotlab.charts import Change, Chart, ChartNotFound, ChartRepository, RepositoryError
from copilotlab.clock import Clock, SystemClock
from copilotlab.coordinator import Coordinator
from copilotlab.embedding import Embedder
from copilotlab.monitoring import Journal, Metrics
from copilotlab.policy import Policy
from copilotlab.store import Matches, Record, VectorStore

LISTEN_SECONDS = 0.25  # how long the listening thread waits for one event before it looks whether to stop
MAX_QUERY_LENGTH = 2_000

_FOUND: dict[str, type[pl.DataType] | pl.DataType] = {
    "rank": pl.UInt32,
    "chart_id": pl.Int64,
    "score": pl.Float32,
    "title": pl.String,
    "chart_type": pl.String,
    "source": pl.String,
    "dimensions": pl.List(pl.String),
    "measures": pl.List(pl.String),
    "tags": pl.List(pl.String),
    "description": pl.String,
}


class UpdateResult(NamedTuple):
    """What became of one change.

    outcome: "published" (embedded here, the other nodes told), "local" (embedded here, Redis is away), "deferred" (a
    batch will do it) or "unchanged"; revision: the repository's, for this chart.
    """

    outcome: Literal["published", "local", "deferred", "unchanged"]
    revision: int


class Node:
    """One application node.

    charts: the repository, shared by all nodes. embedder: text to vectors; all nodes of a cluster use the same model.
    redis: a URL (redis://, rediss://, unix://), a redis-py client, or a `Carrier`; redis://127.0.0.1:6379/0 by default.
    policy: `Policy()` by default. node_id: a random one by default. namespace: "" by default; see `Coordinator`.
    clock: the system's by default.

    Start it with ``with node:`` or `start`; searching and updating also work on a node that was not started, which
    hears nothing of the others. Raises ValueError for a wrong URL, name or policy, before it connects to anything.
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
    ) -> None:
        if not isinstance(charts, ChartRepository):
            raise TypeError(f"charts={charts!r}: expected a ChartRepository, as in ChartRepository.from_frame(...)")
        if not isinstance(embedder, Embedder):
            raise TypeError(f"embedder={embedder!r}: expected an Embedder, as in load_embedder('minilm')")
        self.charts = charts
        self.embedder = embedder
        self.policy = policy or Policy()
        self.node_id = node_id if node_id is not None else uuid.uuid4().hex[:8]
        self.clock = clock or SystemClock()
        self.journal = Journal(self.node_id, self.clock)
        self.counters = Metrics()
        self.store = VectorStore(embedder.dim, ordered=self.policy.ordered)
        self.coordinator = Coordinator(
            redis,
            node_id=self.node_id,
            fingerprint=embedder.fingerprint,
            dim=embedder.dim,
            policy=self.policy,
            namespace=namespace,
            clock=self.clock,
            journal=self.journal,
            metrics=self.counters,
        )
        self._batch: Batch | None = None
        self._batch_lock = threading.Lock()
        self._heard: _Heard | None = None
        self._owes_rebuild_since: float | None = None
        self._awaited_revision = 0
        self._next_try = self._next_ping = self.clock.now()
        self._next_sync = self.clock.now() + self.policy.sync_interval
        self._last_sync: float | None = None
        self._details: dict[int, tuple[int, Chart]] = {}
        self._query_vector = lru_cache(maxsize=256)(self._embed_query)
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()
        self._wake = threading.Event()

    # --- life -------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Connect, listen and work in the background.

        With Redis away the node starts all the same, says so once in the log and in `status`, and connects when Redis
        is there. Raises CarrierRefused if Redis refuses the password, RuntimeError if the node was stopped before.
        """
        if self._stopping.is_set():
            raise RuntimeError(f"node {self.node_id!r} was stopped; make a new Node, it costs nothing to share charts")
        if self._threads:
            return self
        self.coordinator.connect()
        self._threads = [
            threading.Thread(target=self._listen_on, name=f"copilotlab-{self.node_id}-listen", daemon=True),
            threading.Thread(target=self._work_on, name=f"copilotlab-{self.node_id}-work", daemon=True),
        ]
        self.journal.note("started", self.coordinator.address)
        for thread in self._threads:
            thread.start()
        return self

    def stop(self) -> None:
        """End the threads, give a batch that is under way back, leave Redis. A second call does nothing."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._wake.set()
        for thread in self._threads:
            thread.join()
        if self._batch is not None:
            self._batch.cancel()
            self._advance()
        self.coordinator.close()
        self.journal.note("stopped")

    @property
    def running(self) -> bool:
        """Whether the background threads are at work."""
        return bool(self._threads) and not self._stopping.is_set() and all(t.is_alive() for t in self._threads)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- changes ----------------------------------------------------------------------------------------------

    def update_chart(self, chart: Chart) -> UpdateResult:
        """Save ``chart``, embed it unless a batch will, and tell the other nodes.

        The text is embedded before the chart is saved: where the model fails, it raises and nothing was changed.
        Raises TypeError for what is no Chart, EmbeddingError, RepositoryError.

        Source: the seed document, "Chart Update Workflow".
        """
        if not isinstance(chart, Chart):
            raise TypeError(f"update_chart({chart!r}): expected a Chart, as in Chart(chart_id=7, title='Revenue')")
        held = self.store.get(chart.chart_id)
        if held is not None and self.charts.get_many([chart.chart_id]).get(chart.chart_id) == (
            chart.chart_id,
            held.revision,
            chart,
        ):
            return UpdateResult("unchanged", held.revision)
        if self._defer():
            return self._deferred(self.charts.save(chart))
        vector = self._vector_of(chart)
        revision = self.charts.save(chart)
        return self._spread(Change(chart.chart_id, revision, chart), vector)

    def chart_changed(self, chart_id: int) -> UpdateResult:
        """The chart was saved or deleted elsewhere: read it, and do what `update_chart` or `delete_chart` would.

        Raises ChartNotFound if the repository never had it, EmbeddingError, RepositoryError.
        """
        change = self.charts.get_many([chart_id]).get(chart_id)
        if change is None:
            raise ChartNotFound(f"chart {chart_id!r} is not in the repository, nor was it ever; save it there first")
        if change.chart is None:
            return self._spread_deletion(chart_id, change.revision)
        if self.store.revision(chart_id) == change.revision:
            return UpdateResult("unchanged", change.revision)
        if self._defer():
            return self._deferred(change.revision)
        return self._spread(change, self._vector_of(change.chart))

    def delete_chart(self, chart_id: int) -> UpdateResult:
        """Delete the chart from the repository, from this node, and tell the other nodes.

        Raises ChartNotFound if there is no such chart, RepositoryError.
        """
        return self._spread_deletion(chart_id, self.charts.delete(chart_id))

    def _defer(self) -> bool:
        """Whether a batch will do this change: one is in progress, or, after an outage, this call starts it."""
        try:
            flags = self.coordinator.flags()
        except CarrierAway:
            return False
        if flags.batch_holder is not None:
            return True
        # The batch that the written design starts here reads the repository at its first step, after this change
        # was saved: that step is taken by the worker, or by whoever drives the node.
        return flags.was_down and self._begin("rebuild") is not None

    def _deferred(self, revision: int) -> UpdateResult:
        self.counters.count("deferred")
        if self.policy.pick_up_deferred:
            self._awaited_revision = max(self._awaited_revision, revision)
        self._wake.set()
        return UpdateResult("deferred", revision)

    def _vector_of(self, chart: Chart) -> np.ndarray:
        held = self.store.get(chart.chart_id)
        if held is not None and held.content_hash == chart.content_hash:
            return held.vector
        vector: np.ndarray = self.embedder.embed([chart.text])[0]
        self.counters.count("embeddings")
        return vector

    def _spread(self, change: Change, vector: np.ndarray) -> UpdateResult:
        assert change.chart is not None
        record = Record.of(change.chart_id, change.revision, change.chart.content_hash, vector)
        self.store.put(record)
        self._details[change.chart_id] = (change.revision, change.chart)
        return self._tell(events.ChartUpdated(*self._signed, events.pack(record)), change.revision)

    def _spread_deletion(self, chart_id: int, revision: int) -> UpdateResult:
        self.store.remove(chart_id, revision)
        self._details.pop(chart_id, None)
        return self._tell(events.ChartDeleted(*self._signed, chart_id, revision), revision)

    def _tell(self, event: events.Event, revision: int) -> UpdateResult:
        try:
            self.coordinator.publish(event)
        except CarrierAway:
            self._owe_rebuild()
            self.counters.count("local")
            return UpdateResult("local", revision)
        return UpdateResult("published", revision)

    @property
    def _signed(self) -> tuple[str, str]:
        return self.node_id, self.embedder.fingerprint

    # --- search -----------------------------------------------------------------------------------------------

    def search(self, query: str, k: int = 10, *, chart_ids: Collection[int] | None = None) -> pl.DataFrame:
        """The ``k`` charts (10) nearest in meaning to ``query``, from this node's memory alone.

        chart_ids: only these, when given: the charts that a user may see.
        Returns a frame, best first: rank (from 1), chart_id, score (cosine, float32), title, chart_type, source,
        dimensions, measures, tags, description. Raises ValueError for an empty or overlong query or k < 1.
        """
        self.counters.count("searches")
        vector = self._query_vector(_question(query))
        return self._described(self.store.search(vector, k, chart_ids))

    def search_many(
        self, queries: Sequence[str], k: int = 10, *, chart_ids: Collection[int] | None = None
    ) -> pl.DataFrame:
        """`search` for several queries at once: one frame, with the query's text in a first column ``query``."""
        if isinstance(queries, str):
            raise TypeError("search_many takes a list of queries; for one query use search")
        questions = [_question(query) for query in queries]
        self.counters.count("searches", len(questions))
        found = self.store.search_many(self.embedder.embed(questions), k, chart_ids) if questions else []
        frames = [
            self._described(matches).select(pl.lit(question).alias("query"), pl.all())
            for question, matches in zip(questions, found, strict=True)
        ]
        return pl.concat(frames) if frames else pl.DataFrame(schema={"query": pl.String, **_FOUND})

    def _embed_query(self, query: str) -> np.ndarray:
        vector: np.ndarray = self.embedder.embed([query])[0]
        return vector

    def _described(self, matches: Matches) -> pl.DataFrame:
        chart_ids = matches.chart_ids.tolist()
        known = self._describe(chart_ids)
        charts = [known.get(chart_id) for chart_id in chart_ids]
        columns = {
            name: [None if chart is None else _cell(getattr(chart, name)) for chart in charts]
            for name in list(_FOUND)[3:]
        }
        return pl.DataFrame(
            {"rank": range(1, len(chart_ids) + 1), "chart_id": chart_ids, "score": matches.scores, **columns},
            schema=_FOUND,
        )

    def _describe(self, chart_ids: Sequence[int]) -> dict[int, Chart]:
        """Titles and the like, from memory; read from the repository where this node has not seen that revision."""
        known: dict[int, Chart] = {}
        unread = []
        for chart_id in chart_ids:
            details = self._details.get(chart_id)
            if details is not None:
                known[chart_id] = details[1]
            if details is None or details[0] < (self.store.revision(chart_id) or 0):
                unread.append(chart_id)
        if unread:
            try:
                changes = self.charts.get_many(unread)
            except RepositoryError as error:
                self.counters.count("details_missing", len(unread))
                self.journal.warn_once("details_missing", f"the repository does not answer: {error}")
                return known
            for chart_id, revision, chart in changes.values():
                if chart is not None:
                    known[chart_id] = chart
                    self._details[chart_id] = (revision, chart)
        return known

    # --- batches ----------------------------------------------------------------------------------------------

    def rebuild(self, *, progress: bool = False) -> BatchResult:
        """Bring the whole catalogue into this node and, unless Redis is away, into all others; wait for the end.

        progress: a bar. Ctrl-C cancels the batch and gives the flag back. What the model or the repository raised in
        the batch is raised here. While another node is at it: "deferred", and nothing was done.
        """
        return self._run("rebuild", progress=progress)

    def sync(self, *, progress: bool = False) -> BatchResult:
        """The scheduled sync, now: replace what this node holds by what the repository holds.

        As written, it fills only the node that runs it, and is left out ("deferred") while a batch is in progress.
        """
        return self._run("sync", progress=progress)

    def _run(self, kind: Kind, *, progress: bool) -> BatchResult:
        with self._batch_lock:
            batch = self._batch
        if batch is None or batch.kind != kind:
            batch = self._begin(kind, without_redis=True)
        if batch is None:
            return BatchResult("deferred")
        self._wake.set()
        self._await(batch, progress)
        if batch.error is not None:
            raise batch.error
        return batch.result

    def _await(self, batch: Batch, progress: bool) -> None:
        from tqdm.auto import tqdm

        # None: a bar where somebody watches, in a terminal or a notebook; none in a log file.
        bar = tqdm(total=0, desc=f"{batch.kind} by {self.node_id}", unit="chart", disable=None if progress else True)
        try:
            while not batch.finished.is_set():
                if self.running:
                    batch.finished.wait(0.1)
                else:
                    self._advance()
                bar.total = batch.total
                bar.update(batch.done - bar.n)
        except KeyboardInterrupt:
            batch.cancel()
            self._wake.set()
            raise
        finally:
            bar.close()

    def _begin(self, kind: Kind, *, without_redis: bool = False) -> Batch | None:
        """A new batch under the batch flag; None if another has it, or, unless told otherwise, Redis is away."""
        with self._batch_lock:
            if self._batch is not None:
                return None
            try:
                if not self.coordinator.take_lease():
                    return None
                leased = True
            except CarrierAway:
                if not without_redis:
                    return None
                leased = False
            self._batch = Batch(
                kind,
                leased=leased,
                charts=self.charts,
                embedder=self.embedder,
                store=self.store,
                coordinator=self.coordinator,
                policy=self.policy,
                clock=self.clock,
            )
            self.journal.note(f"{kind}_started", "" if leased else "for this node only: Redis is away")
            return self._batch

    def _advance(self) -> bool:
        """One step of this node's batch; whether there was one."""
        batch = self._batch
        if batch is None:
            return False
        embedded = batch.embedded
        try:
            batch.advance()
        except Exception as error:  # noqa: BLE001 - the model and the database are foreign code; whoever waits gets it
            batch.error = error
            self.journal.note(f"{batch.kind}_failed", repr(error), level=logging.ERROR)
        self.counters.count("embeddings", batch.embedded - embedded)
        if batch.finished.is_set():
            self._conclude(batch)
        return True

    def _conclude(self, batch: Batch) -> None:
        result = batch.result
        with self._batch_lock:
            self._batch = None
        self.counters.count("batches")
        if result.outcome == "published":
            self._settle(batch.started, batch.revision)
        elif result.outcome == "local" and batch.kind == "rebuild":
            self._owe_rebuild()
        if result.outcome in ("published", "local"):
            self._last_sync = self.clock.now()
        self._next_try = self.clock.now() + self.policy.probe_interval
        self.journal.note(
            f"{batch.kind}_ended",
            f"{result.outcome}: {result.charts} charts, {result.embedded} embedded, {result.removed} removed",
            level=logging.INFO,
        )

    # --- what is owed -----------------------------------------------------------------------------------------
    #
    # Pub/sub reaches only who is there. So a node that was away, or that changed something while Redis was away,
    # owes the cluster a rebuild, until one has run that began after that: its own, or another's that it heard whole.
    # And a node that left a change to a batch awaits the end of one that read so far; if the batch died, its lease
    # runs out, and the node does it.

    def _owe_rebuild(self) -> None:
        if self.policy.rebuild_at_reconnect:
            self._owes_rebuild_since = self.clock.now()

    def _settle(self, began: float, revision: int) -> None:
        if self._owes_rebuild_since is not None and began >= self._owes_rebuild_since:
            self._owes_rebuild_since = None
        if revision >= self._awaited_revision:
            self._awaited_revision = 0

    @property
    def _needs_rebuild(self) -> bool:
        return self._owes_rebuild_since is not None or self._awaited_revision > 0

    # --- steps ------------------------------------------------------------------------------------------------

    def listen(self, timeout: float = 0.0) -> bool:
        """One step of listening: apply one event, or, while Redis is away, look whether it is back.

        Waits at most ``timeout`` seconds for an event; True if something happened.
        """
        if not self.coordinator.connected:
            if not self.coordinator.probe():
                return False
            self._owe_rebuild()
            self._heard = None
            self._wake.set()
            return True
        try:
            event = self.coordinator.receive(timeout)
        except CarrierAway:
            return True
        if event is None:
            return False
        self._apply(event)
        return True

    def work(self) -> bool:
        """One step of work: a chunk of this node's batch, or what is due (a ping, a rebuild owed, the scheduled sync).

        True if there may be more to do at once.
        """
        if self._advance():
            return True
        now = self.clock.now()
        if self.coordinator.connected and now >= self._next_ping:
            self._next_ping = now + self.policy.probe_interval
            self.coordinator.ping()
        if self._needs_rebuild and self.coordinator.connected and now >= self._next_try:
            self._next_try = now + self.policy.probe_interval
            return self._begin("rebuild") is not None
        if now >= self._next_sync:
            self._next_sync = now + self.policy.sync_interval
            return self._begin("sync") is not None
        return False

    def _apply(self, event: events.Event) -> None:
        match event:
            case events.ChartUpdated():
                self._take(self.coordinator.records([event.record]))
            case events.ChartDeleted():
                self.counters.count("applied", self.store.remove(event.chart_id, event.revision))
                self._details.pop(event.chart_id, None)
            case events.BatchStarted():
                self._heard = _Heard(event.source, event.batch, self.clock.now())
            case events.BatchChunk():
                records = self.coordinator.records(event.records)
                self._take(records)
                if self._heard is not None and self._heard.batch == event.batch:
                    self._heard.records += len(records)
            case events.BatchFinished():
                self._finish_heard(event)

    def _take(self, records: list[Record]) -> None:
        taken = self.store.put_many(records)
        self.counters.count("applied", taken)
        if taken == len(records) or not self.policy.ordered:
            return
        # The same text embedded in another batch differs in its last bits. Where two vectors of one revision meet, the
        # larger hash wins everywhere: so whoever holds the larger one says so.
        for record in records:
            held = self.store.get(record.chart_id)
            if held is None or held.revision != record.revision or held.vector_hash <= record.vector_hash:
                continue
            try:
                self.coordinator.publish(events.ChartUpdated(*self._signed, events.pack(held)))
            except CarrierAway:
                self._owe_rebuild()
                return

    def _finish_heard(self, event: events.BatchFinished) -> None:
        try:
            chart_ids = events.unpack_ids(event.chart_ids)
        except events.EventRejected as error:
            self.coordinator.reject(error)
            return
        heard, self._heard = self._heard, None
        whole = heard is not None and heard.batch == event.batch and heard.records == event.total
        if self.policy.ordered:
            removed = self.store.retain(chart_ids, event.revision)
            self.counters.count("applied", len(removed))
            for chart_id in removed:
                self._details.pop(chart_id, None)
        self.journal.note("batch_heard", f"from {event.source}: {event.total} records{'' if whole else ', with gaps'}")
        if whole and heard is not None:
            self._settle(heard.since, event.revision)

    # --- threads ----------------------------------------------------------------------------------------------

    def _listen_on(self) -> None:
        while not self._stopping.is_set():
            if not self.listen(LISTEN_SECONDS) and not self.coordinator.connected:
                self._stopping.wait(min(LISTEN_SECONDS, self.policy.probe_interval / 4))

    def _work_on(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            if not self.work():
                self._wake.wait(self.policy.probe_interval)

    # --- to look at -------------------------------------------------------------------------------------------

    def status(self) -> dict[str, object]:
        """How this node is now: who, how many charts, digest, connection, batch, what it owes; plain values only."""
        batch = self._batch
        return {
            "node": self.node_id,
            "state": "running" if self.running else "stopped" if self._stopping.is_set() else "not started",
            "charts": len(self.store),
            "digest": self.store.digest,
            "model": self.embedder.fingerprint,
            "redis": "connected" if self.coordinator.connected else "away",
            "redis_address": self.coordinator.address,
            "redis_reason": self.coordinator.reason,
            "away_for": self.coordinator.away_for,
            "batch": "" if batch is None else f"{batch.kind} {batch.done}/{batch.total}",
            "owes_rebuild": self._needs_rebuild,
            "last_sync_age": None if self._last_sync is None else self.clock.now() - self._last_sync,
            "index": self.store.index_state,
        }

    def metrics(self) -> dict[str, float]:
        """Counters since the node was made, and gauges: charts, bytes of vectors, connected (1 or 0)."""
        return {
            **self.counters.as_dict(),
            "charts": len(self.store),
            "store_bytes": self.store.nbytes,
            "connected": int(self.coordinator.connected),
        }

    def __repr__(self) -> str:
        status = self.status()
        return (
            f"Node({self.node_id!r}, {status['state']}, {status['charts']} charts, "
            f"Redis {status['redis']}, digest {str(status['digest'])[:8]})"
        )

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(key)}</th>"
            f"<td style='text-align:left'>{html.escape(str(value))}</td></tr>"
            for key, value in self.status().items()
        )
        return f"<table>{rows}</table>"


class _Heard:
    """Another node's batch, as far as it was heard."""

    def __init__(self, source: str, batch: str, since: float) -> None:
        self.source = source
        self.batch = batch
        self.since = since
        self.records = 0


def _question(query: str) -> str:
    if not isinstance(query, str):
        raise TypeError(f"query={query!r}: expected a text")
    stripped = query.strip()
    if not 1 <= len(stripped) <= MAX_QUERY_LENGTH:
        raise ValueError(
            f"a query of {len(stripped)} characters: expected 1 to {MAX_QUERY_LENGTH:,}, such as 'revenue by region'"
        )
    return stripped


def _cell(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
