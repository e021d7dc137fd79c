"""A store's records in a file: whole or not at all, checked to the last byte, read at the disk's speed.

The file is a line that names the format, a label, the columns one after the other, little-endian, and a BLAKE2b digest
of all that. It is written beside the one that it replaces, and takes its place by a rename.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import blake2b
from math import prod
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from copilotlab.store.records import HASH_BYTES, Bytes, Floats, Ints, check_unit

FORMAT = b"copilotlab vectors, format 1\n"
LONGEST_LABEL = 65_536
ROWS_AT_ONCE = 4096
CHECK_BYTES = 32


class FileRefused(Exception):
    """The file does not hold what was asked for; the message says why. Nothing was taken from it."""


class Label(msgspec.Struct, frozen=True):
    """What a file holds. model: the fingerprint; catalogue: its incarnation; count, dim: of the vectors."""

    model: str
    catalogue: str
    count: int
    dim: int


class Columns(NamedTuple):
    """Records as columns, a row a chart: int64 (n,), int64 (n,), uint8 (n, 16), uint8 (n, 16), float32 (n, dim)."""

    chart_ids: Ints
    revisions: Ints
    content_hashes: Bytes
    vector_hashes: Bytes
    vectors: Floats


def write(path: Path, label: Label, columns: Columns, rows: Ints) -> None:
    """Write these ``rows`` of the columns. Raises OSError; then the file that was there before is as it was."""
    beside = path.with_name(f"{path.name}.part")
    try:
        with beside.open("wb") as file:
            check = blake2b(digest_size=CHECK_BYTES)
            for piece in _pieces(label, columns, rows):
                file.write(piece)
                check.update(piece)
            file.write(check.digest())
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _pieces(label: Label, columns: Columns, rows: Ints) -> Iterator[bytes | memoryview]:
    written = msgspec.msgpack.encode(label)
    yield FORMAT + len(written).to_bytes(4, "little") + written
    for column in columns:
        for start in range(0, len(rows), ROWS_AT_ONCE):
            piece = column[rows[start : start + ROWS_AT_ONCE]]
            yield np.ascontiguousarray(piece, dtype=piece.dtype.newbyteorder("<")).data.cast("B")


def read(path: Path, *, model: str, catalogue: str, dim: int) -> Columns:
    """Read the file if it is of this model and this catalogue. Raises FileRefused, and OSError where there is none."""
    with path.open("rb") as file:
        check = blake2b(digest_size=CHECK_BYTES)
        label = _label(file, check)
        for what, held, wanted in (
            ("model", label.model, model),
            ("catalogue", label.catalogue, catalogue),
            ("dimension", label.dim, dim),
        ):
            if held != wanted:
                raise FileRefused(f"{path} holds vectors of {what} {held!r}, expected {wanted!r}")
        row_bytes = 2 * 8 + 2 * HASH_BYTES + 4 * dim
        size, expected = path.stat().st_size, file.tell() + label.count * row_bytes + CHECK_BYTES
        if size != expected:
            raise FileRefused(f"{path} has {size:,} bytes, expected {expected:,}: it was cut off or added to")
        columns = Columns(
            _column(file, check, "<i8", (label.count,)).astype(np.int64, copy=False),
            _column(file, check, "<i8", (label.count,)).astype(np.int64, copy=False),
            _column(file, check, "u1", (label.count, HASH_BYTES)).astype(np.uint8, copy=False),
            _column(file, check, "u1", (label.count, HASH_BYTES)).astype(np.uint8, copy=False),
            _column(file, check, "<f4", (label.count, dim)).astype(np.float32, copy=False),
        )
        if file.read(CHECK_BYTES) != check.digest():
            raise FileRefused(f"{path} is damaged: its bytes do not add up to its checksum")
    _check(path, columns)
    return columns


def _label(file: BinaryIO, check: blake2b) -> Label:
    start = file.read(len(FORMAT) + 4)
    if start[: len(FORMAT)] != FORMAT:
        raise FileRefused(f"{file.name} is no file of vectors in a format that this version reads")
    length = int.from_bytes(start[len(FORMAT) :], "little")
    written = file.read(min(length, LONGEST_LABEL))
    check.update(start + written)
    try:
        label = msgspec.msgpack.decode(written, type=Label)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FileRefused(f"{file.name} is damaged: its label cannot be read ({error})") from None
    if label.count < 0 or label.dim < 1:
        raise FileRefused(f"{file.name} is damaged: its label tells of {label.count} vectors of {label.dim} floats")
    return label


def _column(file: BinaryIO, check: blake2b, dtype: str, shape: tuple[int, ...]) -> npt.NDArray[np.generic]:
    column: npt.NDArray[np.generic] = np.fromfile(file, dtype=dtype, count=prod(shape)).reshape(shape)
    if column.size:
        check.update(column.data.cast("B"))
    return column


def _check(path: Path, columns: Columns) -> None:
    chart_ids = columns.chart_ids
    if len(chart_ids) and (chart_ids.min() < 0 or columns.revisions.min() < 0):
        raise FileRefused(f"{path} holds a negative chart_id or revision")
    if len(np.unique(chart_ids)) != len(chart_ids):
        raise FileRefused(f"{path} holds a chart twice")
    try:
        check_unit(columns.vectors, f"the vectors of {path}")
    except ValueError as error:
        raise FileRefused(str(error)) from None
