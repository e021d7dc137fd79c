"""All that one node says to Redis and hears from it: heartbeats, claims, events and pages.

The lease (`lease`) and the connection (`link`) have rooms of their own. While Redis is known to be away, nothing here
waits for it: every call raises `CarrierAway` at once.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple, TypedDict, Unpack

import redis

from copilotlab.charts import Identity
from copilotlab.clock import Clock
from copilotlab.monitoring.happenings import Dropped, Heard, MemoryLost, PageFetched, Said
from copilotlab.protocol import events, keys
from copilotlab.protocol.carrier import Carrier, CarrierAway
from copilotlab.protocol.context import Context, check_name
from copilotlab.protocol.lease import Grant, lease_of
from copilotlab.protocol.link import SILENT_BEATS, Link
from copilotlab.protocol.policy import Policy
from copilotlab.protocol.view import Flags
from copilotlab.store import Manifest, Record
from copilotlab.store.records import as_integer


class Need(NamedTuple):
    """A vector that a node is about to make: of which chart, which words, and at least which revision."""

    chart_id: int
    content_hash: bytes
    revision: int


class Who(TypedDict, total=False):
    """The parts of a `Context`, for a coordinator that is made without a node."""

    node_id: str
    namespace: str
    policy: Policy | None
    clock: Clock | None


class Coordinator:
    """One node's side of the protocol, as far as Redis is concerned.

    redis: a URL, a redis-py client, or a `Carrier`.
    context: who this node is; or its parts instead: node_id, and, where they are not the default, policy, namespace and
    clock. A node skips its own events.
    fingerprint, dim: of the model whose vectors are sent; events of another model are dropped and counted.
    identity: of the catalogue that is spoken of, `ChartRepository.identity`; events of another one are dropped and
    counted, and so is what was signed with another key. None by default: no repository's.
    A namespace gives keys and channels of its own: nodes of two namespaces that share a Redis never hear each other;
    "" by default, which gives those of the written design. A Redis Cluster needs one in braces, "{charts}": all keys
    then lie together.

    Raises ValueError for a wrong URL, name, fingerprint or dim, TypeError for what is no policy or clock, and for a
    context together with parts of one.

    Source: the seed document's ChartVectorEventService, ChartDeletionService and RedisConnectionListener.
    """

    def __init__(
        self,
        redis: str | redis.Redis | redis.RedisCluster | Carrier,
        context: Context | None = None,
        *,
        fingerprint: str,
        dim: int,
        identity: Identity | None = None,
        **who: Unpack[Who],
    ) -> None:
        if context is not None and who:
            raise TypeError(f"Coordinator({', '.join(who)}=...) beside a context: leave it out, the context has it")
        self.context = Context.of(**who) if context is None else context
        policy, inbox = self.context.policy, f"{events.INBOX}:{self.context.node_id}"
        heard = [events.UPDATES, events.BATCHES, events.DELETIONS]
        if policy.reconcile:
            heard += [events.HEARTBEATS, inbox]
        self._channels = {self._scoped(channel): events.INBOX if channel == inbox else channel for channel in heard}
        self.dim = as_integer("dim", dim, smallest=1)
        self.link = Link(
            redis,
            self.context,
            list(self._channels),
            fingerprint=check_name("fingerprint", fingerprint),
            identity=identity or events.NO_CATALOGUE,
            scripted=policy.fenced or policy.tell_blips or policy.claim or policy.reconcile,
        )
        self.lease = lease_of(self.link)
        self.echoed = 0
        """The number of this node's last event that came back to it: all that was said before has been received."""
        self._generation = ""
        self._beats_unanswered = 0
        self._on_their_way: deque[tuple[int, float]] = deque()  # own heartbeats: number, when said
        self._heard_to = self.context.clock.now()

    # --- the connection ---------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether the last Redis operation worked and the subscription stands."""
        return self.link.connected

    @property
    def heard_to(self) -> float:
        """The time, on this node's clock, up to which it has received all that was said to it; heartbeats move it on.

        What this node says to all comes back to it behind whatever was said before. So a node that lags behind, or that
        was busy with something else, sees by its own heartbeats how much it has not heard yet.
        """
        return self._heard_to

    @property
    def beats_under_way(self) -> int:
        """How many heartbeats of this node have not come back to it yet; every node heard so far will hear them."""
        return len(self._on_their_way)

    def connect(self) -> bool:
        """Connect and subscribe now; if Redis is away an outage begins, and False is returned.

        Raises CarrierRefused if Redis is there but does not let us do what we must: a mistake to mend, not an outage.
        """
        return self.link.connect(self._greet)

    def probe(self) -> bool:
        """Look whether a Redis that was away is back, at most once per `probe_interval`; True if it is.

        Without `tell_blips`, as the written design's connection listener does, an outage is then marked in Redis.
        """
        return self.link.probe(self._greet_again)

    def _greet(self) -> None:
        self._beats_unanswered = 0
        self._on_their_way.clear()
        self._look()

    def _greet_again(self) -> None:
        self._greet()
        if not self.context.policy.tell_blips:
            self.link.carrier.set(self._scoped(keys.WAS_DOWN), b"true")

    def close(self, report: events.Report | None = None) -> None:
        """Leave Redis, and with it all that this node had claimed; say so to the others.

        report: the last one, that this node has ended.
        """
        if self.connected:
            with suppress(CarrierAway):  # it has gone too: then the claims end by themselves
                if self.context.policy.claim:
                    self.link.carrier.delete(self.link.sign_of_life)
                if self.context.policy.reconcile:
                    self.link.carrier.publish(self._scoped(events.HEARTBEATS), self.link.encode(events.Farewell()))
                    if report is not None:
                        self.link.carrier.publish(self._scoped(events.REPORTS), self.link.encode(report))
        self.link.close()

    # --- heartbeats, flags and claims -------------------------------------------------------------------------

    def beat(self, heartbeat: events.Heartbeat | None = None, report: events.Report | None = None) -> Flags:
        """Say that this node lives, and how it is, and read the flags, in one round trip.

        This is how an outage is noticed. A report is said with a heartbeat only.
        """
        flags = self.link.ask(lambda: self._look(heartbeat, report))
        if heartbeat is not None:
            self._beats_unanswered += 1
            if self._beats_unanswered > SILENT_BEATS:
                self.link.lose_to_silence()
        return flags

    def _look(self, heartbeat: events.Heartbeat | None = None, report: events.Report | None = None) -> Flags:
        policy, link, lease = self.context.policy, self.link, self.lease
        if not (lease.ends_with_its_holder or policy.tell_blips or policy.claim or heartbeat):
            return self._plain_flags()
        names = (keys.GENERATION, keys.BATCH_IN_PROGRESS, keys.WAS_DOWN, keys.EPOCH)
        where = [*map(self._scoped, names), link.sign_of_life]
        candidate = secrets.token_hex(16) if policy.tell_blips else ""
        with link.speaking:
            payload = b"" if heartbeat is None else link.seal(heartbeat)
            if payload:
                self._on_their_way.append((link.said, self.context.clock.now()))
            channel = self._scoped(events.HEARTBEATS) if payload else ""
            told = b"" if not payload or report is None else link.encode(report)
            to_watchers = self._scoped(events.REPORTS) if told else ""
            fixed = [candidate, lease.epoch, channel, payload, *link.life, int(lease.ends_with_its_holder)]
            what = [*fixed, to_watchers, told]
            generation, held, owed, epoch = link.carrier.run("beat", where, what)
        self._note_generation(generation.decode(errors="replace"))
        lease.learn_epoch(epoch)
        return Flags(lease.holder(held), bool(owed), lease.epoch)

    def _note_generation(self, generation: str) -> None:
        if self._generation and generation != self._generation:
            self.context.tell(MemoryLost())
        self._generation = generation

    def flags(self) -> Flags:
        """Read both flags, in one round trip."""
        return self.link.ask(self._plain_flags)

    def _plain_flags(self) -> Flags:
        held, owed = self.link.carrier.get(self._scoped(keys.BATCH_IN_PROGRESS), self._scoped(keys.WAS_DOWN))
        return Flags(self.lease.holder(held or b""), owed is not None, self.lease.epoch)

    def admit(self, needs: Sequence[Need], grant: Grant | None = None) -> tuple[Flags, list[bool]]:
        """Ask whether this node may embed these now; return the flags, and for each of them whether it is ours to do.

        While another node runs a batch of our model, or a rebuild is owed, nothing is ours; otherwise, with `claim`,
        what no other node has claimed. grant: of this node's own batch. Bounded by `redis_timeout`.
        """
        policy, link = self.context.policy, self.link
        if not policy.claim:
            flags = self.flags() if grant is None else Flags(None, False)
            return flags, [flags.batch_holder is None and not flags.owed] * len(needs)
        flags_at = [self._scoped(keys.BATCH_IN_PROGRESS), self._scoped(keys.WAS_DOWN)]
        where = [*flags_at, link.sign_of_life, *map(self._claim, needs)]
        own, ttl = "" if grant is None else grant.value, round(policy.claim_timeout * 1000)
        fixed = [link.session_name, link.model_name, own, ttl, *link.life, int(self.lease.ends_with_its_holder)]
        what = [*fixed, *(need.revision for need in needs)]
        held, owed, *granted = link.ask(lambda: link.carrier.run("admit", where, what))
        return Flags(self.lease.holder(held), bool(owed), self.lease.epoch), [bool(answer) for answer in granted]

    def disclaim(self, need: Need) -> None:
        """Give a claim back from which nothing came, if it is still this node's."""
        link = self.link
        if self.context.policy.claim:
            link.ask(lambda: link.carrier.run("disclaim", [self._claim(need)], [link.session_name]))

    # --- events -----------------------------------------------------------------------------------------------

    def publish(self, event: events.Event, *needs: Need) -> int:
        """Say ``event`` to all nodes, note on the claims of ``needs`` that it was sent; return how many listened."""
        link, policy = self.link, self.context.policy
        if not needs or not policy.claim:
            return link.say(event)
        claims = [self._claim(need) for need in needs]
        sent = [f"{link.session_name}={need.revision}" for need in needs]

        def announce(channel: str, payload: bytes) -> int:
            what = [channel, payload, round(policy.claim_timeout * 1000), *sent]
            return int(link.carrier.run("announce", claims, what))

        return link.say(event, announce)

    def tell(self, node_id: str, event: events.Event) -> None:
        """Say ``event`` to one node, in its inbox."""
        payload = self.link.encode(event)
        inbox = self._scoped(f"{events.INBOX}:{node_id}")
        self.link.ask(lambda: self.link.carrier.publish(inbox, payload))
        self.context.tell(Said(len(payload), type(event).__name__))

    def receive(self, timeout: float = 0.0) -> events.Envelope | None:
        """Return the next event of another node, waiting at most ``timeout`` seconds; None if there is none.

        What is not an event of our model is counted, logged once per kind, and dropped.
        Raises CarrierAway while Redis is away.
        """
        link = self.link
        message = link.ask(lambda: link.carrier.receive(timeout))
        if message is None:
            return None
        self._beats_unanswered = 0
        self.context.tell(Heard())
        try:
            envelope = events.decode(message.payload, fingerprint=link.fingerprint, identity=link.identity)
            if self._channels.get(message.channel) != events.CHANNEL_OF[type(envelope.event)]:
                raise events.EventRejected("malformed", f"{type(envelope.event).__name__} on {message.channel}")
            own = envelope.source == self.context.node_id
            if own and envelope.session != link.session:
                told = f"another node is called {envelope.source!r} too: give each a node_id of its own, or none"
                raise events.EventRejected("namesake", told)
        except events.EventRejected as error:
            if error.session not in self.context.sessions:
                self.reject(error)
            return None
        if not own:
            return envelope
        self.echoed = max(self.echoed, envelope.number)
        while self._on_their_way and self._on_their_way[0][0] <= envelope.number:
            _, self._heard_to = self._on_their_way.popleft()
        return None

    def reject(self, error: events.EventRejected) -> None:
        """Count what was dropped, and warn in the log the first time for its kind."""
        self.context.tell(Dropped(error.kind, str(error)))

    # --- pages ------------------------------------------------------------------------------------------------

    def put_bulk(self, bulk: str, page: events.RecordPage | events.ManifestPage) -> None:
        """Put a page where another node can fetch it, for `bulk_ttl` seconds.

        Raises PageRefused where it is too large for this Redis: `Link.pages` has a smaller bound by then.
        """
        link, ttl = self.link, self.context.policy.bulk_ttl
        payload = events.encode(page, link.identity)
        link.put(lambda: link.carrier.set(self._bulk(bulk), payload, ttl=ttl), len(payload))
        self.context.tell(Said(len(payload), type(page).__name__))

    def get_bulk(self, bulk: str) -> bytes | None:
        """Read the page that another node put there, at most MAX_BULK_BYTES + 1 of it; None if it is gone."""
        payload = self.link.ask(lambda: self.link.carrier.read(self._bulk(bulk), events.MAX_BULK_BYTES + 1))
        self.context.tell(PageFetched(len(payload)))
        return payload or None

    def drop_bulk(self, bulk: str) -> None:
        """Delete a page that was fetched."""
        self.link.ask(lambda: self.link.carrier.delete(self._bulk(bulk)))

    def decode_records(self, payload: bytes) -> list[Record]:
        """Decode the records of a page that another node put there. Raises EventRejected."""
        return self.decode_record_page(payload)[0]

    def decode_record_page(self, payload: bytes) -> tuple[list[Record], bool]:
        """Decode a page's records, and whether there are more of those that were asked for. Raises EventRejected."""
        link = self.link
        return events.decode_record_page(payload, fingerprint=link.fingerprint, dim=self.dim, identity=link.identity)

    def decode_manifest(self, payload: bytes) -> tuple[Manifest, bool]:
        """Decode a page of another node's manifest, and whether there is more of it. Raises EventRejected."""
        return events.decode_manifest(payload, fingerprint=self.link.fingerprint, identity=self.link.identity)

    def records(self, packed: Iterable[events.WireRecord]) -> list[Record]:
        """Unpack an event's records; those whose vector cannot be of our model are counted and left out."""
        unpacked = []
        for record in packed:
            try:
                unpacked.append(events.unpack(record, dim=self.dim))
            except events.EventRejected as error:
                self.reject(error)
        return unpacked

    # --- keys -------------------------------------------------------------------------------------------------

    def _scoped(self, name: str) -> str:
        return self.context.scope(name)

    def _claim(self, need: Need) -> str:
        return self._scoped(f"{keys.CLAIM}:{self.link.model_name}:{need.chart_id}:{need.content_hash.hex()}")

    def _bulk(self, bulk: str) -> str:
        return self._scoped(f"{keys.BULK}:{bulk}")

    def __repr__(self) -> str:
        link = self.link
        state = "connected" if link.connected else f"{link.state}: {link.reason or 'not connected yet'}"
        scope = f", namespace={self.context.namespace!r}" if self.context.namespace else ""
        return f"Coordinator({self.context.node_id!r}, {link.address!r}{scope}, {state})"
