"""What is known to be missing here, fetched from the nodes that have it."""

from __future__ import annotations

from copilotlab.monitoring.happenings import Reconciling
from copilotlab.protocol.backlog import Backlog
from copilotlab.protocol.carrier import CarrierAway
from copilotlab.protocol.context import Context
from copilotlab.protocol.coordinator import Coordinator
from copilotlab.protocol.follower import Follower
from copilotlab.protocol.peers import Peers
from copilotlab.protocol.transfer import Transfers
from copilotlab.protocol.view import ANYBODY, View
from copilotlab.store import VectorStore


class Mending:
    """Which node one replica asks next, and for what; only the thread that works may call it."""

    def __init__(
        self,
        context: Context,
        store: VectorStore,
        coordinator: Coordinator,
        view: View,
        peers: Peers,
        transfers: Transfers,
        backlog: Backlog,
        follower: Follower,
    ) -> None:
        self._context = context
        self._store = store
        self._coordinator = coordinator
        self._view = view
        self._peers = peers
        self._transfers = transfers
        self._backlog = backlog
        self._follower = follower
        self._next_ask = context.clock.now()

    def begin(self, now: float) -> None:
        """Begin to fetch what is known to be missing, unless a transfer is under way."""
        if self._transfers.peer:
            return
        try:
            self._reconcile()
            if not self._transfers.peer and self._backlog and self._view.is_quiet(self._coordinator.heard_to):
                self._ask_for_missing(now)
        except CarrierAway:
            return  # the listening thread sees that too, and knows whether Redis is back already

    def _reconcile(self) -> None:
        """Fetch from the first suspect that has said what it holds; one that never does holds up nothing."""
        now = self._coordinator.heard_to
        for source in self._view.suspects():
            known = self._peers.get(source, now)
            living = [known] if known is not None else self._peers.alive(now)
            told = [peer for peer in living if peer.digest]
            if told:
                self._view.clear(source)
                if told[0].digest != self._store.digest:
                    self._context.tell(Reconciling(told[0].node_id))
                    self._transfers.reconcile(told[0].node_id)
                    return
            elif not living and (source != ANYBODY or self._view.has_waited(now)):
                self._view.clear(source)  # there is no node to ask

    def _ask_for_missing(self, now: float) -> None:
        ahead = [
            peer
            for peer in self._peers.alive(self._coordinator.heard_to)
            if peer.complete_to > self._follower.complete_to
        ]
        if ahead and now >= self._next_ask:
            self._next_ask = now + self._context.policy.heartbeat_interval
            self._transfers.ask(ahead[0].node_id, self._backlog.chart_ids())

    def __repr__(self) -> str:
        return f"Mending({self._context.node_id!r}, {len(self._backlog)} missing)"
