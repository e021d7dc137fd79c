"""How large pages may be, and what is learned from refusals."""

from __future__ import annotations

import numpy as np
import pytest

from copilotlab import Coordinator
from copilotlab.clock import ManualClock
from copilotlab.lab.simulated_redis import SimulatedRedis
from copilotlab.protocol import events
from copilotlab.protocol.carrier import CarrierAway, CarrierRefused
from copilotlab.protocol.pages import LEAST_PAGE_BYTES, PAGE_BYTES, PageBound, PageRefused
from copilotlab.store import Record, VectorStore

MODEL = "hash:1"
TOO_LARGE = "ERR max request size exceeded. Limit: 1048576 bytes"
LONGEST_NAME = "é" * 200


def records(count: int, dim: int) -> list[Record]:
    vector = np.zeros(dim, dtype=np.float32)
    vector[0] = 1.0
    vector[-1] += 1e-4  # no half
    return [Record.of(2**62 + i, 2**62 + i, b"c" * 16, vector) for i in range(count)]


@pytest.mark.parametrize("size", [LEAST_PAGE_BYTES, 100_000, PAGE_BYTES])
@pytest.mark.parametrize("dim", [2, 384, 2048])
def test_a_page_of_as_many_records_as_the_bound_allows_is_no_larger(size, dim):
    bound = PageBound()
    bound.bytes = size
    count = bound.records(dim)
    page = events.encode(events.page_of(LONGEST_NAME, records(count, dim)))
    assert len(page) <= size < len(page) + 4 * dim + 32 + 1024


@pytest.mark.parametrize("size", [LEAST_PAGE_BYTES, PAGE_BYTES])
def test_a_page_of_as_many_rows_of_a_manifest_as_the_bound_allows_is_no_larger(size):
    bound = PageBound()
    bound.bytes = size
    rows = bound.manifest_rows
    store = VectorStore(2, background=False)
    store.put_many(records(rows + 2, 2))
    page = events.manifest_page(LONGEST_NAME, store.manifest(-1, rows + 1), after=-1, rows=rows)
    assert size - 2048 < len(events.encode(page)) <= size
    assert page.more


def test_a_page_has_room_for_one_record_however_long():
    assert PageBound().records(10**6) == 1


@pytest.mark.parametrize(
    "words",
    [
        TOO_LARGE,
        "Protocol error: invalid bulk length",
        "ERR string exceeds maximum allowed size (proto-max-bulk-len)",
        "request too large",
    ],
)
def test_a_refusal_in_words_halves_the_bound_at_once(words):
    bound = PageBound()
    assert bound.refused(500_000, words)
    assert bound.bytes == 250_000


@pytest.mark.parametrize(
    "words", ["Connection reset by peer", "OOM command not allowed when used memory > 'maxmemory'."]
)
def test_without_such_words_a_page_has_a_second_try(words):
    bound = PageBound()
    assert bound.refused(500_000, words)
    assert bound.bytes == PAGE_BYTES
    bound.taken(100)  # says nothing of large ones
    assert bound.refused(500_000, words)
    assert bound.bytes == 250_000


def test_a_line_that_is_cut_now_and_then_makes_no_page_smaller():
    bound = PageBound()
    for _ in range(10):
        assert bound.refused(500_000, "Connection reset by peer")
        bound.taken(500_000)
    assert bound.bytes == PAGE_BYTES


def test_refusals_come_to_an_end():
    bound = PageBound()
    tries = 0
    while bound.refused(max(bound.bytes, 40_000), "Connection reset by peer"):
        tries += 1
        assert tries <= 10
    assert bound.bytes == LEAST_PAGE_BYTES
    assert not bound.refused(40_000, TOO_LARGE)
    bound.reset()
    assert bound.bytes == PAGE_BYTES


class Limited:
    """A carrier that takes no value above a limit, and says so in its own words."""

    def __init__(self, carrier, most, error):
        self._carrier, self._most, self._error = carrier, most, error

    def __getattr__(self, name):
        return getattr(self._carrier, name)

    def set(self, key, value, **options):
        if len(value) > self._most:
            raise self._error
        return self._carrier.set(key, value, **options)


def coordinator(error, most=100_000):
    carrier = Limited(SimulatedRedis(ManualClock(0.0)).carrier(), most, error)
    made = Coordinator(carrier, node_id="a", fingerprint=MODEL, dim=64, clock=ManualClock(0.0))
    assert made.connect()
    return made


def put(c):
    page = events.page_of(MODEL, records(c.link.pages.records(64), 64))
    c.put_bulk("0" * 32, page)


def test_a_refused_page_is_counted_said_once_and_no_outage():
    c = coordinator(CarrierAway(f"Redis at here is away: {TOO_LARGE}"))
    for _ in range(3):
        with pytest.raises(PageRefused, match="max request size"):
            put(c)
    put(c)
    assert c.connected
    assert (c.context.metrics["pages_refused"], c.context.metrics["outages"]) == (3, 0)
    assert c.link.pages.bytes < 100_000


def test_what_is_no_refusal_for_size_is_an_outage_or_a_refusal_as_ever():
    c = coordinator(CarrierRefused("NOPERM"))
    with pytest.raises(CarrierRefused):
        put(c)
    assert (c.context.metrics["pages_refused"], c.context.metrics["refusals"]) == (0, 1)

    c = coordinator(CarrierAway("Connection reset by peer"))
    c.link.carrier._carrier.cut()  # and nobody answers a ping
    with pytest.raises(CarrierAway):
        put(c)
    assert (c.context.metrics["pages_refused"], c.context.metrics["outages"]) == (0, 1)


def test_a_small_page_that_is_refused_is_an_outage():
    c = coordinator(CarrierAway(TOO_LARGE), most=10)
    with pytest.raises(CarrierAway):
        c.put_bulk("0" * 32, events.page_of(MODEL, records(1, 64)))
    assert c.context.metrics["outages"] == 1
