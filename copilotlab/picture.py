"""What a watcher of a cluster has heard of its nodes: who lives, how they are, what happened, the last hour.

Nothing here asks anybody: it is told of heartbeats and reports, and of the time at which they came. All is bounded.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from copilotlab.monitoring.agreement import Agreement
from copilotlab.monitoring.alerts import Condition, Evidence, Finding, Thresholds
from copilotlab.monitoring.journal import Entry
from copilotlab.protocol import events
from copilotlab.protocol.peers import ALIVE_BEATS

HOUR = 3600.0
SAMPLE = 10.0  # seconds between two samples of the history
MOST_SESSIONS = 256
MOST_ENTRIES = 2_000
MOST_SAMPLED = 50_000  # rows of the history
MOST_SPEAKERS = 64  # who are not believed, by the name that they claim
WATCHED = "cluster"  # whom the timeline names where it is nobody's in particular


class Row(NamedTuple):
    """One node as it was heard last.

    alive: whether it was heard of late, None while the watcher is cut off; state: as in `events.Report`, or
    "silent", or "not told" by a node that says no reports; connection: "connected", "silent", "left" or "unknown";
    lag: charts to come, None where it is not told; revision: of the repository, up to which it holds all; repository:
    the revision that it has seen there; heard: seconds ago; alerts: seconds of each as of now.
    """

    node: str
    alive: bool | None
    state: str
    connection: str
    digest: str
    charts: int
    revision: int
    repository: int
    catalogue: str
    lag: int | None
    skipped: int | None
    epoch: int | None
    outages: int | None
    batch: events.BatchTold | None
    alerts: tuple[events.AlertTold, ...]
    model: str
    version: str
    address: str
    uptime: float | None
    heard: float
    session: int
    interval: float

    @property
    def builds(self) -> bool:
        """Whether these are vectors of a model that does not answer yet."""
        return self.state == "building"

    @property
    def answers(self) -> bool:
        """Whether it lives, and answers with these vectors."""
        return self.alive is not False and not self.builds

    @property
    def complete(self) -> bool:
        """Whether it holds all that it has seen in the repository, as far as it tells."""
        return not self.lag and self.revision >= self.repository


class Lease(NamedTuple):
    """The lease of a batch, as it stands in Redis, where anybody can write it.

    holder: the node; epoch; seconds: for how long it was seen to be this one; alive: whether its session shows a sign
    of life, None where the lease has no session; value: as it stands there.
    """

    holder: str
    epoch: int
    seconds: float
    alive: bool | None
    value: str


class Overview(NamedTuple):
    """All that is known at one moment; what alerts are made of.

    at: when; cut_off: seconds for which nothing could be heard, 0.0 while connected; reason: of that; verified: whether
    the catalogue's key is at hand; recent: seconds since each kind of event was last dropped; counts: how many were;
    speakers: the names that those claim who are not believed, with what they speak of.
    """

    at: float
    cut_off: float
    reason: str
    verified: bool
    rows: tuple[Row, ...]
    recent: dict[str, float]
    counts: dict[str, int]
    speakers: dict[str, str]


@dataclass(slots=True)
class _Session:
    """One session of a node, by what it said last; times are the watcher's."""

    node: str
    session: int
    model: str
    heard: float
    beat: events.Heartbeat | None = None
    report: events.Report | None = None
    shown: str = ""  # the state that the timeline has told last
    told: dict[str, str] = field(default_factory=dict)  # alerts that the timeline has told


