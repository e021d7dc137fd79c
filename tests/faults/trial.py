"""A trial: a cluster that works, a fault, edits on every node meanwhile, the end of the fault, and what came of it.

The same trial is made of nodes in one process (`Threads`) and of nodes in several (`processes.Processes`). It fails if
anything was lost, embedded twice without need, brought back, or if a search was not answered; what it measures is
measured, not judged.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

import polars as pl

from copilotlab import Chart, Lab, LocalRedis, Policy, load_embedder
from copilotlab.charts import RepositoryError
from copilotlab.lab.fragile_model import FragileModel
from copilotlab.lab.fragile_repository import FragileRepository
from copilotlab.lab.search_watch import Search, Watch

CHARTS = 120  # that every node holds before anything happens
DELETIONS = 24  # charts that are there to be deleted
BATCH = 200  # charts that are new in a batch
HELD = 0.8  # seconds that a fault lasts, at least
LIMIT = 60.0  # seconds until the nodes must agree: a limit, not a measure
PACE = 0.006  # seconds that a text takes in a batch
QUERIES = ["revenue of product 7", "espresso", "words that no chart has"]
POLICY = {
    "redis_timeout": 0.5,
    "probe_interval": 0.1,
    "heartbeat_interval": 0.2,
    "batch_timeout": 3.0,
    "claim_timeout": 3.0,
    "adopt_after": 4.0,
    "chunk_size": 8,
}
GRACE = Policy(**POLICY).rejoin_grace


class Row(NamedTuple):
    """What one trial showed. expected: how many embeddings are right, from and to; seconds: until all agreed."""

    fault: str
    what: str
    where: str
    seconds: float
    expected: tuple[int, int]
    made: int
    median_search: float
    slowest_search: float
    bytes_moved: int


def chart(chart_id: int, words: str) -> Chart:
    return Chart(chart_id=chart_id, title=f"{words}, product {chart_id}")


def first_charts() -> list[Chart]:
    return [chart(chart_id, "Revenue") for chart_id in range(1, CHARTS + 1)]


def wait_until(condition: Callable[[], bool], what: str, limit: float = LIMIT) -> float:
    """Wait until it is so; the seconds that it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < limit, f"not within {limit:g} s: {what}"
        time.sleep(0.01)
    return time.monotonic() - began


def at_rest(states: Collection[dict]) -> bool:
    """Whether nodes of these states hold the same, know of nothing that is missing, and have no batch under way."""
    if len({state["digest"] for state in states}) > 1:
        return False
    return not any(state["owes_rebuild"] or state["batch"] for state in states)


class Threads:
    """A `Lab`, as a trial wants it."""

    where = "threads"

    def __init__(self, size: int = 4) -> None:
        self._server = LocalRedis(password="known").start()
        self.model = FragileModel(load_embedder("hash"))
        repository = FragileRepository()
        repository.save_many(first_charts())
        self.lab = Lab(size, self.model, repository, Policy(**POLICY), redis=self._server)
        self.redis, self.embedder, self.charts, self.repository = self._server, self.model, repository, repository
        self.trials, self.sound = 0, True
        self._watches: list[Watch] = []
        self._batches: list[threading.Thread] = []

    def __enter__(self) -> Threads:
        self.lab.start()
        self.proxies = self.lab.proxies
        self._watches = [Watch(node, QUERIES).start() for node in self.lab.nodes]
        return self

    def __exit__(self, *_: object) -> None:
        for gate in (self.model.gate, self.charts.gate):
            gate.mend()
        for watch in self._watches:
            watch.stop()
        for batch in self._batches:
            batch.join()
        self.lab.close()
        self._server.close()

    @property
    def closed(self) -> bool:
        return self.lab.closed

    @property
    def able(self) -> list[int]:
        return list(range(len(self.lab.nodes)))

    def update(self, index: int, chart: Chart) -> str:
        return self.lab.nodes[index].update_chart(chart).outcome

    def delete(self, index: int, chart_id: int) -> str:
        return self.lab.nodes[index].delete_chart(chart_id).outcome

    def save_elsewhere(self, charts: list[Chart]) -> None:
        self.charts.save_many(charts)

    def begin_batch(self, index: int) -> None:
        batch = threading.Thread(target=self._rebuild, args=(index,), daemon=True)
        batch.start()
        self._batches.append(batch)

    def _rebuild(self, index: int) -> None:
        node = self.lab.nodes[index]
        try:
            node.rebuild()
        except (OSError, RepositoryError) as error:  # as they were told to
            node.journal.note("rebuild_raised", repr(error))

    def batch_progress(self, index: int) -> int:
        batch = str(self.lab.nodes[index].status()["batch"])
        return int(batch.split()[1].split("/")[0]) if batch else -1

    def pace(self, seconds: float) -> None:
        self.model.pace = seconds

    def settled(self) -> bool:
        return at_rest([node.status() for node in self.lab.nodes])

    def differences(self) -> list[str]:
        return [str(row) for row in self.lab.differences().rows()]

    def made(self) -> Counter[str]:
        return Counter({text: count for text, count in self.model.made.items() if text not in QUERIES})

    def bytes_moved(self) -> int:
        return sum(proxy.bytes_up + proxy.bytes_down for proxy in self.proxies)

    def searches(self, since: float) -> dict[str, list[Search]]:
        return {
            watch.node.node_id: [search for search in list(watch.searches) if search.asked >= since]
            for watch in self._watches
        }

    def silences(self) -> list[float]:
        """For how many seconds a node found that it had not listened, each time; nothing here freezes one."""
        said = self.lab.timeline().filter(pl.col("event") == "slept")["detail"]
        return [float(detail.split()[1]) for detail in said]  # "for 1.2 s"

    def complaints(self) -> list[str]:
        return [complaint for watch in self._watches for complaint in watch.errors + watch.backwards]


