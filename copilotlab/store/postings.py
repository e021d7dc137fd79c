"""Which rows have a key: the lists of an inverted index, in a few arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from copilotlab.store.records import Ints

Keys = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.uint32]
Weights = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Postings:
    """For each of some keys the rows that have it. Nothing of it changes.

    keys: ascending, each once, uint64 (n,). starts: where a key's rows begin, int64 (n + 1,). rows: uint32. weights:
    how much each of these rows has of the key, 1 to 255; None where that is all the same.
    """

    keys: Keys
    starts: Ints
    rows: Rows
    weights: Weights | None = None

    @classmethod
    def of(cls, keys: Keys, rows: Rows, weights: Weights | None = None) -> Postings:
        """Make lists of pairs of a key and a row, each pair once, with their weights."""
        order = np.argsort(keys, kind="stable")  # what is merged is ordered in long runs, which this makes use of
        keys = keys[order]
        firsts = np.flatnonzero(np.diff(keys, prepend=keys[:1] + np.uint64(1)))
        ends = np.append(firsts, len(keys)).astype(np.int64)
        return cls(keys[firsts], ends, rows[order], None if weights is None else weights[order])

    @property
    def nbytes(self) -> int:
        weights = 0 if self.weights is None else self.weights.nbytes
        return self.keys.nbytes + self.starts.nbytes + self.rows.nbytes + weights

    def having(self, key: int) -> Rows:
        """Return the rows that have the key."""
        (there,) = self.slices(np.array([key], dtype=np.uint64))
        return self.rows[there]

    def slices(self, keys: Keys) -> list[slice]:
        """Return for each of ``keys`` where its rows and weights are; an empty slice for one that no row has."""
        places = self.keys.searchsorted(keys)
        inside = np.minimum(places, max(len(self.keys) - 1, 0))
        known = self.keys[inside] == keys if len(self.keys) else np.zeros(len(keys), dtype=bool)
        starts, ends = self.starts[inside], self.starts[np.minimum(inside + 1, len(self.starts) - 1)]
        return [
            slice(start, end) if is_known else slice(0, 0)
            for start, end, is_known in zip(starts.tolist(), ends.tolist(), known.tolist(), strict=True)
        ]

    def counts(self, chosen: npt.NDArray[np.bool_]) -> Ints:
        """Return how many of the ``chosen`` rows have each key, int64 (n,)."""
        sums = np.concatenate([[0], np.cumsum(chosen[self.rows], dtype=np.int64)])
        counts: Ints = sums[self.starts[1:]] - sums[self.starts[:-1]]
        return counts

    @classmethod
    def merged(cls, parts: Sequence[tuple[Postings, Ints]]) -> Postings:
        """Join several. With each come the new numbers of its rows, -1 for a row that is left out."""
        keys, rows, weights = [], [], []
        for part, numbers in parts:
            moved = numbers[part.rows]
            kept = moved >= 0
            keys.append(np.repeat(part.keys, np.diff(part.starts))[kept])
            rows.append(moved[kept].astype(np.uint32))
            if part.weights is not None:
                weights.append(part.weights[kept])
        return cls.of(np.concatenate(keys), np.concatenate(rows), np.concatenate(weights) if weights else None)
