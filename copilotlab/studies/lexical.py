"""BM25, the lexical baseline: it knows words, not what they mean, and needs no model."""

from __future__ import annotations

from collections.abc import Sequence

import bm25s
import numpy as np

BM25 = "bm25"  # its name among the models


class LexicalIndex:
    """BM25 over texts, by bm25s, English stop words left out.

    Parameters:
        texts: the documents; a row is a position in it.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._index = bm25s.BM25()
        self._index.index(_words(texts), show_progress=False)

    def search(self, questions: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best rows of each question, int (questions, k), and their scores, float32 (questions, k)."""
        rows, scores = self._index.retrieve(_words(questions), k=k, show_progress=False)
        return rows, scores


def _words(texts: Sequence[str]) -> bm25s.tokenization.Tokenized:
    return bm25s.tokenize(list(texts), stopwords="en", show_progress=False)
