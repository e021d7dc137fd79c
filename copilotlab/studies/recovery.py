"""What a fault does to a cluster, and how long until all is right again: `Policy()` beside the written design.

    from copilotlab.studies.recovery import recovery, summary

    seen = recovery(["server killed", "deaf"])  # what every node held, moment by moment
    summary(seen)                               # a row for each fault and policy

Each experiment has a real server, a few nodes in this process, each behind its own proxy, a small catalogue, searches
on every node all along, and edits on every node while the fault lasts. So that it takes only seconds, its timers are
shorter than by default (`TIMERS`), for both policies alike.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import copy_context
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import polars as pl
from tqdm.auto import tqdm

from copilotlab.charts import Chart, Heads, RepositoryError
from copilotlab.embedding import load_embedder
from copilotlab.lab.agreement import agree, wrong_charts
from copilotlab.lab.faults import FAULTS
from copilotlab.lab.fragile_model import FragileModel
from copilotlab.lab.fragile_repository import FragileRepository
from copilotlab.lab.lab import Lab
from copilotlab.lab.search_watch import Watch
from copilotlab.lab.server import LocalRedis
from copilotlab.markup import DOUBTFUL, GOOD, card
from copilotlab.node import Node
from copilotlab.protocol.policy import Policy
from copilotlab.reasons import short
from copilotlab.studies.result_cache import cached

Phase = Literal["before", "fault", "after"]

TIMERS = {
    "redis_timeout": 0.5,  # a busy machine is not an outage, and the slowest line is slower than this
    "probe_interval": 0.1,
    "heartbeat_interval": 0.2,
    "batch_timeout": 2.0,
    "claim_timeout": 2.0,
    "adopt_after": 3.0,
    "chunk_size": 8,
}
POLICIES = {"Policy()": Policy(**TIMERS), "the written design": Policy.seed(**TIMERS)}  # type: ignore[arg-type]

VICTIM = 1  # the node whose line breaks, or that holds the batch
ROUNDS = 4  # of edits during a fault
STUDIED = tuple(
    name for name, fault in FAULTS.items() if fault.scope not in ("data", "peers")
)  # those after which all that was saved is still there
IN_A_BATCH = ("model", "repository")  # scopes of faults that show only while a batch runs
BATCH = 60  # charts that are new in a batch
SECONDS_PER_TEXT = 0.01  # in a batch
SETTING_UP = 60.0  # seconds: a limit for a cluster to get ready, and for a third of a batch
BEFORE, AFTERWARDS = 0.4, 0.4  # seconds that are watched before the fault, and once all agree
CHECK = 0.01  # seconds between two checks of what is waited for
SEARCH_PAUSE = 0.03  # seconds between two searches of a node
QUERIES = ("revenue of product 7", "espresso", "words that no chart has")

_SAMPLE = {
    "seconds": pl.Float64,
    "node": pl.String,
    "phase": pl.String,
    "coverage": pl.Float64,
    "wrong": pl.Int64,
    "staleness": pl.Float64,
    "search_ms": pl.Float64,
    "redis": pl.String,
    "batch": pl.String,
}


class Held(NamedTuple):
    """How a node compares with the repository.

    coverage: the share of the repository's charts that the node holds as they are. wrong: how many charts it holds
    otherwise (missing, old, or deleted and still there). staleness: seconds since the oldest of these changed.
    """

    coverage: float
    wrong: int
    staleness: float


class Experiment:
    """One fault in one cluster, watched from before it begins until all nodes agree again.

    Parameters:
        fault: a name of `copilotlab.lab.faults.FAULTS`.
        policy: of all nodes; see `POLICIES` for the timers that suit it.
        nodes: how many (3). charts: how many all hold at first (60).
        lasts: seconds that the fault lasts, with edits on every node (1.2).
        limit: seconds to wait for agreement after the fault (30).
        pace: seconds between two looks at every node (0.05).
        seed: of which charts are edited.

    Call `run`; meanwhile other threads may read `timeline` and call `stop`. A fault of the model or of the repository
    comes in the middle of a batch, without edits; any other comes while the cluster is at rest. Raises ValueError for
    an unknown fault, fewer than two nodes, too few charts for the deletions, or seconds that are not above 0.
    """

    def __init__(
        self,
        fault: str,
        policy: Policy,
        *,
        nodes: int = 3,
        charts: int = 60,
        lasts: float = 1.2,
        limit: float = 30.0,
        pace: float = 0.05,
        seed: int = 0,
    ) -> None:
        if fault not in FAULTS:
            raise ValueError(f"fault={short(fault)}: expected one of {', '.join(FAULTS)}")
        if nodes < 2 or charts < 2 * ROUNDS:
            raise ValueError(
                f"nodes={short(nodes)}, charts={short(charts)}: expected at least 2 nodes, and {2 * ROUNDS} charts"
            )
        if min(lasts, limit, pace) <= 0:
            raise ValueError(
                f"lasts={short(lasts)}, limit={short(limit)}, pace={short(pace)}: expected seconds above 0"
            )
        self.fault = FAULTS[fault]
        self.policy = policy
        self.agreed: float | None = None
        """Seconds from the end of the fault until all nodes agreed with the repository; None if they did not (yet)."""
        self.embeddings = self.edits = self.backwards = self.unanswered = 0
        """Counted from before the fault: embeddings that all nodes made, charts with new words, charts that went
        backwards on a node, searches that raised."""
        self._size, self._pace, self._lasts, self._limit = nodes, pace, lasts, limit
        self._random = random.Random(seed)
        self._charts = {chart_id: _chart(chart_id, "Revenue") for chart_id in range(1, charts + 1)}
        self._in_a_batch = self.fault.scope in IN_A_BATCH
        self._model = FragileModel(load_embedder("hash"), pace=SECONDS_PER_TEXT)
        self._repository = FragileRepository()
        self._phase: Phase = "before"
        self._looking = threading.Lock()  # no phase begins during a look
        self._counted: dict[str, int] = {}  # how many searches of each node earlier looks have told
        self._stopping, self._seen_enough = threading.Event(), threading.Event()
        self._sampled: list[tuple[object, ...]] = []
        self._book = _Book()
        self._began, self._ended = math.inf, math.inf  # when the fault did

    # --- what is done -----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run the whole experiment in this thread. Raises what the lab raises, once all that was started is ended."""
        with ExitStack() as stack:  # what is entered last ends first
            server = stack.enter_context(LocalRedis(password="known"))
            beside = stack.enter_context(ThreadPoolExecutor(2, "copilotlab-experiment"))
            self._repository.save_many(self._charts.values())
            lab = Lab(self._size, self._model, self._repository, self.policy, redis=server)
            stack.callback(lab.close)
            lab.start()
            lab.wait_converged(SETTING_UP)
            self._wait_until(lambda: _at_rest(lab.nodes), SETTING_UP)  # an edit beside a batch waits for it
            watches = [stack.enter_context(Watch(node, QUERIES, pause=SEARCH_PAUSE)) for node in lab.nodes]
            stack.callback(self._seen_enough.set)
            made = _embeddings(lab)
            self._read_book()
            if self._in_a_batch:
                self._save_elsewhere()
            threads = [beside.submit(self._look_on, watches)]
            self._stopping.wait(BEFORE)
            if self._in_a_batch:
                threads.append(beside.submit(_rebuild, lab.nodes[VICTIM]))
                self._wait_until(lambda: _embeddings(lab) - made >= BATCH / 3, SETTING_UP)
            self._look(watches)
            self._break(lab, watches)
            if self._wait_until(lambda: agree(lab.nodes, self._book.heads, or_newer=True), self._limit):
                self.agreed = time.monotonic() - self._ended
            self._stopping.wait(AFTERWARDS)
            self._look(watches)
            self.embeddings = _embeddings(lab) - made
            self.backwards = sum(len(watch.backwards) for watch in watches)
            self.unanswered = sum(len(watch.errors) for watch in watches)
        for thread in threads:
            thread.result()  # raises what it raised

    def stop(self) -> None:
        """End the experiment early."""
        self._stopping.set()

    def _break(self, lab: Lab, watches: Sequence[Watch]) -> None:
        self._began = self._enter("fault")
        try:
            self.fault.start(lab, VICTIM)
            for _ in range(ROUNDS):
                self._stopping.wait(self._lasts / ROUNDS)
                if not self._in_a_batch:
                    self._edit(lab.nodes)
            self._look(watches)
        finally:
            self.fault.end(lab, VICTIM)
            self._ended = self._enter("after")

    def _enter(self, phase: Phase) -> float:
        """Begin a phase, and return when it began."""
        with self._looking:
            self._phase = phase
            return time.monotonic()

    def _edit(self, nodes: list[Node]) -> None:
        """Give a chart new words on each node, and delete another chart on one of them."""
        for node in nodes:
            chart_id = self._random.choice(list(self._charts))
            self.edits += 1
            self._charts[chart_id] = _chart(chart_id, f"Espresso {self.edits}")
            node.update_chart(self._charts[chart_id])
            self._read_book()
        gone = self._random.choice(list(self._charts))
        del self._charts[gone]
        self._random.choice(nodes).delete_chart(gone)
        self._read_book()

    def _save_elsewhere(self) -> None:
        new = [_chart(chart_id, "Espresso") for chart_id in range(1_001, 1_001 + BATCH)]
        self.edits += len(new)
        self._repository.save_many(new)
        self._read_book()

    def _read_book(self) -> None:
        self._book = self._book.next(self._repository.heads_since(0))  # all its rows can be read

    def _wait_until(self, condition: Callable[[], bool], limit: float) -> bool:
        """Wait for a condition; return False after ``limit`` seconds, or when the experiment is stopped."""
        began = time.monotonic()
        while not self._stopping.is_set() and time.monotonic() - began < limit:
            if condition():
                return True
            self._stopping.wait(CHECK)
        return False

    # --- what is seen -----------------------------------------------------------------------------------------

    def timeline(self) -> pl.DataFrame:
        """Return what was seen so far, a row for each look at each node: as `recovery` does, without ``policy``."""
        frame = pl.DataFrame(list(self._sampled), schema=_SAMPLE, orient="row")
        start = min(self._began, time.monotonic())
        return frame.with_columns(
            pl.col("seconds") - start,
            fault=pl.lit(self.fault.name),
            scope=pl.lit(self.fault.scope),
            agreed_after=pl.lit(self.agreed, pl.Float64),
            edits=pl.lit(self.edits, pl.Int64),
            embeddings=pl.lit(self.embeddings, pl.Int64),
            backwards=pl.lit(self.backwards, pl.Int64),
            unanswered=pl.lit(self.unanswered, pl.Int64),
        )

    def _look_on(self, watches: Sequence[Watch]) -> None:
        due = time.monotonic()
        while not self._seen_enough.wait(max(0.0, due - time.monotonic())):
            self._look(watches)
            due += self._pace

    def _look(self, watches: Sequence[Watch]) -> None:
        """Note what every node holds now. Each phase ends with a look, however short it was."""
        with self._looking:
            now = time.monotonic()
            seen = []
            for node, searches in ((watch.node, watch.searches) for watch in watches):
                ended = searches[self._counted.get(node.node_id, 0) :]
                self._counted[node.node_id] = self._counted.get(node.node_id, 0) + len(ended)
                slowest = 1000 * max(search.seconds for search in ended) if ended else None
                status, held = node.status(), self._book.compare(node)
                seen.append((now, node.node_id, self._phase, *held, slowest, status["redis"], status["batch"]))
            self._sampled += seen  # at once, so that a reader of the timeline sees all nodes or none

    def __repr__(self) -> str:
        return f"Experiment({self.fault.name!r}, {self._phase}, {len(self._sampled)} samples)"

    def _repr_html_(self) -> str:
        facts = {
            "Fault": self.fault.what,
            "Policy": self.policy,
            "All agree": "not yet" if self.agreed is None else f"{self.agreed:.1f} s after the fault",
            "Charts with new words": f"{self.edits:,}, {self.embeddings:,} embeddings made",
            "Went backwards": f"{self.backwards:,} charts",
            "Searches that raised": f"{self.unanswered:,}",
            "Seen": f"{len(self._sampled):,} samples",
        }
        heading = f"{self.fault.name}: {self._phase}"
        return card(heading, facts, colour=DOUBTFUL if self.agreed is None else GOOD)


