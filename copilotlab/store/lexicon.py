"""What charts say of themselves, in memory: to filter by, and to find by words, with BM25 over trigrams.

It is made of segments, which never change: what comes in is a segment of its own, and small ones are merged, off the
readers' way. So a reader takes the segments as they are at one moment, without a lock, and one change costs little.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from copilotlab.store.grams import grams_of
from copilotlab.store.postings import Postings
from copilotlab.store.records import Ints

MERGED_UP_TO = 2  # a segment is merged with smaller ones that have half as many charts in all, or more
DEAD_SHARE = 1 / 4  # of a segment's charts: beyond, it is written anew without them
NAMES_SPARE = 1_000  # facets that no chart has any more, and that are remembered until they are so many

Facet = tuple[str, str]
"""A field and one of its values, as in ("source", "Sales")."""
Mask = npt.NDArray[np.bool_]

SATURATION = 1.2  # BM25's k1: how soon it does not matter any more that a chart has a trigram several times
LENGTH_MATTERS = 0.5  # BM25's b
USUAL_LENGTH = 150  # trigrams, of any catalogue: so a chart's weights depend on itself alone
FULL = 255  # the weight of a trigram that a chart repeats for ever
COMMON = 0.3  # of all charts have a trigram: then it tells little, and is left out, which halves the time
FEW = 10_000  # charts: what so many have, or fewer, is never left out, since there is time for it
FINENESS = 1_024  # steps that a trigram's rarity is counted in: whole numbers add up alike in any order


class Words(NamedTuple):
    """What one chart says of itself, at a revision."""

    chart_id: int
    revision: int
    facets: tuple[Facet, ...]
    text: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Some charts, by id. live: which of them count; a newer segment has the others, or none has."""

    chart_ids: Ints
    revisions: Ints
    live: Mask
    facets: Postings
    grams: Postings

    @classmethod
    def of(cls, words: Sequence[Words], names: dict[int, Facet]) -> Segment:
        """Make a segment of distinct charts. names: takes in what their facets are called."""
        ordered = sorted(words)
        keys, rows = [], []
        for row, one in enumerate(ordered):
            for facet in dict.fromkeys(one.facets):
                key = _key(facet)
                names.setdefault(key, facet)
                keys.append(key)
                rows.append(row)
        return cls(
            np.array([one.chart_id for one in ordered], dtype=np.int64),
            np.array([one.revision for one in ordered], dtype=np.int64),
            np.ones(len(ordered), dtype=bool),
            Postings.of(np.array(keys, dtype=np.uint64), np.array(rows, dtype=np.uint32)),
            _weighed([one.text for one in ordered]),
        )

    @property
    def size(self) -> int:
        """Charts in it that count."""
        return int(self.live.sum())

    @property
    def nbytes(self) -> int:
        heads = self.chart_ids.nbytes + self.revisions.nbytes + self.live.nbytes
        return heads + self.facets.nbytes + self.grams.nbytes

    def rows_of(self, chart_ids: Ints) -> Ints:
        """Return the rows of these charts, -1 for one that does not count here."""
        rows = np.minimum(self.chart_ids.searchsorted(chart_ids), len(self.chart_ids) - 1)
        return np.where((self.chart_ids[rows] == chart_ids) & self.live[rows], rows, -1)

    def without(self, chart_ids: Ints) -> Segment:
        """Return the same, but that these charts do not count."""
        rows = self.rows_of(chart_ids)
        rows = rows[rows >= 0]
        if not len(rows):
            return self
        live = self.live.copy()
        live[rows] = False
        return replace(self, live=live)

    def matching(self, where: Mapping[str, Collection[str]]) -> Mask:
        """Tell which rows have, for every field, one of its values."""
        found = self.live
        for field, values in where.items():
            has = np.zeros(len(found), dtype=bool)
            for value in values:
                has[self.facets.having(_key((field, value)))] = True
            found = found & has
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Shares:
    """How well each chart has the words of a question: 0 to 1, BM25 as a share of the most that it can be.

    Charts that say the same have the same share, to the bit, whatever came in before.
    """

    segments: tuple[Segment, ...]
    sums: tuple[npt.NDArray[np.float64], ...]
    most: float

    @classmethod
    def of(cls, segments: tuple[Segment, ...], question: str) -> Shares:
        keys, counts = np.unique(grams_of([question])[0], return_counts=True)
        places = [segment.grams.slices(keys) for segment in segments]
        having = np.zeros(len(keys), dtype=np.int64)
        for segment, there in zip(segments, places, strict=True):
            rows = segment.grams.rows
            if segment.live.all():
                counted = [each.stop - each.start for each in there]
            else:
                counted = [int(segment.live[rows[each]].sum()) for each in there]
            having += np.array(counted, dtype=np.int64)
        size = sum(segment.size for segment in segments)
        rarity = np.round(FINENESS * np.log(1 + (size - having + 0.5) / (having + 0.5))) * counts
        rarity[having > max(FEW, COMMON * size)] = 0
        sums = tuple(_summed(each, there, rarity) for each, there in zip(segments, places, strict=True))
        return cls(segments, sums, max(1.0, FULL * float(rarity.sum())))

    def best(self, most: int, allowed: Ints | None = None) -> tuple[Ints, npt.NDArray[np.float64]]:
        """Return the charts with the highest shares above 0, best first, ties by id, and these shares.

        allowed: only among these charts.
        """
        chart_ids, sums = [np.empty(0, dtype=np.int64)], [np.empty(0)]
        for segment, each in zip(self.segments, self.sums, strict=True):
            if allowed is not None:
                rows = segment.rows_of(allowed)
                rows = rows[rows >= 0]
                rows = rows[each[rows] > 0]
            else:
                rows = np.flatnonzero(each > 0)
            if len(rows) > most:
                rows = rows[each[rows] >= np.partition(each[rows], len(rows) - most)[len(rows) - most]]
            chart_ids.append(segment.chart_ids[rows])
            sums.append(each[rows])
        found, summed = np.concatenate(chart_ids), np.concatenate(sums)
        order = np.lexsort((found, -summed))[:most]
        return found[order], summed[order] / self.most

    def of_charts(self, chart_ids: Ints) -> npt.NDArray[np.float64]:
        """Return the shares of these charts, 0 for one that is not known."""
        shares = np.zeros(len(chart_ids))
        for segment, each in zip(self.segments, self.sums, strict=True):
            rows = segment.rows_of(chart_ids)
            shares[rows >= 0] = each[rows[rows >= 0]] / self.most
        return shares


