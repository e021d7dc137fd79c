"""The wire: what nodes say to each other, how it is encoded, and what is refused.

An event is one byte of version and a MessagePack array (msgspec), never pickle. A vector travels as raw little-endian
float32. What arrives is not trusted: `decode` bounds, types and checks everything and raises `EventRejected`, so that a
node can count it and go on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import msgspec
import numpy as np

from copilotlab.store import Record

UPDATES = "chart-vector-updates"
BATCHES = "chart-vector-batches"
DELETIONS = "chart-deletions"
CHANNELS = (UPDATES, BATCHES, DELETIONS)

WIRE_VERSION = 1
MAX_EVENT_BYTES = 16 * 1024 * 1024
MAX_RECORDS = 4096

ChartId = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Revision = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Hash = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]


class EventRejected(ValueError):
    """An event that a node does not accept; ``kind`` says why, in one word that metrics count by.

    kind: "oversized", "version", "malformed", "foreign_model" or "bad_vector".
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class WireRecord(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A store's record as it travels."""

    chart_id: ChartId
    revision: Revision
    content_hash: Hash
    vector: bytes


class _Event(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=True):
    source: Name
    fingerprint: Name


class ChartUpdated(_Event, frozen=True):
    """One chart's new vector (`chart-vector-updates`)."""

    record: WireRecord


class ChartDeleted(_Event, frozen=True):
    """One chart's end (`chart-deletions`); ``revision`` is its tombstone's."""

    chart_id: ChartId
    revision: Revision


class BatchStarted(_Event, frozen=True):
    """A node took the lease and will send every chart's vector (`chart-vector-batches`)."""

    batch: Name


class BatchChunk(_Event, frozen=True):
    """Some records of a batch."""

    batch: Name
    records: Annotated[list[WireRecord], msgspec.Meta(max_length=MAX_RECORDS)]


class BatchFinished(_Event, frozen=True):
    """A batch's end.

    total: records sent in its chunks; revision: the repository revision that it read;
    chart_ids: every live chart at that revision, int64 little-endian, ascending.
    """

    batch: Name
    total: Annotated[int, msgspec.Meta(ge=0)]
    revision: Revision
    chart_ids: bytes


Event = ChartUpdated | ChartDeleted | BatchStarted | BatchChunk | BatchFinished

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Event)


def encode(event: Event) -> bytes:
    """The event as bytes: its version, then MessagePack."""
    return bytes((WIRE_VERSION,)) + _encoder.encode(event)


def decode(payload: bytes, *, fingerprint: str) -> Event:
    """The event in ``payload``, for a node whose model is ``fingerprint``; raises EventRejected.

    Vectors are checked where they are unpacked (`unpack`).
    """
    if len(payload) > MAX_EVENT_BYTES:
        raise EventRejected("oversized", f"{len(payload):,} bytes, at most {MAX_EVENT_BYTES:,} are accepted")
    if not payload or payload[0] != WIRE_VERSION:
        version = payload[0] if payload else None
        raise EventRejected("version", f"wire version {version}, this node speaks {WIRE_VERSION}")
    try:
        event: Event = _decoder.decode(memoryview(payload)[1:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EventRejected("malformed", f"not an event: {error}") from error
    if event.fingerprint != fingerprint:
        raise EventRejected("foreign_model", f"vectors of {event.fingerprint!r}, this node holds {fingerprint!r}")
    return event


def pack(record: Record) -> WireRecord:
    """A store's record, ready to travel."""
    vector = np.ascontiguousarray(record.vector, dtype="<f4").tobytes()
    return WireRecord(record.chart_id, record.revision, record.content_hash, vector)


def unpack(record: WireRecord, *, dim: int) -> Record:
    """The store's record in a wire record; EventRejected if its vector is not a unit vector of ``dim`` floats."""
    if len(record.vector) != 4 * dim:
        raise EventRejected(
            "bad_vector",
            f"chart {record.chart_id}: a vector of {len(record.vector)} bytes, expected {4 * dim}",
        )
    vector = np.frombuffer(record.vector, dtype="<f4")
    try:
        return Record.of(record.chart_id, record.revision, record.content_hash, vector)
    except ValueError as error:
        raise EventRejected("bad_vector", f"chart {record.chart_id}: {error}") from error


def pack_ids(chart_ids: Iterable[int]) -> bytes:
    """Chart ids, ascending, as little-endian int64."""
    return np.sort(np.fromiter(chart_ids, dtype="<i8")).tobytes()


def unpack_ids(packed: bytes) -> list[int]:
    """What `pack_ids` packed; EventRejected if it is no such list."""
    if len(packed) % 8:
        raise EventRejected("malformed", f"chart ids in {len(packed)} bytes, expected a multiple of 8")
    chart_ids = np.frombuffer(packed, dtype="<i8")
    if len(chart_ids) and (chart_ids[0] < 0 or (np.diff(chart_ids) <= 0).any()):
        raise EventRejected("malformed", "chart ids are not ascending and 0 or more")
    return [int(chart_id) for chart_id in chart_ids]
