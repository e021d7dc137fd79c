"""What changed here and could not be said is owed to the others, as it is when it is said."""

from __future__ import annotations

import numpy as np
import pytest

from copilotlab import Coordinator
from copilotlab.charts import Identity
from copilotlab.clock import ManualClock
from copilotlab.lab.simulated_redis import SimulatedRedis
from copilotlab.protocol import events
from copilotlab.protocol import outbox as outbox_module
from copilotlab.protocol.carrier import CarrierAway
from copilotlab.protocol.outbox import Outbox
from copilotlab.protocol.pages import PageRefused
from copilotlab.store import Record, VectorStore

CATALOGUE = Identity("1" * 32, b"key")


def record(chart_id, revision):
    return Record.of(chart_id, revision, bytes(16), np.array([1, 0, 0, 0], np.float32))


class Desk:
    """An outbox, its store and connection, and who hears what it says."""

    def __init__(self):
        self.clock = ManualClock(1_000.0)
        self.server = SimulatedRedis(self.clock)
        self.carrier = self.server.carrier()
        self.ear = self.server.carrier()
        self.ear.subscribe([events.UPDATES, events.DELETIONS])
        self.store = VectorStore(4)
        self.coordinator = Coordinator(
            self.carrier, node_id="a", fingerprint="m", dim=4, identity=CATALOGUE, clock=self.clock
        )
        self.coordinator.connect()
        self.outbox = Outbox(self.store, self.coordinator)

    def back(self):
        self.carrier.heal()
        self.clock.advance(60.0)
        assert self.coordinator.probe()

    def heard(self):
        said = [
            events.decode(message.payload, fingerprint="m", identity=CATALOGUE).event for message in self.ear.arrived
        ]
        self.ear.arrived.clear()
        return [change for event in said for change in self._changes(event)]

    def _changes(self, event):
        match event:
            case events.ChartDeleted(chart_id, revision):
                return [("deleted", chart_id, revision)]
            case events.ChartUpdated(record):
                return [(record.chart_id, record.revision)]
            case events.ChartsUpdated(bulk):
                records = self.coordinator.decode_records(self.coordinator.get_bulk(bulk))
                return [tuple(record.chart_id for record in records)]

    def change(self, chart_id, revision):
        self.store.put(record(chart_id, revision))
        return self.outbox.say(events.ChartUpdated(events.pack(record(chart_id, revision))), chart_id)


@pytest.fixture
def desk():
    return Desk()


def test_what_can_be_said_is_not_owed(desk):
    assert desk.change(7, 1)
    assert desk.heard() == [(7, 1)]
    assert len(desk.outbox) == 0
    assert desk.coordinator.context.metrics["local"] == 0


def test_what_could_not_be_said_is_said_as_it_is_by_then_and_once(desk):
    desk.carrier.cut()
    assert not desk.change(7, 1)
    assert not desk.change(8, 2)
    assert not desk.change(7, 3)
    desk.store.remove(8, 4)
    assert not desk.outbox.say(events.ChartDeleted(8, 4), 8)
    assert desk.coordinator.context.metrics["local"] == 4
    assert repr(desk.outbox) == "Outbox(2 changes)"

    desk.back()
    desk.outbox.hand_over()
    assert desk.heard() == [("deleted", 8, 4), (7, 3)]
    desk.outbox.hand_over()
    assert desk.heard() == []


def test_what_is_neither_here_nor_deleted_is_not_said(desk):
    desk.outbox.owe([7])
    desk.outbox.hand_over()
    assert (desk.heard(), len(desk.outbox)) == ([], 0)


def test_what_is_handed_over_is_noted_on_its_claim(desk):
    desk.store.put(record(7, 3))
    desk.outbox.owe([7])
    desk.outbox.hand_over()
    claims = {key: value for key, value in desk.server.held().items() if "claim" in key}
    assert list(claims.values()) == [f"{desk.coordinator.link.session_name}=3".encode()]


