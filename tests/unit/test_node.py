"""What a node is asked, and what it refuses; it is not started and reaches no Redis."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from copilotlab import Chart, ChartRepository, Node, load_embedder
from copilotlab.charts import ChartError


@pytest.fixture
def node():
    node = Node(ChartRepository(), load_embedder("hash"), "redis://127.0.0.1:1/0")
    node.update_chart(Chart(chart_id=7, title="Revenue by region"))
    return node


def test_no_queries_have_no_answers_but_the_rest_is_checked(node):
    assert node.search_many([]).height == 0
    with pytest.raises(ValueError, match="k must be an integer from 1"):
        node.search_many([], k=0)
    with pytest.raises(ValueError, match="chart_ids must be integers"):
        node.search_many([], chart_ids=["7"])


@pytest.mark.parametrize("wrong", [None, 5, "revenue"])
def test_queries_are_a_list_of_texts(node, wrong):
    with pytest.raises(TypeError, match=f"search_many.*{wrong!r}.*expected a list of queries"):
        node.search_many(wrong)
    assert node.search_many(["revenue", "region"], k=1)["chart_id"].to_list() == [7, 7]


def test_integers_of_numpy_are_ids_like_others(node):
    node.charts.save(Chart(chart_id=np.int64(8), title="Costs by region"))
    assert node.chart_changed(np.int64(8)).revision == 2
    assert node.search("region", chart_ids=np.array([8, 9]))["chart_id"].to_list() == [8]
    assert node.search_many(["region"], chart_ids={np.int32(8), np.int64(7)}).height == 2
    assert node.delete_chart(np.int64(8)).revision == 3
    assert np.int64(8) not in node.charts


@pytest.mark.parametrize("wrong", ["7", True])
def test_what_is_no_chart_id_is_refused(node, wrong):
    for change in (node.chart_changed, node.delete_chart):
        with pytest.raises(ChartError, match=f"chart_id={wrong!r}: expected a whole number"):
            change(wrong)


def test_a_large_thing_in_the_wrong_place_is_not_printed_ahead_of_the_hint(node):
    frame = pl.DataFrame({"chart_id": range(30), "title": ["Revenue by region and quarter"] * 30})
    for wrong in (lambda: Node(frame, load_embedder("hash")), lambda: node.update_chart(frame)):
        with pytest.raises(TypeError, match="expected a Chart") as raised:
            wrong()
        assert len(str(raised.value)) < 200
