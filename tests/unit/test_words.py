"""The words of charts follow the store of vectors, in the background; whoever searches waits for no database."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from copilotlab import Chart, ChartRepository
from copilotlab import words as words_module
from copilotlab.charts import RepositoryError
from copilotlab.store import Record, VectorStore
from copilotlab.words import WordsKept

LIMIT = 30.0  # seconds for what is certain to come
VECTOR = np.array([1.0, 0.0])


class Repository(ChartRepository):
    """Reads wait while the gate is shut, and fail while it is broken."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.broken = False
        self.hidden: set[int] = set()
        self.reads = 0

    def get_many(self, chart_ids):
        self.reads += 1
        assert self.gate.wait(LIMIT)
        if self.broken:
            raise RepositoryError("the disk is on fire")
        return {i: change for i, change in super().get_many(chart_ids).items() if i not in self.hidden}


@pytest.fixture
def charts():
    charts = Repository()
    yield charts
    charts.gate.set()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(words_module, "PAUSE", 0.0)
    monkeypatch.setattr(words_module, "PAUSE_AFTER_FAILURE", 0.0)


def save(charts: ChartRepository, store: VectorStore, chart_id: int, source: str) -> None:
    chart = Chart(chart_id=chart_id, title="Revenue", source=source)
    store.put(Record.of(chart_id, charts.save(chart), chart.content_hash, VECTOR))


def of(words: WordsKept, source: str) -> list[int]:
    return sorted(words.lexicon.matching({"source": [source]}).tolist())


def caught_up(words: WordsKept, store: VectorStore) -> None:
    until = time.monotonic() + LIMIT
    while not words.caught_up(store):
        assert time.monotonic() < until
        words.follow(store)
        time.sleep(0.005)


def test_words_follow_what_the_store_holds(charts, monkeypatch):
    monkeypatch.setattr(words_module, "READ_AT_ONCE", 2)
    store, words = VectorStore(2), WordsKept(charts)
    for chart_id in range(5):
        save(charts, store, chart_id, "Sales")
    words.follow(store)
    assert charts.reads == 0  # nobody has asked for words yet
    words.keep(store)
    caught_up(words, store)
    assert of(words, "Sales") == [0, 1, 2, 3, 4]
    save(charts, store, 1, "HR")
    store.remove(2, charts.delete(2))
    save(charts, store, 7, "HR")
    assert words.lacking(store) == 2
    caught_up(words, store)
    assert (of(words, "Sales"), of(words, "HR"), words.lacking(store)) == ([0, 3, 4], [1, 7], 0)


def test_a_repository_that_hangs_or_fails_is_not_waited_for_and_is_asked_again(charts, monkeypatch):
    monkeypatch.setattr(words_module, "PATIENCE", 0.01)
    store, words = VectorStore(2), WordsKept(charts)
    save(charts, store, 1, "Sales")
    charts.gate.clear()
    words.keep(store)
    assert words.lacking(store) == 1
    charts.broken = True
    charts.gate.set()
    words.follow(store)
    assert words.lacking(store) == 1
    charts.broken = False
    caught_up(words, store)
    assert of(words, "Sales") == [1]


def test_a_row_that_cannot_be_read_is_counted_as_lacking_and_tried_again_when_something_changes(charts):
    store, words = VectorStore(2), WordsKept(charts)
    charts.hidden = {1}
    for chart_id in (1, 2):
        save(charts, store, chart_id, "Sales")
    words.keep(store)
    caught_up(words, store)
    assert (of(words, "Sales"), words.lacking(store)) == ([2], 1)
    charts.hidden = set()
    save(charts, store, 3, "Sales")
    caught_up(words, store)
    assert (of(words, "Sales"), words.lacking(store)) == ([1, 2, 3], 0)


def test_what_a_read_brings_from_before_a_restoration_is_not_taken(charts):
    store, words = VectorStore(2), WordsKept(charts)
    save(charts, store, 1, "Sales")
    words.keep(store)
    caught_up(words, store)
    reads = charts.reads
    charts.gate.clear()
    save(charts, store, 2, "Sales")
    words.follow(store)
    until = time.monotonic() + LIMIT
    while charts.reads == reads:  # under way
        assert time.monotonic() < until
        time.sleep(0.005)
    words.clear()
    charts.hidden = {2}  # what it brings is of the past
    assert words.lacking(store) == 2
    charts.gate.set()
    caught_up(words, store)
    assert of(words, "Sales") == [1]


def test_another_store_of_the_same_charts_needs_nothing_to_be_read_again(charts):
    store, words = VectorStore(2), WordsKept(charts)
    save(charts, store, 1, "Sales")
    words.keep(store)
    caught_up(words, store)
    reads, other = charts.reads, VectorStore(2)
    other.put(store.get(1))
    caught_up(words, other)
    assert (words.lacking(other), charts.reads) == (0, reads)


def test_a_child_process_goes_on_with_what_its_parent_kept(charts):
    store, words = VectorStore(2), WordsKept(charts)
    save(charts, store, 1, "Sales")
    words.keep(store)
    caught_up(words, store)
    reads, child = charts.reads, words.after_fork()
    caught_up(child, store)
    child.note(Chart(chart_id=1, title="Revenue", source="HR"), 5)
    assert (of(child, "HR"), of(words, "Sales"), charts.reads) == ([1], [1], reads)
