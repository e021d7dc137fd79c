"""The vectors of one model on one node, kept in step with those of the other nodes.

A replica follows what the others say, says what changes here, and sees to it that nothing is missing in the end. All
its work is in step methods (`listen`, `work`), so that a test or a study drives several of them in one thread, in any
order, with time in its hands. `start` puts a thin thread around each.

Three things tell it that it misses something: a gap in the numbers of what a node said (or a lost connection), a peer
whose digest differs and stays so, and the repository's revision. The first two are mended by fetching from that peer
what it has. The third is mended by asking the peers, and, if none has it, by a batch under the lease.
"""

from __future__ import annotations

import _thread
import logging
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Literal

import numpy as np
import redis as redis_py

from copilotlab.charts import Chart, ChartRepository, Identity, RepositoryError
from copilotlab.clock import Clock
from copilotlab.embedding import Embedder
from copilotlab.lifetime import STOP_SECONDS, Background, Bell, Latch
from copilotlab.monitoring import Journal, Metrics
from copilotlab.protocol import events
from copilotlab.protocol.backlog import Backlog
from copilotlab.protocol.batch import Batch, Kind
from copilotlab.protocol.carrier import Carrier, CarrierAway
from copilotlab.protocol.coordinator import Coordinator, Flags, Lease, Need
from copilotlab.protocol.follower import Follower
from copilotlab.protocol.peers import ALIVE_BEATS, Peers
from copilotlab.protocol.policy import Policy
from copilotlab.protocol.transfer import Transfers
from copilotlab.store import Record, VectorStore

LISTEN_SECONDS = 0.25  # how long the listening thread waits for one event before it looks whether to stop
MOST_STRANGERS = 1_000  # nodes of other copies of the catalogue that are remembered
LONGEST_SILENCE = 3  # times the patience with one peer: the longest that a batch waits for all of them
HANDED_OVER = 1_000  # changes that a node says one by one after an outage; the others fetch the rest
ANSWERS_UNDER_WAY = 2  # heartbeats that answer newcomers: each serves all who came before it, be they hundreds
LONGEST_PAUSE = 60.0  # seconds between two tries of a batch that fails

Admission = Literal["ours", "deferred", "claimed", "away"]
ANYBODY = ""


