"""What a store promises to one caller: what comes in, the answers, the index, and the checks at the door."""

from __future__ import annotations

import gc
import linecache
import re
import subprocess
import sys
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import numpy as np
import polars as pl
import pytest

import copilotlab.store
from copilotlab.store import Manifest, Record, VectorStore

DIM = 8


def unit(*values: float) -> np.ndarray:
    vector = np.zeros(DIM, dtype=np.float32)
    vector[: len(values)] = values
    return vector / np.linalg.norm(vector)


def random_units(n: int, dim: int = DIM, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def record(chart_id: int, revision: int = 1, vector: np.ndarray | None = None, content: bytes = b"c" * 16) -> Record:
    return Record.of(chart_id, revision, content, unit(1, chart_id) if vector is None else vector)


def store_of(vectors: np.ndarray, **options: object) -> VectorStore:
    store = VectorStore(vectors.shape[1], **{"background": False, **options})  # type: ignore[arg-type]
    store.put_many(record(chart_id, vector=vector) for chart_id, vector in enumerate(vectors))
    return store


def best(vectors: np.ndarray, query: np.ndarray, k: int) -> list[tuple[int, float]]:
    """The oracle: (chart_id, score), for charts numbered as the rows of ``vectors``."""
    scores = (vectors.astype(np.float64) @ query.astype(np.float64)).astype(np.float32)
    return [(int(i), float(scores[i])) for i in np.lexsort((np.arange(len(scores)), -scores))[:k]]


def pairs(matches: copilotlab.store.Matches) -> list[tuple[int, float]]:
    return list(zip(matches.chart_ids.tolist(), matches.scores.tolist(), strict=True))


def index_fully(store: VectorStore) -> int:
    steps = 1
    while store.index_step():
        steps += 1
        assert steps < 10_000, "the index is never current"
    return steps


def wait_until(condition: Callable[[], bool], limit: float = 60.0) -> None:
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, f"not within {limit} s"
        time.sleep(0.005)


# --- what comes in ------------------------------------------------------------------------------------------------


def test_a_record_that_was_put_is_got_back_bit_for_bit():
    store = VectorStore(DIM)
    given = record(7, 3, random_units(1)[0])
    assert store.put(given)
    got = store.get(7)
    assert got is not None
    assert (got.chart_id, got.revision, got.content_hash, got.vector_hash) == (7, 3, b"c" * 16, given.vector_hash)
    assert got.vector.tobytes() == given.vector.tobytes()
    assert not got.vector.flags.writeable
    assert got.vector.base is None, "a view would keep the store's whole matrix in memory"
    assert store.revision(7) == 3
    assert 7 in store
    assert 8 not in store
    assert store.get(8) is None
    assert store.revision(8) is None


def test_a_store_keeps_its_own_copy_of_a_vector():
    vector = unit(1)
    store = VectorStore(DIM)
    store.put(record(1, vector=vector))
    vector[:] = unit(0, 1)
    assert store.search(unit(1)).scores.tolist() == [1.0]


def test_an_ordered_store_takes_newer_revisions_only():
    store = VectorStore(DIM)
    assert store.put(record(1, 5, unit(1)))
    assert not store.put(record(1, 4, unit(0, 1)))
    assert store.revision(1) == 5
    assert store.put(record(1, 6, unit(0, 0, 1)))
    assert not store.put(record(1, 6, unit(0, 0, 1))), "the same again changes nothing"
    assert len(store) == 1


def test_of_two_vectors_of_one_revision_the_larger_hash_stays_in_either_order():
    one, two = sorted((record(1, 5, unit(1)), record(1, 5, unit(0, 1))), key=lambda r: r.vector_hash)
    for first, second in ((one, two), (two, one)):
        store = VectorStore(DIM)
        assert store.put(first)
        assert store.put(second) == (second is two)
        held = store.get(1)
        assert held is not None
        assert held.vector_hash == two.vector_hash


def test_an_unordered_store_keeps_what_was_put_last():
    store = VectorStore(DIM, ordered=False)
    assert store.put(record(1, 5, unit(1)))
    assert store.put(record(1, 4, unit(0, 1)))
    assert store.revision(1) == 4
    assert store.search(unit(0, 1)).scores.tolist() == [1.0]
    assert store.remove(1)
    assert store.tombstone(1) is None
    assert store.put(record(1, 1, unit(1)))


def test_a_deleted_chart_is_not_found_again():
    store = VectorStore(DIM)
    store.put_many([record(1, 1), record(2, 2)])
    assert store.remove(1, revision=3)
    assert not store.remove(1, revision=3), "it is gone already"
    assert store.tombstone(1) == 3
    assert not store.put(record(1, 3))
    assert 1 not in store
    assert store.search(unit(1), 10).chart_ids.tolist() == [2]
    assert store.search(unit(1), 10, chart_ids=[1, 2]).chart_ids.tolist() == [2]
    assert store.put(record(1, 4)), "above its tombstone it is another chart"


def test_a_deletion_that_comes_first_keeps_an_older_record_out():
    store = VectorStore(DIM)
    assert not store.remove(1, revision=9)
    assert not store.put(record(1, 9))
    assert store.put(record(1, 10))


def test_an_old_deletion_does_not_drop_a_newer_record():
    store = VectorStore(DIM)
    store.put(record(1, 9))
    assert not store.remove(1, revision=8)
    assert 1 in store


def test_the_order_of_records_and_removals_does_not_matter_to_an_ordered_store():
    rng = np.random.default_rng(5)
    news = [("put", record(i % 7, int(rng.integers(1, 9)), v)) for i, v in enumerate(random_units(60))]
    news += [("remove", (i, int(rng.integers(1, 9)))) for i in range(7)]
    digests = set()
    for _ in range(10):
        rng.shuffle(news)
        store = VectorStore(DIM)
        for kind, what in news:
            store.put(what) if kind == "put" else store.remove(*what)
        digests.add(store.digest)
    assert len(digests) == 1


def test_put_many_says_how_many_were_taken():
    store = VectorStore(DIM)
    assert store.put_many(record(i) for i in range(5)) == 5
    assert store.put_many([record(0), record(1, 2), record(9), record(9, 2)]) == 3
    assert store.revision(9) == 2
    assert len(store) == 6
    assert store.put_many([]) == 0


def test_put_many_takes_more_records_than_become_visible_together():
    vectors = random_units(9000)
    store = VectorStore(DIM)
    assert store.put_many(record(i, vector=v) for i, v in enumerate(vectors)) == 9000
    assert len(store) == 9000
    assert pairs(store.search(vectors[8999], 3)) == best(vectors, vectors[8999], 3)


# --- retain -------------------------------------------------------------------------------------------------------


def test_retain_drops_what_is_not_listed_and_not_newer_than_the_list():
    store = VectorStore(DIM)
    store.put_many([record(1, 1), record(2, 2), record(3, 30)])
    assert store.retain([1], revision=10) == [2]
    assert 3 in store, "it is newer than the list"
    assert len(store) == 2


def test_what_a_list_left_out_stays_out_until_a_later_list_has_it():
    store = VectorStore(DIM)
    store.put(record(2, 2))
    store.retain([1], revision=10)
    assert not store.put(record(2, 2)), "dropped"
    assert not store.put(record(5, 7)), "never here, but not there at revision 10 either"
    assert store.put(record(1, 7)), "listed, and pulled only now"
    assert store.put(record(5, 11)), "newer than the list"
    store.retain([1, 2, 5], revision=12)
    assert store.put(record(2, 2))


def test_a_listed_chart_whose_old_deletion_comes_late_comes_in_again():
    store = VectorStore(DIM)
    store.put(record(1, 2))
    store.retain([1], revision=10)
    assert store.remove(1, revision=4)
    assert store.put(record(1, 6))


def test_an_older_list_does_not_replace_a_newer_one():
    store = VectorStore(DIM)
    store.retain([1], revision=10)
    store.retain([1, 2], revision=5)
    assert not store.put(record(2, 4))


def test_an_unordered_store_drops_whatever_is_not_listed():
    store = VectorStore(DIM, ordered=False)
    store.put_many([record(1, 1), record(2, 99)])
    assert store.retain([1], revision=0) == [2]
    assert store.put(record(2, 1))
    assert store.retain([], revision=0) == [1, 2]
    assert len(store) == 0


# --- search -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 9, 10, 11, 500])
def test_search_finds_what_comparing_all_finds(n: int):
    vectors = random_units(n)
    store = store_of(vectors)
    for query in random_units(20, seed=1):
        matches = store.search(query, 10)
        assert pairs(matches) == best(vectors, query, 10)
        assert matches.chart_ids.dtype == np.int64
        assert matches.scores.dtype == np.float32


def test_search_many_answers_as_search_does():
    vectors = random_units(700)
    store = store_of(vectors)
    queries = random_units(50, seed=1)
    together = store.search_many(queries, 7)
    assert [pairs(m) for m in together] == [pairs(store.search(query, 7)) for query in queries]
    assert store.search_many(np.empty((0, DIM), dtype=np.float32)) == []
    assert store.search_many([]) == []
    for none in ([], np.empty((0, DIM), dtype=np.float32)):
        with pytest.raises(ValueError, match="k must be an integer from 1"):
            store.search_many(none, k=0)


def test_equal_vectors_come_by_ascending_chart_id():
    store = VectorStore(DIM)
    rng = np.random.default_rng(0)
    vector = random_units(1)[0]
    ids = rng.permutation(1000)
    store.put_many(record(int(i), vector=vector) for i in ids)
    assert store.search(random_units(1, seed=2)[0], 25).chart_ids.tolist() == list(range(25))
    assert store.search(vector, 25, chart_ids=ids[:500].tolist()).chart_ids.tolist() == sorted(ids[:500])[:25]


def test_more_results_than_charts_are_all_charts():
    store = store_of(random_units(5))
    assert sorted(store.search(unit(1), 10**9).chart_ids.tolist()) == [0, 1, 2, 3, 4]


def test_an_empty_store_answers_with_nothing():
    store = VectorStore(DIM)
    for matches in (store.search(unit(1)), store.search(unit(1), chart_ids=[1, 2]), *store.search_many([unit(1)])):
        assert pairs(matches) == []
        assert matches.chart_ids.dtype == np.int64
        assert matches.scores.dtype == np.float32


@pytest.mark.parametrize("allowed_count", [1, 20, 300, 999])
def test_search_among_some_charts_is_exact_and_returns_no_other(allowed_count: int):
    vectors = random_units(1000)
    store = store_of(vectors)
    allowed = np.sort(np.random.default_rng(1).choice(1000, allowed_count, replace=False))
    query = random_units(1, seed=2)[0]
    expected = [(int(allowed[i]), score) for i, score in best(vectors[allowed], query, 10)]
    for chart_ids in (allowed, allowed.tolist(), set(allowed.tolist()), [*allowed, *allowed, 5000, -3]):
        assert pairs(store.search(query, 10, chart_ids=chart_ids)) == expected


def test_no_allowed_chart_means_no_results():
    store = store_of(random_units(20))
    assert pairs(store.search(unit(1), chart_ids=[])) == []
    assert pairs(store.search(unit(1), chart_ids=[77, 99])) == []


def test_stores_of_equal_content_answer_alike_to_the_bit_whatever_their_history():
    dim, n = 384, 300
    vectors, old = random_units(n, dim), random_units(n, dim, seed=9)
    plain, travelled = store_of(vectors), VectorStore(dim, background=False)
    for chart_id in np.random.default_rng(3).permutation(n).tolist():
        travelled.put(record(chart_id, 0, old[chart_id]))
        travelled.put(record(1000 + chart_id, 0, old[chart_id]))
    for chart_id in np.random.default_rng(4).permutation(n).tolist():
        travelled.put(record(chart_id, 1, vectors[chart_id]))
        travelled.remove(1000 + chart_id, 1)
    assert travelled.digest == plain.digest
    for query in random_units(30, dim, seed=5):
        one, other = plain.search(query, 20), travelled.search(query, 20)
        assert one.chart_ids.tobytes() == other.chart_ids.tobytes()
        assert one.scores.tobytes() == other.scores.tobytes()


def test_rows_of_replaced_versions_do_not_pile_up():
    store = store_of(random_units(100))
    for revision in range(2, 60):
        store.put_many(record(i, revision, v) for i, v in enumerate(random_units(100, seed=revision)))
    assert store.status()["dead"] <= 25 + 1
    assert store.nbytes < 200 * (4 * DIM + 100)
    vectors = random_units(100, seed=59)
    assert pairs(store.search(vectors[3], 10)) == best(vectors, vectors[3], 10)
    for chart_id in range(95):
        store.remove(chart_id, 100)
    assert sorted(store.search(unit(1), 100).chart_ids.tolist()) == [95, 96, 97, 98, 99]
    assert store.nbytes < 40 * (4 * DIM + 100)


def test_updates_and_passing_charts_leave_no_memory_behind():
    store = VectorStore(DIM, ordered=False)
    vectors = random_units(50)

    def live_through(start: int, stop: int) -> int:
        for turn in range(start, stop):
            store.put_many(record(i, turn, v) for i, v in enumerate(vectors))
            store.put_many(record(1000 + 50 * turn + i, 1, v) for i, v in enumerate(vectors))
            store.retain(range(50), 0)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        after_few = live_through(1, 20)
        assert live_through(20, 120) < after_few + 50_000
    finally:
        tracemalloc.stop()


def test_charts_closer_than_rounding_come_in_their_exact_order():
    dim = 384
    rng = np.random.default_rng(0)
    base = random_units(1, dim)[0]
    vectors = base + (rng.standard_normal((3000, dim)) * 3e-8).astype(np.float32)
    store = store_of(vectors.astype(np.float32))
    assert len(np.unique(vectors @ base)) > 3
    for k in (1, 5, 100):
        assert pairs(store.search(base, k)) == best(vectors, base, k)
        assert pairs(store.search_many([base, -base], k)[0]) == best(vectors, base, k)


# --- the door -----------------------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"chart_id": -1}, "chart_id must be an integer from 0 to 2**63 - 1, got int -1"),
        ({"chart_id": 2**63}, "chart_id must be an integer from 0"),
        ({"chart_id": True}, "chart_id must be an integer from 0 to 2**63 - 1, got bool True"),
        ({"chart_id": "7"}, "chart_id must be an integer from 0 to 2**63 - 1, got str '7'"),
        ({"revision": -5}, "revision must be an integer from 0 to 2**63 - 1, got int -5"),
        ({"revision": 1.0}, "revision must be an integer"),
        ({"content_hash": b"short"}, "content_hash must be 16 bytes, got 5 bytes"),
        ({"content_hash": "c" * 16}, "content_hash must be 16 bytes, got str"),
        ({"vector": [1.0, NAN]}, "the vector of chart 1 must be finite"),
        ({"vector": [INF, 0.0]}, "the vector of chart 1 must be finite"),
        ({"vector": np.array([1e300, 0.0])}, "the vector of chart 1 must be finite"),
        ({"vector": [0.5, 0.5]}, "the vector of chart 1 must be of unit length within 0.001, got length 0.707107"),
        ({"vector": [0.0, 0.0]}, "got length 0"),
        ({"vector": []}, "got length 0"),
        ({"vector": ["a", "b"]}, "must be of real numbers that convert to float32, got dtype <U1"),
        ({"vector": [1j, 0]}, "must be of real numbers that convert to float32, got dtype complex128"),
        ({"vector": [[1.0], [2.0, 3.0]]}, "must be an array of numbers"),
        ({"vector": [[1.0, 0.0]]}, "of one dimension, got float32 of shape (1, 2)"),
        ({"vector": None}, "must be of real numbers"),
    ],
)
def test_a_wrong_record_says_what_is_wrong(changed: dict[str, object], message: str):
    right: dict[str, object] = {"chart_id": 1, "revision": 1, "content_hash": bytes(16), "vector": [1.0, 0.0]}
    assert Record.of(**right).chart_id == 1  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=re.escape(message)):
        Record.of(**{**right, **changed})  # type: ignore[arg-type]


