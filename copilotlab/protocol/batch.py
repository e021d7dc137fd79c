"""A batch: one pass over the catalogue, one chunk per step.

A rebuild brings every chart into this node and, under the lease, to all others; a scheduled sync, as written, fills
only the node that runs it. The thread that drives a batch calls `advance` until it is `over`, so a test can stop
between any two chunks.
"""

from __future__ import annotations

import secrets
import threading
from contextlib import suppress
from typing import Literal, NamedTuple

from copilotlab.charts import Chart
from copilotlab.embedding import Embedder
from copilotlab.monitoring.happenings import Embedded, EmbeddingWasted
from copilotlab.protocol import events
from copilotlab.protocol.carrier import CarrierAway
from copilotlab.protocol.context import Context
from copilotlab.protocol.coordinator import Coordinator, Need
from copilotlab.protocol.follower import TEXT, Follower, Words
from copilotlab.protocol.inquiry import Inquiry
from copilotlab.protocol.lease import Grant
from copilotlab.protocol.pages import PageRefused
from copilotlab.protocol.worklist import Tally, WorkList
from copilotlab.store import Record, VectorStore

Kind = Literal["rebuild", "sync"]
Outcome = Literal["published", "local", "deferred", "cancelled", "fenced"]

PLAIN_TEXT = "Revenue by region"  # what a model that works can embed


class BatchResult(NamedTuple):
    """What a batch did.

    outcome: "published" (the other nodes were told), "local" (this node only: a sync, or Redis was away), "deferred"
    (another node is at it), "fenced" (the lease was lost, another node goes on) or "cancelled"; charts: live charts
    read; embedded, reused, removed: how many vectors were made, kept and dropped; seconds: on the node's clock;
    missing: how many charts this node lacks nevertheless, or has with older words; reason: why, "" if it lacks none.
    """

    outcome: Outcome
    charts: int = 0
    embedded: int = 0
    reused: int = 0
    removed: int = 0
    seconds: float = 0.0
    missing: int = 0
    reason: str = ""


