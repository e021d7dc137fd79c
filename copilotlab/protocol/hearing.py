"""What the other nodes and watchers say, applied here: vectors, deletions, heartbeats, batches, questions, orders."""

from __future__ import annotations

from collections.abc import Callable

from copilotlab.lifetime import Bell
from copilotlab.monitoring.happenings import (
    Applied,
    BatchHeard,
    ChunkMissed,
    DigestsDiffered,
    GapSeen,
    Unlistened,
)
from copilotlab.protocol import events
from copilotlab.protocol.batches import Batches
from copilotlab.protocol.context import Context
from copilotlab.protocol.coordinator import Coordinator
from copilotlab.protocol.follower import Follower
from copilotlab.protocol.gossip import Gossip
from copilotlab.protocol.outbox import Outbox
from copilotlab.protocol.peers import Peers, Strangers
from copilotlab.protocol.sync import Sync
from copilotlab.protocol.transfer import Transfers
from copilotlab.protocol.view import View
from copilotlab.store import Record, VectorStore

NEWS = (events.UPDATES, events.DELETIONS)  # channels of nothing else than what became of charts
ANSWERS_UNDER_WAY = 2  # heartbeats that answer newcomers: each serves all that came before it, be they hundreds


def _is_news(event: events.Event) -> bool:
    """Tell whether an event says what became of charts, and not how nodes are, or what they ask each other."""
    return events.CHANNEL_OF[type(event)] in NEWS or isinstance(event, events.BatchChunk | events.BatchChunkStored)


