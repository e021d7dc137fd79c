"""Alerts: what is wrong on a node for longer than it should be, since when, by what evidence, and what to do.

    node.alerts.thresholds = Thresholds(redis_away=30)
    node.listen_to(lambda happening: page_somebody(happening) if isinstance(happening, AlertRaised) else None)
    node.alerts.active()

`CONDITIONS` are pure functions of a node's `Vitals`. `Alerts` turns them into alerts with a beginning and an end: one
is raised when its condition has held for long enough, and ends by itself when the condition has been gone for a while,
so that one that comes and goes is one alert. Both are told to the node's listeners, and so to the log.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from math import isfinite
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from copilotlab.monitoring.happenings import AlertEnded, AlertRaised, Happening
from copilotlab.monitoring.vitals import Vitals
from copilotlab.reasons import short

Severity = Literal["warning", "critical"]
Evidence = Mapping[str, str | int | float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """How long each condition may last before it is an alert; seconds, but for two.

    redis_away       an outage, or a refusal (10)
    repository_away  no answer of the repository (10)
    behind           something of the repository is missing here (60)
    node_silent      a node that was heard before says nothing (10)
    node_forgotten   after so long, a node that says nothing was taken away on purpose: its alert ends (600)
    batch_factor     so many times its own estimate may a batch take (2.0, a number), and
    batch_slack      so many seconds more (10)
    batch_unknown    how long a batch may take before it has an estimate (300)
    differ_beats     how many heartbeats two stores may differ at one revision of the repository (2, a number)
    recent           how long after the last event of a namesake or another catalogue it counts as there (5)
    calm             how long a condition must be gone before its alert ends (5)

    Raises ValueError for what is not a finite number above 0.
    """

    redis_away: float = 10.0
    repository_away: float = 10.0
    behind: float = 60.0
    node_silent: float = 10.0
    node_forgotten: float = 600.0
    batch_factor: float = 2.0
    batch_slack: float = 10.0
    batch_unknown: float = 300.0
    differ_beats: float = 2.0
    recent: float = 5.0
    calm: float = 5.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not (isfinite(value) and value > 0):
                raise ValueError(f"Thresholds({field.name}={short(value)}): expected a number above 0, and finite")


class Finding(NamedTuple):
    """A condition that holds now.

    held: seconds for which it is known to have held, 0.0 where only looking again will tell; after: seconds that it has
    to hold before it is an alert; subject: where this changes, it is another finding, and has to hold anew.
    """

    held: float
    after: float
    evidence: Evidence
    subject: object = ""


class Timed(Protocol):
    """What conditions look at. at: when, in seconds."""

    @property
    def at(self) -> float: ...


class Condition(NamedTuple):
    """Something that can be wrong. find: looks at a node's `Vitals`, or at what else has its time in ``at``; remedy:
    what whoever runs the node does about it."""

    name: str
    severity: Severity
    find: Callable[[Any, Thresholds], Finding | None]
    remedy: str


class Alert(msgspec.Struct, frozen=True):
    """One alert. since: when its condition began, on the node's clock; times: how often it came back meanwhile."""

    name: str
    severity: str
    since: float
    evidence: Evidence
    remedy: str
    times: int = 1

    @property
    def told(self) -> str:
        """The evidence in a line."""
        return ", ".join(f"{name} {_short(value)}" for name, value in self.evidence.items())

    def as_dict(self, now: float) -> dict[str, object]:
        """Return it in plain values; ``seconds``: for how long it has lasted."""
        return {
            "name": self.name,
            "severity": self.severity,
            "since": self.since,
            "seconds": now - self.since,
            "times": self.times,
            "evidence": self.told,
            "remedy": self.remedy,
        }


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# --- what can be wrong ------------------------------------------------------------------------------------------------


def _redis_away(now: Vitals, limit: Thresholds) -> Finding | None:
    if now.redis == "connected" or now.state == "stopped":
        return None
    evidence: Evidence = {
        "away_seconds": now.away_for,
        "state": now.redis,
        "address": now.redis_address,
        "reason": now.redis_reason,
    }
    return Finding(now.away_for, limit.redis_away, evidence)


