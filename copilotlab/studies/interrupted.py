"""One rebuild that is interrupted, on simulated nodes or on real ones, and what readers notice of it.

A catalogue is imported while Redis is away. Redis comes back empty, an edit begins the rebuild, edits go on, and at
some moment the node that holds the lease dies, freezes for a while, or its model hangs for a while.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal, Protocol

import numpy as np
import polars as pl

from copilotlab.charts import ChartRepository
from copilotlab.embedding import load_embedder
from copilotlab.lab.agreement import agree
from copilotlab.lab.fragile_model import FragileModel
from copilotlab.lab.gate import Gate
from copilotlab.lab.lab import Lab
from copilotlab.lab.simulated_lab import SimulatedLab, simulated_chart, simulated_charts
from copilotlab.node import Node
from copilotlab.protocol.policy import Policy
from copilotlab.studies.result_cache import cached

Fate = Literal["none", "dies", "freezes", "hangs"]

EDITS = 10  # in the time that the rebuild or the lease takes, whichever is longer


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What happens.

    policy: of all nodes. rebuild: seconds that it takes to embed the whole catalogue. pieces: charts that stand for the
    catalogue; each takes its share of the rebuild. fate: what happens to the holder of the lease: nothing, or it dies,
    freezes, or its model hangs while it still beats. moment: when, as a fraction of the rebuild; a rebuild that has
    ended by then is spared. frozen_for: seconds for which it freezes or its model hangs. tick: seconds between two
    looks. patience: seconds within which the nodes must agree once each has every chart; what differs then counts as
    lost. limit: seconds until each has every chart. nodes: how many. seed: of when who edits what.
    """

    policy: Policy
    rebuild: float
    pieces: int = 144
    fate: Fate = "none"
    moment: float = 0.5
    frozen_for: float = 120.0
    tick: float = 1.0
    patience: float = 300.0
    limit: float = 10_800.0
    nodes: int = 3
    seed: int = 0


class Cluster(Protocol):
    """What a case needs of a lab."""

    @property
    def charts(self) -> ChartRepository: ...
    @property
    def nodes(self) -> list[Node]: ...
    @property
    def living(self) -> list[Node]: ...
    def now(self) -> float: ...
    def run(self, seconds: float) -> None: ...
    def stop_redis(self) -> None: ...
    def start_redis(self) -> None: ...
    def freeze(self, index: int) -> None: ...
    def resume(self, index: int) -> None: ...
    def hang(self, index: int) -> None: ...
    def mend(self, index: int) -> None: ...
    def kill(self, index: int) -> None: ...
    def agree(self) -> bool: ...
    def timeline(self) -> pl.DataFrame: ...


class Simulated(SimulatedLab):
    """Nodes on a simulated server, with time under control."""

    def now(self) -> float:
        return self.clock.now()

    def stop_redis(self) -> None:
        self.redis.stop()

    def start_redis(self) -> None:
        self.redis.start(keep_data=False)


class Real(Lab):
    """Nodes with threads, on a real server."""

    def now(self) -> float:
        return time.monotonic()

    def run(self, seconds: float) -> None:
        time.sleep(seconds)

    def stop_redis(self) -> None:
        self.redis.kill()

    def start_redis(self) -> None:
        self.redis.start(keep_data=False)

    def hang(self, index: int) -> None:
        self._gate.hang_once()  # only the holder embeds a batch

    def mend(self, index: int) -> None:
        self._gate.mend()

    @property
    def _gate(self) -> Gate:
        model = self.embedder
        assert isinstance(model, FragileModel)
        return model.gate

    def agree(self) -> bool:
        return agree(self.living, self.charts)


@cached(version=1)
def simulated(case: Case) -> pl.DataFrame:
    """Play a case on a simulated server, with time under control: one row with the columns of `Seen`."""
    model = FragileModel(load_embedder("hash"), seed=case.seed)
    cluster = Simulated(
        case.nodes, case.policy, embedder=model, seconds_per_text=case.rebuild / case.pieces, tick=case.tick
    )
    return pl.DataFrame([asdict(_Trial(case, cluster, model).play())], schema_overrides=_NULLABLE)


@cached(version=1)
def real(case: Case) -> pl.DataFrame:
    """Play a case with threads, on a real server, in real time: one row with the columns of `Seen`."""
    model = FragileModel(load_embedder("hash"), pace=case.rebuild / case.pieces)
    with Real(case.nodes, model, policy=case.policy) as cluster:
        return pl.DataFrame([asdict(_Trial(case, cluster, model).play())], schema_overrides=_NULLABLE)


@dataclass(frozen=True, slots=True)
class Seen:
    """What came of a case. Seconds are counted from the beginning of the rebuild.

    complete: until every living node has every chart, at whatever revision; None if that never came.
    recovery: until all living nodes hold what the repository holds; None if they never did.
    staleness: the longest time from the saving of a chart until every living node had it; None if one never did.
    lost: edits that some living node did not have in the end. edits: how many there were.
    wasted: embeddings beyond the first of each text, as a multiple of a whole rebuild. second_holders: batches that
    began after the first one, before every living node had every chart. beside: seconds in which two nodes worked on
    batches at the same time. lasted: how long the whole case took, with the time before the rebuild.
    """

    complete: float | None
    recovery: float | None
    staleness: float | None
    lost: int
    edits: int
    wasted: float
    second_holders: int
    beside: float
    lasted: float


