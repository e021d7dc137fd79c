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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from copilotlab.charts.chart import Chart, ChartError
from copilotlab.reasons import reason, short

if TYPE_CHECKING:
    import polars as pl

FIELDS = tuple(field.name for field in fields(Chart))

_DELIMITERS = ",;\t|"
_BETWEEN_WORDS = re.compile(r"[\s_-]+")
_MOST_NAMED = 20  # columns
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
    """The columns that there are, and the rows: column -> cell. A row may lack columns; one without any is blank.

    lines: of a file of text, the line in which each row begins. bad: what is wrong with rows that cannot be read, by
    their number from 1; such a row is blank.
    """

    columns: list[str]
    rows: Iterable[Mapping[str, Any]]
    lines: Sequence[int] = ()
    bad: Mapping[int, str] = MappingProxyType({})


def fields_of(columns: Sequence[str], origin: str) -> dict[str, str]:
    """Return which column gives which field of `Chart`; capitals, spaces and hyphens in their names do not matter.

    origin: what messages call the table. Raises ChartError where two columns would give one field.
    """
    known = {bare(name): name for name in FIELDS}
    found: dict[str, str] = {}
    for column in columns:
        field = known.get(bare(column))
        if field is not None and found.setdefault(field, column) != column:
            raise ChartError(
                f"{origin} has the columns {short(found[field])} and {short(column)}, and either may be {field!r}: "
                "rename one of them, or leave it out"
            )
    return found


def bare(name: str) -> str:
    """Return the name of a column without what does not matter in it: capitals, spaces, underscores and hyphens."""
    return _BETWEEN_WORDS.sub("", name).lower()


def said_of_unread(columns: Iterable[str], lacking: Sequence[str]) -> str:
    """Name columns that are not read, and what each may be meant to be. lacking: the names that no column has."""
    unread = list(columns)
    meant = ((name, get_close_matches(name.strip().lower(), lacking, n=1)) for name in unread[:_MOST_NAMED])
    hints = "".join(f"; did you mean {known[0]!r} by {short(name)}?" for name, known in meant if known)
    more = f" and {len(unread) - _MOST_NAMED} more" if len(unread) > _MOST_NAMED else ""
    return f"not read, since no chart has such a field: {', '.join(map(short, unread[:_MOST_NAMED]))}{more}{hints}"


def read_table(path: Path) -> Table:
    """Read a file whose name ends in one of `ENDINGS`. Raises ChartError that says why it cannot be read."""
    try:
        return read_file(path, _READERS, str(path))
    except ValueError as error:
        raise ChartError(str(error)) from None  # it says all that there is to say, as do those below


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
        raise ValueError(f"{origin} cannot be read as {path.suffix[1:]}: {reason(error)}") from None


def polars_table(frame: pl.DataFrame) -> Table:
    """Return the table of a polars frame."""
    known = list(fields_of(frame.columns, "the frame").values())
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
    lines: list[int] = []
    bad: dict[int, str] = {}
    before = 1 if hint else 0
    records = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    begins = 1
    try:
        columns = [name.strip() for name in next(records, [])]
        twice = sorted({name for name in columns if name and columns.count(name) > 1})
        if twice:
            raise ValueError(f"the header has the column {twice[0]!r} more than once, expected each once")
        begins = records.line_num + 1
        for cells in records:
            lines.append(begins + before)
            begins = records.line_num + 1
            if any(map(str.strip, cells[len(columns) :])):
                bad[len(lines)] = (
                    f"it has {len(cells)} fields, the header has {len(columns)}; a field with {delimiter!r} in it "
                    "stands in double quotes"
                )
                cells = []
            rows.append(dict(zip(columns, cells, strict=False)))
    except csv.Error as error:
        where = f"row {len(rows) + 1} (line {begins + before})" if lines or begins > 1 else "the header"
        raise ValueError(f"{where}: {_misquoted(error)}") from None
    return Table([name for name in columns if name], rows, lines, bad)


def _misquoted(error: csv.Error) -> str:
    """Say what is wrong with a record of a .csv: that is hardly ever anything but its double quotes."""
    if "unexpected end of data" in str(error) or "field limit" in str(error):
        return 'a double quote (") opens a field in it, and none closes it; a quote inside a field is written twice'
    return f'{error}: a field in double quotes (") ends with one, and a quote inside it is written twice'


def _delimiter(text: str) -> str:
    """Find what separates the fields of the header: that with which it has most of a chart's columns."""

    def found(delimiter: str) -> tuple[int, int]:
        try:
            names = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
        except csv.Error:
            return 0, 0
        return len({bare(name) for name in names}.intersection(map(bare, FIELDS))), len(names)

    return max(_DELIMITERS, key=found)  # the first of those that are as good


def _ndjson(path: Path) -> Table:
    columns: dict[str, None] = {}
    rows: list[dict[str, Any]] = []
    bad: dict[int, str] = {}
    for number, line in enumerate(io.StringIO(_text(path)), start=1):
        row: object = {}
        try:
            if line.strip():
                row = json.loads(line)
        except (ValueError, RecursionError) as error:
            said = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else reason(error)
            bad[number] = f"it cannot be read as JSON: {said}"
        if not isinstance(row, dict):
            bad[number], row = f'{short(row)}: expected an object, as in {{"chart_id": 7}}', {}
        columns.update(dict.fromkeys(row))
        rows.append(row)
    return Table(list(columns), rows, range(1, len(rows) + 1), bad)


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
        frame = pl.read_excel(path, infer_schema_length=None, drop_empty_rows=False, raise_if_empty=False)
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
