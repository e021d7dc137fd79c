"""A node's metrics for Prometheus: `Node.collector` gives one to register where the application's own metrics are.

    from prometheus_client import REGISTRY
    REGISTRY.register(node.collector())

What is counted or timed is heard as a listener; all else is asked of the node when it is scraped. Each series has the
labels namespace, node and model. Names follow Prometheus' conventions: base units (seconds, bytes), ``_total`` for
counters. Needs prometheus_client: ``pip install 'copilotlab[serve]'``.
"""

from __future__ import annotations

import platform
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from copilotlab.lifetime import renewed_by_fork
from copilotlab.monitoring.alerts import CONDITIONS, Alert
from copilotlab.monitoring.happenings import (
    BatchEnded,
    ConnectionBack,
    Deleted,
    Happening,
    NotSaid,
    Said,
    Searched,
    TransferEnded,
    Updated,
)
from copilotlab.monitoring.vitals import Vitals

WHO = ("namespace", "node", "model")
SEARCH_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
BATCH_SECONDS = (0.1, 0.5, 1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
INDEX_STATES = ("exact", "graph", "building")

COUNTED: dict[str, tuple[str, str]] = {
    # the metric, without _total: the node's counter, and what it is
    "copilotlab_redis_outages": ("outages", "Outages of Redis, as this node has seen them."),
    "copilotlab_redis_refusals": ("refusals", "Times that Redis was there and forbade what a node must do."),
    "copilotlab_redis_memory_losses": ("memory_losses", "Times that Redis was found to have lost its keys."),
    "copilotlab_published_bytes": ("bytes_published", "Bytes of events and pages sent."),
    "copilotlab_pages_refused": ("pages_refused", "Pages that Redis refused for their size."),
    "copilotlab_events_received": ("received", "Messages that arrived, of whatever kind."),
    "copilotlab_event_gaps": ("gaps", "Times that an event of another node was found to be missed."),
    "copilotlab_charts_applied": ("applied", "Charts that changed here by news of others or of the repository."),
    "copilotlab_digests_differed": ("digests_differed", "Times that a peer held something else for a heartbeat."),
    "copilotlab_reconciliations": ("reconciliations", "Comparisons with a peer that were begun."),
    "copilotlab_chunks_missed": ("chunks_missed", "Chunks of batches that were gone before they were fetched."),
    "copilotlab_fetched_bytes": ("bytes_fetched", "Bytes of pages read that other nodes put into Redis."),
    "copilotlab_batches_taken_over": ("batches_taken_over", "Batches begun on a lease that its holder left behind."),
    "copilotlab_batches_fenced": ("fenced", "Batches ended because the lease was another's."),
    "copilotlab_embeddings": ("embeddings", "Vectors made by the model for charts."),
    "copilotlab_embeddings_wasted": ("embeddings_wasted", "Vectors made that the store had no use for."),
    "copilotlab_truncated_charts": ("truncated", "Charts embedded whose text is longer than the model reads."),
    "copilotlab_searches": ("searches", "Queries answered."),
    "copilotlab_details_missing": ("details_missing", "Charts found that could not be described in time."),
    "copilotlab_repository_failures": ("repository_away", "Looks that the repository did not answer."),
    "copilotlab_repository_compared_anew": ("compared_anew", "Times that the whole catalogue was compared anew."),
    "copilotlab_steps_failed": ("steps_failed", "Steps of background threads that raised an unknown error."),
    "copilotlab_sleeps": ("sleeps", "Times that the process did not run for longer than others wait."),
}

ASKED: dict[str, tuple[str, Callable[[Vitals], float | None]]] = {
    # the metric: what it is, and its value; None leaves it out
    "copilotlab_redis_up": ("1 while Redis answers, 0 while it is away or refuses.", lambda v: v.redis == "connected"),
    "copilotlab_redis_refused": ("1 while Redis forbids what a node must do.", lambda v: v.redis == "refused"),
    "copilotlab_redis_away_seconds": ("How long Redis has been away; 0 while it is there.", lambda v: v.away_for),
    "copilotlab_last_event_age_seconds": ("Since the last message was heard.", lambda v: v.last_event),
    "copilotlab_charts": ("Charts whose vectors are here.", lambda v: v.charts),
    "copilotlab_store_bytes": ("Bytes of vectors in memory.", lambda v: v.store_bytes),
    "copilotlab_store_digest": (
        "The digest of the store, its first 48 bits as a number: equal where nodes hold the same.",
        lambda v: int(v.digest[:12], 16),
    ),
    "copilotlab_repository_revision": ("The repository's revision at the last look.", lambda v: v.read_to),
    "copilotlab_complete_revision": ("The revision up to which all is here.", lambda v: v.complete_to),
    "copilotlab_behind_revisions": ("Revisions behind the repository.", lambda v: v.read_to - v.complete_to),
    "copilotlab_behind_charts": ("Charts of the repository that are missing here.", lambda v: v.behind_charts),
    "copilotlab_behind_seconds": ("Since the first missing chart was seen.", lambda v: v.behind_seconds),
    "copilotlab_last_look_age_seconds": ("Since the repository was last read.", lambda v: v.last_look),
    "copilotlab_last_full_sync_timestamp_seconds": (
        "When all of the repository was last compared and here, in Unix time.",
        lambda v: None if v.last_full_sync is None else time.time() - v.last_full_sync,
    ),
    "copilotlab_batch_running": ("1 while this node drives a batch.", lambda v: v.batch is not None),
    "copilotlab_batch_charts": (
        "Charts of the batch that this node drives.",
        lambda v: v.batch.total if v.batch else None,
    ),
    "copilotlab_batch_charts_done": ("Charts of it that are done.", lambda v: v.batch.done if v.batch else None),
    "copilotlab_batch_age_seconds": ("Since that batch began.", lambda v: v.batch.seconds if v.batch else None),
    "copilotlab_batch_expected_seconds": (
        "How long it takes in all, by this node's own estimate.",
        lambda v: v.batch.expected if v.batch else None,
    ),
    "copilotlab_lease_held": ("1 while this node holds the lease.", lambda v: v.batch is not None and v.batch.leased),
    "copilotlab_skipped_charts": ("Charts that are left out.", lambda v: v.skipped),
    "copilotlab_search_recall_ratio": ("Share of the right answers, where searches are not exact.", lambda v: v.recall),
    "copilotlab_peers": (
        "Other nodes heard within three heartbeats.",
        lambda v: sum(peer.silent_for <= 3 * v.heartbeat_interval for peer in v.peers),
    ),
}


class Buckets:
    """A histogram that costs a microsecond to add to. bounds: the upper bounds of its buckets, growing."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._lock = threading.Lock()

    def add(self, value: float) -> None:
        """Count one value."""
        place = bisect_left(self._bounds, value)
        with self._lock:
            self._counts[place] += 1
            self._sum += value

    def read(self) -> tuple[list[tuple[str, float]], float]:
        """Return (upper bound, how many up to it) for each bucket, as Prometheus has it, and the sum."""
        with self._lock:
            counts, total = list(self._counts), self._sum
        so_far, read = 0, []
        for bound, count in zip((*map(str, self._bounds), "+Inf"), counts, strict=True):
            so_far += count
            read.append((bound, float(so_far)))
        return read, total


class NodeCollector(Collector):
    """One node's metrics. `Node.collector` makes it, and has it told of all that happens.

    vitals: returns the node's vitals, one for each model it holds vectors of, the one that it answers with first; none
    once the node is gone. alerts: returns those that are raised.
    """

    def __init__(self, vitals: Callable[[], list[Vitals]], alerts: Callable[[], list[Alert]]) -> None:
        self._vitals = vitals
        self._alerts = alerts
        self.after_fork()
        renewed_by_fork(self)

    def after_fork(self) -> None:
        """Begin anew: in a forked child the node is another one."""
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, ...]] = Counter()
        self._away_seconds = 0.0
        self._search = Buckets(SEARCH_SECONDS)
        self._batches: dict[str, Buckets] = {kind: Buckets(BATCH_SECONDS) for kind in ("rebuild", "sync")}

    def __call__(self, happening: Happening) -> None:
        """Count what the node's own counters do not tell apart; this makes it a listener."""
        match happening:
            case Searched():
                self._search.add(happening.seconds)
            case Said():
                self._count("said", happening.event)
            case NotSaid():
                self._count("not_said", happening.event)
            case Updated():
                self._count("change", "update", happening.outcome)
            case Deleted():
                self._count("change", "delete", happening.outcome)
            case TransferEnded():
                self._count("transfers")
                self._count("transferred", by=happening.records)
            case BatchEnded():
                self._count("batch", happening.kind, happening.outcome)
                self._count("reused", by=happening.reused)
                self._batches[happening.kind].add(happening.seconds)
            case ConnectionBack():
                with self._lock:
                    self._away_seconds += happening.seconds

    def _count(self, *what: str, by: int = 1) -> None:
        with self._lock:
            self._counts[what] += by

    def collect(self) -> Iterator[Metric]:
        """Give all metrics as they are now; none once the node is gone."""
        models = self._vitals()
        if not models:
            return
        with self._lock:
            heard, away_seconds = Counter(self._counts), self._away_seconds
        now = models[0]
        who = _who(now)
        yield _build_info()
        for name, (help_, value) in ASKED.items():
            yield _gauge(name, help_, [(_who(v), value(v)) for v in models])
        for name, (counter, help_) in COUNTED.items():
            yield _counter(name, help_, [(who, now.counts.get(counter, 0))])
        away = away_seconds + (now.away_for if now.redis != "connected" else 0.0)
        yield _counter("copilotlab_redis_downtime_seconds", "Seconds without Redis, in all.", [(who, away)])
        yield from self._told_apart(heard, who)
        yield _dropped(now, who)
        states = [((*_who(v), state), v.index == state) for v in models for state in INDEX_STATES]
        yield _gauge("copilotlab_index_state", "1 for how searches are answered now.", states, [*WHO, "state"])
        active = {alert.name for alert in self._alerts()}
        alerts = [((*who, condition.name, condition.severity), condition.name in active) for condition in CONDITIONS]
        yield _gauge("copilotlab_alert_active", "1 while this alert is raised.", alerts, [*WHO, "alert", "severity"])
        yield _histogram("copilotlab_search_duration_seconds", "Seconds of one search call.", [(who, self._search)])
        batches = [((*who, kind), buckets) for kind, buckets in self._batches.items()]
        yield _histogram("copilotlab_batch_duration_seconds", "Seconds of one batch.", batches, [*WHO, "kind"])

    def _told_apart(self, heard: Counter[tuple[str, ...]], who: tuple[str, ...]) -> Iterator[Metric]:
        def rows(kind: str) -> list[tuple[tuple[str, ...], int]]:
            return [((*who, *what[1:]), count) for what, count in sorted(heard.items()) if what[0] == kind]

        said, failed = rows("said"), rows("not_said")
        by_event = [*WHO, "event"]
        tried: Counter[tuple[str, ...]] = Counter()
        for labels, count in (*said, *failed):
            tried[labels] += count
        yield _counter("copilotlab_publications", "Events tried to send.", sorted(tried.items()), by_event)
        yield _counter("copilotlab_publications_failed", "Events not sent: Redis is away.", failed, by_event)
        by_outcome = [*WHO, "change", "outcome"]
        yield _counter("copilotlab_changes", "Changes made on this node.", rows("change"), by_outcome)
        yield _counter("copilotlab_batches", "Batches ended.", rows("batch"), [*WHO, "kind", "outcome"])
        one = (
            ("copilotlab_embeddings_reused", "reused", "Vectors that batches kept, since their words were the same."),
            ("copilotlab_transfers", "transfers", "Transfers from a peer that came or were given up."),
            ("copilotlab_transfer_records", "transferred", "Records that the store took in from transfers."),
        )
        for name, kind, help_ in one:
            yield _counter(name, help_, [(who, heard[(kind,)])])

    def __repr__(self) -> str:
        return f"NodeCollector({', '.join(v.node for v in self._vitals()) or 'of a node that is gone'})"


def _who(vitals: Vitals) -> tuple[str, ...]:
    return vitals.namespace, vitals.node, vitals.model


def _build_info() -> Metric:
    from copilotlab import __version__

    family = GaugeMetricFamily("copilotlab_build_info", "1; which copilotlab this is.", labels=["version", "python"])
    family.add_metric([__version__, platform.python_version()], 1)
    return family


Rows = Sequence[tuple[Sequence[str], float | None]]


def _gauge(name: str, help_: str, rows: Rows, labels: Sequence[str] = WHO) -> Metric:
    family = GaugeMetricFamily(name, help_, labels=labels)
    for values, value in rows:
        if value is not None:
            family.add_metric(values, float(value))
    return family


def _counter(name: str, help_: str, rows: Rows, labels: Sequence[str] = WHO) -> Metric:
    family = CounterMetricFamily(name, help_, labels=labels)
    for values, count in rows:
        family.add_metric(values, float(count or 0))
    return family


def _histogram(
    name: str, help_: str, rows: Sequence[tuple[Sequence[str], Buckets]], labels: Sequence[str] = WHO
) -> Metric:
    family = HistogramMetricFamily(name, help_, labels=labels)
    for values, buckets in rows:
        family.add_metric(values, *buckets.read())
    return family


def _dropped(now: Vitals, who: tuple[str, ...]) -> Metric:
    kinds = {name.removeprefix("dropped_"): n for name, n in now.counts.items() if name.startswith("dropped_")}
    rows = [((*who, kind), count) for kind, count in sorted(kinds.items())]
    return _counter("copilotlab_events_dropped", "What arrived and was not accepted.", rows, [*WHO, "reason"])
