"""The vectors of one model on one node, kept in step with those of the other nodes.

A replica follows what the others say, says what changes here, and makes sure that nothing is missing in the end. All
its work is in step methods (`listen`, `work`), so that a test or a study can drive several replicas in one thread, in
any order, with the clock under its control. `Threads` puts a thin thread around each.

It learns in three ways that something is missing: by a gap in the numbers of what a node said (or a lost connection),
by a peer whose digest differs and stays so, and by the repository's revision. The first two are mended by fetching what
that peer has; the third by asking the peers, and, if none has it, by a batch under the lease.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import redis as redis_py

from copilotlab.charts import ChartRepository, Identity
from copilotlab.embedding import Embedder
from copilotlab.monitoring.happenings import (
    Applied,
    BatchHeard,
    ChunkMissed,
    DigestsDiffered,
    GapSeen,
    Reconciling,
    Slept,
    Unlistened,
)
from copilotlab.protocol import events
from copilotlab.protocol.backlog import Backlog
from copilotlab.protocol.batches import Batches
from copilotlab.protocol.carrier import Carrier, CarrierAway
from copilotlab.protocol.changes import Changes
from copilotlab.protocol.context import Context
from copilotlab.protocol.coordinator import Coordinator
from copilotlab.protocol.follower import Follower
from copilotlab.protocol.gossip import Gossip
from copilotlab.protocol.outbox import Outbox
from copilotlab.protocol.peers import ALIVE_BEATS, Peers, Strangers
from copilotlab.protocol.sync import Sync
from copilotlab.protocol.threads import Threads
from copilotlab.protocol.transfer import Transfers
from copilotlab.protocol.view import ANYBODY, Flags, View
from copilotlab.store import Record, VectorStore

LISTEN_SECONDS = 0.25  # how long the listening thread waits for one event before it looks whether to stop
NEWS = (events.UPDATES, events.DELETIONS)  # channels of nothing else than what became of charts
ANSWERS_UNDER_WAY = 2  # heartbeats that answer newcomers: each serves all that came before it, be they hundreds


def _is_news(event: events.Event) -> bool:
    """Tell whether an event says what became of charts, and not how nodes are, or what they ask each other."""
    return events.CHANNEL_OF[type(event)] in NEWS or isinstance(event, events.BatchChunk | events.BatchChunkStored)


def _watched_by_nobody(_replica: Replica) -> None:
    """Neither look nor report."""


def _does_nothing(_replica: Replica, _source: str, _order: events.Order) -> None:
    """Take no orders."""


class Replica:
    """One model's vectors on one node. A `Node` has one, and for a while two while it switches its model.

    went_back: see `Follower`. watch: called with the replica at each step of listening; report: what it says of how it
    is, None for nothing; ordered: is given what a watcher asks for, and its name; all must be quick.
    store: vectors of this model to begin with; None makes one with this `exact_limit`.
    """

    def __init__(
        self,
        context: Context,
        charts: ChartRepository,
        embedder: Embedder,
        redis: str | redis_py.Redis | redis_py.RedisCluster | Carrier,
        *,
        exact_limit: int,
        went_back: Callable[[], object],
        watch: Callable[[Replica], object] = _watched_by_nobody,
        report: Callable[[Replica], events.Report | None] = _watched_by_nobody,
        ordered: Callable[[Replica, str, events.Order], object] = _does_nothing,
        store: VectorStore | None = None,
    ) -> None:
        policy, clock = context.policy, context.clock
        self.context = context
        self.charts = charts
        self.embedder = embedder
        made = VectorStore(embedder.dim, ordered=policy.ordered, exact_limit=exact_limit) if store is None else store
        self.store = made
        self._watch = watch
        self._report = report
        self._ordered = ordered
        self.coordinator = Coordinator(
            redis, context, fingerprint=embedder.fingerprint, dim=embedder.dim, identity=charts.identity
        )
        grace = ALIVE_BEATS * policy.heartbeat_interval
        self.view = View(clock.now(), grace if policy.reconcile else inf)
        self.peers = Peers(policy.heartbeat_interval)
        self.strangers = Strangers()
        self.gossip = Gossip(self.coordinator, self.peers)
        self.transfers = Transfers(self.coordinator, self.store)
        self.outbox = Outbox(self.store, self.coordinator)
        self.backlog = Backlog(self.store)
        self.follower = Follower(
            context,
            charts,
            self.store,
            self.backlog,
            new_patience=grace,
            went_back=went_back,
            is_another=self._speak_for,
        )
        self.looks = Sync(context, self.follower, self.backlog)
        self.threads = Threads(
            context,
            listen=self._listen_on,
            work=self._work_on,
            cancel=lambda: self.batches.cancel(),
            leave=self._leave,
        )
        self.batches = Batches(
            embedder,
            self.store,
            self.coordinator,
            self.view,
            self.peers,
            self.transfers,
            self.follower,
            self.looks,
            self.outbox,
            stopping=self.threads.stopping,
            wake=self.threads.wake,
        )
        self.changes = Changes(
            charts,
            embedder,
            self.store,
            self.coordinator,
            self.view,
            self.backlog,
            self.outbox,
            self.looks,
            self.batches,
            wake=self.threads.wake,
        )
        self._next_beat = self._next_ask = clock.now()

    # --- life -------------------------------------------------------------------------------------------------

    def connect(self) -> bool:
        """Connect now; False if Redis is away. Raises CarrierRefused."""
        if not self.coordinator.connect():
            return False
        self._rejoin()
        return True

    def _leave(self) -> None:
        """End the present batch, give back its lease, and leave Redis."""
        self.batches.end()
        self.coordinator.close(self._report(self))

    def _listen_on(self) -> None:
        patience = min(LISTEN_SECONDS, max(0.0, self._next_beat - self.context.clock.now()))
        if not self.listen(patience) and not self.coordinator.connected:
            self.threads.stopping.wait(min(LISTEN_SECONDS, self.context.policy.probe_interval / 4))

    def _work_on(self) -> None:
        self.threads.wake.clear()
        if not self.work():
            policy = self.context.policy
            self.threads.wake.wait(min(policy.probe_interval, policy.heartbeat_interval))

    # --- what it holds ----------------------------------------------------------------------------------------

    @property
    def unsettled(self) -> bool:
        """Whether something is still missing here or unsaid, as far as this node has seen."""
        view = self.view
        return bool(view.awaited_revision or self.backlog or self.outbox or view.suspects()) or self.batches.are_owed

    # --- steps ------------------------------------------------------------------------------------------------

    def listen(self, timeout: float = 0.0) -> bool:
        """Take one step of listening: apply one event, or, while Redis is away, look whether it is back.

        Waits at most ``timeout`` seconds for an event; True if something happened.
        """
        self._notice_sleep()
        self._watch(self)
        if not self.coordinator.connected:
            self._lose()
            if not self.coordinator.probe():
                return False
            self._rejoin()
            return True
        try:
            if self.context.clock.now() >= self._next_beat:
                self._beat()
            envelope = self.coordinator.receive(timeout)
            if envelope is not None:
                self._apply(envelope)
        except CarrierAway:
            self._lose()
            return True
        return envelope is not None

    def work(self) -> bool:
        """Take one step of work: a chunk of this node's batch, or what is due: to fetch, to look, to rebuild, to sync.

        True if there may be more to do at once.
        """
        if self.batches.present is not None:
            return self.batches.advance()
        now, reconcile = self.context.clock.now(), self.context.policy.reconcile
        if self.view.slept(now):
            return False  # first the listening thread hears what was said meanwhile
        if reconcile:
            self.looks.step(now)
        # While listening is off, this node does not know what the others have: it would embed that again.
        if self.coordinator.connected and self.context.toggles.now.listening and not self.transfers.peer:
            # A batch goes first: it asks every peer once, while a peer that never answers could be asked for ever.
            if self.batches.begin_what_is_due(now, self._due()):
                return True
            if reconcile:
                self._mend(now)
        return self.looks.is_due(now) and self.sync()

    def _due(self) -> int | None:
        """Return the revision after which something is this node's to embed now; None if nothing is."""
        if self.view.awaited_revision:
            return 0
        heard_to = self.coordinator.heard_to
        if self.context.policy.reconcile and not self.view.has_waited(heard_to):
            return None
        due = self.backlog.due(heard_to)
        return None if due is None else due - 1

    def sync(self) -> bool:
        """Run the scheduled sync; False if another node holds the lease, or Redis is away.

        As written, all that is here is replaced by what the repository has, under the lease. With `reconcile`, the
        whole repository is looked at again, and only what differs is fetched.
        """
        if not self.context.policy.reconcile:
            return self.batches.begin("sync") is not None
        self.looks.soon(whole=True)
        self.threads.wake.set()
        return True

    # --- the connection ---------------------------------------------------------------------------------------

    def _beat(self) -> None:
        now, reconcile = self.context.clock.now(), self.context.policy.reconcile
        self._next_beat = now + self._beat_interval
        self.view.saw(self._say_how_it_is() if reconcile else self.coordinator.beat(), now)
        self._hand_over()
        if reconcile:
            self.transfers.check()
        self.threads.wake.set()

    def _hand_over(self) -> None:
        """Say what was not said yet, unless publishing is off; as written, that is never said. Raises CarrierAway."""
        now = self.context.toggles.now
        if now.policy.reconcile and now.publishing:
            self.outbox.hand_over()

    @property
    def _beat_interval(self) -> float:
        policy = self.context.policy
        return policy.heartbeat_interval if policy.reconcile else policy.probe_interval

    def _say_how_it_is(self, *, newcomer: bool = False) -> Flags:
        return self.coordinator.beat(self._heartbeat(newcomer=newcomer), self._report(self))

    def _heartbeat(self, *, newcomer: bool = False) -> events.Heartbeat:
        batch, _ = self.view.accepted
        store = self.store
        return events.Heartbeat(
            store.digest, len(store), self.follower.complete_to, batch, newcomer, *self.follower.catalogue
        )

    def _lose(self) -> None:
        """Note, once for each outage, that Redis has gone."""
        heard_to = self.coordinator.heard_to
        if self.view.lost(heard_to):
            self.peers.went_silent(heard_to)
            self.transfers.give_up()
            self.batches.connection_lost()

    def _rejoin(self) -> None:
        """Say what could not be said while Redis was away, then a heartbeat; what was missed here is asked for next."""
        now, reconcile = self.context.clock.now(), self.context.policy.reconcile
        self.view.back(now, suspect_all=reconcile)
        try:
            self._hand_over()
            self.batches.give_back()
            self.view.saw(self._say_how_it_is(newcomer=True) if reconcile else self.coordinator.beat(), now)
        except CarrierAway:
            return
        self._next_beat = now + self._beat_interval
        self.threads.wake.set()

    def _notice_sleep(self) -> None:
        """After the process stood still, forget what was known of the other nodes: their news was missed."""
        now = self.context.clock.now()
        if self.view.slept(now):
            self.peers.went_silent(self.coordinator.heard_to)  # before the worker goes on: it would ask what they held
        if slept := self.view.listened(now):
            self.context.tell(Slept(slept))

    # --- what the others say ----------------------------------------------------------------------------------

    def _apply(self, envelope: events.Envelope) -> None:
        source, event = envelope.source, envelope.event
        if envelope.session == events.WATCHER:
            if isinstance(event, events.ManifestWanted | events.RecordsWanted):
                self.transfers.answer(source, event)
            elif isinstance(event, events.Order):
                self._ordered(self, source, event)
            return
        if self._reads_another_copy(source, event):
            return
        if self.context.policy.reconcile and self.peers.note(envelope, self.context.clock.now()):
            self.context.tell(GapSeen(source))
            self.view.suspect(source)
            self.threads.wake.set()
        if _is_news(event) and not self.context.toggles.now.listening:
            self.context.tell(Unlistened(source))  # digests will differ, and what they say is fetched once it is on
            return
        match event:
            case events.ChartUpdated(record):
                self._take(self.coordinator.records([record]))
            case events.ChartsUpdated(bulk):
                self._fetch_page(source, bulk)
            case events.ChartDeleted(chart_id, revision):
                self.context.tell(Applied(int(self.store.remove(chart_id, revision))))
            case events.Heartbeat() as heartbeat:
                self._note_heartbeat(source, heartbeat)
            case events.BulkReady() as ready:
                self.transfers.arrived(source, ready)
                self.threads.wake.set()
            case events.ManifestWanted() | events.RecordsWanted() as question:
                self.transfers.answer(source, question)
            case events.SettingsHeld() as held:
                self.gossip.heard(source, held)
                self.threads.wake.set()
            case events.Report() | events.Order() | events.OrderAnswer():
                pass  # between nodes and watchers: above
            case batch_event:
                self._apply_batch(source, batch_event)

    def _reads_another_copy(self, source: str, event: events.Event) -> bool:
        """Tell whether the source reads another copy of the catalogue; if so, drop its event."""
        if isinstance(event, events.Heartbeat):
            follower = self.follower
            self.strangers.note(
                source,
                event.revision,
                self.context.clock.now(),
                last_look=follower.last_look,
                differs=follower.contradicts(event.revision, event.catalogue),
            )
        if source not in self.strangers:
            return False
        reason = f"node {source!r} reads another copy of this catalogue, which went another way: give each a namespace"
        self.coordinator.reject(events.EventRejected("copy", reason))
        return True

    def _apply_batch(
        self,
        source: str,
        event: events.BatchStarted | events.BatchChunk | events.BatchChunkStored | events.BatchFinished,
    ) -> None:
        if not self._accepts(event.batch, event.epoch):
            reason = f"a batch of epoch {event.epoch}, over since {self.view.accepted[1]}"
            self.coordinator.reject(events.EventRejected("epoch", reason))
            return
        match event:
            case events.BatchStarted():
                self.context.tell(BatchHeard(source, f"begins, epoch {event.epoch}"))
                self.batches.heard_of(event.epoch)
                self.view.batch_began(source)
                self._next_beat = self.context.clock.now()  # the holder asks the nodes that answer
            case events.BatchChunk():
                self._take(self.coordinator.records(event.records))
            case events.BatchChunkStored():
                self._fetch_page(source, event.bulk)
            case events.BatchFinished():
                self._finish_heard(source, event)

    def _accepts(self, batch: str, epoch: int) -> bool:
        """Accept one batch at a time: the first that is heard of the highest epoch, if Redis confirms that epoch."""
        if self.view.accepts(batch, epoch):
            return True
        if not (self.view.would_accept(epoch) and self.coordinator.lease.is_current(epoch)):
            return False
        return self.view.accept(batch, self.coordinator.lease.counted(epoch))

    def _fetch_page(self, source: str, bulk: str) -> None:
        payload = self.coordinator.get_bulk(bulk)
        if payload is None:  # this node slept for longer than the page was kept
            self.context.tell(ChunkMissed(source))
            self.view.suspect(source)
            return
        try:
            records = self.coordinator.decode_records(payload)
        except events.EventRejected as error:
            self.coordinator.reject(error)
            return
        self._take(records)

    def _take(self, records: list[Record]) -> None:
        taken = self.store.put_many(records)
        self.context.tell(Applied(taken))
        policy = self.context.policy
        if taken == len(records) or not policy.ordered or policy.reconcile:
            return
        # The same text embedded in another batch differs in its last bits. Where two vectors of one revision meet, the
        # larger hash wins everywhere, so a node that holds the larger one says so. (Where nodes reconcile, digests do.)
        for record in records:
            held = self.store.get(record.chart_id)
            if held is None or held.revision != record.revision or held.vector_hash <= record.vector_hash:
                continue
            self.outbox.say(events.ChartUpdated(events.pack(held)), held.chart_id)

    def _finish_heard(self, source: str, event: events.BatchFinished) -> None:
        self.view.batch_ended(owed=False, up_to=event.revision)
        policy = self.context.policy
        if policy.ordered and not policy.reconcile and event.chart_ids is not None:
            try:
                chart_ids = events.unpack_ids(event.chart_ids)
            except events.EventRejected as error:
                self.coordinator.reject(error)
                return
            self.context.tell(Applied(len(self.store.retain(chart_ids, event.revision))))
        self.context.tell(BatchHeard(source, f"has ended: {event.total} records to revision {event.revision}"))
        self.looks.soon()
        self.threads.wake.set()

    def _note_heartbeat(self, source: str, heartbeat: events.Heartbeat) -> None:
        if heartbeat.newcomer and self.coordinator.beats_under_way < ANSWERS_UNDER_WAY:
            self._next_beat = self.context.clock.now()
        self.gossip.heard_beat(source)
        differs = self.peers.note_heartbeat(source, heartbeat, self.store.digest)
        if differs and self.view.is_quiet(self.coordinator.heard_to):
            self.context.tell(DigestsDiffered(source))
            self.view.suspect(source)
            self.threads.wake.set()

    def _speak_for(self, identity: Identity) -> None:
        """Speak for another catalogue from now on: the repository holds it in place of the one before."""
        self.coordinator.link.identity = identity
        self.view.suspect(ANYBODY)

    # --- what is missing --------------------------------------------------------------------------------------

    def _mend(self, now: float) -> None:
        """Begin to fetch what is known to be missing, unless that is under way."""
        if self.transfers.peer:
            return
        try:
            self._reconcile()
            if not self.transfers.peer and self.backlog and self.view.is_quiet(self.coordinator.heard_to):
                self._ask_for_missing(now)
        except CarrierAway:
            return  # the listening thread sees that too, and knows whether Redis is back already

    def _reconcile(self) -> None:
        """Fetch from the first suspect that has said what it holds; one that never does holds up nothing."""
        now = self.coordinator.heard_to
        for source in self.view.suspects():
            known = self.peers.get(source, now)
            living = [known] if known is not None else self.peers.alive(now)
            told = [peer for peer in living if peer.digest]
            if told:
                self.view.clear(source)
                if told[0].digest != self.store.digest:
                    self.context.tell(Reconciling(told[0].node_id))
                    self.transfers.reconcile(told[0].node_id)
                    return
            elif not living and (source != ANYBODY or self.view.has_waited(now)):
                self.view.clear(source)  # there is no node to ask

    def _ask_for_missing(self, now: float) -> None:
        ahead = [
            peer for peer in self.peers.alive(self.coordinator.heard_to) if peer.complete_to > self.follower.complete_to
        ]
        if ahead and now >= self._next_ask:
            self._next_ask = now + self.context.policy.heartbeat_interval
            self.transfers.ask(ahead[0].node_id, self.backlog.chart_ids())

    def __repr__(self) -> str:
        return f"Replica({self.context.node_id!r}, {self.embedder.fingerprint!r}, {len(self.store)} charts)"
