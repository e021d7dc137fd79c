"""The journal: what happened on a node, for people."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from copilotlab.clock import Clock
from copilotlab.monitoring.happenings import Happening

if TYPE_CHECKING:
    import polars as pl


OFTEN = 10  # lines in a minute of a warning that comes on and on; all are counted


class Entry(NamedTuple):
    """One line of a journal: when (seconds on the node's clock), who, what, and the particulars in words."""

    time: float
    node_id: str
    event: str
    detail: str


class Journal:
    """The last things that happened on one node, the newest last; also sent to the node's logger. Safe for threads.

    limit: how many entries are kept, 10,000 by default: a journal never grows without bound.
    """

    def __init__(self, node_id: str, clock: Clock, *, limit: int = 10_000) -> None:
        self._node_id = node_id
        self._clock = clock
        self._entries: deque[Entry] = deque(maxlen=limit)
        self._log = logging.getLogger("copilotlab.node")
        self._said: dict[str, deque[float]] = {}  # when a warning of each kind was written last

    def __call__(self, happening: Happening) -> None:
        """Write the line of ``happening``, if it has one; this makes a journal a listener."""
        line = happening.line
        if line is None:
            return
        level = line.level
        if line.once:
            now, said = self._clock.now(), self._said.setdefault(line.event, deque(maxlen=OFTEN))
            if len(said) == OFTEN and now - said[0] < 60.0:
                return  # else one that comes at each heartbeat of each peer would leave room for nothing else
            level = logging.DEBUG if said else level
            said.append(now)
        self.note(line.event, line.detail, level=level)

    def note(self, event: str, detail: str = "", *, level: int = logging.DEBUG) -> None:
        """Write one entry."""
        self._entries.append(Entry(self._clock.now(), self._node_id, event, detail))
        self._log.log(level, "node %s: %s %s", self._node_id, event.replace("_", " "), detail)

    def entries(self) -> list[Entry]:
        """Return a copy of the entries that are kept."""
        return list(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"Journal({self._node_id!r}, {len(self)} entries)"


def timeline(journals: list[Journal], *, start: float = 0.0) -> pl.DataFrame:
    """Merge the entries of several journals by time: ``seconds`` since ``start``, ``node``, ``event``, ``detail``.

    Entries of the same moment are in the order of the journals, and of each journal's own entries.
    """
    import polars as pl

    entries = sorted((entry for journal in journals for entry in journal.entries()), key=lambda entry: entry.time)
    return pl.DataFrame(
        {
            "seconds": [entry.time - start for entry in entries],
            "node": [entry.node_id for entry in entries],
            "event": [entry.event for entry in entries],
            "detail": [entry.detail for entry in entries],
        },
        schema={"seconds": pl.Float64, "node": pl.String, "event": pl.String, "detail": pl.String},
    )