def test_a_record_made_by_hand_is_checked_as_well():
    good = record(1)
    with pytest.raises(ValueError, match="vector_hash must be 16 bytes"):
        Record(1, 1, bytes(16), good.vector, b"")
    with pytest.raises(ValueError, match="vector must be a float32 array"):
        Record(1, 1, bytes(16), good.vector.astype(np.float64), bytes(16))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be read-only"):
        Record(1, 1, bytes(16), good.vector.copy(), bytes(16))


def test_integers_of_numpy_are_integers():
    store = VectorStore(DIM)
    store.put(Record.of(np.int64(7), np.uint32(3), bytes(16), unit(1)))  # type: ignore[arg-type]
    (chart_id,) = store.search(unit(1), np.int64(1)).chart_ids  # type: ignore[arg-type]
    assert chart_id in store
    held = store.get(chart_id)
    assert held is not None
    assert type(held.chart_id) is type(held.revision) is int
    assert store.remove(chart_id, np.int64(4))  # type: ignore[arg-type]
    assert store.tombstone(7) == 4


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_vectors_of_any_float_are_taken(kind: type):
    assert Record.of(1, 1, bytes(16), unit(1, 1).astype(kind)).vector.dtype == np.float32


def test_a_wrong_record_in_many_leaves_the_store_as_it_was():
    store = store_of(random_units(3))
    before = store.digest, store.nbytes
    with pytest.raises(ValueError, match="chart 9: a vector of 2 floats, expected the store's 8"):
        store.put_many([record(5), record(9, vector=np.array([0.6, 0.8])), record(6)])
    with pytest.raises(TypeError, match="a store takes Records, got tuple"):
        store.put_many([record(5), (1, 2)])  # type: ignore[list-item]
    assert (store.digest, store.nbytes) == before
    assert 5 not in store


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda s: s.search(unit(1), 0), "k must be an integer from 1 to 2**63 - 1, got int 0"),
        (lambda s: s.search(unit(1), 2.5), "k must be an integer from 1"),
        (lambda s: s.search(unit(1)[:4]), "the query vector must be of shape (8,), got (4,)"),
        (lambda s: s.search(unit(1)[None]), "the query vector must be of shape (8,), got (1, 8)"),
        (lambda s: s.search(unit(1) * 2), "the query vector must be of unit length within 0.001, got length 2"),
        (lambda s: s.search(unit(1) * NAN), "the query vector must be finite"),
        (lambda s: s.search("revenue"), "the query vector must be of real numbers"),
        (lambda s: s.search_many(unit(1)), "the query vectors must be of shape (n, 8), got (8,)"),
        (lambda s: s.search_many([unit(1), unit(1) * 3]), "the query vectors must be of unit length"),
        (lambda s: s.search(unit(1), chart_ids=[1.5]), "chart_ids must be integers, got list [1.5]"),
        (lambda s: s.search(unit(1), chart_ids=["1"]), "chart_ids must be integers"),
        (lambda s: s.search(unit(1), chart_ids=[True]), "chart_ids must be integers"),
        (lambda s: s.remove(-1), "chart_id must be an integer from 0"),
        (lambda s: s.remove(1, -1), "revision must be an integer from 0"),
        (lambda s: s.retain([1], -1), "revision must be an integer from 0"),
        (lambda s: s.retain(["a"], 1), "chart_ids must be integers"),
        (lambda s: VectorStore(0), "dim must be an integer from 1 to 2**63 - 1, got int 0"),
        (lambda s: VectorStore(8, exact_limit=-1), "exact_limit must be an integer from 0"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(wrong: Callable[[VectorStore], object], message: str):
    store = store_of(random_units(3))
    before = store.digest
    with pytest.raises(ValueError, match=re.escape(message)):
        wrong(store)
    assert store.digest == before


# --- digest and manifest ------------------------------------------------------------------------------------------


def test_the_digest_knows_the_content_and_not_the_history():
    one, other = VectorStore(DIM), VectorStore(DIM)
    empty = one.digest
    assert re.fullmatch("[0-9a-f]{32}", empty)
    records = [record(i, i + 1, v) for i, v in enumerate(random_units(40))]
    one.put_many(records)
    for each in reversed(records):
        other.put(record(each.chart_id, 0))
        other.put(each)
    other.put(record(99))
    assert one.digest != other.digest
    other.remove(99, 5)
    assert one.digest == other.digest == one.manifest().digest
    for i in range(40):
        one.remove(i, 100)
    assert one.digest == empty


@pytest.mark.parametrize(
    "changed", [{"revision": 2}, {"content": b"d" * 16}, {"vector": unit(0, 0, 1)}, {"chart_id": 2}]
)
def test_the_digest_changes_with_each_part_of_a_record(changed: dict[str, object]):
    one, other = VectorStore(DIM), VectorStore(DIM)
    right: dict[str, object] = {"chart_id": 1, "revision": 1, "vector": unit(1)}
    one.put(record(**right))  # type: ignore[arg-type]
    other.put(record(**{**right, **changed}))  # type: ignore[arg-type]
    assert one.digest != other.digest


def test_a_manifest_lists_the_charts_by_id():
    store = VectorStore(DIM)
    store.put_many([record(5, 50), record(2, 20), record(9, 90)])
    store.remove(2, 99)
    manifest = store.manifest()
    assert len(manifest) == 2
    assert manifest.chart_ids.tolist() == [5, 9]
    assert manifest.revisions.tolist() == [50, 90]
    assert manifest.content_hashes.shape == manifest.vector_hashes.shape == (2, 16)
    frame = manifest.frame()
    assert frame.schema == {
        "chart_id": pl.Int64,
        "revision": pl.Int64,
        "content_hash": pl.String,
        "vector_hash": pl.String,
    }
    held = store.get(5)
    assert held is not None
    assert frame.row(0) == (5, 50, (b"c" * 16).hex(), held.vector_hash.hex())


def test_manifests_say_what_differs():
    here, there = VectorStore(DIM), VectorStore(DIM)
    here.put_many([record(1, 1), record(2, 1), record(3, 1), record(4, 1), record(6, 1)])
    there.put_many([record(1, 1), record(2, 2), record(3, 1, content=b"d" * 16), record(4, 1, unit(0, 0, 1))])
    there.put(record(5, 7))
    difference = here.manifest().difference(there.manifest())
    assert difference.rows() == [
        (2, "revision", 1, 2),
        (3, "content", 1, 1),
        (4, "vector", 1, 1),
        (5, "missing here", None, 7),
        (6, "missing there", 1, None),
    ]
    assert difference.columns == ["chart_id", "difference", "revision_here", "revision_there"]
    assert here.manifest().difference(here.manifest()).is_empty()
    empty = VectorStore(DIM).manifest()
    assert empty.difference(empty).is_empty()
    assert empty.difference(there.manifest())["difference"].unique().to_list() == ["missing here"]


def test_a_manifest_of_wrong_shapes_or_order_is_refused():
    good = store_of(random_units(2)).manifest()
    with pytest.raises(ValueError, match=r"revisions must be int64 of shape \(2,\), got int64 of shape \(1,\)"):
        Manifest(good.chart_ids, good.revisions[:1], good.content_hashes, good.vector_hashes, good.digest)
    with pytest.raises(ValueError, match="vector_hashes must be uint8"):
        Manifest(good.chart_ids, good.revisions, good.content_hashes, good.vector_hashes.astype(np.int64), "")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="chart_ids must be ascending, each once"):
        Manifest(good.chart_ids[::-1], good.revisions, good.content_hashes, good.vector_hashes, good.digest)


