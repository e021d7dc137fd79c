"""Vectors to nearest charts: a node's own memory, searched without Redis.

`VectorStore` holds one `Record` per chart and answers with `Matches`. Its `Manifest` says what it holds, without the
vectors. Beside it, a `Lexicon` holds what charts say of themselves, as `Words`.
"""

from copilotlab.store.grams import words_of
from copilotlab.store.lexicon import Facet, Lexicon, Shares, Words
from copilotlab.store.records import Ints, Manifest, Matches, News, Record, as_chart_ids, as_integer
from copilotlab.store.saved import FileRefused
from copilotlab.store.store import EXACT_LIMIT, VectorStore

__all__ = [
    "EXACT_LIMIT",
    "Facet",
    "FileRefused",
    "Ints",
    "Lexicon",
    "Manifest",
    "Matches",
    "News",
    "Record",
    "Shares",
    "VectorStore",
    "Words",
    "as_chart_ids",
    "as_integer",
    "words_of",
]