_NULLABLE = {"complete": pl.Float64, "recovery": pl.Float64, "staleness": pl.Float64}


@dataclass(slots=True)
class _Edit:
    chart_id: int
    revision: int
    saved: float
    found: float | None = None


class _Trial:
    def __init__(self, case: Case, cluster: Cluster, model: FragileModel) -> None:
        self._case = case
        self._cluster = cluster
        self._model = model
        self._lots = np.random.default_rng(case.seed)
        self._chosen = self._charts_to_edit()
        self._edits: list[_Edit] = []
        self._beside = 0.0
        self._stuck: int | None = None  # the node that is frozen, or whose model hangs

    def play(self) -> Seen:
        case, cluster = self._case, self._cluster
        came = cluster.now()
        before = self._begin_rebuild()
        began = cluster.now()
        whole = self._until_whole(began)
        complete = cluster.now() - began if whole else None
        batches = self._batches() - before
        agreed = self._until_agreed() if whole else None
        self._look()
        waits = [edit.found - edit.saved for edit in self._edits if edit.found is not None]
        lost = len(self._edits) - len(waits)
        return Seen(
            complete=complete,
            recovery=None if agreed is None else agreed - began,
            staleness=None if lost else max(waits),
            lost=lost,
            edits=len(self._edits),
            wasted=sum(count - 1 for count in self._model.made.values()) / case.pieces,
            second_holders=batches - 1,
            beside=self._beside,
            lasted=cluster.now() - came,
        )

    def _begin_rebuild(self) -> int:
        """Import a catalogue in an outage, and begin the rebuild by an edit; return how many batches came before."""
        case, cluster = self._case, self._cluster
        noticed = 4 * max(case.policy.heartbeat_interval, case.policy.probe_interval)
        cluster.run(noticed)
        before = self._batches()
        cluster.stop_redis()
        cluster.charts.save_many(simulated_charts(case.pieces))
        cluster.run(noticed)
        cluster.start_redis()
        while not all(node.coordinator.connected for node in cluster.nodes):
            cluster.run(case.tick)
        self._edit(cluster.nodes[0])
        while not self._at_work():
            cluster.run(case.tick)
        return before

    def _until_whole(self, began: float) -> bool:
        """Edit, and let the holder meet its fate, until every living node has every chart; False at the limit."""
        case, cluster = self._case, self._cluster
        fate_at = began + case.moment * case.rebuild
        fate = case.fate
        over = began
        pause = max(case.rebuild, case.policy.batch_timeout) / EDITS
        next_edit = began + pause * self._lots.uniform(0.5, 1.5)
        while cluster.now() - began < case.limit:
            now = cluster.now()
            if fate != "none" and now >= fate_at and (workers := self._at_work()):
                if fate == "dies":
                    cluster.kill(workers[0])
                else:
                    self._stuck = workers[0]
                    (cluster.freeze if fate == "freezes" else cluster.hang)(self._stuck)
                    over = now + case.frozen_for
                fate = "none"
                next_edit = now  # the worst moment to save a chart
            if self._stuck is not None and now >= over:
                (cluster.resume if case.fate == "freezes" else cluster.mend)(self._stuck)
                self._stuck = None
            if self._stuck is None and (fate == "none" or now >= fate_at) and self._is_whole():
                return True
            if now >= next_edit:
                self._edit(cluster.living[self._lots.integers(len(cluster.living))])
                next_edit = now + pause * self._lots.uniform(0.5, 1.5)
            cluster.run(case.tick)
            self._look()
        return False

    def _until_agreed(self) -> float | None:
        case, cluster = self._case, self._cluster
        since = cluster.now()
        while not cluster.agree():
            if cluster.now() - since >= case.patience:
                return None
            cluster.run(case.tick)
            self._look()
        return cluster.now()

    def _edit(self, node: Node) -> None:
        chart_id = next(self._chosen)
        words = f"Edit {len(self._edits) + 1} of {chart_id}"  # short: a batch takes the shortest first
        saved = self._cluster.now()
        result = node.update_chart(simulated_chart(chart_id, words))
        self._edits.append(_Edit(chart_id, result.revision, saved))

    def _charts_to_edit(self) -> Iterator[int]:
        while True:
            yield from (self._lots.permutation(self._case.pieces) + 1).tolist()

    def _look(self) -> None:
        now = self._cluster.now()
        living = self._cluster.living
        for edit in self._edits:
            if edit.found is None and all((n.store.revision(edit.chart_id) or 0) >= edit.revision for n in living):
                edit.found = now
        if len(self._at_work()) > 1:
            self._beside += self._case.tick

    def _at_work(self) -> list[int]:
        """Return the indexes of the living nodes that have a batch and are able to work on it."""
        able = [(i, n) for i, n in enumerate(self._cluster.nodes) if n in self._cluster.living and i != self._stuck]
        return [index for index, node in able if node.status()["batch"]]

    def _is_whole(self) -> bool:
        return all(len(node.store) >= self._case.pieces for node in self._cluster.living)

    def _batches(self) -> int:
        return self._cluster.timeline().filter(pl.col("event") == "rebuild_started").height
