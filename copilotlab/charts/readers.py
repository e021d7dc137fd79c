"""Charts out of frames and files, with what is wrong named by row and column."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from copilotlab.charts.chart import LISTS, Chart, ChartError, short
from copilotlab.reasons import reason

if TYPE_CHECKING:
    import polars as pl

_T = TypeVar("_T")


def charts_of(frame_or_path: pl.DataFrame | str | Path) -> list[Chart]:
    import polars as pl

    if isinstance(frame_or_path, pl.DataFrame):
        return list(_checked(*_frame_rows(frame_or_path), "the frame"))
    if not isinstance(frame_or_path, str | Path):
        raise ChartError(f"{short(frame_or_path)}: expected a polars frame, or the path of a file")
    path = Path(frame_or_path)
    try:
        columns, rows = read_file(path, _READERS, str(path))
    except ValueError as error:
        raise ChartError(str(error)) from error
    return list(_checked(columns, rows, str(path)))


def read_file(path: Path, readers: Mapping[str, Callable[[Path], _T]], origin: str) -> _T:
    """Read a file by what its name ends in, in capitals or not.

    readers: an ending, such as ".csv", and what reads such a file. origin: what messages call the file.

    Raises ValueError for another ending, a file that is not there, and one that its reader cannot read.
    """
    import polars as pl

    reader = readers.get(path.suffix.lower())
    if reader is None:
        *others, last = readers
        raise ValueError(f"{origin}: expected a name that ends in {', '.join(others)} or {last}")
    if not path.is_file():
        raise ValueError(f"{origin}: there is no such file")
    try:
        return reader(path)
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise ValueError(f"{origin} cannot be read as {path.suffix[1:]}: {reason(error)}") from error


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
                raise ValueError(f'row {len(rows) + 1}: {short(row)}: expected an object, as in {{"chart_id": 7}}')
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
    if name in LISTS and isinstance(value, str):
        if value.lstrip().startswith("["):
            try:
                return json.loads(value)
            except (ValueError, RecursionError) as error:
                raise ChartError(f"{name}={short(value)}: expected JSON, or words with semicolons between") from error
        return [word.strip() for word in value.split(";") if word.strip()]
    return value
