"""What one node knows of the cluster: the flags seen in Redis, which batch counts, which nodes' news it missed.

Nothing here asks anybody: the caller reads the clock and Redis, and hands in what it found. All of it changes here,
under one lock, which is held for no longer than that.
"""

from __future__ import annotations

import threading
from math import inf
from typing import NamedTuple

ANYBODY = ""
"""The suspect after a lost connection: news of any node may have been missed."""


class Flags(NamedTuple):
    """The flags in Redis.

    batch_holder: the node that has the lease for a batch of our model, None if nobody has; owed: whether a rebuild is
    owed; epoch: of the last lease, 0 where leases have none.
    """

    batch_holder: str | None
    owed: bool
    epoch: int = 0


class View:
    """One node's picture of the cluster. Safe for threads.

    now: seconds on the node's clock, as everywhere below. grace: seconds without a step of listening after which this
    node counts as having slept: by then the others take it for dead. Infinite where nodes hear no heartbeats.
    """

    def __init__(self, now: float, grace: float) -> None:
        self._lock = threading.Lock()
        self._grace = grace
        self._flags = Flags(None, False)
        self._free_since = -inf  # when Redis showed that a batch is over whose end was not heard
        self._accepted = ("", 0)  # the batch whose events are taken in, and its epoch
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
        """The highest revision that was left to a batch; 0 if none was. Only where nodes do not reconcile."""
        return self._awaited_revision

    def saw(self, flags: Flags, asked_at: float = -inf) -> None:
        """Note the flags that Redis has shown. asked_at: when it was asked; by default what was said is all heard."""
        with self._lock:
            if self._flags.batch_holder is not None and flags.batch_holder is None:
                self._free_since = asked_at
            self._flags = flags

    def is_quiet(self, heard_to: float) -> bool:
        """Tell whether no batch is under way, and all that the last one said was heard; see `Coordinator.heard_to`.

        Redis may show that it is over while its last chunks are still to be heard: they would be fetched twice.
        """
        with self._lock:
            return self._flags.batch_holder is None and heard_to >= self._free_since

    def batch_began(self, holder: str) -> None:
        """Note that another node's batch has begun."""
        with self._lock:
            self._flags = self._flags._replace(batch_holder=holder)

    def batch_ended(self, *, owed: bool, up_to: int | None) -> None:
        """Note that a batch is over, this node's or another's.

        owed: whether a rebuild that was owed still is; up_to: the repository's revision that it brought to all, None if
        it brought nothing.
        """
        with self._lock:
            self._flags = self._flags._replace(batch_holder=None, owed=self._flags.owed and owed)
            self._free_since = -inf
            if up_to is not None and up_to >= self._awaited_revision:
                self._awaited_revision = 0

    def await_revision(self, revision: int) -> None:
        """Note that a change of this revision was left to a batch."""
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
        """Tell whether the events of this batch are taken in."""
        return (batch, epoch) == self._accepted

    def would_accept(self, epoch: int) -> bool:
        """Tell whether a new batch of this epoch is later than the accepted one; always, where leases have no epoch."""
        known = self._accepted[1]
        return epoch > known or epoch == known == 0

    # --- what was missed --------------------------------------------------------------------------------------

    def suspect(self, source: str) -> None:
        """Note that news of ``source`` was missed, or that it holds something else than this node."""
        with self._lock:
            self._suspects[source] = None

    def suspects(self) -> list[str]:
        """List the suspects, the oldest first."""
        with self._lock:
            return list(self._suspects)

    def clear(self, source: str) -> None:
        """Forget a suspect: what was missed is mended, or cannot be, since nobody answers."""
        with self._lock:
            self._suspects.pop(source, None)

    # --- since when it hears ----------------------------------------------------------------------------------

    @property
    def away(self) -> bool:
        """Whether the connection is lost, as far as the listening thread has seen."""
        return self._away

    @property
    def back_since(self) -> float:
        """Since when this node has heard the others without a break, as far as it knows."""
        return self._back_since

    @property
    def knew_all(self) -> bool:
        """Whether, before the last outage, there was time to hear of every node."""
        return self._knew_all

    def lost(self, heard_to: float) -> bool:
        """Note that the connection has gone; False if that is known already. heard_to: see `Coordinator.heard_to`."""
        with self._lock:
            if self._away:
                return False
            self._away = True
            self._knew_all = self._has_waited(heard_to)
            return True

    def back(self, now: float, *, suspect_all: bool) -> None:
        """Note that the connection is there again."""
        with self._lock:
            self._away = False
            self._back_since = now
            if suspect_all:
                self._suspects[ANYBODY] = None

    def has_waited(self, heard_to: float) -> bool:
        """Tell whether every living node has had time to be heard since the connection came back."""
        with self._lock:
            return self._has_waited(heard_to)

    def _has_waited(self, heard_to: float) -> bool:
        return heard_to - self._back_since >= self._grace

    def slept(self, now: float) -> bool:
        """Tell whether this node has just stood still for so long that the others took it for dead."""
        return now - self._listened_at > self._grace

    def listened(self, now: float) -> float:
        """Note that a step of listening begins; return the seconds slept before it, 0.0 as a rule.

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