def test_several_are_handed_over_in_pages_each_noted_on_its_claim(desk, monkeypatch):
    monkeypatch.setattr(type(desk.coordinator.link.pages), "records", lambda *_: 2)
    for chart_id in (7, 8, 9):
        desk.store.put(record(chart_id, 3))
    desk.store.remove(6, 2)
    desk.outbox.owe([7, 6, 8, 9])
    desk.outbox.hand_over()
    assert desk.heard() == [("deleted", 6, 2), (7, 8), (9, 3)], "the last of them needs no page"
    claims = {key: value for key, value in desk.server.held().items() if "claim" in key}
    assert list(claims.values()) == [f"{desk.coordinator.link.session_name}=3".encode()] * 3


def test_a_page_that_is_too_large_is_handed_over_in_smaller_ones(desk, monkeypatch):
    sizes = iter([3, 2, 2])
    monkeypatch.setattr(type(desk.coordinator.link.pages), "records", lambda *_: next(sizes))
    put, refusals = desk.coordinator.put_bulk, [PageRefused("too large")]

    def refuse_once(bulk, page):
        if refusals:
            raise refusals.pop()
        put(bulk, page)

    monkeypatch.setattr(desk.coordinator, "put_bulk", refuse_once)
    for chart_id in (7, 8, 9):
        desk.store.put(record(chart_id, 1))
    desk.outbox.owe([7, 8, 9])
    desk.outbox.hand_over()
    assert desk.heard() == [(7, 8), (9, 1)]


def test_where_redis_goes_in_the_middle_all_is_owed_on(desk, monkeypatch):
    monkeypatch.setattr(type(desk.coordinator.link.pages), "records", lambda *_: 2)
    for chart_id in (7, 8, 9):
        desk.store.put(record(chart_id, 1))
    desk.outbox.owe([7, 8, 9])
    run = desk.carrier.run

    def cut_at_9(script, keys, arguments):
        if ":9:" in keys[0]:
            desk.carrier.cut()
        return run(script, keys, arguments)

    desk.carrier.run = cut_at_9
    with pytest.raises(CarrierAway):
        desk.outbox.hand_over()
    desk.carrier.run = run
    desk.back()
    assert (desk.heard(), len(desk.outbox)) == ([(7, 8)], 3)
    desk.outbox.hand_over()
    assert desk.heard() == [(7, 8), (9, 1)]


def test_whatever_goes_wrong_in_the_middle_nothing_that_is_owed_is_forgotten(desk, monkeypatch):
    for chart_id in (7, 8):
        desk.store.put(record(chart_id, 1))
    desk.outbox.owe([7, 8])

    def breaks(bulk, page):
        raise MemoryError

    monkeypatch.setattr(desk.coordinator, "put_bulk", breaks)
    with pytest.raises(MemoryError):
        desk.outbox.hand_over()
    assert len(desk.outbox) == 2
    monkeypatch.undo()
    desk.outbox.hand_over()
    assert desk.heard() == [(7, 8)]


def test_what_changes_again_while_it_is_said_is_owed_again(desk, monkeypatch):
    desk.store.put(record(7, 1))
    desk.outbox.owe([7])
    get = desk.store.get

    def get_and_change(chart_id):
        found = get(chart_id)
        desk.store.put(record(7, 2))
        desk.outbox.owe([7])  # as by a caller who finds Redis away at this moment
        return found

    monkeypatch.setattr(desk.store, "get", get_and_change)
    desk.outbox.hand_over()
    assert len(desk.outbox) == 1
    monkeypatch.undo()
    desk.outbox.hand_over()
    assert desk.heard() == [(7, 1), (7, 2)]


def test_of_very_many_the_first_are_said_and_the_rest_is_left_to_be_fetched(desk, monkeypatch):
    monkeypatch.setattr(outbox_module, "HANDED_OVER", 2)
    for chart_id in range(5):
        desk.store.put(record(chart_id, 1))
    desk.outbox.owe(range(5))
    desk.outbox.hand_over()
    assert desk.heard() == [(0, 1)]
    assert len(desk.outbox) == 0
