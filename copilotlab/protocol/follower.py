"""Following the repository: what changed there is taken in, and what the store still lacks goes on the backlog.

A look reads what changed since the last one, and compares. The repository keeps a digest of all that it holds, and the
store one of what it holds; corrected by the backlog, they have to be the same. Where they are not, whatever the
revisions show (the database was restored and written on, a peer lied, a record was lost), the whole catalogue is
compared by content, and the repository is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from copilotlab.charts import Chart, ChartRepository, Heads, Identity, Look, RepositoryError
from copilotlab.digest import MODULUS, as_text, digest_of, entry
from copilotlab.monitoring.happenings import (
    AnotherCatalogue,
    Applied,
    ChartSkipped,
    ComparedAnew,
    EditsLeft,
    WentBack,
)
from copilotlab.protocol.backlog import Backlog
from copilotlab.protocol.context import Context
from copilotlab.store import VectorStore

DOUBT_BEATS = 10  # heartbeats after which every node has noticed that the repository went back
LONGEST_PAUSE = 60.0  # seconds between two comparisons of the whole catalogue that find a difference each time
MOST_MISSING = 5_000  # charts on the backlog, beyond which a comparison at each heartbeat costs too much
LOOKS_KEPT = 64  # last looks whose digest is remembered
SKIPPED_AGAIN = 100  # rows, at most, that could not be read and are tried again at each look
HASH = "content_hash"  # named as the column of a row that was edited by hand and cannot be made a change
TEXT = "text"  # named as the column where the model fails on a chart's words
LONGEST_SKIP = 3600.0  # seconds between two tries of a text that the model fails on

Words = tuple[Chart, int]
"""A chart as it was read, and the revision at which that was."""


class Completeness(NamedTuple):
    """How much of the repository is here, as of the last look at it.

    held, expected: charts here, and in all, without those that are skipped; expected is None before the first look.
    reason: why answers may lack charts or be of older words; "" where nothing is missing.
    """

    held: int
    expected: int | None
    reason: str = ""

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return not self.reason

    def __str__(self) -> str:
        share = f"{self.held:,} charts" if self.expected is None else f"{self.held:,} of {self.expected:,} charts"
        return f"{share}: {self.reason}" if self.reason else share


class Skipped(NamedTuple):
    """A chart that could not be taken in as it is in the repository, and why.

    column: of its row; "text" where the model failed on it. again: when a text is tried once more, on the node's clock;
    a row that could not be read is tried at every look. tries: how often it was tried.
    """

    revision: int
    content_hash: bytes
    column: str
    reason: str
    again: float
    tries: int


class Follower:
    """One store's view of the repository.

    store, backlog: what it keeps in step. new_patience: seconds until charts that are older than this store become its
    own to embed; for later changes it waits as long as the policy's `adopt_after`.
    went_back: called where the repository is not what was followed, so that all that was read of it is in doubt.
    is_another: called with the identity of a catalogue that has taken the place of the one that was followed.

    Not safe for threads: only the thread that works for the store may look.
    """

    def __init__(
        self,
        context: Context,
        charts: ChartRepository,
        store: VectorStore,
        backlog: Backlog,
        *,
        new_patience: float,
        went_back: Callable[[], object],
        is_another: Callable[[Identity], object],
    ) -> None:
        self._context = context
        self._charts = charts
        self._store = store
        self._backlog = backlog
        self._new_patience = new_patience
        self._tell_went_back = went_back
        self._tell_is_another = is_another
        self._identity = charts.identity
        self._offset = 0  # between the repository's digest and that of its rows, where those were edited by hand
        self._pause = context.policy.heartbeat_interval
        self._next_comparison = context.clock.now()
        self._doubts_until = context.clock.now()  # other nodes may not have noticed until then that it went back
        self.read_to = 0
        """The repository's revision at the last look."""
        self.has_read = False
        """Whether the repository was looked at since this store was new, or since the repository went back."""
        self.compared = False
        """Whether the last look took in the whole catalogue."""
        self.last_look: tuple[float, int] | None = None
        """When the repository was asked last, on the node's clock, and its revision then; None before the first."""
        self._stamped: set[int] = set()  # charts that were given a revision here: no other node will send their vectors
        self._looks: tuple[tuple[int, str], ...] = ()  # revision and digest at each; revisions grow
        self.skipped: dict[int, Skipped] = {}
        """What could not be taken in, by chart_id."""
        self._expected = 0  # charts that were to be here at the last look

    @property
    def complete_to(self) -> int:
        """The repository's revision up to which the store holds all that the looks have found."""
        return self._backlog.complete_to(self.read_to)

    @property
    def catalogue(self) -> tuple[int, str]:
        """The repository's revision at the last look, and its digest then; 0 and zeros before the first."""
        looks = self._looks
        return looks[-1] if looks else (0, as_text(0))

    def completeness(self) -> Completeness:
        """Tell how much of the repository is here, without waiting for anything. See `Backlog.at_most`.

        As written, a node does not look at the repository: it knows only what it left to a batch.
        """
        held, missing = len(self._store), self._backlog.at_most
        if not self._context.policy.reconcile:
            return Completeness(held, None, "" if held and not missing else "as far as it knows, more is to come")
        if not self.has_read:
            return Completeness(held, None, "this node has not read the repository yet")
        if not missing:
            return Completeness(held, held)
        return Completeness(
            held, max(held, self._expected), f"{missing:,} of them are still to come, or to come at their last words"
        )

    def contradicts(self, revision: int, digest: str) -> bool:
        """Tell whether the repository had another digest at that revision: then who says this reads another copy."""
        return dict(self._looks).get(revision, digest) != digest

    def start_over(self) -> None:
        """Take in the whole catalogue at the next look, by content; first make changes of what was edited by hand."""
        self.adopt_edits()
        self.read_to = 0

    def adopt_edits(self, chart_ids: Iterable[int] | None = None) -> bool:
        """Make a change of what was edited in the repository by hand, so that all nodes see it; False if it refuses.

        chart_ids: None looks at the whole catalogue.
        """
        try:
            self._stamped.update(self._charts.restamp(chart_ids))
        except RepositoryError as error:
            self._context.tell(EditsLeft(str(error)))
            return False
        return True

    def changes_since(self, revision: int) -> tuple[Heads, int]:
        """Read what changed in the repository after ``revision``, 0 for all, and how many charts were dropped by that.

        Where nodes reconcile, this is a look, which takes the changes in. Raises RepositoryError.
        """
        if not self._context.policy.reconcile:
            return self._charts.heads_since(revision), 0
        return self._look(revision, compare=False)

    def read(self, chart_ids: list[int]) -> list[Words]:
        """Read these charts as they are now, in this order. Raises RepositoryError.

        Rows that cannot be read are skipped. Where nodes reconcile, what was edited by hand is left out: it becomes a
        change, which the next look brings like any other, or is skipped if the repository takes no changes.
        """
        if not chart_ids:
            return []
        changes, unreadable = self._charts.read_many(chart_ids)
        for row in unreadable.values():
            self.skip(row.chart_id, row.revision, row.content_hash, row.column, row.reason)
        there = [change for i in chart_ids if (change := changes.get(i)) is not None]
        edited = {c.chart_id for c in there if c.chart and c.content_hash != c.chart.content_hash}
        if not self._context.policy.reconcile:
            edited.clear()
        if edited and not self.adopt_edits(sorted(edited)):
            for change in (change for change in there if change.chart_id in edited):
                reason = "these words were edited by hand, and the repository takes no changes: save the chart again"
                self.skip(change.chart_id, change.revision, change.content_hash, HASH, reason)
        return [(c.chart, c.revision) for c in there if c.chart is not None and c.chart_id not in edited]

    def look(self, since: int | None = None, *, compare: bool = True) -> Heads:
        """Take in what changed after revision ``since``, by default since the last look, and return it.

        0 is the whole catalogue: all live charts. compare: also check that store and repository hold the same, as of
        that moment. Raises RepositoryError; then nothing was changed.
        """
        heads, _ = self._look(self.read_to if since is None else since, compare=compare)
        return heads

    def _look(self, since: int, *, compare: bool) -> tuple[Heads, int]:
        """`look`, and how many charts it dropped."""
        # Noted before the repository is asked: what is not there then was never there.
        seen = max(self._store.latest, self.read_to, self._backlog.latest)
        version, asked_at = self._store.version, self._context.clock.now()
        look = self._charts.look(since)
        back = look.identity != self._identity or look.revision < seen
        if back:
            since, look = 0, self._charts.look(0)
            self._go_back(look, seen)
        elif self._context.clock.now() >= self._doubts_until:
            self._store.trust()
        heads, dropped = self._take_in(look, since, back=back)
        self.last_look = asked_at, look.revision  # at once: the listening thread reads it
        if compare and self._context.policy.ordered and since and not self._agrees(look, version):
            heads, dropped = self._compare()
        self._try_again()
        return heads, dropped

    def _take_in(self, look: Look, since: int, *, back: bool = False) -> tuple[Heads, int]:
        now, policy, heads = self._context.clock.now(), self._context.policy, look.heads
        due = now + (policy.adopt_after if self.has_read else self._new_patience)
        revision, reuse = look.revision, policy.reuse_vectors
        followed = self._store.follow(*heads, since=since, revision=revision, reuse=reuse, back=back)
        if dropped := len(followed.dropped):
            self._context.tell(Applied(dropped))
        rows = _rows(heads)
        lacking = {rows[row][0]: rows[row][1:] for row in followed.lacking.tolist()}
        self._skip_on(lacking, rows, whole=since == 0)
        if since == 0:
            self._backlog.replace(lacking, look.revision, due)
        else:
            # All of them: where the store keeps no order, it is not told of deletions.
            self._backlog.drop(chart_id for chart_id, *_ in rows if chart_id not in lacking)
            for chart_id, (revision, content_hash) in lacking.items():
                self._backlog.add(chart_id, revision, due, content_hash)
        for chart_id in self._stamped & lacking.keys():
            self._backlog.add(chart_id, lacking[chart_id][0], now, lacking[chart_id][1])
        self._stamped.clear()
        if len(heads.chart_ids):
            self._expected = len(self._store) + self._backlog.absent()
        self.read_to = look.revision
        looks = () if back or since == 0 else self._looks  # else they are of a past that may be lost
        if looks and looks[-1][0] == look.revision:
            looks = looks[:-1]
        self._looks = (*looks, (look.revision, as_text(look.digest)))[-LOOKS_KEPT:]  # at once, for the listening thread
        self.has_read = True
        self.compared = since == 0
        if self.compared:
            self._offset = (look.digest - digest_of(rows)) % MODULUS
        return heads, dropped

    def _skip_on(
        self, lacking: dict[int, tuple[int, bytes]], rows: list[tuple[int, int, bytes]], *, whole: bool
    ) -> None:
        """Go on skipping what has not changed since it was skipped, and give the rest another chance."""
        told = {chart_id for chart_id, *_ in rows}
        for chart_id, skipped in list(self.skipped.items()):
            if lacking.get(chart_id) == (skipped.revision, skipped.content_hash):
                del lacking[chart_id]
            elif whole or chart_id in told:
                del self.skipped[chart_id]

    def skip(self, chart_id: int, revision: int, content_hash: bytes, column: str, reason: str) -> None:
        """Leave out a chart that cannot be taken in as it is; it is tried again after a while, or once it changes."""
        before = self.skipped.get(chart_id)
        tries = 1 + (before.tries if before is not None and before.revision == revision else 0)
        again = self._context.clock.now() + min(LONGEST_SKIP, self._context.policy.adopt_after * 2.0 ** (tries - 1))
        self.skipped[chart_id] = Skipped(revision, content_hash, column, reason, again, tries)
        self._backlog.drop([chart_id])
        self._context.tell(ChartSkipped(chart_id, revision, column, reason))

    def _try_again(self) -> None:
        """Give what was skipped another chance: a row once it can be read, a text after a while."""
        now = self._context.clock.now()
        rows = [i for i, skipped in self.skipped.items() if skipped.column != TEXT][:SKIPPED_AGAIN]
        mended = self._charts.read_many(rows).changes if rows else {}
        if mended and self.adopt_edits(mended):
            for chart_id in mended:
                del self.skipped[chart_id]
        for chart_id, skipped in list(self.skipped.items()):
            if self._store.head(chart_id) == (skipped.revision, skipped.content_hash):
                del self.skipped[chart_id]
            elif skipped.column == TEXT and now >= skipped.again and chart_id not in self._backlog.expected():
                self._backlog.add(chart_id, skipped.revision, now, skipped.content_hash)

    def _agrees(self, look: Look, version: int) -> bool:
        """Tell whether store and backlog add up to the repository; True if that cannot be told at this moment."""
        if len(self._backlog) > MOST_MISSING:
            return True
        at = self._store.version
        here = self._store.content
        skipped = {i: (left_out.revision, left_out.content_hash) for i, left_out in self.skipped.items()}
        for chart_id, (revision, content_hash) in (skipped | self._backlog.expected()).items():
            if not content_hash and revision > look.revision:
                return True  # it was left to a batch or another node since
            held = self._store.head(chart_id)
            here += entry(chart_id, revision, content_hash) - (0 if held is None else entry(chart_id, *held))
        if self._store.version != at or (at != version and self._store.latest > look.revision):
            return True  # news came in the meantime: the next look will tell
        differs = (look.digest - self._offset - here) % MODULUS != 0
        if not differs:
            self._pause = self._context.policy.heartbeat_interval
        return not differs or self._context.clock.now() < self._next_comparison

    def _compare(self) -> tuple[Heads, int]:
        """Take in the whole catalogue, since it is not what was followed."""
        self._tell_went_back()
        self._context.tell(ComparedAnew(self.read_to))
        self._next_comparison = self._context.clock.now() + self._pause
        self._pause = min(LONGEST_PAUSE, 2 * self._pause)
        self.has_read = False
        return self._take_in(self._charts.look(0), 0)

    def _go_back(self, look: Look, seen: int) -> None:
        """Forget what was known of a past that the repository has lost, or of a catalogue that is no longer there.

        It was restored from a backup, or a peer told of what never was: the repository is right.
        """
        self._tell_went_back()
        self._backlog.clear()
        self.has_read = False
        self._doubts_until = self._context.clock.now() + DOUBT_BEATS * self._context.policy.heartbeat_interval
        if look.identity == self._identity:
            self._context.tell(WentBack(look.revision, seen))
        else:
            self._context.tell(AnotherCatalogue(look.identity.incarnation[:8], self._identity.incarnation[:8]))
            self.skipped.clear()
            self._identity = look.identity
            self._tell_is_another(look.identity)

    def __repr__(self) -> str:
        return f"Follower(read to {self.read_to}, {len(self._backlog)} charts missing)"


def _rows(heads: Heads) -> list[tuple[int, int, bytes]]:
    hashes = map(bytes, heads.content_hashes)
    return list(zip(heads.chart_ids.tolist(), heads.revisions.tolist(), hashes, strict=True))
