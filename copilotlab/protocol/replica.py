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
from copilotlab.monitoring.happenings import Slept
from copilotlab.protocol import events
from copilotlab.protocol.backlog import Backlog
from copilotlab.protocol.batches import Batches
from copilotlab.protocol.carrier import Carrier, CarrierAway
from copilotlab.protocol.changes import Changes
from copilotlab.protocol.context import Context
from copilotlab.protocol.coordinator import Coordinator
from copilotlab.protocol.follower import Follower
from copilotlab.protocol.gossip import Gossip
from copilotlab.protocol.hearing import Hearing
from copilotlab.protocol.mending import Mending
from copilotlab.protocol.outbox import Outbox
from copilotlab.protocol.peers import ALIVE_BEATS, Peers
from copilotlab.protocol.sync import Sync
from copilotlab.protocol.threads import Threads
from copilotlab.protocol.transfer import Transfers
from copilotlab.protocol.view import ANYBODY, Flags, View
from copilotlab.store import VectorStore

LISTEN_SECONDS = 0.25  # how long the listening thread waits for one event before it looks whether to stop


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
        self.embedder = embedder
        made = VectorStore(embedder.dim, ordered=policy.ordered, exact_limit=exact_limit) if store is None else store
        self.store = made
        self._watch = watch
        self._report = report
        self.coordinator = Coordinator(
            redis, context, fingerprint=embedder.fingerprint, dim=embedder.dim, identity=charts.identity
        )
        grace = ALIVE_BEATS * policy.heartbeat_interval
        self.view = View(clock.now(), grace if policy.reconcile else inf)
        self.peers = Peers(policy.heartbeat_interval)
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
        self.hearing = Hearing(
            context,
            self.store,
            self.coordinator,
            self.view,
            self.peers,
            self.gossip,
            self.transfers,
            self.outbox,
            self.follower,
            self.looks,
            self.batches,
            beat_soon=self._beat_soon,
            ordered=lambda source, order: ordered(self, source, order),
            wake=self.threads.wake,
        )
        self.mending = Mending(
            context,
            self.store,
            self.coordinator,
            self.view,
            self.peers,
            self.transfers,
            self.backlog,
            self.follower,
        )
        self._next_beat = clock.now()

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
                self.hearing.take(envelope)
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
                self.mending.begin(now)
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

    def _beat_soon(self) -> None:
        self._next_beat = self.context.clock.now()

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

    def _speak_for(self, identity: Identity) -> None:
        """Speak for another catalogue from now on: the repository holds it in place of the one before."""
        self.coordinator.link.identity = identity
        self.view.suspect(ANYBODY)

    def __repr__(self) -> str:
        return f"Replica({self.context.node_id!r}, {self.embedder.fingerprint!r}, {len(self.store)} charts)"
