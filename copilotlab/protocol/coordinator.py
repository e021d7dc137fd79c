"""All that one node says to Redis and hears from it.

The coordinator keeps the lease, the flags and the claims, sends and receives events, and watches its own connection.
While Redis is known to be away, nothing here waits for it: every call raises `CarrierAway` at once, and `probe` looks
now and then whether Redis is back.
"""

from __future__ import annotations

import logging
import random
import re
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from hashlib import blake2b
from math import inf
from typing import NamedTuple, TypeVar

import redis

from copilotlab.charts import Identity
from copilotlab.clock import Clock, SystemClock, check_clock
from copilotlab.monitoring import Journal, Metrics
from copilotlab.protocol import access, events
from copilotlab.protocol.carrier import Carrier, CarrierAway, CarrierRefused, RedisCarrier
from copilotlab.protocol.pages import PageBound, PageRefused, is_for_size
from copilotlab.protocol.policy import Policy, check_policy
from copilotlab.store import Manifest, Record
from copilotlab.store.records import as_integer

BATCH_IN_PROGRESS = "vector:batch:in_progress"
WAS_DOWN = "vector:redis:was_down"
EPOCH = "vector:batch:epoch"
GENERATION = "vector:generation"
CLAIM = "vector:claim"
BULK = "vector:bulk"
ALIVE = "vector:alive"  # one a session: whose it is has not been silent for three heartbeats

REFUSED_PAUSE = 10.0  # seconds between two looks at a Redis that has refused us for as long
SILENT_BEATS = 3  # heartbeats in a row that nothing was heard after: the subscription is dead, whatever TCP says
MAX_EPOCH = 2**52  # a count beyond it is nobody's: Lua's numbers end at 2**53

T = TypeVar("T")


class Flags(NamedTuple):
    """How things stand in Redis.

    batch_holder: the node that has the lease for a batch of our model, None if nobody has; was_down: whether a rebuild
    is owed; epoch: of the last lease, 0 where leases have none.
    """

    batch_holder: str | None
    was_down: bool
    epoch: int = 0


class Need(NamedTuple):
    """A vector that a node is about to make: of these words of a chart, for at least this revision."""

    chart_id: int
    content_hash: bytes
    revision: int


class Lease(NamedTuple):
    """The right to run a batch. value: as it stands in Redis; owed: whether a rebuild was owed when it was taken."""

    value: str
    epoch: int
    owed: bool


