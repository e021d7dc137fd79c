"""What lies in Redis: the names of all keys, before the namespace."""

from __future__ import annotations

BATCH_IN_PROGRESS = "vector:batch:in_progress"
"""The lease of a batch; the written design's name, as of the next."""
WAS_DOWN = "vector:redis:was_down"
"""There while a rebuild is owed."""
EPOCH = "vector:batch:epoch"
"""Of the last lease."""
GENERATION = "vector:generation"
"""The server's memory: gone or changed, it was lost."""
CLAIM = "vector:claim"
"""One a change that a node embeds."""
BULK = "vector:bulk"
"""One a page that another node fetches."""
ALIVE = "vector:alive"
"""One a session: whose it is has not been silent for three heartbeats."""

EXAMPLES = (GENERATION, BATCH_IN_PROGRESS, WAS_DOWN, EPOCH, f"{CLAIM}:model:chart", f"{BULK}:id", f"{ALIVE}:session")
"""One of each kind."""
