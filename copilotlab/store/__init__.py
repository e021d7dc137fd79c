"""Vectors to nearest charts: a node's own memory, searched without Redis.

`VectorStore` holds one `Record` per chart and answers with `Matches`. Its `Manifest` says what it holds, without the
vectors.
"""

from copilotlab.store.records import Manifest, Matches, Record
from copilotlab.store.saved import FileRefused
from copilotlab.store.store import EXACT_LIMIT, VectorStore

__all__ = ["EXACT_LIMIT", "FileRefused", "Manifest", "Matches", "Record", "VectorStore"]
