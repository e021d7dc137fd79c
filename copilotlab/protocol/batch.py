"""A batch: one pass over the catalogue, a chunk a step.

A rebuild brings every chart into this node and, under the lease, to all others; a scheduled sync, as written, fills
only the node that runs it. The owner of a batch calls `advance` until it is `over`, so a test can stop between any two
chunks.
"""

from __future__ import annotations

import secrets
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Literal, NamedTuple, TypeVar

import numpy as np

from copilotlab.charts import Chart, ChartRepository, Heads
from copilotlab.clock import Clock
from copilotlab.embedding import Embedder
from copilotlab.protocol import events
from copilotlab.protocol.carrier import CarrierAway
from copilotlab.protocol.coordinator import Coordinator, Lease, Need
from copilotlab.protocol.pages import PageRefused
from copilotlab.protocol.policy import Policy
from copilotlab.store import Record, VectorStore

Kind = Literal["rebuild", "sync"]
Outcome = Literal["published", "local", "deferred", "cancelled", "fenced"]
Todo = tuple[Chart, int]  # and the revision at which it was read

T = TypeVar("T")

# Newest changes go first, and texts of like length go together: a chunk is padded to its longest text. So the work is
# cut into windows by age, and each window is sorted by length.
CHUNKS_PER_WINDOW = 8

LOOK_AGAIN = 0.25  # seconds until it is seen what came of what other nodes had claimed
PLAIN_TEXT = "Revenue by region"  # what a model that works can embed


class BatchResult(NamedTuple):
    """What a batch did.

    outcome: "published" (the other nodes were told), "local" (this node only: a sync, or Redis was away), "deferred"
    (another node is at it), "fenced" (the lease was lost, another node goes on) or "cancelled"; charts: live charts
    read; embedded, reused, removed: how many vectors were made, kept and dropped; seconds: on the node's clock.
    """

    outcome: Outcome
    charts: int = 0
    embedded: int = 0
    reused: int = 0
    removed: int = 0
    seconds: float = 0.0


