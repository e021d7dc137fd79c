"""When a batch begins, what drives it, and what follows when it ends."""

from __future__ import annotations

import threading
import uuid

from copilotlab.embedding import Embedder
from copilotlab.lifetime import Bell, Latch
from copilotlab.monitoring.happenings import BatchBegan, BatchEnded, BatchFailed
from copilotlab.protocol.batch import Batch, Kind
from copilotlab.protocol.carrier import CarrierAway
from copilotlab.protocol.coordinator import Coordinator
from copilotlab.protocol.follower import Follower
from copilotlab.protocol.inquiry import Inquiry
from copilotlab.protocol.lease import Grant
from copilotlab.protocol.outbox import Outbox
from copilotlab.protocol.peers import Peers
from copilotlab.protocol.sync import Sync
from copilotlab.protocol.transfer import Transfers
from copilotlab.protocol.view import View
from copilotlab.store import VectorStore

LONGEST_PAUSE = 60.0  # seconds between two tries of a batch that fails


class Batches:
    """The batches of one replica, one at a time.

    stopping: set once no batch may begin any more. wake: rung when one has ended.
    """

    def __init__(
        self,
        embedder: Embedder,
        store: VectorStore,
        coordinator: Coordinator,
        view: View,
        peers: Peers,
        transfers: Transfers,
        follower: Follower,
        looks: Sync,
        outbox: Outbox,
        *,
        stopping: Latch,
        wake: Bell,
    ) -> None:
        self._embedder = embedder
        self._store = store
        self._coordinator = coordinator
        self._view = view
        self._peers = peers
        self._transfers = transfers
        self._follower = follower
        self._looks = looks
        self._outbox = outbox
        self._stopping = stopping
        self._wake = wake
        self._lock = threading.Lock()
        self._next_try = coordinator.context.clock.now()
        self._pause = coordinator.context.policy.probe_interval
        self._unreleased: Grant | None = None  # of a batch that ended while Redis was away
        self.present: Batch | None = None
        """The batch under way."""
        self.failure: BaseException | None = None
        """The error that the last batch failed with; None if it did not."""

    @property
    def are_owed(self) -> bool:
        """Whether a rebuild is owed that nodes begin by themselves, as far as this node has seen."""
        return self._view.flags.owed and self._coordinator.context.policy.rebuild_at_reconnect

    def begin(
        self, kind: Kind, *, without_redis: bool = False, since: int = 0, ask_peers: bool = True, if_owed: bool = False
    ) -> Batch | None:
        """Begin a batch under the lease; None if another node has it, one is under way here, or this node was stopped.

        without_redis: begin without a lease where Redis is away, or publishing is off; else that gives None too. since:
        the revision after which the catalogue is taken in, 0 for all of it. ask_peers: fetch what they have before it
        is made. if_owed: begin only if a rebuild is still owed: another node may have done it since this one looked.
        """
        context = self._coordinator.context
        with self._lock:
            if self.present is not None or self._stopping.is_set():
                return None
            grant, alone = None, not context.toggles.now.publishing
            if not alone:
                try:
                    grant = self._coordinator.lease.take(if_owed=if_owed)
                except CarrierAway:
                    alone = True
            if grant is None and not (alone and without_redis):
                return None
            if grant is not None and grant.owed:
                since = 0  # nothing less than the whole catalogue makes up for a rebuild that is owed
            name, inquiry = uuid.uuid4().hex, None
            if ask_peers and grant is not None and context.policy.reconcile:
                parts = self._coordinator, self._view, self._peers, self._transfers
                left_by = grant.left_by if grant.left_by != context.node_id else ""
                inquiry = Inquiry(name, *parts, left_by=left_by)
            batch = Batch(
                kind,
                name=name,
                grant=grant,
                embedder=self._embedder,
                store=self._store,
                follower=self._follower,
                coordinator=self._coordinator,
                since=since,
                inquiry=inquiry,
            )
            if batch.epoch:
                self._view.accept(batch.name, batch.epoch)  # what was said under an earlier lease is over
            context.tell(BatchBegan(kind, batch.epoch, grant is None, bool(grant and grant.left_by)))
            self.present = batch  # from now on a thread may drive it
            return batch

    def begin_what_is_due(self, now: float, due: int | None) -> bool:
        """Begin a batch if it is time for one; True if it began.

        due: the revision after which something is ours to embed; None if nothing is: then only a rebuild that is owed
        begins.
        """
        if now < self._next_try or self._view.flags.batch_holder is not None:
            return False
        if due is None and not self.are_owed:
            return False
        self._next_try = now + self._coordinator.context.policy.probe_interval
        since = 0 if due is None or self.are_owed else due
        return self.begin("rebuild", since=since, if_owed=due is None) is not None

    def advance(self) -> bool:
        """Take one step of the present batch; False if there is none, or it waits for its peers.

        One that is for all ends where publishing was turned off: another node, which may publish, does the rest.
        """
        batch = self.present
        if batch is None:
            return False
        if batch.grant is not None and not self._coordinator.context.toggles.now.publishing:
            batch.cancel()
        progress = False
        try:
            progress = batch.advance()
        except Exception as error:  # noqa: BLE001 - the model and the database are foreign code; the caller gets it
            batch.error = error
            self._coordinator.context.tell(BatchFailed(batch.kind, repr(error)))
        finally:  # after an interrupt of the thread that drives it, too
            if batch.over:
                self._conclude(batch)
        return progress or batch.over

    def _conclude(self, batch: Batch) -> None:
        context, result = self._coordinator.context, batch.result
        now, failed = context.clock.now(), batch.error is not None
        with self._lock:
            self.present = None
        self._outbox.owe(sorted(batch.unsaid))
        if batch.unreleased and batch.epoch:
            self._unreleased = batch.grant
        self.failure = batch.error
        self._view.batch_ended(owed=failed, up_to=batch.revision if result.outcome == "published" else None)
        if batch.whole and result.outcome in ("published", "local"):
            self._looks.done(now)
        self._pause = min(LONGEST_PAUSE, 2 * self._pause) if failed else context.policy.probe_interval
        self._next_try = now + self._pause
        self._looks.soon()
        self._wake.set()
        counts = result.charts, result.embedded, result.removed
        context.tell(BatchEnded(batch.kind, result.outcome, *counts, result.seconds, result.reused))
        batch.finished.set()

    def heard_of(self, epoch: int) -> None:
        """Fence the present batch if another node's has a later epoch.

        A batch that waits for its peers says nothing, and would not notice by itself.
        """
        if (own := self.present) is not None and own.epoch and own.epoch < epoch:
            own.fence()

    def connection_lost(self) -> None:
        """Have the present batch ask its peers again: the connection was lost, and with it their answers."""
        if (batch := self.present) is not None and batch.inquiry is not None:
            batch.inquiry.forget()

    def give_back(self) -> None:
        """Give back a lease that could not be given back when its batch ended. Raises CarrierAway."""
        if self._unreleased is not None:
            self._coordinator.lease.release(self._unreleased, recovered=False)
            self._unreleased = None

    def cancel(self) -> None:
        """End the present batch after its chunk; takes no lock."""
        if (batch := self.present) is not None:
            batch.cancel()

    def end(self) -> None:
        """End the present batch now. To be called once no thread begins or drives one any more."""
        with self._lock:  # a caller may be just beginning one
            batch = self.present
        if batch is not None:
            batch.cancel()
            self.advance()

    def __repr__(self) -> str:
        return f"Batches({self.present or 'none under way'})"
