"""Before a batch embeds, it asks its peers: what they have is fetched, and not made again.

Every node that hears that a batch begins answers with a heartbeat, and Redis says how many heard it. The node that
holds the lease hears it too, after all that was said before.
"""

from __future__ import annotations

from collections.abc import Callable

from copilotlab.protocol.carrier import CarrierAway
from copilotlab.protocol.coordinator import Coordinator
from copilotlab.protocol.peers import Peers
from copilotlab.protocol.transfer import Transfers
from copilotlab.protocol.view import View

LONGEST_SILENCE = 3  # times the patience with one peer: the longest that a batch waits for all of them


class Inquiry:
    """The questions of one batch to its peers.

    batch: the batch's name. left_by: another node that left its lease behind, "" if none did. It may be away and
    alive, and have gone on with its batch, so it is given the time to come back.
    """

    def __init__(
        self,
        batch: str,
        coordinator: Coordinator,
        view: View,
        peers: Peers,
        transfers: Transfers,
        *,
        left_by: str = "",
    ) -> None:
        self._batch = batch
        self._left_by = left_by
        self._coordinator = coordinator
        self._view = view
        self._peers = peers
        self._transfers = transfers
        now = coordinator.context.clock.now()
        self._begun = self._asking_since = self._asked_at = now
        self._announced = 0  # the number of the event by which this node said that it begins
        self._asked: set[tuple[str, int]] = set()  # who was asked, and which time that was
        self._times = 0  # how often it began to ask anew
        self._fetched = (transfers.taken, now)  # how much had come, and when the last of it came
        self.audience = 0
        """How many other nodes listened to the last thing that the batch said."""
        self.has_asked = False
        """Whether all who listened were asked for what they have."""
        self.answered = False
        """Whether no node has been left to ask since the last question."""

    def begin(self) -> None:
        """Note that the batch is about to say that it begins."""
        self._begun = self._coordinator.context.clock.now()

    def announced(self, number: int) -> None:
        """Note that the batch has said so, by this node's event of that number, and knows what it lacks."""
        self._announced = number
        self._asking_since = self._coordinator.context.clock.now()

    def begin_anew(self) -> None:
        """Ask all peers once more: something that was left to others has still not come."""
        self._times += 1
        self._asking_since = self._coordinator.context.clock.now()

    def forget(self) -> None:
        """Forget who was asked: the connection was lost, and with it their answers."""
        self._asked.clear()

    def step(self, wanted: Callable[[], list[int]]) -> bool:
        """Fetch what peers have of the ``wanted`` charts; True once all who live or are expected were asked."""
        over = self._step(wanted)
        self.answered = self.answered and over
        return over

    def _step(self, wanted: Callable[[], list[int]]) -> bool:
        now, link, transfers = self._coordinator.heard_to, self._coordinator.link, self._transfers
        if not link.connected:  # for a moment, it may be
            return self.has_asked or link.away_for >= link.context.policy.rejoin_grace
        if not self.has_asked and self._awaits_answers(now):
            self._fetched = (transfers.taken, link.context.clock.now())  # no node was asked yet, so none is silent
            return False
        silent = self._silence()
        if silent >= LONGEST_SILENCE * transfers.patience:
            transfers.give_up()
            return True  # this is the limit for all of them together, however many there are
        alive = self._peers.alive(now)
        left = [peer for peer in alive if peer.digest and (peer.node_id, self._times) not in self._asked]
        if transfers.peer and left and min(silent, now - self._asked_at) >= transfers.patience:
            transfers.give_up()
        if transfers.peer:
            return False
        for peer in left:
            self._asked.add((peer.node_id, self._times))
            self._asked_at = link.context.clock.now()
            if peer.charts and (chart_ids := wanted()):
                try:
                    transfers.ask(peer.node_id, chart_ids)
                except CarrierAway:  # the listener sees that too, and knows whether it is back already
                    self._asked.discard((peer.node_id, self._times))
                return False
        return True

    def _silence(self) -> float:
        """Return for how many seconds no peer has sent anything that this batch lacked, although it could ask them."""
        taken, since = self._fetched
        if self._transfers.taken != taken:
            self._fetched = (self._transfers.taken, self._coordinator.context.clock.now())
            return 0.0
        return self._coordinator.heard_to - max(since, self._asking_since, self._view.back_since)

    def _awaits_answers(self, now: float) -> bool:
        """Tell whether a node that listens, or is expected back after an outage, may still say what it holds."""
        view, peers = self._view, self._peers
        grace = self._coordinator.context.policy.rejoin_grace
        answered = sum(peer.batch == self._batch for peer in peers.alive(now))
        unheard = self._coordinator.echoed < self._announced or answered < self.audience
        unanswered = unheard and now - max(self._begun, view.back_since) < grace
        not_back = (peers.expected() or not view.knew_all) and now - view.back_since < grace
        left = self._left_by and peers.get(self._left_by, now) is None and now - self._begun < grace
        return bool(unanswered or not_back or left)

    def __repr__(self) -> str:
        return f"Inquiry({len(self._asked)} asked, {'over' if self.answered else 'under way'})"
