"""The repository's database: an engine on which every wait has a limit."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from copilotlab.reasons import reason, short
from copilotlab.urls import hide_password

if TYPE_CHECKING:
    import sqlalchemy as sa


class RepositoryError(RuntimeError):
    """The database cannot be reached, or cannot do what was asked."""


class Database(NamedTuple):
    """An engine, its URL without the password, and what the repository has to know of it.

    in_memory: one connection for all threads. is_ours: made here, so that closing the repository ends it.
    """

    engine: sa.Engine
    shown_url: str
    in_memory: bool
    is_ours: bool

    @property
    def file(self) -> Path | None:
        """SQLite's file, where it is one and named by its path."""
        name = self.engine.url.database
        named = self.engine.dialect.name == "sqlite" and not self.in_memory and name and not name.startswith("file:")
        return Path(name) if named and name else None

    def is_alone(self, writes: bool) -> bool:
        """Return whether only one such transaction can run at a time."""
        return self.in_memory or (writes and self.engine.dialect.name == "sqlite")


def check_timeout(timeout: object) -> float:
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= threading.TIMEOUT_MAX:
        raise ValueError(f"timeout={short(timeout)}: expected seconds, more than 0")
    return float(timeout)


def database_of(url: str | sa.Engine, timeout: float, connect_args: Mapping[str, Any] | None) -> Database:
    """Return the database at a URL, or of an engine that somebody else made.

    timeout: seconds that one wait may take; see `ChartRepository`. Raises ValueError for what is not such a URL,
    RepositoryError where its driver is missing.
    """
    import sqlalchemy as sa

    if isinstance(url, sa.Engine):
        if connect_args is not None:
            raise ValueError(f"connect_args={short(connect_args)}: an engine has its own, give them to create_engine")
        return _borrowed(url)
    return _made(url, timeout, connect_args or {})


def _borrowed(engine: sa.Engine) -> Database:
    """Use an engine of the caller's, with listeners that apply to the repository alone."""
    from sqlalchemy.pool import StaticPool

    in_memory = _is_in_memory(engine.url)
    if in_memory and not isinstance(engine.pool, StaticPool):
        raise ValueError(
            f"{engine!r}: each thread would have a database of its own; give the URL, or poolclass=StaticPool and "
            "connect_args={'check_same_thread': False} to create_engine"
        )
    ours = engine.execution_options()
    _begin_in_words(ours)
    return Database(ours, _shown(engine.url), in_memory, is_ours=False)


def _made(url: str, timeout: float, connect_args: Mapping[str, Any]) -> Database:
    import sqlalchemy as sa
    from sqlalchemy.pool import StaticPool

    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError) as error:  # ValueError: sqlite://:memory: has no number for a port
        shown = short(hide_password(url).rpartition("@")[2] if isinstance(url, str) else url)
        raise ValueError(f"url={shown}: expected an SQLAlchemy URL, such as sqlite:///charts.db") from error
    shown = _shown(parsed)
    in_memory = _is_in_memory(parsed)
    options: dict[str, Any] = {"poolclass": StaticPool} if in_memory else {"pool_timeout": timeout}
    defaults: dict[str, Any] = {}
    try:
        dialect = parsed.get_dialect()
        if dialect.name == "sqlite":
            defaults = {"timeout": timeout, "check_same_thread": False}
        elif dialect.driver == "psycopg":
            from copilotlab.charts.patient import bound_waits, connection_arguments

            defaults, options["isolation_level"] = connection_arguments(timeout), "AUTOCOMMIT"
        else:
            options["pool_pre_ping"] = True
        chosen = {name: value for name, value in defaults.items() if name not in parsed.query} | dict(connect_args)
        engine = sa.create_engine(parsed, connect_args=chosen, **options)
    except sa.exc.ArgumentError as error:
        raise ValueError(f"url={shown!r}: {error}; expected one such as sqlite:///charts.db") from error
    except ModuleNotFoundError as error:
        raise RepositoryError(
            f"{shown} needs the driver {error.name!r}: pip install {error.name}, or name one that is installed, as in "
            "postgresql+psycopg://..."
        ) from error
    except ImportError as error:  # psycopg without a libpq, say
        raise RepositoryError(f"{shown}: its driver cannot be imported: {reason(error)}") from error
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", partial(_prepare_sqlite, timeout=timeout))
    if engine.dialect.driver == "psycopg":
        bound_waits(engine, timeout)
    else:
        _begin_in_words(engine)
    return Database(engine, shown, in_memory, is_ours=True)


def _shown(url: sa.URL) -> str:
    return hide_password(url.render_as_string(hide_password=True))


def _is_in_memory(url: sa.URL) -> bool:
    named = url.database in (None, "", ":memory:", "file::memory:") or url.query.get("mode") == "memory"
    return named and url.get_backend_name() == "sqlite"


def _begin_in_words(engine: sa.Engine) -> None:
    import sqlalchemy as sa

    if engine.dialect.name in (begin := {"sqlite": _begin_sqlite, "postgresql": _begin_postgresql}):
        sa.event.listen(engine, "begin", begin[engine.dialect.name])


def _prepare_sqlite(connection: Any, _record: object, *, timeout: float) -> None:
    connection.isolation_level = None  # the driver would begin transactions of its own, and too late
    connection.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")  # else one bad text fails all
    _write_ahead(connection, timeout)
    connection.execute("PRAGMA synchronous=NORMAL")


def _write_ahead(connection: Any, timeout: float) -> None:
    """Switch the file to its write-ahead log, for good: readers and the writer do not wait for each other then.

    SQLite refuses the switch at once, whatever its timeout, while another connection writes to a file that is not
    switched yet, as where two processes open a new one together.
    """
    give_up = time.monotonic() + timeout
    while connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return  # in memory there is none, which is no error
        except sqlite3.OperationalError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.01)


def _begin_postgresql(connection: sa.Connection) -> None:
    # What is read in several statements is of one moment, as it is with SQLite anyway.
    if connection.get_execution_options().get("copilotlab_writes") is False:
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")


def _begin_sqlite(connection: sa.Connection) -> None:
    # A writer takes the lock before it reads: two that both read first could not both go on.
    writes = connection.get_execution_options().get("copilotlab_writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