class Picture:
    """The nodes of one namespace, as heard. Safe for threads.

    interval: seconds between two heartbeats of a node that does not tell it.
    """

    def __init__(self, now: float, interval: float) -> None:
        self._lock = threading.Lock()
        self._began = now
        self._interval = interval
        self._sessions: dict[tuple[str, int], _Session] = {}
        self._entries: deque[Entry] = deque(maxlen=MOST_ENTRIES)
        self._samples: deque[tuple[float, tuple[Row, ...]]] = deque()
        self._sampled = 0
        self._next_sample = now
        self._cut_off_since: float | None = now
        self._back_since = now
        self._agreed: dict[str, str] = {}
        self._dropped: Counter[str] = Counter()
        self._dropped_at: dict[str, float] = {}
        self._speakers: dict[str, tuple[str, float]] = {}
        self._lease: tuple[str, float, bool | None] = ("", now, None)
        self.owed = False
        """Whether a rebuild is owed, as Redis said last."""

    # --- what is heard ----------------------------------------------------------------------------------------

    def heard(self, envelope: events.Envelope, now: float) -> None:
        """Note a heartbeat or a report."""
        event = envelope.event
        if not isinstance(event, events.Heartbeat | events.Report):
            return
        with self._lock:
            key = envelope.source, envelope.session
            session = self._sessions.get(key)
            if session is None:
                self._forget_one()
                again = any(node == envelope.source for node, _ in self._sessions)
                session = self._sessions[key] = _Session(envelope.source, envelope.session, envelope.fingerprint, now)
                self._note(now, envelope.source, "came_back" if again else "appeared", envelope.fingerprint)
            session.heard = now
            if isinstance(event, events.Heartbeat):
                session.beat = event
            else:
                self._note_alerts(session, event, now)
                session.report = event

    def dropped(self, kind: str, now: float, *, catalogue: str = "", source: str = "") -> None:
        """Note an event that is not believed. source, catalogue: what it claims."""
        with self._lock:
            self._dropped[kind] += 1
            self._dropped_at[kind] = now
            if source and (source in self._speakers or len(self._speakers) < MOST_SPEAKERS):
                self._speakers[source] = (f"catalogue {catalogue}" if catalogue else "", now)

    def lost(self, now: float, reason: str) -> None:
        """Note that nothing can be heard any more."""
        with self._lock:
            if self._cut_off_since is None:
                self._cut_off_since = now
                self._note(now, WATCHED, "cut_off", reason)

    def back(self, now: float) -> None:
        """Note that all can be heard from now on."""
        with self._lock:
            since, self._cut_off_since, self._back_since = self._cut_off_since, None, now
            self._note(now, WATCHED, "connected", f"after {now - (since or now):.1f} s")

    def saw_lease(self, value: str, now: float, *, alive: bool | None, owed: bool) -> None:
        """Note the lease as it stands in Redis, "" for none, and whether a rebuild is owed."""
        with self._lock:
            known, since, _ = self._lease
            if value != known:
                since = now
                holder = _lease(value, 0.0, None)
                self._note(now, WATCHED if holder is None else holder.holder, "lease_taken" if holder else "lease_free")
            self._lease = value, since, alive
            self.owed = owed

    def note(self, now: float, node: str, event: str, detail: str = "") -> None:
        """Write a line into the timeline."""
        with self._lock:
            self._note(now, node, event, detail)

    def _note(self, now: float, node: str, event: str, detail: str = "") -> None:
        self._entries.append(Entry(now, node, event, detail))

    def _note_alerts(self, session: _Session, report: events.Report, now: float) -> None:
        before, session.told = session.told, {alert.name: alert.evidence for alert in report.alerts}
        for name in session.told.keys() - before.keys():
            self._note(now, session.node, f"alert_{name}", session.told[name])
        for name in before.keys() - session.told.keys():
            self._note(now, session.node, f"alert_{name}_ended")

    def _forget_one(self) -> None:
        if len(self._sessions) >= MOST_SESSIONS:
            del self._sessions[min(self._sessions, key=lambda key: self._sessions[key].heard)]

    # --- what takes more than one message -----------------------------------------------------------------------

    def look(self, now: float) -> None:
        """See who has fallen silent, whether those who live agree, and take a sample for the history when it is due."""
        with self._lock:
            rows = self._rows(now)
            for row in rows:
                session = self._sessions[row.node, row.session]
                if row.alive is not None and row.state != session.shown:
                    if session.shown and row.alive is False:
                        self._note(now, row.node, "stopped" if row.connection == "left" else "silent")
                    elif session.shown:
                        self._note(now, row.node, f"is_{row.state.replace(' ', '_')}", f"was {session.shown}")
                    session.shown = row.state
            if self._cut_off_since is None:
                self._notice_agreement(rows, now)
            for key in [key for key, session in self._sessions.items() if now - session.heard > HOUR]:
                del self._sessions[key]
            for name in [name for name, (_, at) in self._speakers.items() if now - at > HOUR]:
                del self._speakers[name]
            if now >= self._next_sample:
                self._next_sample = now + SAMPLE
                self._samples.append((now, rows))
                self._sampled += len(rows)
                while self._samples and (self._sampled > MOST_SAMPLED or now - self._samples[0][0] > HOUR):
                    self._sampled -= len(self._samples.popleft()[1])

    def _notice_agreement(self, rows: Sequence[Row], now: float) -> None:
        said = {model: str(agreement) for model, agreement in agreements(rows).items()}
        for model, words in said.items():
            if self._agreed.get(model) != words:
                self._note(now, WATCHED, "agreement", f"{words}" if len(said) == 1 else f"{model}: {words}")
        self._agreed = said

    # --- as it is now -----------------------------------------------------------------------------------------

    def rows(self, now: float) -> tuple[Row, ...]:
        """Return the nodes, by name: each living session, or the last one that was heard of a node."""
        with self._lock:
            return self._rows(now)

    def _rows(self, now: float) -> tuple[Row, ...]:
        by_node: defaultdict[str, list[Row]] = defaultdict(list)
        for session in self._sessions.values():
            by_node[session.node].append(self._row(session, now))
        kept: list[Row] = []
        for rows in by_node.values():
            living = [row for row in rows if row.alive]
            kept += living or [min(rows, key=lambda row: row.heard)]
        return tuple(sorted(kept, key=lambda row: (row.node, row.builds, row.session)))

    def _row(self, session: _Session, now: float) -> Row:
        beat, report = session.beat, session.report
        interval = self._interval if report is None else report.interval
        left = report is not None and report.state == "stopped"
        silent_for = now - max(session.heard, self._back_since)
        alive: bool | None = None if self._cut_off_since is not None else silent_for <= ALIVE_BEATS * interval
        if left:
            alive = False
        state = "not told" if report is None else report.state
        connection = {True: "connected", False: "silent", None: "unknown"}[alive]
        if alive is False and not left:
            state = "silent"
        ago = now - session.heard
        told = () if report is None or left else report.alerts
        return Row(
            node=session.node,
            alive=alive,
            state=state,
            connection="left" if left else connection,
            digest="" if beat is None else beat.digest,
            charts=0 if beat is None else beat.charts,
            revision=0 if beat is None else beat.complete_to,
            repository=0 if beat is None else beat.revision,
            catalogue="" if beat is None else beat.catalogue,
            lag=None if report is None else report.lag,
            skipped=None if report is None else report.skipped,
            epoch=None if report is None else report.epoch,
            outages=None if report is None else report.outages,
            batch=None if report is None or alive is False else report.batch,
            alerts=tuple(events.AlertTold(a.name, a.severity, a.seconds + ago, a.evidence) for a in told),
            model=session.model,
            version="" if report is None else report.version,
            address="" if report is None else report.address,
            uptime=None if report is None else report.uptime,
            heard=ago,
            session=session.session,
            interval=interval,
        )

    def lease(self, now: float) -> Lease | None:
        """Return who holds the lease; None if it is free, or was when Redis was last asked."""
        value, since, alive = self._lease
        return _lease(value, now - since, alive)

    def overview(self, now: float, *, reason: str, verified: bool) -> Overview:
        """Return all that is known."""
        with self._lock:
            since = self._cut_off_since
            return Overview(
                at=now,
                cut_off=0.0 if since is None else now - since,
                reason=reason,
                verified=verified,
                rows=self._rows(now),
                recent={kind: now - at for kind, at in self._dropped_at.items()},
                counts=dict(self._dropped),
                speakers={name: said for name, (said, _) in sorted(self._speakers.items())},
            )

    def entries(self) -> list[Entry]:
        """Return the lines of the timeline, oldest first."""
        with self._lock:
            return list(self._entries)

    def samples(self) -> list[tuple[float, tuple[Row, ...]]]:
        """Return the samples of the last hour, oldest first: when, and the nodes as they were."""
        with self._lock:
            return list(self._samples)

    @property
    def began(self) -> float:
        """When the watching began."""
        return self._began

    def __repr__(self) -> str:
        return f"Picture({len(self._sessions)} sessions, {len(self._entries)} lines)"


