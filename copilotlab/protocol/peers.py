"""The other nodes, as far as one node has heard: which live, which news of theirs was missed, which hold other data.

Nothing here speaks to Redis: it is told of envelopes, and of the time at which they came.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from copilotlab.protocol import events

ALIVE_BEATS = 3  # a node that was silent for so many heartbeats is not asked for anything
NO_SETTINGS = "0" * 32  # the digest of none: nobody has set anything
MOST = 1_000  # nodes that are remembered; as many strangers, too


@dataclass(slots=True)
class Peer:
    """Another node, by what it said last.

    session, number: of its last event; heard: when that came; digest ("" before the first), charts, complete_to, batch:
    of its last heartbeat; differed: its digest and ours at its last heartbeat, None if they were the same; settings:
    the digest of those that it holds, as far as it said.
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
    settings: str = NO_SETTINGS


class Peers:
    """The other nodes of the same model.

    heartbeat_interval: seconds between two heartbeats of a node.
    """

    def __init__(self, heartbeat_interval: float) -> None:
        self._limit = ALIVE_BEATS * heartbeat_interval
        self._peers: dict[str, Peer] = {}
        self._expected: set[str] = set()

    def note(self, envelope: events.Envelope, now: float) -> bool:
        """Note an event; True if something that its sender said earlier was missed."""
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
        """Note what a node holds; True if its digest and ours have differed, both unchanged, for a whole heartbeat.

        While changes are on their way, digests differ for a moment. If both stay as they are and still differ,
        something will not come by itself.
        """
        peer = self._peers[node_id]
        peer.digest, peer.charts = heartbeat.digest, heartbeat.charts
        peer.complete_to, peer.batch = heartbeat.complete_to, heartbeat.batch
        differ = (heartbeat.digest, own_digest) if heartbeat.digest != own_digest else None
        settled = differ is not None and differ == peer.differed
        peer.differed = differ
        return settled

    def alive(self, now: float) -> list[Peer]:
        """List the nodes heard of late, the one that holds most first."""
        everybody = list(self._peers.values())  # a copy, made at once: the listening thread adds to them
        living = [peer for peer in everybody if now - peer.heard <= self._limit]
        return sorted(living, key=lambda peer: (-peer.complete_to, -peer.charts, peer.node_id))

    def left(self, node_id: str) -> None:
        """Forget a node that has left in order."""
        self._peers.pop(node_id, None)
        self._expected.discard(node_id)

    def known(self) -> list[Peer]:
        """List all nodes that are remembered, the silent ones too."""
        return list(self._peers.values())

    def get(self, node_id: str, now: float) -> Peer | None:
        """Return that node; None if it was not heard of late."""
        peer = self._peers.get(node_id)
        return peer if peer is not None and now - peer.heard <= self._limit else None

    def went_silent(self, now: float) -> None:
        """Note that the connection was lost: nodes alive now are expected back, and what they held is forgotten."""
        self._expected = {peer.node_id for peer in self.alive(now)}
        for peer in self._peers.values():
            peer.digest, peer.differed = "", None

    def expected(self) -> set[str]:
        """Return the nodes that were alive when the connection was lost and have not been heard since."""
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

    A copy has the same incarnation and the same key; its nodes' heartbeats show that it went another way.
    """

    def __init__(self) -> None:
        self._strangers: set[str] = set()
        self._told: dict[str, tuple[int, float]] = {}  # the repository's revision that a node named last, and when

    def note(
        self, source: str, revision: int, now: float, *, last_look: tuple[float, int] | None, differs: bool
    ) -> None:
        """Note the revision of the repository that a node has read.

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
