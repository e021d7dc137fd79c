"""The store of a node: writers one at a time, readers whenever they like."""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from copilotlab.digest import MODULUS, as_text, entry
from copilotlab.lifetime import STOP_SECONDS
from copilotlab.markup import facts_table
from copilotlab.store import saved
from copilotlab.store.admission import Admission, Rank
from copilotlab.store.graph import Graph, GraphBuild
from copilotlab.store.recall import Recall
from copilotlab.store.records import (
    LARGEST,
    Bytes,
    Floats,
    Ints,
    Manifest,
    Matches,
    News,
    Record,
    as_chart_ids,
    as_floats,
    as_integer,
    check_unit,
)
from copilotlab.store.saved import Columns, Label
from copilotlab.store.snapshot import Rows, Snapshot

EXACT_LIMIT = 20_000  # charts from which on a search through a graph is the quicker one: see the class
SMALLEST_CAPACITY = 16
PUT_AT_ONCE = 4096  # records that become visible together, and the longest that one writer keeps another waiting
INDEXED_AT_ONCE = 256
DEAD_SHARE = 1 / 4  # of the live rows: more dead ones than that, and the rows are compacted
STALE_FACTOR = 2  # graphs over more than so many times the live rows are built anew


class Followed(NamedTuple):
    """What came of following a repository.

    lacking: row numbers of the heads whose vectors are not here, int64; dropped: charts that are gone; moved: charts
    whose words stayed as they were at a new revision.
    """

    lacking: Ints
    dropped: list[int]
    moved: int


