"""Vectors as whole numbers of eight bits: a quarter of the bytes to read, and a bound on what that costs.

A row v is kept as ``scale * code + rest``, the code being integers from -127 to 127. With a query q taken apart in the
same way, Cauchy-Schwarz bounds what a product of the codes misses:

    v.q = (scale * code).(q's scale * q's code) + (scale * code).(q's rest) + rest.q
    |what is missed| <= (|v| + |rest|) |q's rest| + |rest| |q|

So whoever may be among the best is known for certain, and only these few need their float32 rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numkong
import numpy as np
import numpy.typing as npt

from copilotlab.store.records import UNIT_TOLERANCE, Floats, Ints

LARGEST_CODE = 127
LONGEST = np.float32(1 + UNIT_TOLERANCE)  # of a unit vector
ROUNDING = np.float32(1e-5)  # more than the float32 arithmetic between the product of codes and the bounds can lose
FOLDS = 16
ROWS_AT_ONCE = 2048  # whose products with some dozens of queries a core's cache holds while they are turned round
WORST = np.float32(-2)  # below the score of any two unit vectors,
OUT = np.float32(-8)  # and below that whatever is added to it

Codes = npt.NDArray[np.int8]
Flags = npt.NDArray[np.bool_]


class Coded(NamedTuple):
    """Vectors in eight bits. codes: int8 (n, dim); scales and rests, which are lengths: float32 (n,)."""

    codes: Codes
    scales: Floats
    rests: Floats

    @classmethod
    def of(cls, vectors: Floats) -> Coded:
        """Take vectors, float32 (n, dim), apart."""
        scales = np.abs(vectors).max(axis=1) / np.float32(LARGEST_CODE)
        scales[scales == 0] = 1
        codes = np.rint(vectors / scales[:, None])
        left = vectors - scales[:, None] * codes
        rests = np.sqrt(np.vecdot(left, left)) * (1 + ROUNDING) + ROUNDING
        return cls(codes.astype(np.int8), scales, rests)

    def candidates(self, queries: Floats, k: int, out: Flags | None = None) -> list[Ints]:
        """Return, for each of ``queries``, float32 (n, dim), the rows that may be among its best ``k``.

        out: True for rows that are out of the question.
        """
        if len(self.codes) <= k:
            rows = np.arange(len(self.codes))
            return [rows if out is None else rows[~out]] * len(queries)
        asked = Coded.of(queries)
        lines = zip(_products(self.codes, asked.codes), asked.scales, asked.rests, strict=True)
        return [self._candidates(products, scale, rest, k, out) for products, scale, rest in lines]

    def _candidates(self, products: Floats, scale: np.float32, rest: np.float32, k: int, out: Flags | None) -> Ints:
        scores = products * self.scales
        scores *= scale
        if out is not None:
            scores[out] = OUT
        missed = self.rests * (LONGEST + rest)
        bar = _kth_at_least(scores - missed, k) - 2 * (LONGEST * rest + ROUNDING)
        scores += missed
        return np.flatnonzero(scores >= max(bar, WORST))


def _kth_at_least(scores: Floats, k: int) -> np.float32:
    """Return the ``k``-th largest score, or a little less: the largest of every few are compared, which costs less."""
    columns = len(scores) // FOLDS
    if columns >= FOLDS * k:
        scores = scores[: columns * FOLDS].reshape(FOLDS, columns).max(axis=0)
    kth: np.float32 = np.partition(scores, len(scores) - k)[len(scores) - k]
    return kth


def _products(codes: Codes, queries: Codes) -> Floats:
    """Return all products of the codes, float32 (queries, rows): whole numbers, exact in float32 up to 2^24."""
    if len(queries) == 1:
        return np.asarray(numkong.cdist(queries, codes, "dot", out_dtype="float32"))
    products, packed = np.empty((len(queries), len(codes)), dtype=np.float32), numkong.dots_pack(queries)
    for start in range(0, len(codes), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        products[:, rows] = np.asarray(numkong.dots_packed(codes[rows], packed)).T
    return products
