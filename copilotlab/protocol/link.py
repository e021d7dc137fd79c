"""One node's connection to Redis, bounded in time and watched, and the numbering and signing of what is said there.

While Redis is known to be away, nothing here waits for it: every call raises `CarrierAway` at once, and `probe` looks
now and then whether Redis is back.
"""

from __future__ import annotations

import random
import re
import secrets
import threading
from collections.abc import Callable, Sequence
from hashlib import blake2b
from math import inf
from typing import NoReturn, TypeVar

import redis

from copilotlab.charts import Identity
from copilotlab.monitoring.happenings import ConnectionBack, ConnectionLost, NotSaid, PageTurnedAway, Said
from copilotlab.protocol import access, events, keys
from copilotlab.protocol.carrier import Carrier, CarrierAway, CarrierRefused, RedisCarrier
from copilotlab.protocol.context import Context
from copilotlab.protocol.pages import PageBound, PageRefused, is_for_size
from copilotlab.reasons import short

REFUSED_PAUSE = 10.0  # seconds, at most, between two looks at a Redis that refuses us
SILENT_BEATS = 3  # heartbeats without any answer, after which the subscription is dead, whatever TCP says

CLOSED = "closed"  # the reason of a link that this node has left: errors that follow are no outage

T = TypeVar("T")