def _batch_slow(now: Vitals, limit: Thresholds) -> Finding | None:
    batch = now.batch
    if batch is None:
        return None
    unknown = batch.expected is None
    longest = limit.batch_unknown if unknown else limit.batch_factor * (batch.expected or 0.0) + limit.batch_slack
    if batch.seconds < longest:
        return None
    expected = "unknown" if batch.expected is None else batch.expected
    evidence: Evidence = {
        "seconds": batch.seconds,
        "expected_seconds": expected,
        "done": batch.done,
        "total": batch.total,
    }
    return Finding(batch.seconds - longest, 0.0, evidence)


def _stores_differ(now: Vitals, limit: Thresholds) -> Finding | None:
    differ = [peer for peer in now.peers if peer.differs is not None]
    if not differ:
        return None
    first = differ[0]
    evidence: dict[str, str | int | float] = {
        "nodes": ", ".join(peer.node for peer in differ),
        "revision": now.complete_to,
        "charts_here": now.charts,
        "charts_there": first.charts,
        "digest_here": now.digest[:8],
        "digest_there": first.differs[0][:8] if first.differs else "",
    }
    subject = tuple((peer.node, peer.differs) for peer in differ)
    return Finding(0.0, limit.differ_beats * now.heartbeat_interval, evidence, subject)


def _repository_away(now: Vitals, limit: Thresholds) -> Finding | None:
    if not now.repository_trouble:
        return None
    failed = now.counts.get("repository_away", 0)
    evidence = {"seconds_without_answer": now.repository_trouble, "looks_failed_so_far": failed}
    return Finding(now.repository_trouble, limit.repository_away, evidence)


def _node_silent(now: Vitals, limit: Thresholds) -> Finding | None:
    if now.redis != "connected":
        return None  # then nobody is heard, and that is another alert
    silent = [peer for peer in now.peers if limit.node_silent <= peer.silent_for < limit.node_forgotten]
    if not silent:
        return None
    longest = max(peer.silent_for for peer in silent)
    evidence: Evidence = {"nodes": ", ".join(sorted(peer.node for peer in silent)), "silent_seconds": longest}
    return Finding(longest, limit.node_silent, evidence)


def _embedder_failing(now: Vitals, _limit: Thresholds) -> Finding | None:
    if not (now.embedder_trouble and now.behind_charts):  # what a batch here failed on, another node may have made
        return None
    return Finding(0.0, 0.0, {"error": now.embedder_trouble, "charts_missing": now.behind_charts})


def _charts_skipped(now: Vitals, _limit: Thresholds) -> Finding | None:
    return Finding(0.0, 0.0, {"charts": now.skipped, "example": now.skipped_example}) if now.skipped else None


def _behind(now: Vitals, limit: Thresholds) -> Finding | None:
    if not now.behind_charts:
        return None
    evidence = {
        "charts": now.behind_charts,
        "revisions": now.read_to - now.complete_to,
        "seconds": now.behind_seconds,
        "complete_to": now.complete_to,
    }
    return Finding(now.behind_seconds, limit.behind, evidence)


def _seen(*kinds: str) -> Callable[[Vitals, Thresholds], Finding | None]:
    def find(now: Vitals, limit: Thresholds) -> Finding | None:
        ages = [now.recent[kind] for kind in kinds if kind in now.recent]
        if not ages or min(ages) > limit.recent:
            return None
        events = sum(now.counts.get(f"dropped_{kind}", 0) for kind in kinds)
        return Finding(0.0, 0.0, {"events_dropped": events, "seconds_since_the_last": min(ages)})

    return find


