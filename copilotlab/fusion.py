"""Words and meaning together: the score of a chart, and why it has that."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from copilotlab.charts import Chart
from copilotlab.reasons import short
from copilotlab.store import Ints, Matches, Shares, VectorStore, as_chart_ids, words_of

Mode = Literal["meaning", "words", "hybrid"]
MODES: tuple[Mode, ...] = ("meaning", "words", "hybrid")

# Chosen on the development questions of data/ and of real catalogues, for three models, so that no kind of question
# loses more than 0.01 of its nDCG@10. The share of words that a chart has counts in standard deviations of the
# candidates' cosines, which differ from model to model.
POOL = 100  # charts by meaning, and by words, that are ranked by both
WEIGHT = 6.0
CHANCE = 0.15  # the share of a question's trigrams that a chart may have by chance: it counts from there on
TEXT = 4_000  # letters of a chart, title first, that are searched by words
ALIKE = 0.5  # trigrams in common, as Dice has it, from which on a word of a chart is said to be meant
_SMALL = frozenset(
    words_of(
        "a an and are as at be by do does for from had has have how in is it its of on or our per than that the their "
        "them this to us was we were what when where which who why will with"
    )
)

Shared = npt.NDArray[np.float64]


class Ranking(NamedTuple):
    """Charts, best first, and what their scores are made of. meaning, words: None where they do not count."""

    matches: Matches
    meaning: Shared | None = None
    words: Shared | None = None

    def only(self, places: Ints) -> Ranking:
        """Return these of them, in this order."""
        matches = Matches(self.matches.chart_ids[places], self.matches.scores[places])
        return Ranking(
            matches,
            None if self.meaning is None else self.meaning[places],
            None if self.words is None else self.words[places],
        )


def checked_mode(mode: str) -> Mode:
    """Return a mode. Raises ValueError for another one than there are."""
    for known in MODES:
        if mode == known:
            return known
    raise ValueError(f"mode={short(mode)}: expected one of {', '.join(map(repr, MODES))}")


def text_of(chart: Chart) -> str:
    """Return what of a chart is searched by words."""
    parts = (chart.title, *chart.measures, *chart.dimensions, *chart.tags, chart.source, chart.description)
    return ". ".join(filter(None, parts))[:TEXT]


def by_words(store: VectorStore, shares: Shares, k: int, allowed: Collection[int] | Ints | None) -> Ranking:
    """Rank the charts of the store that have some of the words."""
    chart_ids, found = shares.best(2 * k + 16, None if allowed is None else np.unique(as_chart_ids(allowed)))
    here = np.flatnonzero(store.heads(chart_ids)[0] >= 0)[:k]  # what was deleted a moment ago may still have its words
    return Ranking(Matches(chart_ids[here], found[here].astype(np.float32)), words=found[here])


def by_both(
    store: VectorStore, vector: npt.NDArray[np.float32], shares: Shares, k: int, allowed: Collection[int] | Ints | None
) -> Ranking:
    """Rank the best by meaning and the best by words, by both.

    The score is the cosine, and the part that words add to it. Stores and words of equal content give equal answers.
    """
    near = store.search(vector, max(POOL, k), allowed)
    worded, _ = shares.best(max(POOL, k), None if allowed is None else np.unique(as_chart_ids(allowed)))
    others = np.setdiff1d(worded, near.chart_ids)
    far = store.search(vector, max(1, len(others)), others)
    chart_ids = np.concatenate([near.chart_ids, far.chart_ids])
    cosines = np.concatenate([near.scores, far.scores]).astype(np.float64)
    by_id = np.argsort(chart_ids)
    spread = float(np.std(cosines[by_id])) if len(cosines) else 0.0
    words = WEIGHT * spread * np.maximum(0, shares.of_charts(chart_ids) - CHANCE)
    scores = (cosines + words).astype(np.float32)
    order = np.lexsort((chart_ids, -scores))[:k]
    return Ranking(Matches(chart_ids, scores), cosines, words).only(order)


def matched(question: str, chart: Chart) -> list[str]:
    """Return the words of a chart that are those of a question, or nearly, in their order."""
    asked = [word for word in dict.fromkeys(words_of(question)) if word not in _SMALL]
    exact, grams = set(asked), [_grams(word) for word in asked]
    every = frozenset().union(*grams)
    return [word for word in _words(text_of(chart)) if word in exact or _is_like(_grams(word), grams, every)]


def _is_like(word: frozenset[str], asked: list[frozenset[str]], every: frozenset[str]) -> bool:
    if 2 * len(word & every) < ALIKE * len(word):  # as with most words
        return False
    return any(2 * len(word & other) >= ALIKE * (len(word) + len(other)) for other in asked)


@lru_cache(maxsize=1_024)
def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in dict.fromkeys(words_of(text)) if word not in _SMALL)


@lru_cache(maxsize=20_000)
def _grams(word: str) -> frozenset[str]:
    padded = f" {word} "
    return frozenset(padded[start : start + 3] for start in range(len(padded) - 2))
