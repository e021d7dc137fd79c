"""A repository that works until it is told to fail or to hang, and again once it is mended."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from copilotlab.charts import Chart, ChartRepository, RepositoryError
from copilotlab.lab.gate import Gate

if TYPE_CHECKING:
    import sqlalchemy as sa

RESTORE_LIMIT = 30.0  # seconds that making or restoring a backup may take


class FragileRepository(ChartRepository):
    """A repository that can be made unreachable or made to hang, and whose database can be restored from a backup,
    imported anew, or edited by hand.

    gate: makes transactions fail or hang; one that has begun goes on.
    The database is changed behind the repository's back: no revision tells of it.
    """

    def __init__(self, url: str = "sqlite://") -> None:
        self.gate = Gate()
        self._backup: tempfile.TemporaryDirectory[str] | None = None
        self._spoiled: dict[int, str] = {}
        super().__init__(url)

    def check_restorable(self) -> None:
        """Raise TypeError where the database is not SQLite: of another one no backup can be made here."""
        if self._engine.dialect.name != "sqlite":
            raise TypeError(f"{self._shown_url} cannot be backed up here: give the lab a FragileRepository on SQLite")

    def back_up(self) -> None:
        """Copy the whole database into a file, in place of an earlier copy. Raises TypeError if it is not SQLite."""
        self.check_restorable()
        folder = tempfile.TemporaryDirectory(prefix="copilotlab-")
        with self._driver() as database, contextlib.closing(sqlite3.connect(_copy_in(folder))) as copy:
            _copy(database, copy)
        self._forget_backup()
        self._backup = folder

    def restore(self, *, overtaking: bool = False) -> None:
        """Put the database back to what it was at the last `back_up`; do nothing where there is no backup.

        overtaking: save charts at once, one after the other, until the revision is beyond the one it had before the
        restoration; nobody sees the database in between.

        Raises RepositoryError where another connection holds the database for too long.
        """
        if self._backup is None:
            return
        copy = _copy_in(self._backup)
        if overtaking:
            with ChartRepository(f"sqlite:///{copy}") as restored:
                _write_on(restored, self.revision + 1)
        with contextlib.closing(sqlite3.connect(copy)) as source, self._driver() as database:
            _copy(source, database)
        self._forget_backup()

    def import_anew(self) -> None:
        """Empty the database by hand, and import its charts again to the same revision, each under the next one's id.

        It is one transaction, so nobody sees the database in between. Do nothing where there is no chart.
        """
        charts = list(self)
        if not charts:
            return
        ids = [chart.chart_id for chart in charts]
        dealt = [replace(chart, chart_id=chart_id) for chart, chart_id in zip(charts, ids[1:] + ids[:1], strict=True)]
        with self._transaction(writes=True) as connection:
            revision = self._state(connection, lock=True).revision
            connection.execute(self._charts.delete())
            connection.execute(self._counter.update().values(revision=0))
            self._save(connection, dealt)
            for written in range(len(dealt) + 1, revision + 1):
                chart = dealt[written % len(dealt)]
                self._save(connection, [replace(chart, description=f"Written afterwards, as revision {written}")])

    def _forget_backup(self) -> None:
        if self._backup is not None:
            self._backup.cleanup()
        self._backup = None

    def close(self) -> None:
        """Close all connections, and forget the backup."""
        self._forget_backup()
        super().close()

    def spoil(self) -> int:
        """Blank the title of the chart with the lowest id, by hand, and return that id; -1 where there is no chart."""
        live = self._charts.c.deleted.is_(False)
        with self._transaction(writes=True) as connection:
            columns = (self._charts.c.chart_id, self._charts.c.title)
            query = self._charts.select().with_only_columns(*columns).where(live, self._charts.c.title != "")
            row = connection.execute(query.order_by(self._charts.c.chart_id).limit(1)).first()
            if row is None:
                return -1
            self._write_title(connection, row.chart_id, "")
            self._spoiled[row.chart_id] = row.title
            return int(row.chart_id)

    def mend_rows(self) -> None:
        """Give every spoiled chart its title back, unless it was saved or deleted meanwhile."""
        with self._transaction(writes=True) as connection:
            for chart_id, title in self._spoiled.items():
                self._write_title(connection, chart_id, title, only_if="")
        self._spoiled.clear()

    def _write_title(self, connection: sa.Connection, chart_id: int, title: str, only_if: str | None = None) -> None:
        change = self._charts.update().where(self._charts.c.chart_id == chart_id, self._charts.c.deleted.is_(False))
        if only_if is not None:
            change = change.where(self._charts.c.title == only_if)
        connection.execute(change.values(title=title))

    @contextmanager
    def _driver(self) -> Iterator[sqlite3.Connection]:
        """Give the database driver's own connection; no transaction is under way on it."""
        with self._lock, contextlib.closing(self._engine.raw_connection()) as connection:
            yield connection.driver_connection  # type: ignore[misc]  # SQLite's, as check_restorable saw

    @contextmanager
    def _transaction(self, *, writes: bool = False) -> Iterator[sa.Connection]:
        if not self.gate.passes():
            raise RepositoryError(f"the repository at {self._shown_url} is unreachable, as it was told to be")
        with super()._transaction(writes=writes) as connection:
            yield connection


def _copy_in(folder: tempfile.TemporaryDirectory[str]) -> str:
    return str(Path(folder.name, "charts.db"))


def _write_on(charts: ChartRepository, revision: int) -> None:
    """Save the charts with other words, in turn, up to this revision; an invented one where there is none."""
    turn = itertools.cycle(list(charts) or [Chart(chart_id=0, title="Written afterwards")])
    for written in range(charts.revision + 1, revision + 1):
        charts.save(replace(next(turn), description=f"Written afterwards, as revision {written}"))


def _copy(source: sqlite3.Connection, target: sqlite3.Connection) -> None:
    """Copy one database over another by SQLite's online backup, which waits while another connection holds either."""
    give_up = time.monotonic() + RESTORE_LIMIT

    def still(_status: int, _remaining: int, _total: int) -> None:
        if time.monotonic() > give_up:
            raise RepositoryError(f"the database was held by another connection for {RESTORE_LIMIT:g} s")

    source.backup(target, pages=1_000, progress=still, sleep=0.01)