class Coordinator:
    """One node's side of the protocol, as far as Redis is concerned.

    redis: a URL, a redis-py client, or a `Carrier`.
    node_id: this node's name, at most 200 characters; its own events are skipped by it.
    fingerprint, dim: of the model whose vectors are sent; events of another model are dropped and counted.
    identity: of the catalogue that is spoken of, `ChartRepository.identity`; events of another one are dropped and
    counted, and so is what was signed with another key. None by default: of no repository's.
    namespace: "" by default, which gives the keys and channels of the written design; nodes of two namespaces that
    share a Redis never hear each other. A Redis Cluster needs one in braces, "{charts}": all keys then lie together.

    Raises ValueError for a wrong URL, name, fingerprint or dim, TypeError for what is no policy or clock.

    Source: the seed document's ChartVectorEventService, ChartDeletionService and RedisConnectionListener.
    """

    def __init__(
        self,
        redis: str | redis.Redis | redis.RedisCluster | Carrier,
        *,
        node_id: str,
        fingerprint: str,
        dim: int,
        identity: Identity | None = None,
        policy: Policy | None = None,
        namespace: str = "",
        clock: Clock | None = None,
        journal: Journal | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        check_policy(policy)
        check_clock(clock)
        self.node_id = _name("node_id", node_id)
        self.fingerprint = _name("fingerprint", fingerprint)
        self.dim = as_integer("dim", dim, smallest=1)
        self.policy = policy or Policy()
        self.namespace = _name("namespace", namespace) if namespace else ""
        self.clock = clock or SystemClock()
        self.journal = Journal(node_id, self.clock) if journal is None else journal  # an empty one is false
        self.metrics = Metrics() if metrics is None else metrics
        self.session = secrets.randbelow(2**62) + 1
        self.epoch = 0  # the highest that Redis was seen to have
        self.identity = identity or events.NO_CATALOGUE
        self.alive_for = SILENT_BEATS * self.policy.heartbeat_interval + self.policy.redis_timeout
        """Seconds without a heartbeat after which this node's lease and claims are nobody's."""
        self.pages = PageBound()
        self._carrier = _carrier(redis, self.policy.redis_timeout)
        _check_slot(self._carrier, self.namespace)
        self._inbox = f"{events.INBOX}:{node_id}"
        heard = [events.UPDATES, events.BATCHES, events.DELETIONS]
        if self.policy.reconcile:
            heard += [events.HEARTBEATS, self._inbox]
        self._channels = {self._scoped(channel): channel.removesuffix(f":{node_id}") for channel in heard}
        self._speaking = threading.Lock()  # so that events leave in the order of their numbers
        self.said = 0
        """The number of the last event that this node said to all."""
        self.echoed = 0
        """The number of the last of them that came back: what anybody said before it has been received here."""
        self._lock = threading.Lock()
        self._connected = False
        self._away_since: float | None = None
        self._back_since = -inf
        self._refused = False
        self._troubled_since = -inf  # since then no connection has stood for SILENT_BEATS heartbeats
        self._joins = 0  # which connection it is
        self._reason = ""
        self._next_probe = self.clock.now()
        self._jitter = random.Random(node_id)  # nodes differ, and a test finds the same pauses each time
        self._generation = ""
        self._beats_unanswered = 0
        self._on_their_way: deque[tuple[int, float]] = deque()  # own heartbeats: number, when said
        self._heard_to = self.clock.now()

    # --- the connection ---------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether the last Redis operation worked and the subscription stands."""
        return self._connected

    @property
    def state(self) -> str:
        """ "connected", "away", or "refused": Redis is there, but forbids what a node must do; `reason` names it."""
        return "connected" if self._connected else "refused" if self._refused else "away"

    @property
    def away_for(self) -> float:
        """Seconds since the outage began; 0.0 while connected."""
        since = self._away_since
        return 0.0 if since is None else self.clock.now() - since

    @property
    def back_since(self) -> float:
        """When the last outage ended, on the node's clock; minus infinity if there was none."""
        return self._back_since

    @property
    def heard_to(self) -> float:
        """All that was said to this node until then has been received, on its clock; it grows by heartbeats.

        What this node says to all comes back to it behind whatever was said before. So a node that lags behind, or that
        was busy with something else, sees by its own heartbeats how much it has not heard yet.
        """
        return self._heard_to

    @property
    def beats_under_way(self) -> int:
        """How many heartbeats of this node have not come back to it: whoever was heard until now will hear them."""
        return len(self._on_their_way)

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

        Raises CarrierRefused if Redis is there but does not let us do what we must: a mistake to mend, not an outage.
        """
        try:
            self._join()
        except CarrierRefused:
            self._carrier.close()
            raise
        except CarrierAway as error:
            self._went_away(error)
            return False
        self._came_back()
        return True

    def probe(self) -> bool:
        """While Redis is away: look, at most every `probe_interval`, whether it is back; True if it is.

        The longer the trouble lasts, the longer the pauses; a connection that breaks again at once has not ended it.
        Without `tell_blips`, as the written design's connection listener does, an outage is then marked in Redis.
        """
        now = self.clock.now()
        if self._connected or now < self._next_probe:
            return False
        self._next_probe = now + self.policy.probe_interval
        try:
            self._join()
            if not self.policy.tell_blips:
                self._carrier.set(self._scoped(WAS_DOWN), b"true")
        except CarrierAway as error:
            self._went_away(error)
            self._next_probe = self.clock.now() + self._pause()
            return False
        self._next_probe = self.clock.now() + self._pause()
        self._came_back()
        return True

    def _pause(self) -> float:
        """Seconds until the next look: `probe_interval`, and up to a share of how long the trouble has lasted.

        Where Redis is away, at most half of what a batch waits for nodes to be back: what they hold is not made again.
        """
        troubled = self.clock.now() - self._troubled_since
        longest = min(REFUSED_PAUSE, troubled) if self._refused else min(self.policy.rejoin_grace / 2, troubled / 10)
        return self.policy.probe_interval + self._jitter.random() * max(0.0, longest - self.policy.probe_interval)

    def _join(self) -> None:
        self._carrier.ping()
        self._rehearse()
        self._carrier.subscribe(list(self._channels))
        self._beats_unanswered = 0
        self._on_their_way.clear()
        self._look()

    def _rehearse(self) -> None:
        """Ask whether all is allowed that this node will do: else its first event would be refused, after each join."""
        policy = self.policy
        if not (policy.fenced or policy.tell_blips or policy.claim or policy.reconcile):
            return  # the written design runs no scripts
        names = (
            GENERATION,
            BATCH_IN_PROGRESS,
            WAS_DOWN,
            EPOCH,
            f"{CLAIM}:model:chart",
            f"{BULK}:id",
            f"{ALIVE}:session",
        )
        keys = [self._scoped(name) for name in names]
        pairs = access.needed(keys, self._channels)
        allowed = self._carrier.run("rehearse", keys[:1], [part for pair in pairs for part in pair])
        if told := access.forbidden(pairs, allowed):
            raise CarrierRefused(
                f"Redis at {self.address} refuses us: its access list does not allow {told}. "
                f"The least that its user needs: {access.least(self.namespace)}"
            )

    def another_carrier(self) -> Carrier:
        """A connection of its own to the same Redis, for a second coordinator."""
        return self._carrier.another()

    def close(self) -> None:
        """Leave Redis: what this node had claimed is nobody's from now on."""
        if self._connected and self.policy.claim:
            with suppress(CarrierAway):  # it has gone too: then the claims end by themselves
                self._carrier.delete(self._alive)
        with self._lock:
            self._connected = False
            self._reason = "closed"
        self._carrier.close()

    # --- the flags and the lease ------------------------------------------------------------------------------

    def beat(self, heartbeat: events.Heartbeat | None = None) -> Flags:
        """Say that this node lives, and see how things stand, in one round trip. An outage is noticed by this."""
        flags = self._ask(lambda: self._look(heartbeat))
        if heartbeat is not None:
            self._beats_unanswered += 1
            if self._beats_unanswered > SILENT_BEATS:
                silence = CarrierAway(f"nothing was heard from {self.address} for {SILENT_BEATS} heartbeats")
                self._went_away(silence)
                raise silence
        return flags

    def _look(self, heartbeat: events.Heartbeat | None = None) -> Flags:
        policy = self.policy
        if not (policy.fenced or policy.tell_blips or policy.claim or heartbeat):
            return self._plain_flags()
        keys = [*(self._scoped(name) for name in (GENERATION, BATCH_IN_PROGRESS, WAS_DOWN, EPOCH)), self._alive]
        candidate = secrets.token_hex(16) if self.policy.tell_blips else ""
        with self._speaking:
            payload = b"" if heartbeat is None else self._sealed(heartbeat)
            if payload:
                self._on_their_way.append((self.said, self.clock.now()))
            channel = self._scoped(events.HEARTBEATS) if payload else ""
            arguments = [candidate, self.epoch, channel, payload, *self._life, int(policy.fenced)]
            found = self._carrier.run("beat", keys, arguments)
        generation, lease, owed, epoch = found
        generation = generation.decode(errors="replace")
        if self._generation and generation != self._generation:
            self.metrics.count("memory_losses")
            self.journal.note("memory_lost", "the server's generation is another", level=logging.WARNING)
        self._generation = generation
        self._know_epoch(epoch)
        return Flags(self._holder(lease), bool(owed), self.epoch)

    def _know_epoch(self, epoch: bytes) -> None:
        text = epoch.decode(errors="replace")
        if text.isascii() and text.isdecimal() and len(text) < 20 and int(text) < MAX_EPOCH:
            self.epoch = max(self.epoch, int(text))

    def flags(self) -> Flags:
        """Both flags, in one round trip."""
        return self._ask(self._plain_flags)

    def _plain_flags(self) -> Flags:
        lease, was_down = self._carrier.get(self._scoped(BATCH_IN_PROGRESS), self._scoped(WAS_DOWN))
        return Flags(self._holder(lease or b""), was_down is not None, self.epoch)

    def _holder(self, lease: bytes) -> str | None:
        """The node in a lease's value, unless it is of another model, or of another catalogue."""
        value = lease.decode(errors="replace")
        if not self.policy.fenced:
            return value or None
        _, model, _, node_id = (value.split(" ", 3) + [""] * 4)[:4]
        return node_id if model == self._model else None

    def admit(self, needs: Sequence[Need], lease: Lease | None = None) -> tuple[Flags, list[bool]]:
        """May this node embed these now? The flags, and for each whether it is ours to do.

        While another node runs a batch of our model, or a rebuild is owed, nothing is; otherwise, with `claim`, what
        no other node has claimed. lease: of this node's own batch. Bounded by `redis_timeout`.
        """
        if not self.policy.claim:
            flags = self.flags() if lease is None else Flags(None, False)
            return flags, [flags.batch_holder is None and not flags.was_down] * len(needs)
        keys = [self._scoped(BATCH_IN_PROGRESS), self._scoped(WAS_DOWN), self._alive, *map(self._claim, needs)]
        ttl = round(self.policy.claim_timeout * 1000)
        own = "" if lease is None else lease.value
        fixed = [self._session, self._model, own, ttl, *self._life, int(self.policy.fenced)]
        arguments = [*fixed, *(need.revision for need in needs)]
        lease_value, owed, *granted = self._ask(lambda: self._carrier.run("admit", keys, arguments))
        return Flags(self._holder(lease_value), bool(owed), self.epoch), [bool(answer) for answer in granted]

    def disclaim(self, need: Need) -> None:
        """Give a claim back, if it is still this node's: nothing came of it."""
        if self.policy.claim:
            self._ask(lambda: self._carrier.run("disclaim", [self._claim(need)], [self._session]))

    def take_lease(self, *, if_owed: bool = False) -> Lease | None:
        """Take the lease for `batch_timeout`, fenced by the next epoch; None if another node has it.

        A lease whose holder is gone is nobody's: it has not beaten for three heartbeats, or is this node in an earlier
        life. Without `fenced`, only time ends a lease.
        if_owed: only where a rebuild is owed; without `fenced`, regardless.
        """
        milliseconds = round(self.policy.batch_timeout * 1000)
        if not self.policy.fenced:
            ttl = self.policy.batch_timeout
            key, value = self._scoped(BATCH_IN_PROGRESS), self.node_id.encode()
            taken = self._ask(lambda: self._carrier.set(key, value, ttl=ttl, if_absent=True))
            return Lease(self.node_id, 0, True) if taken else None
        keys = [*(self._scoped(name) for name in (BATCH_IN_PROGRESS, EPOCH, WAS_DOWN)), self._alive]
        arguments = [self.node_id, self._model, milliseconds, self.epoch, int(if_owed), self._session, *self._life]
        epoch, owed = self._ask(lambda: self._carrier.run("take_lease", keys, arguments))
        if not epoch:
            return None
        self.epoch = int(epoch)
        return Lease(f"{epoch} {self._model} {self._session} {self.node_id}", self.epoch, bool(owed))

    def keep_lease(self, lease: Lease, event: events.Event | None = None, chunk: Sequence[Record] = ()) -> int | None:
        """Renew the lease, and say ``event`` under it; with a ``chunk``, put that where the event says. In one step.

        How many listened, this node among them; None, and nothing was said, if the lease is not ours any more. Without
        `fenced`, the event is said whoever has the lease. Raises PageRefused for a chunk that is too large.
        """
        ttl = round(self.policy.batch_timeout * 1000) if self.policy.renew_lease else 0
        page = b""
        bulk = ""
        if isinstance(event, events.BatchChunkStored):
            page = events.encode(events.page_of(self.fingerprint, chunk), self.identity)
            bulk = event.bulk
        with self._speaking:
            payload = b"" if event is None else self._sealed(event)
            channel = self._scoped(events.BATCHES) if payload else ""
            keys = [self._scoped(BATCH_IN_PROGRESS), self._bulk(bulk), self._alive]
            arguments = [lease.value, ttl, page, round(self.policy.bulk_ttl * 1000), channel, payload, self._life[0]]
            try:
                heard = int(self._put(lambda: self._carrier.run("keep_lease", keys, arguments), len(page)))
            except PageRefused:
                self.said -= 1  # it was not said: nobody shall miss it
                raise
        if heard < 0 and not self.policy.fenced:
            heard = self._say_regardless(bulk, page, channel, payload)
        if heard < 0:
            return None
        self._count_sent(payload, page)
        return heard

    def _say_regardless(self, bulk: str, page: bytes, channel: str, payload: bytes) -> int:
        if page:
            self._ask(lambda: self._carrier.set(self._bulk(bulk), page, ttl=self.policy.bulk_ttl))
        return self._ask(lambda: self._carrier.publish(channel, payload)) if payload else 0

    def release_lease(self, lease: Lease, *, recovered: bool) -> None:
        """Give the lease back; after a whole rebuild (``recovered``) none is owed any more.

        Without `fenced` the batch flag is deleted, whoever's it is by now (as written).
        """
        if not self.policy.fenced:
            keys = [WAS_DOWN, BATCH_IN_PROGRESS] if recovered else [BATCH_IN_PROGRESS]
            self._ask(lambda: self._carrier.delete(*map(self._scoped, keys)))
            return
        keys = [self._scoped(BATCH_IN_PROGRESS), self._scoped(WAS_DOWN)]
        self._ask(lambda: self._carrier.run("release_lease", keys, [lease.value, "1" if recovered else "0"]))

    def epoch_in_redis(self) -> int:
        """The epoch of the last lease, as Redis has it."""
        (value,) = self._ask(lambda: self._carrier.get(self._scoped(EPOCH)))
        self._know_epoch(value or b"0")
        return self.epoch

    # --- events -----------------------------------------------------------------------------------------------

    def publish(self, event: events.Event, need: Need | None = None) -> int:
        """Say ``event`` to all nodes, and note on the claim of ``need`` that it was sent; how many listened."""
        channel = self._scoped(events.CHANNEL_OF[type(event)])
        try:
            self._check_connected()  # before the lock: whoever has it may be waiting for a Redis that is away
            with self._speaking:
                payload = self._sealed(event)
                if need is None or not self.policy.claim:
                    heard = self._ask(lambda: self._carrier.publish(channel, payload))
                else:
                    sent = f"{self._session}={need.revision}"
                    arguments = [channel, payload, sent, round(self.policy.claim_timeout * 1000)]
                    heard = int(self._ask(lambda: self._carrier.run("announce", [self._claim(need)], arguments)))
        except CarrierAway:
            self.metrics.count("publish_failed")
            raise
        self._count_sent(payload)
        return heard

    def tell(self, node_id: str, event: events.Event) -> None:
        """Say ``event`` to one node, in its inbox."""
        payload = self._encoded(event, 0)
        self._ask(lambda: self._carrier.publish(self._scoped(f"{events.INBOX}:{node_id}"), payload))
        self._count_sent(payload)

    def receive(self, timeout: float = 0.0) -> events.Envelope | None:
        """The next event of another node, waiting at most ``timeout`` seconds; None if there is none.

        What is not an event of our model is counted, logged once a kind, and dropped.
        Raises CarrierAway while Redis is away.
        """
        message = self._ask(lambda: self._carrier.receive(timeout))
        if message is None:
            return None
        self._beats_unanswered = 0
        self.metrics.count("received")
        try:
            envelope = events.decode(message.payload, fingerprint=self.fingerprint, identity=self.identity)
            if self._channels.get(message.channel) != events.CHANNEL_OF[type(envelope.event)]:
                raise events.EventRejected("malformed", f"{type(envelope.event).__name__} on {message.channel}")
            if envelope.source == self.node_id and envelope.session != self.session:
                raise events.EventRejected(
                    "namesake", f"another node is called {self.node_id!r} too: give each a node_id of its own, or none"
                )
        except events.EventRejected as error:
            self.reject(error)
            return None
        if envelope.source != self.node_id:
            return envelope
        self.echoed = max(self.echoed, envelope.number)
        while self._on_their_way and self._on_their_way[0][0] <= envelope.number:
            _, self._heard_to = self._on_their_way.popleft()
        return None

    def put_bulk(self, bulk: str, page: events.RecordPage | events.ManifestPage) -> None:
        """Put a page where another node can fetch it, for `bulk_ttl` seconds.

        Raises PageRefused where it is too large for this Redis: `pages` has a smaller bound by then.
        """
        payload = events.encode(page, self.identity)
        self._put(lambda: self._carrier.set(self._bulk(bulk), payload, ttl=self.policy.bulk_ttl), len(payload))
        self._count_sent(payload)

    def get_bulk(self, bulk: str) -> bytes | None:
        """The page that another node put there; None if it is gone. More than MAX_BULK_BYTES are not read."""
        payload = self._ask(lambda: self._carrier.read(self._bulk(bulk), events.MAX_BULK_BYTES + 1))
        self.metrics.count("bytes_fetched", len(payload))
        return payload or None

    def drop_bulk(self, bulk: str) -> None:
        """What was fetched need not stay there."""
        self._ask(lambda: self._carrier.delete(self._bulk(bulk)))

    def decode_records(self, payload: bytes) -> list[Record]:
        """The records of a page that another node put there. Raises EventRejected."""
        return self.decode_record_page(payload)[0]

    def decode_record_page(self, payload: bytes) -> tuple[list[Record], bool]:
        """`decode_records`, and whether there are more of those that were asked for."""
        return events.decode_record_page(payload, fingerprint=self.fingerprint, dim=self.dim, identity=self.identity)

    def decode_manifest(self, payload: bytes) -> tuple[Manifest, bool]:
        """A page of another node's manifest, and whether there is more of it. Raises EventRejected."""
        return events.decode_manifest(payload, fingerprint=self.fingerprint, identity=self.identity)

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

    def _sealed(self, event: events.Event) -> bytes:
        self.said += 1
        return self._encoded(event, self.said)

    def _encoded(self, event: events.Event, number: int) -> bytes:
        envelope = events.Envelope(self.node_id, self.fingerprint, self.session, number, event)
        return events.encode(envelope, self.identity)

    def _count_sent(self, *payloads: bytes) -> None:
        self.metrics.count("published")
        self.metrics.count("bytes_published", sum(map(len, payloads)))

    def _scoped(self, name: str) -> str:
        return f"{self.namespace}:{name}" if self.namespace else name

    @property
    def _model(self) -> str:
        """16 hex digits for this model's vectors of this catalogue: claims and leases are theirs."""
        return blake2b(f"{self.identity.incarnation} {self.fingerprint}".encode(), digest_size=8).hexdigest()

    @property
    def _session(self) -> str:
        return f"{self.session:016x}"

    @property
    def _alive(self) -> str:
        return self._scoped(f"{ALIVE}:{self._session}")

    @property
    def _life(self) -> tuple[int, str]:
        """How long this session lives without a word, in milliseconds, and where it is noted that one lives."""
        return round(self.alive_for * 1000), self._scoped(f"{ALIVE}:")

    def _claim(self, need: Need) -> str:
        return self._scoped(f"{CLAIM}:{self._model}:{need.chart_id}:{need.content_hash.hex()}")

    def _bulk(self, bulk: str) -> str:
        return self._scoped(f"{BULK}:{bulk}")

    def _check_connected(self) -> None:
        if not self._connected:
            raise CarrierAway(self._reason or f"not connected to {self.address}")

    def _ask(self, operation: Callable[[], T]) -> T:
        self._check_connected()
        joins = self._joins
        try:
            return operation()
        except CarrierAway as error:
            self._went_away(error, joins)
            raise

    def _put(self, operation: Callable[[], T], size: int) -> T:
        """`_ask`, for what brings a page of ``size`` bytes: a refusal of that is no outage, and raises PageRefused."""
        self._check_connected()
        try:
            answer = operation()
        except CarrierAway as error:
            bound = self.pages.bytes
            if not self._refuses(size, error):
                self._went_away(error)
                raise
            self.metrics.count("pages_refused")
            refused = f"a page of {size:,} bytes at {self.address}: {error.__cause__ or error}"
            if self.pages.bytes < bound:
                self.journal.warn_once(
                    "pages_refused", f"{refused}; they have {self.pages.bytes:,} at most from now on"
                )
            else:
                self.journal.note("page_refused", f"{refused}; it has a second try")
            raise PageRefused(refused) from error
        self.pages.taken(size)
        return answer

    def _refuses(self, size: int, error: CarrierAway) -> bool:
        """Whether Redis is there, and has answered to a page's size with an error or by cutting the line."""
        silent = isinstance(error.__cause__, redis.exceptions.TimeoutError)
        if not is_for_size(str(error)) and (silent or isinstance(error, CarrierRefused)):
            return False
        try:
            self._carrier.ping()
        except CarrierAway:
            return False
        return self.pages.refused(size, str(error))

    def _went_away(self, error: CarrierAway, joins: int | None = None) -> None:
        """An outage begins, or a refusal. joins: of the connection that failed: an earlier one's end is no news."""
        refused = isinstance(error, CarrierRefused)
        with self._lock:
            if joins is not None and joins != self._joins:
                return
            now = self.clock.now()
            if self._away_since is None:
                self._away_since = now
                if now - self._back_since > SILENT_BEATS * self.policy.heartbeat_interval:
                    self._troubled_since = now
                self._note_trouble(error, refused)
            elif refused != self._refused:
                self._note_trouble(error, refused)
            self._refused = refused
            self._reason = str(error)
            self._connected = False

    def _note_trouble(self, error: CarrierAway, refused: bool) -> None:
        self.metrics.count("refusals" if refused else "outages")
        self.journal.note("redis_refused" if refused else "redis_away", str(error), level=logging.WARNING)

    def _came_back(self) -> None:
        with self._lock:
            if self._away_since is not None:
                self.journal.note("redis_back", f"after {self.away_for:.2f} s", level=logging.INFO)
                self._back_since = self.clock.now()
            self._away_since = None
            self._refused = False
            self._reason = ""
            self._joins += 1
            self._connected = True
            self.pages.reset()

    def __repr__(self) -> str:
        state = "connected" if self._connected else f"{self.state}: {self._reason or 'not connected yet'}"
        scope = f", namespace={self.namespace!r}" if self.namespace else ""
        return f"Coordinator({self.node_id!r}, {self.address!r}{scope}, {state})"


def _name(field: str, value: str) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= 200:
        raise ValueError(f"{field}={value!r}: expected 1 to 200 characters")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{field}={value!r}: has half a surrogate pair, which cannot be sent; leave it out")
    return value


def _check_slot(carrier: Carrier, namespace: str) -> None:
    """ValueError for a Redis Cluster and a namespace that does not bring all keys to one server of it."""
    if isinstance(carrier, RedisCarrier) and carrier.clustered and not re.match(r"[^{]*\{[^}]+\}", namespace):
        raise ValueError(
            f"namespace={namespace!r}: a Redis Cluster needs all keys in one hash slot; "
            'put a name in braces, as in namespace="{charts}"'
        )


def _carrier(target: str | redis.Redis | redis.RedisCluster | Carrier, timeout: float) -> Carrier:
    if isinstance(target, str | redis.Redis | redis.RedisCluster):
        return RedisCarrier(target, timeout=timeout)
    if hasattr(target, "receive") and hasattr(target, "publish"):
        return target
    raise ValueError(
        f"redis={target!r}: expected a URL such as redis://127.0.0.1:6379/0, or a redis-py client that you made"
    )
