"""The wire: what is encoded comes back, and what is not ours stops at the door."""

from __future__ import annotations

import contextlib
import tracemalloc
from functools import partial
from hashlib import blake2b
from zlib import crc32

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from copilotlab.charts import Identity
from copilotlab.protocol import events
from copilotlab.store import Record, VectorStore

MODEL = "hash-4"


def record(chart_id=7, revision=3, vector=(0.0, 0.6, 0.8, 0.0)):
    return Record.of(chart_id, revision, b"c" * 16, np.array(vector, dtype=np.float32))


def envelope(event):
    return events.Envelope("a", MODEL, 1, 1, event)


def framed(body):
    """``body`` as the wire has it: well versioned, and unharmed."""
    rest = bytes(events.MARK_BYTES) + blake2b(body, digest_size=events.MARK_BYTES).digest() + body
    return bytes([events.WIRE_VERSION]) + crc32(rest).to_bytes(4, "little") + rest


def updated(**changes):
    return events.ChartUpdated(msgspec.structs.replace(events.pack(record()), **changes))


BULK = "0" * 32
SETTING = events.Setting("publishing", "n1", False, 3, 1_764_000_000.0, "Ada", "n2")


@pytest.mark.parametrize(
    "event",
    [
        updated(),
        events.ChartDeleted(7, 4),
        events.BatchStarted("b1", 5),
        events.BatchChunk("b1", 5, [events.pack(record(1)), events.pack(record(2))]),
        events.BatchChunkStored("b1", 5, BULK),
        events.ChartsUpdated(BULK),
        events.BatchFinished("b1", 5, 2, 9, True, events.pack_ids([2, 1])),
        events.BatchFinished("b1", 5, 2, 9, False, None),
        events.Heartbeat("ab" * 16, 3, 9, "rebuild", True, 9, "cd" * 16),
        events.Farewell(),
        events.ManifestWanted(BULK, -1),
        events.RecordsWanted(BULK, events.pack_ids([1, 2])),
        events.BulkReady(BULK),
        events.SettingsHeld(BULK, True, []),
        events.SettingsHeld(BULK, False, [SETTING, msgspec.structs.replace(SETTING, node="", value=0.5)]),
    ],
)
def test_an_event_comes_back_as_it_was(event):
    assert events.decode(events.encode(envelope(event)), fingerprint=MODEL) == envelope(event)


def test_a_vector_travels_bit_for_bit():
    sent = record()
    came = events.unpack(events.pack(sent), dim=4)

    assert came.vector.tobytes() == sent.vector.tobytes()
    assert came.vector_hash == sent.vector_hash
    assert (came.chart_id, came.revision, came.content_hash) == (7, 3, b"c" * 16)


def test_a_record_of_384_floats_takes_less_than_1700_bytes():
    vector = np.full(384, 384**-0.5, dtype=np.float32)

    assert len(events.encode(envelope(events.ChartUpdated(events.pack(record(vector=vector)))))) < 1_700


def halves(chart_id, rows=1):
    vectors = np.random.default_rng(chart_id).normal(size=(rows, 384))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return [
        record(chart_id + row, vector=vector)
        for row, vector in enumerate(vectors.astype(np.float16).astype(np.float32))
    ]


def test_a_vector_of_half_precision_travels_bit_for_bit_in_half_the_bytes():
    (sent,) = halves(7)
    packed = events.pack(sent)
    came = events.unpack(packed, dim=384)

    assert len(packed.vector) == 2 * 384
    assert came.vector.dtype == np.float32
    assert came.vector.tobytes() == sent.vector.tobytes()


def test_a_page_of_half_precision_takes_half_the_bytes_unless_one_vector_is_not():
    sent = halves(7, rows=3)
    whole = record(20, vector=np.full(384, 384**-0.5))
    for records, size in ((sent, 2), ([*sent, whole], 4)):
        page = events.page_of(MODEL, records)
        assert len(page.vectors) == size * 384 * len(records)
        came = events.decode_records(events.encode(page), fingerprint=MODEL, dim=384)
        assert [each.vector_hash for each in came] == [each.vector_hash for each in records]


@pytest.mark.parametrize("tiny", [2.0**-24, 2.0**-25, 1e-30, np.float32(2.0**-14) + np.float32(2.0**-26)])
def test_what_no_half_can_hold_is_sent_as_it_is(tiny):
    sent = record(vector=(0.0, 0.0, 1.0, tiny))

    assert len(events.pack(sent).vector) == (8 if tiny == 2.0**-24 else 16)
    assert events.unpack(events.pack(sent), dim=4).vector.tobytes() == sent.vector.tobytes()


