"""The repository: the charts' system of record."""

from __future__ import annotations

import json
import logging
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import msgspec
import numpy as np
import numpy.typing as npt

from copilotlab.charts.chart import (
    HASH_BYTES,
    LINKS,
    LISTS,
    MAX_CHART_ID,
    Chart,
    ChartError,
    ChartNotFound,
    check_chart,
    check_chart_id,
    hash_of,
    plain,
    words_of,
)
from copilotlab.charts.database import RepositoryError, check_timeout, database_of
from copilotlab.charts.mirror import CatalogueLike, Mirrored, MirrorResult, check_size, collision, mirrored
from copilotlab.charts.readers import charts_of
from copilotlab.digest import as_text, digest_of
from copilotlab.lifetime import ForkGate, renewed_by_fork
from copilotlab.markup import is_web_url, rows_table, text
from copilotlab.reasons import reason, short

if TYPE_CHECKING:
    import polars as pl
    import sqlalchemy as sa

    from copilotlab.charts.readers import Charts

MAX_REVISION = 2**63 - 1
UNKNOWN_REVISION = 1  # the lowest one stands for a damaged one, so that the row is told of like any other
TIMEOUT = 5.0  # seconds that a wait for the database takes at most, unless another is given

MOST_TURNS = 12  # times the timeout that a thread waits while others have their turns
TOMBSTONES_KEPT = 100_000  # revisions for which a deletion is remembered; whoever was away for longer compares all

_ROWS_PER_STATEMENT = 1_000  # databases bound the parameters of one statement
_ROWS_PER_PAGE = 5_000
_PURGE_EVERY = 1_000  # revisions
_SCHEMA = 2  # of the tables; 1, which is written nowhere, has no key and url
_MOST_TOLD = 100  # rows that cannot be read and are named in the log

logger = logging.getLogger("copilotlab.charts")


class Change(NamedTuple):
    """A chart at its latest revision; ``chart`` is None where that revision deleted it.

    content_hash: 16 bytes, as the row has it, b"" for a deletion. It fits the words unless they were edited by hand,
    see `ChartRepository.restamp`; zeros where the row has no such hash.
    """

    chart_id: int
    revision: int
    chart: Chart | None
    content_hash: bytes = b""


class Unreadable(NamedTuple):
    """A row that no chart can be made of, since somebody edited it by hand; saving the chart again mends it.

    revision: of the row, 1 where that is damaged. column: the first one that is damaged. reason: the value and what
    was expected. content_hash: as the row has it, zeros where that is damaged too.
    """

    chart_id: int
    revision: int
    column: str
    reason: str
    content_hash: bytes = bytes(HASH_BYTES)


class Reading(NamedTuple):
    """What was read about some charts, by chart_id."""

    changes: dict[int, Change]
    unreadable: dict[int, Unreadable]


class Heads(NamedTuple):
    """What a repository holds, without the words: one row a chart, by revision.

    chart_ids, revisions: int64 (n,); content_hashes: uint8 (n, 16), zeros where deleted; deleted: bool (n,). A row that
    cannot be read has its head too: its revision is 1 where that is damaged, and a chart counts as deleted only where
    its row says so. A row without a chart's id has none.
    """

    chart_ids: npt.NDArray[np.int64]
    revisions: npt.NDArray[np.int64]
    content_hashes: npt.NDArray[np.uint8]
    deleted: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, rows: Sequence[tuple[int, int, bytes, bool]]) -> Heads:
        """Make heads of rows of chart_id, revision, content_hash and deleted; what is no 16-byte hash becomes zeros."""
        hashes = b"".join(_hash(row[2]) for row in rows)
        return cls(
            np.array([row[0] for row in rows], dtype=np.int64),
            np.array([row[1] for row in rows], dtype=np.int64),
            np.frombuffer(hashes, dtype=np.uint8).reshape(-1, HASH_BYTES),
            np.array([row[3] for row in rows], dtype=bool),
        )


class Identity(NamedTuple):
    """Which catalogue a repository holds.

    incarnation: 32 hex digits, drawn when the catalogue was made; a catalogue that was emptied and begun anew has
    another. key: 32 bytes that only those know who can read the database; nodes sign their messages with it.
    """

    incarnation: str
    key: bytes

    def __repr__(self) -> str:
        return f"Identity({self.incarnation[:8]!r})"


class Look(NamedTuple):
    """A repository at one moment.

    digest: of the live charts (`copilotlab.digest`), kept in the transaction of each change; heads: what was asked for.
    """

    identity: Identity
    revision: int
    digest: int
    heads: Heads


