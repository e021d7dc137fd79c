"""What goes into a store and what comes out: records, matches, manifests, and the checks at the door."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from copilotlab.reasons import short

if TYPE_CHECKING:
    import polars as pl

HASH_BYTES = 16
LARGEST = 2**63 - 1  # of a chart_id and of a revision: both are int64 in memory and on the wire
UNIT_TOLERANCE = 1e-3

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Record:
    """What a store holds of one chart. Make it with `Record.of`, which computes the vector's hash.

    chart_id, revision: int, 0 to 2**63 - 1. content_hash, vector_hash: 16 bytes. vector: float32 (dim,), of unit length
    within 1e-3, C-contiguous, read-only. ValueError for anything else; a vector_hash of 16 bytes is taken as given.
    """

    chart_id: int
    revision: int
    content_hash: bytes
    vector: Floats
    vector_hash: bytes

    def __post_init__(self) -> None:
        object.__setattr__(self, "chart_id", as_integer("chart_id", self.chart_id))
        object.__setattr__(self, "revision", as_integer("revision", self.revision))
        for name, value in (("content_hash", self.content_hash), ("vector_hash", self.vector_hash)):
            if not isinstance(value, bytes) or len(value) != HASH_BYTES:
                raise ValueError(f"{name} must be {HASH_BYTES} bytes, got {_shown(value)}")
        vector = self.vector
        if not isinstance(vector, np.ndarray) or vector.dtype != np.float32 or vector.ndim != 1:
            raise ValueError(f"vector must be a float32 array of one dimension, got {_shown(vector)}; use Record.of")
        if vector.flags.writeable or not vector.flags.c_contiguous:
            raise ValueError("vector must be read-only and C-contiguous; use Record.of")
        check_unit(vector, f"the vector of chart {self.chart_id}")

    @classmethod
    def of(cls, chart_id: int, revision: int, content_hash: bytes, vector: npt.ArrayLike) -> Record:
        """Make a record with its own copy of ``vector``, a unit vector (dim,) of real numbers; ValueError otherwise."""
        own = as_floats(vector, f"the vector of chart {short(chart_id)}").copy()
        own.setflags(write=False)
        return cls(chart_id, revision, content_hash, own, hash_vector(own))

    @classmethod
    def of_columns(cls, chart_ids: Ints, revisions: Ints, content_hashes: Bytes, vectors: Floats) -> list[Record]:
        """Make a record of each row of these arrays, (n,), (n,), (n, 16), (n, dim), checked all at once; ValueError.

        The vectors are kept, not copied, and become read-only. Numbers must be 0 or more.
        """
        check_unit(vectors, "the vectors")
        vectors.setflags(write=False)
        records = []
        for row in range(len(vectors)):
            record = cls.__new__(cls)  # checked above: one by one that takes ten times as long
            vector = vectors[row]
            for name, value in (
                ("chart_id", int(chart_ids[row])),
                ("revision", int(revisions[row])),
                ("content_hash", content_hashes[row].tobytes()),
                ("vector", vector),
                ("vector_hash", hash_vector(vector)),
            ):
                object.__setattr__(record, name, value)
            records.append(record)
        return records

    def __repr__(self) -> str:
        return (
            f"Record(chart_id={self.chart_id}, revision={self.revision}, content={self.content_hash.hex()[:8]}, "
            f"vector={self.vector_hash.hex()[:8]}, dim={len(self.vector)})"
        )


class Matches(NamedTuple):
    """The answer to a search: descending score, ties by ascending chart_id."""

    chart_ids: Ints
    """int64 (k,)"""
    scores: Floats
    """float32 (k,): cosine similarity, the exact dot product rounded once"""


class News(NamedTuple):
    """What came into a store since a moment, and is still there."""

    chart_ids: Ints
    """int64 (n,)"""
    revisions: Ints
    """int64 (n,)"""
    next_serial: int
    """What to ask with for what comes later."""
    held: int
    """Charts in all."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Manifest:
    """What a store holds, without the vectors; as compact as can be sent and compared.

    chart_ids: int64 (n,), ascending. revisions: int64 (n,). content_hashes, vector_hashes: uint8 (n, 16).
    digest: 32 hex digits, equal for equal content whatever the history; taken as given. ValueError for a wrong shape,
    dtype or order.
    """

    chart_ids: Ints
    revisions: Ints
    content_hashes: Bytes
    vector_hashes: Bytes
    digest: str

    def __post_init__(self) -> None:
        n = len(self.chart_ids)
        for name, dtype, shape in (
            ("chart_ids", np.int64, (n,)),
            ("revisions", np.int64, (n,)),
            ("content_hashes", np.uint8, (n, HASH_BYTES)),
            ("vector_hashes", np.uint8, (n, HASH_BYTES)),
        ):
            array = getattr(self, name)
            if array.dtype != dtype or array.shape != shape:
                raise ValueError(f"{name} must be {np.dtype(dtype)} of shape {shape}, got {_shown(array)}")
        if (np.diff(self.chart_ids) <= 0).any():
            raise ValueError("chart_ids must be ascending, each once")

    def __len__(self) -> int:
        return len(self.chart_ids)

    def __repr__(self) -> str:
        return f"Manifest({len(self)} charts, digest={self.digest})"

    def frame(self) -> pl.DataFrame:
        """Return one row per chart, by chart_id: chart_id, revision, content_hash and vector_hash (32 hex digits)."""
        import polars as pl

        return pl.DataFrame(
            {
                "chart_id": self.chart_ids,
                "revision": self.revisions,
                "content_hash": pl.Series(_rows_of_bytes(self.content_hashes), dtype=pl.Binary),
                "vector_hash": pl.Series(_rows_of_bytes(self.vector_hashes), dtype=pl.Binary),
            },
            schema_overrides={"chart_id": pl.Int64, "revision": pl.Int64},
        ).with_columns(pl.col("content_hash", "vector_hash").bin.encode("hex"))

    def difference(self, other: Manifest) -> pl.DataFrame:
        """List the charts that differ, by chart_id; empty if both hold the same.

        Columns: chart_id; difference, the first that applies of "missing here", "missing there", "revision", "content",
        "vector"; revision_here and revision_there (null where missing). "There" is ``other``.
        """
        import polars as pl

        both = self.frame().join(other.frame(), on="chart_id", how="full", coalesce=True, suffix="_there")
        differs = (
            pl.when(pl.col("revision").is_null())
            .then(pl.lit("missing here"))
            .when(pl.col("revision_there").is_null())
            .then(pl.lit("missing there"))
            .when(pl.col("revision") != pl.col("revision_there"))
            .then(pl.lit("revision"))
            .when(pl.col("content_hash") != pl.col("content_hash_there"))
            .then(pl.lit("content"))
            .when(pl.col("vector_hash") != pl.col("vector_hash_there"))
            .then(pl.lit("vector"))
        )
        return (
            both.select(
                "chart_id",
                differs.alias("difference"),
                pl.col("revision").alias("revision_here"),
                "revision_there",
            )
            .filter(pl.col("difference").is_not_null())
            .sort("chart_id")
        )


