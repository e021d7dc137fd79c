"""A catalogue under any model, searched in this process: the nodes of a cluster share one model, and have no other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import NamedTuple

import polars as pl

from copilotlab.charts import Chart, ChartRepository, Identity
from copilotlab.embedding import Embedder, load_embedder
from copilotlab.store import Record, VectorStore

CHUNK = 64


class Found(NamedTuple):
    """One chart that was found, as people want to see it; title is "" while the repository has not told it."""

    chart_id: int
    score: float
    title: str
    chart_type: str = ""
    source: str = ""
    dimensions: tuple[str, ...] = ()
    measures: tuple[str, ...] = ()
    url: str = ""

    @classmethod
    def of_frame(cls, frame: pl.DataFrame) -> list[Found]:
        """Make them from the rows that `Node.search` returns."""
        return [
            cls(
                row["chart_id"],
                row["score"],
                row["title"] or "",
                row["chart_type"] or "",
                row["source"] or "",
                tuple(row["dimensions"] or ()),
                tuple(row["measures"] or ()),
                row["url"] or "",
            )
            for row in frame.iter_rows(named=True)
        ]


class ModelIndex:
    """The charts of a repository under one model, brought up to date at each question.

    charts: the repository. model: a name for `load_embedder`, or an Embedder; it is loaded at the first question.
    progress: called with a few words while a question waits for the model and its vectors, and with "" at the end.

    Thread-safe. `search` raises what `load_embedder`, the model and the repository raise.
    """

    def __init__(
        self, charts: ChartRepository, model: str | Embedder, progress: Callable[[str], None] = lambda words: None
    ) -> None:
        self.name = model if isinstance(model, str) else model.name
        self._charts = charts
        self._model = model
        self._progress = progress
        self._embedder: Embedder | None = None
        self._store: VectorStore | None = None
        self._known: dict[int, tuple[int, Chart]] = {}  # by chart_id: at which revision, and what it says
        self._looked: tuple[Identity, int, int] | None = None  # the catalogue at the last question
        self._lock = threading.Lock()

    def search(self, question: str, k: int) -> list[Found]:
        """Find the ``k`` charts nearest in meaning to ``question``, best first."""
        with self._lock:
            embedder, store = self._loaded()
            self._update(embedder, store)
        matches = store.search(embedder.embed_query([question])[0], k)
        charts = [(self._known.get(int(chart_id)), float(score)) for chart_id, score in zip(*matches[:2], strict=True)]
        return [
            Found(c.chart_id, score, c.title, c.chart_type, c.source, c.dimensions, c.measures, c.url)
            for _, c, score in ((*known, score) for known, score in charts if known is not None)
        ]

    def _loaded(self) -> tuple[Embedder, VectorStore]:
        if self._embedder is None or self._store is None:
            self._progress(f"loading {self.name} ...")
            self._embedder = load_embedder(self._model) if isinstance(self._model, str) else self._model
            self._store = VectorStore(self._embedder.dim)
        return self._embedder, self._store

    def _update(self, embedder: Embedder, store: VectorStore) -> None:
        """Take in what the repository holds; charts whose words are known are not embedded again."""
        look = self._charts.look()
        if look[:3] == self._looked:
            return
        look = self._charts.look(0)
        followed = store.follow(*look.heads, since=0, revision=look.revision, back=True)
        for chart_id in followed.dropped:
            self._known.pop(chart_id, None)
        lacking = look.heads.chart_ids[followed.lacking].tolist()
        for start in range(0, len(lacking), CHUNK):
            self._progress(f"{self.name}: {start:,} of {len(lacking):,} charts embedded ...")
            changes = self._charts.get_many(lacking[start : start + CHUNK]).values()
            saved = [(change.revision, change.chart) for change in changes if change.chart is not None]
            vectors = embedder.embed([chart.text for _, chart in saved])
            store.put_many(
                Record.of(chart.chart_id, revision, chart.content_hash, vector)
                for (revision, chart), vector in zip(saved, vectors, strict=True)
            )
            self._known.update((chart.chart_id, (revision, chart)) for revision, chart in saved)
        # Also what needs no new vector has changed: a link, say, is no part of the words.
        heads = zip(look.heads.chart_ids.tolist(), look.heads.revisions.tolist(), strict=True)
        stale = [i for i, revision in heads if i in self._known and self._known[i][0] != revision]
        for change in self._charts.get_many(stale).values():
            if change.chart is not None:
                self._known[change.chart_id] = change.revision, change.chart
        self._looked = look[:3]
        self._progress("")

    def __repr__(self) -> str:
        return f"ModelIndex({self.name!r}, revision {0 if self._looked is None else self._looked[1]})"


def shared(one: Iterable[Found], other: Iterable[Found]) -> int:
    """Count the charts that two answers have in common."""
    return len({found.chart_id for found in one} & {found.chart_id for found in other})
