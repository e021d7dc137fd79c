"""A batch: one pass over the whole catalogue, a chunk a step.

A rebuild sends every vector to the other nodes; a scheduled sync, as written, fills only the node that runs it.
The owner of a batch calls `advance` until it says that nothing is left, so a test can stop between any two chunks.
"""

from __future__ import annotations

import threading
import uuid
from dataclasses import replace
from typing import Literal, NamedTuple, TypeVar

from copilotlab import events
from copilotlab.carrier import CarrierAway
from copilotlab.charts import Change, Chart, ChartRepository
from copilotlab.clock import Clock
from copilotlab.coordinator import Coordinator
from copilotlab.embedding import Embedder
from copilotlab.policy import Policy
from copilotlab.store import Record, VectorStore

Kind = Literal["rebuild", "sync"]
Outcome = Literal["published", "local", "deferred", "cancelled"]

T = TypeVar("T")

# Newest changes go first, and texts of like length go together: a chunk is padded to its longest text. So the work is
# cut into windows by age, and each window is sorted by length.
CHUNKS_PER_WINDOW = 8


class BatchResult(NamedTuple):
    """What a batch did.

    outcome: "published" (the other nodes were told), "local" (this node only: a sync, or Redis was away), "deferred"
    (another node is at it) or "cancelled"; charts: live charts read; embedded, reused, removed: how many vectors were
    made, kept and dropped; seconds: on the node's clock.
    """

    outcome: Outcome
    charts: int = 0
    embedded: int = 0
    reused: int = 0
    removed: int = 0
    seconds: float = 0.0


class Batch:
    """One run over the catalogue.

    kind: "rebuild" tells the other nodes, "sync" does not; leased: whether this node set the batch flag for it, and
    so clears it at the end.
    """

    def __init__(
        self,
        kind: Kind,
        *,
        leased: bool,
        charts: ChartRepository,
        embedder: Embedder,
        store: VectorStore,
        coordinator: Coordinator,
        policy: Policy,
        clock: Clock,
    ) -> None:
        self.kind = kind
        self.name = uuid.uuid4().hex
        self.started = clock.now()
        self.total = 0
        self.done = 0
        self.embedded = 0
        self.reused = 0
        self.removed = 0
        self.error: BaseException | None = None
        self._leased = leased
        self._sharing = leased and kind == "rebuild"
        self._charts = charts
        self._embedder = embedder
        self._store = store
        self._coordinator = coordinator
        self._policy = policy
        self._clock = clock
        self._has_read = False
        self.revision = 0
        self._live: set[int] = set()
        self._chunks: list[list[Record]] = []  # both are stacks: the next chunk is the last
        self._texts: list[list[tuple[Chart, int]]] = []
        self._cancelled = False
        self._outcome: Outcome | None = None
        self.finished = threading.Event()

    @property
    def _signed(self) -> tuple[str, str]:
        return self._coordinator.node_id, self._coordinator.fingerprint

    @property
    def result(self) -> BatchResult:
        """What was done so far; its outcome is final once `finished` is set."""
        outcome = self._outcome or ("published" if self._sharing else "local")
        seconds = self._clock.now() - self.started
        return BatchResult(outcome, self.total, self.embedded, self.reused, self.removed, seconds)

    def cancel(self) -> None:
        """Stop before the next chunk; what was done stays."""
        self._cancelled = True

    def advance(self) -> bool:
        """One step: read the catalogue, or do a chunk, or end; False once it has ended.

        With `pick_up_deferred`, each step first takes what was saved since, so that a change is done next.

        What the repository or the embedder raises passes through, after the flag is cleared.
        """
        if self.finished.is_set():
            return False
        completed = False
        try:
            if self._cancelled:
                self._end("cancelled")
            elif not self._has_read:
                self._has_read = True
                self._read()
            else:
                if self._policy.pick_up_deferred:
                    self._plan(self._charts.changes_since(self.revision))
                if self._chunks:
                    self._take(self._chunks.pop())
                elif self._texts:
                    self._embed(self._texts.pop())
                else:
                    self._complete()
            completed = True
        finally:
            if not completed:
                self._end("cancelled")
        return not self.finished.is_set()

    def _read(self) -> None:
        self._tell(events.BatchStarted(*self._signed, self.name))
        self._plan(self._charts.changes_since(0))

    def _plan(self, changes: list[Change]) -> None:
        """Put ``changes`` on top of what is left to do: newest first, what needs no embedding before what does."""
        if not changes:
            return
        self.revision = changes[-1].revision
        kept: list[Record] = []
        fresh: list[tuple[Chart, int]] = []
        for chart_id, revision, chart in reversed(changes):
            if chart is None:
                self._live.discard(chart_id)
                continue
            self._live.add(chart_id)
            held = self._store.get(chart_id) if self._policy.reuse_vectors else None
            if held is not None and held.content_hash == chart.content_hash:
                kept.append(replace(held, revision=revision))
            else:
                fresh.append((chart, revision))
        self.reused += len(kept)
        self.total += len(kept) + len(fresh)
        size = self._policy.chunk_size
        self._chunks.extend(_cut(kept, size)[::-1])
        windows = _cut(fresh, size * CHUNKS_PER_WINDOW)
        by_length = [_cut(sorted(window, key=lambda item: len(item[0].text)), size) for window in windows]
        self._texts.extend([chunk for window in by_length for chunk in window][::-1])

    def _embed(self, chunk: list[tuple[Chart, int]]) -> None:
        vectors = self._embedder.embed([chart.text for chart, _ in chunk])
        self.embedded += len(chunk)
        self._take(
            [
                Record.of(chart.chart_id, revision, chart.content_hash, vector)
                for (chart, revision), vector in zip(chunk, vectors, strict=True)
            ]
        )

    def _take(self, chunk: list[Record]) -> None:
        self._store.put_many(chunk)
        self.done += len(chunk)
        packed = [events.pack(record) for record in chunk]
        self._tell(events.BatchChunk(*self._signed, self.name, packed))

    def _complete(self) -> None:
        # As written, a rebuild adds and never removes; a sync replaces the whole store of its own node.
        if self._policy.ordered or self.kind == "sync":
            self.removed = len(self._store.retain(self._live, self.revision))
        chart_ids = events.pack_ids(self._live)
        self._tell(events.BatchFinished(*self._signed, self.name, self.done, self.revision, chart_ids))
        self._end("published" if self._sharing else "local")

    def _tell(self, event: events.Event) -> None:
        if not self._sharing:
            return
        try:
            self._coordinator.publish(event)
        except CarrierAway:
            # Redis left in the middle: finish for this node alone. Its return is followed by another rebuild.
            self._sharing = False

    def _end(self, outcome: Outcome) -> None:
        if self._leased:
            try:
                self._coordinator.release_lease(recovered=outcome == "published" and self.kind == "rebuild")
            except CarrierAway:
                outcome = "local" if outcome == "published" else outcome  # the flag dies with its timeout
        self._outcome = outcome
        self.finished.set()

    def __repr__(self) -> str:
        state = self._outcome or "under way"
        return f"Batch({self.kind}, {self.done}/{self.total} charts, {self.embedded} embedded, {state})"


def _cut(items: list[T], size: int) -> list[list[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
