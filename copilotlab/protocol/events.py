"""The wire: what nodes say to each other, how it is encoded, and what is refused.

What travels is a version, a checksum, the catalogue, a signature and a MessagePack array (msgspec), never pickle: an
`Envelope` on a channel, a `RecordPage` or a `ManifestPage` in a key that the reader fetches at its own pace. The
signature (keyed BLAKE2b) is made with a key that is in the repository, so a client that may publish, but does not read
the same repository, is not believed. A vector travels as raw little-endian float32, or as float16 where nothing is lost
by that (`Policy(vectors="float16")`); its length tells which. What arrives is not trusted: it is bounded, typed and
checked, and what fails raises `EventRejected`, so that a node can count it and go on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from hmac import compare_digest
from typing import Annotated, TypeVar
from zlib import crc32

import msgspec
import numpy as np
import numpy.typing as npt

from copilotlab.charts import Identity
from copilotlab.store import Manifest, Record
from copilotlab.store.records import HASH_BYTES, LARGEST

UPDATES = "chart-vector-updates"
BATCHES = "chart-vector-batches"
DELETIONS = "chart-deletions"
HEARTBEATS = "chart-vector-heartbeats"
REPORTS = "chart-vector-reports"  # only watchers listen there: see `Report`
INBOX = "chart-vector-inbox"  # one for each node: INBOX:node_id

WIRE_VERSION = 3
MARK_BYTES = 16  # of the catalogue, and of the signature
HEADER_BYTES = 5 + 2 * MARK_BYTES  # version, checksum, catalogue, signature
MAX_EVENT_BYTES = 16 * 1024 * 1024
MAX_BULK_BYTES = 64 * 1024 * 1024
MAX_RECORDS = 4096
MANIFEST_ROWS = 65_536  # in one page
MAX_SETTINGS = 256  # that a node keeps and says
MAX_VERSION = 2**52  # of a setting
LARGEST_VALUE = 1e12  # of a setting
LATEST = 253_402_300_799.0  # seconds since 1970: the end of the year 9999, the last that Python can write
WATCHER = 0  # the session of a watcher, which is no node: no vectors, and no numbers that could have gaps
LOST_IN_HALF = 2**13 - 1  # the bits of a float32's mantissa that a normal float16 lacks

Number = Annotated[int, msgspec.Meta(ge=0, le=LARGEST)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
ShortName = Annotated[str, msgspec.Meta(max_length=64)]
ShortText = Annotated[str, msgspec.Meta(max_length=200)]
Hash = Annotated[bytes, msgspec.Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
BulkId = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
SettingName = Annotated[str, msgspec.Meta(pattern="^[a-z][a-z_]{0,39}$")]
Value = (
    bool
    | Annotated[int, msgspec.Meta(ge=-int(LARGEST_VALUE), le=int(LARGEST_VALUE))]
    | Annotated[float, msgspec.Meta(ge=-LARGEST_VALUE, le=LARGEST_VALUE)]
)

T = TypeVar("T")


class EventRejected(ValueError):
    """What a node does not accept; ``kind`` says why, in one word that metrics count by.

    kind: "oversized", "version", "damaged" (on its way: the checksum does not fit), "foreign_catalogue", "forged"
    (signed without the catalogue's key), "copy" (by a node that reads another copy of this one), "malformed",
    "foreign_model", "bad_vector", "epoch" (of a batch that is over) or "namesake" (of another node that has our name).
    session: the sender's, where an event of another model was understood; else 0.
    """

    def __init__(self, kind: str, reason: str, *, session: int = 0) -> None:
        super().__init__(reason)
        self.kind = kind
        self.session = session


class WireRecord(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A store's record as it travels."""

    chart_id: Number
    revision: Number
    content_hash: Hash
    vector: bytes


class Setting(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What somebody set one toggle to, on running nodes.

    name, value: of the toggle; node: the one that it is for, "" for all; version: larger than that of any setting that
    was known where it was made; at: when, in seconds since 1970; by: who; source: the node on which it was set.
    """

    name: SettingName
    node: Annotated[str, msgspec.Meta(max_length=200)]
    value: Value
    version: Annotated[int, msgspec.Meta(ge=1, le=MAX_VERSION)]
    at: Annotated[float, msgspec.Meta(ge=0, le=LATEST)]
    by: Name
    source: Name


class _Event(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=True):
    pass


class ChartUpdated(_Event, frozen=True):
    """One chart's new vector (`chart-vector-updates`)."""

    record: WireRecord


class ChartsUpdated(_Event, frozen=True):
    """Several charts' new vectors, as a `RecordPage` in a key, for every node to fetch (`chart-vector-updates`).

    Said after an outage, of what was embedded meanwhile. A node that does not know it misses it, and fetches later.
    """

    bulk: BulkId


class ChartDeleted(_Event, frozen=True):
    """One chart's end (`chart-deletions`); ``revision`` is its tombstone's."""

    chart_id: Number
    revision: Number


class BatchStarted(_Event, frozen=True):
    """A node took the lease and begins a batch (`chart-vector-batches`).

    epoch: the lease's fencing token; 0 in all events of a batch whose policy has none.
    """

    batch: Name
    epoch: Number


class BatchChunk(_Event, frozen=True):
    """Some records of a batch, pushed to every node."""

    batch: Name
    epoch: Number
    records: Annotated[list[WireRecord], msgspec.Meta(max_length=MAX_RECORDS)]


class BatchChunkStored(_Event, frozen=True):
    """Some records of a batch, as a `RecordPage` in a key, for every node to fetch at its own pace."""

    batch: Name
    epoch: Number
    bulk: BulkId


class BatchFinished(_Event, frozen=True):
    """A batch's end, with its manifest.

    total: records sent in its chunks; revision: the repository revision that it read; whole: whether that was the whole
    catalogue, and not only what had changed; chart_ids: of a whole catalogue, where nodes do not ask the repository
    themselves, every live chart at that revision, int64 little-endian, ascending; else None.
    """

    batch: Name
    epoch: Number
    total: Number
    revision: Number
    whole: bool
    chart_ids: bytes | None


class Heartbeat(_Event, frozen=True):
    """A node lives, and holds this much (`chart-vector-heartbeats`).

    digest, charts: of its store; complete_to: the repository revision up to which it holds all; batch: the last one it
    heard of, "" before the first; newcomer: it has just connected, and asks to be answered with a heartbeat.
    revision, catalogue: the repository's revision and digest at the node's last look; 0 before the first.
    """

    digest: Digest
    charts: Number
    complete_to: Number
    batch: Annotated[str, msgspec.Meta(max_length=200)]
    newcomer: bool
    revision: Number
    catalogue: Digest


class Farewell(_Event, frozen=True):
    """A node leaves in order (`chart-vector-heartbeats`): nobody need miss it."""


class AlertTold(msgspec.Struct, array_like=True, frozen=True):
    """An alert of a node, in a report. seconds: for how long it has lasted; evidence: in a line, cut to what fits."""

    name: ShortName
    severity: ShortName
    seconds: Annotated[float, msgspec.Meta(ge=0)]
    evidence: ShortText = ""


class BatchTold(msgspec.Struct, array_like=True, frozen=True):
    """The batch that a node drives, in a report; see `copilotlab.monitoring.vitals.BatchVitals`."""

    kind: ShortName
    done: Number
    total: Number
    seconds: Annotated[float, msgspec.Meta(ge=0)]
    expected: Annotated[float, msgspec.Meta(ge=0)] | None
    leased: bool


class Report(_Event, frozen=True, forbid_unknown_fields=False):
    """How a node is, for watchers (`chart-vector-reports`); said with each heartbeat, and once at its end.

    A node needs nothing of it and does not listen to it, so nodes that do not know of reports hear nothing new. Fields
    are added at its end, with a default, and one that is not known is passed over: old and new versions mix.

    state: "running", "not started", "failed", "stopped", or "building" where it is of a model that takes over when it
    is complete; version: of copilotlab; address: where it can be reached, or its process; uptime: seconds since it was
    made; interval: seconds between two heartbeats; lag: charts to come; skipped: charts left out; epoch: the last one
    known; outages: how many it has seen.
    """

    state: ShortName
    version: ShortName
    address: ShortText
    uptime: Annotated[float, msgspec.Meta(ge=0)]
    interval: Annotated[float, msgspec.Meta(gt=0, le=3600)]
    lag: Number
    skipped: Number = 0
    epoch: Number = 0
    outages: Number = 0
    batch: BatchTold | None = None
    alerts: Annotated[tuple[AlertTold, ...], msgspec.Meta(max_length=64)] = ()


class ManifestWanted(_Event, frozen=True):
    """A request in a peer's inbox: put the page of your manifest after chart ``after`` (-1: the first page) into the
    key ``bulk``."""

    bulk: BulkId
    after: Annotated[int, msgspec.Meta(ge=-1, le=LARGEST)]


class RecordsWanted(_Event, frozen=True):
    """A request in a peer's inbox: put your records of these charts into the key ``bulk``. chart_ids: packed by
    `pack_ids`."""

    bulk: BulkId
    chart_ids: Annotated[bytes, msgspec.Meta(max_length=8 * MAX_RECORDS)]


class BulkReady(_Event, frozen=True):
    """An answer in the inbox of the node that asked: what it asked for is in the key ``bulk``."""

    bulk: BulkId


class SettingsHeld(_Event, frozen=True):
    """What a node knows of the toggles, in a peer's inbox.

    digest: of all settings that the sender holds; answer: whether it wants to be told what the peer holds; settings:
    all of them, or none in an answer to a peer that holds the same.
    """

    digest: Digest
    answer: bool
    settings: Annotated[list[Setting], msgspec.Meta(max_length=MAX_SETTINGS)]


class Order(_Event, frozen=True):
    """What a watcher asks one node to do, in its inbox; see `copilotlab.orders`.

    order: a random id, by which it is done once, however often it arrives; session: the node's, so that it is for no
    later run of it; action: one of `copilotlab.orders.ACTIONS`; argument: as "switch_model" has the model's name.
    """

    order: BulkId
    session: Number
    action: ShortName
    argument: Annotated[str, msgspec.Meta(max_length=300)] = ""


class OrderAnswer(_Event, frozen=True):
    """What became of an order. outcome: "refused", "begun", "done" or "failed"; said: in words."""

    order: BulkId
    outcome: ShortName
    said: Annotated[str, msgspec.Meta(max_length=500)] = ""


Event = (
    ChartUpdated
    | ChartsUpdated
    | ChartDeleted
    | BatchStarted
    | BatchChunk
    | BatchChunkStored
    | BatchFinished
    | Heartbeat
    | Farewell
    | Report
    | ManifestWanted
    | RecordsWanted
    | BulkReady
    | SettingsHeld
    | Order
    | OrderAnswer
)

CHANNEL_OF: dict[type, str] = {
    ChartUpdated: UPDATES,
    ChartsUpdated: UPDATES,
    ChartDeleted: DELETIONS,
    BatchStarted: BATCHES,
    BatchChunk: BATCHES,
    BatchChunkStored: BATCHES,
    BatchFinished: BATCHES,
    Heartbeat: HEARTBEATS,
    Farewell: HEARTBEATS,
    Report: REPORTS,
    ManifestWanted: INBOX,
    RecordsWanted: INBOX,
    BulkReady: INBOX,
    SettingsHeld: INBOX,
    Order: INBOX,
    OrderAnswer: INBOX,
}


class Envelope(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """An event and its sender.

    source: the node; fingerprint: of the model whose vectors it holds; session: a random number, new whenever the node
    starts, or `WATCHER` for a watcher; number: 1, 2, 3... for what it says to all in that session, 0 for what it
    says to one.
    """

    source: Name
    fingerprint: Name
    session: Number
    number: Number
    event: Event


class RecordPage(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Records to be fetched, at most MAX_RECORDS, column by column: int64, int64, 16 bytes, and `dim` floats for each
    record, all float32 or all float16.

    more: whether charts that were asked for did not fit; they come after the last of these.
    """

    fingerprint: Name
    chart_ids: Annotated[bytes, msgspec.Meta(max_length=8 * MAX_RECORDS)]
    revisions: bytes
    content_hashes: bytes
    vectors: bytes
    more: bool = False


class ManifestPage(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Rows of a store's manifest; numbers are int64, little-endian.

    more: whether there are rows after the last of these.
    """

    fingerprint: Name
    chart_ids: bytes
    revisions: bytes
    content_hashes: bytes
    vector_hashes: bytes
    more: bool


_VERSION = bytes((WIRE_VERSION,))
_encoder = msgspec.msgpack.Encoder()
_envelopes = msgspec.msgpack.Decoder(Envelope)
_record_pages = msgspec.msgpack.Decoder(RecordPage)
_manifest_pages = msgspec.msgpack.Decoder(ManifestPage)


NO_CATALOGUE = Identity("0" * 32, b"")
"""The identity of a coordinator that speaks for no repository."""


def encode(message: Envelope | RecordPage | ManifestPage, identity: Identity = NO_CATALOGUE) -> bytes:
    """Encode a message as bytes: version, checksum (CRC-32, little-endian), catalogue, signature, MessagePack."""
    body = _encoder.encode(message)
    rest = b"".join((bytes.fromhex(identity.incarnation), _signature(body, identity), body))
    return b"".join((_VERSION, crc32(rest).to_bytes(4, "little"), rest))


def decode(payload: bytes, *, fingerprint: str | None, identity: Identity = NO_CATALOGUE) -> Envelope:
    """Decode the envelope in ``payload``, for a node of that catalogue whose model is ``fingerprint``; None: any model.

    Vectors are checked where they are unpacked (`unpack`). Raises EventRejected.
    """
    envelope = _decoded(_envelopes, payload, MAX_EVENT_BYTES, identity)
    return envelope if fingerprint is None else _ours(envelope, fingerprint)


def claimed(payload: bytes) -> tuple[str, str]:
    """Return the catalogue (8 hex digits) and the source that ``payload`` claims, unverified; "" where it does not."""
    if not HEADER_BYTES < len(payload) <= MAX_EVENT_BYTES or payload[:1] != _VERSION:
        return "", ""
    source = _source(memoryview(payload)[HEADER_BYTES:])
    return (payload[5 : 5 + MARK_BYTES].hex()[:8], source) if source else ("", "")


def decode_records(payload: bytes, *, fingerprint: str, dim: int, identity: Identity = NO_CATALOGUE) -> list[Record]:
    """Decode the records of the `RecordPage` in ``payload``; EventRejected, for the whole page, if one is wrong."""
    return decode_record_page(payload, fingerprint=fingerprint, dim=dim, identity=identity)[0]


def decode_record_page(
    payload: bytes, *, fingerprint: str, dim: int, identity: Identity = NO_CATALOGUE
) -> tuple[list[Record], bool]:
    """Decode the records of a page as `decode_records` does, and whether there are more."""
    page = _ours(_decoded(_record_pages, payload, MAX_BULK_BYTES, identity), fingerprint)
    chart_ids, revisions, hashes = _numbers(page.chart_ids), _numbers(page.revisions), _hashes(page.content_hashes)
    if not len(chart_ids) == len(revisions) == len(hashes):
        raise EventRejected("malformed", f"{len(chart_ids)} ids, {len(revisions)} revisions, {len(hashes)} hashes")
    vectors = _unpacked(page.vectors, dim * len(chart_ids), f"{len(chart_ids)} vectors").reshape(-1, dim)
    try:
        return Record.of_columns(chart_ids, revisions, hashes, vectors), page.more
    except ValueError as error:
        raise EventRejected("bad_vector", str(error)) from error


def record_page(
    fingerprint: str,
    chart_ids: npt.NDArray[np.int64],
    revisions: npt.NDArray[np.int64],
    content_hashes: npt.NDArray[np.uint8],
    vectors: npt.NDArray[np.float32],
    *,
    more: bool = False,
) -> RecordPage:
    """Make a page of these columns, one row for each record."""
    return RecordPage(
        fingerprint,
        chart_ids.astype("<i8").tobytes(),
        revisions.astype("<i8").tobytes(),
        content_hashes.tobytes(),
        _packed(vectors),
        more,
    )


def page_of(fingerprint: str, records: Sequence[Record]) -> RecordPage:
    """Make a page of these records."""
    hashes = b"".join(record.content_hash for record in records)
    return record_page(
        fingerprint,
        np.array([record.chart_id for record in records], dtype=np.int64),
        np.array([record.revision for record in records], dtype=np.int64),
        np.frombuffer(hashes, dtype=np.uint8),
        np.concatenate([record.vector for record in records]) if records else np.empty(0, dtype=np.float32),
    )


def decode_manifest(payload: bytes, *, fingerprint: str, identity: Identity = NO_CATALOGUE) -> tuple[Manifest, bool]:
    """Decode the rows of the `ManifestPage` in ``payload``, and whether there are more.

    The manifest's digest is empty, since this is only a page of it. Raises EventRejected.
    """
    page = _ours(_decoded(_manifest_pages, payload, MAX_BULK_BYTES, identity), fingerprint)
    chart_ids, revisions = unpack_ids(page.chart_ids), _numbers(page.revisions)
    try:
        manifest = Manifest(chart_ids, revisions, _hashes(page.content_hashes), _hashes(page.vector_hashes), "")
    except ValueError as error:
        raise EventRejected("malformed", f"not a manifest: {error}") from error
    if len(manifest) > MANIFEST_ROWS:
        raise EventRejected("oversized", f"{len(manifest):,} rows in a page, at most {MANIFEST_ROWS:,} are accepted")
    return manifest, page.more


def manifest_page(fingerprint: str, manifest: Manifest, *, after: int, rows: int = MANIFEST_ROWS) -> ManifestPage:
    """Make the page of ``manifest`` that begins after chart ``after``."""
    start = int(np.searchsorted(manifest.chart_ids, after, side="right"))
    chosen = slice(start, start + rows)
    return ManifestPage(
        fingerprint,
        manifest.chart_ids[chosen].astype("<i8").tobytes(),
        manifest.revisions[chosen].astype("<i8").tobytes(),
        manifest.content_hashes[chosen].tobytes(),
        manifest.vector_hashes[chosen].tobytes(),
        start + rows < len(manifest),
    )


def pack(record: Record) -> WireRecord:
    """Pack a store's record, ready to travel."""
    return WireRecord(record.chart_id, record.revision, record.content_hash, _packed(record.vector))


def unpack(record: WireRecord, *, dim: int) -> Record:
    """Unpack a store's record; EventRejected if its vector is not a unit vector of ``dim`` floats."""
    vector = _unpacked(record.vector, dim, f"the vector of chart {record.chart_id}")
    try:
        return Record.of(record.chart_id, record.revision, record.content_hash, vector)
    except ValueError as error:
        raise EventRejected("bad_vector", f"chart {record.chart_id}: {error}") from error


def _packed(vectors: npt.NDArray[np.float32]) -> bytes:
    """Pack floats as float16 if that loses nothing of any of them, else as float32."""
    packed = np.ascontiguousarray(vectors, dtype="<f4").tobytes()
    if int.from_bytes(packed[:4], "little") & LOST_IN_HALF:  # nearly always: the first of them tells
        return packed
    with np.errstate(over="ignore"):
        halves = vectors.astype("<f2")
    return halves.tobytes() if np.array_equal(halves, vectors) else packed


def _unpacked(packed: bytes, count: int, what: str) -> npt.NDArray[np.float32]:
    if len(packed) not in (4 * count, 2 * count):
        raise EventRejected(
            "bad_vector", f"{what} in {len(packed)} bytes, expected {4 * count}, or {2 * count} as float16"
        )
    return np.frombuffer(packed, dtype="<f4" if len(packed) == 4 * count else "<f2").astype(np.float32, copy=False)


def pack_ids(chart_ids: Iterable[int] | Sequence[int] | npt.NDArray[np.int64]) -> bytes:
    """Pack chart ids as little-endian int64, ascending."""
    return np.sort(np.fromiter(chart_ids, dtype="<i8")).tobytes()


def unpack_ids(packed: bytes) -> npt.NDArray[np.int64]:
    """Unpack what `pack_ids` packed, int64 (n,); EventRejected for anything else."""
    chart_ids = _numbers(packed)
    if len(chart_ids) and (np.diff(chart_ids) <= 0).any():
        raise EventRejected("malformed", "chart ids are not ascending")
    return chart_ids


def _numbers(packed: bytes) -> npt.NDArray[np.int64]:
    if len(packed) % 8:
        raise EventRejected("malformed", f"numbers in {len(packed)} bytes, expected a multiple of 8")
    numbers = np.frombuffer(packed, dtype="<i8").astype(np.int64)
    if len(numbers) and int(numbers.min()) < 0:
        raise EventRejected("malformed", "numbers below 0")
    return numbers


def _hashes(packed: bytes) -> npt.NDArray[np.uint8]:
    if len(packed) % HASH_BYTES:
        raise EventRejected("malformed", f"hashes in {len(packed)} bytes, expected a multiple of {HASH_BYTES}")
    return np.frombuffer(packed, dtype=np.uint8).reshape(-1, HASH_BYTES)


def _decoded(decoder: msgspec.msgpack.Decoder[T], payload: bytes, most: int, identity: Identity) -> T:
    if len(payload) > most:
        raise EventRejected("oversized", f"{len(payload):,} bytes, at most {most:,} are accepted")
    if payload[:1] != _VERSION:
        version = payload[0] if payload else None
        raise EventRejected("version", f"wire version {version}, this node speaks {WIRE_VERSION}")
    rest = memoryview(payload)[HEADER_BYTES - 2 * MARK_BYTES :]
    if len(rest) < 2 * MARK_BYTES or crc32(rest).to_bytes(4, "little") != payload[1:5]:
        raise EventRejected("damaged", f"{len(payload):,} bytes do not have the checksum that they came with")
    incarnation, signature, body = rest[:MARK_BYTES].hex(), rest[MARK_BYTES : 2 * MARK_BYTES], rest[2 * MARK_BYTES :]
    if incarnation != identity.incarnation:
        raise EventRejected(
            "foreign_catalogue",
            f"{_speaker(body)} speaks of catalogue {incarnation[:8]}, this node has {identity.incarnation[:8]}: give "
            "each catalogue a namespace of its own, since database numbers do not keep channels apart",
        )
    if not compare_digest(signature, _signature(body, identity)):
        raise EventRejected("forged", f"{_speaker(body)} does not know the key that is in the repository")
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EventRejected("malformed", f"not an event: {error}") from error


def _signature(body: bytes | memoryview, identity: Identity) -> bytes:
    return blake2b(body, digest_size=MARK_BYTES, key=identity.key).digest()


def _speaker(body: memoryview) -> str:
    """Name the sender that a message which is not believed claims to come from."""
    source = _source(body)
    return f"a node that calls itself {source!r}" if source else "somebody"


def _source(body: memoryview) -> str:
    """Return the source that an envelope claims, unverified; "" where it is none."""
    try:
        return _envelopes.decode(body).source
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


_OfModel = TypeVar("_OfModel", Envelope, RecordPage, ManifestPage)


def _ours(message: _OfModel, fingerprint: str) -> _OfModel:
    if message.fingerprint != fingerprint:
        session = message.session if isinstance(message, Envelope) else 0
        told = (
            f"vectors of {message.fingerprint!r}, this node holds {fingerprint!r}: give all nodes of a namespace one "
            "model, unless they are switching"
        )
        raise EventRejected("foreign_model", told, session=session)
    return message
