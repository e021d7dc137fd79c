"""What the repository has and a store has not."""

from __future__ import annotations

import numpy as np
import pytest

from copilotlab.protocol.backlog import Backlog
from copilotlab.store import Record, VectorStore


@pytest.fixture
def store():
    return VectorStore(4)


@pytest.fixture
def backlog(store):
    return Backlog(store)


def record(chart_id, revision):
    return Record.of(chart_id, revision, bytes(16), np.array([1, 0, 0, 0], dtype=np.float32))


def test_what_is_missing_keeps_the_store_incomplete(backlog):
    assert backlog.complete_to(9) == 9
    backlog.add(7, 5, due=100.0)
    backlog.add(8, 3, due=100.0)

    assert backlog.chart_ids() == [7, 8]
    assert backlog.complete_to(9) == 2
    assert repr(backlog) == "Backlog(2 charts missing)"


def test_what_comes_is_missing_no_longer_and_what_is_older_is_not_it(backlog, store):
    backlog.add(7, 5, due=100.0)
    store.put(record(7, 4))
    assert backlog.chart_ids() == [7]
    store.put(record(7, 5))
    assert not backlog
    assert backlog.complete_to(9) == 9


def test_a_deletion_that_comes_will_do(backlog, store):
    backlog.add(7, 5, due=100.0)
    store.remove(7, 6)
    assert not backlog


def test_what_came_before_it_was_missed_is_seen(backlog, store):
    backlog.add(8, 9, due=100.0)
    store.put(record(7, 5))
    assert backlog.chart_ids() == [8]
    backlog.add(7, 5, due=100.0)
    assert backlog.chart_ids() == [8]


def test_it_is_due_at_its_time_and_a_change_of_the_change_puts_nothing_off(backlog):
    backlog.add(7, 5, due=100.0)
    backlog.add(8, 3, due=200.0)
    assert backlog.due(99.0) is None
    assert backlog.due(100.0) == 5
    backlog.add(7, 9, due=300.0)
    assert backlog.due(100.0) == 9
    assert backlog.due(200.0) == 3


def test_what_is_dropped_or_cleared_is_not_waited_for(backlog):
    for chart_id in (1, 2, 3):
        backlog.add(chart_id, 5, due=100.0)
    backlog.drop([1, 4])
    assert backlog.chart_ids() == [2, 3]
    backlog.clear()
    assert len(backlog) == 0
