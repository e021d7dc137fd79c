"""BM25, the lexical baseline: it compares words, not their meaning, and needs no model."""

from __future__ import annotations

from collections.abc import Sequence

import bm25s
import numpy as np

BM25 = "bm25"  # its name among the models
DECIMALS = 4  # of a score: further ones depend on how a processor computes logarithms


class LexicalIndex:
    """BM25 over texts, by bm25s, English stop words left out.

    Parameters:
        texts: the documents; the row of a document is its position here.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._size = len(texts)
        self._index = bm25s.BM25()
        self._index.index(bm25s.tokenize(list(texts), stopwords="en", show_progress=False), show_progress=False)

    def search(self, questions: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the k best rows of each question, int (questions, k), and their scores, float32 (questions, k).

        Rows of equal score come in their order, which bm25s itself leaves to the processor.
        """
        words = bm25s.tokenize(list(questions), stopwords="en", return_ids=False, show_progress=False)
        scores = [self._scores(said) for said in words]
        rows = [_best(each, k) for each in scores]
        return np.stack(rows), np.stack([each[best] for each, best in zip(scores, rows, strict=True)])

    def _scores(self, words: list[str]) -> np.ndarray:
        known = self._index.get_tokens_ids(words)
        if not known:
            return np.zeros(self._size, np.float32)
        scores: np.ndarray = self._index.get_scores_from_ids(known)
        return scores.round(DECIMALS)

    def __repr__(self) -> str:
        return f"LexicalIndex({self._size:,} texts)"


def _best(scores: np.ndarray, k: int) -> np.ndarray:
    least = np.partition(scores, -k)[-k]
    among = np.flatnonzero(scores >= least)
    return among[np.argsort(-scores[among], kind="stable")[:k]]
