"""Titles that come too late for one search are there for the next; nobody waits longer than his patience."""

from __future__ import annotations

import threading
import time

import pytest

from copilotlab import Chart, ChartRepository
from copilotlab import patience as patience_module
from copilotlab.charts import RepositoryError
from copilotlab.clock import SystemClock
from copilotlab.details import MOST_DETAILS, READ_AT_ONCE, Details
from copilotlab.monitoring import Journal, Metrics
from copilotlab.patience import MOST_HANGING, PATIENCE, PatientCall

LIMIT = 30.0  # seconds for what is certain to come


def chart(chart_id: int, title: str = "Revenue") -> Chart:
    return Chart(chart_id=chart_id, title=f"{title} {chart_id}")


class SlowRepository(ChartRepository):
    """Each read takes ``seconds``; or, while the gate is shut, until it is opened."""

    def __init__(self, count: int = 0, *, seconds: float = 0.0) -> None:
        super().__init__()
        self.save_many([chart(i) for i in range(count)])
        self.seconds = seconds
        self.gate = threading.Event()
        self.gate.set()
        self.broken = False
        self.reads: list[list[int]] = []
        self.ended = threading.Semaphore(0)

    def get_many(self, chart_ids):
        wanted, gate = list(chart_ids), self.gate
        self.reads.append(wanted)
        time.sleep(self.seconds)
        changes = super().get_many(wanted)  # how it was when it was asked
        assert gate.wait(LIMIT)
        self.ended.release()
        if self.broken:
            raise RepositoryError("the disk is on fire")
        return changes


class Searcher(threading.Thread):
    """One search's question to the details, on a thread of its own."""

    def __init__(self, details: Details, *chart_ids: int) -> None:
        super().__init__(daemon=True)
        self._ask = lambda: details.of(dict.fromkeys(chart_ids, 1))
        self.start()

    def run(self) -> None:
        self.found = self._ask()


def details_of(charts: ChartRepository) -> tuple[Details, Metrics]:
    counters = Metrics()
    return Details(charts, Journal("n", SystemClock()), counters), counters


def titles(details: Details, *chart_ids: int, revision: int = 1) -> dict[int, str]:
    return {i: found.title for i, found in details.of(dict.fromkeys(chart_ids, revision)).items()}


def wait_until(condition, limit: float = LIMIT) -> None:
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, f"not within {limit} s"
        time.sleep(0.005)


def hanging_threads() -> int:
    return sum(thread.name == "copilotlab-details" for thread in threading.enumerate())


@pytest.fixture
def quick(monkeypatch):
    """Nobody has much patience: what is tested is the order of things."""
    monkeypatch.setattr(patience_module, "PATIENCE", 0.01)
    monkeypatch.setattr("copilotlab.details.PATIENCE", 0.01)


@pytest.fixture
def patient(monkeypatch):
    """Nobody gives up, however busy the machine is."""
    monkeypatch.setattr(patience_module, "PATIENCE", LIMIT)
    monkeypatch.setattr("copilotlab.details.PATIENCE", LIMIT)


@pytest.mark.parametrize("seconds", [0.1, 0.3, 1.0])
def test_titles_are_there_from_the_second_search_on_however_slow_the_repository(seconds):
    charts = SlowRepository(10, seconds=seconds)
    details, _ = details_of(charts)
    for first in (0, 5):  # two questions with other answers
        ids = range(first, first + 5)
        titles(details, *ids)
        assert charts.ended.acquire(timeout=LIMIT)
        wait_until(lambda ids=ids: not details._awaited(dict.fromkeys(ids, 1)))
        reads = len(charts.reads)
        assert titles(details, *ids) == {i: f"Revenue {i}" for i in ids}
        assert len(charts.reads) == reads


def test_what_came_too_late_is_kept_though_nobody_waits_for_it_any_more(quick):
    charts = SlowRepository(3)
    details, counters = details_of(charts)
    charts.gate.clear()
    assert titles(details, 0, 1, 2) == {}
    assert counters["details_missing"] == 3
    charts.gate.set()
    wait_until(lambda: titles(details, 0, 1, 2) == {0: "Revenue 0", 1: "Revenue 1", 2: "Revenue 2"})
    assert charts.reads.count([2, 1, 0]) == 1


