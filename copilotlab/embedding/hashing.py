"""The `hash` model: words and their letter trigrams, hashed into a few dimensions. It knows no language.

For tests: it loads at once, needs numpy alone, and gives the same bits in every process, on every platform
and in every batch. Texts that share words or parts of words are near each other; synonyms are not.

Source: feature hashing with signs, Weinberger et al., ICML 2009; trigrams of a word between boundary
marks as in fastText, Bojanowski et al., TACL 2017.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from copilotlab.embedding.base import TEXT, Embedder
from copilotlab.reasons import short

_WORD = re.compile(r"[^\W_]+")
_VERSION = 1  # raise it when any vector changes: it is in the fingerprint


class HashEmbedder(Embedder):
    """Deterministic vectors for tests.

    Parameters:
        dim: the number of components, 2 or more (64). More of them, fewer collisions.
    """

    def __init__(self, *, name: str = "hash", dim: int = 64) -> None:
        if isinstance(dim, bool) or not isinstance(dim, int) or dim < 2:
            raise ValueError(f"dim must be a whole number, 2 or more, not {short(dim)}")
        super().__init__(name=name, fingerprint=f"hash:{dim}:v{_VERSION}:{TEXT}", dim=dim)

    def _encode(self, batch: list[str]) -> NDArray[np.float32]:
        # The sums are whole numbers, so they are exact whatever the order and the processor.
        block = np.zeros((len(batch), self.dim), dtype=np.float32)
        for row, text in enumerate(batch):
            for word in _WORD.findall(unicodedata.normalize("NFKC", text).casefold()):
                components, signs = _features(word, self.dim)
                np.add.at(block[row], components, signs)
        return block


@lru_cache(maxsize=16_384)
def _features(word: str, dim: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Component and weight of each feature of a word: the word itself counts as much as three trigrams."""
    marked = f"<{word}>"
    features = [marked, *(marked[start : start + 3] for start in range(len(marked) - 2))]
    hashes = [
        int.from_bytes(hashlib.blake2b(feature.encode(), digest_size=8).digest(), "little") for feature in features
    ]
    components = np.array([value // 2 % dim for value in hashes], dtype=np.intp)
    signs = np.array([1 if value % 2 else -1 for value in hashes], dtype=np.float32)
    signs[0] *= 3
    return components, signs
