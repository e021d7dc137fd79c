"""One state of a store, frozen: what a search sees from its start to its end.

Rows are appended and never changed. A row whose chart was superseded or removed gets the clock's tick in ``died``; a
snapshot sees the rows before its ``count`` that had not died by its ``clock``. So a writer appends rows, marks those
that they replace with the next tick, and publishes a snapshot of that tick. Readers of older snapshots go on seeing
what they saw, without a lock and without a copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import numpy.typing as npt

from copilotlab.digest import MODULUS, as_text, entry
from copilotlab.store.codes import Coded, Codes
from copilotlab.store.graph import EXPANSION_SEARCH, Graph
from copilotlab.store.records import HASH_BYTES, LARGEST, Bytes, Floats, Ints, Manifest, Matches, News, Record
from copilotlab.store.saved import Columns

NEVER = 2**63 - 1
ROWS_AT_ONCE = 4096  # copied or rescored; between two such pieces other threads get their turn
SCORES_AT_ONCE = 2**22  # of one product with several queries: 16 MB
GATHERED_BELOW = 1 / 8  # share of the rows from which multiplying all costs less than gathering some: measured
SPARE_ROWS = 16
MANY = 256  # candidates, from which on a float32 product before the exact ranking is the cheaper way: measured


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Arrays of one length; a row is one version of a chart."""

    vectors: Floats
    codes: Codes
    """The vectors in eight bits, with ``scales`` and ``rests``: see `Coded`."""
    scales: Floats
    rests: Floats
    chart_ids: Ints
    revisions: Ints
    content_hashes: Bytes
    vector_hashes: Bytes
    serials: Ints
    """The store's rows are numbered as they come, so serials ascend; a row that moves to new arrays keeps its own."""
    died: Ints

    @classmethod
    def empty(cls, capacity: int, dim: int) -> Rows:
        return cls(
            vectors=np.empty((capacity, dim), dtype=np.float32),
            codes=np.empty((capacity, dim), dtype=np.int8),
            scales=np.empty(capacity, dtype=np.float32),
            rests=np.empty(capacity, dtype=np.float32),
            chart_ids=np.empty(capacity, dtype=np.int64),
            revisions=np.empty(capacity, dtype=np.int64),
            content_hashes=np.empty((capacity, HASH_BYTES), dtype=np.uint8),
            vector_hashes=np.empty((capacity, HASH_BYTES), dtype=np.uint8),
            serials=np.empty(capacity, dtype=np.int64),
            died=np.full(capacity, NEVER, dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.chart_ids)

    @property
    def row_nbytes(self) -> int:
        """Bytes of one row in all arrays."""
        arrays: list[npt.NDArray[np.generic]] = [getattr(self, array.name) for array in fields(self)]
        return sum(array[:1].nbytes for array in arrays)

    def write(self, start: int, serial: int, records: Sequence[Record]) -> None:
        """Fills the rows from ``start`` on, which no snapshot sees yet."""
        written = slice(start, start + len(records))
        for row, record in enumerate(records, start):
            self.vectors[row] = record.vector
        self.codes[written], self.scales[written], self.rests[written] = Coded.of(self.vectors[written])
        self.chart_ids[written] = [record.chart_id for record in records]
        self.revisions[written] = [record.revision for record in records]
        self.content_hashes[written] = _stacked(record.content_hash for record in records)
        self.vector_hashes[written] = _stacked(record.vector_hash for record in records)
        self.serials[written] = range(serial, serial + len(records))

    def fill(self, columns: Columns) -> None:
        """Write the columns into the first rows, which no snapshot sees yet."""
        count = len(columns.chart_ids)
        for start in range(0, count, ROWS_AT_ONCE):
            part = slice(start, min(start + ROWS_AT_ONCE, count))
            self.vectors[part] = columns.vectors[part]
            self.codes[part], self.scales[part], self.rests[part] = Coded.of(columns.vectors[part])
        self.chart_ids[:count] = columns.chart_ids
        self.revisions[:count] = columns.revisions
        self.content_hashes[:count] = columns.content_hashes
        self.vector_hashes[:count] = columns.vector_hashes
        self.serials[:count] = range(count)

    def take(self, other: Rows, chosen: Ints) -> None:
        """Copy the ``chosen`` rows of ``other`` to the first rows here."""
        for start in range(0, len(chosen), ROWS_AT_ONCE):
            piece = chosen[start : start + ROWS_AT_ONCE]
            for array in fields(self):
                if array.name != "died":
                    target = getattr(self, array.name)[start : start + len(piece)]
                    np.take(getattr(other, array.name), piece, axis=0, out=target, mode="clip")


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """A store's content at one tick. Its methods are safe beside writers and wait for none."""

    rows: Rows
    newest: dict[int, int] = field(default_factory=dict)
    """chart_id -> serial of its last row. Shared with later snapshots, so it may be ahead of this one."""
    older: dict[int, int] = field(default_factory=dict)
    """serial -> serial of the row that it followed: the way back to what this snapshot sees. Shared as well."""
    count: int = 0
    clock: int = 0
    live: int = 0
    next_serial: int = 0
    digest: int = 0
    content: int = 0
    """The digest without the vectors, as a repository has it."""
    graphs: tuple[Graph, ...] = ()
    """Over adjoining ranges of serials, from 0 on."""

    @classmethod
    def of(cls, columns: Columns) -> Snapshot:
        """Make the first snapshot of a store from what another one held."""
        chart_ids, count = columns.chart_ids.tolist(), len(columns.chart_ids)
        rows = Rows.empty(count + max(SPARE_ROWS, count // 4), columns.vectors.shape[1])
        rows.fill(columns)
        heads = columns.revisions.tolist(), map(bytes, columns.content_hashes), map(bytes, columns.vector_hashes)
        digest = content = 0
        for chart_id, revision, content_hash, vector_hash in zip(chart_ids, *heads, strict=True):
            digest += entry(chart_id, revision, content_hash, vector_hash)
            content += entry(chart_id, revision, content_hash)
        return cls(
            rows,
            newest=dict(zip(chart_ids, range(count), strict=True)),
            count=count,
            clock=1,
            live=count,
            next_serial=count,
            digest=digest % MODULUS,
            content=content % MODULUS,
        )

    @property
    def dim(self) -> int:
        dim: int = self.rows.vectors.shape[1]
        return dim

    @property
    def dead(self) -> int:
        return self.count - self.live

    @property
    def indexed_to(self) -> int:
        """The first serial that no graph covers."""
        return self.graphs[-1].stop if self.graphs else 0

    @property
    def nbytes(self) -> int:
        """Bytes of the rows, dead ones too, and of the graphs."""
        return self.count * self.rows.row_nbytes + sum(graph.nbytes for graph in self.graphs)

    # --- which rows -------------------------------------------------------------------------------------------

    def row_of(self, chart_id: int) -> int | None:
        """Return the row that holds the chart; None if this snapshot has no such chart."""
        serial = self._serial_of(chart_id)
        if serial < 0:
            return None
        row = self.row_from(serial)
        if row == self.count or self.rows.serials[row] != serial or self.rows.died[row] <= self.clock:
            return None
        return row

    def rows_of(self, chart_ids: Iterable[int]) -> Ints:
        """Return the rows that hold these charts, each once; charts that are not in this snapshot are left out."""
        serials = np.fromiter((self._serial_of(chart_id) for chart_id in chart_ids), dtype=np.int64)
        return self.rows_with(np.unique(serials))

    def rows_with(self, serials: Ints) -> Ints:
        """Return the live rows among those that have these serials."""
        known = self.rows.serials[: self.count]
        rows = np.searchsorted(known, serials)
        inside = rows < self.count
        rows, serials = rows[inside], serials[inside]
        live: Ints = rows[(known[rows] == serials) & (self.rows.died[rows] > self.clock)]
        return live

    def row_from(self, serial: int) -> int:
        """Return the first row with this serial or a larger one; ``count`` if there is none."""
        return int(self.rows.serials[: self.count].searchsorted(serial))

    def live_rows(self, start: int = 0) -> Ints:
        """Return the live rows from row ``start`` on, ascending."""
        rows: Ints = start + np.flatnonzero(self.rows.died[start : self.count] > self.clock)
        return rows

    def news(self, serial: int) -> News:
        """Return what came in with this serial or a later one."""
        rows = self.live_rows(self.row_from(serial))
        return News(self.rows.chart_ids[rows], self.rows.revisions[rows], self.next_serial, self.live)

    def _serial_of(self, chart_id: int) -> int:
        serial = self.newest.get(chart_id, -1)
        while serial >= self.next_serial:  # written after this snapshot
            serial = self.older.get(serial, -1)
        return serial

    # --- what they hold ---------------------------------------------------------------------------------------

    def record(self, chart_id: int) -> Record | None:
        row = self.row_of(chart_id)
        if row is None:
            return None
        vector = self.rows.vectors[row].copy()  # a view would keep the whole matrix alive
        vector.setflags(write=False)
        return Record(chart_id, self.revision(row), self.content_hash(row), vector, self.vector_hash(row))

    def revision(self, row: int) -> int:
        return int(self.rows.revisions[row])

    def content_hash(self, row: int) -> bytes:
        return bytes(self.rows.content_hashes[row])

    def vector_hash(self, row: int) -> bytes:
        return bytes(self.rows.vector_hashes[row])

    def entry(self, row: int, *, vector: bool = True) -> int:
        """Return what the row's chart adds to ``digest``, or, without its ``vector``, to ``content``."""
        vector_hash = self.vector_hash(row) if vector else b""
        return entry(int(self.rows.chart_ids[row]), self.revision(row), self.content_hash(row), vector_hash)

    def heads(self, chart_ids: Ints) -> tuple[Ints, Bytes]:
        """Return revisions, -1 where there is no such chart, and content hashes, in the order of ``chart_ids``."""
        serials = np.fromiter(map(self._serial_of, chart_ids.tolist()), dtype=np.int64, count=len(chart_ids))
        known = self.rows.serials[: self.count]
        rows = np.minimum(np.searchsorted(known, serials), max(self.count - 1, 0))
        if self.count == 0:
            return np.full(len(chart_ids), -1), np.zeros((len(chart_ids), HASH_BYTES), dtype=np.uint8)
        live = (known[rows] == serials) & (self.rows.died[rows] > self.clock)
        return np.where(live, self.rows.revisions[rows], -1), self.rows.content_hashes[rows]

    def columns(self, chart_ids: Iterable[int]) -> tuple[Ints, Ints, Bytes, Floats]:
        """Return chart_ids, revisions, content hashes and vectors of these charts, row by row."""
        rows = self.rows_of(chart_ids)
        held = self.rows
        return held.chart_ids[rows], held.revisions[rows], held.content_hashes[rows], held.vectors[rows]

    def manifest(self, after: int = -1, most: int | None = None, *, up_to: int = LARGEST) -> Manifest:
        """List at most ``most`` charts after ``after`` and up to ``up_to``; the digest of a part is empty."""
        rows = self.live_rows()
        chart_ids = self.rows.chart_ids[rows]
        if after >= 0 or up_to < LARGEST:
            inside = (chart_ids > after) & (chart_ids <= up_to)
            rows, chart_ids = rows[inside], chart_ids[inside]
        if most is not None and most < len(rows):
            first = np.argpartition(chart_ids, most)[:most]
            rows, chart_ids = rows[first], chart_ids[first]
        rows = rows[np.argsort(chart_ids)]
        return Manifest(
            self.rows.chart_ids[rows],
            self.rows.revisions[rows],
            self.rows.content_hashes[rows],
            self.rows.vector_hashes[rows],
            as_text(self.digest) if len(rows) == self.live else "",
        )

    def moved(self, capacity: int) -> Snapshot:
        """Return the same content in new arrays, without the dead rows."""
        live = self.live_rows()
        rows = Rows.empty(capacity, self.dim)
        rows.take(self.rows, live)
        newest = self.newest.copy()
        dead = np.flatnonzero(self.rows.died[: self.count] <= self.clock)
        for chart_id, serial in zip(self.rows.chart_ids[dead].tolist(), self.rows.serials[dead].tolist(), strict=True):
            if newest.get(chart_id) == serial:  # removed, not superseded
                del newest[chart_id]
        return replace(self, rows=rows, newest=newest, older={}, count=len(live))

    # --- search -----------------------------------------------------------------------------------------------

    def search(self, queries: Floats, k: int, chart_ids: Iterable[int] | None, *, exact: bool) -> list[Matches]:
        """Find the best ``k`` for each of ``queries``, (n, dim): exactly, among ``chart_ids``, or by graphs."""
        found: Iterable[Ints]
        if chart_ids is not None:
            found = self._scan(queries, k, self.rows_of(chart_ids))
        elif exact:
            found = self._scan(queries, k, slice(0, self.count))
        else:
            found = (self._look_up(query, k) for query in queries)
        return [self._ranked(query, rows, k) for query, rows in zip(queries, found, strict=True)]

    def _scan(self, queries: Floats, k: int, rows: slice | Ints) -> Iterator[Ints]:
        """Yield for each query those of ``rows`` that may be among its best ``k``."""
        held, out = self.rows, None
        if isinstance(rows, slice):
            out = held.died[rows] <= self.clock if self.dead else None
        elif len(rows) >= GATHERED_BELOW * self.count:
            out = np.ones(self.count, dtype=bool)
            out[rows] = False
            rows = slice(0, self.count)
        coded = Coded(held.codes[rows], held.scales[rows], held.rests[rows])
        step = max(1, SCORES_AT_ONCE // max(1, len(coded.codes)))
        for first in range(0, len(queries), step):
            asked = queries[first : first + step]
            for query, best in zip(asked, coded.candidates(asked, k, out), strict=True):
                found = rows.start + best if isinstance(rows, slice) else rows[best]
                yield self._narrowed(query, k, found)

    def _narrowed(self, query: Floats, k: int, rows: Ints) -> Ints:
        """Return those of ``rows`` that may be among the best ``k`` by their float32 vectors, where there are many.

        A product errs by less than half the margin, either way.
        """
        if len(rows) <= MANY + k:
            return rows
        scores = np.concatenate(
            [np.vecdot(self.rows.vectors[rows[i : i + ROWS_AT_ONCE]], query) for i in range(0, len(rows), ROWS_AT_ONCE)]
        )
        margin = 1.01 * self.dim * float(np.finfo(np.float32).eps)
        return rows[scores >= float(np.partition(scores, len(scores) - k)[len(scores) - k]) - margin]

    def _look_up(self, query: Floats, k: int) -> Ints:
        """Return rows that may be among the best ``k``: from each graph, and from what is newer than the graphs."""
        newer = slice(self.row_from(self.indexed_to), self.count)
        return np.concatenate([*self._scan(query[None], k, newer), *(self._through(g, query, k) for g in self.graphs)])

    def _through(self, graph: Graph, query: Floats, k: int) -> Ints:
        fetch = max(EXPANSION_SEARCH, 2 * k)  # asking for fewer costs as much
        while fetch < graph.size / 4:
            rows = self.rows_with(graph.nearest(query, fetch))
            if len(rows) >= k:
                return rows
            fetch *= 4  # the neighbourhood is full of dead rows
        (rows,) = self._scan(query[None], k, slice(self.row_from(graph.start), self.row_from(graph.stop)))
        return rows

    def _ranked(self, query: Floats, rows: Ints, k: int) -> Matches:
        """Rank the best ``k`` of ``rows`` by their dot products in double precision, rounded once.

        A float32 product depends in its last bits on where in the matrix a row lies; this does not. So stores of equal
        content give equal answers, to the bit, and equal vectors tie.
        """
        scores = np.empty(len(rows), dtype=np.float32)
        exact_query = query.astype(np.float64)
        for start in range(0, len(rows), ROWS_AT_ONCE):
            piece = slice(start, start + ROWS_AT_ONCE)
            scores[piece] = np.vecdot(self.rows.vectors[rows[piece]].astype(np.float64), exact_query)
        chart_ids = self.rows.chart_ids[rows]
        order = np.lexsort((chart_ids, -scores))[:k]
        return Matches(chart_ids[order], scores[order])


def _stacked(hashes: Iterable[bytes]) -> Bytes:
    return np.frombuffer(b"".join(hashes), dtype=np.uint8).reshape(-1, HASH_BYTES)