class ChartRepository:
    """The system of record: every save and every delete gets the catalogue's next revision, in one transaction.

    url: any SQLAlchemy URL, such as sqlite:///charts.db or postgresql+psycopg://user:password@host/charts; "sqlite://",
    the default, is in memory. Or an SQLAlchemy Engine of your own, which is used as it is, its timeouts included, and
    left open. Tables are made where they are missing; those of an earlier version get the columns that they lack, which
    the log says, and those of a later one are refused.
    timeout: seconds (5) that connecting, a statement, or waiting for another one's write may take, on SQLite and with
    psycopg; then it is a RepositoryError. What reads and imports much is cut into statements that take less. A
    connection that turns out dead before anything was begun on it is replaced within that time.
    connect_args: for the driver, beside and before what follows from ``timeout``, as in {"prepare_threshold": None}
    for psycopg behind PgBouncer. So are those in the URL. Other drivers get their timeouts here.

    A row that was damaged by hand harms no other row: it is left out, `read_many` names it, and the log
    (copilotlab.charts) does so once.

    Safe for threads, and, except in memory, for processes. A deletion leaves a tombstone: the id and its revision.
    Raises RepositoryError when the database cannot be reached, ValueError for what is not such a URL or timeout.
    """

    identity: Identity
    """Which catalogue this is, as of the last `look`."""

    def __init__(
        self,
        url: str | sa.Engine = "sqlite://",
        *,
        timeout: float = TIMEOUT,
        connect_args: Mapping[str, Any] | None = None,
    ) -> None:
        self.timeout = check_timeout(timeout)
        self._database = database_of(url, self.timeout, connect_args)
        self._engine, self._shown_url = self._database.engine, self._database.shown_url
        self._lock = threading.RLock()  # of what threads cannot do at once
        self._fork_gate = ForkGate()
        self._charts, self._counter = _tables()
        self._turns = 0  # that threads have had, where they come one by one
        self._told: dict[int, Unreadable] = {}
        self._gone = False  # closed, and it was in memory
        self._file_id: tuple[int, int] | None = None  # of SQLite's file: device and inode
        with self._transaction(writes=True) as connection:
            self.identity = self._create(connection)
        renewed_by_fork(self)

    def before_fork(self) -> None:
        """Wait until transactions under way are over.

        SQLite keeps locks by process: a child would take the parent's for its own, so it begins without any connection
        to a file.
        """
        database = self._database
        if self._fork_gate.shut() and self._engine.dialect.name == "sqlite" and not database.in_memory:
            self._engine.dispose()

    def after_fork_in_parent(self) -> None:
        """Let transactions begin again."""
        self._fork_gate.open()

    def after_fork(self) -> None:
        """Connect anew in a forked child; a repository in memory is a copy of the parent's from now on."""
        self._fork_gate = ForkGate()
        self._lock = threading.RLock()
        if not self._database.in_memory:
            self._inherited = self._engine.pool  # never closed here: its connections are the parent's
            self._engine.dispose(close=False)

    @classmethod
    def from_frame(cls, frame_or_path: Charts, url: str | sa.Engine = "sqlite://", **options: Any) -> Self:
        """Make a repository with the charts of a frame, a list of dicts or a file; see `load_frame`.

        options: as for the class.
        """
        charts = charts_of(frame_or_path)  # before the database is touched
        repository = cls(url, **options)
        repository.save_many(charts)
        return repository

    def load_frame(self, frame_or_path: Charts) -> int:
        """Save the charts of a frame, list or file, all or none; return the catalogue's revision after it.

        frame_or_path: a frame of polars or pandas (chart_id may be its index), a list of dicts, or the path of a
        .parquet, .csv, .tsv, .ndjson, .jsonl or .xlsx file. Text may be in UTF-8, UTF-16 or cp1252 (which the log
        says), and a .csv may have commas, semicolons, tabs or ``|`` between its fields.
        Columns: chart_id and title, and those of `Chart` that there are, also as "Chart ID"; others are not read, which
        the log says. An id may be a float or text, as in 7.0, and may be absent where there is a key. dimensions,
        measures and tags are lists, or text: a list in JSON or as Python writes it, or words with semicolons between,
        else with ``|``, else with commas. None, NaN and "" say nothing, and rows that say nothing are left out. Raises
        ChartError that names the file, the first 10 bad rows (from 1, without the header, blank ones counted) with
        their lines in a file of text, the column, and what was expected.
        """
        return self.save_many(charts_of(frame_or_path))

    # --- writing ----------------------------------------------------------------------------------------------

    def save(self, chart: Chart) -> int:
        """Save ``chart``; return its revision. A save that changes nothing keeps the revision."""
        check_chart(chart)
        with self._transaction(writes=True) as connection:
            return self._save(connection, [chart])[chart.chart_id]

    def save_many(self, charts: Iterable[Chart], *, progress: bool = False) -> int:
        """Save ``charts`` in one transaction, each changed one at its own revision, in order; return the last revision.

        Of several with one id the last counts. progress: show a bar.
        """
        latest: dict[int, Chart] = {}
        for chart in charts:
            check_chart(chart)
            latest.pop(chart.chart_id, None)
            latest[chart.chart_id] = chart
        listed = list(latest.values())
        from tqdm.auto import tqdm

        with self._transaction(writes=True) as connection:
            starts = range(0, len(listed), _ROWS_PER_STATEMENT)
            for start in tqdm(
                starts, desc="saving", unit_scale=_ROWS_PER_STATEMENT, disable=None if progress else True
            ):
                self._save(connection, listed[start : start + _ROWS_PER_STATEMENT])
            return self._current(connection)

    def delete(self, chart_id: int) -> int:
        """Delete the chart; return its tombstone's revision.

        Raises ChartNotFound if there is none, ChartError for what is not a chart's id.
        """
        chart_id = check_chart_id(chart_id)
        with self._transaction(writes=True) as connection:
            state = self._state(connection, lock=True)
            revision = state.revision + 1
            held = self._read(connection, [chart_id])
            if chart_id not in held.unreadable and held.changes.get(chart_id, _NONE).chart is None:
                raise ChartNotFound(f"chart {chart_id!r} is not in {self._shown_url}, so it cannot be deleted")
            self._write(connection, state, [_row(chart_id, revision, None)])
            return revision

    def mirror(
        self,
        catalogue: CatalogueLike,
        *,
        instance: str | None = None,
        allow_shrink: bool = False,
        dry_run: bool = False,
        progress: bool = False,
    ) -> MirrorResult:
        """Make the charts of one instance of another tool what its catalogue says, in one transaction.

        What changed is saved, at a new revision; what is in the catalogue no more is deleted, but for what could not be
        read, and was skipped by its native id: that is still there, and stays as it was. What was skipped since it is
        no chart any more is deleted; one that could not be read to the end (``complete`` is False) deletes nothing
        else: those are `MirrorResult.held_back`. A link that it does not know stays as it was. Charts of other
        instances and tools, and those without a key, are not touched. A row that is no chart is skipped, and the log
        names it.
        instance: in place of the catalogue's own. allow_shrink: take a catalogue also where it came out empty, or with
        less than half of the charts that are held. dry_run: change nothing, and return what would become of it.
        progress: show bars.
        Raises ChartError for such a catalogue, and where another chart has the id of one of its keys, RepositoryError;
        then, and after Ctrl-C, nothing was changed.
        """
        given = mirrored(catalogue, instance, progress=progress)
        rows = {chart_id: _row(chart_id, 0, chart) for chart_id, chart in given.charts.items()}
        with self._transaction() as connection:
            read_at = self._current(connection)
            found = self._compare(connection, given, rows, allow_shrink=allow_shrink, progress=progress)
        if dry_run or not found.rows:  # as most often: no writer had to wait
            return found.result
        with self._transaction(writes=True) as connection:
            if self._state(connection, lock=True).revision != read_at:
                found = self._compare(connection, given, rows, allow_shrink=allow_shrink, progress=progress)
            self._write_many(connection, found.rows, f"saving {given.prefix[:-1]}", progress=progress)
        return found.result

    def _compare(
        self,
        connection: sa.Connection,
        given: Mirrored,
        rows: Mapping[int, dict[str, Any]],
        *,
        allow_shrink: bool,
        progress: bool,
    ) -> _Difference:
        """Find out what a mirror has to write. rows: of what it is given. Raises ChartError where it may not."""
        import sqlalchemy as sa
        from tqdm.auto import tqdm

        table = self._charts.c
        ours = sa.func.substr(table.key, 1, len(given.prefix)) == given.prefix  # LIKE knows no capitals in SQLite
        query = _as_stored(table.chart_id, table.key).where(ours, table.deleted.is_not(True))
        held: dict[int, str] = {chart_id: key for chart_id, key in connection.execute(query)}
        if not allow_shrink:
            check_size(given, set(held.values()))
        names = [column.name for column in table if column is not table.revision]
        query, chart_ids = _as_stored(*(table[name] for name in names)), list(rows)
        is_deleted, key, url = map(names.index, ("deleted", "key", "url"))
        added, changed = [], []
        bar = tqdm(desc=f"comparing {given.prefix[:-1]}", total=len(rows), disable=None if progress else True)
        with bar:
            for part in _parts(chart_ids):
                stored = {row[0]: row for row in connection.execute(query.where(table.chart_id.in_(part)))}
                for chart_id in part:
                    row, other = rows[chart_id], stored.get(chart_id)
                    if other is not None and chart_id in given.unlinked and is_web_url(str(other[url])):
                        row = {**row, "url": other[url]}
                    if other is None or other[is_deleted]:
                        added.append(row)
                    elif other[key] not in ("", row["key"]):
                        raise collision(given.charts[chart_id], other[key])
                    elif any(value != row[name] for name, value in zip(names, other, strict=True)):
                        changed.append(row)
                bar.update(len(part))
        lacking = [(chart_id, its_key) for chart_id, its_key in held.items() if given.lacks(chart_id, its_key)]
        gone = [chart_id for chart_id, its_key in lacking if given.is_over(its_key)]
        held_back = [chart_id for chart_id, its_key in lacking if not given.is_over(its_key)]
        unchanged = len(rows) - len(added) - len(changed)
        result = MirrorResult(len(added), len(changed), unchanged, len(gone), given.skipped)
        result.held_back = len(held_back)
        result.unread = given.unread if held_back else ()
        result.titles = {
            "added": tuple(row["title"] for row in added[:_MOST_TITLES]),
            "changed": tuple(row["title"] for row in changed[:_MOST_TITLES]),
            "deleted": self._titles(connection, gone[:_MOST_TITLES]),
            "held_back": self._titles(connection, held_back[:_MOST_TITLES]),
        }
        return _Difference([*added, *changed, *(_row(i, 0, None) for i in gone)], result)

    def _titles(self, connection: sa.Connection, chart_ids: Sequence[int]) -> tuple[str, ...]:
        """Return the titles of charts, in order; also of rows whose other fields cannot be read."""
        table = self._charts.c
        query = _as_stored(table.chart_id, table.title).where(table.chart_id.in_(chart_ids))
        titles: dict[int, object] = {chart_id: title for chart_id, title in connection.execute(query)}
        return tuple(str(titles.get(chart_id, "")) for chart_id in chart_ids)

    def _write_many(
        self, connection: sa.Connection, rows: Sequence[dict[str, Any]], label: str, *, progress: bool
    ) -> None:
        """Write rows at the next revisions, in order."""
        from tqdm.auto import tqdm

        with tqdm(desc=label, total=len(rows), disable=None if progress else True) as bar:
            for start in range(0, len(rows), _ROWS_PER_STATEMENT):
                state = self._state(connection, lock=True)
                part = rows[start : start + _ROWS_PER_STATEMENT]
                revised = [{**row, "revision": state.revision + number} for number, row in enumerate(part, start=1)]
                self._write(connection, state, revised)
                bar.update(len(part))

    def restamp(self, chart_ids: Iterable[int] | None = None) -> list[int]:
        """Give a new revision, as a save does, to each chart edited by hand; return their ids, in order.

        Those are the rows whose content_hash does not fit their words: whoever wrote them with SQL left it as it was.
        chart_ids: None looks at the whole catalogue; it is read page by page, and written to only where there is need.
        Rows that cannot be read stay as they are. A whole look also brings the catalogue's digest in line with its
        rows, so that all nodes see what was deleted by hand. Raises ChartError for what is no whole number.
        """
        edited = self._edited(None if chart_ids is None else _checked_ids(chart_ids))
        if chart_ids is None:
            self._mend_digest()
        stamped: list[int] = []
        if not edited:
            return stamped
        with self._transaction(writes=True) as connection:
            self._state(connection, lock=True)  # before the words are read again: nobody changes them meanwhile
            for part in _parts(edited):
                changes = self._read(connection, part).changes
                charts = [chart for i in part if i in changes and (chart := _edited(changes[i])) is not None]
                self._save(connection, charts)
                stamped += [chart.chart_id for chart in charts]
        logger.warning(
            "%s charts in %s were edited by hand, or saved by another version, and have a new revision now",
            f"{len(stamped):,}",
            self._shown_url,
        )
        return stamped

    def _mend_digest(self) -> None:
        import sqlalchemy as sa

        def differs(connection: sa.Connection, *, lock: bool = False) -> str:
            state = self._state(connection, lock=lock)
            digest = self._digest(connection, sa.true())
            return as_text(digest) if digest != state.digest else ""

        with self._transaction() as connection:
            if not differs(connection):
                return
        with self._transaction(writes=True) as connection:
            if digest := differs(connection, lock=True):
                connection.execute(self._counter.update().values(digest=digest))
                logger.warning("rows of %s were added or deleted by hand; all nodes compare anew", self._shown_url)

    def _edited(self, chart_ids: Sequence[int] | None) -> list[int]:
        with self._transaction() as connection:
            if chart_ids is None:
                table = self._charts.c
                pages = self._rows(connection, _as_stored(*table), table.chart_id, -1)
                doubtful = (row for page in pages for row in page if not _fits(row))
                return [change.chart_id for change in self._sound(doubtful) if _edited(change)]
            parts = _parts(list(dict.fromkeys(chart_ids)))
            changes = [change for part in parts for change in self._read(connection, part).changes.values()]
            return sorted(change.chart_id for change in changes if _edited(change))

    def _save(self, connection: sa.Connection, charts: Sequence[Chart]) -> dict[int, int]:
        state = self._state(connection, lock=True)
        revision = state.revision
        held = self._read(connection, [chart.chart_id for chart in charts]).changes
        revisions, rows = {}, []
        for chart in charts:
            change = held.get(chart.chart_id, _NONE)
            if chart.key and change.chart and change.chart.key not in ("", chart.key):
                raise collision(chart, change.chart.key)
            if change.chart == chart and change.content_hash == chart.content_hash:
                revisions[chart.chart_id] = change.revision
                continue
            revision += 1
            revisions[chart.chart_id] = revision
            rows.append(_row(chart.chart_id, revision, chart))
        if rows:
            self._write(connection, state, rows)
        return revisions

    def _write(self, connection: sa.Connection, state: _State, rows: list[dict[str, Any]]) -> None:
        """Put these rows in place of those of the same charts, and move the counter and the digest on."""
        chart_ids = [row["chart_id"] for row in rows]
        these = self._charts.c.chart_id.in_(chart_ids)
        before = self._digest(connection, these)
        connection.execute(self._charts.delete().where(these))
        connection.execute(self._charts.insert(), rows)
        live = [row for row in rows if not row["deleted"]]
        after = digest_of((row["chart_id"], row["revision"], row["content_hash"]) for row in live)
        revision, digest = rows[-1]["revision"], as_text(state.digest - before + after)
        connection.execute(self._counter.update().values(revision=revision, digest=digest))
        if revision // _PURGE_EVERY > state.revision // _PURGE_EVERY:
            old = self._charts.c.deleted.is_(True) & (self._charts.c.revision <= revision - TOMBSTONES_KEPT)
            connection.execute(self._charts.delete().where(old))

    def _digest(self, connection: sa.Connection, chosen: sa.ColumnElement[bool]) -> int:
        """Return the digest of the live charts among the ``chosen`` rows."""
        table = self._charts
        query = _as_stored(table.c.chart_id, table.c.revision, table.c.content_hash, table.c.deleted)
        rows = connection.execute(query.where(chosen))
        heads = (head for row in rows if (head := _head(row)) is not None)
        return digest_of((chart_id, revision, _hash(stored)) for chart_id, revision, stored, gone in heads if not gone)

    # --- reading ----------------------------------------------------------------------------------------------

    @property
    def revision(self) -> int:
        """The catalogue's revision; 0 when nothing was ever saved."""
        with self._transaction() as connection:
            return self._current(connection)

    def look(self, since: int | None = None) -> Look:
        """Return the catalogue at this moment: which one it is, its revision and digest, and the heads of what changed.

        since: a revision: what changed after it, tombstones too. 0: all live charts. None, the default: no heads.
        """
        with self._transaction() as connection:
            state = self._state(connection)
            heads = Heads.of([])
            if since is not None and (since == 0 or state.revision > since):
                heads = self._heads(connection, _revision(since), live=since == 0)
        self.identity = state.identity
        return Look(state.identity, state.revision, state.digest, heads)

    def get(self, chart_id: int) -> Chart | None:
        """Return the chart, or None. Raises ChartError for what is not an id, and for a row that cannot be read."""
        chart_id = check_chart_id(chart_id)
        reading = self.read_many([chart_id])
        if (row := reading.unreadable.get(chart_id)) is not None:
            raise ChartError(
                f"chart {chart_id} in {self._shown_url} cannot be read: the column {row.column!r} is damaged "
                f"({row.reason}). Save the chart again, or delete it"
            )
        return reading.changes.get(chart_id, _NONE).chart

    def get_many(self, chart_ids: Iterable[int]) -> dict[int, Change]:
        """Return the latest change of each of these charts, tombstones too, by chart_id.

        Ids that were never saved, and rows that cannot be read, are left out; see `read_many`. Raises ChartError for
        what is no whole number.
        """
        return self.read_many(chart_ids).changes

    def read_many(self, chart_ids: Iterable[int]) -> Reading:
        """Return what `get_many` does, and which of the rows cannot be read, and why."""
        reading = Reading({}, {})
        with self._transaction() as connection:
            for part in _parts(_checked_ids(chart_ids)):
                changes, unreadable = self._read(connection, part)
                reading.changes.update(changes)
                reading.unreadable.update(unreadable)
        return reading

    def changes_since(self, revision: int = 0) -> list[Change]:
        """List each chart that changed after ``revision``, once, at its latest revision, tombstones too, oldest first.

        Rows that cannot be read are left out. Raises ValueError for what is no revision.
        """
        revision = _revision(revision)
        with self._transaction() as connection:
            pages = list(self._rows_since(connection, revision, self._charts.c))
        return [change for page in pages for change in self._sound(page)]

    def heads_since(self, revision: int = 0) -> Heads:
        """Return `changes_since` without the words, some ten times as fast: enough to see what differs."""
        with self._transaction() as connection:
            return self._heads(connection, _revision(revision))

    def _heads(self, connection: sa.Connection, since: int, *, live: bool = False) -> Heads:
        table = self._charts
        columns = (table.c.chart_id, table.c.revision, table.c.content_hash, table.c.deleted)
        pages = self._rows_since(connection, since, columns, live=live)
        return Heads.of([head for page in pages for row in page if (head := _head(row)) is not None])

    def frame(self) -> pl.DataFrame:
        """Return the catalogue: the fields of `Chart`, and ``revision``, by chart_id.

        For pandas: ``pd.DataFrame(charts.frame().rows(named=True))``, or ``charts.frame().to_pandas()``, which needs
        pyarrow (pip install pandas pyarrow).
        """
        import polars as pl

        live = sorted(change for change in self.changes_since(0) if change.chart is not None)
        columns = {field.name: [plain(getattr(change.chart, field.name)) for change in live] for field in fields(Chart)}
        words = dict.fromkeys(LISTS, pl.List(pl.String))
        texts = dict.fromkeys(_TEXTS, pl.String)
        return pl.DataFrame(
            {**columns, "revision": [change.revision for change in live]},
            schema_overrides={"chart_id": pl.Int64, "revision": pl.Int64, **words, **texts},
        )

    def __len__(self) -> int:
        import sqlalchemy as sa

        live = sa.select(sa.func.count()).select_from(self._charts).where(self._charts.c.deleted.is_not(True))
        with self._transaction() as connection:
            return int(connection.execute(live).scalar_one())

    def __contains__(self, chart_id: object) -> bool:
        try:
            known = check_chart_id(chart_id)
        except ChartError:
            return False
        return self.get_many([known]).get(known, _NONE).chart is not None

    def __iter__(self) -> Iterator[Chart]:
        return iter([change.chart for change in self.changes_since(0) if change.chart is not None])

    def _current(self, connection: sa.Connection) -> int:
        return self._state(connection).revision

    def _state(self, connection: sa.Connection, *, lock: bool = False) -> _State:
        # The counter's row is locked before anything is compared: so revisions are in the order of commits.
        query = self._counter.select()
        row = connection.execute(query.with_for_update() if lock else query).first()
        if row is None:
            raise RepositoryError(
                f"the repository at {self._shown_url} has lost its counter, the row of {self._counter.name}: "
                "open it anew, with ChartRepository(url), and it begins another"
            )
        revision = row.revision
        if lock:  # rows that were put in by hand, or a counter that was restored alone: the next one is above both
            revision = max(revision, self._highest(connection))
        try:
            return _State(revision, int(row.digest, 16), Identity(row.incarnation, bytes.fromhex(row.secret)))
        except (ValueError, TypeError) as error:
            raise RepositoryError(
                f"the counter of the repository at {self._shown_url}, {self._counter.name}, was edited: {error}. "
                "Delete its row and open the repository anew: it begins another"
            ) from error

    def _highest(self, connection: sa.Connection) -> int:
        """Return the highest revision of a row; 0 where there are no rows."""
        import sqlalchemy as sa

        query = sa.select(sa.func.max(self._charts.c.revision)).where(self._charts.c.revision <= MAX_REVISION)
        return connection.execute(query).scalar_one() or 0

    def _read(self, connection: sa.Connection, chart_ids: Sequence[int]) -> Reading:
        known = [i for i in chart_ids if 0 <= i <= MAX_CHART_ID]
        query = _as_stored(*self._charts.c).where(self._charts.c.chart_id.in_(known))
        reading = Reading({}, {})
        for row in map(_reading, connection.execute(query)):
            if isinstance(row, Unreadable):
                self._tell(row)
                reading.unreadable[row.chart_id] = row
            else:
                self._told.pop(row.chart_id, None)  # damaged again, it is named again
                reading.changes[row.chart_id] = row
        return reading

    def _rows_since(
        self, connection: sa.Connection, since: int, columns: Iterable[sa.Column[Any]], *, live: bool = False
    ) -> Iterator[Sequence[Any]]:
        """Yield the rows that changed after revision ``since``, oldest first, page by page. live: without tombstones.

        With ``since`` 0, first those whose revision is damaged, which no comparison with a revision finds.
        """
        import sqlalchemy as sa

        table = self._charts.c
        query = _as_stored(*columns)
        if live:
            query = query.where(table.deleted.is_not(True))
        if since <= 0:
            damaged = query.where(sa.or_(table.revision.is_(None), table.revision < 1))
            yield from self._rows(connection, damaged, table.chart_id, -MAX_REVISION)
        yield from self._rows(connection, query, table.revision, max(since, 0))

    def _rows(
        self, connection: sa.Connection, query: sa.Select[Any], by: sa.Column[int], after: int
    ) -> Iterator[Sequence[Any]]:
        """Yield the rows of the query whose column ``by`` is beyond ``after``, in its order, page by page.

        Each page is a statement of its own, so that none takes long however large the catalogue is.
        """
        query = query.order_by(by).limit(_ROWS_PER_PAGE)
        while rows := connection.execute(query.where(by > after)).all():
            yield rows
            after = rows[-1]._mapping[by.name]

    def _sound(self, rows: Iterable[Any]) -> Iterator[Change]:
        """Yield the changes among the rows; the log names the others."""
        for row in map(_reading, rows):
            if isinstance(row, Unreadable):
                self._tell(row)
            else:
                yield row

    def _tell(self, row: Unreadable) -> None:
        """Name a row that cannot be read in the log, once, and only so many of them."""
        if self._told.get(row.chart_id) == row or len(self._told) >= _MOST_TOLD:
            return
        self._told[row.chart_id] = row
        logger.warning(
            "chart %s in %s cannot be read and is left out: the column %r is damaged (%s). Save the chart "
            "again, or delete it%s",
            row.chart_id,
            self._shown_url,
            row.column,
            row.reason,
            "" if len(self._told) < _MOST_TOLD else f". These are {_MOST_TOLD} such rows: others are not named here",
        )

    # --- the database -----------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close all connections, but those of an engine of your own; a repository in memory is gone then."""
        if self._database.is_ours:
            self._engine.dispose()
            self._gone = self._database.in_memory

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _transaction(self, *, writes: bool = False) -> Iterator[sa.Connection]:
        """Open a connection in a transaction; all that it reads, in however many statements, is of one moment."""
        import sqlalchemy as sa

        if self._gone:
            raise self._error("it was closed, and what was in memory is gone. Make another, or give it a file's URL")
        # SQLite's own lock is tried now and then, so that one of many may never get it: here they take turns.
        alone = self._lock if self._database.is_alone(writes) else None
        if alone is not None:
            self._wait_for_turn(alone)
        try:
            self._notice_another_file()
            with self._fork_gate, self._begun(writes) as connection:
                yield connection
        except sa.exc.SQLAlchemyError as error:
            raise self._error(reason(getattr(error, "orig", None) or error)) from error
        finally:
            if alone is not None:
                self._turns += 1
                alone.release()

    def _wait_for_turn(self, alone: threading.RLock) -> None:
        """Take the lock of those who come one by one; RepositoryError if one of them keeps it for `timeout`.

        The lock knows no order: where many threads come again and again, one may miss its turn for longer than that.
        """
        for _ in range(MOST_TURNS):
            turns = self._turns
            if alone.acquire(timeout=self.timeout):
                return
            if turns == self._turns:
                break
        raise self._error(f"another thread has used it for longer than {self.timeout:g} s")

    def _notice_another_file(self) -> None:
        """Connect anew where SQLite's file was replaced: an open connection would go on with the old one."""
        file, known = self._database.file, self._file_id
        if file is None:
            return
        try:
            found = file.stat()
        except OSError as error:
            if known is not None:
                raise self._error(f"its file has gone: {error}. Put it back, or begin another repository") from error
            if not file.parent.is_dir():
                raise self._error(f"there is no folder {str(file.parent)!r} for its file") from None
            return
        self._file_id = (found.st_dev, found.st_ino)
        if known not in (None, self._file_id):
            logger.warning("the file of %s was replaced by another one", self._shown_url)
            self._engine.dispose()

    def _error(self, why: str) -> RepositoryError:
        return RepositoryError(f"the repository at {self._shown_url} cannot do this: {why}")

    @contextmanager
    def _begun(self, writes: bool) -> Iterator[sa.Connection]:
        """Begin a transaction, on another connection if the first one was dead before anything was begun."""
        import sqlalchemy as sa

        with ExitStack() as stack:
            try:
                connection = self._begin(stack, writes)
            except sa.exc.DBAPIError as error:
                if not error.connection_invalidated:
                    raise
                connection = self._begin(stack, writes)
            yield connection

    def _begin(self, stack: ExitStack, writes: bool) -> sa.Connection:
        connection = stack.enter_context(self._engine.connect().execution_options(copilotlab_writes=writes))
        stack.enter_context(connection.begin())
        return connection

    def _create(self, connection: sa.Connection) -> Identity:
        """Make the tables and columns that are missing; return which catalogue they hold."""
        import sqlalchemy as sa

        if connection.dialect.name == "postgresql":  # two processes may come at once
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(7301944)"))
        counter = self._counter
        self._bring_up_to_date(connection)
        self._charts.metadata.create_all(connection)
        if connection.execute(counter.select()).first() is None:
            begun = {"only": 1, "revision": 0, "digest": "0", "schema_version": _SCHEMA}
            connection.execute(counter.insert().values(**begun))
        if not connection.execute(sa.select(counter.c.incarnation)).scalar_one():
            digest = as_text(self._digest(connection, sa.true()))
            begun = {"incarnation": secrets.token_hex(16), "secret": secrets.token_hex(32), "digest": digest}
            connection.execute(counter.update().values(**begun))
        counted, highest = connection.execute(sa.select(counter.c.revision)).scalar_one(), self._highest(connection)
        if counted < highest:
            digest = as_text(self._digest(connection, sa.true()))
            connection.execute(counter.update().values(revision=highest, digest=digest))
            if counted:
                logger.warning("the counter of %s was behind its rows: %s, not %s", self._shown_url, counted, highest)
        return self._state(connection).identity

    def _bring_up_to_date(self, connection: sa.Connection) -> None:
        """Give tables that an earlier version made the columns that they lack; RepositoryError where a later one did.

        Their values are empty at first. A version that does not know them goes on, and leaves them empty.
        """
        import sqlalchemy as sa

        counter = self._counter
        held = {name: _columns(connection, name) for name in (counter.name, self._charts.name)}
        if "schema_version" in held[counter.name]:
            version = connection.execute(sa.select(sa.func.max(counter.c.schema_version))).scalar_one() or _SCHEMA
            if version > _SCHEMA:
                raise self._error(
                    f"its tables have the schema {version}, which a later version of copilotlab made; this one knows "
                    f"schema {_SCHEMA}. Update copilotlab, or name another database"
                )
        added = []
        for table in (counter, self._charts):
            for column in table.columns:
                if held[table.name] and column.name not in held[table.name]:
                    made = sa.schema.CreateColumn(column).compile(dialect=connection.dialect)
                    connection.execute(sa.text(f"ALTER TABLE {table.name} ADD COLUMN {made}"))
                    added.append(column.name)
        if added:
            if held[counter.name]:
                connection.execute(counter.update().values(schema_version=_SCHEMA))
            logger.warning(
                "the repository at %s was made by an earlier version: it has the columns %s now, and the schema %s",
                self._shown_url,
                ", ".join(added),
                _SCHEMA,
            )

    def __repr__(self) -> str:
        return f"ChartRepository({self._shown_url!r}, {len(self):,} charts, revision {self.revision})"

    def _repr_html_(self) -> str:
        shown = self.frame().head(10).select("chart_id", "title", "chart_type", "source", "revision")
        return f"<p>{text(repr(self))}</p>{rows_table(shown.columns, shown.rows())}"