class _Book(NamedTuple):
    """What the repository holds. It is read after each edit, so that it is known while the repository is unreachable.

    since: when each chart got its present revision.
    """

    heads: Heads = Heads.of([])
    since: dict[int, tuple[int, float]] = {}  # noqa: RUF012 - never changed, as nothing here is

    def next(self, heads: Heads) -> _Book:
        now, since = time.monotonic(), {}
        for chart_id, revision in zip(heads.chart_ids.tolist(), heads.revisions.tolist(), strict=True):
            known = self.since.get(chart_id)
            since[chart_id] = known if known is not None and known[0] == revision else (revision, now)
        return _Book(heads, since)

    def compare(self, node: Node) -> Held:
        wrong = wrong_charts(node, self.heads, or_newer=True)
        oldest = min((self.since[chart_id][1] for chart_id in wrong.tolist()), default=None)
        staleness = 0.0 if oldest is None else time.monotonic() - oldest
        live = self.heads.chart_ids[~self.heads.deleted]
        return Held(1 - float(np.isin(live, wrong).mean()), len(wrong), staleness)


def _chart(chart_id: int, words: str) -> Chart:
    return Chart(chart_id=chart_id, title=f"{words}, product {chart_id}")


def _embeddings(lab: Lab) -> int:
    return sum(node.context.metrics["embeddings"] for node in lab.nodes)


