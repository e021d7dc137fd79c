"""A node's looks at itself: its vitals, and with each look its alerts.

A look is a step like all else, taken by the thread that listens, which waits for neither the model nor the database. So
a node whose model hangs says so, and a test decides when a node looks.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from math import inf
from typing import TYPE_CHECKING, Literal, Protocol
from weakref import ReferenceType

import msgspec

from copilotlab import __version__
from copilotlab.charts import RepositoryError
from copilotlab.monitoring import Alert, Alerts
from copilotlab.monitoring.vitals import BatchVitals, PeerVitals, Vitals
from copilotlab.protocol import events
from copilotlab.protocol.batch import Batch
from copilotlab.protocol.context import Context
from copilotlab.protocol.peers import Peer
from copilotlab.protocol.replica import Replica

if TYPE_CHECKING:
    from copilotlab.monitoring.collector import NodeCollector

NodeState = Literal["running", "not started", "stopped", "failed"]

LOOKS_PER_BEAT = 2
SHARE_FOR_ESTIMATE = 0.1  # of a batch's texts, or
SECONDS_FOR_ESTIMATE = 20.0  # of embedding, after which its rate is told by itself
REPOSITORY_BEATS = 3  # heartbeats without a look at the repository, after which it counts as not answering
MOST_REVISIONS = 1_000  # whose age is remembered
DROPPED = "dropped_"
REPORT_BYTES = 640  # at most, so that a heartbeat and a report have 1 KB together
MOST_TOLD = 120  # characters of an address, or of an alert's evidence


class Watch:
    """What one node notices of itself over time. Holds no node, so that a node can become garbage."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.alerts = Alerts(context.tell)
        self.address = f"process {os.getpid()} on {socket.gethostname()}"[:MOST_TOLD]
        """Where the node can be reached, as its reports say."""
        self._made = context.clock.now()
        self._present: Replica | None = None
        self._next_look = -inf
        self._filled = False
        self._read: deque[tuple[int, float]] = deque()  # revisions read that are not complete yet, and when they were
        self._counted: dict[str, int] = {}
        self._grew: dict[str, float] = {}  # when each counter was last seen to have grown
        self._trouble_since: float | None = None  # of the repository
        self._rate: float | None = None  # texts a second, of the first batch of this model that told one

    def turn_to(self, replica: Replica) -> None:
        """Look at this replica from now on: its model is what the node answers with."""
        self._present = replica
        self._read.clear()
        self._rate = None

    def is_of(self, replica: Replica) -> bool:
        """Tell whether this is the replica that the node answers with."""
        return replica is self._present

    def step(self, replica: Replica) -> None:
        """Look, if a look is due, and see to the alerts. Nothing is done for a model that is only being built."""
        now = self._context.clock.now()
        if replica is not self._present or now < self._next_look:
            return
        self._next_look = now + self._context.policy.heartbeat_interval / LOOKS_PER_BEAT
        self._notice(replica, now)
        self.alerts.look(self.vitals(replica))

    # --- what takes more than one look ------------------------------------------------------------------------

    def _notice(self, replica: Replica, now: float) -> None:
        counts: dict[str, int] = self._context.metrics.as_dict()
        for name, count in counts.items():
            if count > self._counted.get(name, 0):
                self._grew[name] = now
        self._counted = counts
        self._notice_repository(replica, now)
        self._notice_lag(replica, now)
        if replica.looks.last is not None or (not self._context.policy.reconcile and len(replica.store)):
            self._filled = True
        if (batch := replica.batches.present) is not None:
            self._estimate(batch, now)

    def _notice_repository(self, replica: Replica, now: float) -> None:
        """The repository fails where a look has failed since the last good one; it hangs where none comes to an end."""
        policy = self._context.policy
        good = -inf if replica.follower.last_look is None else replica.follower.last_look[0]
        failed = self._grew.get("repository_away", -inf) > good
        idle = policy.reconcile and replica.threads.began and replica.batches.present is None
        patience = REPOSITORY_BEATS * policy.heartbeat_interval
        hangs = idle and good > -inf and now - good > patience and not replica.view.slept(now)
        if not (failed or hangs):
            self._trouble_since = None
        elif self._trouble_since is None:
            self._trouble_since = now if good == -inf else good

    def _notice_lag(self, replica: Replica, now: float) -> None:
        read_to, complete_to = replica.follower.read_to, replica.follower.complete_to
        if self._read and read_to < self._read[-1][0]:
            self._read.clear()  # the repository went back
        while self._read and (self._read[0][0] <= complete_to or not replica.backlog):
            self._read.popleft()
        if replica.backlog and (not self._read or self._read[-1][0] < read_to) and len(self._read) < MOST_REVISIONS:
            self._read.append((read_to, now))

    def _estimate(self, batch: Batch, now: float) -> None:
        """Take the rate of a batch before it, or else of its own beginning: one that slows down is to be seen."""
        tally, seconds = batch.tally, now - batch.tally.began
        enough = tally.embedded >= SHARE_FOR_ESTIMATE * tally.to_embed or seconds >= SECONDS_FOR_ESTIMATE
        if self._rate is None and tally.embedded and seconds > 0 and enough:
            self._rate = tally.embedded / seconds

    # --- as it is now -----------------------------------------------------------------------------------------

    def vitals(self, replica: Replica) -> Vitals:
        """Return how this replica is now."""
        context, link, store, follower = self._context, replica.coordinator.link, replica.store, replica.follower
        now = context.clock.now()
        failure = replica.batches.failure
        embedder_trouble = "" if failure is None or isinstance(failure, RepositoryError) else repr(failure)
        counts = context.metrics.as_dict()
        skipped = sorted(follower.skipped.copy().items())[:1]
        trouble = 0.0 if self._trouble_since is None else now - self._trouble_since
        backlog, read = len(replica.backlog), self._read
        behind_since = read[0][1] if read and backlog and replica is self._present else now
        return Vitals(
            at=now,
            node=context.node_id,
            namespace=context.namespace,
            model=replica.embedder.fingerprint,
            state=state_of(replica),
            filled=self._filled,
            heartbeat_interval=context.policy.heartbeat_interval,
            redis=link.state,
            redis_address=link.address,
            redis_reason=link.reason,
            away_for=link.away_for,
            charts=len(store),
            store_bytes=store.nbytes,
            digest=store.digest,
            index=store.index_state,
            recall=store.recall,
            skipped=len(follower.skipped),
            skipped_example=f"chart {skipped[0][0]}: {skipped[0][1].reason}" if skipped else "",
            read_to=follower.read_to,
            complete_to=follower.complete_to,
            behind_charts=backlog,
            behind_seconds=now - behind_since,
            last_look=None if follower.last_look is None else now - follower.last_look[0],
            last_full_sync=None if replica.looks.last is None else now - replica.looks.last,
            last_event=now - self._grew["received"] if "received" in self._grew else None,
            repository_trouble=trouble,
            embedder_trouble=embedder_trouble,
            batch=self._batch_vitals(replica.batches.present, now),
            peers=tuple(self._peer_vitals(replica, peer, now) for peer in replica.peers.known()),
            counts=counts,
            recent={
                name.removeprefix(DROPPED): now - at
                for name, at in self._grew.copy().items()
                if name.startswith(DROPPED)
            },
        )

    def report(self, replica: Replica) -> events.Report:
        """Say how this replica is, for watchers: within REPORT_BYTES, the evidence of alerts cut to that."""
        now, batch = self._context.clock.now(), self._batch_vitals(replica.batches.present, self._context.clock.now())
        state = state_of(replica)
        building = replica is not self._present and state == "running"
        bare = events.Report(
            state="building" if building else state,
            version=__version__,
            address=self.address,
            uptime=round(max(0.0, now - self._made), 1),
            interval=self._context.policy.heartbeat_interval,
            lag=len(replica.backlog),
            skipped=len(replica.follower.skipped),
            epoch=replica.coordinator.lease.epoch,
            outages=self._context.metrics["outages"],
            batch=None if batch is None else _told(batch),
        )
        active = self.alerts.active()
        for most in (MOST_TOLD, MOST_TOLD // 3, 0):
            told = tuple(
                events.AlertTold(alert.name, alert.severity, round(max(0.0, now - alert.since), 1), alert.told[:most])
                for alert in active
            )
            report = msgspec.structs.replace(bare, alerts=told)
            if len(msgspec.msgpack.encode(report)) <= REPORT_BYTES:
                break
        return report

    def _batch_vitals(self, batch: Batch | None, now: float) -> BatchVitals | None:
        if batch is None:
            return None
        tally = batch.tally
        return BatchVitals(
            kind=batch.kind,
            done=tally.done,
            total=tally.total,
            embedded=tally.embedded,
            seconds=now - tally.began,
            expected=None if self._rate is None else tally.to_embed / self._rate,
            leased=batch.grant is not None,
        )

    def _peer_vitals(self, replica: Replica, peer: Peer, now: float) -> PeerVitals:
        heard = max(peer.heard, replica.view.back_since)
        settled = peer.complete_to == replica.follower.complete_to and not replica.backlog
        same = peer.differed == (peer.digest, replica.store.digest)
        differs = peer.differed if settled and same and replica.coordinator.connected else None
        return PeerVitals(node=peer.node_id, silent_for=now - heard, charts=peer.charts, differs=differs)

    def __repr__(self) -> str:
        return f"Watch({self.alerts})"


def _told(batch: BatchVitals) -> events.BatchTold:
    expected = None if batch.expected is None else round(batch.expected, 1)
    return events.BatchTold(batch.kind, batch.done, batch.total, round(batch.seconds, 1), expected, batch.leased)


class Watched(Protocol):
    """What metrics are made of: a node has it."""

    @property
    def alerts(self) -> Alerts: ...

    def all_vitals(self) -> list[Vitals]: ...


def collector_of(node: ReferenceType[Watched]) -> NodeCollector:
    """Make a collector that does not keep its node alive. Raises ImportError without prometheus_client."""
    try:
        from copilotlab.monitoring.collector import NodeCollector
    except ImportError as error:
        raise ImportError("metrics need prometheus_client: pip install 'copilotlab[serve]'") from error

    def vitals() -> list[Vitals]:
        return [] if (living := node()) is None else living.all_vitals()

    def alerts() -> list[Alert]:
        return [] if (living := node()) is None else living.alerts.active()

    return NodeCollector(vitals, alerts)


def state_of(replica: Replica) -> NodeState:
    """Return "running", "stopped", "not started" or, where a thread has ended by an error, "failed"."""
    if replica.threads.stopping.is_set():
        return "stopped"
    if not replica.threads.began:
        return "not started"
    return "running" if replica.threads.running else "failed"