def rejected(payload):
    with pytest.raises(events.EventRejected) as error:
        events.decode(payload, fingerprint=MODEL)
    return error.value.kind


@pytest.mark.parametrize(
    "event",
    [
        ["ChartUpdated"],
        ["Unheard", 7],
        ["ChartDeleted", -1, 4],
        ["ChartDeleted", 2**63, 4],
        ["ChartDeleted", "7", 4],
        ["ChartDeleted", 7, 4, "more"],
        ["BatchStarted", "", 5],
        ["Heartbeat", "not a digest", 3, 9, "b", True, 9, "cd" * 16],
        ["Heartbeat", "ab" * 16, 3, 9, "b", "yes", 9, "cd" * 16],
        ["BatchChunkStored", "b1", 5, "../../etc/passwd"],
        ["BulkReady", "0" * 31 + "*"],
        ["ManifestWanted", BULK, -2],
        ["RecordsWanted", BULK, b"0" * 8 * (events.MAX_RECORDS + 1)],
        ["SettingsHeld", "no digest", True, []],
        ["SettingsHeld", BULK, True, [["publishing", "", "no", 1, 0.0, "Ada", "n2"]]],
        ["SettingsHeld", BULK, True, [["Publishing; rm", "", True, 1, 0.0, "Ada", "n2"]]],
        ["SettingsHeld", BULK, True, [["publishing", "", True, 0, 0.0, "Ada", "n2"]]],
        ["SettingsHeld", BULK, True, [["publishing", "", True, 2**60, 0.0, "Ada", "n2"]]],
        ["SettingsHeld", BULK, True, [["publishing", "", True, 1, 1e18, "Ada", "n2"]]],
        ["SettingsHeld", BULK, True, [["publishing", "", True, 1, 0.0, "A" * 201, "n2"]]],
        ["SettingsHeld", BULK, True, [["publishing", "", 10**15, 1, 0.0, "Ada", "n2"]]],
        ["SettingsHeld", BULK, True, [["publishing", "", True, 1, 0.0, "Ada", "n2"]] * (events.MAX_SETTINGS + 1)],
    ],
)
def test_what_is_not_an_event_is_malformed(event):
    assert rejected(framed(msgspec.msgpack.encode(["a", MODEL, 1, 1, event]))) == "malformed"
    assert rejected(framed(msgspec.msgpack.encode(event))) == "malformed"


def test_an_envelope_without_a_name_is_malformed():
    assert rejected(framed(msgspec.msgpack.encode(["", MODEL, 1, 1, ["ChartDeleted", 7, 4]]))) == "malformed"
    assert rejected(framed(msgspec.msgpack.encode(["a", MODEL, -1, 1, ["ChartDeleted", 7, 4]]))) == "malformed"
    assert rejected(framed(b"not messagepack")) == "malformed"
    assert rejected(framed(b"")) == "malformed"
    assert rejected(framed(b"\x91" * 5_000)) == "malformed"


def test_another_version_is_named():
    assert rejected(b"") == "version"
    assert rejected(b'{"chartId": 7, "vector": [0.1]}') == "version"
    assert rejected(bytes([events.WIRE_VERSION + 1]) + events.encode(envelope(updated()))[1:]) == "version"


def test_another_models_vectors_are_refused():
    with pytest.raises(events.EventRejected, match=r"'other-4'.*'hash-4'") as error:
        events.decode(
            events.encode(events.Envelope("a", "other-4", 1, 1, events.ChartDeleted(7, 4))), fingerprint=MODEL
        )
    assert error.value.kind == "foreign_model"


@given(st.data())
def test_what_was_damaged_on_its_way_is_refused(data):
    frame = bytearray(events.encode(envelope(updated())))
    place = data.draw(st.integers(1, len(frame) - 1))
    frame[place] ^= data.draw(st.integers(1, 255))

    assert rejected(bytes(frame)) == "damaged"
    assert rejected(bytes(frame[:place])) == "damaged"


