"""Files of charts: which columns and rows there are, as text or as the file has them.

Text is read with the standard library. Polars gives a column of mixed values one type, a number among titles becomes
text, and its errors name no row.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import logging
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from copilotlab.charts.chart import Chart, ChartError
from copilotlab.reasons import reason, short

if TYPE_CHECKING:
    import polars as pl

FIELDS = tuple(field.name for field in fields(Chart))

_DELIMITERS = ",;\t|"
_MOST_UNPACKED = 2**28  # bytes of a workbook
_EXCELS_HINT = re.compile(r'"?sep=(.)"?\r?\n')  # the first line of a file that is made for Excel
_BYTE_ORDER_MARKS = (  # the longer first: UTF-32 begins as UTF-16 does
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

logger = logging.getLogger("copilotlab.charts")

T = TypeVar("T")


class Table(NamedTuple):
    """The columns that there are, and the rows: column -> cell. A row may lack columns; one without any is blank."""

    columns: list[str]
    rows: Iterable[Mapping[str, Any]]


def read_table(path: Path) -> Table:
    """Read a file whose name ends in one of `ENDINGS`. Raises ChartError that says why it cannot be read."""
    try:
        return read_file(path, _READERS, str(path))
    except ValueError as error:
        raise ChartError(str(error)) from error


def read_file(path: Path, readers: Mapping[str, Callable[[Path], T]], origin: str) -> T:
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


def polars_table(frame: pl.DataFrame) -> Table:
    """Return the table of a polars frame."""
    known = [name for name in FIELDS if name in frame.columns]
    return Table(frame.columns, frame.select(known).iter_rows(named=True))


def _parquet(path: Path) -> Table:
    import polars as pl

    frame = pl.read_parquet(path)
    return Table(frame.columns, frame.iter_rows(named=True))


def _csv(path: Path) -> Table:
    text = _text(path)
    if hint := _EXCELS_HINT.match(text):
        text = text[hint.end() :]
    delimiter = hint[1] if hint else _delimiter(text)
    rows: list[dict[str, Any]] = []
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        columns = [name.strip() for name in next(lines, [])]
        twice = sorted({name for name in columns if name and columns.count(name) > 1})
        if twice:
            raise ValueError(f"the header has the column {twice[0]!r} more than once, expected each once")
        for cells in lines:
            if any(map(str.strip, cells[len(columns) :])):
                raise ValueError(
                    f"row {len(rows) + 1} has {len(cells)} fields, the header has {len(columns)}; a field with "
                    f"{delimiter!r} in it stands in double quotes"
                )
            rows.append(dict(zip(columns, cells, strict=False)))
    except csv.Error as error:
        raise ValueError(f"row {len(rows) + 1}: {error}") from error
    return Table([name for name in columns if name], rows)


def _delimiter(text: str) -> str:
    """Find what separates the fields of the header: that with which it has most of a chart's columns."""

    def found(delimiter: str) -> tuple[int, int]:
        try:
            names = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
        except csv.Error:
            return 0, 0
        return len({name.strip() for name in names}.intersection(FIELDS)), len(names)

    return max(_DELIMITERS, key=found)  # the first of those that are as good


def _ndjson(path: Path) -> Table:
    columns: dict[str, None] = {}
    rows: list[dict[str, Any]] = []
    for line in io.StringIO(_text(path)):
        row: object = {}
        try:
            if line.strip():
                row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"row {len(rows) + 1}: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f'row {len(rows) + 1}: {short(row)}: expected an object, as in {{"chart_id": 7}}')
        columns.update(dict.fromkeys(row))
        rows.append(row)
    return Table(list(columns), rows)


def _text(path: Path) -> str:
    return decoded(path.read_bytes(), str(path))


def decoded(data: bytes, origin: str) -> str:
    """Return the text of a file: in UTF-8, in UTF-16 or UTF-32, or, where it can be neither, in cp1252.

    origin: what the log calls the file. Raises ValueError that names the line where it is of none of them.
    """
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), None) or _unmarked(data)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        where = f"line {line}: byte 0x{data[error.start]:02x} is not {encoding}"
        # A damaged UTF-8 file has letters that are right; in cp1252 there is hardly one that UTF-8 would take.
        if encoding == "utf-8" and data.decode("utf-8", errors="ignore").isascii():
            try:
                text = data.decode("cp1252")
            except UnicodeDecodeError:
                pass
            else:
                logger.warning("%s is read as cp1252: %s. If letters look wrong, save it as UTF-8", origin, where)
                return text
        raise ValueError(f"{where}; save it as UTF-8") from error


def _unmarked(data: bytes) -> str:
    """Return UTF-16 where every other byte at the beginning is null, as in a header of Latin letters; else UTF-8."""
    first = data[:16]
    if len(first) >= 4 and first[0] and not any(first[1::2]):
        return "utf-16-le"
    if len(first) >= 4 and first[1] and not any(first[::2]):
        return "utf-16-be"
    return "utf-8"


def _xlsx(path: Path) -> Table:
    """Read the first sheet. A file that says less of its own size than it unpacks to is not given to the reader."""
    import polars as pl

    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > _MOST_UNPACKED:
                raise ValueError(f"it unpacks to more than {_MOST_UNPACKED / 2**20:,.0f} MB; save it as .csv")
            broken = archive.testzip()  # unpacks no more than each member's size, and compares the checksums
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"it is not, or no longer, a workbook: {reason(error)}") from error
    if broken is not None:
        raise ValueError(f"the workbook is damaged in {broken[:100]}")
    try:
        import fastexcel
    except ModuleNotFoundError as error:
        raise ValueError("it needs fastexcel: pip install 'copilotlab[excel]'") from error
    try:
        frame = pl.read_excel(path, infer_schema_length=None, raise_if_empty=False)
    except fastexcel.FastExcelError as error:
        raise ValueError(reason(error)) from error
    return Table([str(name) for name in frame.columns], frame.iter_rows(named=True))


_READERS: dict[str, Callable[[Path], Table]] = {
    ".parquet": _parquet,
    ".csv": _csv,
    ".tsv": _csv,
    ".ndjson": _ndjson,
    ".jsonl": _ndjson,
    ".xlsx": _xlsx,
}
ENDINGS = tuple(_READERS)
