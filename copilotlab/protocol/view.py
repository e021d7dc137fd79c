"""What one node knows of the cluster: what was seen in Redis, whose batch counts, whom it missed something of.

Nothing here asks anybody, and time is handed in: whoever reads the clock or Redis says what was found. All of it
changes here, under one lock, which is held for no longer than that.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

ANYBODY = ""
"""A suspect after a lost connection: something may have been missed of any node."""


class Flags(NamedTuple):
    """How things stand in Redis.

    batch_holder: the node that has the lease for a batch of our model, None if nobody has; owed: whether a rebuild is
    owed; epoch: of the last lease, 0 where leases have none.
    """

    batch_holder: str | None
    owed: bool
    epoch: int = 0


class View:
    """One node's picture of the cluster. Safe for threads.

    now: seconds on the node's clock, as everywhere below. grace: seconds without a step of listening after which this
    node has slept: the others took it for dead. Infinite where nodes hear no heartbeats.
    """

    def __init__(self, now: float, grace: float) -> None:
        self._lock = threading.Lock()
        self._grace = grace
        self._flags = Flags(None, False)
        self._accepted = ("", 0)  # the batch whose events are taken, and its epoch
        self._awaited_revision = 0
        self._suspects: dict[str, None] = {}
        self._away = False
        self._knew_all = True
        self._back_since = self._listened_at = now

    # --- flags and batches ------------------------------------------------------------------------------------

    @property
    def flags(self) -> Flags:
        """The flags in Redis, as far as this node has seen or heard."""
        return self._flags

    @property
    def accepted(self) -> tuple[str, int]:
        """The batch whose events are taken, "" before the first, and its epoch."""
        return self._accepted

    @property
    def awaited_revision(self) -> int:
        """What was left to a batch reaches up to this revision; 0 if nothing was. Only where nodes do not reconcile."""
        return self._awaited_revision

    def saw(self, flags: Flags) -> None:
        """Redis said so."""
        with self._lock:
            self._flags = flags

    def batch_began(self, holder: str) -> None:
        """Another node said that its batch begins."""
        with self._lock:
            self._flags = self._flags._replace(batch_holder=holder)

    def batch_ended(self, *, owed: bool, up_to: int | None) -> None:
        """A batch is over, this node's or another's.

        owed: whether a rebuild that was owed still is; up_to: the repository's revision that it brought to all, None if
        it brought nothing.
        """
        with self._lock:
            self._flags = self._flags._replace(batch_holder=None, owed=self._flags.owed and owed)
            if up_to is not None and up_to >= self._awaited_revision:
                self._awaited_revision = 0

    def await_revision(self, revision: int) -> None:
        """A change of this revision was left to a batch."""
        with self._lock:
            self._awaited_revision = max(self._awaited_revision, revision)

    def accept(self, batch: str, epoch: int) -> bool:
        """Take the events of this batch from now on, and of no other; False if a later one was accepted meanwhile."""
        with self._lock:
            if epoch < self._accepted[1]:
                return False
            self._accepted = (batch, epoch)
            return True

    def accepts(self, batch: str, epoch: int) -> bool:
        """Whether the events of this batch are taken."""
        return (batch, epoch) == self._accepted

    def would_accept(self, epoch: int) -> bool:
        """Whether a batch that was not heard of is later than the one that was; where leases have no epoch, it is."""
        known = self._accepted[1]
        return epoch > known or epoch == known == 0

    # --- what was missed --------------------------------------------------------------------------------------

    def suspect(self, source: str) -> None:
        """Something that ``source`` said was missed, or it holds something else."""
        with self._lock:
            self._suspects[source] = None

    def suspects(self) -> list[str]:
        """Whom something was missed of, the first first."""
        with self._lock:
            return list(self._suspects)

    def clear(self, source: str) -> None:
        """It is mended, or cannot be: nobody answers."""
        with self._lock:
            self._suspects.pop(source, None)

    # --- since when it hears ----------------------------------------------------------------------------------

    @property
    def away(self) -> bool:
        """Whether the connection is lost, as far as the listener has seen."""
        return self._away

    @property
    def back_since(self) -> float:
        """Since when this node hears the others without a break, as far as it knows."""
        return self._back_since

    @property
    def knew_all(self) -> bool:
        """Whether, before the last outage, there was time to hear of every node."""
        return self._knew_all

    def lost(self, heard_to: float) -> bool:
        """The connection has gone; False if that is known already. heard_to: what was said until then was heard."""
        with self._lock:
            if self._away:
                return False
            self._away = True
            self._knew_all = self._has_waited(heard_to)
            return True

    def back(self, now: float, *, suspect_all: bool) -> None:
        """The connection is there."""
        with self._lock:
            self._away = False
            self._back_since = now
            if suspect_all:
                self._suspects[ANYBODY] = None

    def has_waited(self, heard_to: float) -> bool:
        """Whether the others had the time to say that they are there, and were heard."""
        with self._lock:
            return self._has_waited(heard_to)

    def _has_waited(self, heard_to: float) -> bool:
        return heard_to - self._back_since >= self._grace

    def slept(self, now: float) -> bool:
        """Whether this node did not run for so long that it counted as dead, and does not know it yet."""
        return now - self._listened_at > self._grace

    def listened(self, now: float) -> float:
        """A step of listening begins; the seconds that were slept before it, 0.0 as a rule.

        After a sleep this node knows nothing of the others any more.
        """
        with self._lock:
            slept = now - self._listened_at if self.slept(now) else 0.0
            self._listened_at = now
            if slept:
                self._back_since = now
                self._suspects[ANYBODY] = None
            return slept

    def __repr__(self) -> str:
        return f"View({self._flags}, batch {self._accepted}, {len(self._suspects)} suspects)"