def test_a_length_that_is_a_lie_takes_no_memory():
    """Each says that four thousand million things follow, where a list, a map, a text or bytes may stand."""
    pack = msgspec.msgpack.encode
    head = b"\x95" + pack("a") + pack(MODEL) + pack(1) + pack(1)
    starts = (
        b"",
        b"\x95",
        head,
        head + b"\x92" + pack("ChartUpdated"),
        head + b"\x94" + pack("BatchChunk") + pack("b") + pack(1),
        b"\x92" + pack(MODEL),
        b"\x95" + pack(MODEL),
    )
    tracemalloc.start()
    for start in starts:
        for kind in (b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9"):
            for decoder in decoders():
                with contextlib.suppress(events.EventRejected):
                    decoder(framed(start + kind + b"\xff\xff\xff\xff"))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 1_000_000


def decoders():
    return (
        lambda payload: events.decode(payload, fingerprint=MODEL),
        lambda payload: events.decode_manifest(payload, fingerprint=MODEL),
        lambda payload: events.decode_records(payload, fingerprint=MODEL, dim=4),
    )


def test_an_oversized_event_is_refused_before_it_is_parsed():
    assert rejected(bytes([events.WIRE_VERSION]) + b"\x00" * events.MAX_EVENT_BYTES) == "oversized"


@pytest.mark.parametrize(
    "vector",
    [
        np.zeros(3, dtype="<f4"),  # another dimension
        np.array([np.nan, 0, 0, 1], dtype="<f4"),
        np.array([np.inf, 0, 0, 0], dtype="<f4"),
        np.array([2, 0, 0, 0], dtype="<f4"),  # not of unit length
        np.zeros(4, dtype="<f4"),
    ],
)
def test_a_vector_that_is_no_unit_vector_is_refused(vector):
    with pytest.raises(events.EventRejected) as error:
        events.unpack(msgspec.structs.replace(events.pack(record()), vector=vector.tobytes()), dim=4)
    assert error.value.kind == "bad_vector"


@given(st.lists(st.integers(0, 2**63 - 1), unique=True))
def test_chart_ids_come_back_in_order(chart_ids):
    assert events.unpack_ids(events.pack_ids(chart_ids)).tolist() == sorted(chart_ids)


@pytest.mark.parametrize("packed", [b"123", np.array([2, 1], "<i8").tobytes(), np.array([-1, 1], "<i8").tobytes()])
def test_a_list_of_ids_that_is_none_is_refused(packed):
    with pytest.raises(events.EventRejected):
        events.unpack_ids(packed)


OURS, ANOTHER = Identity("1" * 32, b"key"), Identity("2" * 32, b"key")
FORGED = Identity("1" * 32, b"guessed")


@pytest.mark.parametrize(("speaker", "kind"), [(ANOTHER, "foreign_catalogue"), (FORGED, "forged")])
def test_who_speaks_of_another_catalogue_or_does_not_know_the_key_is_named_and_not_heard(speaker, kind):
    page = events.page_of(MODEL, [record()])
    manifest = events.manifest_page(MODEL, store_of(record()).manifest(), after=-1)
    for decode, message in (
        (events.decode, envelope(updated())),
        (partial(events.decode_records, dim=4), page),
        (events.decode_manifest, manifest),
    ):
        decode(events.encode(message, OURS), fingerprint=MODEL, identity=OURS)
        with pytest.raises(events.EventRejected) as error:
            decode(events.encode(message, speaker), fingerprint=MODEL, identity=OURS)
        assert error.value.kind == kind
    with pytest.raises(events.EventRejected, match="a node that calls itself 'a'"):
        events.decode(events.encode(envelope(updated()), speaker), fingerprint=MODEL, identity=OURS)


@given(st.binary(max_size=300))
def test_no_bytes_break_the_decoder(noise):
    for payload in (noise, bytes([events.WIRE_VERSION]) + noise, framed(noise)):
        with contextlib.suppress(events.EventRejected):
            events.decode(payload, fingerprint=MODEL)


def store_of(*records):
    store = VectorStore(4, background=False)
    store.put_many(records)
    return store


def page_of(store, after=-1, rows=65_536):
    return events.encode(events.manifest_page(MODEL, store.manifest(), after=after, rows=rows))


def test_a_manifest_travels_in_pages():
    store = store_of(*(record(i, revision=i + 1) for i in range(1, 6)))
    store.remove(5, 9)

    first, more = events.decode_manifest(page_of(store, rows=3), fingerprint=MODEL)
    assert (first.chart_ids.tolist(), first.revisions.tolist(), more) == ([1, 2, 3], [2, 3, 4], True)
    last, more = events.decode_manifest(page_of(store, after=3, rows=3), fingerprint=MODEL)
    assert (last.chart_ids.tolist(), more) == ([4], False)
    assert store_of().lacks(first).tolist() == [1, 2, 3]
    assert store.lacks(first).tolist() == []


def test_a_manifest_that_is_none_is_refused():
    page = events.manifest_page(MODEL, store_of(record(1), record(2)).manifest(), after=-1)
    for wrong in (
        {"chart_ids": page.chart_ids[:-1]},
        {"chart_ids": page.chart_ids[8:] + page.chart_ids[:8]},
        {"revisions": page.revisions[8:]},
        {"content_hashes": page.content_hashes[1:]},
        {"vector_hashes": page.vector_hashes[16:]},
    ):
        with pytest.raises(events.EventRejected) as error:
            events.decode_manifest(events.encode(msgspec.structs.replace(page, **wrong)), fingerprint=MODEL)
        assert error.value.kind == "malformed"


def test_a_page_of_records_comes_back_bit_for_bit():
    sent = [record(i, revision=i + 5) for i in (3, 1, 2)]
    payload = events.encode(events.page_of(MODEL, sent))
    came = events.decode_records(payload, fingerprint=MODEL, dim=4)

    def plain(r):
        return r.chart_id, r.revision, r.content_hash, r.vector.tobytes(), r.vector_hash, r.vector.flags.writeable

    assert list(map(plain, came)) == list(map(plain, sent))
    store = store_of(*sent)
    assert list(map(plain, came)) != []
    page = events.record_page(MODEL, *store.columns([2, 9, 3]))
    held = events.decode_records(events.encode(page), fingerprint=MODEL, dim=4)
    assert sorted(map(plain, held)) == sorted(map(plain, (sent[0], sent[2])))
    assert events.decode_records(events.encode(events.page_of(MODEL, [])), fingerprint=MODEL, dim=4) == []


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ({"chart_ids": b"1234567"}, "malformed"),
        ({"chart_ids": np.array([-1, 2], "<i8").tobytes()}, "malformed"),
        ({"revisions": b""}, "malformed"),
        ({"content_hashes": b"c" * 16}, "malformed"),
        ({"vectors": b"\x00" * 16}, "bad_vector"),
        ({"vectors": np.array([0, 0.6, 0.8, 0, 0, 0.6, 0.9, 0], "<f4").tobytes()}, "bad_vector"),
        ({"vectors": np.array([0, 0.6, 0.8, 0, np.nan, 0.6, 0.8, 0], "<f4").tobytes()}, "bad_vector"),
        ({"chart_ids": bytes(8 * (events.MAX_RECORDS + 1))}, "malformed"),
    ],
)
def test_a_page_of_records_that_is_none_is_refused(wrong, kind):
    page = msgspec.structs.replace(events.page_of(MODEL, [record(1), record(2)]), **wrong)
    with pytest.raises(events.EventRejected) as error:
        events.decode_records(events.encode(page), fingerprint=MODEL, dim=4)
    assert error.value.kind == kind