# --- the index ----------------------------------------------------------------------------------------------------


def clustered(n: int, dim: int = 32, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((60, dim))
    vectors = centres[rng.integers(60, size=n)] + 0.6 * rng.standard_normal((n, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def indexed() -> tuple[VectorStore, np.ndarray]:
    """3,000 charts with a current graph over them. Tests that use it only read."""
    vectors = clustered(3000)
    store = store_of(vectors, exact_limit=1000)
    assert store.index_state == "building"
    assert index_fully(store) > 5
    return store, vectors


def recall(store: VectorStore, vectors: np.ndarray, queries: np.ndarray, k: int = 10) -> float:
    shared = [len({i for i, _ in best(vectors, q, k)} & set(store.search(q, k).chart_ids.tolist())) for q in queries]
    return sum(shared) / (k * len(queries))


def test_above_the_exact_limit_a_graph_answers(indexed: tuple[VectorStore, np.ndarray]):
    store, vectors = indexed
    assert store.index_state == "graph"
    assert store.status()["indexed"] == 3000
    queries = clustered(100, seed=1)
    assert recall(store, vectors, queries) >= 0.95
    scores = dict(best(vectors, queries[0], 3000))
    for chart_id, score in pairs(store.search(queries[0])):
        assert score == scores[chart_id], "scores are exact, also when a graph found the chart"
    assert [pairs(m) for m in store.search_many(queries[:5])] == [pairs(store.search(q)) for q in queries[:5]]


def test_a_search_among_some_charts_is_exact_beside_a_graph(indexed: tuple[VectorStore, np.ndarray]):
    store, vectors = indexed
    allowed = np.arange(0, 3000, 7)
    for query in clustered(10, seed=2):
        expected = [(int(allowed[i]), score) for i, score in best(vectors[allowed], query, 10)]
        assert pairs(store.search(query, chart_ids=allowed)) == expected


def test_a_graph_gives_all_charts_when_asked_for_all(indexed: tuple[VectorStore, np.ndarray]):
    store, vectors = indexed
    query = clustered(1, seed=3)[0]
    assert pairs(store.search(query, 5000)) == best(vectors, query, 5000)


def test_while_a_graph_is_being_built_searches_are_exact():
    vectors = clustered(1500)
    store = store_of(vectors, exact_limit=500)
    query = clustered(1, seed=4)[0]
    while store.index_step():
        assert store.index_state == "building"
        assert pairs(store.search(query, 10)) == best(vectors, query, 10)
    assert store.index_state == "graph"


def test_what_is_newer_than_the_graph_is_found_at_once_and_exactly():
    vectors = clustered(2000)
    store = store_of(vectors, exact_limit=1000)
    index_fully(store)
    new = clustered(1, seed=5)[0]
    store.put(record(7, 2, new))
    store.put(record(5000, 1, new))
    assert store.status()["indexed"] == 2000, "no step was made"
    assert store.search(new, 2).chart_ids.tolist() == [7, 5000]
    assert 7 not in store.search(vectors[7], 5).chart_ids[:1].tolist(), "its old version is in the graph, and dead"
    store.remove(5000, 9)
    store.remove(8, 9)
    assert store.search(new, 1).chart_ids.tolist() == [7]
    assert 8 not in store.search(vectors[8], 50).chart_ids.tolist()


def test_a_neighbourhood_full_of_dead_rows_still_gives_all_results():
    vectors = clustered(4000)
    store = store_of(vectors, exact_limit=1000)
    index_fully(store)
    query = vectors[0]
    nearest = [i for i, _ in best(vectors, query, 1200)]
    for chart_id in nearest:
        store.remove(chart_id, 2)
    left = np.setdiff1d(np.arange(4000), nearest)
    found = store.search(query, 10)
    expected = [(int(left[i]), score) for i, score in best(vectors[left], query, 10)]
    assert store.index_state == "graph"
    assert len(found.chart_ids) == 10
    assert set(found.chart_ids.tolist()).isdisjoint(nearest)
    assert len({i for i, _ in expected} & set(found.chart_ids.tolist())) >= 8


def test_a_graph_finds_nearly_all_even_where_nothing_is_clustered():
    vectors = random_units(4000, 128)
    store = store_of(vectors, exact_limit=1000)
    index_fully(store)
    assert recall(store, vectors, random_units(50, 128, seed=1)) >= 0.95


def test_graphs_are_merged_so_that_a_search_asks_few_and_a_row_is_indexed_few_times():
    vectors = clustered(6000)
    store = VectorStore(32, exact_limit=400, background=False)
    steps = 0
    for start in range(0, 6000, 250):
        store.put_many(record(i, vector=vectors[i]) for i in range(start, start + 250))
        steps += index_fully(store)
        assert store.index_state == ("graph" if start + 250 > 400 else "exact")
        assert store.status()["graphs"] <= 6
    assert store.status()["indexed"] > 5700
    assert steps < 200, "one graph over all, each time anew, would take more than 300"
    assert recall(store, vectors, clustered(50, seed=6)) >= 0.95


def test_graphs_over_dead_rows_are_built_anew():
    store = store_of(clustered(2000), exact_limit=500)
    index_fully(store)
    for chart_id in range(1200):
        store.remove(chart_id, 2)
    assert store.index_state == "building"
    index_fully(store)
    assert store.status()["indexed"] == 800
    assert store.status()["index"] == "graph"


def test_a_store_that_shrank_is_exact_again_and_gives_its_graphs_back():
    vectors = clustered(1500)
    store = store_of(vectors, exact_limit=1000)
    index_fully(store)
    with_graph = store.nbytes
    store.retain(range(900), 5)
    assert store.index_state == "exact"
    store.retain(range(400), 6)
    index_fully(store)
    assert store.status()["indexed"] == 0
    assert store.nbytes < with_graph / 3
    query = clustered(1, seed=7)[0]
    assert pairs(store.search(query)) == best(vectors[:400], query, 10)


def test_changes_during_a_build_are_not_lost():
    vectors = clustered(2000)
    changed = clustered(2000, seed=8)
    store = store_of(vectors, exact_limit=500)
    for chart_id in range(0, 2000, 20):
        store.index_step()
        store.put(record(chart_id, 2, changed[chart_id]))
        vectors[chart_id] = changed[chart_id]
        assert pairs(store.search(changed[chart_id], 1)) == best(vectors, changed[chart_id], 1)
    index_fully(store)
    assert recall(store, vectors, clustered(50, seed=9)) >= 0.95
    assert pairs(store.search(vectors[0], 2000)) == best(vectors, vectors[0], 2000)


def test_a_thread_builds_the_graph_and_ends():
    store = store_of(clustered(1500), exact_limit=500, background=True)
    wait_until(lambda: store.index_state == "graph")
    wait_until(lambda: not any(t.name == "copilotlab-index" for t in threading.enumerate()))
    store.put_many(record(10_000 + i, vector=v) for i, v in enumerate(clustered(600, seed=3)))
    wait_until(lambda: store.index_state == "graph" and store.status()["indexed"] == 2100)


def test_the_thread_lets_go_of_a_store_that_nobody_holds():
    store = store_of(random_units(6000, 64), exact_limit=10, background=True)
    gone = weakref.ref(store)
    del store
    gc.collect()
    wait_until(lambda: gone() is None)
    wait_until(lambda: not any(t.name == "copilotlab-index" for t in threading.enumerate()))


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


def test_an_interpreter_may_end_in_the_middle_of_a_build():
    done = run_python(
        "import numpy as np; import usearch.index; from copilotlab.store import Record, VectorStore\n"
        "v = np.random.default_rng(0).standard_normal((20_000, 384), dtype=np.float32)\n"  # a build of many seconds
        "v /= np.linalg.norm(v, axis=1, keepdims=True)\n"
        "s = VectorStore(384, exact_limit=10)\n"
        "s.put_many(Record.of(i, 1, bytes(16), x) for i, x in enumerate(v))\n"
        "s.search(v[0]); print(s.index_state)"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "building\n", "")


def test_a_model_of_onnxruntime_may_be_loaded_beside_a_graph():
    pytest.importorskip("onnxruntime")
    done = run_python(
        "import numpy as np; from copilotlab.store import Record, VectorStore\n"
        "s = VectorStore(2, exact_limit=2, background=False)\n"
        "s.put_many(Record.of(i, 1, bytes(16), [1, 0]) for i in range(20))\n"
        "while s.index_step(): pass\n"
        "import onnxruntime; print(s.index_state)"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "graph\n", "")


def test_a_store_without_a_graph_loads_neither_usearch_nor_polars():
    done = run_python(
        "import sys; from copilotlab.store import Record, VectorStore\n"
        "s = VectorStore(2); s.put(Record.of(1, 1, bytes(16), [1, 0])); s.search([1, 0]); s.manifest()\n"
        "print([m for m in ('usearch', 'polars', 'torch', 'tqdm') if m in sys.modules])"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


# --- to look at ---------------------------------------------------------------------------------------------------


def test_a_store_says_how_it_is():
    store = store_of(random_units(3))
    assert repr(store) == "VectorStore(3 charts x 8, ordered, index=exact, 0.0 MB)"
    status = store.status()
    assert status["count"] == 3
    assert status["dim"] == DIM
    assert status["index"] == store.index_state == "exact"
    assert status["building"] is False
    assert status["digest"] == store.digest
    assert status["nbytes"] == store.nbytes > 3 * 4 * DIM
    html = store._repr_html_()
    assert html.startswith("<table")
    assert "VectorStore</bdi></caption>" in html
    assert f"<bdi>{store.digest}</bdi></td>" in html
    assert "chart_id=1" in repr(record(1))
    assert repr(store.manifest()) == f"Manifest(3 charts, digest={store.digest})"


# --- at every line ------------------------------------------------------------------------------------------------
# A trace function runs at each line of a writer, in the writer's thread and with the writer's lock held.

HOME = str(Path(copilotlab.store.__file__).parent)

WRITES: dict[str, Callable[[VectorStore], object]] = {
    "put of a new chart": lambda s: s.put(record(100, 1, unit(0, 0, 1))),
    "put of a newer revision": lambda s: s.put(record(3, 2, unit(0, 0, 1))),
    "put_many of both": lambda s: s.put_many(record(i, 2, v) for i, v in zip((5, 90, 6), random_units(3), strict=True)),
    "remove": lambda s: s.remove(3, 5),
    "remove of an unknown chart": lambda s: s.remove(105, 5),
    "retain": lambda s: s.retain(range(5), 5),
    "index_step": lambda s: s.index_step(),
}


def each_line(action: Callable[[], object], at_line: Callable[[], None]) -> None:
    """Calls ``at_line`` before each line of the store's code that ``action`` runs.

    Not before ``with``: that line comes up once more when its block ends, before the lock is released, where the
    interpreter itself never lets a signal in.
    """

    def tracer(frame: FrameType, event: str, arg: object) -> object:
        if not frame.f_code.co_filename.startswith(HOME):
            return None
        if event == "line" and not linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith(
            "with"
        ):
            at_line()
        return tracer

    before = sys.gettrace()
    sys.settrace(tracer)  # type: ignore[arg-type]
    try:
        action()
    finally:
        sys.settrace(before)


def whole_state(store: VectorStore) -> tuple[object, ...]:
    manifest = store.manifest()
    found = store.search(unit(1, 1), 1000)
    some = store.search(unit(1, 1), 1000, chart_ids=range(0, 110, 3))
    assert manifest.digest == store.digest
    assert sorted(found.chart_ids.tolist()) == manifest.chart_ids.tolist()
    held = [(i, store.revision(i)) for i in range(110) if i in store]
    assert held == list(zip(manifest.chart_ids.tolist(), manifest.revisions.tolist(), strict=True))
    return len(store), store.digest, tuple(pairs(found)), tuple(pairs(some))


def written_store() -> VectorStore:
    """Full up to the last row, so that a put moves all to larger arrays; with a dead row; with a graph due."""
    store = VectorStore(DIM, exact_limit=20, background=False)
    for start, stop in ((0, 16), (16, 32), (32, 64)):
        store.put_many(record(i, 0, v) for i, v in enumerate(random_units(stop)[start:], start))
    store.remove(63, 1)
    return store


@pytest.mark.parametrize("write", WRITES)
def test_a_reader_at_any_line_of_a_writer_waits_for_nothing_and_sees_the_state_before_or_after(write: str):
    store, twin = written_store(), written_store()
    before = whole_state(store)
    WRITES[write](twin)
    after = whole_state(twin)
    seen: list[tuple[object, ...]] = []
    each_line(lambda: WRITES[write](store), lambda: seen.append(whole_state(store)))
    assert len(seen) > 10
    switched = next((i for i, state in enumerate(seen) if state != before), len(seen))
    assert all(state == after for state in seen[switched:])
    assert whole_state(store) == after


@pytest.mark.parametrize("write", WRITES)
def test_an_interrupt_at_any_line_of_a_writer_leaves_the_state_before_or_after(write: str):
    twin = written_store()
    before = whole_state(twin)
    WRITES[write](twin)
    after = whole_state(twin)
    at, interrupted = 0, True
    while interrupted:
        store, lines = written_store(), 0

        def interrupt(at: int = at) -> None:
            nonlocal lines
            lines += 1
            if lines > at:
                raise KeyboardInterrupt

        interrupted = False
        try:
            each_line(lambda store=store: WRITES[write](store), interrupt)
        except KeyboardInterrupt:
            interrupted = True
        assert whole_state(store) in (before, after), at
        store.put(record(200, 9))  # the next writer finds the store in order
        assert store.get(200) is not None
        store.remove(200, 9)
        assert whole_state(store) in (before, after), at
        WRITES[write](store)
        assert whole_state(store) == after, at
        index_fully(store)
        assert whole_state(store) == after, at
        at += 1
    assert at > 10
