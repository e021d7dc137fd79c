"""The store under threads: every answer must be one that was true at some moment of the search.

A chart's version says where its vector is: each version of a chart stands at another angle in a plane, so a score tells
which version a search saw. A writer notes a version before it puts it and again after. So a search that began after a
version was in, and ended before the next was begun, must have seen just this one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest

from copilotlab.store import Matches, Record, VectorStore
from copilotlab.store.graph import Graph, GraphBuild

DIM = 32
CHARTS = 120  # always there, moving
PASSING = 10_000  # from this id on: charts that come, go, and never come back
VERSIONS = 50


def where(chart_id: int, version: int) -> np.ndarray:
    vector = np.zeros(DIM)
    angle = 0.3 + chart_id * 1e-4 + version * 2e-2
    vector[chart_id % DIM] = np.cos(angle)
    vector[(chart_id * 7 + 1) % DIM] += np.sin(angle)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def record(chart_id: int, version: int) -> Record:
    return Record.of(chart_id, version, bytes(16), where(chart_id, version))


def score(chart_id: int, version: int, query: np.ndarray) -> float:
    return float(np.float32(where(chart_id, version).astype(np.float64) @ query.astype(np.float64)))


def wait_until(condition: Callable[[], bool], limit: float = 120.0) -> None:
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, f"not within {limit} s"
        time.sleep(0.01)


class Hammer:
    """A store, what its writers began and finished, and what its searchers found wrong."""

    def __init__(self, store: VectorStore) -> None:
        self.store = store
        self.begun = dict.fromkeys(range(CHARTS), 0)
        self.finished = dict.fromkeys(range(CHARTS), 0)
        self.passing_begun = PASSING
        self.gone: set[int] = set()
        self.wrong: list[str] = []
        self.writing = threading.Event()
        self.searches = 0
        self.searched = threading.Condition()  # of the number of searches
        store.put_many(record(i, 0) for i in range(CHARTS))

    # --- writers ----------------------------------------------------------------------------------------------

    def move(self, chart_ids: range) -> None:
        """One by one and in bulk, through all versions."""
        rng = np.random.default_rng(chart_ids.start)
        version = dict.fromkeys(chart_ids, 0)
        while max(version.values()) < VERSIONS:
            bulk = rng.random() < 0.2
            moved = chart_ids if bulk else [int(rng.choice(chart_ids))]
            for i in moved:
                version[i] += 1
                self.begun[i] = version[i]
            records = [record(i, version[i]) for i in moved]
            taken = self.store.put_many(records) if bulk else int(self.store.put(records[0]))
            if taken != len(records):
                self.wrong.append(f"{taken} of {len(records)} records taken")
            for i in moved:
                self.finished[i] = version[i]
            self.wait_for_searches(max(version.values()))

    def wait_for_searches(self, count: int) -> None:
        """No writer is far ahead of the searches, however little time these get."""
        with self.searched:
            assert self.searched.wait_for(lambda: self.searches > count or bool(self.wrong), 120)

    def pass_through(self, rounds: int) -> None:
        """Charts that come and go; each record is offered once more after its chart has gone."""
        for turn in range(rounds):
            first = PASSING + 10 * turn
            self.passing_begun = first + 10
            records = [record(i, 5) for i in range(first, first + 10)]
            self.store.put_many(records)
            if turn % 7 == 0:  # a list in which none of them is, and which is older than all that moves
                self.store.retain(range(CHARTS), 5)
            else:
                for i in range(first, first + 10):
                    self.store.remove(i, 6)
            self.gone.update(range(first, first + 10))
            if self.store.put_many(records):
                self.wrong.append("a deleted chart came back")

    # --- searchers --------------------------------------------------------------------------------------------

    def search(self, look: Callable[[np.ndarray], Matches], complete: bool, seed: int) -> None:
        rng = np.random.default_rng(seed)
        while self.writing.is_set() and not self.wrong:
            query = where(int(rng.integers(CHARTS)), int(rng.integers(VERSIONS)))
            gone, before = self.gone.copy(), self.finished.copy()
            matches = look(query)
            after, passing_begun = self.begun.copy(), self.passing_begun
            self.check(matches, query, complete, gone, before, after, passing_begun)
            with self.searched:
                self.searches += 1
                self.searched.notify_all()

    def check(
        self,
        matches: Matches,
        query: np.ndarray,
        complete: bool,
        gone: set[int],
        before: dict[int, int],
        after: dict[int, int],
        passing_begun: int,
    ) -> None:
        ids, scores = matches.chart_ids.tolist(), matches.scores.tolist()
        if len(set(ids)) != len(ids):
            self.wrong.append(f"a chart twice: {sorted(ids)}")
        if not set(ids).isdisjoint(gone):
            self.wrong.append(f"gone before the search began: {set(ids) & gone}")
        if [*zip(np.negative(scores), ids, strict=True)] != sorted(zip(np.negative(scores), ids, strict=True)):
            self.wrong.append("not by descending score and ascending id")
        if complete and not set(range(CHARTS)) <= set(ids):
            self.wrong.append(f"missing: {set(range(CHARTS)) - set(ids)}")
        for chart_id, found in zip(ids, scores, strict=True):
            if chart_id >= PASSING:
                legal = [5] if chart_id < passing_begun else []
            else:
                legal = list(range(before[chart_id], after[chart_id] + 1))
            if found not in {score(chart_id, version, query) for version in legal}:
                self.wrong.append(f"chart {chart_id}: {found} is not its score in versions {legal}")

    @contextmanager
    def searchers(self, *searchers: tuple[Callable[[np.ndarray], Matches], bool]) -> Iterator[None]:
        self.writing.set()
        threads = [
            threading.Thread(target=self.guarded, args=(self.search, look, complete, seed))
            for seed, (look, complete) in enumerate(searchers)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.writing.clear()
            for thread in threads:
                thread.join(120)
        assert not any(thread.is_alive() for thread in threads)

    def guarded(self, work: Callable[..., None], *args: object) -> None:
        try:
            work(*args)
        except BaseException as error:
            self.wrong.append(repr(error))
            raise

    def run_writers(self) -> None:
        half = CHARTS // 2
        writers = [
            threading.Thread(target=self.guarded, args=(self.move, range(half))),
            threading.Thread(target=self.guarded, args=(self.move, range(half, CHARTS))),
            threading.Thread(target=self.guarded, args=(self.pass_through, 60)),
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join(300)
        assert not any(writer.is_alive() for writer in writers)

    def ends_right(self) -> None:
        assert not self.wrong, self.wrong[:3]
        assert self.searches > VERSIONS
        twin = VectorStore(DIM, background=False)
        twin.put_many(record(i, self.finished[i]) for i in range(CHARTS))
        assert self.store.digest == twin.digest
        assert self.store.manifest().difference(twin.manifest()).is_empty()


@pytest.mark.parametrize("exact_limit", [100_000, 60], ids=["exact", "graph"])
def test_every_answer_was_true_during_its_search(exact_limit: int):
    store = VectorStore(DIM, exact_limit=exact_limit)
    hammer = Hammer(store)
    if exact_limit == 60:
        wait_until(lambda: store.index_state == "graph")
    everything = 10**6
    with hammer.searchers(
        (lambda query: store.search(query, everything), True),
        (lambda query: store.search(query, everything, chart_ids=range(CHARTS)), True),
        (lambda query: store.search_many([query, query], everything)[1], True),
        (lambda query: store.search(query, 10), False),
    ):
        hammer.run_writers()
    hammer.ends_right()
    assert store.status()["index"] == ("graph" if exact_limit == 60 else "exact")


def test_every_answer_of_a_large_graph_was_true_during_its_search():
    """As above, with so many charts that stand still that searches go through usearch, while graphs are built."""
    store = VectorStore(DIM, exact_limit=1000)
    rng = np.random.default_rng(0)
    still = rng.standard_normal((4000, DIM)).astype(np.float32)
    still /= np.linalg.norm(still, axis=1, keepdims=True)
    store.put_many(Record.of(1_000_000 + i, 10, bytes(16), vector) for i, vector in enumerate(still))
    wait_until(lambda: store.index_state == "graph")
    hammer = Hammer(store)

    def nearest(query: np.ndarray) -> Matches:
        matches = store.search(query, 15)
        assert len(matches.chart_ids) == 15
        moving = matches.chart_ids < 1_000_000
        return Matches(matches.chart_ids[moving], matches.scores[moving])

    def a_chart_finds_itself(query: np.ndarray) -> Matches:
        return store.search(query, 5, chart_ids=range(CHARTS))

    with hammer.searchers((nearest, False), (nearest, False), (a_chart_finds_itself, False)):
        hammer.run_writers()
        wait_until(lambda: store.status()["indexed"] != 4000)  # another graph was built meanwhile
    assert not hammer.wrong, hammer.wrong[:3]
    assert hammer.searches > VERSIONS
    assert store.status()["index"] == "graph"


def test_a_search_does_not_wait_while_a_graph_is_built(monkeypatch: pytest.MonkeyPatch):
    """A usearch index serves one caller at a time: a search in one that is being built would wait for a whole step.

    Here no step ends before two searches began and ended within it, and none of them goes to what is being built.
    """
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((6000, 256)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    records = [Record.of(i, 1, bytes(16), vector) for i, vector in enumerate(vectors)]
    store = VectorStore(256, exact_limit=1000, background=False)
    store.put_many(records[:3000])
    while store.index_step():
        pass
    store.put_many(records[3000:])
    assert store.status()["index"] == "graph", "searches go through the first graph while the second is built"
    add, nearest = GraphBuild.add, Graph.nearest
    turn, stepping, within = threading.Condition(), 0, 0  # stepping is odd in a step
    in_the_making: object = None

    def add_beside_searches(build: GraphBuild, count: int) -> None:
        nonlocal stepping, within, in_the_making
        with turn:
            stepping, within, in_the_making = stepping + 1, 0, build._index
        add(build, count)
        with turn:
            assert turn.wait_for(lambda: within >= 2, 120), "searches wait for the step"
            stepping, in_the_making = stepping + 1, None

    def nearest_elsewhere(graph: Graph, query: np.ndarray, count: int) -> np.ndarray:
        assert graph.index is not in_the_making
        return nearest(graph, query, count)

    def build() -> None:
        while store.index_step():
            pass

    monkeypatch.setattr(GraphBuild, "add", add_beside_searches)
    monkeypatch.setattr(Graph, "nearest", nearest_elsewhere)
    with ThreadPoolExecutor(1) as pool:
        building = pool.submit(build)
        while not building.done():
            began = stepping
            store.search(vectors[began])
            with turn:
                if began % 2 == 1 and stepping == began:
                    within += 1
                    turn.notify()
        building.result()
    assert stepping // 2 >= 10