class Replica:
    """One model's vectors on one node. A `Node` has one, and for a while two while it switches its model.

    Parameters are those of `Node`; a `Carrier` is this replica's own. went_back: see `Follower`. store: vectors of this
    model to begin with; none by default.
    """

    def __init__(
        self,
        charts: ChartRepository,
        embedder: Embedder,
        redis: str | redis_py.Redis | redis_py.RedisCluster | Carrier,
        *,
        policy: Policy,
        node_id: str,
        namespace: str,
        clock: Clock,
        journal: Journal,
        counters: Metrics,
        exact_limit: int,
        went_back: Callable[[], object],
        store: VectorStore | None = None,
    ) -> None:
        self.charts = charts
        self.embedder = embedder
        self.policy = policy
        self.node_id = node_id
        self.clock = clock
        self.journal = journal
        self.counters = counters
        made = VectorStore(embedder.dim, ordered=policy.ordered, exact_limit=exact_limit) if store is None else store
        self.store = made
        self.coordinator = Coordinator(
            redis,
            node_id=node_id,
            fingerprint=embedder.fingerprint,
            dim=embedder.dim,
            identity=charts.identity,
            policy=policy,
            namespace=namespace,
            clock=clock,
            journal=journal,
            metrics=counters,
        )
        self.peers = Peers(policy.heartbeat_interval)
        self.transfers = Transfers(self.coordinator, self.store, policy, clock)
        self.batch: Batch | None = None
        self._batch_lock = threading.Lock()
        self._flags = Flags(None, False)
        self._accepted = ("", 0)  # the batch whose events are taken, and its epoch
        self._awaited_revision = 0
        self._suspects: dict[str, None] = {}  # whom something was missed of; ANYBODY after a lost connection
        self._unsent: dict[int, None] = {}  # changed here while Redis was away
        self._unreleased: Lease | None = None  # of a batch that ended while Redis was away
        self.backlog = Backlog(self.store)
        self.follower = Follower(
            charts,
            self.store,
            self.backlog,
            policy=policy,
            clock=clock,
            journal=journal,
            counters=counters,
            new_patience=ALIVE_BEATS * policy.heartbeat_interval,
            went_back=went_back,
            is_another=self._speak_for,
        )
        self._seen_by: dict[str, tuple[int, float]] = {}  # the repository's revision that a node told last, and when
        self._strangers: set[str] = set()  # nodes that read another copy of the catalogue
        self._asked_at = clock.now()  # when the last of them was
        self._fetched = (0, clock.now())  # the last that came for a batch from its peers, and when
        self._asked: set[tuple[str, int]] = set()  # the peers that the present batch has asked, and which time that was
        self._knew_all = True  # whether, before the last outage, there was time to hear of every node
        self._is_away = False
        now = clock.now()
        self._back_since = self._heard_at = now
        self._next_beat = self._next_try = self._next_review = self._next_ask = now
        self._next_sync = now + policy.sync_interval
        self._pause = policy.probe_interval
        self._review_at_once = False
        self._comparing = False  # the whole catalogue is to be compared at the next look
        self._syncing = False  # the whole catalogue was read, and something of it was missing
        self.last_sync: float | None = None
        """When this replica last held all that the repository held, the whole catalogue compared; None if never."""
        self.failure: BaseException | None = None
        """What the last batch here has failed with; None if it did not."""
        self.trouble: dict[str, str] = {}
        """What the last step of a thread has failed with, by the thread's name; empty once each works again."""
        self.driving = threading.Lock()
        """Of whoever drives a batch of a replica without threads."""
        self._threads: dict[str, Background] = {}
        self._starting = threading.Lock()
        self._stopping = Latch()
        self._leaving = threading.Lock()
        self._gone = Latch()
        self._wake = Bell()

    # --- life -------------------------------------------------------------------------------------------------

    def connect(self) -> bool:
        """Connect now; False if Redis is away. Raises CarrierRefused."""
        if not self.coordinator.connect():
            return False
        self._rejoin()
        return True

    def start(self) -> None:
        """Listen and work in the background; where a thread has failed, that one begins again."""
        with self._starting:
            for name, step in (("listen", self._listen_on), ("work", self._work_on)):
                thread = self._threads.get(name)
                if thread is None or thread.ended.is_set():
                    label = f"copilotlab-{self.node_id}-{name}"
                    self._threads[name] = Background(partial(self._go_on, name, step), label)
                    self._threads[name].start()

    def let_go(self) -> None:
        """Have the threads end, give a batch that is under way back and leave Redis; without waiting for it.

        It takes no lock, so a signal handler or a finalizer may call it.
        """
        self._stopping.set()
        if (batch := self.batch) is not None:
            batch.cancel()
        self._wake.set()

    def stop(self, patience: float = STOP_SECONDS, *, in_handler: bool = False) -> str:
        """`let_go`, and wait at most ``patience`` seconds until all that is done; "", or in words what is left.

        in_handler: whether the calling thread may hold locks that this needs; then it takes none.
        """
        until = time.monotonic() + patience
        self.let_go()
        if self.driven and in_handler:
            _thread.start_new_thread(self.leave, ())  # a Thread would take a lock of `threading`
        elif self.driven:
            self.leave(patience)
        if self._gone.wait(until - time.monotonic()):
            return ""
        threads = [thread.name for thread in self._threads.values() if not thread.ended.is_set()]
        return ", ".join(threads) or "who drives its batch"

    def leave(self, patience: float = STOP_SECONDS) -> None:
        """Give the batch back and leave Redis, once nobody is at work; whoever is, does it when that is done."""
        if not self.driving.acquire(timeout=patience):
            return
        try:
            with self._leaving:
                if self._gone.is_set():
                    return
                with self._batch_lock:  # a caller may be about to begin one; nobody does any more
                    batch = self.batch
                if batch is not None:
                    batch.cancel()
                    self.advance()
                self.coordinator.close()
                self._gone.set()
        finally:
            self.driving.release()

    @property
    def running(self) -> bool:
        """Whether the background threads are at work."""
        ended = [thread.ended.is_set() for thread in list(self._threads.values())]
        return len(ended) == 2 and not self._stopping.is_set() and not any(ended)

    @property
    def driven(self) -> bool:
        """Whether its steps are taken by whoever calls them: it has no threads."""
        return not self._threads

    @property
    def stopped(self) -> bool:
        """Whether it was told to end."""
        return self._stopping.is_set()

    @property
    def gone(self) -> bool:
        """Whether it was told to end, and has left Redis."""
        return self._gone.is_set()

    def wake(self) -> None:
        """There is work to do now."""
        self._wake.set()

    def _go_on(self, name: str, step: Callable[[], None]) -> None:
        """A thread: it takes its step again and again; then the worker, whose the batch is, leaves Redis."""
        pause = self.policy.probe_interval
        failed_at = -inf
        try:
            while not self._stopping.is_set():
                try:
                    step()
                    # What is tried once a heartbeat has worked since, or there was no need for it.
                    if name in self.trouble and self.clock.now() - failed_at > 2 * self.policy.heartbeat_interval:
                        del self.trouble[name]
                        pause = self.policy.probe_interval
                except Exception as error:  # noqa: BLE001 - a driver, a model: what it is, nobody knows; it may pass
                    self._tell_trouble(name, error, pause)
                    self._stopping.wait(pause)
                    pause = min(2 * pause, self.policy.heartbeat_interval)
                    failed_at = self.clock.now()
            if name == "work":
                self._threads["listen"].ended.wait(STOP_SECONDS)
                self.leave()
        except BaseException as error:
            self.trouble[name] = f"{name}: {error!r}"
            self.journal.note("thread_failed", f"{name}: {error!r}; start() begins it again", level=logging.CRITICAL)
            raise

    def _tell_trouble(self, name: str, error: Exception, pause: float) -> None:
        where = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{name}: {error!r} at {where.filename}:{where.lineno}"
        known, self.trouble[name] = self.trouble.get(name), said
        self.counters.count("steps_failed")
        level = logging.DEBUG if said == known else logging.ERROR
        self.journal.note("step_failed", f"{said}; it is tried again after {pause:g} s", level=level)

    def _listen_on(self) -> None:
        patience = min(LISTEN_SECONDS, max(0.0, self._next_beat - self.clock.now()))
        if not self.listen(patience) and not self.coordinator.connected:
            self._stopping.wait(min(LISTEN_SECONDS, self.policy.probe_interval / 4))

    def _work_on(self) -> None:
        self._wake.clear()
        if not self.work():
            self._wake.wait(min(self.policy.probe_interval, self.policy.heartbeat_interval))

    # --- what it holds ----------------------------------------------------------------------------------------

    @property
    def complete_to(self) -> int:
        """The repository revision up to which this replica holds all, as far as it has looked."""
        return self.follower.complete_to

    @property
    def has_read(self) -> bool:
        """Whether this replica has looked into the repository since it was made."""
        return self.follower.has_read

    @property
    def lag(self) -> int:
        """How many charts are not here as they are in the repository, as far as this replica has looked."""
        return len(self.backlog)

    @property
    def owes(self) -> bool:
        """Whether something that was seen to be missing or unsaid is not mended yet."""
        return bool(self._awaited_revision or self.backlog or self._unsent or self._suspects) or self._is_owed

    # --- changes made here ------------------------------------------------------------------------------------

    def admit(self, need: Need) -> Admission:
        """Whether a change is ours to embed; "deferred" if a batch will do it, "claimed" if another node does, "away"
        without Redis."""
        try:
            flags, (granted,) = self.coordinator.admit([need])
        except CarrierAway:
            return "away"
        self._flags = flags
        if not granted and flags.was_down and flags.batch_holder is None:
            # The batch that the written design starts here reads the repository at its first step, after this change
            # was saved: that step is taken by the worker, or by whoever drives the node.
            self.begin("rebuild")
        if granted:
            return "ours"
        return "deferred" if flags.was_down or flags.batch_holder is not None else "claimed"

    def disclaim(self, need: Need) -> None:
        """Give up what was admitted: it failed."""
        try:
            self.coordinator.disclaim(need)
        except CarrierAway:
            self.journal.note("claim_left", f"chart {need.chart_id}: it ends by itself")

    def defer(self, chart_id: int, revision: int, *, patience: float = 0.0) -> None:
        """Leave a change to a batch, or to the node that claimed it, and see to it that it comes.

        patience: seconds until it is done here; without, it is done when the batch that it was left to has ended.
        """
        if self.policy.reconcile:
            self.backlog.add(chart_id, revision, self.clock.now() + patience)
        elif self.policy.pick_up_deferred:
            self._awaited_revision = max(self._awaited_revision, revision)
        self._wake.set()

    def vector_of(self, chart: Chart) -> np.ndarray:
        """The chart's vector: the one that is here if the words are the same, else a new one. Raises EmbeddingError."""
        head = self.store.head(chart.chart_id)
        if head is not None and head[1] == chart.content_hash and (held := self.store.get(chart.chart_id)):
            return held.vector
        vector: np.ndarray = self.embedder.embed([chart.text])[0]
        self.counters.count("embeddings")
        self.counters.count("truncated", len(self.embedder.cut([chart.text])))
        return vector

    def spread(self, chart: Chart, revision: int, vector: np.ndarray) -> bool:
        """Hold the chart's vector and tell the other nodes; False if Redis is away."""
        record = Record.of(chart.chart_id, revision, chart.content_hash, vector)
        self.store.put(record)
        if self.store.head(chart.chart_id) != (revision, chart.content_hash):
            self._correct(chart.chart_id)
            self.store.put(record)
        need = Need(chart.chart_id, chart.content_hash, revision)
        return self._say(events.ChartUpdated(events.pack(record)), chart.chart_id, need)

    def spread_deletion(self, chart_id: int, revision: int) -> bool:
        """Drop the chart and tell the other nodes; False if Redis is away."""
        if not self.store.remove(chart_id, revision) and chart_id in self.store:
            self._correct(chart_id)
        return self._say(events.ChartDeleted(chart_id, revision), chart_id)

    def _correct(self, chart_id: int) -> None:
        """Ask the repository for a chart that it has changed, and the store knows otherwise: it may have gone back."""
        try:
            change = self.charts.get_many([chart_id]).get(chart_id)
        except RepositoryError:
            return  # the next look tells
        if change is None or change.chart is None:
            self.store.correct(chart_id, 0, None)
        else:
            self.store.correct(chart_id, change.revision, change.chart.content_hash)
        self._review_at_once = True
        self._wake.set()

    def _say(self, event: events.Event, chart_id: int, need: Need | None = None) -> bool:
        try:
            self.coordinator.publish(event, need)
        except CarrierAway:
            self._unsent[chart_id] = None
            self.counters.count("local")
            return False
        return True

    # --- batches ----------------------------------------------------------------------------------------------

    def begin(
        self, kind: Kind, *, without_redis: bool = False, since: int = 0, ask_peers: bool = True, if_owed: bool = False
    ) -> Batch | None:
        """A new batch under the lease; None if another has it, if this replica was stopped, or, unless told otherwise,
        if Redis is away.

        if_owed: only if a rebuild is still owed: another node may have done it since this one looked.
        """
        with self._batch_lock:
            if self.batch is not None or self._stopping.is_set():
                return None
            try:
                lease = self.coordinator.take_lease(if_owed=if_owed)
                if lease is None:
                    return None
            except CarrierAway:
                if not without_redis:
                    return None
                lease = None
            if lease is not None and lease.owed:
                since = 0  # nothing less than the whole catalogue makes up for a rebuild that is owed
            self.batch = Batch(
                kind,
                lease=lease,
                charts=self.charts,
                embedder=self.embedder,
                store=self.store,
                coordinator=self.coordinator,
                policy=self.policy,
                clock=self.clock,
                skip=self.follower.skip,
                read=partial(self.follower.look, compare=False) if self.policy.reconcile else None,
                dropped=lambda: self.follower.dropped if self.policy.reconcile else 0,
                since=since,
                ask_peers=self._ask_peers if ask_peers and lease is not None and self.policy.reconcile else None,
            )
            self._asked.clear()
            self._fetched = (self.transfers.taken, self.clock.now())
            if self.batch.epoch:
                self._accepted = (self.batch.name, self.batch.epoch)  # what was said under an earlier lease is over
            epoch = f"epoch {lease.epoch}" if lease is not None and lease.epoch else ""
            self.journal.note(f"{kind}_started", "for this node only: Redis is away" if lease is None else epoch)
            return self.batch

    def advance(self) -> bool:
        """One step of this replica's batch; False if there is none, or it waits for its peers."""
        batch = self.batch
        if batch is None:
            return False
        embedded = batch.embedded
        progress = False
        try:
            progress = batch.advance()
        except Exception as error:  # noqa: BLE001 - the model and the database are foreign code; whoever waits gets it
            batch.error = error
            self.journal.note(f"{batch.kind}_failed", repr(error), level=logging.ERROR)
        finally:  # after an interrupt of whoever drives it, too
            self.counters.count("embeddings", batch.embedded - embedded)
            if batch.over:
                self._conclude(batch)
        return progress or batch.over

    def _conclude(self, batch: Batch) -> None:
        result = batch.result
        with self._batch_lock:
            self.batch = None
        self._unsent.update(dict.fromkeys(sorted(batch.unsent)))
        if batch.unreleased and self.policy.fenced:
            self._unreleased = batch.lease
        self.counters.count("batches")
        self.failure = batch.error
        if result.outcome == "fenced":
            self.counters.count("fenced")
        if result.outcome == "published" and batch.revision >= self._awaited_revision:
            self._awaited_revision = 0
        if batch.whole and result.outcome in ("published", "local"):
            self.last_sync = self.clock.now()
        self._flags = self._flags._replace(batch_holder=None, was_down=self._flags.was_down and batch.error is not None)
        self._pause = min(LONGEST_PAUSE, 2 * self._pause) if batch.error is not None else self.policy.probe_interval
        self._next_try = self.clock.now() + self._pause
        self._review_at_once = True
        self._wake.set()
        self.journal.note(
            f"{batch.kind}_ended",
            f"{result.outcome}: {result.charts} charts, {result.embedded} embedded, {result.removed} removed",
            level=logging.INFO,
        )
        batch.finished.set()

    def _ask_peers(self, wanted: Callable[[], list[int]]) -> bool:
        """Fetch what peers have of the ``wanted`` charts; True once each that is there, or expected back, was asked.

        Whoever hears that a batch begins answers with a heartbeat, and Redis says how many those are. This node hears
        it too, after all that was said before.
        """
        now = self.coordinator.heard_to
        batch = self.batch
        if batch is None:
            return True
        if not self.coordinator.connected:  # for a moment, it may be
            return batch.has_asked or self.coordinator.away_for >= self.policy.rejoin_grace
        if not batch.has_asked and self._awaits_answers(batch, now):
            self._fetched = (self.transfers.taken, self.clock.now())  # nobody was asked yet, so nobody is silent
            return False
        silent = self._silence(batch)
        if silent >= LONGEST_SILENCE * self.transfers.patience:
            self.transfers.give_up()
            return True  # however many there are, and under whatever names: all of them together had this long
        question = batch.questions
        others = any(peer.digest and (peer.node_id, question) not in self._asked for peer in self.peers.alive(now))
        if self.transfers.peer and others and min(silent, now - self._asked_at) >= self.transfers.patience:
            self.transfers.give_up()
        if self.transfers.peer:
            return False
        for peer in self.peers.alive(now):
            if (peer.node_id, question) in self._asked or not peer.digest:
                continue
            self._asked.add((peer.node_id, question))
            self._asked_at = self.clock.now()
            if peer.charts and (chart_ids := wanted()):
                try:
                    self.transfers.ask(peer.node_id, chart_ids)
                except CarrierAway:  # the listener sees that too, and knows whether it is back already
                    self._asked.discard((peer.node_id, question))
                return False
        return True

    def _silence(self, batch: Batch) -> float:
        """Seconds for which nothing that this batch lacked came from any peer, while it could ask them."""
        taken, since = self._fetched
        if self.transfers.taken != taken:
            self._fetched = (self.transfers.taken, self.clock.now())
            return 0.0
        began = max(since, batch.asking_since, self._back_since)
        return self.coordinator.heard_to - began

    def _awaits_answers(self, batch: Batch, now: float) -> bool:
        """Whether somebody may still say what it has: who listens, or who is expected back after an outage."""
        grace = self.policy.rejoin_grace
        answered = sum(peer.batch == batch.name for peer in self.peers.alive(now))
        unheard = self.coordinator.echoed < batch.announced or answered < batch.audience
        unanswered = unheard and now - max(batch.begun, self._back_since) < grace
        not_back = (self.peers.expected() or not self._knew_all) and now - self._back_since < grace
        return bool(unanswered or not_back)

    # --- steps ------------------------------------------------------------------------------------------------

    def listen(self, timeout: float = 0.0) -> bool:
        """One step of listening: apply one event, or, while Redis is away, look whether it is back.

        Waits at most ``timeout`` seconds for an event; True if something happened.
        """
        self._notice_sleep()
        if not self.coordinator.connected:
            self._lose()
            if not self.coordinator.probe():
                return False
            self._rejoin()
            return True
        try:
            if self.clock.now() >= self._next_beat:
                self._beat()
            envelope = self.coordinator.receive(timeout)
            if envelope is not None:
                self._apply(envelope)
        except CarrierAway:
            self._lose()
            return True
        return envelope is not None

    def work(self) -> bool:
        """One step of work: a chunk of this node's batch, or what is due: to fetch, to look, to rebuild, to sync.

        True if there may be more to do at once.
        """
        if self.batch is not None:
            return self.advance()
        now = self.clock.now()
        if self._slept(now):
            return False  # first it listens to what was said meanwhile
        connected = self.coordinator.connected
        if self.policy.reconcile:
            self._review(now)
        if connected and not self.transfers.peer:
            # A batch goes first: it asks every peer once, while a peer that never answers could be asked for ever.
            if self._begin_what_is_due(now):
                return True
            if self.policy.reconcile:
                self._mend(now)
        if now >= self._next_sync:
            self._next_sync = now + self.policy.sync_interval
            return self.sync()
        return False

    def _begin_what_is_due(self, now: float) -> bool:
        if now < self._next_try or self._flags.batch_holder is not None:
            return False
        due = self._due()
        if due is None and not self._is_owed:
            return False
        self._next_try = now + self.policy.probe_interval
        since = 0 if due is None or self._is_owed else due
        return self.begin("rebuild", since=since, if_owed=due is None) is not None

    @property
    def _is_owed(self) -> bool:
        """Whether somebody has to rebuild, as far as this replica has seen."""
        return self._flags.was_down and self.policy.rebuild_at_reconnect

    def _due(self) -> int | None:
        """The revision after which something is this node's to embed now; None if nothing is."""
        if self._awaited_revision:
            return 0
        if self.policy.reconcile and not self._has_waited():
            return None
        due = self.backlog.due(self.coordinator.heard_to)
        return None if due is None else due - 1

    def sync(self) -> bool:
        """The scheduled sync: as written, replace all here by what the repository has, under the lease.

        With `reconcile`: look at the whole repository again, and fetch only what differs. False if there was no need,
        or another node is at it.
        """
        if not self.policy.reconcile:
            return self.begin("sync") is not None
        self._comparing = True
        self._review_at_once = True
        self._wake.set()
        return True

    def _beat(self) -> None:
        reconcile = self.policy.reconcile
        self._next_beat = self.clock.now() + self._beat_interval
        self._flags = self.coordinator.beat(self._heartbeat() if reconcile else None)
        if reconcile:
            self._hand_over()
            self.transfers.check()
        self._wake.set()

    @property
    def _beat_interval(self) -> float:
        return self.policy.heartbeat_interval if self.policy.reconcile else self.policy.probe_interval

    def _heartbeat(self, *, newcomer: bool = False) -> events.Heartbeat:
        batch, _ = self._accepted
        store = self.store
        return events.Heartbeat(store.digest, len(store), self.complete_to, batch, newcomer, *self.follower.catalogue)

    def _lose(self) -> None:
        """Redis has gone."""
        if self._is_away:
            return
        self._is_away = True
        self._knew_all = self._has_waited()
        self.peers.went_silent(self.coordinator.heard_to)
        self.transfers.give_up()
        self._asked.clear()  # who was being asked has not answered

    def _rejoin(self) -> None:
        """Redis is there: say what it missed of us, then ask the others what we missed of them."""
        now = self.clock.now()
        self._is_away = False
        self._back_since = now
        try:
            if self.policy.reconcile:
                self._suspects[ANYBODY] = None
                self._hand_over()
            if self._unreleased is not None:
                self.coordinator.release_lease(self._unreleased, recovered=False)
                self._unreleased = None
            if self.policy.reconcile:
                self._flags = self.coordinator.beat(self._heartbeat(newcomer=True))
            else:
                self._flags = self.coordinator.beat()
        except CarrierAway:
            return
        self._next_beat = now + self._beat_interval
        self._wake.set()

    def _slept(self, now: float) -> bool:
        """Whether this node did not run for so long that it counted as dead, and does not know it yet."""
        return self.policy.reconcile and now - self._heard_at > ALIVE_BEATS * self.policy.heartbeat_interval

    def _notice_sleep(self) -> None:
        """A process that was frozen finds its clock ahead: it knows nothing of the others, and waits for news."""
        now = self.clock.now()
        slept = now - self._heard_at
        if self._slept(now):
            self.counters.count("sleeps")
            self.journal.note("slept", f"for {slept:.1f} s")
            self._back_since = now
            self.peers.went_silent(self.coordinator.heard_to)
            self._suspects[ANYBODY] = None
        self._heard_at = now

    def _hand_over(self) -> None:
        """Say what was changed here while Redis was away; beyond a thousand changes, the others fetch them."""
        for number, chart_id in enumerate(list(self._unsent)):
            self._unsent.pop(chart_id, None)  # before it is read: a caller may change it again, and note that
            if number >= HANDED_OVER:
                continue
            try:
                self._say_what_is_here(chart_id)
            except CarrierAway:
                self._unsent[chart_id] = None
                raise

    def _say_what_is_here(self, chart_id: int) -> None:
        held = self.store.get(chart_id)
        removed = self.store.tombstone(chart_id)
        if held is not None:
            need = Need(chart_id, held.content_hash, held.revision)
            self.coordinator.publish(events.ChartUpdated(events.pack(held)), need)
        elif removed is not None:
            self.coordinator.publish(events.ChartDeleted(chart_id, removed))

    # --- what the others say ----------------------------------------------------------------------------------

    def _apply(self, envelope: events.Envelope) -> None:
        if self._reads_another_copy(envelope):
            return
        if self.policy.reconcile and self.peers.note(envelope, self.clock.now()):
            self.counters.count("gaps")
            self._suspects[envelope.source] = None
            self._wake.set()
        match envelope.event:
            case events.ChartUpdated(record):
                self._take(self.coordinator.records([record]))
            case events.ChartDeleted(chart_id, revision):
                self.counters.count("applied", self.store.remove(chart_id, revision))
            case events.Heartbeat() as heartbeat:
                self._note_heartbeat(envelope.source, heartbeat)
            case events.BulkReady() as ready:
                self.transfers.arrived(envelope.source, ready)
                self._wake.set()
            case events.ManifestWanted() | events.RecordsWanted() as question:
                self.transfers.answer(envelope.source, question)
            case batch_event:
                self._apply_batch(envelope.source, batch_event)

    def _reads_another_copy(self, envelope: events.Envelope) -> bool:
        """Whether who says this reads another copy of the catalogue, such as a restored backup.

        Such a one has the same incarnation, and the same key; that it went another way its heartbeats tell.
        """
        source, event = envelope.source, envelope.event
        if isinstance(event, events.Heartbeat):
            self._strangers.discard(source)
            if self._contradicts(source, event) and len(self._strangers) < MOST_STRANGERS:
                self._strangers.add(source)
        if source not in self._strangers:
            return False
        reason = f"node {source!r} reads another copy of this catalogue, which went another way: give each a namespace"
        self.coordinator.reject(events.EventRejected("copy", reason))
        return True

    def _contradicts(self, source: str, heartbeat: events.Heartbeat) -> bool:
        """Whether a node tells of the repository what never was: another digest, or a revision beyond a later look."""
        looked_at, read_to = self.follower.looked_at, self.follower.read_to
        seen, heard_at = self._seen_by.get(source, (0, inf))
        if len(self._seen_by) >= MOST_STRANGERS:
            self._seen_by.clear()
        self._seen_by[source] = heartbeat.revision, self.clock.now()
        never_was = looked_at is not None and looked_at > heard_at and min(seen, heartbeat.revision) > read_to
        return never_was or self.follower.contradicts(heartbeat.revision, heartbeat.catalogue)

    def _apply_batch(
        self,
        source: str,
        event: events.BatchStarted | events.BatchChunk | events.BatchChunkStored | events.BatchFinished,
    ) -> None:
        if not self._accepts(event.batch, event.epoch):
            self.coordinator.reject(
                events.EventRejected("epoch", f"a batch of epoch {event.epoch}, over since {self._accepted[1]}")
            )
            return
        match event:
            case events.BatchStarted():
                self.journal.note("batch_heard", f"{source} begins, epoch {event.epoch}")
                if (own := self.batch) is not None and own.epoch and own.epoch < event.epoch:
                    own.fence()  # it waits for its peers, and says nothing by which it would notice
                self._flags = self._flags._replace(batch_holder=source)
                self._next_beat = self.clock.now()  # the holder asks whoever answers
            case events.BatchChunk():
                self._take(self.coordinator.records(event.records))
            case events.BatchChunkStored():
                self._fetch_chunk(source, event)
            case events.BatchFinished():
                self._finish_heard(source, event)

    def _accepts(self, batch: str, epoch: int) -> bool:
        """One batch at a time: the first heard of the highest epoch, if Redis knows of such a one."""
        if not self.policy.fenced:
            self._accepted = (batch, epoch)
        if (batch, epoch) == self._accepted:
            return True
        if epoch <= self._accepted[1]:
            return False
        if epoch > self.coordinator.epoch and epoch > self.coordinator.epoch_in_redis():
            return False
        self._accepted = (batch, epoch)
        return True

    def _fetch_chunk(self, source: str, event: events.BatchChunkStored) -> None:
        payload = self.coordinator.get_bulk(event.bulk)
        if payload is None:  # this node slept for longer than it lay there
            self.counters.count("chunks_missed")
            self._suspects[source] = None
            return
        try:
            records = self.coordinator.decode_records(payload)
        except events.EventRejected as error:
            self.coordinator.reject(error)
            return
        self._take(records)

    def _take(self, records: list[Record]) -> None:
        taken = self.store.put_many(records)
        self.counters.count("applied", taken)
        if taken == len(records) or not self.policy.ordered or self.policy.reconcile:
            return
        # The same text embedded in another batch differs in its last bits. Where two vectors of one revision meet, the
        # larger hash wins everywhere: so whoever holds the larger one says so. (Where nodes reconcile, digests tell.)
        for record in records:
            held = self.store.get(record.chart_id)
            if held is None or held.revision != record.revision or held.vector_hash <= record.vector_hash:
                continue
            self._say(events.ChartUpdated(events.pack(held)), held.chart_id)

    def _finish_heard(self, source: str, event: events.BatchFinished) -> None:
        self._flags = self._flags._replace(batch_holder=None, was_down=False)
        if event.revision >= self._awaited_revision:
            self._awaited_revision = 0
        if self.policy.ordered and not self.policy.reconcile and event.chart_ids is not None:
            try:
                chart_ids = events.unpack_ids(event.chart_ids)
            except events.EventRejected as error:
                self.coordinator.reject(error)
                return
            self.counters.count("applied", len(self.store.retain(chart_ids, event.revision)))
        self.journal.note("batch_heard", f"{source} has ended: {event.total} records to revision {event.revision}")
        self._review_at_once = True
        self._wake.set()

    def _note_heartbeat(self, source: str, heartbeat: events.Heartbeat) -> None:
        if heartbeat.newcomer and self.coordinator.beats_under_way < ANSWERS_UNDER_WAY:
            self._next_beat = self.clock.now()
        if self.peers.note_heartbeat(source, heartbeat, self.store.digest) and self._flags.batch_holder is None:
            self.counters.count("digests_differed")
            self._suspects[source] = None
            self._wake.set()

    # --- what is missing --------------------------------------------------------------------------------------

    def _review(self, now: float) -> None:
        """Compare with the repository: read what changed there since, and see what came of what was missing."""
        if now < self._next_review and not self._review_at_once:
            return
        self._next_review = now + self.policy.heartbeat_interval
        self._review_at_once = False
        try:
            if self._comparing:
                self.follower.start_over()
            self.follower.look()
        except RepositoryError as error:
            self.counters.count("repository_away")
            self.journal.warn_once("repository_away", str(error))
            return
        self._comparing = False
        self._syncing = self._syncing or self.follower.compared
        if self._syncing and not self.backlog:
            self._syncing = False
            self.last_sync = now

    def _speak_for(self, identity: Identity) -> None:
        """The repository holds another catalogue than before: what is said from now on is about that one."""
        self.coordinator.identity = identity
        self._suspects[ANYBODY] = None

    def _mend(self, now: float) -> None:
        """Begin to fetch what is known to be missing, unless that is under way."""
        if self.transfers.peer:
            return
        try:
            self._reconcile()
            if not self.transfers.peer and self.backlog and self._flags.batch_holder is None:
                self._ask_for_missing(now)
        except CarrierAway:
            return  # the listener sees that too, and knows whether it is back already

    def _reconcile(self) -> None:
        """Begin with the first suspect that has said what it holds: one that never does keeps nobody waiting."""
        now = self.coordinator.heard_to
        for source in list(self._suspects):  # at once: the listener's thread adds to them
            known = self.peers.get(source, now)
            living = [known] if known is not None else self.peers.alive(now)
            told = [peer for peer in living if peer.digest]
            if told:
                self._suspects.pop(source)
                if told[0].digest != self.store.digest:
                    self.counters.count("reconciliations")
                    self.journal.note("reconcile", f"with {told[0].node_id}")
                    self.transfers.reconcile(told[0].node_id)
                    return
            elif not living and (source != ANYBODY or self._has_waited()):
                self._suspects.pop(source)  # there is nobody to ask

    def _has_waited(self) -> bool:
        """Whether the others had the time to say that they are there, and were heard."""
        return self.coordinator.heard_to - self._back_since >= ALIVE_BEATS * self.policy.heartbeat_interval

    def _ask_for_missing(self, now: float) -> None:
        ahead = [peer for peer in self.peers.alive(self.coordinator.heard_to) if peer.complete_to > self.complete_to]
        if ahead and now >= self._next_ask:
            self._next_ask = now + self.policy.heartbeat_interval
            self.transfers.ask(ahead[0].node_id, self.backlog.chart_ids())

    def __repr__(self) -> str:
        return f"Replica({self.node_id!r}, {self.embedder.fingerprint!r}, {len(self.store)} charts)"
