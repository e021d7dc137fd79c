"""Charts out of frames, lists and files, with what is wrong named by row and column."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from copilotlab.charts.cells import is_absent, is_blank, value_of
from copilotlab.charts.chart import Chart, ChartError, chart_id_of
from copilotlab.charts.files import ENDINGS, FIELDS, Table, fields_of, polars_table, read_table, said_of_unread
from copilotlab.reasons import short

if TYPE_CHECKING:
    import polars as pl

_MOST_NAMED = 20  # columns
_MOST_ROWS_NAMED = 10
_REQUIRED = {"chart_id": "a whole number", "title": "1 to 500 characters"}
_ALSO_CALLED = {"chart_id": ("id", "uid", "uuid", "chart", "number"), "title": ("name", "label", "heading")}
_OUR_OWN = {"revision"}  # of `ChartRepository.frame`, not read again

logger = logging.getLogger("copilotlab.charts")


class PandasFrame(Protocol):
    """A pandas DataFrame, which is never imported here: whoever has one has done so."""

    @property
    def columns(self) -> Any: ...
    @property
    def index(self) -> Any: ...
    def reset_index(self) -> Any: ...


if TYPE_CHECKING:
    Charts = pl.DataFrame | PandasFrame | Sequence[Mapping[str, Any]] | str | Path


def charts_of(given: Charts) -> list[Chart]:
    """Read the charts of a frame, a list of dicts or a file; see `ChartRepository.load_frame`."""
    table, origin = _table(given)
    return _checked(table, origin)


def _table(given: object) -> tuple[Table, str]:
    import polars as pl

    if isinstance(given, str | Path):
        return read_table(Path(given)), str(given)
    if isinstance(given, pl.DataFrame):
        return polars_table(given), "the frame"
    if isinstance(given, list | tuple):
        return _list_table(given), "the list"
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(given, pandas.DataFrame):
        return _pandas_table(given), "the frame"
    remedy = {
        "LazyFrame": "call collect() on it",
        "dict": "pl.DataFrame makes a frame of columns",
        "Chart": "save takes it",
    }.get(type(given).__name__, "pl.DataFrame makes a frame of most tables")
    *others, last = ENDINGS
    raise ChartError(
        f"expected a frame of polars or pandas, a list of dicts, or the path of a {', '.join(others)} or {last} file, "
        f"not {type(given).__module__}.{type(given).__qualname__}: {remedy}"
    )


def _list_table(given: Sequence[object]) -> Table:
    rows: list[Mapping[str, Any]] = []
    columns: dict[str, None] = {}
    for number, row in enumerate(given, start=1):
        if not isinstance(row, Mapping):
            remedy = "save_many takes charts" if isinstance(row, Chart) else 'as in {"chart_id": 7, "title": "Revenue"}'
            raise ChartError(f"the list, row {number}: expected a dict, not {type(row).__name__}: {remedy}")
        columns.update(dict.fromkeys(map(str, row)))
        rows.append(row)
    return Table(list(columns) if rows else list(_REQUIRED), rows)


def _pandas_table(frame: Any) -> Table:
    if "chart_id" not in frame.columns and "chart_id" in frame.index.names:
        frame = frame.reset_index()
    columns = [str(name) for name in frame.columns]
    known = [name for name in fields_of(columns, "the frame").values() if name in frame.columns]
    for name in known:
        if columns.count(name) > 1:
            raise ChartError(f"the frame has the column {name!r} more than once, expected each once")
    cells = [frame[name].tolist() for name in known]  # in Python's own types, where there are such
    return Table(columns, (dict(zip(known, row, strict=True)) for row in zip(*cells, strict=True)))


def _checked(table: Table, origin: str) -> list[Chart]:
    """Make the charts of all rows. Raises ChartError that names the bad rows, not only the first."""
    found = fields_of(table.columns, origin)
    wrong = _BadRows(table, origin)
    for required in _REQUIRED:
        if required not in found and not (required == "chart_id" and "key" in found):
            if table.bad:  # as where nothing in it can be read: then no column is missing
                for number, said in table.bad.items():
                    wrong.add(number, said)
                raise wrong.error()
            columns = table.columns
            raise ChartError(f"{origin} has no column {required!r}{_like(required, columns)}; {_listed(columns)}")
    if unread := [name for name in table.columns if name not in found.values() and name not in _OUR_OWN]:
        logger.warning("%s: %s", origin, said_of_unread(unread, [name for name in FIELDS if name not in found]))
    charts: list[Chart] = []
    seen: dict[int, int] = {}
    for number, row in enumerate(table.rows, start=1):
        try:
            if number in table.bad:
                raise ChartError(table.bad[number])
            cells = {name: cell for name, column in found.items() if not is_absent(cell := row.get(column))}
            if all(map(is_blank, cells.values())):
                continue
            chart = _chart(cells)
            if (first := seen.setdefault(chart.chart_id, number)) != number:
                raise ChartError(f"chart_id={chart.chart_id} stands in row {first} already; expected each id once")
            charts.append(chart)
        except ChartError as error:
            wrong.add(number, str(error))
    if wrong.count:
        raise wrong.error()
    return charts


class _BadRows:
    """What is wrong with the rows of a table, of which the first few are kept."""

    def __init__(self, table: Table, origin: str) -> None:
        self._lines, self._origin = table.lines, origin
        self._said: list[str] = []
        self.count = 0

    def add(self, number: int, said: str) -> None:
        self.count += 1
        if len(self._said) < _MOST_ROWS_NAMED:
            line = f" (line {self._lines[number - 1]})" if len(self._lines) >= number else ""
            self._said.append(f"row {number}{line}: {said}")

    def error(self) -> ChartError:
        if self.count == 1:
            return ChartError(f"{self._origin}, {self._said[0]}")
        first = f"; the first {_MOST_ROWS_NAMED} are" if self.count > _MOST_ROWS_NAMED else ""
        return ChartError("\n  ".join([f"{self._origin}: {self.count:,} rows are no charts{first}:", *self._said]))


def _chart(cells: dict[str, Any]) -> Chart:
    if "chart_id" not in cells and isinstance(key := cells.get("key"), str) and key.strip():
        cells = {**cells, "chart_id": chart_id_of(key)}
    for name, expected in _REQUIRED.items():
        if name not in cells:
            raise ChartError(f"{name}=None: the cell is empty; expected {expected}")
    return Chart(**{name: value_of(name, cell) for name, cell in cells.items()})


def _like(required: str, columns: list[str]) -> str:
    """Suggest a column that may be the one that is missing, and is not another one that a chart has."""
    known = fields_of(columns, "").values()
    lower = {name.strip().lower(): name for name in columns if name not in known}
    called = [name for name in _ALSO_CALLED[required] if name in lower]
    (alike, *_) = called or get_close_matches(required, lower, n=1) or [""]
    return f": rename {short(lower[alike])} if that is it" if alike else ""


def _listed(columns: list[str]) -> str:
    shown = ", ".join(map(short, columns[:_MOST_NAMED]))
    more = len(columns) - _MOST_NAMED
    return f"its columns are {shown}{f' and {more} more' if more > 0 else ''}" if columns else "it has none at all"
