"""What there is to find: charts, and the repository that is their system of record."""

from __future__ import annotations

import csv
import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from copilotlab.lifetime import ForkGate, renewed_by_fork
from copilotlab.markup import facts_table, rows_table, text
from copilotlab.urls import hide_password

if TYPE_CHECKING:
    import polars as pl
    import sqlalchemy as sa

MAX_CHART_ID = MAX_REVISION = 2**63 - 1
MAX_TITLE = 500
MAX_DESCRIPTION = 10_000
MAX_WORD = 200
MAX_WORDS = 64
HASH_BYTES = 16
SQLITE_TIMEOUT = 30.0  # seconds that a connection waits for another one's write

_LISTS = ("dimensions", "measures", "tags")
_EXPECTED_ID = "expected a whole number from 0 to 2**63 - 1"
_ROWS_PER_STATEMENT = 1_000  # databases bound the parameters of one statement


class ChartError(ValueError):
    """A chart, frame or file that is not what it should be; the message says what is wrong and what is right."""


class ChartNotFound(ChartError, KeyError):
    """There is no chart of that id."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would show its quotes


class RepositoryError(RuntimeError):
    """The database cannot be reached, or cannot do what was asked."""


@dataclass(frozen=True, kw_only=True)  # no slots: what is computed of a chart is kept in it
class Chart:
    """A chart, as far as words describe it. Lists are accepted for the tuples.

    chart_id: 0 to 2**63 - 1. title: 1 to 500 characters. description: at most 10,000. chart_type, source, and each of
    dimensions, measures and tags (at most 64 of each, none blank): at most 200 characters. Raises ChartError.
    """

    chart_id: int
    title: str
    description: str = ""
    chart_type: str = ""
    dimensions: tuple[str, ...] = ()
    measures: tuple[str, ...] = ()
    source: str = ""
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_chart_id(self.chart_id)
        if not 0 <= self.chart_id <= MAX_CHART_ID:
            raise ChartError(f"chart_id={_short(self.chart_id)}: {_EXPECTED_ID}")
        _check_text("title", self.title, MAX_TITLE)
        if not self.title.strip():
            raise ChartError(f"title={self.title!r}: expected 1 to {MAX_TITLE} characters")
        _check_text("description", self.description, MAX_DESCRIPTION)
        _check_text("chart_type", self.chart_type, MAX_WORD)
        _check_text("source", self.source, MAX_WORD)
        for name in _LISTS:
            words = getattr(self, name)
            if not isinstance(words, list | tuple):
                raise ChartError(f"{name}={_short(words)}: expected a list of strings")
            if len(words) > MAX_WORDS:
                raise ChartError(f"{name} has {len(words)} entries: expected at most {MAX_WORDS}")
            for word in words:
                _check_text(f"an entry of {name}", word, MAX_WORD)
                if not word.strip():
                    raise ChartError(f"an entry of {name} is blank, {word!r}: leave it out")
            object.__setattr__(self, name, tuple(words))

    @cached_property
    def text(self) -> str:
        """The words that are embedded: everything that the chart says of itself."""
        parts = [self.title, self.description, self.chart_type, *(", ".join(getattr(self, name)) for name in _LISTS)]
        return ". ".join(part.strip().rstrip(".") for part in [*parts, self.source] if part.strip())

    @cached_property
    def content_hash(self) -> bytes:
        """16 bytes that change whenever `text` does (BLAKE2b)."""
        return hashlib.blake2b(self.text.encode(), digest_size=HASH_BYTES).digest()

    def _repr_html_(self) -> str:
        return facts_table({field.name: _words(getattr(self, field.name)) for field in fields(self)})


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


class ChartRepository:
    """The system of record: every save and every delete gets the catalogue's next revision, in one transaction.

    url: any SQLAlchemy URL, such as sqlite:///charts.db or postgresql+psycopg://user:password@host/charts; "sqlite://",
    the default, is in memory. Tables are made where they are missing.

    Safe for threads, and, except in memory, for processes. A deletion leaves a tombstone: the id and its revision.
    Raises RepositoryError when the database cannot be reached, ValueError for what is no such URL.
    """

    def __init__(self, url: str = "sqlite://") -> None:
        self._engine, self._shown_url, self._in_memory = _engine(url)
        self._fork_gate = ForkGate()
        self._lock = threading.RLock()  # in memory all threads share one connection
        self._charts, self._counter = _tables()
        with self._transaction(writes=True) as connection:
            self._create(connection)
        renewed_by_fork(self)

    def before_fork(self) -> None:
        """Wait for transactions under way. SQLite keeps locks by process: a child would take the parent's for its own,
        so it begins without any connection to a file."""
        if self._fork_gate.shut() and self._engine.dialect.name == "sqlite" and not self._in_memory:
            self._engine.dispose()

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self._fork_gate.open()

    def after_fork(self) -> None:
        """In a forked child: connect anew; what is in memory is a copy, and goes its own way from now on."""
        self._fork_gate = ForkGate()
        self._lock = threading.RLock()
        if not self._in_memory:
            self._inherited = self._engine.pool  # never closed here: its connections are the parent's
            self._engine.dispose(close=False)

    @classmethod
    def from_frame(cls, frame_or_path: pl.DataFrame | str | Path, url: str = "sqlite://") -> Self:
        """A repository with the charts of a polars frame, or of a .parquet, .csv or .ndjson file; see `load_frame`."""
        charts = _charts_of(frame_or_path)  # before the database is touched
        repository = cls(url)
        repository.save_many(charts)
        return repository

    def load_frame(self, frame_or_path: pl.DataFrame | str | Path) -> int:
        """Save the charts of a frame or file, all or none; the catalogue's revision after it.

        Columns: chart_id and title, and those of `Chart` that there are; others are not read. In a .csv a list is
        written as JSON or with semicolons. Raises ChartError that names the file, the row (from 1, without the header)
        and the column.
        """
        return self.save_many(_charts_of(frame_or_path))

    # --- writing ----------------------------------------------------------------------------------------------

    def save(self, chart: Chart) -> int:
        """Save ``chart``; its revision. A save that changes nothing is no change, and keeps the revision."""
        _check_chart(chart)
        with self._transaction(writes=True) as connection:
            return self._save(connection, [chart])[chart.chart_id]

    def save_many(self, charts: Iterable[Chart], *, progress: bool = False) -> int:
        """Save ``charts`` in one transaction, each changed one at its own revision, in order; the last revision.

        Of several with one id the last counts. progress: a bar.
        """
        latest: dict[int, Chart] = {}
        for chart in charts:
            _check_chart(chart)
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
        _check_chart_id(chart_id)
        with self._transaction(writes=True) as connection:
            revision = self._current(connection, lock=True) + 1
            if self._changes(connection, [chart_id]).get(chart_id, _NONE).chart is None:
                raise ChartNotFound(f"chart {chart_id!r} is not in {self._shown_url}, so it cannot be deleted")
            self._write(connection, [_row(chart_id, revision, None)])
            self._advance(connection, revision)
            return revision

    def _save(self, connection: sa.Connection, charts: Sequence[Chart]) -> dict[int, int]:
        revision = self._current(connection, lock=True)
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
            self._write(connection, rows)
            self._advance(connection, revision)
        return revisions

    def _write(self, connection: sa.Connection, rows: list[dict[str, Any]]) -> None:
        chart_ids = [row["chart_id"] for row in rows]
        connection.execute(self._charts.delete().where(self._charts.c.chart_id.in_(chart_ids)))
        connection.execute(self._charts.insert(), rows)

    def _advance(self, connection: sa.Connection, revision: int) -> None:
        connection.execute(self._counter.update().values(revision=revision))

    # --- reading ----------------------------------------------------------------------------------------------

    @property
    def revision(self) -> int:
        """The catalogue's revision; 0 when nothing was ever saved."""
        with self._transaction() as connection:
            return self._current(connection)

    def get(self, chart_id: int) -> Chart | None:
        """The chart, or None. Raises ChartError for what is no whole number."""
        return self.get_many([chart_id]).get(chart_id, _NONE).chart

    def get_many(self, chart_ids: Iterable[int]) -> dict[int, Change]:
        """What is known of each: its latest change, tombstones too; ids that were never saved are left out.

        Raises ChartError for what is no whole number.
        """
        wanted = list(chart_ids)
        for chart_id in wanted:
            _check_chart_id(chart_id)
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
        table = self._charts
        with self._transaction() as connection:
            columns = (table.c.chart_id, table.c.revision, table.c.content_hash, table.c.deleted)
            query = table.select().with_only_columns(*columns)
            query = query.where(table.c.revision > _revision(revision)).order_by(table.c.revision)
            return Heads.of([tuple(row) for row in connection.execute(query)])

    def frame(self) -> pl.DataFrame:
        """The catalogue: the fields of `Chart`, and ``revision``, by chart_id."""
        import polars as pl

        live = sorted(change for change in self.changes_since(0) if change.chart is not None)
        columns = {field.name: [plain(getattr(change.chart, field.name)) for change in live] for field in fields(Chart)}
        words = dict.fromkeys(_LISTS, pl.List(pl.String))
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

    def _current(self, connection: sa.Connection, *, lock: bool = False) -> int:
        # The counter's row is locked before anything is compared: so revisions are in the order of commits.
        query = self._counter.select().with_only_columns(self._counter.c.revision)
        return int(connection.execute(query.with_for_update() if lock else query).scalar_one())

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
    def _transaction(self, *, writes: bool = False) -> Iterator[sa.Connection]:
        import sqlalchemy as sa

        if self._in_memory:
            self._lock.acquire()
        try:
            with (
                self._fork_gate,
                self._engine.connect().execution_options(copilotlab_writes=writes) as connection,
                connection.begin(),
            ):
                yield connection
        except sa.exc.SQLAlchemyError as error:
            cause = getattr(error, "orig", None) or error
            reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]  # some drivers raise without words
            raise RepositoryError(f"the repository at {self._shown_url} cannot do this: {reason}") from error
        finally:
            if self._in_memory:
                self._lock.release()

    def _create(self, connection: sa.Connection) -> None:
        import sqlalchemy as sa

        if connection.dialect.name == "postgresql":  # two processes may come at once
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(7301944)"))
        self._charts.metadata.create_all(connection)
        if connection.execute(self._counter.select()).first() is None:
            connection.execute(self._counter.insert().values(only=1, revision=0))

    def __repr__(self) -> str:
        return f"ChartRepository({self._shown_url!r}, {len(self):,} charts, revision {self.revision})"

    def _repr_html_(self) -> str:
        shown = self.frame().head(10).select("chart_id", "title", "chart_type", "source", "revision")
        return f"<p>{text(repr(self))}</p>{rows_table(shown.columns, shown.rows())}"