def test_what_later_searches_want_is_read_too_once_the_repository_answers(quick):
    charts = SlowRepository(6)
    details, _ = details_of(charts)
    charts.gate.clear()
    assert titles(details, 0, 1) == {}
    wait_until(lambda: charts.reads)  # a busy machine begins it later than anybody's patience lasts
    for ids in ((2, 3), (3, 4)):
        assert titles(details, *ids) == {}
    charts.gate.set()
    wait_until(lambda: len(details._known) == 5)  # without another search
    assert [sorted(read) for read in charts.reads] == [[0, 1], [2, 3, 4]]


def test_searches_join_the_read_under_way(patient):
    charts = SlowRepository(3)
    details, counters = details_of(charts)
    charts.gate.clear()
    first = Searcher(details, 0, 1, 2)
    wait_until(lambda: bool(charts.reads))
    others = [Searcher(details, 0, 1), Searcher(details, 2)]
    wait_until(lambda: bool(details._wanted))
    charts.gate.set()
    for searcher in (first, *others):
        searcher.join(LIMIT)
        assert not searcher.is_alive()
    assert [len(first.found), *(len(other.found) for other in others)] == [3, 2, 1]
    assert [sorted(read) for read in charts.reads] == [[0, 1, 2]]
    assert counters["details_missing"] == 0


def test_while_a_read_hangs_only_the_first_search_waits_for_it(monkeypatch):
    waited: list[float] = []
    wait = threading.Condition.wait

    def noted(self, timeout=None):
        if threading.current_thread() is threading.main_thread() and self is details._reads._ended:
            waited.append(timeout)
        return wait(self, timeout)

    charts = SlowRepository(50)
    details, _ = details_of(charts)
    charts.gate.clear()
    monkeypatch.setattr(threading.Condition, "wait", noted)
    assert titles(details, 0) == {}
    assert all(0 < seconds <= PATIENCE for seconds in waited)
    waited.clear()
    for i in range(1, 50):
        assert titles(details, i) == {}
    assert sum(waited) < PATIENCE, "what was left of the first one's patience at most"
    charts.gate.set()
    wait_until(lambda: hanging_threads() == 0)


def test_a_repository_that_hangs_for_ever_holds_a_few_threads_at_most(monkeypatch, quick):
    wait_until(lambda: hanging_threads() == 0)
    monkeypatch.setattr(patience_module, "HANGS", 0.0)  # each call counts as lost at once
    charts = SlowRepository(100)
    details, _ = details_of(charts)
    charts.gate.clear()
    for i in range(100):
        assert titles(details, i) == {}
    assert hanging_threads() == MOST_HANGING
    monkeypatch.undo()
    charts.gate.set()
    wait_until(lambda: hanging_threads() == 0)
    assert titles(details, *range(100)) == {i: f"Revenue {i}" for i in range(100)}


def test_another_read_is_tried_beside_one_that_is_lost(monkeypatch, quick):
    charts = SlowRepository(2)
    details, _ = details_of(charts)
    charts.gate.clear()
    assert titles(details, 0) == {}
    wait_until(lambda: charts.reads)
    lost, charts.gate = charts.gate, threading.Event()
    charts.gate.set()
    assert titles(details, 0) == {}  # it is not lost yet
    monkeypatch.setattr(patience_module, "HANGS", 0.0)
    details.of({0: 1, 1: 1})
    monkeypatch.undo()
    wait_until(lambda: len(titles(details, 0, 1)) == 2)
    assert not lost.is_set()
    lost.set()


def test_a_read_that_fails_costs_the_search_its_titles_and_the_next_one_nothing(patient):
    charts = SlowRepository(2)
    details, counters = details_of(charts)
    charts.broken = True
    assert titles(details, 0, 1) == {}
    assert counters["details_missing"] == 2
    assert "the disk is on fire" in details._journal.entries()[-1].detail
    charts.broken = False
    assert titles(details, 0, 1) == {0: "Revenue 0", 1: "Revenue 1"}
    assert counters["details_missing"] == 2