class Batch:
    """One run over the catalogue, or over what changed after revision ``since``.

    kind: "rebuild" tells the other nodes, "sync" does not.
    grant: the lease that this node holds for the batch, and gives back at the end; None while Redis is away.
    follower: reads the repository; it is told of charts that are left out.
    inquiry: asks the other nodes for what they have, before it is made here; None asks nobody.
    """

    def __init__(
        self,
        kind: Kind,
        *,
        name: str,
        grant: Grant | None,
        embedder: Embedder,
        store: VectorStore,
        follower: Follower,
        coordinator: Coordinator,
        since: int = 0,
        inquiry: Inquiry | None = None,
    ) -> None:
        self.kind = kind
        self.name = name
        self.grant = grant
        self.tally = Tally(coordinator.context.clock.now())
        self.revision = since
        """The repository's revision up to which the batch has read."""
        self.unsaid: set[int] = set()
        """Charts that were embedded, and that the other nodes were not told of."""
        self.error: BaseException | None = None
        self.unreleased = False
        """Whether the lease could not be given back, since Redis is away."""
        self.finished = threading.Event()
        """Set by `Batches` once the batch is over and concluded."""
        self.inquiry = inquiry
        self._sharing = grant is not None and kind == "rebuild"
        self._embedder = embedder
        self._store = store
        self._follower = follower
        self._coordinator = coordinator
        self._since = since
        self._planned_to: int | None = None  # the revision that the first reading found
        self._work = WorkList(store, follower, self._context.policy, self.tally)
        self._end_with: Outcome | None = None  # asked for from outside, before the next chunk
        self._outcome: Outcome | None = None

    @property
    def _context(self) -> Context:
        return self._coordinator.context

    @property
    def epoch(self) -> int:
        """The lease's epoch; 0 without a lease, or where leases have none."""
        return self.grant.epoch if self.grant is not None else 0

    @property
    def whole(self) -> bool:
        """Whether the batch takes in the whole catalogue, and not only what is new."""
        return self._since == 0

    @property
    def result(self) -> BatchResult:
        """What was done so far; the outcome is final once the batch is `over`."""
        outcome = self._outcome or ("published" if self._sharing else "local")
        tally, seconds = self.tally, self._context.clock.now() - self.tally.began
        return BatchResult(outcome, tally.total, tally.embedded, tally.reused, tally.removed, seconds)

    @property
    def over(self) -> bool:
        """Whether no step is left."""
        return self._outcome is not None

    def cancel(self) -> None:
        """Stop before the next chunk; what was done stays."""
        self._end_with = self._end_with or "cancelled"

    def fence(self) -> None:
        """End before the next chunk: another node's batch is of a later epoch, and this one's events are dropped."""
        self._end_with = "fenced"

    def advance(self) -> bool:
        """Take one step: read the catalogue, or do a chunk, or end; False if the batch has ended, or waits for peers.

        With `pick_up_deferred`, each step first takes in what was saved since, so that a new change is done next.

        What the repository or the embedder raises passes through, after the lease was given back.
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
        work = self._work
        if self._end_with is not None:
            self._end(self._end_with)
        elif self._planned_to is None:
            self._begin()
        elif work.has_texts and not self._gather():
            return False
        else:
            if self._picks_up():
                self._plan(self.revision)
            if (kept := work.next_kept()) is not None:
                self._keep(kept)
            elif (chunk := work.next_texts()) is not None:
                self._embed(chunk)
            elif work.has_left:
                # The batch is not over before that came, or was made here: the node that claimed it may be gone.
                return work.take_up_what_was_left(self._context.clock.now())
            else:
                self._complete()
        return True

    def _begin(self) -> None:
        self._planned_to = 0  # set first, so that a reading that fails is not tried again
        if self.inquiry is not None:
            self.inquiry.begin()
        self._tell(events.BatchStarted(self.name, self.epoch))
        said = self._coordinator.link.said
        self._plan(self._since)
        self._planned_to = self.revision
        if self.inquiry is not None:
            self.inquiry.announced(said)

    def _picks_up(self) -> bool:
        """Tell whether to take in what was saved meanwhile.

        What is saved while Redis is away is embedded by the node that saves it, and said when Redis is back: taken in
        here too, it would be embedded twice.
        """
        policy, link = self._context.policy, self._coordinator.link
        if not policy.pick_up_deferred or not (policy.reconcile and self._sharing):
            return policy.pick_up_deferred
        return link.connected and self._context.clock.now() - link.back_since >= policy.rejoin_grace

    def _plan(self, since: int) -> None:
        heads, dropped = self._follower.changes_since(since)
        self.tally.removed += dropped
        if len(heads.chart_ids):
            self.revision = int(heads.revisions.max())
            self._work.add(heads)

    def _gather(self) -> bool:
        """Fetch what other nodes have before it is made here; False while some of it is on its way.

        All nodes are asked before the first chunk; one that comes back in the middle is asked before the next chunk.
        """
        inquiry, work = self.inquiry, self._work
        if inquiry is None:
            return True
        if not inquiry.step(lambda: [chart.chart_id for chart, _ in work.lacking()]):
            return False
        if not inquiry.answered:
            inquiry.answered = inquiry.has_asked = True
            work.drop_what_came()
        return True

    # --- what is made here ------------------------------------------------------------------------------------

    def _embed(self, chunk: list[Words]) -> None:
        todo = self._ours(chunk)
        if not todo:
            return
        made = self._made(todo)
        self._context.tell(Embedded(len(made), len(self._embedder.cut([chart.text for chart, _ in todo]))))
        self.tally.embedded += len(made)
        self.tally.total -= len(todo) - len(made)
        if made:
            if wasted := len(made) - self._store.put_many(made):
                self._context.tell(EmbeddingWasted(wasted))
            self.tally.done += len(made)
            self._send(made)

    def _made(self, todo: list[Words]) -> list[Record]:
        """Embed these; leave out those whose text makes the model fail, and raise if the model is down."""
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
        """Embed one chart once more, on whose text a model that works has failed; skip it if it fails again."""
        try:
            (vector,) = self._embedder.embed([chart.text])
            return [Record.of(chart.chart_id, revision, chart.content_hash, vector)]
        except Exception as error:  # noqa: BLE001 - as above
            reason = f"the model fails on it: {error.__cause__ or error!r}"
            self._follower.skip(chart.chart_id, revision, chart.content_hash, TEXT, reason)
            with suppress(CarrierAway):  # then the claim ends by itself
                self._coordinator.disclaim(Need(chart.chart_id, chart.content_hash, revision))
            return []

    def _ours(self, todo: list[Words]) -> list[Words]:
        """Return what of this is to be made here, without what another node has claimed.

        A node that was told of a change just before the lease was taken may be embedding it: that is left to it, for as
        long as a claim lasts.
        """
        policy = self._context.policy
        if self.grant is None or not (self.epoch and policy.claim and policy.reconcile):
            return todo
        needs = [Need(chart.chart_id, chart.content_hash, revision) for chart, revision in todo]
        try:
            _, granted = self._coordinator.admit(needs, self.grant)
        except CarrierAway:
            return self._without_redis(todo)
        if not any(granted) and needs and not self._still_ours(self.grant):
            return []
        ours, asks = self._work.share(todo, granted, self._context.clock.now())
        if asks and self.inquiry is not None:
            self.inquiry.begin_anew()
        return ours

    def _without_redis(self, todo: list[Words]) -> list[Words]:
        """Return what is done even without Redis: what was there when the batch began, so no other node embeds it."""
        planned = [] if self._lease_is_over() else [item for item in todo if item[1] <= (self._planned_to or 0)]
        self.tally.total -= len(todo) - len(planned)
        return planned

    def _still_ours(self, grant: Grant) -> bool:
        """Tell whether the lease is still ours; if it is not, end the batch."""
        try:
            if self._coordinator.lease.keep(grant) is not None:
                return True
        except CarrierAway:
            return not self._lease_is_over()
        self._end("fenced")
        return False

    def _lease_is_over(self) -> bool:
        """Tell, without asking Redis, whether the lease must have run out; then end the batch."""
        if self.grant is not None and self._coordinator.lease.has_run_out():
            self._end("fenced")
            return True
        return False

    def _keep(self, chunk: list[Record]) -> None:
        """Keep vectors whose words did not change, at a new revision; where nodes reconcile, each does so by itself."""
        self._store.put_many(chunk)
        self.tally.done += len(chunk)
        if not self._context.policy.reconcile:
            self._send(chunk)

    # --- what is said -----------------------------------------------------------------------------------------

    def _complete(self) -> None:
        # In the written design a rebuild adds and never removes; a sync replaces the whole store of its own node.
        chart_ids, policy = None, self._context.policy
        if self.whole and not policy.reconcile:  # where nodes reconcile, each follows the repository
            if policy.ordered or self.kind == "sync":
                self.tally.removed += len(self._store.retain(self._work.live, self.revision))
            chart_ids = events.pack_ids(self._work.live)
        self._tell(events.BatchFinished(self.name, self.epoch, self.tally.sent, self.revision, self.whole, chart_ids))
        if not self.over:
            self._end("published" if self._sharing else "local")

    def _send(self, chunk: list[Record]) -> None:
        if not (self._context.policy.reconcile and self._sharing):
            event = events.BatchChunk(self.name, self.epoch, [events.pack(record) for record in chunk])
            self._count_sent(chunk, self._tell(event))
            return
        while chunk:
            piece = chunk[: self._coordinator.link.pages.records(self._store.dim)]
            try:
                sent = self._tell(events.BatchChunkStored(self.name, self.epoch, secrets.token_hex(16)), piece)
            except PageRefused:
                continue  # fewer go into a page now
            self._count_sent(piece, sent)
            chunk = chunk[len(piece) :]

    def _count_sent(self, chunk: list[Record], sent: bool) -> None:
        if sent:
            self.tally.sent += len(chunk)
        elif self.kind == "rebuild":
            self.unsaid.update(record.chart_id for record in chunk)

    def _tell(self, event: events.Event, chunk: list[Record] | None = None) -> bool:
        """Say an event to the other nodes under the lease; False if that was not possible."""
        if not self._sharing or self.grant is None:
            return False
        try:
            heard = self._coordinator.lease.keep(self.grant, event, chunk or ())
        except CarrierAway:
            if not self.epoch:
                # Redis went away in the middle: finish for this node alone. When it is back, another rebuild follows.
                self._sharing = False
            else:
                self._lease_is_over()
            return False
        if heard is None:
            self._end("fenced")
            return False
        if self.inquiry is not None:
            self.inquiry.audience = heard - 1
        return True

    def _end(self, outcome: Outcome) -> None:
        if self.over:
            return
        if self.grant is not None and (outcome != "fenced" or self._end_with == "fenced"):
            recovered = outcome == "published" and self.kind == "rebuild" and self.whole
            try:
                self._coordinator.lease.release(self.grant, recovered=recovered)
            except CarrierAway:
                self.unreleased = True
                outcome = "local" if outcome == "published" else outcome
        self._outcome = outcome

    def __repr__(self) -> str:
        state, tally = self._outcome or "under way", self.tally
        return f"Batch({self.kind}, {tally.done}/{tally.total} charts, {tally.embedded} embedded, {state})"
