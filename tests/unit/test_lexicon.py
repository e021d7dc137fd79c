"""What charts say of themselves is found exactly, however it came in; by hypothesis against a plain dict."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from copilotlab.store import Lexicon, Words

values = st.sampled_from(["a", "b", "c"])
facets = st.lists(st.tuples(st.sampled_from(["source", "tags"]), values), max_size=4).map(tuple)
charts = st.integers(0, 6)
steps = st.one_of(
    st.tuples(st.just("put"), st.lists(st.tuples(charts, st.integers(1, 9), facets), max_size=5)),
    st.tuples(st.just("remove"), st.lists(charts, max_size=3)),
    st.tuples(st.just("tidy"), st.none()),
    st.tuples(st.just("clear"), st.none()),
)
wheres = st.dictionaries(st.sampled_from(["source", "tags"]), st.sets(values, max_size=2), max_size=2)


def ids(*chart_ids: int) -> np.ndarray:
    return np.array(chart_ids, dtype=np.int64)


@settings(max_examples=200, deadline=None)
@given(st.lists(steps, max_size=12), wheres)
def test_it_finds_and_counts_what_a_plain_dict_would_after_any_changes(changes, where):
    lexicon, model = Lexicon(), {}
    for kind, given_ in changes:
        if kind == "put":
            lexicon.put([Words(*one) for one in given_])
            for chart_id, revision, said in given_:
                if revision > model.get(chart_id, (0, ()))[0]:
                    model[chart_id] = revision, said
        elif kind == "remove":
            lexicon.remove(ids(*given_))
            model = {i: kept for i, kept in model.items() if i not in given_}
        elif kind == "clear":
            lexicon.clear()
            model = {}
        else:
            while lexicon.tidy():
                pass
    matching = {
        i: said
        for i, (_, said) in model.items()
        if all(any((field, value) in said for value in wanted) for field, wanted in where.items())
    }
    assert sorted(lexicon.matching(where).tolist()) == sorted(matching)
    assert lexicon.counts(where) == Counter(facet for said in matching.values() for facet in set(said))
    assert lexicon.revisions(ids(*range(8))).tolist() == [model.get(i, (-1, ()))[0] for i in range(8)]
    assert len(lexicon) == len(model)


def test_what_changes_while_segments_are_merged_is_not_lost(monkeypatch):
    from copilotlab.store import lexicon as module

    lexicon = Lexicon()
    for chart_id in range(8):
        lexicon.put([Words(chart_id, 1, (("tags", "old"),))])
    merged = module._merged

    def meanwhile(segments):
        result = merged(segments)
        lexicon.put([Words(3, 2, (("tags", "new"),))])
        lexicon.remove(ids(5))
        return result

    monkeypatch.setattr(module, "_merged", meanwhile)
    lexicon.tidy()
    monkeypatch.undo()
    while lexicon.tidy():
        pass
    assert sorted(lexicon.matching({"tags": ["old"]}).tolist()) == [0, 1, 2, 4, 6, 7]
    assert lexicon.matching({"tags": ["new"]}).tolist() == [3]


def test_many_single_changes_leave_few_segments_and_few_names():
    lexicon = Lexicon()
    for revision in range(1, 3_001):
        lexicon.put([Words(revision % 50, revision, (("tags", f"tag {revision}"),))])
        while lexicon.tidy():
            pass
    assert len(lexicon) == 50
    assert len(lexicon._segments) <= 8
    assert len(lexicon._names) < 1_500
    assert lexicon.nbytes < 50 * 200


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(charts, st.text(alphabet="abc ", max_size=12)), max_size=10), st.text("abc ", max_size=8))
def test_shares_depend_on_what_charts_say_and_not_on_what_came_before(said, question):
    grown, model = Lexicon(), {}
    for revision, (chart_id, text) in enumerate(said, start=1):
        grown.put([Words(chart_id, revision, (), text)])
        model[chart_id] = Words(chart_id, revision, (), text)
        if revision % 3 == 0:
            grown.tidy()
    fresh = Lexicon()
    fresh.put(model.values())
    everything = ids(*range(8))
    ours, theirs = (lexicon.shares(question) for lexicon in (grown, fresh))
    assert ours.of_charts(everything).tolist() == theirs.of_charts(everything).tolist()
    for most in (2, 20):
        for allowed in (None, ids(1, 3, 5)):
            (found, shares), (expected, others) = (each.best(most, allowed) for each in (ours, theirs))
            assert (found.tolist(), shares.tolist()) == (expected.tolist(), others.tolist())
            assert shares.tolist() == sorted(shares.tolist(), reverse=True)
            assert all(0 < share <= 1 for share in shares.tolist())


def test_a_typo_costs_some_of_the_share_and_a_column_is_read_as_words():
    lexicon = Lexicon()
    texts = ["Revenue by region", "netRevenue_usd per store", "Sick leave by team"]
    lexicon.put([Words(chart_id, 1, (), text) for chart_id, text in enumerate(texts)])
    right = lexicon.shares("revenue").of_charts(ids(0, 1, 2))
    wrong = lexicon.shares("reveneu").of_charts(ids(0, 1, 2))
    assert right.min() == right[2] < min(right[0], right[1])
    assert 0 < wrong[0] < right[0]
    assert lexicon.shares("...").best(5)[0].tolist() == []
