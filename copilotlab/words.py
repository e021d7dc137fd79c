"""What the charts of a node say of themselves, kept beside its vectors: to filter by, and to search by words.

It is in the repository, which may be slow or away. So it is read in the background, page by page, as the store of
vectors changes; a search takes what is there, and says what is not yet.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from copilotlab.charts import Chart, ChartRepository, RepositoryError
from copilotlab.filters import facets_of
from copilotlab.fusion import text_of
from copilotlab.patience import PATIENCE, PatientCall
from copilotlab.store import Ints, Lexicon, News, VectorStore, Words

READ_AT_ONCE = 1_000
TRIED_AGAIN = 100  # charts that the repository did not have as the store has them, each time that the store changes
PAUSE = 0.1  # seconds between two looks at what changed in the store
PAUSE_AFTER_FAILURE = 2.0

_NONE = np.empty(0, dtype=np.int64)


class _Progress(NamedTuple):
    """How far a store is followed. Replaced as a whole."""

    store: VectorStore | None
    version: int
    """Of the store, when it was compared last; -1: it is to be compared once more."""
    serial: int
    """What came into the store before that was compared."""
    unread: Ints
    """What was found to be lacking, and is not read yet."""
    refused: Ints
    """What was asked for, and the repository does not have at that revision."""


class WordsKept:
    """The words of the charts that a store holds, at the store's revision of each, or a later one.

    kept: whether to keep any from the start; else nothing is kept until `keep` is called. lexicon: what to begin with.
    """

    def __init__(self, charts: ChartRepository, *, kept: bool = False, lexicon: Lexicon | None = None) -> None:
        self._charts = charts
        self.lexicon = Lexicon() if lexicon is None else lexicon
        self.kept = kept
        """Whether words are kept here."""
        self._following: VectorStore | None = None
        self._progress = _beginning()
        self._next = 0.0
        self._ended = False
        self._lock = threading.Lock()  # of `_progress`, and of the words that go with it
        self._reads = PatientCall(self._read, "copilotlab-words")

    def after_fork(self) -> WordsKept:
        """Return what goes on in a forked child with what is here; locks and threads are the parent's."""
        return WordsKept(self._charts, kept=self.kept, lexicon=Lexicon(self.lexicon))

    def keep(self, store: VectorStore) -> None:
        """Keep the words of what ``store`` holds from now on; the first time, wait a quarter of a second for them."""
        begins, self.kept = not self.kept, True
        self.follow(store)
        if begins:
            self._reads.wait(lambda: not self.lacking(store), PATIENCE)

    def follow(self, store: VectorStore) -> None:
        """Begin to read what is lacking, in the background, if the store has changed since it was compared."""
        progress = self._progress
        if not self.kept or self._ended or (store is progress.store and store.version == progress.version):
            return
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + PAUSE
            self._following = store
            self._reads.begin()

    def note(self, chart: Chart, revision: int) -> None:
        """Take in a chart that was just saved, at its revision."""
        if self.kept:
            self.lexicon.put([_words(chart, revision)])

    def forget(self, chart_id: int) -> None:
        """Drop a chart that was deleted."""
        if self.kept:
            self.lexicon.remove(np.array([chart_id], dtype=np.int64))

    def clear(self) -> None:
        """Read all anew: the repository was restored, and its revisions mean something else."""
        with self._lock:
            self._progress = _beginning()
            self.lexicon.clear()

    def let_go(self) -> None:
        """Read no more."""
        self._ended = True

    def lacking(self, store: VectorStore) -> int:
        """Count the charts of the store whose words are not here at its revision."""
        progress = self._progress
        if not self.kept:
            return len(store)
        if store is progress.store and store.version == progress.version:
            return len(progress.unread) + len(progress.refused)
        if store is not progress.store:
            return len(self._lacking(store.news()))
        new = self._lacking(store.news(progress.serial))
        return len(np.unique(np.concatenate([new, progress.unread, progress.refused])))

    def caught_up(self, store: VectorStore) -> bool:
        """Tell whether all was read that the repository has; True where no words are kept."""
        progress = self._progress
        return not self.kept or (
            store is progress.store and store.version == progress.version and not len(progress.unread)
        )

    def _lacking(self, news: News) -> Ints:
        lacking: Ints = news.chart_ids[self.lexicon.revisions(news.chart_ids) < news.revisions]
        return lacking

    # --- on the reading thread ----------------------------------------------------------------------------------

    def _read(self) -> None:
        """Read the next page of what is lacking; before the first, find out what that is."""
        store, progress = self._following, self._progress
        if self._ended or store is None:
            return
        if not len(progress.unread) or store is not progress.store:
            compared = self._compared(store, progress)
            if not self._go_on(progress, compared):
                return
            progress = compared
        page = progress.unread[:READ_AT_ONCE]
        try:
            changes = self._charts.get_many(page.tolist()) if len(page) else {}
        except RepositoryError:
            self._next = time.monotonic() + PAUSE_AFTER_FAILURE
            self._go_on(progress, progress._replace(version=-1))
            return
        found = [_words(change.chart, change.revision) for change in changes.values() if change.chart is not None]
        held, _ = store.heads(page)
        brought = {one.chart_id: one.revision for one in found}
        late = [i for i, revision in zip(page.tolist(), held.tolist(), strict=True) if brought.get(i, -1) < revision]
        refused = np.concatenate([progress.refused, np.array(late, dtype=np.int64)])
        after = progress._replace(unread=progress.unread[len(page) :], refused=refused)
        if not self._go_on(progress, after, found):
            return
        if len(after.unread):
            self._reads.begin()
        while not self._ended and self.lexicon.tidy():
            pass

    def _compared(self, store: VectorStore, progress: _Progress) -> _Progress:
        """Find out what is lacking here, and drop what the store does not hold any more."""
        version, same = store.version, store is progress.store
        if same:
            news = store.news(progress.serial)
            again, refused = progress.refused[:TRIED_AGAIN], progress.refused[TRIED_AGAIN:]
            unread = np.unique(np.concatenate([self._lacking(news), again]))
            absent = np.unique(np.concatenate([unread, refused]))
            if len(self.lexicon) + int((self.lexicon.revisions(absent) < 0).sum()) == news.held:
                return _Progress(store, version, news.next_serial, unread, refused)
        news = store.news()  # something has gone
        self.lexicon.remove(np.setdiff1d(self.lexicon.chart_ids(), news.chart_ids))
        return _Progress(store, version, news.next_serial, self._lacking(news), _NONE)

    def _go_on(self, before: _Progress, after: _Progress, words: Sequence[Words] = ()) -> bool:
        """Note what was done, unless all was cleared meanwhile, or another thread has taken this one's place."""
        with self._lock:
            if self._progress is not before:
                return False
            self.lexicon.put(words)
            self._progress = after
            return True

    def __repr__(self) -> str:
        return f"WordsKept({self.lexicon!r})" if self.kept else "WordsKept(nothing)"


def _beginning() -> _Progress:
    return _Progress(None, -1, 0, _NONE, _NONE)


def _words(chart: Chart, revision: int) -> Words:
    return Words(chart.chart_id, revision, facets_of(chart), text_of(chart))
