"""All that one node says to Redis and hears from it.

The coordinator keeps the two flags of the written design, sends and receives events, and watches its own connection.
While Redis is known to be away, nothing here waits for it: every call raises `CarrierAway` at once, and `receive`
looks now and then whether Redis is back.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

import redis

from copilotlab import events
from copilotlab.carrier import Carrier, CarrierAway, CarrierRefused, RedisCarrier
from copilotlab.clock import Clock, SystemClock
from copilotlab.monitoring import Journal, Metrics
from copilotlab.policy import Policy
from copilotlab.store import Record

BATCH_IN_PROGRESS = "vector:batch:in_progress"
WAS_DOWN = "vector:redis:was_down"

T = TypeVar("T")


class Flags(NamedTuple):
    """The two flags of the written design, as Redis has them now."""

    batch_holder: str | None
    was_down: bool


class Coordinator:
    """One node's side of the protocol, as far as Redis is concerned.

    redis: a URL, a redis-py client, or a `Carrier`.
    node_id: this node's name, at most 200 characters; its own events are skipped by it.
    fingerprint, dim: of the model whose vectors are sent; events of another model are dropped and counted.
    namespace: "" by default, which gives the keys and channels of the written design; nodes of two namespaces that
    share a Redis never hear each other.

    Source: the seed document's ChartVectorEventService, ChartDeletionService and RedisConnectionListener.
    """

    def __init__(
        self,
        redis: str | redis.Redis | redis.RedisCluster | Carrier,
        *,
        node_id: str,
        fingerprint: str,
        dim: int,
        policy: Policy | None = None,
        namespace: str = "",
        clock: Clock | None = None,
        journal: Journal | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.node_id = _name("node_id", node_id)
        self.fingerprint = fingerprint
        self.dim = dim
        self.policy = policy or Policy()
        self.namespace = _name("namespace", namespace) if namespace else ""
        self.clock = clock or SystemClock()
        self.journal = Journal(node_id, self.clock) if journal is None else journal  # an empty one is false
        self.metrics = Metrics() if metrics is None else metrics
        self._carrier = _carrier(redis, self.policy.redis_timeout)
        self._channels = {self._scoped(channel): channel for channel in events.CHANNELS}
        self._lock = threading.Lock()
        self._connected = False
        self._away_since: float | None = None
        self._reason = ""
        self._next_probe = self.clock.now()

    # --- the connection ---------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether the last Redis operation worked and the subscription stands."""
        return self._connected

    @property
    def away_for(self) -> float:
        """Seconds since the outage began; 0.0 while connected."""
        since = self._away_since
        return 0.0 if since is None else self.clock.now() - since

    @property
    def reason(self) -> str:
        """Why Redis counts as away; "" while connected."""
        return self._reason

    @property
    def address(self) -> str:
        """Where Redis is, without its password."""
        return self._carrier.address

    def connect(self) -> bool:
        """Connect and subscribe now; False, and an outage begins, if Redis is away.

        Raises CarrierRefused if Redis is there but does not let us in: that is a mistake to mend, not an outage.
        """
        try:
            self._carrier.ping()
            self._carrier.subscribe(list(self._channels))
        except CarrierRefused:
            raise
        except CarrierAway as error:
            self._went_away(error)
            return False
        self._came_back()
        return True

    def probe(self) -> bool:
        """If Redis is away and it is time to look again, look; True if this look found it back.

        The recovery flag is set before anything else is said, so that a rebuild follows every outage.
        """
        now = self.clock.now()
        if self._connected or now < self._next_probe:
            return False
        self._next_probe = now + self.policy.probe_interval
        try:
            self._carrier.ping()
            self._carrier.subscribe(list(self._channels))
            self._carrier.set(self._scoped(WAS_DOWN), b"true")
        except CarrierAway as error:
            self._went_away(error)
            return False
        self._came_back()
        return True

    def ping(self) -> bool:
        """Whether Redis answers now: an idle node notices an outage by this."""
        try:
            self._ask(self._carrier.ping)
        except CarrierAway:
            return False
        return True

    def close(self) -> None:
        """Leave Redis."""
        with self._lock:
            self._connected = False
        self._carrier.close()

    # --- the flags and the lease ------------------------------------------------------------------------------

    def flags(self) -> Flags:
        """Both flags, in one round trip."""
        holder, was_down = self._ask(lambda: self._carrier.get(self._scoped(BATCH_IN_PROGRESS), self._scoped(WAS_DOWN)))
        return Flags(holder.decode(errors="replace") if holder is not None else None, was_down is not None)

    def take_lease(self) -> bool:
        """Set the batch flag for `batch_timeout` if nobody has; whether it is ours now."""
        return self._ask(
            lambda: self._carrier.set(
                self._scoped(BATCH_IN_PROGRESS),
                self.node_id.encode(),
                ttl=self.policy.batch_timeout,
                if_absent=True,
            )
        )

    def release_lease(self, *, recovered: bool) -> None:
        """Delete the batch flag, whoever's it is by now (as written); with ``recovered`` the recovery flag first."""
        keys = [WAS_DOWN, BATCH_IN_PROGRESS] if recovered else [BATCH_IN_PROGRESS]
        self._ask(lambda: self._carrier.delete(*map(self._scoped, keys)))

    # --- events -----------------------------------------------------------------------------------------------

    def publish(self, event: events.Event) -> int:
        """Send ``event`` on its channel; how many nodes listened."""
        channel = _CHANNEL_OF[type(event)]
        payload = events.encode(event)
        try:
            heard = self._ask(lambda: self._carrier.publish(self._scoped(channel), payload))
        except CarrierAway:
            self.metrics.count("publish_failed")
            raise
        self.metrics.count("published")
        self.metrics.count("bytes_published", len(payload))
        return heard

    def receive(self, timeout: float = 0.0) -> events.Event | None:
        """The next event of another node, waiting at most ``timeout`` seconds; None if there is none.

        What is not an event of our model is counted, logged once a kind, and dropped.
        Raises CarrierAway while Redis is away.
        """
        message = self._ask(lambda: self._carrier.receive(timeout))
        if message is None:
            return None
        self.metrics.count("received")
        try:
            event = events.decode(message.payload, fingerprint=self.fingerprint)
            if self._channels.get(message.channel) != _CHANNEL_OF[type(event)]:
                raise events.EventRejected("malformed", f"{type(event).__name__} on {message.channel}")
        except events.EventRejected as error:
            self.reject(error)
            return None
        if event.source == self.node_id:
            return None
        return event

    def records(self, packed: Iterable[events.WireRecord]) -> list[Record]:
        """The store's records in an event's, without those whose vector is none of our model's: they are counted."""
        unpacked = []
        for record in packed:
            try:
                unpacked.append(events.unpack(record, dim=self.dim))
            except events.EventRejected as error:
                self.reject(error)
        return unpacked

    def reject(self, error: events.EventRejected) -> None:
        """Count what was not accepted; warn the first time for its kind."""
        self.metrics.count(f"dropped_{error.kind}")
        self.journal.warn_once(f"dropped_{error.kind}", str(error))

    # --- inside -----------------------------------------------------------------------------------------------

    def _scoped(self, name: str) -> str:
        return f"{self.namespace}:{name}" if self.namespace else name

    def _ask(self, operation: Callable[[], T]) -> T:
        if not self._connected:
            raise CarrierAway(self._reason or f"not connected to {self.address}")
        try:
            return operation()
        except CarrierAway as error:
            self._went_away(error)
            raise

    def _went_away(self, error: CarrierAway) -> None:
        with self._lock:
            if self._away_since is None:
                self._away_since = self._next_probe = self.clock.now()
                self.metrics.count("outages")
                self.journal.note("redis_away", str(error), level=logging.WARNING)
            self._reason = str(error)
            self._connected = False

    def _came_back(self) -> None:
        with self._lock:
            if self._away_since is not None:
                self.journal.note("redis_back", f"after {self.away_for:.2f} s", level=logging.INFO)
            self._away_since = None
            self._reason = ""
            self._connected = True

    def __repr__(self) -> str:
        state = "connected" if self._connected else f"away: {self._reason or 'not connected yet'}"
        scope = f", namespace={self.namespace!r}" if self.namespace else ""
        return f"Coordinator({self.node_id!r}, {self.address!r}{scope}, {state})"


_CHANNEL_OF: dict[type, str] = {
    events.ChartUpdated: events.UPDATES,
    events.ChartDeleted: events.DELETIONS,
    events.BatchStarted: events.BATCHES,
    events.BatchChunk: events.BATCHES,
    events.BatchFinished: events.BATCHES,
}


def _name(field: str, value: str) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= 200:
        raise ValueError(f"{field}={value!r}: expected 1 to 200 characters")
    return value


def _carrier(target: str | redis.Redis | redis.RedisCluster | Carrier, timeout: float) -> Carrier:
    if isinstance(target, str | redis.Redis | redis.RedisCluster):
        return RedisCarrier(target, timeout=timeout)
    if hasattr(target, "receive") and hasattr(target, "publish"):
        return target
    raise ValueError(
        f"redis={target!r}: expected a URL such as redis://127.0.0.1:6379/0, or a redis-py client that you made"
    )
