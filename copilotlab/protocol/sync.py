"""When the repository is looked at: each heartbeat for what is new, and as a whole when a sync is due."""

from __future__ import annotations

from copilotlab.charts import RepositoryError
from copilotlab.monitoring.happenings import RepositoryAway
from copilotlab.protocol.backlog import Backlog
from copilotlab.protocol.context import Context
from copilotlab.protocol.follower import Follower


class Sync:
    """When one follower looks at the repository, and when this node last held all of it."""

    def __init__(self, context: Context, follower: Follower, backlog: Backlog) -> None:
        self._context = context
        self._follower = follower
        self._backlog = backlog
        now = context.clock.now()
        self._next_look = now
        self._at_once = False
        self._whole = False  # the whole catalogue is to be compared at the next look
        self._filling = False  # the whole catalogue was read, and something of it was missing
        self._counted_from = now  # the time of the last scheduled sync
        self.last: float | None = None
        """When the whole catalogue was last compared and nothing of it was missing here; None if never."""
        self.refused = ""
        """Why the repository did not answer the last look; "" if it did."""

    def is_due(self, now: float) -> bool:
        """Tell whether the scheduled sync is due; if so, the next one is due `sync_interval` later.

        While that toggle is off none is due; one that was missed meanwhile is due once it is on again.
        """
        toggles = self._context.toggles.now
        if not toggles.scheduled_sync or now < self._counted_from + toggles.policy.sync_interval:
            return False
        self._counted_from = now
        return True

    def soon(self, *, whole: bool = False) -> None:
        """Look at the next step, without waiting for the heartbeat. whole: look at the whole catalogue."""
        if whole:
            self._whole = True
        self._at_once = True

    def done(self, now: float) -> None:
        """Note that all that the repository holds is here."""
        self.last = now

    def step(self, now: float) -> None:
        """Look, if a look is due: take in what changed there, and see whether what was missing has come."""
        if now < self._next_look and not self._at_once:
            return
        self._next_look = now + self._context.policy.heartbeat_interval
        self._at_once = False
        try:
            if self._whole:
                self._follower.start_over()
            self._follower.look()
        except RepositoryError as error:
            self.refused = str(error)
            self._context.tell(RepositoryAway(self.refused))
            return
        self.refused = ""
        self._whole = False
        self._filling = self._filling or self._follower.compared
        if self._filling and not self._backlog:
            self._filling = False
            self.done(now)

    def __repr__(self) -> str:
        return f"Sync({'never' if self.last is None else f'last at {self.last:.1f}'})"
