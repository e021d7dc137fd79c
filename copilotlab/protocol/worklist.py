"""What a batch has left to do, in what order, and what other nodes have sent meanwhile.

Newest changes go first, and texts of similar length go together, since a chunk is padded to its longest text. So the
work is cut into windows by age, and each window is sorted by length.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from copilotlab.charts import Chart, Heads
from copilotlab.protocol.follower import Follower, Words
from copilotlab.protocol.policy import Policy
from copilotlab.store import Record, VectorStore

CHUNKS_PER_WINDOW = 8
LOOK_AGAIN = 0.25  # seconds between two looks at what other nodes have claimed

T = TypeVar("T")


@dataclass(slots=True)
class Tally:
    """How far a batch is: charts to take in, taken in, embedded, kept as they were, dropped, and said to the others.

    began: when, on the node's clock.
    """

    began: float
    total: int = 0
    done: int = 0
    embedded: int = 0
    reused: int = 0
    removed: int = 0
    sent: int = 0

    @property
    def to_embed(self) -> int:
        """How many charts were embedded, or may still have to be."""
        return self.total - (self.done - self.embedded)

    def count_kept(self, charts: int) -> None:
        """Count charts that need nothing, since their vectors are here."""
        self.reused += charts
        self.done += charts


class WorkList:
    """The chunks that a batch has yet to do.

    follower: reads the words. tally: the batch's, kept up to date. Only the thread that drives the batch may call this.
    """

    def __init__(self, store: VectorStore, follower: Follower, policy: Policy, tally: Tally) -> None:
        self._store = store
        self._follower = follower
        self._policy = policy
        self._tally = tally
        self.live: set[int] = set()
        """Charts that the repository was seen to have."""
        self._kept: list[list[Record]] = []  # like the next, a stack: the next chunk is the last
        self._texts: list[list[Words]] = []
        self._left: list[Words] = []  # to other nodes that have claimed them
        self._claimed_to: dict[int, float] = {}  # chart_id -> when another node's claim on it must be over
        self._was_left: set[int] = set()
        self._look_again = 0.0

    def add(self, heads: Heads) -> None:
        """Put what changed on top: the newest first, and what needs no embedding before what does."""
        gone = heads.chart_ids[heads.deleted].tolist()
        self.live.difference_update(gone)
        live = np.flatnonzero(~heads.deleted)[::-1]
        chart_ids, revisions = heads.chart_ids[live], heads.revisions[live]
        self.live.update(chart_ids.tolist())
        held, hashes = self._store.heads(chart_ids)
        same = (held >= 0) & (hashes == heads.content_hashes[live]).all(axis=1) & self._policy.reuse_vectors
        # Where nodes reconcile, there is nothing to do for what is here: a node that lacks it fetches it.
        there = same & (held >= revisions) & self._policy.reconcile
        self._tally.total += int(there.sum())
        self._tally.count_kept(int(there.sum()))
        bumped = zip(chart_ids[same & ~there].tolist(), revisions[same & ~there].tolist(), strict=True)
        kept = [replace(record, revision=revision) for i, revision in bumped if (record := self._store.get(i))]
        fresh = self._follower.read(chart_ids[~same].tolist())
        self._tally.reused += len(kept)
        self._tally.total += len(kept) + len(fresh)
        self._kept.extend(cut(kept, self._policy.chunk_size)[::-1])
        self._texts.extend(self._by_length(fresh)[::-1])

    def _by_length(self, fresh: list[Words]) -> list[list[Words]]:
        size = self._policy.chunk_size
        windows = cut(fresh, size * CHUNKS_PER_WINDOW)
        return [chunk for window in windows for chunk in cut(sorted(window, key=lambda item: len(item[0].text)), size)]

    @property
    def has_texts(self) -> bool:
        """Whether something is left to embed."""
        return bool(self._texts)

    @property
    def has_left(self) -> bool:
        """Whether something was left to other nodes."""
        return bool(self._left)

    def next_kept(self) -> list[Record] | None:
        """Take the next chunk of charts whose words did not change; None if there is none."""
        return self._kept.pop() if self._kept else None

    def next_texts(self) -> list[Words] | None:
        """Take the next chunk to embed, without what came from other nodes; None if there is none."""
        if not self._texts:
            return None
        chunk = self._texts.pop()
        todo = [item for item in chunk if not self._came(*item)]
        self._tally.count_kept(len(chunk) - len(todo))
        return todo

    def lacking(self) -> list[Words]:
        """List what is left to embed, in order, without what came from other nodes."""
        return [item for chunk in reversed(self._texts) for item in chunk if not self._came(*item)]

    def drop_what_came(self) -> None:
        """Leave out what came from other nodes, and sort the rest anew."""
        lacking = self.lacking()
        self._tally.count_kept(sum(map(len, self._texts)) - len(lacking))
        self._texts = self._by_length(lacking)[::-1]

    def _came(self, chart: Chart, revision: int) -> bool:
        """Tell whether there is nothing to make: the vector came from another node, or the chart was deleted."""
        bulk, store = self._policy.reconcile, self._store
        if bulk and (chart.chart_id not in self.live or (store.tombstone(chart.chart_id) or -1) >= revision):
            return True
        head = store.head(chart.chart_id) if bulk and self._policy.reuse_vectors else None
        if head is None or head[1] != chart.content_hash:
            return head is not None and head[0] > revision
        if head[0] < revision and (held := store.get(chart.chart_id)) is not None:
            store.put(replace(held, revision=revision))
        return True

    # --- what other nodes have claimed ------------------------------------------------------------------------

    def share(self, todo: list[Words], granted: list[bool], now: float) -> tuple[list[Words], bool]:
        """Return what is to be made now, and whether peers have to be asked for something before it is made.

        What others have claimed is left for later. Once its claim is free, or is older than a claim can be, it comes
        back; since its owner may have made it, peers are asked first.
        """
        ours, again = [], []
        for item, is_ours in zip(todo, granted, strict=True):
            chart_id = item[0].chart_id
            if not is_ours and now < self._claimed_to.setdefault(chart_id, now + self._policy.claim_timeout):
                self._left.append(item)
                self._was_left.add(chart_id)
            elif chart_id in self._was_left:
                self._was_left.discard(chart_id)
                again.append(item)
            else:
                ours.append(item)
        if again:
            self._texts.append(again)
        return ours, bool(again)

    def take_up_what_was_left(self, now: float) -> bool:
        """Put what was left to others back at the end; False while it is too early to look again."""
        if now < self._look_again:
            return False
        self._look_again = now + LOOK_AGAIN
        self._texts = [*cut(self._left, self._policy.chunk_size), *self._texts]
        self._left = []
        return True

    def __repr__(self) -> str:
        left = sum(map(len, self._kept)) + sum(map(len, self._texts)) + len(self._left)
        return f"WorkList({left} charts)"


def cut(items: list[T], size: int) -> list[list[T]]:
    """Cut ``items`` into pieces of ``size``; the last may be shorter."""
    return [items[start : start + size] for start in range(0, len(items), size)]