def _lease(value: str, seconds: float, alive: bool | None) -> Lease | None:
    if not value:
        return None
    epoch, _, rest = value.partition(" ")
    parts = rest.split(" ", 2)
    if epoch.isascii() and epoch.isdecimal() and len(epoch) < 20 and len(parts) == 3:
        return Lease(parts[2], int(epoch), seconds, alive, value)
    return Lease(value, 0, seconds, None, value)  # as written: a node's name


def agreements(rows: Iterable[Row]) -> dict[str, Agreement]:
    """Tell which of the nodes that answer hold the same, for each model."""
    by_model: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.answers and row.digest:
            by_model[row.model].append(row)
    return {model: Agreement.of(map(_status, of)) for model, of in sorted(by_model.items())}


def holds(row: Row, lease: Lease | None) -> bool:
    """Tell whether a node holds the lease: it says so, or the lease names it."""
    return (row.batch is not None and row.batch.leased) or (lease is not None and lease.holder == row.node)


def letter(row: Row, found: Mapping[str, Agreement]) -> str:
    """Return the letter of the nodes that hold what this one does, "" where it does not answer. found: `agreements`."""
    return found[row.model].letter(row.digest) if row.answers and row.model in found else ""


def _status(row: Row) -> dict[str, object]:
    """A row as `Agreement.of` takes it."""
    return {
        "node": row.node,
        "state": row.state,
        "digest": row.digest,
        "lag": row.lag or 0,
        "complete": row.complete,
        "redis": row.connection,
    }


