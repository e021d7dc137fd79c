"""Codes of eight bits leave out nobody who may be among the best, whatever the vectors are like."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from copilotlab.store.codes import Coded


def units(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(lengths == 0, 1, lengths)).astype(np.float32)


def vectors_of(kind: str, rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    if kind == "single directions":
        return np.eye(dim, dtype=np.float32)[rng.integers(0, dim, count)]
    if kind == "one large and many small":  # the widest steps, so the longest rests
        rows = 0.003 * rng.standard_normal((count, dim))
        rows[np.arange(count), rng.integers(0, dim, count)] += 1
        return units(rows)
    if kind == "nearly the same":
        return units(rng.standard_normal(dim) + 1e-4 * rng.standard_normal((count, dim)))
    if kind == "all the same":
        return np.repeat(units(rng.standard_normal((1, dim))), count, axis=0)
    return units(rng.standard_normal((count, dim)))


KINDS = ["anything", "single directions", "one large and many small", "nearly the same", "all the same"]


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32 - 1),
    count=st.sampled_from([1, 9, 300, 3000]),
    dim=st.sampled_from([1, 3, 64, 384, 1100]),
    k=st.sampled_from([1, 10, 40]),
    asked=st.sampled_from([1, 3]),
    some_out=st.booleans(),
)
def test_whoever_is_among_the_best_is_a_candidate(kind, seed, count, dim, k, asked, some_out):
    rng = np.random.default_rng(seed)
    vectors = vectors_of(kind, rng, count, dim)
    near = units(vectors[rng.integers(0, count, asked)] + 0.1 * rng.standard_normal((asked, dim)))
    out = rng.random(count) < 0.7 if some_out else None
    for query, candidates in zip(near, Coded.of(vectors).candidates(near, k, out), strict=True):
        scores = vectors.astype(np.float64) @ query.astype(np.float64)
        inside = np.arange(count) if out is None else np.flatnonzero(~out)
        bar = -np.inf if len(inside) < k else np.sort(scores[inside])[-k]
        best = inside[scores[inside] >= bar]
        assert set(best.tolist()) <= set(candidates.tolist()) <= set(inside.tolist())


@pytest.mark.parametrize("dim", [64, 384])
def test_few_are_candidates_where_vectors_differ(dim):
    rng = np.random.default_rng(7)
    vectors = units(rng.standard_normal((10_000, dim)))
    found = Coded.of(vectors).candidates(units(vectors[:50] + 0.05 * rng.standard_normal((50, dim))), 10)
    assert np.median([len(rows) for rows in found]) < 400, "a scan is worth what it spares the ranking"


def test_one_question_and_many_have_the_same_candidates():
    rng = np.random.default_rng(3)
    coded, queries = Coded.of(units(rng.standard_normal((5000, 384)))), units(rng.standard_normal((40, 384)))
    alone = [coded.candidates(query[None], 10)[0].tolist() for query in queries]
    assert [rows.tolist() for rows in coded.candidates(queries, 10)] == alone