def hash_vector(vector: Floats) -> bytes:
    """Return the 16-byte blake2b hash of the vector's little-endian float32 bytes."""
    return blake2b(vector.astype("<f4", copy=False).tobytes(), digest_size=HASH_BYTES).digest()


def as_floats(vector: npt.ArrayLike, what: str) -> Floats:
    """Return ``vector`` as a C-contiguous float32 array; ValueError if it is not made of real numbers."""
    try:
        array = np.asarray(vector)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} must be an array of numbers, got {_shown(vector)}: {error}") from error
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{what} must be of real numbers that convert to float32, got dtype {array.dtype}")
    with np.errstate(over="ignore"):  # what overflows becomes infinite, and is refused as such
        return np.ascontiguousarray(array, dtype=np.float32)


def as_integer(name: str, value: object, smallest: int = 0) -> int:
    """Return ``value`` as an int; ValueError unless it is an integer (no bool) from ``smallest`` to 2**63 - 1."""
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and smallest <= value <= LARGEST:
        return int(value)
    raise ValueError(f"{name} must be an integer from {smallest} to 2**63 - 1, got {_shown(value)}")


def as_chart_ids(chart_ids: Iterable[int]) -> npt.NDArray[np.integer]:
    """Return ``chart_ids`` as an array (n,); ValueError unless all are integers. They need not exist."""
    array = chart_ids if isinstance(chart_ids, np.ndarray) else np.array(list(chart_ids))
    if array.size == 0:
        return np.empty(0, dtype=np.int64)
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise ValueError(f"chart_ids must be integers, got {_shown(chart_ids)}")
    return array


def check_unit(vectors: Floats, what: str) -> None:
    """Raise ValueError unless every row of ``vectors`` is finite and of unit length within 1e-3."""
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.sqrt(np.vecdot(vectors, vectors))
    # Written so that NaN, which compares as false with everything, fails it.
    if not (np.abs(lengths - 1) <= UNIT_TOLERANCE).all():
        if not np.isfinite(vectors).all():
            raise ValueError(f"{what} must be finite, but it holds NaN or infinity")
        worst = np.ravel(lengths)[np.argmax(np.abs(np.ravel(lengths) - 1))]
        raise ValueError(f"{what} must be of unit length within {UNIT_TOLERANCE}, got length {worst:.6g}; normalise it")


def _rows_of_bytes(hashes: Bytes) -> list[bytes]:
    return [row.tobytes() for row in hashes]


def _shown(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    shown = short(value)
    return shown if shown.startswith("<") else f"{type(value).__name__} {shown}"
