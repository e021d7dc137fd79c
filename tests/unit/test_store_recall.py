"""A store whose searches are not exact knows, and says, how much of what there is to find they find."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from copilotlab import Chart, ChartRepository, Node
from copilotlab.clock import ManualClock
from copilotlab.lab.instant_model import InstantModel
from copilotlab.store import Record, VectorStore, recall
from copilotlab.store.graph import Graph
from copilotlab.store.snapshot import Snapshot

DIM = 32


def units(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def of_one_title(count: int = 1500, others: int = 300) -> np.ndarray:
    """Many charts of one vector, which a graph connects with each other and hardly with the rest."""
    rng = np.random.default_rng(0)
    one, rest = units(rng.standard_normal((1, DIM))), units(rng.standard_normal((others, DIM)))
    return np.concatenate([np.repeat(one, count, axis=0), rest])


def clustered(count: int, seed: int = 0) -> np.ndarray:
    centres = np.random.default_rng(7).standard_normal((20, DIM))
    rng = np.random.default_rng(seed)
    return units(centres[rng.integers(20, size=count)] + 0.5 * rng.standard_normal((count, DIM)))


def indexed(vectors: np.ndarray, *, exact_limit: int = 500, background: bool = False) -> VectorStore:
    store = VectorStore(DIM, exact_limit=exact_limit, background=background)
    store.put_many(Record.of(i, 1, bytes(16), vector) for i, vector in enumerate(vectors))
    if background:
        wait_until(lambda: store.index_state == "graph")
    while not background and store.index_step():
        pass
    return store


def wait_until(condition: Callable[[], bool], limit: float = 60.0) -> None:
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, f"not within {limit} s"
        time.sleep(0.005)


@pytest.fixture
def clock(monkeypatch) -> ManualClock:
    """The time by which it is decided when to measure."""
    clock = ManualClock(1_000.0)
    monkeypatch.setattr(recall, "time", SimpleNamespace(monotonic=clock.now))
    return clock


@pytest.fixture
def each_time(monkeypatch) -> None:
    """Every search is measured."""
    monkeypatch.setattr(recall, "SHORTEST_PAUSE", 0.0)
    monkeypatch.setattr(recall, "SHARE", 1.0)


def exact_share(store: VectorStore, queries: np.ndarray, k: int = 10) -> float:
    """The oracle: asked by two ways that know nothing of `Recall`; a search among all charts is exact."""
    everything = store.manifest().chart_ids
    right = sum(
        int((store.search(q, k).scores >= store.search(q, k, chart_ids=everything).scores[-1]).sum()) for q in queries
    )
    return right / (k * len(queries))


def test_what_is_measured_is_what_searches_find(each_time):
    vectors = of_one_title()
    store = indexed(vectors)
    assert store.recall is None, "nobody has searched yet"
    queries = units(vectors[-30:] + 0.05 * np.random.default_rng(1).standard_normal((30, DIM)))
    for query in queries:
        store.search(query)
        assert store.index_step() is False
    assert store.recall == store.status()["recall"] == pytest.approx(exact_share(store, queries))
    assert store.recall < recall.POOR, "a graph that loses nothing here measures nothing"


def test_a_good_graph_is_called_good_and_nothing_is_said(each_time, caplog):
    store = indexed(clustered(1500))
    for query in clustered(20, seed=1):
        store.search(query)
        store.index_step()
    assert store.recall >= 0.95
    assert not caplog.records


def test_charts_of_one_vector_are_as_good_as_each_other(each_time):
    """All answers have the best score there is, though exact search has others of the same."""
    store = indexed(np.repeat(clustered(1), 1500, axis=0))
    store.search(clustered(1)[0])
    store.index_step()
    assert store.recall == 1.0


def test_a_poor_recall_is_said_once_and_not_by_one_search(each_time, monkeypatch, caplog):
    store = indexed(clustered(1500))
    nearest = Graph.nearest
    monkeypatch.setattr(Graph, "nearest", lambda graph, query, count: nearest(graph, query, count)[1::2])
    with caplog.at_level(logging.WARNING, "copilotlab.store"):
        for number, query in enumerate(clustered(20, seed=1), 1):
            store.search(query)
            store.index_step()
            assert len(caplog.records) == (number >= recall.ENOUGH)
    assert 0.2 < store.recall < 0.8
    assert f"find {store.recall:.1f}"[:7] in caplog.text
    assert "1500 charts" in caplog.text


def test_only_the_last_measurements_count(each_time, monkeypatch):
    store = indexed(clustered(1500))
    with monkeypatch.context() as patch:
        patch.setattr(Graph, "nearest", lambda graph, query, count: np.empty(0, dtype=np.int64))
        patch.setattr(Snapshot, "_through", lambda snapshot, graph, query, k: np.empty(0, dtype=np.int64))
        store.search(clustered(1, seed=2)[0])
        store.index_step()
    assert store.recall == 0.0
    for query in clustered(recall.KEPT, seed=1):
        store.search(query)
        store.index_step()
    assert store.recall >= 0.95


def test_while_searches_are_exact_nothing_is_measured(each_time):
    vectors = clustered(1500)
    store = indexed(vectors, exact_limit=2000)
    store.search(vectors[0])
    store.index_step()
    assert store.recall is None

    store = indexed(vectors)
    store.search(vectors[0], chart_ids=range(1000))  # exact, too
    store.index_step()
    assert store.recall is None
    store.search_many(vectors[:3])
    store.search_many([])
    store.index_step()
    assert store.recall is not None
    for i in range(1300):
        store.remove(i, 2)
    while store.index_step():
        pass
    assert (store.index_state, store.recall, store.status()["recall"]) == ("exact", None, None)


def test_measuring_takes_one_percent_of_a_core_at_most(clock, monkeypatch):
    vectors = clustered(600)
    store = indexed(vectors)
    measured = 0
    search = Snapshot.search

    def slow(snapshot, queries, k, chart_ids, *, exact: bool):
        nonlocal measured
        if exact:
            measured += 1
            clock.advance(0.5)
        return search(snapshot, queries, k, chart_ids, exact=exact)

    monkeypatch.setattr(Snapshot, "search", slow)
    began = clock.now()
    for _ in range(2_500):
        store.search(vectors[0])
        store.index_step()
        clock.advance(0.1)
    lived = clock.now() - began
    assert 0.5 * measured <= 0.5 + 0.01 * lived
    assert 0.5 * measured >= 0.008 * lived, "nor much less"


def test_no_search_measures_or_waits_for_the_thread_that_does(each_time, monkeypatch):
    store = indexed(clustered(1500), background=True)
    measuring, go_on = threading.Event(), threading.Event()
    measure = recall.Recall.measure
    threads = []

    def held(self, now):
        if self.waits:
            threads.append(threading.current_thread().name)
            measuring.set()
            assert go_on.wait(60)
        measure(self, now)

    monkeypatch.setattr(recall.Recall, "measure", held)
    store.search(clustered(1)[0])
    assert measuring.wait(60)
    for query in clustered(50, seed=3):  # all answered while the measurement stands still
        assert len(store.search(query).chart_ids) == 10
    with store._indexer_lock:
        store.search(clustered(1)[0])
    go_on.set()
    wait_until(lambda: store.recall is not None)
    assert set(threads) == {"copilotlab-index"}
    wait_until(lambda: not any(t.name == "copilotlab-index" for t in threading.enumerate()))


def test_a_search_answers_where_no_thread_can_be_started(each_time, monkeypatch):
    store = indexed(clustered(1500), background=True)
    wait_until(lambda: not any(t.name == "copilotlab-index" for t in threading.enumerate()))

    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert len(store.search(clustered(1)[0]).chart_ids) == 10
    store.search(clustered(1)[0])
    wait_until(lambda: store.recall is not None)


def test_a_node_shows_the_recall_of_its_searches(each_time):
    charts = ChartRepository()
    charts.save_many([Chart(chart_id=i, title=f"Revenue of product {i}") for i in range(300)])
    node = Node(charts, InstantModel(DIM), "redis://127.0.0.1:1/0", exact_limit=100)
    node.rebuild()
    wait_until(lambda: node.store.index_state == "graph")
    assert node.status()["recall"] is None
    assert "recall" not in node.metrics()
    node.search("revenue")
    wait_until(lambda: node.status()["recall"] is not None)
    assert node.metrics()["recall"] == node.status()["recall"] == node.store.recall > 0.5