class Hearing:
    """What one replica makes of what it hears; only the thread that listens may call it.

    beat_soon: called where somebody waits to hear of this node; ordered: is given who orders what; wake: rung where
    that leaves something to do.
    """

    def __init__(
        self,
        context: Context,
        store: VectorStore,
        coordinator: Coordinator,
        view: View,
        peers: Peers,
        gossip: Gossip,
        transfers: Transfers,
        outbox: Outbox,
        follower: Follower,
        looks: Sync,
        batches: Batches,
        *,
        beat_soon: Callable[[], object],
        ordered: Callable[[str, events.Order], object],
        wake: Bell,
    ) -> None:
        self._context = context
        self._store = store
        self._coordinator = coordinator
        self._view = view
        self._peers = peers
        self._gossip = gossip
        self._transfers = transfers
        self._outbox = outbox
        self.follower = follower
        self._looks = looks
        self._batches = batches
        self._beat_soon = beat_soon
        self._ordered = ordered
        self._wake = wake
        self.strangers = Strangers()

    def take(self, envelope: events.Envelope) -> None:
        """Apply what a node or a watcher said. Raises CarrierAway, where what it says has to be fetched."""
        source, event = envelope.source, envelope.event
        if envelope.session == events.WATCHER:
            if isinstance(event, events.ManifestWanted | events.RecordsWanted):
                self._transfers.answer(source, event)
            elif isinstance(event, events.Order):
                self._ordered(source, event)
            return
        if self._reads_another_copy(source, event):
            return
        if self._context.policy.reconcile and self._peers.note(envelope, self._context.clock.now()):
            self._context.tell(GapSeen(source))
            self._view.suspect(source)
            self._wake.set()
        if _is_news(event) and not self._context.toggles.now.listening:
            self._context.tell(Unlistened(source))  # digests will differ, and what they say is fetched once it is on
            return
        match event:
            case events.ChartUpdated(record):
                self._take(self._coordinator.records([record]))
            case events.ChartsUpdated(bulk):
                self._fetch_page(source, bulk)
            case events.ChartDeleted(chart_id, revision):
                self._applied(int(self._store.remove(chart_id, revision)))
            case events.Heartbeat() as heartbeat:
                self._note_heartbeat(source, heartbeat)
            case events.Farewell():
                self._peers.left(source)
            case events.BulkReady() as ready:
                self._transfers.arrived(source, ready)
                self._wake.set()
            case events.ManifestWanted() | events.RecordsWanted() as question:
                self._transfers.answer(source, question)
            case events.SettingsHeld() as held:
                self._gossip.heard(source, held)
                self._wake.set()
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
                self._context.clock.now(),
                last_look=follower.last_look,
                differs=follower.contradicts(event.revision, event.catalogue),
            )
        if source not in self.strangers:
            return False
        reason = f"node {source!r} reads another copy of this catalogue, which went another way: give each a namespace"
        self._coordinator.reject(events.EventRejected("copy", reason))
        return True

    def _apply_batch(
        self,
        source: str,
        event: events.BatchStarted | events.BatchChunk | events.BatchChunkStored | events.BatchFinished,
    ) -> None:
        if not self._accepts(event.batch, event.epoch):
            reason = f"a batch of epoch {event.epoch}, over since {self._view.accepted[1]}"
            self._coordinator.reject(events.EventRejected("epoch", reason))
            return
        match event:
            case events.BatchStarted():
                self._context.tell(BatchHeard(source, f"begins, epoch {event.epoch}"))
                self._batches.heard_of(event.epoch)
                self._view.batch_began(source)
                self._beat_soon()  # the holder asks the nodes that answer
            case events.BatchChunk():
                self._take(self._coordinator.records(event.records))
            case events.BatchChunkStored():
                self._fetch_page(source, event.bulk)
            case events.BatchFinished():
                self._finish_heard(source, event)

    def _accepts(self, batch: str, epoch: int) -> bool:
        """Accept one batch at a time: the first that is heard of the highest epoch, if Redis confirms that epoch."""
        if self._view.accepts(batch, epoch):
            return True
        if not (self._view.would_accept(epoch) and self._coordinator.lease.is_current(epoch)):
            return False
        return self._view.accept(batch, self._coordinator.lease.counted(epoch))

    def _fetch_page(self, source: str, bulk: str) -> None:
        payload = self._coordinator.get_bulk(bulk)
        if payload is None:  # this node slept for longer than the page was kept
            self._context.tell(ChunkMissed(source))
            self._view.suspect(source)
            return
        try:
            records = self._coordinator.decode_records(payload)
        except events.EventRejected as error:
            self._coordinator.reject(error)
            return
        self._take(records)

    def _take(self, records: list[Record]) -> None:
        taken = self._store.put_many(records)
        self._applied(taken)
        policy = self._context.policy
        if taken == len(records) or not policy.ordered or policy.reconcile:
            return
        # The same text embedded in another batch differs in its last bits. Where two vectors of one revision meet, the
        # larger hash wins everywhere, so a node that holds the larger one says so. (Where nodes reconcile, digests do.)
        for record in records:
            held = self._store.get(record.chart_id)
            if held is None or held.revision != record.revision or held.vector_hash <= record.vector_hash:
                continue
            self._outbox.say(events.ChartUpdated(events.pack(held)), held.chart_id)

    def _applied(self, charts: int) -> None:
        if charts:
            self._context.tell(Applied(charts))

    def _finish_heard(self, source: str, event: events.BatchFinished) -> None:
        self._view.batch_ended(owed=False, up_to=event.revision)
        policy = self._context.policy
        if policy.ordered and not policy.reconcile and event.chart_ids is not None:
            try:
                chart_ids = events.unpack_ids(event.chart_ids)
            except events.EventRejected as error:
                self._coordinator.reject(error)
                return
            self._applied(len(self._store.retain(chart_ids, event.revision)))
        self._context.tell(BatchHeard(source, f"has ended: {event.total} records to revision {event.revision}"))
        self._looks.soon()
        self._wake.set()

    def _note_heartbeat(self, source: str, heartbeat: events.Heartbeat) -> None:
        if heartbeat.newcomer and self._coordinator.beats_under_way < ANSWERS_UNDER_WAY:
            self._beat_soon()
        self._gossip.heard_beat(source)
        differs = self._peers.note_heartbeat(source, heartbeat, self._store.digest)
        if differs and self._view.is_quiet(self._coordinator.heard_to):
            self._context.tell(DigestsDiffered(source))
            self._view.suspect(source)
            self._wake.set()

    def __repr__(self) -> str:
        return f"Hearing({self._context.node_id!r}, {self.strangers})"