def _at_rest(nodes: list[Node]) -> bool:
    return not any(status["owes_rebuild"] or status["batch"] for status in (node.status() for node in nodes))


def _rebuild(node: Node) -> None:
    try:
        node.rebuild()
    except (OSError, RepositoryError) as error:  # as they were told to
        node.journal.note("rebuild_raised", repr(error))


# --- the study ----------------------------------------------------------------------------------------------------


def recovery(
    faults: Sequence[str] = STUDIED,
    policies: Sequence[str] = tuple(POLICIES),
    *,
    nodes: int = 3,
    charts: int = 60,
    lasts: float = 1.2,
    limit: float = 30.0,
    written_limit: float = 4.0,
    jobs: int = 1,
    seed: int = 0,
    progress: bool = True,
) -> pl.DataFrame:
    """Try every fault under every policy, and note what happens moment by moment; `summary` makes one row of each.

    Parameters:
        faults: names of `copilotlab.lab.faults.FAULTS` (all but those of data and peers).
        policies: names of `POLICIES` (both).
        nodes, charts, lasts, limit, seed: see `Experiment` (3, 60, 1.2 s, 30 s, 0).
        written_limit: the limit for the written design, which does nothing by itself after that time (4 s).
        jobs: experiments at the same time (1). With more, searches in one delay those in another; with more than the
            machine bears, a fault lasts longer than `adopt_after`, and what a lost node made is rightly made again.
        progress: show a bar.

    Returns:
        A row for each experiment, look and node. fault; policy; scope, see `copilotlab.lab.faults`; seconds since the
        fault began, below 0 before it; node; phase: "before", "fault", "after"; coverage, wrong, staleness: see `Held`;
        search_ms: the slowest search that ended since the last look, null if none did; redis: "connected" or "away";
        batch: how far the node is with one. Of the whole experiment: agreed_after: seconds from the end of the fault
        until all nodes agreed with the repository, null if not within the limit; edits: charts with new words;
        embeddings: made for them; backwards: charts that a node held at an older revision than before, or again after
        their deletion; unanswered: searches that raised.

    Raises ValueError for an unknown fault or policy, for jobs below 1, and as `Experiment` does.
    """
    for given, known, what in ((faults, FAULTS, "faults"), (policies, POLICIES, "policies")):
        if not given or any(name not in known for name in given):
            raise ValueError(f"{what}={list(given)!r}: expected names of {', '.join(known)}")
    if jobs < 1:
        raise ValueError(f"jobs={short(jobs)}: expected at least 1")
    pairs = [(fault, policy) for fault in faults for policy in policies]
    pool = ThreadPoolExecutor(jobs)
    try:
        running: list[Future[pl.DataFrame]] = []
        for fault, name in pairs:
            patience = limit if name == "Policy()" else written_limit
            measure = partial(_experiment, fault, POLICIES[name], nodes=nodes, charts=charts, lasts=lasts, seed=seed)
            within: Callable[[], pl.DataFrame] = partial(measure, limit=patience)
            running.append(pool.submit(copy_context().run, within))
        seen: list[pl.DataFrame] = []
        bar = tqdm(zip(pairs, running, strict=True), desc="recovery", total=len(pairs), disable=not progress)
        for (_, name), experiment in bar:
            seen.append(experiment.result().with_columns(policy=pl.lit(name)))
    finally:
        pool.shutdown(cancel_futures=True)
    return pl.concat(seen).select("fault", "policy", pl.exclude("fault", "policy"))


