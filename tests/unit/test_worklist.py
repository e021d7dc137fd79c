"""What a batch has left to do: newest first, like lengths together, and nothing that came from elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from copilotlab import Chart, Policy
from copilotlab.charts import Heads
from copilotlab.protocol.worklist import LOOK_AGAIN, Tally, WorkList, cut
from copilotlab.store import Record, VectorStore


def chart(chart_id, length=5):
    return Chart(chart_id=chart_id, title="x" * length)


class Catalogue:
    """What is to be taken in, and a list of the work that makes."""

    def __init__(self, *charts, **policy):
        self.policy = Policy(**{"chunk_size": 2, **policy})
        self.charts = {made.chart_id: made for made in charts}
        self.revisions = {made.chart_id: number for number, made in enumerate(charts, start=1)}
        self.store = VectorStore(4)
        self.tally = Tally(0.0)
        self.work = WorkList(self.store, self, self.policy, self.tally)
        self.reads = []

    def read(self, chart_ids):
        """As a follower does."""
        self.reads.append(list(chart_ids))
        return [(self.charts[i], self.revisions[i]) for i in chart_ids]

    def hold(self, chart_id, revision=None):
        made = self.charts[chart_id]
        vector = np.array([1, 0, 0, 0], np.float32)
        self.store.put(Record.of(chart_id, revision or self.revisions[chart_id], made.content_hash, vector))

    def add(self, *deleted):
        gone = [(i, 100 + i, b"", True) for i in deleted]
        self.work.add(Heads.of([(i, self.revisions[i], c.content_hash, False) for i, c in self.charts.items()] + gone))

    def chunks(self):
        """The ids of all that is left, chunk by chunk."""
        found = []
        while (chunk := self.work.next_texts()) is not None:
            found.append([item[0].chart_id for item in chunk])
        return found

    def rest(self):
        """The ids of all that is left, in order."""
        return [chart_id for chunk in self.chunks() for chart_id in chunk]


def test_the_newest_changes_go_first_and_within_a_window_the_shortest_texts():
    lengths = [9, 1, 8, 2, 7, 3, 6, 4] * 3
    catalogue = Catalogue(*(chart(number, length) for number, length in enumerate(lengths)))
    catalogue.add()
    done = catalogue.rest()
    window = 2 * 8  # chunks of two
    assert sorted(done[:window]) == list(range(8, 24)), "the last that were saved"
    assert [lengths[i] for i in done[:window]] == sorted(lengths[8:24])
    assert catalogue.tally.total == 24


def test_what_is_saved_meanwhile_goes_on_top():
    catalogue = Catalogue(chart(1), chart(2), chart(3))
    catalogue.add()
    catalogue.work.next_texts()
    catalogue.charts, catalogue.revisions = {4: chart(4)}, {4: 9}
    catalogue.add()
    assert catalogue.chunks() == [[4], [1]]


def test_what_is_here_is_not_made_again_and_counts_as_done():
    catalogue = Catalogue(chart(1), chart(2), chart(3))
    catalogue.hold(2)
    catalogue.add()
    assert catalogue.reads == [[3, 1]]
    assert (catalogue.tally.total, catalogue.tally.done, catalogue.tally.reused) == (3, 1, 1)
    assert catalogue.work.next_kept() is None, "whoever lacks it fetches it"
    assert catalogue.work.live == {1, 2, 3}


def test_the_same_words_at_a_new_revision_are_kept_at_that_one():
    catalogue = Catalogue(chart(1), chart(2), chart(3))
    catalogue.hold(3, revision=1)
    catalogue.add()
    assert [(kept.chart_id, kept.revision) for kept in catalogue.work.next_kept()] == [(3, 3)]
    assert catalogue.work.next_kept() is None
    assert (catalogue.tally.reused, catalogue.tally.done, catalogue.tally.total) == (1, 0, 3)


def test_where_nodes_do_not_reconcile_what_is_here_is_said_all_the_same():
    catalogue = Catalogue(chart(1), reconcile=False)
    catalogue.hold(1)
    catalogue.add()
    assert [kept.chart_id for kept in catalogue.work.next_kept()] == [1]


def test_without_reuse_everything_is_made():
    catalogue = Catalogue(chart(1), chart(2), reuse_vectors=False)
    catalogue.hold(1)
    catalogue.add()
    assert sorted(catalogue.rest()) == [1, 2]


def test_what_came_meanwhile_is_left_out_and_counted():
    catalogue = Catalogue(chart(1), chart(2))
    catalogue.add()
    catalogue.hold(1)
    assert [item[0].chart_id for item in catalogue.work.lacking()] == [2]
    assert catalogue.chunks() == [[2]]
    assert (catalogue.tally.done, catalogue.tally.reused) == (1, 1)


def test_the_same_words_that_came_at_an_earlier_revision_are_taken_to_this_one():
    catalogue = Catalogue(chart(7), chart(1))
    catalogue.add()
    catalogue.hold(1, revision=1)
    assert catalogue.chunks() == [[7]]
    assert catalogue.store.revision(1) == 2


def test_other_words_at_a_later_revision_leave_nothing_to_make_and_at_an_earlier_one_do():
    catalogue = Catalogue(chart(7), chart(1), chart(2))
    vector, other = np.array([1, 0, 0, 0], np.float32), bytes(16)
    catalogue.add()
    catalogue.store.put(Record.of(1, 9, other, vector))
    catalogue.store.put(Record.of(2, 1, other, vector))
    assert sorted(catalogue.rest()) == [2, 7]


def test_what_was_deleted_meanwhile_is_not_made():
    catalogue = Catalogue(chart(1), chart(2), chart(3))
    catalogue.add()
    catalogue.store.remove(1, 50)  # somebody said so
    catalogue.charts, catalogue.revisions = {}, {}
    catalogue.add(2)  # the repository did
    assert catalogue.work.live == {1, 3}
    assert catalogue.rest() == [3]


def test_after_the_others_were_asked_the_rest_is_sorted_anew():
    catalogue = Catalogue(*(chart(number) for number in range(6)))
    catalogue.add()
    for chart_id in (0, 3, 4):
        catalogue.hold(chart_id)
    catalogue.work.drop_what_came()
    assert (catalogue.tally.done, catalogue.tally.reused) == (3, 3)
    assert catalogue.chunks() == [[5, 2], [1]], "in full chunks"


def test_what_another_node_has_claimed_is_left_and_asked_for_before_it_is_made():
    catalogue = Catalogue(chart(1), chart(2))
    catalogue.add()
    work = catalogue.work
    todo = work.next_texts()
    ours, asks = work.share(todo, [True, False], 0.0)
    assert ([item[0].chart_id for item in ours], asks) == ([2], False)
    assert (work.has_left, work.has_texts) == (True, False)
    assert "1 charts" in repr(work)

    assert work.take_up_what_was_left(10.0)
    assert not work.has_left
    claimed = work.next_texts()
    assert work.share(claimed, [False], 5.0) == ([], False), "its claim still stands"
    assert not work.take_up_what_was_left(10.0 + LOOK_AGAIN / 2), "that was a moment ago"
    assert work.take_up_what_was_left(10.0 + LOOK_AGAIN)
    assert work.share(work.next_texts(), [True], 11.0) == ([], True), "whose claim is free by now may have made it"
    assert work.share(work.next_texts(), [True], 11.0) == (claimed, False)
    assert not work.has_left
    assert work.next_texts() is None


def test_a_claim_that_lasts_for_longer_than_any_does_is_not_respected():
    catalogue = Catalogue(chart(1), claim_timeout=10.0)
    catalogue.add()
    work = catalogue.work
    assert work.share(work.next_texts(), [False], 0.0) == ([], False)
    for now in (1.0, 9.0):
        assert work.take_up_what_was_left(now)
        assert work.share(work.next_texts(), [False], now) == ([], False)
    assert work.take_up_what_was_left(10.0)
    assert work.share(work.next_texts(), [False], 10.0) == ([], True)
    ours, _ = work.share(work.next_texts(), [False], 10.0)
    assert [item[0].chart_id for item in ours] == [1]


def test_a_list_is_cut_into_pieces_and_nothing_is_lost():
    assert cut([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4], [5]]
    assert cut([], 2) == []


@pytest.mark.parametrize("charts", [0, 3])
def test_what_is_kept_is_done(charts):
    tally = Tally(0.0)
    tally.count_kept(charts)
    assert (tally.done, tally.reused, tally.total) == (charts, charts, 0)
