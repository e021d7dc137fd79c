"""Tables of charts that people keep themselves: files of rows, and queries of a database by its SQLAlchemy URL."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from copilotlab.charts.cells import is_absent, is_blank, value_of
from copilotlab.charts.chart import ChartError
from copilotlab.charts.database import RepositoryError, database_of
from copilotlab.charts.files import ENDINGS, Table, bare, read_table, said_of_unread
from copilotlab.importers.documents import MAX_FILE
from copilotlab.importers.draft import CatalogueError, Draft, Skipped
from copilotlab.reasons import reason, short
from copilotlab.urls import hide_password

FORMAT = "table"
MAX_ROWS = 1_000_000
_PAGE = 5_000  # rows
_NAMES = {  # what people call the columns; the first that is there counts
    "native_id": ("chart_id", "id", "uuid", "slug"),
    "title": ("title", "name", "label"),
    "description": ("description",),
    "chart_type": ("chart_type", "type"),
    "dimensions": ("dimensions",),
    "measures": ("measures", "metrics"),
    "source": ("source", "table", "dataset"),
    "tags": ("tags",),
    "dashboards": ("dashboard", "dashboards"),
    "url": ("url", "link"),
}
logger = logging.getLogger("copilotlab.importers")

_LISTS = ("dimensions", "measures", "tags", "dashboards")


def is_table(path: Path) -> bool:
    """Return whether a file is a table by its name: not the endings that exports of tools have too."""
    return path.suffix.lower() in ENDINGS and path.suffix.lower() not in (".ndjson", ".jsonl")


def of_file(path: Path) -> Iterator[Draft | Skipped]:
    """Give the charts of a file. Raises CatalogueError where it cannot be read, or has no columns of a chart."""
    if path.is_file() and path.stat().st_size > MAX_FILE:
        raise CatalogueError(
            f"{path} has {path.stat().st_size / 2**20:,.0f} MB: expected at most {MAX_FILE / 2**20:,.0f}"
        )
    try:
        table = read_table(path)
    except ChartError as error:
        raise CatalogueError(str(error)) from None
    if table.bad and not table.columns:
        number, said = next(iter(table.bad.items()))
        raise CatalogueError(f"{path}, row {number}: {said}")
    yield from _drafts(table, path.name)


def of_database(url: str, query: str, timeout: float) -> Iterator[Draft | Skipped]:
    """Give the charts that a query of a database finds; nothing is written. timeout: seconds that a wait may take.

    Raises CatalogueError for a wrong URL or query, and for more rows than are read.
    """
    import sqlalchemy as sa

    shown = hide_password(url)
    try:
        engine = _engine(url, timeout)
    except (ValueError, RepositoryError) as error:
        raise CatalogueError(str(error)) from error
    try:
        with engine.execution_options(copilotlab_writes=False).connect() as connection:
            result = connection.execution_options(stream_results=True).exec_driver_sql(query)
            if not result.returns_rows:
                raise CatalogueError(
                    f"query={short(query)}: expected one that gives rows, such as SELECT id, title FROM charts"
                )
            columns = list(map(str, result.keys()))
            rows = (row._asdict() for page in result.partitions(_PAGE) for row in page)
            yield from _drafts(Table(columns, _at_most(rows)), shown)
    except sa.exc.SQLAlchemyError as error:
        cause = error.orig if isinstance(error, sa.exc.DBAPIError) and error.orig is not None else error
        raise CatalogueError(f"{shown}: {reason(cause)}; the query was {short(query)}") from error
    finally:
        engine.dispose()


def _engine(url: str, timeout: float) -> Any:
    """Return an engine that reads. SQLite is opened as it is: no file is made, and its journal stays what it was."""
    import sqlalchemy as sa

    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        return database_of(url, timeout, None).engine  # says what is wrong with it
    if parsed.get_backend_name() != "sqlite":
        return database_of(url, timeout, None).engine
    path = Path(parsed.database or "")
    if not path.is_file():
        raise ValueError(f"{hide_password(url)}: there is no such file")
    address = f"{path.resolve().as_uri()}?mode=ro"
    return sa.create_engine("sqlite://", creator=lambda: sqlite3.connect(address, uri=True, timeout=timeout))


def _at_most(rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for number, row in enumerate(rows, start=1):
        if number > MAX_ROWS:
            raise CatalogueError(f"the query gives more than {MAX_ROWS:,} rows: narrow it, as with WHERE or LIMIT")
        yield row


def _drafts(table: Table, origin: str) -> Iterator[Draft | Skipped]:
    found = _columns_of(table.columns, origin)
    for number, row in enumerate(table.rows, start=1):
        if number in table.bad:
            yield Skipped(f"{origin}:{number}", "", table.bad[number], may_hold=True)
            continue
        cells = {field: row.get(column) for field, column in found.items()}
        if all(map(is_blank, cells.values())):
            continue
        where = f"{origin}:{number}"
        native_id = _id_of(cells["native_id"])
        try:
            yield Draft(native_id, where, **_values(cells))
        except ChartError as error:
            yield Skipped(where, native_id, reason(error))


def _columns_of(columns: list[str], origin: str) -> dict[str, str]:
    """Return which column gives which field."""
    given = {bare(name): name for name in reversed(columns)}
    found = {
        field: given[bare(name)]
        for field, names in _NAMES.items()
        if (name := next((n for n in names if bare(n) in given), None))
    }
    for needed in ("native_id", "title"):
        if needed not in found:
            raise CatalogueError(
                f"{origin} has no column that is called {' or '.join(_NAMES[needed])}: its columns are "
                f"{', '.join(map(short, columns[:20])) or 'none'}; rename one, or name it so in the query"
            )
    if unread := tuple(name for name in columns if name not in found.values()):
        _warn_of_unread(origin, unread, tuple(names[0] for field, names in _NAMES.items() if field not in found))
    return found


@lru_cache(maxsize=100)  # once, however often a watch reads it
def _warn_of_unread(origin: str, unread: tuple[str, ...], lacking: tuple[str, ...]) -> None:
    logger.warning("%s: %s", origin, said_of_unread(unread, lacking))


def _id_of(cell: object) -> str:
    """Return an id as text: 7 of 7.0, which is what a column of numbers with a blank among them makes of it."""
    if is_absent(cell):
        return ""
    try:
        return str(value_of("chart_id", cell)).strip()
    except ChartError:  # a float too large to be sure of
        return ""


def _values(cells: Mapping[str, object]) -> dict[str, Any]:
    """Return the fields of a draft. Raises ChartError where a list cannot be read."""
    values: dict[str, Any] = {}
    for field, cell in cells.items():
        if field == "native_id" or is_absent(cell):
            continue
        if field in _LISTS:
            words = value_of("tags", cell)
            values[field] = (
                [str(word) for word in words if not is_absent(word)] if isinstance(words, list) else [str(words)]
            )
        else:
            values[field] = str(cell)
    return values
