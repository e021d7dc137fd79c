"""A store that follows a repository: what that says is right, whatever is held here and whoever said so."""

from __future__ import annotations

import numpy as np
import pytest

from copilotlab import Chart, ChartRepository, VectorStore
from copilotlab.digest import digest_of
from copilotlab.store import Record

UNIT = np.eye(4, dtype=np.float32)


def record(chart_id, revision, content=b"a", axis=0):
    return Record.of(chart_id, revision, content * 16, UNIT[axis])


def columns(rows):
    """rows: (chart_id, revision, content), content None where deleted."""
    return (
        np.array([row[0] for row in rows], dtype=np.int64),
        np.array([row[1] for row in rows], dtype=np.int64),
        np.frombuffer(b"".join((row[2] or b"\0") * 16 for row in rows), dtype=np.uint8).reshape(-1, 16),
        np.array([row[2] is None for row in rows], dtype=bool),
    )


def follow(store, rows, *, since, revision, reuse=True):
    return store.follow(*columns(rows), since=since, revision=revision, reuse=reuse)


@pytest.fixture
def store():
    return VectorStore(4, background=False)


def test_what_the_repository_lacks_goes_and_what_it_has_is_named(store):
    store.put_many([record(1, 1), record(2, 2), record(3, 3)])
    followed = follow(store, [(1, 1, b"a"), (4, 5, b"d")], since=0, revision=5)

    assert followed.dropped == [2, 3]
    assert followed.lacking.tolist() == [1]
    assert store.manifest().chart_ids.tolist() == [1]


def test_other_words_at_the_same_revision_give_way_to_the_repositorys_whatever_their_hash(store):
    store.put(record(1, 7, b"x", axis=3))
    assert follow(store, [(1, 7, b"a")], since=0, revision=9).lacking.tolist() == [0]
    assert 1 not in store

    assert not store.put(record(1, 7, b"x", axis=3)), "what the repository does not have"
    assert store.put(record(1, 7, b"a"))
    assert store.get(1).content_hash == b"a" * 16


def test_words_of_a_lost_past_go_and_the_same_words_get_the_repositorys_revision(store):
    store.put_many([record(1, 80), record(2, 85, b"lost"[:1])])
    followed = follow(store, [(1, 40, b"a"), (2, 41, b"b")], since=0, revision=100)

    assert (store.revision(1), followed.moved) == (40, 1)
    assert 2 not in store
    assert not store.put(record(2, 85, b"l"))
    assert store.put(record(2, 41, b"b"))


def test_below_the_watermark_only_what_is_expected_comes_in(store):
    follow(store, [(1, 3, b"a"), (2, 4, b"b")], since=0, revision=10)

    assert not store.put(record(1, 2, b"o")), "older"
    assert not store.put(record(1, 3, b"z")), "other words"
    assert not store.put(record(5, 9, b"e")), "a chart that it does not have"
    assert store.put(record(1, 3, b"a"))
    assert store.put(record(2, 11, b"n")), "news since"
    assert not store.put(record(2, 4, b"b")), "older than what has come since"


def test_two_vectors_of_the_same_words_are_settled_as_ever(store):
    follow(store, [(1, 3, b"a")], since=0, revision=10)
    first, second = sorted([record(1, 3, axis=0), record(1, 3, axis=1)], key=lambda r: r.vector_hash)
    assert store.put(first)
    assert store.put(second)
    assert not store.put(first)


def test_a_deletion_that_the_repository_did_not_know_of_when_it_was_read_does_not_count(store):
    store.put(record(1, 3))
    follow(store, [(1, 3, b"a")], since=0, revision=10)

    assert not store.remove(1, 10)
    assert 1 in store
    assert store.remove(1, 11), "news since"
    assert not store.put(record(1, 3)), "and it does not come back"


def test_what_is_newer_than_the_look_stays(store):
    store.put_many([record(1, 12, b"n"), record(2, 13, b"m")])
    followed = follow(store, [(1, 5, b"a")], since=0, revision=10)

    assert (followed.lacking.tolist(), followed.dropped) == ([], [])
    assert (store.revision(1), store.revision(2)) == (12, 13)


@pytest.mark.parametrize("since", [0, 4])
def test_what_was_removed_after_the_look_is_not_brought_back_by_it(store, since):
    """The repository is read, the chart is deleted, this node hears of that; and only then takes in what was read."""
    store.put_many([record(1, 3), record(2, 4)])
    follow(store, [(1, 3, b"a"), (2, 4, b"a")], since=0, revision=4)
    assert store.remove(1, 7)
    followed = follow(store, [(1, 3, b"a"), (2, 4, b"a")], since=since, revision=6)

    assert followed.lacking.tolist() == []
    assert 1 not in store
    assert store.tombstone(1) == 7
    assert not store.put(record(1, 3))


def test_tombstones_last_until_the_repository_was_read_beyond_them(store):
    follow(store, [(1, 1, b"a")], since=0, revision=1)
    store.put(record(1, 1))
    for chart_id in range(100, 1_100):
        store.remove(chart_id, 2)
    store.remove(1, 3)
    assert len(store.tombstones()) == 1_001

    follow(store, [(1, 3, None)], since=1, revision=4)
    assert store.tombstones() == {}
    assert not store.put(record(1, 1))
    assert not store.put(record(100, 2))