def _revision(revision: object) -> int:
    if isinstance(revision, bool) or not isinstance(revision, int) or revision > MAX_REVISION:
        raise ValueError(f"revision={_short(revision)}: expected a whole number, at most 2**63 - 1")
    return revision


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
    )
    return charts, counter


def _engine(url: str) -> tuple[sa.Engine, str, bool]:
    """The engine, its URL without the password, and whether the database is in memory: one connection for all."""
    import sqlalchemy as sa
    from sqlalchemy.pool import StaticPool

    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError) as error:  # ValueError: sqlite://:memory: has no number for a port
        shown = _short(hide_password(url).rpartition("@")[2] if isinstance(url, str) else url)
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
    words = {name: json.dumps(getattr(shown, name) if chart else (), ensure_ascii=False) for name in _LISTS}
    texts = {name: getattr(shown, name) if chart else "" for name in ("title", "description", "chart_type", "source")}
    content_hash = b"" if chart is None else chart.content_hash
    key = {"chart_id": chart_id, "revision": revision, "deleted": chart is None, "content_hash": content_hash}
    return {**key, **texts, **words}


def _change(row: Any) -> Change:
    if row.deleted:
        return Change(row.chart_id, row.revision, None)
    values = row._asdict()
    for name in _LISTS:
        values[name] = json.loads(values[name])
    revision = values.pop("revision")
    del values["deleted"], values["content_hash"]
    return Change(row.chart_id, revision, Chart(**values))