class Link:
    """One connection, with a session of its own.

    redis: a URL, a redis-py client, or a `Carrier`. channels: what to listen to, with the namespace.
    fingerprint, identity: of the model and the catalogue that are spoken of. scripted: whether scripts are run on it;
    then `connect` first finds out whether Redis allows all that a node does.

    Raises ValueError for a wrong URL, and for a Redis Cluster without a namespace in braces.
    """

    def __init__(
        self,
        redis: str | redis.Redis | redis.RedisCluster | Carrier,
        context: Context,
        channels: Sequence[str],
        *,
        fingerprint: str,
        identity: Identity,
        scripted: bool,
    ) -> None:
        self.context = context
        self.fingerprint = fingerprint
        self.identity = identity
        self.session = secrets.randbelow(2**62) + 1
        context.sessions.add(self.session)
        self.pages = PageBound()
        self.carrier = _carrier(redis, context.policy.redis_timeout)
        _check_slot(self.carrier, context.namespace)
        self.said = 0
        """The number of the last event that this node said to all."""
        self.speaking = threading.Lock()
        """Held from an event's number to its sending, so that events leave in the order of their numbers."""
        self.connected = False
        """Whether the last Redis operation worked and the subscription stands."""
        self.back_since = -inf
        """When the last outage ended, on the node's clock; minus infinity if there was none."""
        self.reason = ""
        """Why Redis counts as away or refused; "" while connected."""
        self._channels = channels
        self._scripted = scripted
        self._lock = threading.Lock()
        self._away_since: float | None = None
        self._refused = False
        self._troubled_since = -inf  # since then, no connection has lasted SILENT_BEATS heartbeats
        self._joins = 0  # the number of the present connection
        self._next_probe = context.clock.now()
        self._jitter = random.Random(context.node_id)  # nodes differ, and a test has the same pauses each time

    @property
    def state(self) -> str:
        """ "connected", "away", or "refused": Redis is there, but forbids what a node must do; `reason` names it."""
        return "connected" if self.connected else "refused" if self._refused else "away"

    @property
    def away_for(self) -> float:
        """Seconds since the outage began; 0.0 while connected."""
        since = self._away_since
        return 0.0 if since is None else self.context.clock.now() - since

    @property
    def address(self) -> str:
        """Where Redis is, without its password."""
        return self.carrier.address

    # --- connecting -------------------------------------------------------------------------------------------

    def connect(self, greet: Callable[[], object]) -> bool:
        """Connect and subscribe now, and call ``greet``; if Redis is away an outage begins, and False is returned.

        Raises CarrierRefused if Redis is there but does not let us do what we must: a mistake to mend, not an outage.
        """
        try:
            self._join(greet)
        except CarrierRefused:
            self.carrier.close()
            raise
        except CarrierAway as error:
            self.lose(error)
            return False
        self._came_back()
        return True

    def probe(self, greet: Callable[[], object]) -> bool:
        """Look whether a Redis that was away is back, at most once per `probe_interval`; True if it is.

        The longer the trouble lasts, the longer the pauses; a connection that breaks again at once does not end it.
        """
        now = self.context.clock.now()
        if self.connected or now < self._next_probe:
            return False
        self._next_probe = now + self.context.policy.probe_interval
        try:
            self._join(greet)
        except CarrierAway as error:
            self.lose(error)
            self._next_probe = self.context.clock.now() + self._pause()
            return False
        self._next_probe = self.context.clock.now() + self._pause()
        self._came_back()
        return True

    def _pause(self) -> float:
        """Draw the seconds until the next look: from `probe_interval` up to a share of how long the trouble has lasted.

        Where Redis is away, that is at most half of what a batch waits for nodes to come back, so that what they hold
        is not made again. One that refuses us is asked as often for twice that wait, and ever more rarely after it.
        """
        policy = self.context.policy
        troubled = self.context.clock.now() - self._troubled_since
        if self._refused:
            longest = min(REFUSED_PAUSE, max(troubled / 10, troubled - 2 * policy.rejoin_grace))
        else:
            longest = min(policy.rejoin_grace / 2, troubled / 10)
        return policy.probe_interval + self._jitter.random() * max(0.0, longest - policy.probe_interval)

    def _join(self, greet: Callable[[], object]) -> None:
        self.carrier.ping()
        if self._scripted:
            self._rehearse()
        self.carrier.subscribe(self._channels)
        greet()

    def _rehearse(self) -> None:
        """Ask whether Redis allows all that this node will do; else it would join, be refused, and join again."""
        names = [self.context.scope(name) for name in keys.EXAMPLES]
        spoken = [self.context.scope(events.REPORTS)] if self.context.policy.reconcile else []
        pairs = access.needed(names, self._channels, spoken)
        allowed = self.carrier.run("rehearse", names[:1], [part for pair in pairs for part in pair])
        if told := access.forbidden(pairs, allowed):
            raise CarrierRefused(
                f"Redis at {self.address} refuses us: its access list does not allow {told}. "
                f"The least that its user needs: {access.least(self.context.namespace)}"
            )

    def close(self) -> None:
        """Leave Redis."""
        with self._lock:
            self.connected = False
            self.reason = CLOSED
        self.carrier.close()

    # --- asking -----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise CarrierAway while Redis is away."""
        if not self.connected:
            raise CarrierAway(self.reason or f"not connected to {self.address}")

    def ask(self, operation: Callable[[], T]) -> T:
        """Return what ``operation`` on the carrier returns. Raises CarrierAway, and at once while Redis is away."""
        self.check()
        joins = self._joins
        try:
            return operation()
        except CarrierAway as error:
            self.lose(error, joins)
            raise

    def put(self, operation: Callable[[], T], size: int) -> T:
        """`ask` for what sends a page of ``size`` bytes: where that is refused, raise PageRefused; it is no outage."""
        self.check()
        joins = self._joins
        try:
            answer = operation()
        except CarrierAway as error:
            bound = self.pages.bytes
            if not self._refuses(size, error):
                self.lose(error, joins)
                raise
            refusal = f"a page of {size:,} bytes at {self.address}: {error.__cause__ or error}"
            smaller = self.pages.bytes if self.pages.bytes < bound else 0
            self.context.tell(PageTurnedAway(refusal, smaller))
            raise PageRefused(refusal) from error
        self.pages.taken(size)
        return answer

    def _refuses(self, size: int, error: CarrierAway) -> bool:
        """Tell whether Redis is there, and has refused a page for its size, by an error or by cutting the line."""
        silent = isinstance(error.__cause__, redis.exceptions.TimeoutError)
        if not is_for_size(str(error)) and (silent or isinstance(error, CarrierRefused)):
            return False
        try:
            self.carrier.ping()
        except CarrierAway:
            return False
        return self.pages.refused(size, str(error))

    # --- watching ---------------------------------------------------------------------------------------------

    def lose_to_silence(self) -> NoReturn:
        """Begin an outage since nothing came back for `SILENT_BEATS` heartbeats. Raises CarrierAway."""
        silence = CarrierAway(f"nothing was heard from {self.address} for {SILENT_BEATS} heartbeats")
        self.lose(silence)
        raise silence

    def lose(self, error: CarrierAway, joins: int | None = None) -> None:
        """Begin an outage, or a refusal. joins: the number of the connection that failed; an earlier one is no news."""
        refused = isinstance(error, CarrierRefused)
        with self._lock:
            if self.reason == CLOSED or (joins is not None and joins != self._joins):
                return
            now = self.context.clock.now()
            begins = self._away_since is None
            if begins:
                self._away_since = now
                if now - self.back_since > SILENT_BEATS * self.context.policy.heartbeat_interval:
                    self._troubled_since = now
            news = begins or refused != self._refused
            self._refused = refused
            self.reason = str(error)
            self.connected = False
            if news:  # under the lock: nobody hears that it is back before hearing that it was lost
                self.context.tell(ConnectionLost(str(error), refused))

    def _came_back(self) -> None:
        with self._lock:
            since, self._away_since = self._away_since, None
            now = self.context.clock.now()
            if since is not None:
                self.back_since = now
            self._refused = False
            self.reason = ""
            self._joins += 1
            self.connected = True
            self.pages.reset()
            if since is not None:
                self.context.tell(ConnectionBack(now - since))

    # --- speaking ---------------------------------------------------------------------------------------------

    def say(self, event: events.Event, send: Callable[[str, bytes], int] | None = None) -> int:
        """Say an event to all nodes; return how many listened, this one among them. Raises CarrierAway.

        send: sends the payload on the channel that it is given, and returns how many listened; by default PUBLISH.
        """
        channel, send = self.context.scope(events.CHANNEL_OF[type(event)]), send or self.carrier.publish
        try:
            self.check()  # before the lock, whose holder may be waiting for Redis
            with self.speaking:
                payload = self.seal(event)
                heard = self.ask(lambda: send(channel, payload))
        except CarrierAway:
            self.context.tell(NotSaid(type(event).__name__))
            raise
        self.context.tell(Said(len(payload), type(event).__name__))
        return heard

    def seal(self, event: events.Event) -> bytes:
        """Encode an event to all nodes, under the next number; hold `speaking` until it is sent."""
        self.said += 1
        return self.encode(event, self.said)

    def encode(self, event: events.Event, number: int = 0) -> bytes:
        """Encode and sign an event. number: 0 for what is said to one node alone."""
        envelope = events.Envelope(self.context.node_id, self.fingerprint, self.session, number, event)
        return events.encode(envelope, self.identity)

    @property
    def session_name(self) -> str:
        """This session as claims and leases name it: 16 hex digits."""
        return f"{self.session:016x}"

    @property
    def model_name(self) -> str:
        """This model and catalogue as claims and leases name them: 16 hex digits."""
        return blake2b(f"{self.identity.incarnation} {self.fingerprint}".encode(), digest_size=8).hexdigest()

    @property
    def sign_of_life(self) -> str:
        """The key that is present while this session lives."""
        return f"{self.signs_of_life}{self.session_name}"

    @property
    def signs_of_life(self) -> str:
        """What the keys of all sessions begin with."""
        return self.context.scope(f"{keys.ALIVE}:")

    @property
    def lives_for(self) -> float:
        """Seconds without a heartbeat after which this node loses its lease and claims."""
        policy = self.context.policy
        return SILENT_BEATS * policy.heartbeat_interval + policy.redis_timeout

    @property
    def life(self) -> tuple[int, str]:
        """`lives_for` in milliseconds and `signs_of_life`, as scripts take them."""
        return round(self.lives_for * 1000), self.signs_of_life

    def __repr__(self) -> str:
        state = "connected" if self.connected else f"{self.state}: {self.reason or 'not connected yet'}"
        return f"Link({self.address!r}, {state})"


def _check_slot(carrier: Carrier, namespace: str) -> None:
    """Raise ValueError for a Redis Cluster and a namespace that does not keep all keys on one of its servers."""
    if isinstance(carrier, RedisCarrier) and carrier.clustered and not re.match(r"[^{]*\{[^}]+\}", namespace):
        raise ValueError(
            f"namespace={short(namespace)}: a Redis Cluster needs all keys in one hash slot; "
            'put a name in braces, as in namespace="{charts}"'
        )


def _carrier(target: str | redis.Redis | redis.RedisCluster | Carrier, timeout: float) -> Carrier:
    if isinstance(target, str | redis.Redis | redis.RedisCluster):
        return RedisCarrier(target, timeout=timeout)
    if hasattr(target, "receive") and hasattr(target, "publish"):
        return target
    raise ValueError(
        f"redis={short(target)}: expected a URL such as redis://127.0.0.1:6379/0, or a redis-py client that you made"
    )