def test_a_read_that_breaks_in_an_unknown_way_does_not_end_reading(monkeypatch):
    charts = SlowRepository(1)
    details, _ = details_of(charts)
    raised = []
    monkeypatch.setattr(threading, "excepthook", lambda raising: raised.append(raising.exc_type))
    with monkeypatch.context() as patch:
        patch.setattr(charts, "get_many", lambda _: [][0])
        assert titles(details, 0) == {}
    wait_until(lambda: raised == [IndexError])
    wait_until(lambda: hanging_threads() == 0)
    assert titles(details, 0) == {0: "Revenue 0"}


def test_a_chart_that_the_repository_has_not_keeps_no_search_waiting_for_it(patient):
    charts = SlowRepository(1)
    charts.save(chart(7))
    charts.delete(7)
    details, counters = details_of(charts)
    assert titles(details, 0, 7, 99) == {0: "Revenue 0"}
    assert counters["details_missing"] == 0


def test_a_late_read_replaces_nothing_newer(quick):
    charts = SlowRepository(1)
    details, _ = details_of(charts)
    charts.gate.clear()
    assert titles(details, 0) == {}
    wait_until(lambda: charts.reads)
    details.note(chart(0, "Profit"), 5)
    charts.gate.set()
    assert charts.ended.acquire(timeout=LIMIT)
    wait_until(lambda: hanging_threads() == 0)
    assert titles(details, 0, revision=5) == {0: "Profit 0"}


def test_a_late_read_brings_nothing_from_before_a_restore(quick):
    charts = SlowRepository(1)
    details, _ = details_of(charts)
    charts.gate.clear()
    assert titles(details, 0) == {}
    wait_until(lambda: charts.reads)
    details.clear()
    charts.gate.set()
    assert charts.ended.acquire(timeout=LIMIT)
    wait_until(lambda: hanging_threads() == 0)
    assert len(details._known) == 0


def test_an_older_revision_is_shown_until_the_newer_one_is_read(quick):
    charts = SlowRepository(1)
    details, _ = details_of(charts)
    assert charts.get_many([0])
    details.note(chart(0, "Former"), 1)
    charts.save(chart(0, "Present"))
    charts.gate.clear()
    assert titles(details, 0, revision=2) == {0: "Former 0"}
    charts.gate.set()
    wait_until(lambda: titles(details, 0, revision=2) == {0: "Present 0"})


def test_an_answer_of_any_length_is_described_and_what_waits_is_bounded(quick, monkeypatch):
    charts = SlowRepository(2 * READ_AT_ONCE + 1)
    details, _ = details_of(charts)
    monkeypatch.setattr(patience_module, "PATIENCE", LIMIT)
    monkeypatch.setattr("copilotlab.details.PATIENCE", LIMIT)
    assert len(titles(details, *range(2 * READ_AT_ONCE + 1))) == 2 * READ_AT_ONCE + 1
    assert all(len(read) <= READ_AT_ONCE for read in charts.reads)
    monkeypatch.setattr("copilotlab.details.PATIENCE", 0.0)
    charts.gate.clear()
    titles(details, *range(10_000, 10_000 + MOST_DETAILS + 500))
    assert len(details._wanted) <= MOST_DETAILS
    charts.gate.set()


def test_a_call_that_is_asked_for_while_it_is_under_way_is_made_once_more():
    gate, calls = threading.Semaphore(0), []

    def call():
        assert gate.acquire(timeout=LIMIT)
        calls.append(1)

    patient = PatientCall(call, "copilotlab-details")
    patient.begin()
    for _ in range(5):
        patient.begin()
    for _ in range(2):
        gate.release()
    wait_until(lambda: hanging_threads() == 0)
    assert 1 <= len(calls) <= 2
    assert patient.wait()
