"""Searches by words, and by words and meaning together, and what abbreviations stand for."""

from __future__ import annotations

import numpy as np
import pytest

from copilotlab import Chart, ChartRepository, Node, load_embedder
from copilotlab.answer import FOUND
from copilotlab.vocabulary import Vocabulary, vocabulary_of

CHARTS = [
    Chart(chart_id=1, title="Persistent volume claim usage", source="kubernetes", dimensions=["namespace"]),
    Chart(chart_id=2, title="Dead letter queue size", measures=["messages_waiting"]),
    Chart(chart_id=3, title="Revenue <b>by region</b>", source="Sales"),
    Chart(chart_id=4, title="Sick leave by team", source="HR"),
]


@pytest.fixture(scope="module")
def node():
    node = Node(ChartRepository(), load_embedder("hash"), "redis://127.0.0.1:1/0", words=True)
    node.charts.save_many(CHARTS)
    node.rebuild()
    return node


def first(found) -> int:
    return found["chart_id"][0]


def test_words_find_typos_columns_and_abbreviations_and_nothing_where_nothing_is_said(node):
    assert first(node.search("reveneu", mode="words")) == 3
    assert first(node.search("waiting messages", mode="words")) == 2
    assert first(node.search("pvc almost full", mode="words")) == 1
    assert node.search("zzzz", mode="words").height == 0
    assert node.search("leave", mode="words", where={"source": "Sales"}, k=9)["chart_id"].to_list() in ([], [3])
    assert set(node.search("leave team revenue", mode="words", chart_ids=[3, 99])["chart_id"]) == {3}


def test_the_score_of_both_is_the_cosine_and_the_part_of_the_words(node):
    found = node.search("DLQ", k=4, mode="hybrid")
    why = found["why"].struct.unnest()
    assert first(found) == 2
    assert np.allclose(found["score"], why["meaning"] + why["words"], atol=1e-6)
    assert why["matched"][0].to_list() == ["dead", "letter", "queue"]
    assert found["score"].is_sorted(descending=True)
    by_meaning = node.search("DLQ dead letter queue", k=4)
    cosines = dict(by_meaning.select("chart_id", "score").rows())
    assert dict(zip(found["chart_id"], why["meaning"], strict=True)) == pytest.approx(cosines)


def test_the_columns_by_meaning_stay_as_they_are_and_why_is_told_where_words_count(node):
    assert node.search("revenue").columns == list(FOUND)
    for mode in ("words", "hybrid"):
        assert node.search("revenue", mode=mode).columns == [*FOUND, "why"]
        assert node.search("revenue", mode=mode, collapse=True).columns == [*FOUND, "copies", "why"]
        many = node.search_many(["revenue", "leave"], k=1, mode=mode)
        assert many.columns == ["query", *FOUND, "why"]
        assert many["chart_id"].to_list() == [3, 4]
        assert node.find("revenue", k=1, mode=mode).rows()[0]["why"]["matched"] == ["revenue"]
    assert node.search(like=3, mode="hybrid").columns == list(FOUND)
    with pytest.raises(ValueError, match="mode='both': expected one of 'meaning', 'words', 'hybrid'"):
        node.search("revenue", mode="both")


def test_words_of_charts_are_shown_as_text(node):
    node.update_chart(Chart(chart_id=9, title="<script>alert</script>", source="HR"))
    try:
        found = node.search("script alert", k=1, mode="hybrid")
        assert found["why"][0]["matched"] == ["script", "alert"]
        assert "<script>" not in found._repr_html_()
    finally:
        node.delete_chart(9)


def test_nodes_of_equal_content_give_equal_answers_by_words_whatever_came_before(node):
    other = Node(ChartRepository(), load_embedder("hash"), "redis://127.0.0.1:1/0", words=True)
    for chart in reversed(CHARTS):
        other.update_chart(Chart(chart_id=chart.chart_id, title="Something else"))
        other.update_chart(chart)
    for mode in ("words", "hybrid"):
        for question in ("queue size", "revenue by team", "pvc"):
            ours, theirs = (each.search(question, k=9, mode=mode).select("chart_id", "score") for each in (node, other))
            assert ours.equals(theirs)


@pytest.mark.parametrize(
    ("question", "explained"),
    [
        ("pvc almost full", "pvc almost full persistent volume claim"),
        ("PVCs and DLQ size", "PVCs and DLQ size persistent volume claim dead letter queue"),
        ("the ad, or AD?", "the ad, or AD? active directory"),
        ("net promoter of ACME", "net promoter of ACME loyalty"),
        ("pvc pvc", "pvc pvc persistent volume claim"),
        ("nothing to say", "nothing to say"),
    ],
)
def test_a_question_says_what_its_terms_stand_for(question, explained):
    terms = {
        "pvc": "persistent volume claim",
        "dlq": "dead letter queue",
        "AD": "active directory",
        "net promoter": "loyalty",
    }
    assert Vocabulary(terms).explained(question) == explained


def test_own_terms_come_beside_those_that_ship_and_count_before_them(tmp_path):
    assert "kubernetes" in vocabulary_of(None).explained("k8s mem")
    own = tmp_path / "terms.csv"
    own.write_text("term,means\nK8s,the blue cluster\nOKR,objective\n", encoding="utf-8")
    for given in ({"K8s": "the blue cluster", "OKR": "objective"}, own, str(own)):
        explained = vocabulary_of(given).explained("K8s k8s OKR mem")
        assert explained == "K8s k8s OKR mem the blue cluster objective memory"


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        (5, TypeError, "vocabulary=5: expected a mapping, as in"),
        ({"a": 1}, ValueError, "'a': 1: expected a term and what it means"),
        ({" ": "blank"}, ValueError, "expected a term and what it means"),
        ("none.csv", ValueError, "vocabulary='none.csv' cannot be read"),
        (__file__, ValueError, "expected the columns term and means in its first line"),
        ({f"t{n}": "x" for n in range(10_001)}, ValueError, "10,001 terms: expected at most 10,000"),
    ],
)
def test_a_vocabulary_that_makes_no_sense_is_refused_before_anything_is_made(wrong, error, said):
    with pytest.raises(error, match=said):
        Node(ChartRepository(), load_embedder("hash"), vocabulary=wrong)
