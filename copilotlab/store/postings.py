"""Which rows have a key: the lists of an inverted index, in a few arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from copilotlab.store.records import Ints

Keys = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True, eq=False)
class Postings:
    """For each of some keys the rows that have it. Nothing of it changes.

    keys: ascending, each once, uint64 (n,). starts: where a key's rows begin, int64 (n + 1,). rows: uint32.
    """

    keys: Keys
    starts: Ints
    rows: Rows

    @classmethod
    def of(cls, keys: Keys, rows: Rows) -> Postings:
        """Make lists of pairs of a key and a row, each pair once."""
        order = np.argsort(keys, kind="stable")  # what is merged is ordered in long runs, which this makes use of
        keys = keys[order]
        firsts = np.flatnonzero(np.diff(keys, prepend=keys[:1] + np.uint64(1)))
        return cls(keys[firsts], np.append(firsts, len(keys)).astype(np.int64), rows[order])

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.starts.nbytes + self.rows.nbytes

    def having(self, key: int) -> Rows:
        """Return the rows that have the key."""
        place = int(self.keys.searchsorted(np.uint64(key)))
        if place == len(self.keys) or int(self.keys[place]) != key:
            return self.rows[:0]
        return self.rows[self.starts[place] : self.starts[place + 1]]

    def counts(self, chosen: npt.NDArray[np.bool_]) -> Ints:
        """Return how many of the ``chosen`` rows have each key, int64 (n,)."""
        sums = np.concatenate([[0], np.cumsum(chosen[self.rows], dtype=np.int64)])
        counts: Ints = sums[self.starts[1:]] - sums[self.starts[:-1]]
        return counts

    @classmethod
    def merged(cls, parts: Sequence[tuple[Postings, Ints]]) -> Postings:
        """Join several. With each come the new numbers of its rows, -1 for a row that is left out."""
        keys, rows = [], []
        for part, numbers in parts:
            moved = numbers[part.rows]
            kept = moved >= 0
            keys.append(np.repeat(part.keys, np.diff(part.starts))[kept])
            rows.append(moved[kept].astype(np.uint32))
        return cls.of(np.concatenate(keys), np.concatenate(rows))