CONDITIONS: tuple[Condition, ...] = (
    Condition(
        "redis_away",
        "warning",
        _redis_away,
        "Searches and edits go on. See whether the server runs and can be reached from here, and what the reason says; "
        "do not restart nodes: they come back by themselves.",
    ),
    Condition(
        "batch_slow",
        "warning",
        _batch_slow,
        "See whether the model's process or the database hangs or is short of CPU. The lease passes on by itself when "
        "its holder makes no progress for batch_timeout; stopping the node gives it back at once.",
    ),
    Condition(
        "stores_differ",
        "critical",
        _stores_differ,
        "Run sync() on the nodes that are named: it compares all with the repository. If they differ again, look for "
        "transfers that do not arrive (pages refused, chunks missed) and keep both journals.",
    ),
    Condition(
        "repository_away",
        "critical",
        _repository_away,
        "Searches go on, without new titles; edits raise. See whether the database runs and what it waits for; the "
        "journal has its words (repository away).",
    ),
    Condition(
        "node_silent",
        "warning",
        _node_silent,
        "See whether that process lives and reaches Redis. If it was taken away on purpose, nothing is to be done: "
        "the alert ends by itself.",
    ),
    Condition(
        "embedder_failing",
        "critical",
        _embedder_failing,
        "New and changed charts are not found until the model works. The error says what it raised; the batch is tried "
        "again by itself.",
    ),
    Condition(
        "charts_skipped",
        "warning",
        _charts_skipped,
        "Node.skipped() lists them with the reason. Mend the row or the text in the repository: it comes in by itself.",
    ),
    Condition(
        "behind",
        "warning",
        _behind,
        "See whether a batch is under way, who holds the lease, and whether the model keeps up with the edits.",
    ),
    Condition(
        "namesakes",
        "critical",
        _seen("namesake"),
        "Two nodes were given one node_id and do not hear each other: give each its own, or none.",
    ),
    Condition(
        "second_catalogue",
        "warning",
        _seen("foreign_catalogue", "copy"),
        "Nodes of another catalogue, or of a restored copy, use this Redis: give each cluster a namespace of its own. "
        "Nothing of theirs is taken in here.",
    ),
)


# --- from conditions to alerts ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Case:
    """One condition that was found: since when, and when it was last seen. alert: None until it has held for long."""

    since: float
    seen: float
    subject: object
    alert: Alert | None = None
    gone: bool = False


class Alerts:
    """The alerts of one node, or of whatever is looked at.

    Safe for threads; `look` is to be called now and then, with what is so at that moment.
    tell: is given an `AlertRaised` or `AlertEnded` for each that begins or ends. conditions: what can be wrong; those
    of a node by default.
    """

    def __init__(
        self,
        tell: Callable[[Happening], object],
        thresholds: Thresholds | None = None,
        conditions: Sequence[Condition] = CONDITIONS,
    ) -> None:
        self._conditions = conditions
        self.thresholds = thresholds or Thresholds()
        """When a condition is an alert; may be set at any time, and counts from the next look."""
        self._tell = tell
        self._cases: dict[str, _Case] = {}
        self._lock = threading.Lock()
        self._raised: dict[str, Alert] = {}  # replaced as a whole, so that readers take no lock

    def active(self) -> list[Alert]:
        """List the alerts that are raised, the oldest first."""
        return sorted(self._raised.values(), key=lambda alert: alert.since)

    def look(self, vitals: Timed) -> None:
        """Raise what has become an alert, and end what is over."""
        news: list[Happening] = []
        with self._lock:
            for condition in self._conditions:
                news += self._judge(condition, condition.find(vitals, self.thresholds), vitals.at)
            self._raised = {name: case.alert for name, case in self._cases.items() if case.alert is not None}
        for happening in news:  # not under the lock: a listener may ask what is active
            self._tell(happening)

    def _judge(self, condition: Condition, finding: Finding | None, now: float) -> list[Happening]:
        name, case = condition.name, self._cases.get(condition.name)
        if finding is None:
            if case is not None and case.alert is None:
                del self._cases[name]
            elif case is not None and case.alert is not None:
                case.gone = True
                if now - case.seen >= self.thresholds.calm:
                    del self._cases[name]
                    return [AlertEnded(name, case.seen - case.since)]
            return []
        if case is None or (case.alert is None and case.subject != finding.subject):
            case = self._cases[name] = _Case(now, now, finding.subject)
        case.seen = now
        if case.alert is None:
            case.since = min(case.since, now - finding.held)
            if now - case.since < finding.after:
                return []
            case.alert = Alert(name, condition.severity, case.since, finding.evidence, condition.remedy)
            return [AlertRaised(name, condition.severity, case.alert.told, condition.remedy)]
        times, case.gone = case.alert.times + case.gone, False
        case.alert = msgspec.structs.replace(case.alert, evidence=finding.evidence, times=times)
        return []

    def __repr__(self) -> str:
        return f"Alerts({', '.join(alert.name for alert in self.active()) or 'none'})"
