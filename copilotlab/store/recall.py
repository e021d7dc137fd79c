"""Measure the recall of the graphs: now and then a search is repeated exactly, in the background.

One query at a time is kept. The thread that builds the graphs asks it both ways, so no search takes longer for it.
"""

from __future__ import annotations

import logging
import time
from collections import deque

from copilotlab.store.records import Floats
from copilotlab.store.snapshot import Snapshot

SHARE = 0.01  # of one core's time, at most
SHORTEST_PAUSE = 1.0  # seconds between two measurements
KEPT = 50  # measurements
ENOUGH = 5  # of them before anything is said
POOR = 0.9

_log = logging.getLogger("copilotlab.store")


class Recall:
    """The last measurements of one store, 50 at most."""

    def __init__(self) -> None:
        self._query: tuple[Floats, int] | None = None
        self._next = 0.0
        self._found: deque[tuple[int, int]] = deque(maxlen=KEPT)  # how many were right, of how many
        self._has_warned = False

    @property
    def waits(self) -> bool:
        """Whether there is something to measure."""
        return self._query is not None

    @property
    def value(self) -> float | None:
        """The share, 0 to 1, of the right answers that recent searches found; None before the first measurement."""
        found = list(self._found)
        return sum(right for right, _ in found) / sum(there for _, there in found) if found else None

    def offer(self, query: Floats, k: int) -> bool:
        """Keep this query, (dim,), for the next measurement unless it is too soon; return whether one is kept."""
        if self._query is None and time.monotonic() >= self._next:
            self._query = query.copy(), k
        return self.waits

    def measure(self, now: Snapshot) -> None:
        """Ask the kept query both ways, in the same snapshot.

        An answer is right if its score is as good as the exact answer's last: charts of equal vectors are equally good.
        """
        if self._query is None:
            return
        query, k = self._query
        began = time.monotonic()
        (given,) = now.search(query[None], k, None, exact=False)
        (exact,) = now.search(query[None], k, None, exact=True)
        took = time.monotonic() - began
        self._next = time.monotonic() + max(SHORTEST_PAUSE, took * (1 / SHARE - 1))
        self._query = None
        if len(exact.scores):
            self._found.append((int((given.scores >= exact.scores[-1]).sum()), len(exact.scores)))
        value = self.value
        if value is not None and value < POOR and len(self._found) >= ENOUGH and not self._has_warned:
            self._has_warned = True
            _log.warning(
                "searches through the graph find %.2f of what an exact search finds (the last %d that were measured, "
                "%d charts): many charts may have nearly the same words; a larger exact_limit searches exactly",
                value,
                len(self._found),
                now.live,
            )

    def clear(self) -> None:
        """Forget all measurements: searches are exact now."""
        self._query = None
        self._found.clear()

    def __repr__(self) -> str:
        return f"Recall({self.value}, {len(self._found)} measurements)"
