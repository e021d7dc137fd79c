"""What may come into an ordered store: what outranks what is held, and what the repository does not rule out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from copilotlab.store.records import Bytes, Ints, Record

MOST_ASIDE = 10_000  # records that are kept until the repository has confirmed what took their place

Rank = tuple[int, bytes, bytes]
"""Of a record: its revision, vector hash and content hash. The larger one stays."""

Named = tuple[int, bytes]
"""What the repository says of a chart: its revision and content hash."""


class Admission:
    """The rules of one ordered store, and what it knows of removals and of the repository that it follows.

    Up to the settled revision, at which the repository was read last, only what that has named comes in. Above it are
    news, which the repository has not confirmed yet: they come in by rank, unless the chart was removed.

    The store changes it with its writers' lock held; reading takes no lock.
    """

    def __init__(self) -> None:
        self.tombstones: dict[int, int] = {}
        """Of removed charts: chart_id -> revision."""
        self._horizon: tuple[int, frozenset[int]] = (-1, frozenset())
        self._watermark = -1  # the repository's revision at which it was followed last
        self._expected: dict[int, Named] = {}  # what it named up to there and is not here
        self._aside: dict[int, Record] = {}  # what news took the place of, until the repository has confirmed it
        self._doubtful_to = -1  # up to there, what is newer than the watermark may be of a past that was lost
        self.settled = -1
        """The revision up to which only what the repository named comes in: the higher one of these two."""

    def outranks(self, chart_id: int, rank: Rank, held: Rank | None) -> bool:
        """Return whether a record of that rank takes the place of what is held."""
        if rank[0] <= self.settled:
            named = self._expected.get(chart_id) if held is None or held[0] != rank[0] else (held[0], held[2])
            if named != (rank[0], rank[2]):
                return False
        if held is not None:
            return rank > held
        complete_to, listed = self._horizon
        return rank[0] > self.tombstones.get(chart_id, -1) and (rank[0] > complete_to or chart_id in listed)

    def revision_of(self, chart_id: int, revision: int, content_hash: bytes) -> int:
        """Return the revision that the repository gives these words, if it named them; else the one that they have."""
        named = self._expected.get(chart_id)
        if named is None or named[1] != content_hash or revision > self.settled:
            return revision
        return named[0]

    def as_named(self, record: Record) -> Record:
        """Return the record, at the revision that the repository gives its words if it named them."""
        revision = self.revision_of(record.chart_id, record.revision, record.content_hash)
        return record if revision == record.revision else replace(record, revision=revision)

    def keep_to(self, revision: int, chart_ids: Iterable[int]) -> bool:
        """Keep out, up to ``revision``, all but these charts; False if a list of a later revision is known."""
        if revision < self._horizon[0]:
            return False
        self._horizon = (revision, frozenset(chart_ids))
        return True

    # --- what news take the place of ----------------------------------------------------------------------------

    def is_news(self, revision: int) -> bool:
        """Return whether the repository may not know of that revision yet, as of when it was followed last."""
        return revision > self._watermark

    def wants_aside(self, revision: int) -> bool:
        """Return whether a record of that revision is kept when news replaces it: the repository has named it."""
        return not self.is_news(revision) and len(self._aside) < MOST_ASIDE

    def set_aside(self, record: Record) -> None:
        """Keep the record until the repository has confirmed what takes its place: that may turn out not to be so."""
        self._aside.setdefault(record.chart_id, record)

    def taken_back(
        self, chart_ids: Ints, revisions: Ints, content_hashes: Bytes, lacking: npt.NDArray[np.bool_]
    ) -> list[Record]:
        """Return the records that were set aside and have the words of ``lacking`` heads, at the repository's revision.

        These heads are lacking no longer: ``lacking`` is changed.
        """
        found = []
        for row in np.flatnonzero(lacking).tolist() if self._aside else ():
            record = self._aside.get(int(chart_ids[row]))
            if record is not None and record.content_hash == content_hashes[row].tobytes():
                lacking[row] = False
                found.append(replace(record, revision=int(revisions[row])))
        return found

    # --- what the repository says -------------------------------------------------------------------------------

    def go_back(self, latest: int) -> None:
        """Forget what the repository has named: it went back. What came up to ``latest`` may be of the lost past."""
        self.tombstones, self._expected, self._horizon = {}, {}, (-1, frozenset())
        self._settle(-1, max(self._doubtful_to, latest))

    def trust(self) -> None:
        """Take in again what is newer than the repository was when it went back."""
        self._settle(self._watermark, -1)

    def _settle(self, watermark: int, doubtful_to: int) -> None:
        self._watermark, self._doubtful_to = watermark, doubtful_to
        self.settled = max(watermark, doubtful_to)

    def follow(
        self,
        told: Iterable[int],
        lacking: Mapping[int, Named],
        buried: Mapping[int, int],
        *,
        since: int,
        revision: int,
        holds: Callable[[int, int, bytes], bool],
    ) -> bool:
        """Take the repository's word, as of ``revision``, for the charts that changed after ``since``; 0: for all.

        told: those charts; of them ``lacking`` are still to come, and ``buried`` are deleted, at these revisions.
        holds: whether the store has these words or news. False if changes in between were not told, so that only the
        deletions count.
        """
        if since and since > self._watermark:
            self.tombstones.update({i: t for i, t in buried.items() if t > self.tombstones.get(i, -1)})
            return False
        expected = dict(lacking)
        if since:
            told = set(told)
            expected |= {i: named for i, named in self._expected.items() if i not in told}
            self._aside = {i: kept for i, kept in self._aside.items() if i not in told}
        else:
            self._aside = {}
        self._expected = expected = {i: named for i, named in expected.items() if not holds(i, *named)}
        self._settle(revision, self._doubtful_to)
        # Of no other chart need it be known that it was removed by then: nothing of it comes in.
        self.tombstones = {
            i: t for i, t in self.tombstones.items() if t > revision or (i in expected and t < expected[i][0])
        }
        return True

    def correct(self, chart_id: int, named: Named | None, *, removed: int) -> None:
        """Take the repository's word for one chart: ``named`` is still to come, or with None nothing is.

        removed: the revision at which the chart was removed there; 0 if it was not.
        """
        self.tombstones.pop(chart_id, None)
        self._expected.pop(chart_id, None)
        if named is not None:
            self._expected[chart_id] = named
        if removed:
            self.tombstones[chart_id] = removed

    def __repr__(self) -> str:
        return f"Admission(settled to {self.settled}, {len(self._expected)} expected, {len(self.tombstones)} removed)"
