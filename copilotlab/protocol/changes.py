"""A change that is made on this node: whether it is this node's to embed, its vector, and its way to the others."""

from __future__ import annotations

from typing import Literal

import numpy as np

from copilotlab.charts import Chart, ChartRepository, RepositoryError
from copilotlab.embedding import Embedder
from copilotlab.lifetime import Bell
from copilotlab.monitoring.happenings import ClaimLeft, Embedded, EmbeddingWasted
from copilotlab.protocol import events
from copilotlab.protocol.backlog import Backlog
from copilotlab.protocol.batches import Batches
from copilotlab.protocol.carrier import CarrierAway
from copilotlab.protocol.coordinator import Coordinator, Need
from copilotlab.protocol.outbox import Outbox
from copilotlab.protocol.sync import Sync
from copilotlab.protocol.view import View
from copilotlab.store import Record, VectorStore

Admission = Literal["ours", "deferred", "claimed", "away"]


class Changes:
    """The changes that are made on one node, in one model's vectors. Safe for threads: each runs on its caller's.

    wake: rung where a change leaves something to do for the working thread.
    """

    def __init__(
        self,
        charts: ChartRepository,
        embedder: Embedder,
        store: VectorStore,
        coordinator: Coordinator,
        view: View,
        backlog: Backlog,
        outbox: Outbox,
        looks: Sync,
        batches: Batches,
        *,
        wake: Bell,
    ) -> None:
        self._context = coordinator.context
        self._charts = charts
        self._embedder = embedder
        self._store = store
        self._coordinator = coordinator
        self._view = view
        self._backlog = backlog
        self._outbox = outbox
        self._looks = looks
        self._batches = batches
        self._wake = wake

    def admit(self, need: Need) -> Admission:
        """Ask who embeds a change: "ours" if we do, "deferred" if a batch will, "claimed" if another node does, "away"
        while Redis is, or while this node, whose publishing is off, keeps what it makes for itself."""
        if not self._context.toggles.now.publishing:
            return "away"
        asked_at = self._context.clock.now()
        try:
            flags, (granted,) = self._coordinator.admit([need])
        except CarrierAway:
            return "away"
        self._view.saw(flags, asked_at)
        if not granted and flags.owed and flags.batch_holder is None:
            # The batch that the written design starts here reads the repository at its first step, which the working
            # thread, or the caller that drives the node, takes after this change was saved.
            self._batches.begin("rebuild")
        if granted:
            return "ours"
        return "deferred" if flags.owed or flags.batch_holder is not None else "claimed"

    def disclaim(self, need: Need) -> None:
        """Give back the claim on a change that was admitted and failed."""
        try:
            self._coordinator.disclaim(need)
        except CarrierAway:
            self._context.tell(ClaimLeft(need.chart_id))

    def defer(self, chart_id: int, revision: int, *, patience: float = 0.0) -> None:
        """Leave a change to a batch, or to the node that claimed it, and note that it has to come.

        patience: seconds after which it is done here; 0.0: as soon as the batch that it was left to has ended.
        """
        if self._context.policy.reconcile:
            self._backlog.add(chart_id, revision, self._context.clock.now() + patience)
        elif self._context.policy.pick_up_deferred:
            self._view.await_revision(revision)
        self._wake.set()

    def vector_of(self, chart: Chart) -> np.ndarray:
        """Return the chart's vector: the one held here if its words are the same, else a new one. Raises
        EmbeddingError."""
        head = self._store.head(chart.chart_id)
        if head is not None and head[1] == chart.content_hash and (held := self._store.get(chart.chart_id)):
            return held.vector
        vector: np.ndarray = self._embedder.embed([chart.text])[0]
        self._context.tell(Embedded(1, len(self._embedder.cut([chart.text]))))
        return vector

    def spread(self, chart: Chart, revision: int, vector: np.ndarray) -> bool:
        """Put the chart's vector into the store and tell the other nodes; False if that has to wait."""
        record = Record.of(chart.chart_id, revision, chart.content_hash, vector)
        head = revision, chart.content_hash
        taken = self._store.put(record)
        if self._store.head(chart.chart_id) != head and self._correct(chart.chart_id) == head:
            taken = self._store.put(record)
        if not taken:
            self._context.tell(EmbeddingWasted(1))
        need = Need(chart.chart_id, chart.content_hash, revision)
        return self._outbox.say(events.ChartUpdated(events.pack(record)), chart.chart_id, need)

    def spread_deletion(self, chart_id: int, revision: int) -> bool:
        """Drop the chart and tell the other nodes; False if that has to wait."""
        if not self._store.remove(chart_id, revision) and chart_id in self._store:
            self._correct(chart_id)
        return self._outbox.say(events.ChartDeleted(chart_id, revision), chart_id)

    def _correct(self, chart_id: int) -> tuple[int, bytes] | None:
        """Ask the repository for a chart of which the store knows something else than was just saved or deleted.

        The chart may have changed meanwhile, or the repository gone back. Returns the chart's revision and content hash
        there; None if there is no such chart, or no answer.
        """
        known = self._store.known(chart_id)
        try:
            change = self._charts.get_many([chart_id]).get(chart_id)
        except RepositoryError:
            return None  # the next look tells
        head = None if change is None or change.chart is None else (change.revision, change.chart.content_hash)
        self._store.correct(chart_id, head, removed=0 if change is None else change.revision, known=known)
        self._looks.soon()
        self._wake.set()
        return head

    def __repr__(self) -> str:
        return f"Changes({self._context.node_id!r}, {self._embedder.fingerprint!r})"
