"""A model and a repository that work until they are told to fail or to hang, and again once they are mended."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from copilotlab.charts import Chart, ChartRepository, RepositoryError
from copilotlab.embedding import Embedder

if TYPE_CHECKING:
    import sqlalchemy as sa

RESTORE_LIMIT = 30.0  # seconds that a backup or its restoration may take


class Gate:
    """What every call passes: open, or failing, or holding back whoever comes until it is mended."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self._mended = threading.Event()
        self._held_back = threading.Semaphore(0)  # so many of the next calls
        self._failing = False

    def fail(self) -> None:
        """From now on calls raise."""
        self._failing = True

    def hang(self) -> None:
        """From now on calls wait for `mend`."""
        self._open.clear()

    def hang_once(self) -> None:
        """The next call alone waits for `mend`; those after it pass."""
        self._mended.clear()
        self._held_back.release()

    def mend(self) -> None:
        """Calls pass again; those that wait go on."""
        self._failing = False
        while self._held_back.acquire(blocking=False):
            pass  # nobody came
        self._mended.set()
        self._open.set()

    def passes(self) -> bool:
        """Wait while the gate hangs; False if the call is to fail."""
        if self._held_back.acquire(blocking=False):
            self._mended.wait()
        self._open.wait()
        return not self._failing

    def __repr__(self) -> str:
        return f"Gate({'hanging' if not self._open.is_set() else 'failing' if self._failing else 'open'})"


class FragileModel(Embedder):
    """Another model's vectors, at a pace of one's choice, with failures on request.

    inner: the model. pace: seconds that a text takes (0.0). seed: of the bits in which vectors differ; None draws one.

    As with a real model in other batches, no two vectors of one text have the same bits. Only calls with several texts
    fail, hang or are paced: those of batches. A query, or one edit, comes alone and is answered all along.
    gate: what fails and hangs. made: how often each text was embedded.
    """

    def __init__(self, inner: Embedder, *, pace: float = 0.0, seed: int | None = None) -> None:
        super().__init__(name=inner.name, fingerprint=inner.fingerprint, dim=inner.dim)
        self.gate = Gate()
        self.pace = pace
        self.made: Counter[str] = Counter()
        self._inner = inner
        self._noise = np.random.default_rng(seed)
        self._lock = threading.Lock()

    def cut(self, texts: Sequence[str]) -> list[int]:
        """As the model's own."""
        return self._inner.cut(texts)

    def _encode(self, batch: list[str]) -> NDArray[np.floating]:
        if len(batch) > 1:
            if not self.gate.passes():
                raise OSError("the model has failed, as it was told to")
            if self.pace:
                time.sleep(self.pace * len(batch))
        vectors = self._inner.embed(batch)
        with self._lock:
            self.made.update(batch)
            return vectors + self._noise.uniform(-1e-6, 1e-6, vectors.shape)


class FragileRepository(ChartRepository):
    """A repository that can be made unreachable, or so slow that nobody knows whether it will answer; and whose
    database can be treated as databases are: put back to a backup, edited by hand.

    gate: what fails and hangs. A transaction that has begun goes on.
    What is done to the database is done behind the repository's back: no revision tells of it.
    """

    def __init__(self, url: str = "sqlite://") -> None:
        self.gate = Gate()
        self._backup: tempfile.TemporaryDirectory[str] | None = None
        self._spoiled: dict[int, str] = {}
        super().__init__(url)

    def check_restorable(self) -> None:
        """TypeError where the database is not SQLite: of another one no backup can be made here."""
        if self._engine.dialect.name != "sqlite":
            raise TypeError(f"{self._shown_url} cannot be backed up here: give the lab a FragileRepository on SQLite")

    def back_up(self) -> None:
        """Keep a copy of the whole database, in a file, in the place of an earlier one. TypeError if not SQLite."""
        self.check_restorable()
        folder = tempfile.TemporaryDirectory(prefix="copilotlab-")
        with self._driver() as database, contextlib.closing(sqlite3.connect(_copy_in(folder))) as copy:
            _copy(database, copy)
        self._forget_backup()
        self._backup = folder

    def restore(self, *, overtaking: bool = False) -> None:
        """Put the database back to what it was at the last `back_up`; nothing where there is none any more.

        overtaking: between two looks of anybody it is also written on, one chart after the other, beyond the revision
        that it had until now.

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

        All in one transaction, so between two looks of anybody. Nothing where there is no chart.
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
        """Blank the title of the oldest chart, as an editor of rows might; its id, -1 without any chart."""
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
        """Give every chart that was spoiled its title back, unless it was saved anew or deleted meanwhile."""
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
        """The driver's own connection, with nobody in a transaction on it."""
        with self._lock, contextlib.closing(self._engine.raw_connection()) as connection:
            yield connection.driver_connection  # type: ignore[misc]  # of the driver that check_restorable saw

    @contextmanager
    def _transaction(self, *, writes: bool = False) -> Iterator[sa.Connection]:
        if not self.gate.passes():
            raise RepositoryError(f"the repository at {self._shown_url} is unreachable, as it was told to be")
        with super()._transaction(writes=writes) as connection:
            yield connection


def _copy_in(folder: tempfile.TemporaryDirectory[str]) -> str:
    return str(Path(folder.name, "charts.db"))


def _write_on(charts: ChartRepository, revision: int) -> None:
    """Save its charts with other words, in turn, until it is at this revision; one of its own if it has none."""
    turn = itertools.cycle(list(charts) or [Chart(chart_id=0, title="Written afterwards")])
    for written in range(charts.revision + 1, revision + 1):
        charts.save(replace(next(turn), description=f"Written afterwards, as revision {written}"))


def _copy(source: sqlite3.Connection, target: sqlite3.Connection) -> None:
    """Make one database another, by SQLite's own online backup, which waits while somebody else holds either."""
    give_up = time.monotonic() + RESTORE_LIMIT

    def still(_status: int, _remaining: int, _total: int) -> None:
        if time.monotonic() > give_up:
            raise RepositoryError(f"the database was held by another connection for {RESTORE_LIMIT:g} s")

    source.backup(target, pages=1_000, progress=still, sleep=0.01)