def _revision(revision: object) -> int:
    if isinstance(revision, bool) or not isinstance(revision, int | np.integer) or revision > MAX_REVISION:
        raise ValueError(f"revision={short(revision)}: expected a whole number, at most 2**63 - 1")
    return int(revision)


def _columns(connection: sa.Connection, table: str) -> set[str]:
    """Return the names of a table's columns; none where there is no such table."""
    import sqlalchemy as sa

    inspector = sa.inspect(connection)
    return {column["name"] for column in inspector.get_columns(table)} if inspector.has_table(table) else set()


class _Difference(NamedTuple):
    """What a mirror has to write, at revisions that it gets then, and what will have become of it."""

    rows: list[dict[str, Any]]
    result: MirrorResult


class _State(NamedTuple):
    """The counter's row."""

    revision: int
    digest: int
    identity: Identity


_NONE = Change(-1, -1, None)
_MOST_TITLES = 5  # of each kind, in the result of a mirror
_FIELDS = tuple(field.name for field in fields(Chart) if field.name != "chart_id")
_WORDS = tuple(name for name in _FIELDS if name not in LINKS)
_TEXTS = tuple(name for name in _FIELDS if name not in LISTS)


def _tables() -> tuple[sa.Table, sa.Table]:
    import sqlalchemy as sa

    metadata = sa.MetaData()
    charts = sa.Table(
        "copilotlab_charts",
        metadata,
        sa.Column("chart_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("revision", sa.BigInteger, nullable=False, unique=True),
        sa.Column("deleted", sa.Boolean, nullable=False),
        sa.Column("content_hash", sa.LargeBinary(HASH_BYTES), nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in _WORDS),
        *(sa.Column(name, sa.Text, nullable=False, server_default="") for name in LINKS),
    )
    counter = sa.Table(
        "copilotlab_revision",
        metadata,
        sa.Column("only", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("incarnation", sa.Text, nullable=False, server_default=""),
        sa.Column("secret", sa.Text, nullable=False, server_default=""),
        sa.Column("digest", sa.Text, nullable=False, server_default=""),
        sa.Column("schema_version", sa.Integer, nullable=False, server_default="1"),
    )
    return charts, counter


def _row(chart_id: int, revision: int, chart: Chart | None) -> dict[str, Any]:
    shown = chart or Chart(chart_id=chart_id, title="deleted")
    words = {name: json.dumps(getattr(shown, name) if chart else (), ensure_ascii=False) for name in LISTS}
    texts = {name: getattr(shown, name) if chart else "" for name in _TEXTS}
    content_hash = b"" if chart is None else chart.content_hash
    key = {"chart_id": chart_id, "revision": revision, "deleted": chart is None, "content_hash": content_hash}
    return {**key, **texts, **words}


# What is read may have been edited by hand, and SQLite keeps anything in any column.


def _as_stored(*columns: sa.Column[Any]) -> sa.Select[Any]:
    """Query the columns as the driver gives them: SQLAlchemy would fail on all rows for one value of another type."""
    import sqlalchemy as sa

    stored = [sa.type_coerce(column, sa.types.NullType()).label(column.name) for column in columns]
    return sa.select().add_columns(*stored)


def _reading(row: Any) -> Change | Unreadable:
    if not _is_whole(row.chart_id, 0):
        shown = row.chart_id if isinstance(row.chart_id, int) else -1
        return Unreadable(shown, UNKNOWN_REVISION, "chart_id", _no_number(row.chart_id, 0))
    chart_id, revision, deleted, stored = row.chart_id, row.revision, row.deleted, _hash(row.content_hash)
    if not _is_whole(revision, 1):
        return Unreadable(chart_id, UNKNOWN_REVISION, "revision", _no_number(revision, 1), stored)
    if deleted not in (False, True):
        return Unreadable(chart_id, revision, "deleted", f"{short(deleted)}: expected true or false", stored)
    if deleted:
        return Change(chart_id, revision, None)
    try:
        chart = Chart(chart_id=chart_id, **{name: _word(name, getattr(row, name)) for name in _FIELDS})
    except ChartError:
        return Unreadable(chart_id, revision, *next(_damages(row)), stored)
    return Change(chart_id, revision, chart, stored)


def _no_number(value: object, least: int) -> str:
    return f"{short(value)}: expected a whole number from {least} to 2**63 - 1"


def _damages(row: Any) -> Iterator[tuple[str, str]]:
    """Yield the columns whose value no chart can have, and why."""
    for column in _FIELDS:
        try:
            Chart(**{"chart_id": row.chart_id, "title": "any", column: _word(column, getattr(row, column))})
        except ChartError as error:
            yield column, str(error)


def _word(column: str, value: Any) -> Any:
    """Return what a chart takes for a stored value: a list is stored as JSON."""
    if column not in LISTS:
        return value
    try:
        return json.loads(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise ChartError(f"{short(value)}: expected a list of strings in JSON, such as []") from error


def _is_whole(value: object, least: int) -> bool:
    return type(value) is int and least <= value <= MAX_REVISION


def _head(row: Any) -> tuple[int, int, bytes, bool] | None:
    """Chart_id, revision, content_hash as it is stored, and whether it is deleted; None where the id is none."""
    chart_id, revision, stored, deleted = row
    if not _is_whole(chart_id, 0):
        return None
    return chart_id, revision if _is_whole(revision, 1) else UNKNOWN_REVISION, stored, deleted == 1


def _hash(stored: object) -> bytes:
    if isinstance(stored, memoryview):
        stored = bytes(stored)
    return stored if isinstance(stored, bytes) and len(stored) == HASH_BYTES else bytes(HASH_BYTES)


_strings = msgspec.json.Decoder(list[str]).decode


def _fits(row: Any) -> bool:
    """Return whether the hash fits the words, without making a chart; False too where that cannot be told."""
    _, _, deleted, content_hash, *stored = row
    words = dict(zip(_WORDS, stored[: len(_WORDS)], strict=True))
    try:
        for name in LISTS:
            words[name] = _strings(words[name])
        return bool(deleted) or content_hash == hash_of(words_of(**words))
    except (msgspec.MsgspecError, ValueError, TypeError, AttributeError):
        return False


def _edited(change: Change) -> Chart | None:
    """Return the chart if its hash does not fit its words."""
    return change.chart if change.chart and change.content_hash != change.chart.content_hash else None


def _checked_ids(chart_ids: Iterable[int]) -> list[int]:
    return [check_chart_id(chart_id) for chart_id in chart_ids]


def _parts(chart_ids: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(chart_ids), _ROWS_PER_STATEMENT):
        yield chart_ids[start : start + _ROWS_PER_STATEMENT]
