"""The repository: the charts' system of record."""

from __future__ import annotations

import json
import logging
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from copilotlab.charts.chart import (
    HASH_BYTES,
    LISTS,
    MAX_CHART_ID,
    Chart,
    ChartNotFound,
    check_chart,
    check_chart_id,
    plain,
    short,
)
from copilotlab.charts.readers import charts_of
from copilotlab.digest import as_text, digest_of
from copilotlab.markup import rows_table, text
from copilotlab.urls import hide_password

if TYPE_CHECKING:
    import polars as pl
    import sqlalchemy as sa

MAX_REVISION = 2**63 - 1
SQLITE_TIMEOUT = 30.0  # seconds that a connection waits for another one's write

TOMBSTONES_KEPT = 100_000  # revisions for which a deletion is remembered; whoever was away for longer compares all

_ROWS_PER_STATEMENT = 1_000  # databases bound the parameters of one statement
_PURGE_EVERY = 1_000  # revisions

_log = logging.getLogger("copilotlab.charts")


class RepositoryError(RuntimeError):
    """The database cannot be reached, or cannot do what was asked."""


class Change(NamedTuple):
    """A chart at its latest revision; ``chart`` is None where that revision deleted it."""

    chart_id: int
    revision: int
    chart: Chart | None


class Heads(NamedTuple):
    """What a repository holds, without the words: one row a chart, by revision.

    chart_ids, revisions: int64 (n,); content_hashes: uint8 (n, 16), zeros where deleted; deleted: bool (n,).
    """

    chart_ids: npt.NDArray[np.int64]
    revisions: npt.NDArray[np.int64]
    content_hashes: npt.NDArray[np.uint8]
    deleted: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, rows: Sequence[tuple[int, int, bytes, bool]]) -> Heads:
        """From rows of chart_id, revision, content_hash (b"" where deleted) and deleted."""
        hashes = b"".join(row[2] or bytes(HASH_BYTES) for row in rows)
        return cls(
            np.array([row[0] for row in rows], dtype=np.int64),
            np.array([row[1] for row in rows], dtype=np.int64),
            np.frombuffer(hashes, dtype=np.uint8).reshape(-1, HASH_BYTES),
            np.array([row[3] for row in rows], dtype=bool),
        )


