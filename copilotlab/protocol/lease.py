"""The lease of a batch and its fencing token. It is taken, kept, given back and read here, and nowhere else.

One key in Redis says who may embed in a batch. In the written design its value is a node's name, and only time ends it
(`WrittenLease`). With `Policy.fenced` it has an epoch, a fencing token that grows with every lease that is taken
(M. Kleppmann, "How to do distributed locking", 2016). Its holder then deletes no lease but its own, says nothing once
another node has the lease, and loses it when it shows no sign of life (`FencedLease`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from copilotlab.monitoring.happenings import Said
from copilotlab.protocol import events, keys
from copilotlab.protocol.link import Link
from copilotlab.protocol.pages import PageRefused
from copilotlab.protocol.policy import Policy
from copilotlab.store import Record

MAX_EPOCH = 2**52  # a count beyond it is ignored: Lua's numbers are exact up to 2**53


class Grant(NamedTuple):
    """The right to run a batch.

    value: of the lease, as it stands in Redis; epoch: its fencing token, 0 where leases have none; owed: whether a
    rebuild was owed when it was taken; left_by: the holder that is gone and left it behind, "" if none did.
    """

    value: str
    epoch: int
    owed: bool
    left_by: str = ""


class Lease(ABC):
    """One node's side of the lease; `lease_of` chooses which."""

    ends_with_its_holder: ClassVar[bool]
    """Whether a holder that shows no sign of life loses it."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._key = link.context.scope(keys.BATCH_IN_PROGRESS)
        self._owed = link.context.scope(keys.WAS_DOWN)
        self.epoch = 0
        """The highest epoch that was seen in Redis."""

    @property
    def _policy(self) -> Policy:
        return self._link.context.policy

    @abstractmethod
    def take(self, *, if_owed: bool = False) -> Grant | None:
        """Take the lease for `batch_timeout`; None if another node has it. Raises CarrierAway.

        if_owed: take it only where a rebuild is owed. A lease without epochs does not look, and takes it anyway.
        """

    @abstractmethod
    def release(self, grant: Grant, *, recovered: bool) -> None:
        """Give the lease back; after a whole rebuild (``recovered``) none is owed any more. Raises CarrierAway."""

    @abstractmethod
    def holder(self, value: bytes) -> str | None:
        """Return the node named in the lease's ``value``; None if the lease is for another model or catalogue."""

    @abstractmethod
    def is_current(self, epoch: int) -> bool:
        """Tell whether Redis knows of a lease of that epoch. Raises CarrierAway."""

    @abstractmethod
    def counted(self, epoch: int) -> int:
        """Return the epoch that a batch which says it has this one counts for; 0 where leases have none.

        Kept there, the epoch of a node with another policy would shut out all that follow.
        """

    @abstractmethod
    def has_run_out(self) -> bool:
        """Tell, without asking Redis, whether the lease that was last taken or kept must have run out."""

    @abstractmethod
    def _say_regardless(self, page_key: str, page: bytes, channel: str, payload: bytes) -> int | None:
        """Say an event whose lease is gone, or leave it unsaid; return how many listened, None if it was not said."""

    def keep(self, grant: Grant, event: events.Event | None = None, chunk: Sequence[Record] = ()) -> int | None:
        """Renew the lease, put the ``chunk`` where ``event`` says it is, and say ``event``, all in one step.

        Returns how many listened, this node among them; None, and nothing was said, if the lease is no longer ours.
        Without epochs it is said even if another node has the lease. Raises PageRefused for a chunk that is too large,
        CarrierAway.
        """
        link, policy = self._link, self._policy
        page, page_key = b"", link.context.scope(f"{keys.BULK}:")
        if isinstance(event, events.BatchChunkStored):
            page = events.encode(events.page_of(link.fingerprint, chunk), link.identity)
            page_key += event.bulk
        ttl = round(policy.batch_timeout * 1000) if policy.renew_lease else 0
        link.check()  # before the lock, whose holder may be waiting for Redis, and before a number is taken
        with link.speaking:
            payload = b"" if event is None else link.seal(event)
            channel = link.context.scope(events.BATCHES) if payload else ""
            where = [self._key, page_key, link.sign_of_life]
            what = [grant.value, ttl, page, round(policy.bulk_ttl * 1000), channel, payload, link.life[0]]
            try:
                heard = int(link.put(lambda: link.carrier.run("keep_lease", where, what), len(page)))
            except PageRefused:
                link.said -= 1  # it was not said, and must leave no gap in the numbers
                raise
        if heard >= 0 and policy.renew_lease:
            self._was_renewed()
        said = heard if heard >= 0 else self._say_regardless(page_key, page, channel, payload)
        if said is not None and event is not None:
            link.context.tell(Said(len(payload) + len(page), type(event).__name__))
        return said

    @abstractmethod
    def _was_renewed(self) -> None:
        """Note that the lease lasts for another `batch_timeout`."""

    def learn_epoch(self, told: bytes) -> None:
        """Note the count of epochs in Redis; what is no count is ignored."""
        text = told.decode(errors="replace")
        if text.isascii() and text.isdecimal() and len(text) < 20 and int(text) < MAX_EPOCH:
            self.epoch = max(self.epoch, int(text))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(epoch {self.epoch})"