class VectorStore:
    """One unit vector per chart, in memory, searched by cosine similarity.

        store = VectorStore(384)
        store.put(Record.of(7, revision=1, content_hash=chart.content_hash, vector=vector))
        chart_ids, scores = store.search(query, k=10)

    Searches and all other reads take no lock: each works on one snapshot, in which every chart is there in one version.
    They wait for no put, no compaction and no index build. Writers take turns.

    dim: floats of a vector. ordered: a record replaces only an older revision, and comes in only above the revision at
    which its chart was removed; if two vectors of one revision meet, the larger vector_hash stays. So stores that were
    given the same records and removals, in whatever order, hold the same. Once it follows a repository (`follow`), what
    that has said outranks all of it: up to the revision at which it was read, only what it named comes in, and what
    was removed by then need not be remembered. Not ordered: the last writer wins, and
    nothing is remembered of what was removed.
    exact_limit: up to so many charts (20,000), searches are exact. Above, graphs answer (recall at 10: 0.98 or more),
    and what is newer than the graphs, at most half of exact_limit once they are current, is searched exactly. Scores
    are always exact.
    background: a daemon thread builds the graphs when they are due, measures `recall` now and then, and ends. Otherwise
    the owner calls `index_step`.
    """

    def __init__(
        self, dim: int, *, ordered: bool = True, exact_limit: int = EXACT_LIMIT, background: bool = True
    ) -> None:
        self.dim = as_integer("dim", dim, smallest=1)
        self.ordered = ordered
        self.exact_limit = as_integer("exact_limit", exact_limit)
        self._snapshot = Snapshot(Rows.empty(SMALLEST_CAPACITY, self.dim))
        self._lock = threading.Lock()  # of writers: all below, and replacing the snapshot
        self._change: _Change | None = None
        self._admission = Admission()
        self._latest = -1
        self._index_lock = threading.Lock()  # of who builds the index; taken before the writers' lock
        self._build: GraphBuild | None = None
        self._recall = Recall()
        self._background = background
        self._indexer: _Indexer | None = None
        self._indexer_lock = threading.Lock()

    def after_fork(self) -> None:
        """In a forked child, whose owner calls it: go on with what was held; locks and threads are the parent's."""
        self._lock, self._index_lock, self._indexer_lock = threading.Lock(), threading.Lock(), threading.Lock()
        self._build = None  # a thread of the parent may have been in the middle of it
        self._indexer = None

    # --- writing ----------------------------------------------------------------------------------------------

    def put(self, record: Record) -> bool:
        """Take the record in unless the rules keep it out; return whether it was taken.

        ValueError if the record's vector is not of this store's dimension; TypeError if it is not a `Record`.
        """
        return self.put_many((record,)) == 1

    def put_many(self, records: Iterable[Record]) -> int:
        """Put the records in their order; return how many were taken.

        They become visible together (more than 4,096: so many at a time). Errors as in `put`, before anything changes.
        """
        records = list(records)
        for record in records:
            if not isinstance(record, Record):
                raise TypeError(f"a store takes Records, got {type(record).__name__}; use Record.of")
            if len(record.vector) != self.dim:
                raise ValueError(
                    f"chart {record.chart_id}: a vector of {len(record.vector)} floats, expected the store's {self.dim}"
                )
        taken = 0
        for start in range(0, len(records), PUT_AT_ONCE):
            with self._lock:
                taken += self._put(records[start : start + PUT_AT_ONCE])
        self._wake_indexer()
        return taken

    def remove(self, chart_id: int, revision: int = 0) -> bool:
        """Drop the chart; return True if it was there.

        Ordered: only if its revision is ``revision`` or less; then, or if it is unknown here, nothing up to
        ``revision`` comes in any more. A removal up to the revision at which the followed repository was read has no
        effect: the repository would have named it. Not ordered: ``revision`` means nothing. ValueError for a negative
        number.
        """
        chart_id = as_integer("chart_id", chart_id)
        revision = as_integer("revision", revision)
        with self._lock:
            now = self._base()
            row = now.row_of(chart_id)
            tombstone = {}
            if self.ordered:
                if revision <= self._admission.settled or (row is not None and now.revision(row) > revision):
                    return False
                tombstone = {chart_id: max(revision, self._admission.tombstones.get(chart_id, 0))}
                self._set_aside(now, chart_id)
            if row is not None or tombstone:
                self._publish(now, dying=[] if row is None else [row], tombstones=tombstone)
        self._wake_indexer()
        return row is not None

    def retain(self, chart_ids: Iterable[int], revision: int) -> list[int]:
        """Drop the charts that are not among ``chart_ids``, all that exist at ``revision``; return the dropped ids.

        Ordered: only records of ``revision`` or less are dropped, and a chart that is not listed comes in only above
        ``revision``, until a later list has it. Not ordered: ``revision`` means nothing. ValueError for ids that are no
        integers and for a negative revision.
        """
        revision = as_integer("revision", revision)
        listed = as_chart_ids(chart_ids)
        with self._lock:
            now = self._base()
            rows = now.live_rows()
            gone = rows[~np.isin(now.rows.chart_ids[rows], listed)]
            if self.ordered:
                gone = gone[now.rows.revisions[gone] <= revision]
                if self._admission.keep_to(revision, listed.tolist()):
                    self._latest = max(self._latest, revision)
            dropped: list[int] = np.sort(now.rows.chart_ids[gone]).tolist()
            if dropped:
                self._publish(now, dying=gone.tolist())
        self._wake_indexer()
        return dropped

    def follow(
        self,
        chart_ids: Ints,
        revisions: Ints,
        content_hashes: Bytes,
        deleted: npt.NDArray[np.bool_],
        *,
        since: int,
        revision: int,
        reuse: bool = True,
        back: bool = False,
    ) -> Followed:
        """Take in what the repository says, as far as that needs no vector: it is right whatever is held here.

        chart_ids, revisions, content_hashes, deleted: one row for each chart that changed after revision ``since``, as
        of ``revision``; with ``since`` 0, all live charts, and what is not among them goes. Words that are here stay,
        at the repository's revision (reuse=False: only where it is the same); other words of the same or a later
        revision up to ``revision`` are of a past that the repository does not have, and go. What is newer than
        ``revision`` stays, and what was removed since stays away, unless the repository went ``back``: then nothing of
        the revisions that it has lost comes in until `trust`, or until it is named. ValueError for a negative revision.
        """
        revision = as_integer("revision", revision)
        whole = since == 0
        newest = LARGEST if back else revision  # what is above it is news that the repository has by now
        with self._lock:
            now = self._base(room=len(chart_ids))
            held, hashes = now.heads(chart_ids)
            here = (held >= 0) & ~deleted
            newer = here & (held > newest)
            same = here & ~newer & (hashes == content_hashes).all(axis=1)
            settled = same & (held == revisions)
            moved = same & ~settled & reuse
            admission = self._admission
            removed_since = [i for i, removed in admission.tombstones.items() if removed > newest]
            lacking = ~(deleted | newer | settled | moved | np.isin(chart_ids, removed_since))
            back_again = admission.taken_back(chart_ids, revisions, content_hashes, lacking) if reuse else []
            gone = (deleted & (held >= 0) & (held <= revisions)) | (lacking & (held >= revisions))
            dying = {row for chart_id in chart_ids[gone].tolist() if (row := now.row_of(chart_id)) is not None}
            if whole and self.ordered:
                rows = now.live_rows()
                rows = rows[now.rows.revisions[rows] <= newest]
                dying.update(rows[~np.isin(now.rows.chart_ids[rows], chart_ids)].tolist())
            dropped: list[int] = sorted(now.rows.chart_ids[list(dying)].tolist())
            at = dict(zip(chart_ids[moved].tolist(), revisions[moved].tolist(), strict=True))
            records = [replace(record, revision=at[i]) for i in at if (record := now.record(i)) is not None]
            records += back_again
            if records or dying:
                self._publish(now, records, sorted(dying))
            if back:
                admission.go_back(self._latest)
                self._latest = -1
            if self.ordered:
                wanted = zip(revisions[lacking].tolist(), map(bytes, content_hashes[lacking]), strict=True)
                named = dict(zip(chart_ids[lacking].tolist(), wanted, strict=True))
                buried = dict(zip(chart_ids[deleted].tolist(), revisions[deleted].tolist(), strict=True))
                told = chart_ids.tolist()
                if admission.follow(told, named, buried, since=since, revision=revision, holds=self._holds):
                    self._latest = max(self._latest, revision)
        self._wake_indexer()
        return Followed(np.flatnonzero(lacking), dropped, len(records))

    def trust(self) -> None:
        """Take in again what is newer than the repository was when it went back: by now all nodes have noticed."""
        self._admission.trust()

    def known(self, chart_id: int) -> tuple[tuple[int, bytes] | None, int | None]:
        """Return what is known of one chart: its `head`, and its `tombstone`."""
        with self._lock:
            return self.head(chart_id), self.tombstone(chart_id)

    def correct(
        self,
        chart_id: int,
        head: tuple[int, bytes] | None,
        *,
        removed: int = 0,
        known: tuple[tuple[int, bytes] | None, int | None],
    ) -> None:
        """Take the repository's word for one chart, where it is not what the store was told when it followed last.

        head: revision and content hash there, and a record of them comes in; None: it has no such chart, but a
        tombstone of revision ``removed``, 0 if it has none. known: what was `known` before the repository was asked;
        where that has changed since, what came is newer than the answer, and nothing is done.
        """
        with self._lock:
            now = self._base()
            if (self.head(chart_id), self.tombstone(chart_id)) != known:
                return
            row, fits = now.row_of(chart_id), self.head(chart_id) == head
            if row is not None and not fits:
                self._publish(now, dying=[row])
            if self.ordered:
                still = None if fits else head
                self._admission.correct(chart_id, still, removed=removed if head is None else 0)

    def _holds(self, chart_id: int, revision: int, content_hash: bytes) -> bool:
        head = self.head(chart_id)
        return head is not None and (head[0] > revision or head == (revision, content_hash))

    def _put(self, records: Sequence[Record]) -> int:
        now = self._base(room=len(records))
        taken = 0
        winners: dict[int, Record] = {}
        for record in map(self._admission.as_named, records):
            rival = winners.get(record.chart_id)
            held = _rank(rival) if rival is not None else self._held_rank(now, record.chart_id)
            if self.ordered and not self._admission.outranks(record.chart_id, _rank(record), held):
                continue
            taken += 1
            if _rank(record) != held:
                winners[record.chart_id] = record
        for chart_id, winner in winners.items():
            if self._admission.is_news(winner.revision):
                self._set_aside(now, chart_id)
        if winners:
            self._publish(now, list(winners.values()))
        return taken

    def _set_aside(self, now: Snapshot, chart_id: int) -> None:
        """Keep what the repository has named, and news is about to replace."""
        row = now.row_of(chart_id)
        if row is not None and self._admission.wants_aside(now.revision(row)):
            record = now.record(chart_id)
            if record is not None:
                self._admission.set_aside(record)

    @staticmethod
    def _held_rank(now: Snapshot, chart_id: int) -> Rank | None:
        row = now.row_of(chart_id)
        return None if row is None else (now.revision(row), now.vector_hash(row), now.content_hash(row))

    # --- a file of what is held ------------------------------------------------------------------------------------

    def save(self, path: Path, *, model: str, catalogue: str) -> int:
        """Write all that is held now into a file, and return how many charts that is; writers go on meanwhile.

        model, catalogue: fingerprint and incarnation, which `restore` will ask for. The file is replaced as a whole or
        not at all. Raises OSError.
        """
        now = self._snapshot
        rows, held = now.live_rows(), now.rows
        columns = Columns(held.chart_ids, held.revisions, held.content_hashes, held.vector_hashes, held.vectors)
        saved.write(path, Label(model, catalogue, len(rows), self.dim), columns, rows)
        return len(rows)

    def restore(self, path: Path, *, model: str, catalogue: str) -> int:
        """Take in what another store has saved, and return how many charts that is. Only a new store may.

        Raises FileRefused for a file that is damaged, of another model, catalogue, dimension or format; OSError; and
        ValueError where something is held or known here already. Then nothing has changed.
        """
        columns = saved.read(path, model=model, catalogue=catalogue, dim=self.dim)
        filled = Snapshot.of(columns)
        with self._lock:
            if self._base().clock or self._latest >= 0:
                raise ValueError(f"{self!r}: only a store that is new can be filled from a file")
            self._snapshot = filled
            self._latest = int(columns.revisions.max(initial=-1))
        self._wake_indexer()
        return filled.live

    # --- publishing: with the writers' lock held ------------------------------------------------------------------

    def _base(self, room: int = 0) -> Snapshot:
        """Return what a writer builds on: the present snapshot, with room for so many more rows."""
        if self._change is not None:  # an interrupt hit the last writer; what it began is finished first
            self._apply(self._change)
        now = self._snapshot
        if now.count + room > len(now.rows):
            now = self._snapshot = now.moved(2 * (now.live + room))
        return now

    def _publish(
        self,
        now: Snapshot,
        records: Sequence[Record] = (),
        dying: Sequence[int] = (),
        tombstones: Mapping[int, int] = MappingProxyType({}),
    ) -> None:
        """Show the records, and hide the rows that they replace and those in ``dying``: all at once.

        The records' charts are distinct.
        """
        dying = list(dying)
        newest, older = {}, {}
        digest, content = now.digest, now.content
        for serial, record in enumerate(records, now.next_serial):
            newest[record.chart_id] = serial
            digest += entry(record.chart_id, record.revision, record.content_hash, record.vector_hash)
            content += entry(record.chart_id, record.revision, record.content_hash)
            previous = now.newest.get(record.chart_id)
            if previous is not None:
                older[serial] = previous
            row = now.row_of(record.chart_id)
            if row is not None:
                dying.append(row)
        now.rows.write(now.count, now.next_serial, records)
        after = replace(
            now,
            count=now.count + len(records),
            clock=now.clock + 1,
            live=now.live + len(records) - len(dying),
            next_serial=now.next_serial + len(records),
            digest=(digest - sum(now.entry(row) for row in dying)) % MODULUS,
            content=(content - sum(now.entry(row, vector=False) for row in dying)) % MODULUS,
        )
        latest = max((*(record.revision for record in records), *tombstones.values()), default=-1)
        self._change = _Change(after, dying, newest, older, tombstones, latest)
        self._apply(self._change)
        if after.dead > max(SMALLEST_CAPACITY, DEAD_SHARE * after.live):
            self._snapshot = after.moved(max(SMALLEST_CAPACITY, 2 * after.live))

    def _apply(self, change: _Change) -> None:
        """Apply the change; if cut short, it is done again. Readers see nothing until the snapshot is replaced."""
        after = change.after
        after.rows.died[change.dying] = after.clock
        after.older.update(change.older)
        after.newest.update(change.newest)
        self._admission.tombstones.update(change.tombstones)
        self._latest = max(self._latest, change.latest)
        self._snapshot = after
        self._change = None

    # --- reading ----------------------------------------------------------------------------------------------

    def search(self, vector: npt.ArrayLike, k: int = 10, chart_ids: Iterable[int] | None = None) -> Matches:
        """Find the ``k`` charts whose vectors are nearest to ``vector``, a unit vector (dim,); all if there are fewer.

        chart_ids: only among these, and exactly, however many they are; unknown ones are ignored, an empty list gives
        no results. Exact answers of stores of equal content are equal to the bit. ValueError for a vector of another
        dimension or length or with NaN, for k < 1 and for chart_ids that are no integers.
        """
        query = self._queries(vector, "the query vector", (self.dim,))
        return self._search(query[None], k, chart_ids)[0]

    def search_many(self, vectors: npt.ArrayLike, k: int = 10, chart_ids: Iterable[int] | None = None) -> list[Matches]:
        """`search` for each row of ``vectors``, (n, dim), in one snapshot. Exact searches share one matrix product."""
        if isinstance(vectors, Sequence) and not vectors:
            vectors = np.empty((0, self.dim), np.float32)
        queries = self._queries(vectors, "the query vectors", (None, self.dim))
        return self._search(queries, k, chart_ids)

    def get(self, chart_id: int) -> Record | None:
        """Return the chart's record, with its own copy of the vector; None if the store has no such chart."""
        return self._snapshot.record(chart_id)

    def revision(self, chart_id: int) -> int | None:
        """Return the revision of the chart's record; None if the store has no such chart."""
        now = self._snapshot
        row = now.row_of(chart_id)
        return None if row is None else now.revision(row)

    def head(self, chart_id: int) -> tuple[int, bytes] | None:
        """Return revision and content_hash of the chart's record; None if the store has no such chart."""
        now = self._snapshot
        row = now.row_of(chart_id)
        return None if row is None else (now.revision(row), now.content_hash(row))

    def heads(self, chart_ids: Ints) -> tuple[Ints, Bytes]:
        """Return `head` of many: revisions, int64 (n,), -1 for no such chart, and content_hashes, uint8 (n, 16)."""
        return self._snapshot.heads(chart_ids)

    def columns(self, chart_ids: Iterable[int]) -> tuple[Ints, Ints, Bytes, Floats]:
        """Return what is held of these charts as arrays: chart_ids, revisions, content hashes, vectors."""
        return self._snapshot.columns(chart_ids)

    def news(self, serial: int = 0) -> News:
        """Return what came in since `News.next_serial` was ``serial`` and is still there; with 0, all that is there."""
        return self._snapshot.news(serial)

    def lacks(self, manifest: Manifest) -> Ints:
        """Return the charts, int64 ascending, whose records in a store with ``manifest`` would come in here."""
        now = self._snapshot
        ends = manifest.chart_ids[[0, -1]].tolist() if len(manifest) else [0, 0]
        here = now.manifest(ends[0] - 1, up_to=ends[1])
        places = np.searchsorted(here.chart_ids, manifest.chart_ids)
        inside = np.minimum(places, max(len(here) - 1, 0))
        same = np.zeros(len(manifest), dtype=bool)
        if len(here):
            same = (
                (here.chart_ids[inside] == manifest.chart_ids)
                & (here.revisions[inside] == manifest.revisions)
                & (here.vector_hashes[inside] == manifest.vector_hashes).all(axis=1)
                & (here.content_hashes[inside] == manifest.content_hashes).all(axis=1)
            )
        admission = self._admission

        def comes_in(row: int) -> bool:
            chart_id, content_hash = int(manifest.chart_ids[row]), manifest.content_hashes[row].tobytes()
            revision = admission.revision_of(chart_id, int(manifest.revisions[row]), content_hash)
            rank = revision, manifest.vector_hashes[row].tobytes(), content_hash
            return admission.outranks(chart_id, rank, self._held_rank(now, chart_id))

        return manifest.chart_ids[[row for row in np.flatnonzero(~same).tolist() if comes_in(row)]]

    def tombstones(self) -> dict[int, int]:
        """Return every chart that was removed, as far as this store was told: chart_id -> revision."""
        with self._lock:
            return dict(self._admission.tombstones)

    def tombstone(self, chart_id: int) -> int | None:
        """Return the highest known revision at which the chart was removed; None if it never was."""
        return self._admission.tombstones.get(chart_id)

    @property
    def latest(self) -> int:
        """The highest revision that came in here: of a record, a removal or a list; -1 if nothing did."""
        return self._latest

    def manifest(self, after: int = -1, most: int | None = None) -> Manifest:
        """List what the store holds now, without the vectors.

        after, most: only of the charts after that one, and of so many. The digest of a part is empty.
        """
        return self._snapshot.manifest(after, most)

    @property
    def digest(self) -> str:
        """32 hex digits, equal for stores of equal content. It is kept up to date, so reading it costs nothing."""
        return as_text(self._snapshot.digest)

    @property
    def content(self) -> int:
        """The digest of what is held, without the vectors, as a repository has it (`copilotlab.digest`)."""
        return self._snapshot.content

    @property
    def version(self) -> int:
        """A number that grows with every change here: of a record or of what is known to be removed."""
        return self._snapshot.clock

    @property
    def nbytes(self) -> int:
        """Bytes of the rows, those of replaced versions too, and of the graphs."""
        return self._snapshot.nbytes

    @property
    def index_state(self) -> str:
        """How searches are answered: "exact", by a "graph", or "building" while a graph is due and not there yet."""
        now = self._snapshot
        if self._index_due(now) and now.live > self.exact_limit:
            return "building"
        return "graph" if self._uses_graphs(now) else "exact"

    @property
    def recall(self) -> float | None:
        """The share of the right answers that searches give: 0 to 1, over the last 50 that were measured.

        None while searches are exact, and before the first measurement. One search in a while is done again, exactly,
        in the background, for 1 % of a core's time at most; below 0.9 is said once in the log.
        """
        return self._recall.value if self._uses_graphs(self._snapshot) else None

    def status(self) -> dict[str, object]:
        """Describe the store as it is now, in plain values.

        count: charts. dead: rows of replaced versions not yet compacted. index: "exact" or "graph", how a search is
        answered now. indexed: rows in the graphs, dead ones too. building: whether a graph is due and not there yet.
        recall: see `recall`.
        """
        now = self._snapshot
        return {
            "count": now.live,
            "dim": self.dim,
            "nbytes": now.nbytes,
            "dead": now.dead,
            "index": "graph" if self._uses_graphs(now) else "exact",
            "graphs": len(now.graphs),
            "indexed": sum(graph.size for graph in now.graphs),
            "building": now.live > self.exact_limit and self._index_due(now),
            "recall": self.recall,
            "tombstones": len(self._admission.tombstones),
            "digest": as_text(now.digest),
        }

    def __len__(self) -> int:
        return self._snapshot.live

    def __contains__(self, chart_id: object) -> bool:
        return isinstance(chart_id, (int, np.integer)) and self._snapshot.row_of(int(chart_id)) is not None

    def __repr__(self) -> str:
        ordered = "ordered" if self.ordered else "last writer wins"
        index = self.index_state
        return f"VectorStore({len(self)} charts x {self.dim}, {ordered}, index={index}, {_size(self.nbytes)})"

    def _repr_html_(self) -> str:
        status = self.status() | {"nbytes": _size(self.nbytes)}
        return facts_table(status, caption="VectorStore")

    def _queries(self, vectors: npt.ArrayLike, what: str, shape: tuple[int | None, ...]) -> Floats:
        queries = as_floats(vectors, what)
        if queries.ndim != len(shape) or queries.shape[-1] != self.dim:
            wanted = str(shape).replace("None", "n")
            raise ValueError(f"{what} must be of shape {wanted}, got {queries.shape}")
        check_unit(queries, what)
        return queries

    def _search(self, queries: Floats, k: int, chart_ids: Iterable[int] | None) -> list[Matches]:
        k = as_integer("k", k, smallest=1)
        wanted = None if chart_ids is None else as_chart_ids(chart_ids).tolist()
        now = self._snapshot
        exact = not self._uses_graphs(now)
        if not exact and wanted is None and len(queries) and self._recall.offer(queries[0], k):
            with suppress(RuntimeError):  # no thread can be had now: that is no reason to give no answer
                self._wake_indexer(waits=False)
        return now.search(queries, k, wanted, exact=exact)

    # --- the index --------------------------------------------------------------------------------------------

    def index_step(self) -> bool:
        """Do one short step: index a few hundred rows of the graphs that are due, and measure `recall`.

        Return True if there is more to do.
        """
        with self._index_lock:
            now = self._snapshot
            if self._uses_graphs(now):
                self._recall.measure(now)
            else:
                self._recall.clear()
            build = self._build
            self._build = None  # an interrupt below loses the unfinished graph, and nothing else
            if now.live <= self.exact_limit // 2:
                if now.graphs:
                    self._show_graphs(0, ())
            elif build is not None or self._index_due(now):
                build = build or self._plan(now)
                build.add(INDEXED_AT_ONCE)
                graph = build.sealed()
                if graph is None:
                    self._build = build
                    return True
                self._show_graphs(graph.start, (graph,))
        return self._index_due(self._snapshot)

    def _uses_graphs(self, now: Snapshot) -> bool:
        return bool(now.graphs) and now.live > self.exact_limit

    def _index_due(self, now: Snapshot) -> bool:
        if now.live <= self.exact_limit:
            return bool(now.graphs) and now.live <= self.exact_limit // 2
        return now.next_serial - now.indexed_to > self.exact_limit // 2 or self._stale(now)

    @staticmethod
    def _stale(now: Snapshot) -> bool:
        return sum(graph.size for graph in now.graphs) > STALE_FACTOR * now.live

    def _plan(self, now: Snapshot) -> GraphBuild:
        """Plan a graph over all that is newer than the graphs, and over the youngest graphs that are no larger than it.

        So graphs double in size from young to old, a search asks few of them, and each row is indexed few times.
        """
        start = now.indexed_to
        rows = now.live_rows(now.row_from(start))
        for graph in reversed(now.graphs):
            merged = now.live_rows(now.row_from(graph.start))
            if len(merged) > 2 * len(rows) and not self._stale(now):
                break
            start, rows = graph.start, merged
        return GraphBuild(start, now.next_serial, now.rows.vectors, rows, now.rows.serials[rows])

    def _show_graphs(self, start: int, graphs: tuple[Graph, ...]) -> None:
        """Replace the graphs from serial ``start`` on."""
        with self._lock:
            now = self._base()
            self._snapshot = replace(now, graphs=(*(g for g in now.graphs if g.stop <= start), *graphs))

    def _wake_indexer(self, *, waits: bool = True) -> None:
        """Start a thread for what is due. waits: for another caller that does the same; a search need not."""
        if self._background and self._has_work() and self._indexer_lock.acquire(blocking=waits):
            try:
                if self._indexer is None or not self._indexer.is_alive():
                    self._indexer = _Indexer(self)
                    self._indexer.start()
            finally:
                self._indexer_lock.release()

    def _has_work(self) -> bool:
        return self._recall.waits or self._index_due(self._snapshot)

    def _index_on(self) -> bool:
        """Do a step in the background thread; return False if it has to end."""
        if self.index_step():
            return True
        with self._indexer_lock:  # a writer either sees that the thread has gone, or is seen here
            if self._has_work():
                return True
            self._indexer = None
        return False


