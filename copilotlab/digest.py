"""What a catalogue holds, in one number that every change keeps up to date.

The digest is the sum of its charts' parts, so it knows no order and no history: a repository keeps it in the
transaction of each change, a store with each record, and one comparison tells whether both hold the same charts, at
the same revisions, with the same words.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from struct import Struct

MODULUS = 2**128

_NUMBERS = Struct("<qq")


def entry(chart_id: int, revision: int, content_hash: bytes, vector_hash: bytes = b"") -> int:
    """One chart's part of a digest, below 2**128; ``vector_hash`` where the vectors count too."""
    identity = _NUMBERS.pack(chart_id, revision) + content_hash + vector_hash
    return int.from_bytes(blake2b(identity, digest_size=16).digest(), "little")


def digest_of(heads: Iterable[tuple[int, int, bytes]]) -> int:
    """The digest of these charts: (chart_id, revision, content_hash) of each."""
    return sum(entry(*head) for head in heads) % MODULUS


def as_text(digest: int) -> str:
    """The digest as 32 hex digits."""
    return f"{digest % MODULUS:032x}"