REAL = [
    events.encode(envelope(event))
    for event in (
        updated(),
        events.BatchChunk("b1", 5, [events.pack(record(i)) for i in range(3)]),
        events.BatchFinished("b1", 5, 2, 9, True, events.pack_ids([2, 1])),
        events.Heartbeat("ab" * 16, 3, 9, "rebuild", True, 9, "cd" * 16),
        events.RecordsWanted(BULK, events.pack_ids([1, 2])),
    )
] + [
    events.encode(events.page_of(MODEL, [record(i) for i in range(3)])),
    page_of(store_of(record(1), record(2))),
]


@given(st.data())
def test_no_mutation_of_a_real_frame_breaks_a_decoder(data):
    frame = bytearray(data.draw(st.sampled_from(REAL))[events.HEADER_BYTES :])
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(0, len(frame) - 1))
        match data.draw(st.sampled_from(["change", "drop", "double"])):
            case "change":
                frame[place] = data.draw(st.integers(0, 255))
            case "drop" if len(frame) > 1:
                del frame[place : place + data.draw(st.integers(1, 20))]
            case "double":
                frame[place:place] = frame[place : place + data.draw(st.integers(1, 20))]
        if not frame:
            break
    payload = framed(bytes(frame))  # as if somebody had meant it: else the checksum stops it at the door
    with contextlib.suppress(events.EventRejected):
        events.decode(payload, fingerprint=MODEL)
    with contextlib.suppress(events.EventRejected):
        events.decode_manifest(payload, fingerprint=MODEL)
    with contextlib.suppress(events.EventRejected):
        for came in events.decode_records(payload, fingerprint=MODEL, dim=4):
            assert (
                Record.of(came.chart_id, came.revision, came.content_hash, came.vector).vector_hash == came.vector_hash
            )
