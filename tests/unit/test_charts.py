"""A chart says what it is, or refuses to be."""

from __future__ import annotations

import dataclasses
import unicodedata

import numpy as np
import pytest

from copilotlab import Chart, load_embedder
from copilotlab.charts import ChartError
from copilotlab.embedding.base import TEXT


def test_lists_become_tuples_and_a_chart_is_frozen():
    chart = Chart(chart_id=7, title="Revenue by region", dimensions=["Region"], measures=["Revenue"], tags=["finance"])

    assert chart.dimensions == ("Region",)
    assert hash(chart) == hash(dataclasses.replace(chart))
    with pytest.raises(dataclasses.FrozenInstanceError):
        chart.title = "other"


def test_the_text_has_what_tells_charts_apart_title_and_dashboards_first():
    chart = Chart(
        chart_id=7, title="Revenue by region", description="What we sold.", chart_type="bar", dimensions=["Region"],
        measures=["Revenue", "Units"], source="Sales", tags=["finance"],
    )  # fmt: skip

    # Another text? Raise TEXT in embedding/base.py: then an upgrade embeds all charts once more.
    assert (TEXT, chart.text) == ("t2", "Revenue by region. finance. Revenue, Units. Region. What we sold")
    assert Chart(chart_id=8, title="Revenue").text == "Revenue"
    assert load_embedder("hash").fingerprint.endswith(f":{TEXT}")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("total_amount", "total amount"),
        ("orders.totalAmount", "orders total Amount"),
        ("namespace:container_cpu:rate5m", "namespace container cpu rate5m"),
        ("HTTPStatus", "HTTP Status"),
        ("Net sales", "Net sales"),
        ("Außentemperatur °C", "Außentemperatur °C"),
        ("__", ""),
    ],
)
def test_columns_are_read_as_words(name, words):
    assert Chart(chart_id=7, title="A", measures=[name]).text == ". ".join(filter(None, ("A", words)))


def test_columns_that_are_the_same_words_are_said_once():
    assert Chart(chart_id=7, title="A", dimensions=["unit_price", "Unit price", "day"]).text == "A. unit price, day"


def test_the_content_hash_is_as_repositories_keep_it_and_follows_what_is_no_part_of_the_text_too():
    chart = Chart(chart_id=7, title="Revenue by region", chart_type="bar", measures=["net_sales"], source="Sales")

    assert chart.content_hash.hex() == "091b1eeef6dffc6452d29a6910d8bebc"
    for other in (dataclasses.replace(chart, chart_type="line"), dataclasses.replace(chart, source="Shop")):
        assert other.text == chart.text
        assert other.content_hash != chart.content_hash


def test_a_long_description_does_not_hide_what_tells_two_charts_apart():
    """At 1,300 characters they had one vector, and the cosine to what was asked was 0.01 in place of 0.55."""
    description = "How this figure is made, from which source it comes, and who is to be asked about it. " * 16
    named = {"title": "Overview", "chart_type": "bar", "description": description}
    late = Chart(chart_id=1, measures=["Departure delay"], dimensions=["Airline"], tags=["planes"], **named)
    sick = Chart(chart_id=2, measures=["Sick days"], dimensions=["Department"], tags=["staff"], **named)
    embedder = load_embedder("minilm-int8")

    assert len(description) > 1_300
    assert embedder.cut([late.text, sick.text]) == [0, 1]
    planes, staff, question = embedder.embed([late.text, sick.text, "which planes leave late"])
    assert planes @ question > staff @ question + 0.1


def test_the_content_hash_follows_the_text_and_nothing_else():
    chart = Chart(chart_id=7, title="Revenue")

    assert len(chart.content_hash) == 16
    assert chart.content_hash == Chart(chart_id=8, title="Revenue").content_hash
    assert chart.content_hash != Chart(chart_id=7, title="Revenues").content_hash


@pytest.mark.parametrize("integer", [np.int64, np.int8, np.uint64, np.intp])
def test_an_integer_of_numpy_is_an_id_like_another(integer):
    chart = Chart(chart_id=integer(7), title="Revenue")
    assert type(chart.chart_id) is int
    assert chart == Chart(chart_id=7, title="Revenue")
    for wrong in (np.float64(7), np.bool_(True), np.array([7])):
        with pytest.raises(ChartError, match="expected a whole number"):
            Chart(chart_id=wrong, title="Revenue")


def test_words_typed_in_decomposed_unicode_are_the_same_words():
    composed = Chart(chart_id=7, title="Erlöse, Ébénisterie", tags=["é"])
    decomposed = Chart(chart_id=7, title=unicodedata.normalize("NFD", composed.title), tags=["e\u0301"])

    assert decomposed.title != composed.title
    assert decomposed.text == composed.text == unicodedata.normalize("NFC", composed.text)
    assert decomposed.content_hash == composed.content_hash


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"chart_id": -1}, "chart_id=-1"),
        ({"chart_id": 2**63}, "chart_id"),
        ({"chart_id": 10**5000}, "chart_id=<int too long"),
        ({"chart_id": True}, "chart_id=True"),
        ({"chart_id": "7"}, "chart_id='7'"),
        ({"title": ""}, "title=''"),
        ({"title": "  "}, "title"),
        ({"title": "x" * 501}, "501 characters"),
        ({"title": None}, "title=None"),
        ({"title": "null\x00character"}, "null character"),
        ({"title": "half a \ud800 pair"}, "surrogate"),
        ({"description": "x" * 10_001}, r"10,001 characters"),
        ({"tags": "finance"}, "tags='finance'"),
        ({"tags": [1]}, "entry of tags=1"),
        ({"measures": ["x"] * 65}, "65 entries"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_right(wrong, named):
    with pytest.raises(ChartError, match=named) as error:
        Chart(**{"chart_id": 7, "title": "Revenue", **wrong})
    assert "expected" in str(error.value) or "which no database keeps" in str(error.value)


def test_markup_in_a_chart_is_shown_as_text():
    shown = Chart(chart_id=7, title="<script>alert(1)</script>", tags=["<b>"])._repr_html_()

    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert "<b>" not in shown


def test_words_from_right_to_left_do_not_turn_their_neighbours():
    shown = Chart(chart_id=7, title="הכנסות לפי אזור", source="Sales")._repr_html_()

    assert "<bdi>הכנסות לפי אזור</bdi>" in shown
    assert "<bdi>Sales</bdi>" in shown
