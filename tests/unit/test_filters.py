"""Searches that are filtered, that take a chart in place of a question, and that show near-copies once."""

from __future__ import annotations

import asyncio

import pytest

from copilotlab import Chart, ChartRepository, Node, load_embedder
from copilotlab.answer import NodeIncomplete
from copilotlab.charts import ChartNotFound, RepositoryError, chart_id_of

KEY = "superset:prod:7"
CHARTS = [
    Chart(chart_id=1, title="Revenue by region", source="Sales", tags=["finance"], measures=["Revenue"]),
    Chart(chart_id=2, title="Revenue by product", source="Sales", tags=["finance", "hr"], chart_type="bar"),
    Chart(chart_id=3, title="Sick leave by team", source="HR", tags=["hr"], dimensions=["Team"]),
    Chart(chart_id=4, title="Revenue by region", source="Sales", measures=["Revenue"], tags=["finance"]),
    Chart(chart_id=chart_id_of(KEY), title="Late orders", source="Ops", key=KEY),
]
KEYED = chart_id_of(KEY)


class Fragile(ChartRepository):
    broken = False

    def get_many(self, chart_ids):
        if self.broken:
            raise RepositoryError("the disk is on fire")
        return super().get_many(chart_ids)


@pytest.fixture
def node():
    charts = Fragile()
    charts.save_many(CHARTS)
    node = Node(charts, load_embedder("hash"), "redis://127.0.0.1:1/0")
    node.rebuild()
    return node


def ids(found) -> set[int]:
    return set(found["chart_id"].to_list())


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"source": "Sales"}, {1, 2, 4}),
        ({"source": ["Sales", "HR"], "tags": {"hr"}}, {2, 3}),
        ({"instance": "prod"}, {KEYED}),
        ({"dimensions": "Team", "measures": "Revenue"}, set()),
        ({"chart_type": ("bar", "line")}, {2}),
        ({"source": "sales"}, set()),
        ({"tags": []}, set()),
        ({}, {1, 2, 3, 4, KEYED}),
    ],
)
def test_a_filter_finds_exactly_the_charts_that_have_one_of_the_words_of_each_field(node, where, expected):
    found = node.search("revenue", k=50, where=where)
    assert ids(found) == expected
    unfiltered = node.search("revenue", k=50)
    scores = dict(unfiltered.select("chart_id", "score").rows())
    assert {i: scores[i] for i in expected} == dict(found.select("chart_id", "score").rows())


def test_a_filter_stands_beside_what_a_user_may_see_in_every_kind_of_search(node):
    options = {"chart_ids": [2, 3], "where": {"source": "Sales"}}
    assert ids(node.search("revenue", **options)) == {2}
    assert ids(asyncio.run(node.asearch("revenue", **options))) == {2}
    assert node.find("revenue", **options).columns["chart_id"] == [2]
    assert node.search_many(["revenue", "leave"], **options)["chart_id"].to_list() == [2, 2]
    assert [found.columns["chart_id"] for found in node.find_many(["revenue"], **options)] == [[2]]


@pytest.mark.parametrize(
    ("where", "error", "said"),
    [
        ({"owner": "Ada"}, ValueError, "'owner': expected one of source, chart_type, tags, dimensions, measures"),
        ({"tags": 5}, TypeError, "tags=5: expected a text, or a list of texts"),
        ({"tags": ["a", None]}, TypeError, "tags=.'a', None.: expected a text"),
        ({"tags": {"a": 1}}, TypeError, "expected a text"),
        ({"tags": ["a"] * 1_001}, ValueError, "1,001 values of tags: expected at most 1,000"),
        ("source", TypeError, "where='source': expected a mapping, as in"),
    ],
)
def test_a_filter_that_makes_no_sense_is_refused_by_what_is_known(node, where, error, said):
    for ask in (lambda: node.search("revenue", where=where), lambda: node.facets(where)):
        with pytest.raises(error, match=said):
            ask()


def test_an_option_that_there_is_not_is_refused_and_not_passed_over(node):
    for ask in (node.find, node.search, lambda query, **options: node.find_many([query], **options)):
        with pytest.raises(TypeError, match="chartids"):
            ask("revenue", chartids=[1])
    with pytest.raises(TypeError, match="like=1: expected of search alone"):
        node.find_many(["revenue"], like=1)


def test_edits_and_deletions_are_filtered_by_at_once(node):
    assert ids(node.search("revenue", where={"source": "Sales"})) == {1, 2, 4}
    node.update_chart(Chart(chart_id=1, title="Revenue by region", source="HR"))
    node.delete_chart(4)
    assert ids(node.search("revenue", where={"source": "Sales"})) == {2}
    assert ids(node.search("revenue", where={"source": "HR"})) == {1, 3}


def test_words_that_are_not_read_yet_are_said_to_be_missing(node):
    node.charts.broken = True
    found = node.search("revenue", where={"source": "Sales"})
    assert found.height == 0
    assert "the words of 5 charts are not read yet" in found.completeness.reason
    with pytest.raises(NodeIncomplete, match="the words of 5 charts"):
        node.search("revenue", where={"source": "Sales"}, require_complete=True)
    assert "words" not in node.search("revenue").completeness.reason


def test_facets_count_the_charts_by_each_word_among_all_or_those_that_match(node):
    facets = node.facets()
    assert facets.filter(field="source").rows() == [("source", "Sales", 3), ("source", "HR", 1), ("source", "Ops", 1)]
    assert facets.filter(field="instance").rows() == [("instance", "prod", 1)]
    assert facets["field"].unique(maintain_order=True).to_list() == [
        "source", "chart_type", "tags", "dimensions", "measures", "instance"
    ]  # fmt: skip
    assert node.facets({"source": "Sales"}).filter(field="tags").rows() == [("tags", "finance", 3), ("tags", "hr", 1)]


def test_charts_like_a_chart_are_found_without_itself(node):
    everything = node.search(like=1, k=50)
    assert ids(everything) == {2, 3, 4, KEYED}
    assert everything["chart_id"][0] == 4
    assert ids(node.search(like=1, k=1)) == {4}
    assert ids(node.search(like=1, where={"tags": "hr"})) == {2, 3}
    with pytest.raises(ChartNotFound, match="chart 99 is not among the 5 that node"):
        node.search(like=99)
    for wrong in ({}, {"query": "revenue", "like": 1}):
        with pytest.raises(TypeError, match="expected one of them"):
            node.search(**wrong)


def test_near_copies_are_shown_once_with_their_number(node):
    found = node.search("revenue by region", k=50, collapse=True)
    assert ids(found) in ({1, 2, 3, KEYED}, {4, 2, 3, KEYED})
    assert found["copies"].to_list() == [1, 0, 0, 0]
    assert found["rank"].to_list() == [1, 2, 3, 4]
    assert "copies" not in node.search("revenue by region").columns
    assert node.search_many(["revenue by region"], k=1, collapse=True)["copies"].to_list() == [1]
    assert node.search(like=1, k=50, collapse=True)["copies"].to_list() == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="k must be an integer from 1"):
        node.search("revenue", k=0, collapse=True)


def test_copies_do_not_push_out_what_else_there_is(node):
    node.charts.save_many([Chart(chart_id=100 + i, title="Revenue by region", measures=["Revenue"]) for i in range(60)])
    node.rebuild()
    found = node.search("revenue by region", k=4, collapse=True)
    assert found.height == 4
    assert found["copies"].max() == 59