class Lexicon:
    """What the charts of one node say of themselves.

        lexicon.put([Words(7, revision=1, facets=(("source", "Sales"), ("tags", "finance")))])
        lexicon.matching({"source": ["Sales", "HR"], "tags": ["finance"]})

    Of one chart the highest revision counts. Readers take no lock; writers take turns. `tidy` is called in the
    background, until it has nothing more to do.
    """

    def __init__(self, former: Lexicon | None = None) -> None:
        """Begin empty, or with what another one holds, in a forked child, where a thread may have held its lock."""
        self._segments: tuple[Segment, ...] = () if former is None else former._segments
        self._names: dict[int, Facet] = {} if former is None else dict(former._names)
        self._lock = threading.Lock()

    # --- writing ----------------------------------------------------------------------------------------------

    def put(self, words: Iterable[Words]) -> None:
        """Take in what these charts say, where no later revision of them is known."""
        newest: dict[int, Words] = {}
        for one in words:
            if one.chart_id not in newest or newest[one.chart_id].revision < one.revision:
                newest[one.chart_id] = one
        if not newest:
            return
        given = np.array(list(newest), dtype=np.int64)
        with self._lock:
            held = self.revisions(given).tolist()
            news = [one for one, known in zip(newest.values(), held, strict=True) if one.revision > known]
            if news:
                gone = np.array([one.chart_id for one in news], dtype=np.int64)
                added = Segment.of(news, self._names)
                self._segments = (*(segment.without(gone) for segment in self._segments), added)

    def remove(self, chart_ids: Ints) -> None:
        """Drop these charts."""
        if len(chart_ids):
            with self._lock:
                self._segments = tuple(segment.without(chart_ids) for segment in self._segments)

    def clear(self) -> None:
        """Drop all."""
        with self._lock:
            self._segments, self._names = (), {}

    def tidy(self) -> bool:
        """Merge small segments, and drop what does not count any more; False if there was nothing to do.

        Nobody waits for that: what is written meanwhile is kept.
        """
        chosen = self._to_merge(self._segments)
        if not chosen:
            return False
        merged, taken = _merged(chosen)
        with self._lock:
            now = [each for each in self._segments if not any(each.chart_ids is old.chart_ids for old in chosen)]
            still = [each for each in self._segments if any(each.chart_ids is old.chart_ids for old in chosen)]
            if len(still) == len(chosen):  # else all was cleared meanwhile
                live = np.concatenate([each.live for each in still])[taken] if len(taken) else merged.live
                joined = replace(merged, live=live)
                self._segments = (joined, *now) if joined.size else tuple(now)
                self._forget_names()
        return True

    @staticmethod
    def _to_merge(segments: Sequence[Segment]) -> list[Segment]:
        """Choose the small ones that are to be one; or one of which too much does not count."""
        chosen: list[Segment] = []
        size = 0
        for segment in sorted(segments, key=lambda each: each.size):
            if chosen and segment.size > MERGED_UP_TO * size:
                break
            chosen.append(segment)
            size += segment.size
        if len(chosen) < 2:
            chosen = [each for each in segments if len(each.live) - each.size > DEAD_SHARE * len(each.live)][:1]
        return [each for each in segments if any(each is one for one in chosen)]  # in the order in which they are held

    def _forget_names(self) -> None:
        used = sum(len(segment.facets.keys) for segment in self._segments)
        if len(self._names) > used + NAMES_SPARE:
            kept = {key for segment in self._segments for key in segment.facets.keys.tolist()}
            self._names = {key: facet for key, facet in self._names.items() if key in kept}

    # --- reading ----------------------------------------------------------------------------------------------

    def matching(self, where: Mapping[str, Collection[str]]) -> Ints:
        """Return the charts that have, for every field of ``where``, one of its values: chart_ids, int64."""
        found = [segment.chart_ids[segment.matching(where)] for segment in self._segments]
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)

    def shares(self, question: str) -> Shares:
        """Compare a question with all charts, by words."""
        return Shares.of(self._segments, question)

    def counts(self, where: Mapping[str, Collection[str]]) -> dict[Facet, int]:
        """Count, among the charts that `matching` finds, those that have each facet; without those that none has."""
        counted = Counter[Facet]()
        with self._lock:  # so that all of them have their names
            segments, names = self._segments, self._names
        for segment in segments:
            counts = segment.facets.counts(segment.matching(where))
            for key, count in zip(segment.facets.keys.tolist(), counts.tolist(), strict=True):
                if count:
                    counted[names[key]] += count
        return counted

    def revisions(self, chart_ids: Ints) -> Ints:
        """Return the revisions at which these charts are known, int64, -1 for one that is not."""
        revisions = np.full(len(chart_ids), -1, dtype=np.int64)
        for segment in self._segments:
            rows = segment.rows_of(chart_ids)
            revisions[rows >= 0] = segment.revisions[rows[rows >= 0]]
        return revisions

    def chart_ids(self) -> Ints:
        """Return all charts that are known."""
        return self.matching({})

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(segment.nbytes for segment in self._segments)

    def __len__(self) -> int:
        return sum(segment.size for segment in self._segments)

    def __repr__(self) -> str:
        return f"Lexicon({len(self):,} charts, {len(self._names):,} facets, {self.nbytes / 1e6:.1f} MB)"


