"""What lies in Redis: the names of all keys, before the namespace."""

from __future__ import annotations

BATCH_IN_PROGRESS = "vector:batch:in_progress"
"""The lease of a batch. This name, like the next, is the written design's."""
WAS_DOWN = "vector:redis:was_down"
"""Present while a rebuild is owed."""
EPOCH = "vector:batch:epoch"
"""The epoch of the last lease."""
GENERATION = "vector:generation"
"""A random id, by which a loss of the server's memory is noticed: it is gone then, or another."""
CLAIM = "vector:claim"
"""One for each change that a node embeds."""
BULK = "vector:bulk"
"""One for each page that another node fetches."""
ALIVE = "vector:alive"
"""One for each session: its sign of life, present until it was silent for three heartbeats."""

EXAMPLES = (GENERATION, BATCH_IN_PROGRESS, WAS_DOWN, EPOCH, f"{CLAIM}:model:chart", f"{BULK}:id", f"{ALIVE}:session")
"""A key of each kind."""