class Identity(NamedTuple):
    """Which catalogue a repository holds.

    incarnation: 32 hex digits, drawn when the catalogue was made; a catalogue that was emptied and begun anew has
    another. key: 32 bytes that only who can read the database knows: what nodes say to each other is signed with it.
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
    the default, is in memory. Tables are made where they are missing.

    Safe for threads, and, except in memory, for processes. A deletion leaves a tombstone: the id and its revision.
    Raises RepositoryError when the database cannot be reached, ValueError for what is no such URL.
    """

    identity: Identity
    """Which catalogue this is, as of the last `look`."""

    def __init__(self, url: str = "sqlite://") -> None:
        self._engine, self._shown_url, self._in_memory = _engine(url)
        self._lock = threading.RLock()  # in memory all threads share one connection
        self._charts, self._counter = _tables()
        with self._transaction(writes=True) as connection:
            self.identity = self._create(connection)

    @classmethod
    def from_frame(cls, frame_or_path: pl.DataFrame | str | Path, url: str = "sqlite://") -> Self:
        """A repository with the charts of a polars frame, or of a .parquet, .csv or .ndjson file; see `load_frame`."""
        charts = charts_of(frame_or_path)  # before the database is touched
        repository = cls(url)
        repository.save_many(charts)
        return repository

    def load_frame(self, frame_or_path: pl.DataFrame | str | Path) -> int:
        """Save the charts of a frame or file, all or none; the catalogue's revision after it.

        Columns: chart_id and title, and those of `Chart` that there are; others are not read. In a .csv a list is
        written as JSON or with semicolons. Raises ChartError that names the file, the row (from 1, without the header)
        and the column.
        """
        return self.save_many(charts_of(frame_or_path))

    # --- writing ----------------------------------------------------------------------------------------------

    def save(self, chart: Chart) -> int:
        """Save ``chart``; its revision. A save that changes nothing is no change, and keeps the revision."""
        check_chart(chart)
        with self._transaction(writes=True) as connection:
            return self._save(connection, [chart])[chart.chart_id]

    def save_many(self, charts: Iterable[Chart], *, progress: bool = False) -> int:
        """Save ``charts`` in one transaction, each changed one at its own revision, in order; the last revision.

        Of several with one id the last counts. progress: a bar.
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
        """Delete the chart; its tombstone's revision. Raises ChartNotFound if there is none, ChartError for no id."""
        check_chart_id(chart_id)
        with self._transaction(writes=True) as connection:
            state = self._state(connection, lock=True)
            revision = state.revision + 1
            if self._changes(connection, [chart_id]).get(chart_id, _NONE).chart is None:
                raise ChartNotFound(f"chart {chart_id!r} is not in {self._shown_url}, so it cannot be deleted")
            self._write(connection, state, [_row(chart_id, revision, None)])
            return revision

    def _save(self, connection: sa.Connection, charts: Sequence[Chart]) -> dict[int, int]:
        state = self._state(connection, lock=True)
        revision = state.revision
        held = self._changes(connection, [chart.chart_id for chart in charts])
        revisions, rows = {}, []
        for chart in charts:
            change = held.get(chart.chart_id, _NONE)
            if change.chart == chart:
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
        """The digest of the live charts among the ``chosen`` rows."""
        table = self._charts
        columns = (table.c.chart_id, table.c.revision, table.c.content_hash)
        query = table.select().with_only_columns(*columns).where(chosen & table.c.deleted.is_(False))
        return digest_of((row.chart_id, row.revision, row.content_hash) for row in connection.execute(query))

    # --- reading ----------------------------------------------------------------------------------------------

    @property
    def revision(self) -> int:
        """The catalogue's revision; 0 when nothing was ever saved."""
        with self._transaction() as connection:
            return self._current(connection)

    def look(self, since: int | None = None) -> Look:
        """The catalogue at this moment: which it is, its revision and digest, and the heads of what changed.

        since: a revision: what changed after it, tombstones too. 0: all live charts. None, the default: no heads.
        """
        with self._transaction(snapshot=True) as connection:
            state = self._state(connection)
            heads = Heads.of([])
            if since is not None and (since == 0 or state.revision > since):
                heads = self._heads(connection, _revision(since), tombstones=since > 0)
        self.identity = state.identity
        return Look(state.identity, state.revision, state.digest, heads)

    def get(self, chart_id: int) -> Chart | None:
        """The chart, or None. Raises ChartError for what is no whole number."""
        return self.get_many([chart_id]).get(chart_id, _NONE).chart

    def get_many(self, chart_ids: Iterable[int]) -> dict[int, Change]:
        """What is known of each: its latest change, tombstones too; ids that were never saved are left out.

        Raises ChartError for what is no whole number.
        """
        wanted = list(chart_ids)
        for chart_id in wanted:
            check_chart_id(chart_id)
        changes: dict[int, Change] = {}
        with self._transaction() as connection:
            for start in range(0, len(wanted), _ROWS_PER_STATEMENT):
                changes.update(self._changes(connection, wanted[start : start + _ROWS_PER_STATEMENT]))
        return changes

    def changes_since(self, revision: int = 0) -> list[Change]:
        """Each chart that changed after ``revision``, once, at its latest revision, tombstones too, oldest first.

        Raises ValueError for what is no revision.
        """
        table, revision = self._charts, _revision(revision)
        with self._transaction() as connection:
            query = table.select().where(table.c.revision > revision).order_by(table.c.revision)
            return [_change(row) for row in connection.execute(query)]

    def heads_since(self, revision: int = 0) -> Heads:
        """`changes_since` without the words, some ten times as fast: enough to see what differs."""
        with self._transaction() as connection:
            return self._heads(connection, _revision(revision), tombstones=True)

    def _heads(self, connection: sa.Connection, since: int, *, tombstones: bool) -> Heads:
        table = self._charts
        columns = (table.c.chart_id, table.c.revision, table.c.content_hash, table.c.deleted)
        query = table.select().with_only_columns(*columns).order_by(table.c.revision)
        chosen = table.c.revision > since
        rows = connection.execute(query.where(chosen if tombstones else chosen & table.c.deleted.is_(False)))
        return Heads.of([tuple(row) for row in rows])

    def frame(self) -> pl.DataFrame:
        """The catalogue: the fields of `Chart`, and ``revision``, by chart_id."""
        import polars as pl

        live = sorted(change for change in self.changes_since(0) if change.chart is not None)
        columns = {field.name: [plain(getattr(change.chart, field.name)) for change in live] for field in fields(Chart)}
        words = dict.fromkeys(LISTS, pl.List(pl.String))
        texts = dict.fromkeys(("title", "description", "chart_type", "source"), pl.String)
        return pl.DataFrame(
            {**columns, "revision": [change.revision for change in live]},
            schema_overrides={"chart_id": pl.Int64, "revision": pl.Int64, **words, **texts},
        )

    def __len__(self) -> int:
        import sqlalchemy as sa

        live = sa.select(sa.func.count()).select_from(self._charts).where(self._charts.c.deleted.is_(False))
        with self._transaction() as connection:
            return int(connection.execute(live).scalar_one())

    def __contains__(self, chart_id: object) -> bool:
        return isinstance(chart_id, int) and not isinstance(chart_id, bool) and self.get(chart_id) is not None

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
        return _State(row.revision, int(row.digest, 16), Identity(row.incarnation, bytes.fromhex(row.secret)))

    def _changes(self, connection: sa.Connection, chart_ids: Sequence[int]) -> dict[int, Change]:
        known = [i for i in chart_ids if 0 <= i <= MAX_CHART_ID]
        rows = connection.execute(self._charts.select().where(self._charts.c.chart_id.in_(known)))
        return {row.chart_id: _change(row) for row in rows}

    # --- the database -----------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close all connections; a repository in memory is gone then."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _transaction(self, *, writes: bool = False, snapshot: bool = False) -> Iterator[sa.Connection]:
        """A connection in a transaction. snapshot: what it reads, by however many statements, is of one moment."""
        import sqlalchemy as sa

        options: dict[str, Any] = {"copilotlab_writes": writes}
        if snapshot and self._engine.dialect.name == "postgresql":  # elsewhere every transaction reads one moment
            options["isolation_level"] = "REPEATABLE READ"

        if self._in_memory:
            self._lock.acquire()
        try:
            with self._engine.connect().execution_options(**options) as connection, connection.begin():
                yield connection
        except sa.exc.SQLAlchemyError as error:
            reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            raise RepositoryError(f"the repository at {self._shown_url} cannot do this: {reason}") from error
        finally:
            if self._in_memory:
                self._lock.release()

    def _create(self, connection: sa.Connection) -> Identity:
        """Make what is missing of the tables; which catalogue they hold."""
        import sqlalchemy as sa

        if connection.dialect.name == "postgresql":  # two processes may come at once
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(7301944)"))
        self._charts.metadata.create_all(connection)
        self._add_columns(connection)
        counter = self._counter
        if connection.execute(counter.select()).first() is None:
            highest = connection.execute(sa.select(sa.func.max(self._charts.c.revision))).scalar_one() or 0
            connection.execute(counter.insert().values(only=1, revision=highest, incarnation="", secret="", digest="0"))
        if not connection.execute(sa.select(counter.c.incarnation)).scalar_one():
            digest = as_text(self._digest(connection, sa.true()))
            begun = {"incarnation": secrets.token_hex(16), "secret": secrets.token_hex(32), "digest": digest}
            connection.execute(counter.update().values(**begun))
        return self._state(connection).identity

    def _add_columns(self, connection: sa.Connection) -> None:
        """Give a counter that an earlier version made the columns that it lacks."""
        import sqlalchemy as sa

        held = {column["name"] for column in sa.inspect(connection).get_columns(self._counter.name)}
        missing = [column for column in self._counter.columns if column.name not in held]
        for column in missing:
            kind = column.type.compile(connection.dialect)
            connection.execute(
                sa.text(f"ALTER TABLE {self._counter.name} ADD COLUMN {column.name} {kind} NOT NULL DEFAULT ''")
            )
        if missing:
            _log.info("the repository at %s has its identity now: it was made by an older version", self._shown_url)

    def __repr__(self) -> str:
        return f"ChartRepository({self._shown_url!r}, {len(self):,} charts, revision {self.revision})"

    def _repr_html_(self) -> str:
        shown = self.frame().head(10).select("chart_id", "title", "chart_type", "source", "revision")
        return f"<p>{text(repr(self))}</p>{rows_table(shown.columns, shown.rows())}"


