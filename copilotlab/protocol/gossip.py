"""How settings reach every node: each tells its peers all that it knows of them, until they say that they know it too.

A peer is told at once, and again at each of its heartbeats until it has answered, so a lost word, a node that was away
and one that starts anew all come to know the same; where nobody has set anything, nothing is said.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from contextlib import suppress

from copilotlab.monitoring.happenings import ToggleSet
from copilotlab.protocol import events
from copilotlab.protocol.carrier import CarrierAway
from copilotlab.protocol.context import check_name
from copilotlab.protocol.coordinator import Coordinator
from copilotlab.protocol.peers import Peers

TELLERS = 4  # nodes that tell a peer at each of its heartbeats, on average: be they hundreds, it hears no more


class Gossip:
    """One node's part in spreading the settings of its `Toggles`."""

    def __init__(self, coordinator: Coordinator, peers: Peers) -> None:
        self._coordinator = coordinator
        self._context = coordinator.context
        self._peers = peers
        self._chance = random.Random(coordinator.context.node_id)

    def set(self, changes: Mapping[str, object], *, node: str, by: str, at: float) -> int:
        """Set toggles for one node, "" for all, and tell the peers; return the version. See `Toggles.set`.

        With Redis away it holds here at once, and the others are told when Redis is back.
        """
        check_name("by", by)
        if node:
            check_name("node_id", node)
        made = self._context.toggles.set(changes, node=node, by=by, at=at)
        self._tell(made)
        self.say()
        return made[0].version

    def say(self) -> None:
        """Tell all living peers; who cannot be told now is told at a heartbeat."""
        with suppress(CarrierAway):
            for peer in self._peers.alive(self._context.clock.now()):
                self._say_to(peer.node_id, answer=True)

    def heard_beat(self, source: str) -> None:
        """Tell a peer that has just beaten, if as far as it said it knows something else. Raises CarrierAway."""
        now = self._context.clock.now()
        peer = self._peers.get(source, now)
        if peer is None or peer.settings == self._context.toggles.digest:
            return
        if self._chance.random() * len(self._peers.alive(now)) < TELLERS:
            self._say_to(source, answer=True)

    def heard(self, source: str, event: events.SettingsHeld) -> None:
        """Take in what a peer knows, and answer if it asks for that. Raises CarrierAway."""
        self._tell(self._context.toggles.learn(event.settings))
        if (peer := self._peers.get(source, self._context.clock.now())) is not None:
            peer.settings = event.digest
        if event.answer:
            self._say_to(source, answer=False, known=event.digest)

    def _say_to(self, node_id: str, *, answer: bool, known: str = "") -> None:
        toggles = self._context.toggles
        settings = [] if known == toggles.digest else toggles.settings
        self._coordinator.tell(node_id, events.SettingsHeld(toggles.digest, answer, settings))

    def _tell(self, settings: list[events.Setting]) -> None:
        for it in settings:
            self._context.tell(ToggleSet(it.name, repr(it.value), it.node, it.version, it.by, it.source))

    def __repr__(self) -> str:
        return f"Gossip({self._context.toggles!r})"
