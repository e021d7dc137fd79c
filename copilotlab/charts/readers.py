"""Charts out of frames, lists and files, with what is wrong named by row and column."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from copilotlab.charts.cells import is_absent, is_blank, value_of
from copilotlab.charts.chart import Chart, ChartError, chart_id_of
from copilotlab.charts.files import FIELDS, Table, polars_table, read_table
from copilotlab.reasons import short

if TYPE_CHECKING:
    import polars as pl

_MOST_NAMED = 20  # columns
_REQUIRED = {"chart_id": "a whole number", "title": "1 to 500 characters"}


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
    return list(_checked(table, origin))


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
    raise ChartError(
        "expected a frame of polars or pandas, a list of dicts, or the path of a .parquet, .csv, .ndjson or .xlsx "
        f"file, not {type(given).__module__}.{type(given).__qualname__}: {remedy}"
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
    known = [name for name in FIELDS if name in frame.columns]
    for name in known:
        if columns.count(name) > 1:
            raise ChartError(f"the frame has the column {name!r} more than once, expected each once")
    cells = [frame[name].tolist() for name in known]  # in Python's own types, where there are such
    return Table(columns, (dict(zip(known, row, strict=True)) for row in zip(*cells, strict=True)))


def _checked(table: Table, origin: str) -> Iterator[Chart]:
    columns, rows = table
    for required in _REQUIRED:
        if required not in columns and not (required == "chart_id" and "key" in columns):
            raise ChartError(f"{origin} has no column {required!r}{_like(required, columns)}; {_listed(columns)}")
    names = [name for name in FIELDS if name in columns]
    seen: dict[int, int] = {}
    for number, row in enumerate(rows, start=1):
        cells = {name: cell for name in names if not is_absent(cell := row.get(name))}
        if all(map(is_blank, cells.values())):
            continue
        try:
            chart = _chart(cells)
        except ChartError as error:
            raise ChartError(f"{origin}, row {number}: {error}") from error
        if chart.chart_id in seen:
            raise ChartError(
                f"{origin}, row {number}: chart_id={chart.chart_id} stands in row {seen[chart.chart_id]} already; "
                "expected each id once"
            )
        seen[chart.chart_id] = number
        yield chart


def _chart(cells: dict[str, Any]) -> Chart:
    if "chart_id" not in cells and isinstance(key := cells.get("key"), str) and key.strip():
        cells = {**cells, "chart_id": chart_id_of(key)}
    for name, expected in _REQUIRED.items():
        if name not in cells:
            raise ChartError(f"{name}=None: the cell is empty; expected {expected}")
    return Chart(**{name: value_of(name, cell) for name, cell in cells.items()})


def _like(required: str, columns: list[str]) -> str:
    lower = {name.strip().lower(): name for name in columns}
    (alike,) = get_close_matches(required, lower, n=1) or [""]
    return f": rename {short(lower[alike])} if that is it" if alike else ""


def _listed(columns: list[str]) -> str:
    shown = ", ".join(map(short, columns[:_MOST_NAMED]))
    more = len(columns) - _MOST_NAMED
    return f"its columns are {shown}{f' and {more} more' if more > 0 else ''}" if columns else "it has none at all"
