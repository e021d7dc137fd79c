"""Text to trigrams: each word, between two blanks, in pieces of three characters. So a typo costs only some of them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from copilotlab.store.postings import Keys

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_WORD = re.compile(r"[^\W_]+")
_BITS = 21  # of a character


def words_of(text: str) -> list[str]:
    """Split a text into words, in lower case: at what is no letter or digit, and where a capital follows a letter."""
    return _WORD.findall(_CAMEL.sub(" ", unicodedata.normalize("NFC", text)).lower())


def grams_of(texts: Sequence[str]) -> tuple[Keys, npt.NDArray[np.int64]]:
    """Return the trigrams of all texts, as 63 bits each, in their order, and of which text each is."""
    lines = [f" {' '.join(words_of(text))} " for text in texts]
    letters = np.frombuffer("".join(lines).encode("utf-32-le"), dtype="<u4").astype(np.uint64)
    rows = np.repeat(np.arange(len(lines)), [len(line) for line in lines])[1:-1]
    if len(letters) < 3:
        return np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int64)
    keys = letters[:-2] << np.uint64(2 * _BITS) | letters[1:-1] << np.uint64(_BITS) | letters[2:]
    inside = letters[1:-1] != ord(" ")  # else it would begin in one word and end in another
    return keys[inside], rows[inside]