@dataclass(frozen=True, slots=True, eq=False)
class _Change:
    """What turns one snapshot into the next; applying it twice does no harm."""

    after: Snapshot
    dying: list[int]
    newest: dict[int, int]
    older: dict[int, int]
    tombstones: Mapping[int, int]
    latest: int


class _Indexer(threading.Thread):
    """Build a store's graphs until they are current, the store is gone or the interpreter ends.

    The interpreter must not end while usearch adds: a daemon thread that is cut off in there aborts the process (2.26:
    "terminate called without an active exception"). So it is stopped before, which takes one step at most.
    """

    def __init__(self, store: VectorStore) -> None:
        super().__init__(name="copilotlab-index", daemon=True)
        self._store = weakref.ref(store)
        self._stopping = threading.Event()

    def start(self) -> None:
        atexit.register(self.stop)
        try:
            super().start()
        except RuntimeError:
            atexit.unregister(self.stop)
            raise

    def run(self) -> None:
        try:
            while not self._stopping.is_set() and self._step():
                pass
        finally:
            atexit.unregister(self.stop)

    def stop(self) -> None:
        self._stopping.set()
        if self.is_alive():
            self.join(STOP_SECONDS)

    def _step(self) -> bool:
        store = self._store()
        return store is not None and store._index_on()


def _rank(record: Record) -> Rank:
    return record.revision, record.vector_hash, record.content_hash


def _size(nbytes: int) -> str:
    return f"{nbytes / 2**20:.1f} MB"