class WrittenLease(Lease):
    """The written design's lease: a node's name, for `batch_timeout`. At a batch's end it is deleted, whoever holds it.

    Source: the seed document, "Chart Update Workflow".
    """

    ends_with_its_holder = False

    def take(self, *, if_owed: bool = False) -> Grant | None:
        node_id, ttl = self._link.context.node_id, self._policy.batch_timeout
        taken = self._link.ask(lambda: self._link.carrier.set(self._key, node_id.encode(), ttl=ttl, if_absent=True))
        return Grant(node_id, 0, True) if taken else None

    def release(self, grant: Grant, *, recovered: bool) -> None:
        flags = [self._owed, self._key] if recovered else [self._key]
        self._link.ask(lambda: self._link.carrier.delete(*flags))

    def keep(self, grant: Grant, event: events.Event | None = None, chunk: Sequence[Record] = ()) -> int | None:
        if self._policy.renew_lease or chunk or event is None:
            return super().keep(grant, event, chunk)
        return self._link.say(event)

    def _say_regardless(self, page_key: str, page: bytes, channel: str, payload: bytes) -> int:
        link = self._link
        if page:
            link.ask(lambda: link.carrier.set(page_key, page, ttl=self._policy.bulk_ttl))
        return link.ask(lambda: link.carrier.publish(channel, payload)) if payload else 0

    def holder(self, value: bytes) -> str | None:
        return value.decode(errors="replace") or None

    def is_current(self, epoch: int) -> bool:
        return True

    def counted(self, epoch: int) -> int:
        return 0

    def has_run_out(self) -> bool:
        return False

    def _was_renewed(self) -> None:
        pass  # only Redis knows how long it lasts


class FencedLease(Lease):
    """A lease with an epoch. Its value: epoch, model, session and node, separated by spaces.

    A lease whose holder is gone is free to take: one that has not beaten for three heartbeats, or that is this very
    node in an earlier session.
    """

    ends_with_its_holder = True

    def __init__(self, link: Link) -> None:
        super().__init__(link)
        self._lasts_until = link.context.clock.now()

    def take(self, *, if_owed: bool = False) -> Grant | None:
        link = self._link
        context, model, session = link.context, link.model_name, link.session_name
        where = [self._key, context.scope(keys.EPOCH), self._owed, link.sign_of_life]
        milliseconds = round(self._policy.batch_timeout * 1000)
        what = [context.node_id, model, milliseconds, self.epoch, int(if_owed), session, *link.life]
        epoch, owed, left_by = link.ask(lambda: link.carrier.run("take_lease", where, what))
        if not epoch:
            return None
        self.epoch = int(epoch)
        self._was_renewed()
        value = f"{epoch} {model} {session} {context.node_id}"
        return Grant(value, self.epoch, bool(owed), left_by.decode(errors="replace"))

    def release(self, grant: Grant, *, recovered: bool) -> None:
        what = [grant.value, "1" if recovered else "0"]
        self._link.ask(lambda: self._link.carrier.run("release_lease", [self._key, self._owed], what))

    def _say_regardless(self, page_key: str, page: bytes, channel: str, payload: bytes) -> None:
        return None

    def holder(self, value: bytes) -> str | None:
        _, model, _, node_id = (value.decode(errors="replace").split(" ", 3) + [""] * 4)[:4]
        return node_id if model == self._link.model_name else None

    def is_current(self, epoch: int) -> bool:
        if epoch > self.epoch:
            key = self._link.context.scope(keys.EPOCH)
            (told,) = self._link.ask(lambda: self._link.carrier.get(key))
            self.learn_epoch(told or b"0")
        return 0 < epoch <= self.epoch

    def counted(self, epoch: int) -> int:
        return epoch

    def has_run_out(self) -> bool:
        return self._link.context.clock.now() >= self._lasts_until

    def _was_renewed(self) -> None:
        self._lasts_until = self._link.context.clock.now() + self._policy.batch_timeout


def lease_of(link: Link) -> Lease:
    """Make the kind of lease that the policy chooses."""
    return FencedLease(link) if link.context.policy.fenced else WrittenLease(link)