def _merged(segments: Sequence[Segment]) -> tuple[Segment, Ints]:
    """Join segments, without what does not count; return which rows of them, end to end, that took."""
    chart_ids = np.concatenate([segment.chart_ids for segment in segments])
    live = np.flatnonzero(np.concatenate([segment.live for segment in segments]))
    taken = live[np.argsort(chart_ids[live])]
    numbers = np.full(len(chart_ids), -1, dtype=np.int64)
    numbers[taken] = np.arange(len(taken))
    ends = np.cumsum([len(segment.chart_ids) for segment in segments])[:-1]
    parts = list(zip(segments, np.split(numbers, ends), strict=True))
    return (
        Segment(
            chart_ids[taken],
            np.concatenate([segment.revisions for segment in segments])[taken],
            np.ones(len(taken), dtype=bool),
            Postings.merged([(segment.facets, of) for segment, of in parts]),
            Postings.merged([(segment.grams, of) for segment, of in parts]),
        ),
        taken,
    )


def _weighed(texts: Sequence[str]) -> Postings:
    """Return the trigrams of these texts, each with what BM25 makes of how often a text has it, and of its length."""
    keys, rows = grams_of(texts)
    order = np.argsort(keys, kind="stable")
    lengths = np.bincount(rows, minlength=len(texts))
    keys, rows = keys[order], rows[order]
    firsts = np.ones(len(keys), dtype=bool)
    firsts[1:] = (keys[1:] != keys[:-1]) | (rows[1:] != rows[:-1])
    starts = np.flatnonzero(firsts)
    keys, rows, times = keys[starts], rows[starts], np.diff(starts, append=len(keys))
    against = SATURATION * (1 - LENGTH_MATTERS + LENGTH_MATTERS * lengths / USUAL_LENGTH)
    weights = np.round(FULL * times / (times + against[rows]))
    return Postings.of(keys, rows.astype(np.uint32), np.maximum(weights, 1).astype(np.uint8))


def _summed(segment: Segment, places: Sequence[slice], rarity: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return for each row of a segment what it has of a question, 0 where it does not count."""
    sums = np.zeros(len(segment.live))
    grams = segment.grams
    if grams.weights is None:
        return sums
    for there, rare in zip(places, rarity.tolist(), strict=True):
        if rare and there.start < there.stop:
            np.add.at(sums, grams.rows[there], rare * grams.weights[there])  # half the time of sums[rows] += ...
    if not segment.live.all():
        sums[~segment.live] = 0
    return sums


def _key(facet: Facet) -> int:
    """Return 64 bits that stand for a facet."""
    return int.from_bytes(blake2b("\0".join(facet).encode(), digest_size=8).digest(), "little")