# --- what can be wrong with a cluster ---------------------------------------------------------------------------------


def _cut_off(now: Overview, limit: Thresholds) -> Finding | None:
    if not now.cut_off:
        return None
    evidence: Evidence = {"seconds": now.cut_off, "reason": now.reason}
    return Finding(now.cut_off, min(limit.redis_away, 1.0), evidence)


def _silent(now: Overview, limit: Thresholds) -> Finding | None:
    silent = [row for row in now.rows if row.connection == "silent" and row.heard < limit.node_forgotten]
    if not silent:
        return None
    longest = max(row.heard for row in silent)
    evidence: Evidence = {"nodes": ", ".join(row.node for row in silent), "silent_seconds": longest}
    return Finding(longest, limit.node_silent, evidence)


def _differ(now: Overview, limit: Thresholds) -> Finding | None:
    settled = [row for row in now.rows if row.alive and row.answers and row.complete and row.digest]
    groups: defaultdict[tuple[str, int], dict[str, list[str]]] = defaultdict(dict)
    for row in settled:
        groups[row.model, row.revision].setdefault(row.digest, []).append(row.node)
    for (_, revision), held in sorted(groups.items()):
        if len(held) > 1:
            told = "; ".join(f"{digest[:8]}: {', '.join(nodes)}" for digest, nodes in sorted(held.items()))
            beat = max(row.interval for row in settled)
            return Finding(0.0, limit.differ_beats * beat, {"revision": revision, "held": told}, tuple(sorted(held)))
    return None


def _namesakes(now: Overview, limit: Thresholds) -> Finding | None:
    living = Counter((row.node, row.model) for row in now.rows if row.alive)
    twice = sorted(node for (node, _), count in living.items() if count > 1)
    if not twice:
        return None
    beat = max(row.interval for row in now.rows)  # one that was killed and started again is soon counted once
    return Finding(0.0, (ALIVE_BEATS + 1) * beat, {"names": ", ".join(twice)}, tuple(twice))


def _unverified(now: Overview, limit: Thresholds) -> Finding | None:
    if now.verified or not now.speakers:
        return None
    return Finding(0.0, 0.0, {"claim_to_be": ", ".join(now.speakers), "events": sum(now.counts.values())})


def _foreign(now: Overview, limit: Thresholds) -> Finding | None:
    ages = [now.recent[kind] for kind in ("foreign_catalogue", "forged") if kind in now.recent]
    if not now.verified or not ages or min(ages) > limit.recent:
        return None
    events_dropped = now.counts.get("foreign_catalogue", 0) + now.counts.get("forged", 0)
    return Finding(0.0, 0.0, {"claim_to_be": ", ".join(now.speakers), "events_dropped": events_dropped})


CLUSTER_CONDITIONS: tuple[Condition, ...] = (
    Condition(
        "cut_off",
        "critical",
        _cut_off,
        "Whoever watches does not reach Redis: what is shown is how it was then, and says nothing of the nodes now. "
        "See whether the server runs, and ask a node that can be reached for its own status.",
    ),
    Condition(
        "node_silent",
        "warning",
        _silent,
        "See whether that process lives and reaches Redis. If it was taken away on purpose, nothing is to be done: "
        "the alert ends by itself.",
    ),
    Condition(
        "stores_differ",
        "critical",
        _differ,
        "See what differs, chart by chart (differences), and run sync on the nodes of the smaller group.",
    ),
    Condition("namesakes", "critical", _namesakes, "Two nodes were given one node_id: give each its own, or none."),
    Condition(
        "not_verified",
        "warning",
        _unverified,
        "Nothing that is heard can be believed without the key that is in the repository: give charts=.",
    ),
    Condition(
        "second_catalogue",
        "warning",
        _foreign,
        "Somebody else uses this Redis, and is not believed: give each catalogue a namespace of its own.",
    ),
)