def summary(seen: pl.DataFrame) -> pl.DataFrame:
    """Sum up what `recovery` returned: one row for each fault and policy, in its order.

    fault; policy; scope; agreed_after, edits, embeddings, backwards, unanswered: as there; wrong: charts held otherwise
    than the repository at the end, all nodes together; lowest_coverage; longest_staleness (s); search_p50_ms,
    search_max_ms: median and maximum of the slowest searches of each look, since the fault began.
    """
    at_the_end = pl.col("seconds") == pl.col("seconds").max()
    searched = pl.col("search_ms").filter(pl.col("phase") != "before")
    constant = ("scope", "agreed_after", "edits", "embeddings", "backwards", "unanswered")
    return seen.group_by("fault", "policy", maintain_order=True).agg(
        *(pl.col(name).first() for name in constant),
        wrong=pl.col("wrong").filter(at_the_end).sum(),
        lowest_coverage=pl.col("coverage").min(),
        longest_staleness=pl.col("staleness").max(),
        search_p50_ms=searched.median(),
        search_max_ms=searched.max(),
    )


@cached(version=2)
def _experiment(
    fault: str, policy: Policy, *, nodes: int, charts: int, lasts: float, limit: float, seed: int
) -> pl.DataFrame:
    experiment = Experiment(fault, policy, nodes=nodes, charts=charts, lasts=lasts, limit=limit, seed=seed)
    experiment.run()
    return experiment.timeline()
