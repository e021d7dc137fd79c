"""Who else is there, as far as one node has heard: who lives, what was missed of whom, and who holds something else.

Nothing here speaks to Redis. What goes in are envelopes, with the time at which they came.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from copilotlab.protocol import events

ALIVE_BEATS = 3  # a node that was silent for so many heartbeats is not asked for anything
MOST = 1_000  # nodes that are remembered, and as many strangers


@dataclass(slots=True)
class Peer:
    """Another node, by what it said last.

    session, number: of its last event; heard: when; digest ("" before the first), charts, complete_to, batch: of its
    last heartbeat; differed: its digest and ours at the last heartbeat at which they were unlike.
    """

    node_id: str
    session: int
    number: int
    heard: float
    digest: str = ""
    charts: int = 0
    complete_to: int = 0
    batch: str = ""
    differed: tuple[str, str] | None = None


class Peers:
    """The other nodes of the same model.

    heartbeat_interval: seconds between two heartbeats of a node.
    """

    def __init__(self, heartbeat_interval: float) -> None:
        self._limit = ALIVE_BEATS * heartbeat_interval
        self._peers: dict[str, Peer] = {}
        self._expected: set[str] = set()

    def note(self, envelope: events.Envelope, now: float) -> bool:
        """Take notice of an event; True if something that its sender said before it was missed."""
        peer = self._peers.get(envelope.source)
        if peer is None or peer.session != envelope.session:
            self._forget_one()
            peer = self._peers[envelope.source] = Peer(envelope.source, envelope.session, 0, now)
        peer.heard = now
        self._expected.discard(envelope.source)
        if not envelope.number:
            return False
        missed = envelope.number > peer.number + 1
        peer.number = max(peer.number, envelope.number)
        return missed

    def note_heartbeat(self, node_id: str, heartbeat: events.Heartbeat, own_digest: str) -> bool:
        """Take notice of what a node holds; True if it and we have differed, unchanged, for a heartbeat.

        While changes are on their way digests differ for a moment. That both stay as they are and still differ means
        that something will not come by itself.
        """
        peer = self._peers[node_id]
        peer.digest, peer.charts = heartbeat.digest, heartbeat.charts
        peer.complete_to, peer.batch = heartbeat.complete_to, heartbeat.batch
        differ = (heartbeat.digest, own_digest) if heartbeat.digest != own_digest else None
        settled = differ is not None and differ == peer.differed
        peer.differed = differ
        return settled

    def alive(self, now: float) -> list[Peer]:
        """The nodes heard of late, the one that holds most first."""
        everybody = list(self._peers.values())  # at once: the listener's thread adds to them
        living = [peer for peer in everybody if now - peer.heard <= self._limit]
        return sorted(living, key=lambda peer: (-peer.complete_to, -peer.charts, peer.node_id))

    def get(self, node_id: str, now: float) -> Peer | None:
        """That node, if it was heard of late."""
        peer = self._peers.get(node_id)
        return peer if peer is not None and now - peer.heard <= self._limit else None

    def went_silent(self, now: float) -> None:
        """The connection was lost: who lived now is expected back, and what they held is no news by then."""
        self._expected = {peer.node_id for peer in self.alive(now)}
        for peer in self._peers.values():
            peer.digest, peer.differed = "", None

    def expected(self) -> set[str]:
        """Who lived when the connection was lost and was not heard of since."""
        return set(self._expected)

    def _forget_one(self) -> None:
        if len(self._peers) >= MOST:
            longest = min(self._peers.values(), key=lambda peer: peer.heard)
            del self._peers[longest.node_id]

    def __len__(self) -> int:
        return len(self._peers)

    def __repr__(self) -> str:
        return f"Peers({', '.join(sorted(self._peers)) or 'none'})"


class Strangers:
    """The nodes that read another copy of the catalogue, such as a restored backup.

    Such a one has the same incarnation, and the same key; that it went another way its heartbeats tell.
    """

    def __init__(self) -> None:
        self._strangers: set[str] = set()
        self._told: dict[str, tuple[int, float]] = {}  # the repository's revision that a node told last, and when

    def note(
        self, source: str, revision: int, now: float, *, last_look: tuple[float, int] | None, differs: bool
    ) -> None:
        """Take notice of the revision of the repository that a node has read.

        last_look: when this node has read it last, and its revision then. differs: whether the repository had another
        digest at that revision than the node says.
        """
        before, heard_at = self._told.get(source, (0, inf))
        if len(self._told) >= MOST:
            self._told.clear()
        self._told[source] = revision, now
        never_was = last_look is not None and last_look[0] > heard_at and min(before, revision) > last_look[1]
        self._strangers.discard(source)
        if (never_was or differs) and len(self._strangers) < MOST:
            self._strangers.add(source)

    def __contains__(self, source: str) -> bool:
        return source in self._strangers

    def __repr__(self) -> str:
        return f"Strangers({', '.join(sorted(self._strangers)) or 'none'})"