class Batch:
    """One run over the catalogue, or over what changed after ``since``.

    kind: "rebuild" tells the other nodes, "sync" does not.
    lease: what this node holds for it, and gives back at the end; None while Redis is away.
    read: what changed in the repository after a revision, 0 for all that it holds; by default the repository's own
    `heads_since`. dropped: how many charts left the store by the last reading. skip: is told of a chart that is left
    out, since its row cannot be read or the model fails on its words: chart_id, revision, content hash, column, reason.
    ask_peers: called before each chunk until it says True: by then what other nodes have of the charts that would have
    to be embedded, which it is given a function for, is here. None asks nobody.
    """

    def __init__(
        self,
        kind: Kind,
        *,
        lease: Lease | None,
        charts: ChartRepository,
        embedder: Embedder,
        store: VectorStore,
        coordinator: Coordinator,
        policy: Policy,
        clock: Clock,
        skip: Callable[[int, int, bytes, str, str], object],
        read: Callable[[int], Heads] | None = None,
        dropped: Callable[[], int] = lambda: 0,
        since: int = 0,
        ask_peers: Callable[[Callable[[], list[int]]], bool] | None = None,
    ) -> None:
        self.kind = kind
        self.name = uuid.uuid4().hex
        self.started = self.begun = clock.now()  # begun: when it said so, at its first step
        self.total = 0
        self.done = 0
        self.embedded = 0
        self.reused = 0
        self.removed = 0
        self.revision = since
        self.unsent: set[int] = set()
        """Charts that were embedded and that no other node was told of."""
        self.error: BaseException | None = None
        self.audience = 0
        """How many other nodes listened to the last thing that it said."""
        self.announced = 0
        """The number of the event by which this node said that it begins."""
        self.asking_since = clock.now()
        """When it had something to ask its peers for."""
        self.questions = 0
        """How often it began to ask its peers anew for what it lacks."""
        self.has_asked = False
        """Whether all who listened were asked for what they have."""
        self.unreleased = False
        """Whether the lease could not be given back, since Redis was away."""
        self.lease = lease
        self._sharing = lease is not None and kind == "rebuild"
        self._bulk = policy.reconcile
        self._leased_until = clock.now() + policy.batch_timeout
        self._charts = charts
        self._embedder = embedder
        self._store = store
        self._coordinator = coordinator
        self._policy = policy
        self._clock = clock
        self._skip = skip
        self._heads_since = read or charts.heads_since
        self._dropped = dropped
        self._since = since
        self._has_read = False
        self._planned_to = 0  # the revision that the first reading found
        self._ask_peers = ask_peers
        self._gathered = False  # since the last question
        self._sent = 0
        self._live: set[int] = set()
        self._kept: list[list[Record]] = []  # both are stacks: the next chunk is the last
        self._texts: list[list[Todo]] = []
        self._left: list[Todo] = []  # to other nodes that have claimed them
        self._claimed_to: dict[int, float] = {}  # chart_id -> when another node's claim on it must be over
        self._was_left: set[int] = set()
        self._look_again = clock.now()
        self._cancelled = self._fenced = False
        self._outcome: Outcome | None = None
        self.finished = threading.Event()
        """Set by whose batch it is, once it is over and what follows from that is done."""

    @property
    def epoch(self) -> int:
        """The lease's; 0 without one, or where leases have none."""
        return self.lease.epoch if self.lease is not None else 0

    @property
    def whole(self) -> bool:
        """Whether it takes in the whole catalogue, and not only what is new."""
        return self._since == 0

    @property
    def result(self) -> BatchResult:
        """What was done so far; its outcome is final once it is `over`."""
        outcome = self._outcome or ("published" if self._sharing else "local")
        seconds = self._clock.now() - self.started
        return BatchResult(outcome, self.total, self.embedded, self.reused, self.removed, seconds)

    @property
    def over(self) -> bool:
        """Whether no step is left."""
        return self._outcome is not None

    def cancel(self) -> None:
        """Stop before the next chunk; what was done stays."""
        self._cancelled = True

    def fence(self) -> None:
        """End before the next chunk: another node's batch is of a later epoch, and this one's events are dropped."""
        self._fenced = True

    def advance(self) -> bool:
        """One step: read the catalogue, or do a chunk, or end; False if it has ended, or waits for its peers.

        With `pick_up_deferred`, each step first takes what was saved since, so that a change is done next.

        What the repository or the embedder raises passes through, after the flag is cleared.
        """
        if self.over:
            return False
        progress = completed = False
        try:
            progress = self._step()
            completed = True
        finally:
            if not completed:
                self._end("cancelled")
        return progress and not self.over

    def _step(self) -> bool:
        if self._fenced:
            self._end("fenced")
        elif self._cancelled:
            self._end("cancelled")
        elif not self._has_read:
            self._has_read = True
            self.begun = self._clock.now()
            self._tell(events.BatchStarted(self.name, self.epoch))
            self.announced = self._coordinator.said
            self._plan(self._heads_since(self._since))
            self._planned_to = self.revision
            self.asking_since = self._clock.now()
        elif self._texts and not self._gather():
            return False
        else:
            if self._picks_up():
                self._plan(self._heads_since(self.revision))
            if self._kept:
                self._keep(self._kept.pop())
            elif self._texts:
                self._embed(self._texts.pop())
            elif self._left:
                return self._take_up_what_was_left()
            else:
                self._complete()
        return True

    def _take_up_what_was_left(self) -> bool:
        """See what came of what other nodes had claimed; False while it is early to look again.

        A batch is not over before that came, or was made here: whoever had claimed it may be gone.
        """
        now = self._clock.now()
        if now < self._look_again:
            return False
        self._look_again = now + LOOK_AGAIN
        self._texts = [*_cut(self._left, self._policy.chunk_size), *self._texts]
        self._left = []
        return True

    def _picks_up(self) -> bool:
        """Whether to take what was saved meanwhile.

        What is saved while Redis is away is embedded by whoever saves it, and said when Redis is back: taken here too,
        it would be embedded twice.
        """
        if not self._policy.pick_up_deferred or not (self._bulk and self._sharing):
            return self._policy.pick_up_deferred
        back_for = self._clock.now() - self._coordinator.back_since
        return self._coordinator.connected and back_for >= self._policy.rejoin_grace

    def _plan(self, heads: Heads) -> None:
        """Put what changed on top of what is left to do: newest first, what needs no embedding before what does."""
        self.removed += self._dropped()
        if not len(heads.chart_ids):
            return
        self.revision = int(heads.revisions.max())
        gone = dict(zip(heads.chart_ids[heads.deleted].tolist(), heads.revisions[heads.deleted].tolist(), strict=True))
        self._live -= gone.keys()
        live = np.flatnonzero(~heads.deleted)[::-1]
        chart_ids, revisions = heads.chart_ids[live], heads.revisions[live]
        self._live.update(chart_ids.tolist())
        held, hashes = self._store.heads(chart_ids)
        same = (held >= 0) & (hashes == heads.content_hashes[live]).all(axis=1) & self._policy.reuse_vectors
        there = same & (held >= revisions) & self._bulk  # nothing to do here, and whoever lacks it fetches it
        self._count_kept(int(there.sum()))
        bumped = zip(chart_ids[same & ~there].tolist(), revisions[same & ~there].tolist(), strict=True)
        kept = [replace(record, revision=revision) for i, revision in bumped if (record := self._store.get(i))]
        fresh = self._read(chart_ids[~same].tolist())
        self.reused += len(kept)
        self.total += len(kept) + len(fresh)
        self._kept.extend(_cut(kept, self._policy.chunk_size)[::-1])
        self._texts.extend(self._by_length(fresh)[::-1])

    def _read(self, chart_ids: list[int]) -> list[Todo]:
        """The words of these charts, as they are now, in this order."""
        if not chart_ids:
            return []
        changes, unreadable = self._charts.read_many(chart_ids)
        for row in unreadable.values():
            self._skip(row.chart_id, row.revision, row.content_hash, row.column, row.reason)
        there = [change for i in chart_ids if (change := changes.get(i)) is not None and change.chart is not None]
        edited = [c.chart_id for c in there if self._bulk and c.chart and c.content_hash != c.chart.content_hash]
        if edited:  # by hand, past the repository: it makes changes of them, which are picked up like any other
            self._charts.restamp(edited)
        return [(c.chart, c.revision) for c in there if c.chart is not None and c.chart_id not in edited]

    def _count_kept(self, count: int) -> None:
        self.reused += count
        self.total += count
        self.done += count

    def _by_length(self, fresh: list[Todo]) -> list[list[Todo]]:
        size = self._policy.chunk_size
        windows = _cut(fresh, size * CHUNKS_PER_WINDOW)
        return [chunk for window in windows for chunk in _cut(sorted(window, key=lambda item: len(item[0].text)), size)]

    def _gather(self) -> bool:
        """Take what other nodes have before it is made here; False while some of it is on its way.

        All are asked before the first chunk, and who comes back in the middle before the next one.
        """
        if self._ask_peers is None:
            return True
        if not self._ask_peers(lambda: [chart.chart_id for chart, _ in self._lacking()]):
            self._gathered = False
            return False
        if not self._gathered:
            self._gathered = self.has_asked = True
            lacking = self._lacking()
            self._count_came(sum(map(len, self._texts)) - len(lacking))
            self._texts = self._by_length(lacking)[::-1]
        return True

    def _lacking(self) -> list[Todo]:
        """What is left to embed, in this order, without what came from other nodes."""
        return [item for chunk in reversed(self._texts) for item in chunk if not self._came(*item)]

    def _came(self, chart: Chart, revision: int) -> bool:
        """Whether there is nothing to make: the vector came from another node, or the chart was deleted meanwhile."""
        if self._bulk and (
            chart.chart_id not in self._live or (self._store.tombstone(chart.chart_id) or -1) >= revision
        ):
            return True
        head = self._store.head(chart.chart_id) if self._bulk and self._policy.reuse_vectors else None
        if head is None or head[1] != chart.content_hash:
            return head is not None and head[0] > revision
        if head[0] < revision and (held := self._store.get(chart.chart_id)) is not None:
            self._store.put(replace(held, revision=revision))
        return True

    def _count_came(self, count: int) -> None:
        self.reused += count
        self.done += count

    def _embed(self, chunk: list[Todo]) -> None:
        todo = self._ours(chunk)
        if not todo:
            return
        made = self._made(todo)
        self._coordinator.metrics.count("truncated", len(self._embedder.cut([chart.text for chart, _ in todo])))
        self.embedded += len(made)
        self.total -= len(todo) - len(made)
        if made:
            self._take(made)

    def _made(self, todo: list[Todo]) -> list[Record]:
        """The records of these, without those on whose words alone the model fails; raises if it is down."""
        try:
            vectors = self._embedder.embed([chart.text for chart, _ in todo])
        except Exception:  # noqa: BLE001 - the model is foreign code, and one text may be at fault, or all of it
            self._embedder.embed([PLAIN_TEXT] * len(todo))  # raises if the model is down: then that is the reason
            if len(todo) > 1:
                half = len(todo) // 2
                return self._made(todo[:half]) + self._made(todo[half:])
            return self._made_again(*todo[0])
        return [
            Record.of(chart.chart_id, revision, chart.content_hash, vector)
            for (chart, revision), vector in zip(todo, vectors, strict=True)
        ]

    def _made_again(self, chart: Chart, revision: int) -> list[Record]:
        """The record of a chart on whose words a model that works has failed once; none if it does so again."""
        try:
            (vector,) = self._embedder.embed([chart.text])
            return [Record.of(chart.chart_id, revision, chart.content_hash, vector)]
        except Exception as error:  # noqa: BLE001 - as above
            self._skip(chart.chart_id, revision, chart.content_hash, "text", f"the model fails on it: {error!r}")
            with suppress(CarrierAway):  # then the claim ends by itself
                self._coordinator.disclaim(Need(chart.chart_id, chart.content_hash, revision))
            return []

    def _ours(self, chunk: list[Todo]) -> list[Todo]:
        """What is left to embed of a chunk, without what came meanwhile or is being made by another node.

        A node that was told of a change just before the lease was taken may be at it: that is left to it, for as long
        as a claim lasts.
        """
        todo = [item for item in chunk if not self._came(*item)]
        self._count_came(len(chunk) - len(todo))
        policy = self._policy
        if self.lease is None or not (policy.fenced and policy.claim and policy.reconcile):
            return todo
        needs = [Need(chart.chart_id, chart.content_hash, revision) for chart, revision in todo]
        try:
            _, granted = self._coordinator.admit(needs, self.lease)
        except CarrierAway:
            return self._without_redis(todo)
        if not any(granted) and needs and not self._still_ours():
            return []
        return self._without_claimed(todo, granted)

    def _without_claimed(self, todo: list[Todo], granted: list[bool]) -> list[Todo]:
        """What is to be made now. What others have claimed is left for later, and then asked for before it is made."""
        now = self._clock.now()
        ours, again = [], []
        for item, is_ours in zip(todo, granted, strict=True):
            chart_id = item[0].chart_id
            if not is_ours and now < self._claimed_to.setdefault(chart_id, now + self._policy.claim_timeout):
                self._left.append(item)
                self._was_left.add(chart_id)
            elif chart_id in self._was_left:  # the claim is free, or has lasted for longer than any does
                self._was_left.discard(chart_id)
                again.append(item)
            else:
                ours.append(item)
        if again:
            self._texts.append(again)
            self.questions += 1
            self.asking_since = now
        return ours

    def _without_redis(self, todo: list[Todo]) -> list[Todo]:
        """What is done all the same: what was there when the batch began, and so is nobody else's."""
        planned = [] if self._lease_is_over() else [item for item in todo if item[1] <= self._planned_to]
        self.total -= len(todo) - len(planned)
        return planned

    def _still_ours(self) -> bool:
        """Whether the lease is still ours; if it is not, the batch ends."""
        assert self.lease is not None
        try:
            if self._coordinator.keep_lease(self.lease) is not None:
                return True
        except CarrierAway:
            return not self._lease_is_over()
        self._end("fenced")
        return False

    def _lease_is_over(self) -> bool:
        """Whether, without a word from Redis, the lease must have run out; then the batch ends."""
        if self._policy.fenced and self.lease is not None and self._clock.now() >= self._leased_until:
            self._end("fenced")
            return True
        return False

    def _take(self, chunk: list[Record]) -> None:
        self._store.put_many(chunk)
        self.done += len(chunk)
        self._send(chunk)

    def _keep(self, chunk: list[Record]) -> None:
        """Words that did not change, at a new revision: where nodes reconcile, each sees that for itself."""
        self._store.put_many(chunk)
        self.done += len(chunk)
        if not self._bulk:
            self._send(chunk)

    def _complete(self) -> None:
        # As written, a rebuild adds and never removes; a sync replaces the whole store of its own node.
        chart_ids = None
        if self.whole and not self._bulk:  # where nodes reconcile, each follows the repository
            if self._policy.ordered or self.kind == "sync":
                self.removed += len(self._store.retain(self._live, self.revision))
            chart_ids = events.pack_ids(self._live)
        self._tell(events.BatchFinished(self.name, self.epoch, self._sent, self.revision, self.whole, chart_ids))
        if not self.over:
            self._end("published" if self._sharing else "local")

    def _send(self, chunk: list[Record]) -> None:
        if not (self._bulk and self._sharing):
            event = events.BatchChunk(self.name, self.epoch, [events.pack(record) for record in chunk])
            self._count_sent(chunk, self._tell(event))
            return
        while chunk:
            piece = chunk[: self._coordinator.pages.records(self._store.dim)]
            try:
                sent = self._tell(events.BatchChunkStored(self.name, self.epoch, secrets.token_hex(16)), piece)
            except PageRefused:
                continue  # fewer go into a page now
            self._count_sent(piece, sent)
            chunk = chunk[len(piece) :]

    def _count_sent(self, chunk: list[Record], sent: bool) -> None:
        if sent:
            self._sent += len(chunk)
        elif self.kind == "rebuild":
            self.unsent.update(record.chart_id for record in chunk)

    def _tell(self, event: events.Event, chunk: list[Record] | None = None) -> bool:
        """Say it to the others under the lease; False if that was not possible."""
        if not self._sharing or self.lease is None:
            return False
        policy = self._policy
        try:
            if not (policy.fenced or policy.renew_lease or chunk):
                self._coordinator.publish(event)
                return True
            heard = self._coordinator.keep_lease(self.lease, event, chunk or ())
            if heard is not None:
                self.audience = heard - 1
                if policy.renew_lease:
                    self._leased_until = self._clock.now() + policy.batch_timeout
                return True
        except CarrierAway:
            if not policy.fenced:
                # Redis left in the middle: finish for this node alone. Its return is followed by another rebuild.
                self._sharing = False
            else:
                self._lease_is_over()
            return False
        self._end("fenced")
        return False

    def _end(self, outcome: Outcome) -> None:
        if self.over:
            return
        if self.lease is not None and (outcome != "fenced" or self._fenced):
            recovered = outcome == "published" and self.kind == "rebuild" and self.whole
            try:
                self._coordinator.release_lease(self.lease, recovered=recovered)
            except CarrierAway:
                self.unreleased = True
                outcome = "local" if outcome == "published" else outcome
        self._outcome = outcome

    def __repr__(self) -> str:
        state = self._outcome or "under way"
        return f"Batch({self.kind}, {self.done}/{self.total} charts, {self.embedded} embedded, {state})"


def _cut(items: list[T], size: int) -> list[list[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