# --- frames and files ---------------------------------------------------------------------------------------------


def _charts_of(frame_or_path: pl.DataFrame | str | Path) -> list[Chart]:
    import polars as pl

    if isinstance(frame_or_path, pl.DataFrame):
        return list(_checked(*_frame_rows(frame_or_path), "the frame"))
    if not isinstance(frame_or_path, str | Path):
        raise ChartError(f"{_short(frame_or_path)}: expected a polars frame, or the path of a file")
    path = Path(frame_or_path)
    if path.suffix.lower() not in _READERS:
        raise ChartError(f"{path}: expected a file that ends in .parquet, .csv or .ndjson")
    if not path.is_file():
        raise ChartError(f"{path}: there is no such file")
    try:
        columns, rows = _READERS[path.suffix.lower()](path)
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ChartError(f"{path} cannot be read as {path.suffix[1:]}: {reason}") from error
    return list(_checked(columns, rows, str(path)))


# A reader gives the columns that there are, and the rows. Those of text are read here, since polars gives a column of
# mixed values one type, a number among titles becomes text, and its errors name no row.
_Table = tuple[list[str], Iterable[dict[str, Any]]]


def _frame_rows(frame: pl.DataFrame) -> _Table:
    known = [field.name for field in fields(Chart) if field.name in frame.columns]
    return frame.columns, frame.select(known).iter_rows(named=True)