def test_a_tombstone_stays_where_the_chart_is_expected_again(store):
    follow(store, [], since=0, revision=1)
    store.remove(7, 5)
    follow(store, [(7, 6, b"b")], since=1, revision=6)

    assert not store.put(record(7, 5, b"a"))
    assert store.put(record(7, 6, b"b"))


def test_a_tombstone_of_another_past_keeps_out_nothing_that_is_expected(store):
    store.remove(7, 5)
    follow(store, [(7, 4, b"b")], since=0, revision=6)

    assert store.put(record(7, 4, b"b"))


def test_a_look_that_leaves_a_gap_moves_no_watermark(store):
    follow(store, [(1, 1, b"a")], since=0, revision=1)
    follow(store, [(2, 9, None), (3, 8, b"c")], since=6, revision=9)

    assert store.put(record(4, 5)), "what changed in between is not known"
    assert store.tombstone(2) == 9


def test_after_the_repository_went_back_what_an_older_list_left_out_may_come_in(store):
    store.retain([1], 9)
    assert not store.put(record(2, 4, b"c"))
    store.follow(*columns([(2, 4, b"c")]), since=0, revision=5, back=True)

    assert store.put(record(2, 4, b"c"))


def test_when_the_repository_went_back_the_words_that_it_still_has_keep_their_vectors(store):
    store.put_many([record(1, 80), record(2, 81, b"x"), record(3, 3)])
    store.remove(4, 90)
    follow_back = [(1, 40, b"a"), (2, 41, b"b"), (4, 42, b"d")]
    followed = store.follow(*columns(follow_back), since=0, revision=50, back=True)

    assert (followed.dropped, followed.moved) == ([2, 3], 1)
    assert (store.revision(1), store.latest, store.tombstones()) == (40, 50, {})
    assert store.put_many([record(2, 41, b"b"), record(4, 42, b"d")]) == 2
    assert not store.put(record(2, 81, b"x")), "a peer that has not noticed yet"
    assert not store.remove(4, 90)
    assert store.put(record(5, 91)), "news"
    store.trust()
    assert store.put(record(6, 60))


def test_expected_words_come_in_whatever_revision_another_past_gave_them(store):
    follow(store, [(1, 30, b"a")], since=0, revision=50)
    assert store.put(record(1, 45, b"a"))
    assert store.revision(1) == 30


@pytest.mark.parametrize("lie", ["deletion", "record"])
@pytest.mark.parametrize("back", [True, False])
def test_what_a_lie_took_the_place_of_is_back_when_the_repository_does_not_know_of_it(store, lie, back):
    store.put_many([record(1, 3, axis=2), record(2, 4)])
    named = [(1, 3, b"a"), (2, 4, b"a")]
    follow(store, named, since=0, revision=4)
    if lie == "deletion":
        assert store.remove(1, 9)
    else:
        assert store.put(record(1, 9, b"l"))
    followed = store.follow(*columns(named), since=0, revision=4 if back else 10, back=back)

    assert followed.lacking.tolist() == []
    assert store.head(1) == (3, b"a" * 16)
    assert store.get(1).vector.tolist() == UNIT[2].tolist()
    assert len(store) == 2
    assert (store.content, store.tombstones()) == (digest_of([(1, 3, b"a" * 16), (2, 4, b"a" * 16)]), {})


def test_what_true_news_took_the_place_of_is_gone(store):
    store.put(record(1, 3))
    follow(store, [(1, 3, b"a")], since=0, revision=3)
    store.put(record(1, 5, b"n"))
    follow(store, [(1, 5, b"n")], since=3, revision=5)
    store.remove(1, 6)
    follow(store, [(1, 6, None)], since=5, revision=6)

    assert follow(store, [(1, 7, b"a")], since=6, revision=7).lacking.tolist() == [0], "it is not brought back"


def test_a_store_that_is_not_ordered_drops_only_what_is_named(store):
    store = VectorStore(4, ordered=False, background=False)
    store.put_many([record(1, 1), record(2, 2), record(3, 3)])
    followed = follow(store, [(1, 4, b"a"), (2, 5, None)], since=0, revision=5)

    assert (followed.dropped, followed.moved) == ([2], 1)
    assert store.manifest().chart_ids.tolist() == [1, 3]
    assert store.put(record(9, 1)), "the last writer wins"


def test_the_content_is_the_repositorys_digest_when_both_hold_the_same():
    charts = ChartRepository()
    store = VectorStore(4, background=False)
    for chart_id in (1, 2, 3, 2):
        charts.save(Chart(chart_id=chart_id, title=f"Revenue {charts.revision}"))
    charts.delete(3)
    for change in charts.changes_since():
        if change.chart is not None:
            store.put(Record.of(change.chart_id, change.revision, change.chart.content_hash, UNIT[0]))
    look = charts.look(0)

    assert store.content == look.digest
    heads = zip(look.heads.chart_ids.tolist(), look.heads.revisions.tolist(), look.heads.content_hashes, strict=True)
    assert look.digest == digest_of((i, r, h.tobytes()) for i, r, h in heads)
    store.put(record(1, 9, axis=1))
    assert store.content != look.digest