def _revision(revision: object) -> int:
    if isinstance(revision, bool) or not isinstance(revision, int) or revision > MAX_REVISION:
        raise ValueError(f"revision={short(revision)}: expected a whole number, at most 2**63 - 1")
    return revision


class _State(NamedTuple):
    """The counter's row."""

    revision: int
    digest: int
    identity: Identity


_NONE = Change(-1, -1, None)


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
        *(sa.Column(field.name, sa.Text, nullable=False) for field in fields(Chart) if field.name != "chart_id"),
    )
    counter = sa.Table(
        "copilotlab_revision",
        metadata,
        sa.Column("only", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("incarnation", sa.Text, nullable=False),
        sa.Column("secret", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
    )
    return charts, counter


def _engine(url: str) -> tuple[sa.Engine, str, bool]:
    """The engine, its URL without the password, and whether the database is in memory: one connection for all."""
    import sqlalchemy as sa
    from sqlalchemy.pool import StaticPool

    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError) as error:  # ValueError: sqlite://:memory: has no number for a port
        shown = short(hide_password(url).rpartition("@")[2] if isinstance(url, str) else url)
        raise ValueError(f"url={shown}: expected an SQLAlchemy URL, such as sqlite:///charts.db") from error
    shown = hide_password(parsed.render_as_string(hide_password=True))
    options: dict[str, Any] = {}
    in_memory = False
    if parsed.get_backend_name() == "sqlite":
        options["connect_args"] = {"timeout": SQLITE_TIMEOUT, "check_same_thread": False}
        in_memory = parsed.database in (None, "", ":memory:", "file::memory:") or parsed.query.get("mode") == "memory"
        if in_memory:
            options["poolclass"] = StaticPool
    try:
        engine = sa.create_engine(parsed, **options)
    except sa.exc.ArgumentError as error:
        raise ValueError(f"url={shown!r}: {error}; expected one such as sqlite:///charts.db") from error
    except ModuleNotFoundError as error:
        raise RepositoryError(
            f"{shown} needs the driver {error.name!r}: pip install {error.name}, or name one that is installed, as in "
            "postgresql+psycopg://..."
        ) from error
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    return engine, shown, in_memory


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver would begin transactions of its own, and too late
    _write_ahead(connection)
    connection.execute("PRAGMA synchronous=NORMAL")


def _write_ahead(connection: Any) -> None:
    """Switch the file to its write-ahead log, for good: readers and the writer do not wait for each other then.

    SQLite refuses the switch at once, whatever its timeout, while another connection writes to a file that is not
    switched yet, as where two processes open a new one together.
    """
    give_up = time.monotonic() + SQLITE_TIMEOUT
    while connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return  # in memory there is none, which is no error
        except sqlite3.OperationalError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: sa.Connection) -> None:
    # A writer takes the lock before it reads: two that both read first could not both go on.
    writes = connection.get_execution_options().get("copilotlab_writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _row(chart_id: int, revision: int, chart: Chart | None) -> dict[str, Any]:
    shown = chart or Chart(chart_id=chart_id, title="deleted")
    words = {name: json.dumps(getattr(shown, name) if chart else (), ensure_ascii=False) for name in LISTS}
    texts = {name: getattr(shown, name) if chart else "" for name in ("title", "description", "chart_type", "source")}
    content_hash = b"" if chart is None else chart.content_hash
    key = {"chart_id": chart_id, "revision": revision, "deleted": chart is None, "content_hash": content_hash}
    return {**key, **texts, **words}


def _change(row: Any) -> Change:
    if row.deleted:
        return Change(row.chart_id, row.revision, None)
    values = row._asdict()
    for name in LISTS:
        values[name] = json.loads(values[name])
    revision = values.pop("revision")
    del values["deleted"], values["content_hash"]
    return Change(row.chart_id, revision, Chart(**values))