def _parquet_rows(path: Path) -> _Table:
    import polars as pl

    return _frame_rows(pl.read_parquet(path))


def _csv_rows(path: Path) -> _Table:
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, strict=True)
        try:
            columns = next(lines, [])
            if len(set(columns)) < len(columns):
                twice = next(name for name in columns if columns.count(name) > 1)
                raise ValueError(f"the header has the column {twice!r} more than once, expected each once")
            for cells in filter(None, lines):
                if len(cells) > len(columns):
                    raise ValueError(f"row {len(rows) + 1} has {len(cells)} fields, the header has {len(columns)}")
                rows.append(dict(zip(columns, cells, strict=False)))
        except csv.Error as error:
            raise ValueError(f"row {len(rows) + 1}: {error}") from error
    return columns, rows


def _ndjson_rows(path: Path) -> _Table:
    columns: dict[str, None] = {}
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8-sig") as file:
        for line in filter(str.strip, file):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"row {len(rows) + 1}: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f'row {len(rows) + 1}: {_short(row)}: expected an object, as in {{"chart_id": 7}}')
            columns.update(dict.fromkeys(row))
            rows.append(row)
    return list(columns), rows


_READERS: dict[str, Callable[[Path], _Table]] = {
    ".parquet": _parquet_rows,
    ".csv": _csv_rows,
    ".ndjson": _ndjson_rows,
}


def _checked(columns: list[str], rows: Iterable[dict[str, Any]], origin: str) -> Iterator[Chart]:
    for required in ("chart_id", "title"):
        if required not in columns:
            raise ChartError(f"{origin} has no column {required!r}; its columns are {columns}")
    names = [field.name for field in fields(Chart) if field.name in columns]
    seen: dict[int, int] = {}
    for number, row in enumerate(rows, start=1):
        values = {name: row.get(name) for name in names}
        given = {name: value for name, value in values.items() if value is not None or name in ("chart_id", "title")}
        try:
            chart = Chart(**{name: _parsed(name, value) for name, value in given.items()})
        except ChartError as error:
            raise ChartError(f"{origin}, row {number}: {error}") from error
        if chart.chart_id in seen:
            raise ChartError(
                f"{origin}, row {number}: chart_id={chart.chart_id} stands in row {seen[chart.chart_id]} already; "
                "expected each id once"
            )
        seen[chart.chart_id] = number
        yield chart


def _parsed(name: str, value: object) -> Any:
    if name == "chart_id" and isinstance(value, str) and value.strip().isdecimal() and len(value) < 100:
        return int(value)
    if name in _LISTS and isinstance(value, str):
        if value.lstrip().startswith("["):
            try:
                return json.loads(value)
            except ValueError as error:
                raise ChartError(f"{name}={_short(value)}: expected JSON, or words with semicolons between") from error
        return [word.strip() for word in value.split(";") if word.strip()]
    return value


def _check_chart(chart: object) -> None:
    if not isinstance(chart, Chart):
        raise ChartError(f"{_short(chart)}: expected a Chart, as in Chart(chart_id=7, title='Revenue by region')")


def _check_chart_id(chart_id: object) -> None:
    if isinstance(chart_id, bool) or not isinstance(chart_id, int):
        raise ChartError(f"chart_id={_short(chart_id)}: {_EXPECTED_ID}")


def _check_text(name: str, value: object, most: int) -> None:
    if not isinstance(value, str):
        raise ChartError(f"{name}={_short(value)}: expected a string")
    if len(value) > most:
        raise ChartError(f"{name} has {len(value):,} characters: expected at most {most:,}")
    if not value.isprintable() and any(c == "\x00" or "\ud800" <= c <= "\udfff" for c in value):
        raise ChartError(
            f"{name}={_short(value)}: has a null character or half a surrogate pair, which no database keeps"
        )


def plain(value: object) -> object:
    """What a chart says, as a frame holds it: a list in place of a tuple."""
    return list(value) if isinstance(value, tuple) else value


def _words(value: object) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def _short(value: object) -> str:
    try:
        shown = repr(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        shown = f"<{type(value).__name__} too long to show>"
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
