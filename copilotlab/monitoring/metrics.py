"""The metrics of one node: counters, for machines."""

from __future__ import annotations

import threading
from collections import Counter

from copilotlab.monitoring.happenings import Happening


class Metrics:
    """Counters of one node, by name, safe for threads."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, happening: Happening) -> None:
        """Count ``happening``; this makes the counters a listener."""
        if counts := happening.counts:
            with self._lock:
                for name, by in counts.items():
                    self._counts[name] += by

    def __getitem__(self, name: str) -> int:
        with self._lock:
            return self._counts[name]

    def as_dict(self) -> dict[str, int]:
        """Return all counters, in the order of their names."""
        with self._lock:
            return dict(sorted(self._counts.items()))

    def __repr__(self) -> str:
        return f"Metrics({self.as_dict()})"