@contextmanager
def reused(make: Callable[[], AbstractContextManager]) -> Iterator[Callable[[], object]]:
    """What gives the same cluster again and again, and a new one after a trial that failed."""
    held: list = []

    def cluster():
        if held and not held[0].sound:
            held.pop().__exit__(None, None, None)
        if not held:
            held.append(make().__enter__())
        return held[0]

    try:
        yield cluster
    finally:
        for last in held:
            last.__exit__(None, None, None)


class Trial:
    """One fault in one cluster, step by step; `row` is what came of it.

    Each has charts of its own, so that a cluster can go through many; it is ``sound`` after those that ended well.
    """

    def __init__(self, cluster, fault: str, what: str) -> None:
        self.cluster = cluster
        cluster.sound = False
        cluster.trials += 1
        self.fault, self.what = fault, what
        self.words = f"Espresso {cluster.trials}"
        self._next = 1_000 * cluster.trials
        self.edits = 0
        self.local = 0  # edits that found Redis away
        self._doomed = [self._new() for _ in range(DELETIONS)]
        for doomed in self._doomed:
            cluster.update(cluster.able[0], doomed)
        wait_until(lambda: cluster.settled() and not cluster.differences(), f"agreement before {fault}")
        self._made = cluster.made()
        self._silences = len(cluster.silences())
        self._bytes = cluster.bytes_moved()
        self._began = time.monotonic()

    def edit(self) -> None:
        """On each node that runs: save a chart with words that were never there before, and delete an older one."""
        for index in self.cluster.able:
            self.local += self.cluster.update(index, self._new()) == "local"
            self.cluster.delete(index, self._doomed.pop().chart_id)
            self.edits += 1

    def _new(self) -> Chart:
        self._next += 1
        return chart(self._next, self.words)

    def begin_batch(self, holder: int) -> None:
        """New charts that nobody was told of, a batch for them on ``holder``, and wait until it is in the middle."""
        self.cluster.pace(PACE)
        before = len(self.cluster.repository)  # what a batch finds unchanged counts as done at once
        self.cluster.save_elsewhere([self._new() for _ in range(BATCH)])
        self.edits += BATCH
        self.cluster.begin_batch(holder)
        wait_until(lambda: self.cluster.batch_progress(holder) >= before + 16, "the middle of a batch")

    def hold(self, *, edits: bool = True, until: Callable[[], bool] | None = None) -> None:
        """Let the fault last, with edits on every node that runs, and until that has happened."""
        self._held, self._brief = time.monotonic(), until is None
        self._running = {f"node-{index}" for index in self.cluster.able}
        for _ in range(4):
            time.sleep(HELD / 4)  # the pace of the edits; nothing is awaited
            if edits:
                self.edit()
        if until is not None:
            wait_until(until, f"what was to happen while {self.fault}")
        wait_until(lambda: not self._unanswered(time.monotonic()), f"every node answers a search while {self.fault}")
        self._healed = time.monotonic()

    @property
    def stalled(self) -> bool:
        """Whether the machine was too busy for a brief fault to stay one: it lasted about as long as a lease, or a node
        was silent afterwards, handing over what it had made, for about as long as the others wait for it."""
        lasted = self._healed - self._held
        silent = max(self.cluster.silences()[self._silences :], default=0.0)
        return self._brief and (lasted > POLICY["batch_timeout"] - 1.0 or silent > GRACE - 0.4)

    def _unanswered(self, end: float) -> set[str]:
        """The nodes that answered no search from the beginning of the fault to this end, of those that ran."""
        searched = self.cluster.searches(self._held)
        return {
            name
            for name in self._running & searched.keys()
            if not any(search.asked + search.seconds <= end for search in searched[name])
        }

    def row(self, *, spare: int = 0, limit: float = LIMIT) -> Row:
        """Wait for agreement, and check all that was promised.

        spare: embeddings that may be made twice, since a node died or was away for longer than its lease; all may,
        where the machine was `stalled`.
        limit: seconds in which they have to agree.
        """
        cluster = self.cluster
        healed = time.monotonic()
        try:
            wait_until(lambda: cluster.settled() and not cluster.differences(), f"agreement after {self.fault}", limit)
        except AssertionError as error:
            raise AssertionError(f"{error}; {cluster.differences()[:10]}") from None
        seconds = time.monotonic() - healed
        cluster.pace(0.0)
        total = cluster.made()
        made = total - self._made
        twice = {text: total[text] for text in made if total[text] > 1}
        expected = (self.edits, self.edits + (max(spare, self.edits) if self.stalled else spare))
        assert expected[0] <= made.total() <= expected[1], f"{made.total()} embeddings, expected {expected}: {twice}"
        complaints = cluster.complaints()
        assert not complaints, complaints
        searched = cluster.searches(self._began)
        assert not self._unanswered(self._healed), "no search was answered there during the fault"
        took = [search.seconds for searches in searched.values() for search in searches]
        cluster.sound = True
        return Row(
            self.fault,
            self.what,
            cluster.where,
            seconds,
            expected,
            made.total(),
            statistics.median(took),
            max(took),
            cluster.bytes_moved() - self._bytes,
        )
