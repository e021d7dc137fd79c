"""The digest of a catalogue: one number that tells what it holds, and that every change keeps up to date.

It is the sum of one number per chart, so order and history do not matter. A repository updates it in the transaction
of each change, a store with each record, and one comparison tells whether both hold the same charts, at the same
revisions, with the same words.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from struct import Struct

MODULUS = 2**128

_NUMBERS = Struct("<qq")


def entry(chart_id: int, revision: int, content_hash: bytes, vector_hash: bytes = b"") -> int:
    """Return what one chart adds to a digest, below 2**128; give ``vector_hash`` where vectors count too."""
    identity = _NUMBERS.pack(chart_id, revision) + content_hash + vector_hash
    return int.from_bytes(blake2b(identity, digest_size=16).digest(), "little")


def digest_of(heads: Iterable[tuple[int, int, bytes]]) -> int:
    """Return the digest of these charts: (chart_id, revision, content_hash) of each."""
    return sum(entry(*head) for head in heads) % MODULUS


def as_text(digest: int) -> str:
    """Write the digest as 32 hex digits."""
    return f"{digest % MODULUS:032x}"
