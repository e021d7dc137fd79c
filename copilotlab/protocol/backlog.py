"""What the repository has and one store lacks: the changes still to come, and when they become this node's to embed.

Nothing here speaks to Redis or to the repository: it is told of changes that were seen there.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from copilotlab.store import VectorStore

QUICK = 1_000  # missing changes, up to which a search may count them anew


@dataclass(slots=True)
class _Missing:
    """A change that has not come yet.

    due: when it becomes ours to embed, if nobody sends it. content_hash: of its words, b"" where it is not known.
    """

    revision: int
    due: float
    content_hash: bytes


class Backlog:
    """The changes that a store is known to lack. Safe for threads.

    store: whatever enters it is no longer missing.
    """

    def __init__(self, store: VectorStore) -> None:
        self._store = store
        self._missing: dict[int, _Missing] = {}
        self._looked_at = -1  # the store's version when what had come by then was last dropped
        self._lock = threading.Lock()

    def add(self, chart_id: int, revision: int, due: float, content_hash: bytes = b"") -> None:
        """Note a change that the store may lack. due: the time from which it is this node's to embed."""
        with self._lock:
            # A chart that is missing already does not get more time because it has changed once more.
            known = self._missing.setdefault(chart_id, _Missing(revision, due, content_hash))
            known.due = min(known.due, due)
            if revision > known.revision or (revision == known.revision and content_hash):
                known.revision, known.content_hash = revision, content_hash
            self._looked_at = -1  # it may have come just before

    def replace(self, missing: Mapping[int, tuple[int, bytes]], revision: int, due: float) -> None:
        """Replace the backlog by what the store lacks of the whole catalogue, as it was at ``revision``.

        missing: chart_id -> revision and content hash. What was missing before keeps its time if that is the earlier
        one, and changes newer than ``revision`` stay.
        """
        with self._lock:
            before = self._missing
            self._missing = {i: known for i, known in before.items() if known.revision > revision}
            for chart_id, (changed_at, content_hash) in missing.items():
                if chart_id not in self._missing:
                    waits = min(due, before[chart_id].due) if chart_id in before else due
                    self._missing[chart_id] = _Missing(changed_at, waits, content_hash)
            self._looked_at = -1

    def drop(self, chart_ids: Iterable[int]) -> None:
        """Forget that these charts are missing, whatever the store holds of them."""
        with self._lock:
            for chart_id in chart_ids:
                self._missing.pop(chart_id, None)

    def clear(self) -> None:
        """Forget all missing changes."""
        with self._lock:
            self._missing.clear()

    def due(self, now: float) -> int | None:
        """Return the lowest revision that is ours to embed now; None if nothing is."""
        self._drop_what_came()
        with self._lock:
            return min((missing.revision for missing in self._missing.values() if missing.due <= now), default=None)

    def chart_ids(self) -> list[int]:
        """List the charts that are missing, in ascending order."""
        self._drop_what_came()
        with self._lock:
            return sorted(self._missing)

    @property
    def latest(self) -> int:
        """The highest revision that is missing; -1 if nothing is."""
        with self._lock:
            return max((missing.revision for missing in self._missing.values()), default=-1)

    def expected(self) -> dict[int, tuple[int, bytes]]:
        """Return what is missing: chart_id -> revision and content hash, b"" where that is not known."""
        self._drop_what_came()
        with self._lock:
            return {i: (missing.revision, missing.content_hash) for i, missing in self._missing.items()}

    @property
    def at_most(self) -> int:
        """How many changes are missing at most, for who may not wait: counted anew only while they are few."""
        if len(self._missing) <= QUICK:
            self._drop_what_came()
        return len(self._missing)

    def absent(self) -> int:
        """Count the missing charts of which the store holds no revision at all."""
        self._drop_what_came()
        with self._lock:
            revisions, _ = self._store.heads(np.fromiter(self._missing, dtype=np.int64))
        return int((revisions < 0).sum())

    def complete_to(self, read_to: int) -> int:
        """Return the revision up to which nothing is missing. read_to: up to where the repository was read."""
        self._drop_what_came()
        with self._lock:
            return min((missing.revision - 1 for missing in self._missing.values()), default=read_to)

    def __len__(self) -> int:
        self._drop_what_came()
        return len(self._missing)

    def __repr__(self) -> str:
        return f"Backlog({len(self)} charts missing)"

    def _drop_what_came(self) -> None:
        version = self._store.version  # before it is looked at: what comes meanwhile is seen the next time
        if not self._missing or version == self._looked_at:
            return
        with self._lock:
            self._looked_at = version
            revisions, _ = self._store.heads(np.fromiter(self._missing, dtype=np.int64))
            for (chart_id, missing), held in zip(list(self._missing.items()), revisions.tolist(), strict=True):
                if max(held, self._store.tombstone(chart_id) or -1) >= missing.revision:
                    del self._missing[chart_id]
