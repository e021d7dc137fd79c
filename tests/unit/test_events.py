"""The wire: what is encoded comes back, and what is not ours stops at the door."""

from __future__ import annotations

import contextlib

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from copilotlab import events
from copilotlab.store import Record

MODEL = "hash-4"


def record(chart_id=7, revision=3, vector=(0.0, 0.6, 0.8, 0.0)):
    return Record.of(chart_id, revision, b"c" * 16, np.array(vector, dtype=np.float32))


def updated(**changes):
    return events.ChartUpdated("a", MODEL, msgspec.structs.replace(events.pack(record()), **changes))


@pytest.mark.parametrize(
    "event",
    [
        updated(),
        events.ChartDeleted("a", MODEL, 7, 4),
        events.BatchStarted("a", MODEL, "b1"),
        events.BatchChunk("a", MODEL, "b1", [events.pack(record(1)), events.pack(record(2))]),
        events.BatchFinished("a", MODEL, "b1", 2, 9, events.pack_ids([2, 1])),
    ],
)
def test_an_event_comes_back_as_it_was(event):
    assert events.decode(events.encode(event), fingerprint=MODEL) == event


def test_a_vector_travels_bit_for_bit():
    sent = record()
    came = events.unpack(events.pack(sent), dim=4)

    assert came.vector.tobytes() == sent.vector.tobytes()
    assert came.vector_hash == sent.vector_hash
    assert (came.chart_id, came.revision, came.content_hash) == (7, 3, b"c" * 16)


def test_a_record_of_384_floats_takes_less_than_1700_bytes():
    vector = np.full(384, 384**-0.5, dtype=np.float32)

    assert len(events.encode(events.ChartUpdated("node-1", MODEL, events.pack(record(vector=vector))))) < 1_700


def rejected(payload):
    with pytest.raises(events.EventRejected) as error:
        events.decode(payload, fingerprint=MODEL)
    return error.value.kind


def test_what_is_not_an_event_is_malformed():
    version = bytes([events.WIRE_VERSION])
    assert rejected(version + b"not messagepack") == "malformed"
    assert rejected(version) == "malformed"
    assert rejected(version + msgspec.msgpack.encode(["ChartUpdated", "a", MODEL])) == "malformed"
    assert rejected(version + msgspec.msgpack.encode(["Unheard", "a", MODEL])) == "malformed"
    assert rejected(version + msgspec.msgpack.encode(["ChartDeleted", "a", MODEL, -1, 4])) == "malformed"
    assert rejected(version + msgspec.msgpack.encode(["ChartDeleted", "a", MODEL, "7", 4])) == "malformed"
    assert rejected(version + msgspec.msgpack.encode(["ChartDeleted", "", MODEL, 7, 4])) == "malformed"
    assert rejected(version + b"\x91" * 5_000) == "malformed"


def test_another_version_is_named():
    assert rejected(b"") == "version"
    assert rejected(b'{"chartId": 7, "vector": [0.1]}') == "version"
    assert rejected(bytes([events.WIRE_VERSION + 1]) + events.encode(updated())[1:]) == "version"


def test_another_models_vectors_are_refused():
    with pytest.raises(events.EventRejected, match=r"'other-4'.*'hash-4'") as error:
        events.decode(events.encode(events.ChartDeleted("a", "other-4", 7, 4)), fingerprint=MODEL)
    assert error.value.kind == "foreign_model"


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
    assert events.unpack_ids(events.pack_ids(chart_ids)) == sorted(chart_ids)


@pytest.mark.parametrize("packed", [b"123", np.array([2, 1], "<i8").tobytes(), np.array([-1, 1], "<i8").tobytes()])
def test_a_list_of_ids_that_is_none_is_refused(packed):
    with pytest.raises(events.EventRejected):
        events.unpack_ids(packed)


@given(st.binary(max_size=300))
def test_no_bytes_break_the_decoder(noise):
    for payload in (noise, bytes([events.WIRE_VERSION]) + noise):
        with contextlib.suppress(events.EventRejected):
            events.decode(payload, fingerprint=MODEL)


@given(st.data())
def test_no_mutation_of_a_real_event_breaks_the_decoder(data):
    frame = bytearray(events.encode(events.BatchChunk("a", MODEL, "b1", [events.pack(record(i)) for i in range(3)])))
    for _ in range(data.draw(st.integers(1, 8))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    try:
        event = events.decode(bytes(frame), fingerprint=MODEL)
        if isinstance(event, events.BatchChunk):
            for packed in event.records:
                events.unpack(packed, dim=4)
    except events.EventRejected:
        pass
