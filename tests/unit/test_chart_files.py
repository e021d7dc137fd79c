"""Frames, lists and files of others: the same charts however they came in, and what is wrong named with its remedy."""

from __future__ import annotations

import csv
import io
import json
import logging
from dataclasses import asdict
from decimal import Decimal

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from copilotlab import Chart, ChartRepository
from copilotlab.charts import ChartError, chart_id_of
from copilotlab.charts.chart import LISTS
from copilotlab.charts.readers import charts_of

CHARTS = [
    Chart(
        chart_id=7, title="Erlöse je Region, netto", description='Was wir "verkauft" haben;\nohne Österreich',
        chart_type="bar", dimensions=["Region"], measures=["Umsatz", "Stück"], source="Sales", tags=["finance", "é"],
    ),
    Chart(chart_id=8, title="Costs"),
    Chart(chart_id=2**53 + 1, title="Über uns", tags=["a"]),
]  # fmt: skip
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"]


def loaded(given):
    return charts_of(given)  # which is what a repository saves


def rows(charts, words=list):
    """As dicts; ``words`` makes a cell of a list."""
    return [{name: words(v) if name in LISTS else v for name, v in asdict(chart).items()} for chart in charts]


def in_json(words):
    return json.dumps(list(words), ensure_ascii=False)


def semicolons(words):
    return "; ".join(words)


def write_csv(path, table, *, delimiter=",", encoding="utf-8", end="\r\n", before="", after=""):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(table[0]), delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    writer.writerows(table)
    path.write_bytes((before + text.getvalue() + after).encode(encoding))
    return path


@pytest.fixture
def pandas():
    return pytest.importorskip("pandas")


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.WARNING, "copilotlab.charts")
    return caplog


# --- the same charts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [in_json, semicolons, str], ids=["json", "semicolons", "python"])
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_a_csv_gives_the_same_charts_whatever_its_encoding_and_delimiter(tmp_path, delimiter, encoding, words):
    table = rows(CHARTS, lambda given: words(list(given)))
    assert loaded(write_csv(tmp_path / "charts.csv", table, delimiter=delimiter, encoding=encoding)) == CHARTS


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_ndjson_gives_the_same_charts_whatever_its_encoding(tmp_path, encoding):
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows(CHARTS))
    (tmp_path / "charts.ndjson").write_bytes(text.encode(encoding))
    assert loaded(tmp_path / "charts.ndjson") == CHARTS


WORD = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=8)  # pandas leaves \r unquoted
SOLID = WORD.filter(str.strip)
LISTED = st.lists(SOLID, max_size=3)
ANY_CHART = st.builds(
    Chart, chart_id=st.integers(0, 2**63 - 1), title=SOLID, description=WORD, chart_type=WORD, source=WORD,
    dimensions=LISTED, measures=LISTED, tags=LISTED,
)  # fmt: skip
MANY = st.lists(ANY_CHART, min_size=1, max_size=4, unique_by=lambda chart: chart.chart_id)


@given(charts=MANY)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_charts_come_in_the_same_from_a_frame_a_list_and_each_kind_of_file(tmp_path, charts):
    frame = pl.DataFrame(rows(charts), schema_overrides={name: pl.List(pl.String) for name in LISTS})
    frame.write_parquet(tmp_path / "charts.parquet")
    frame.write_ndjson(tmp_path / "charts.ndjson")
    write_csv(tmp_path / "charts.csv", rows(charts, in_json))
    texts = frame.with_columns(pl.Series(name, [in_json(row[name]) for row in rows(charts)]) for name in LISTS)
    for given_ in (frame, texts, rows(charts), tuple(rows(charts, in_json)), *sorted(tmp_path.glob("charts.*"))):
        assert loaded(given_) == charts, type(given_)


@given(charts=MANY)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_charts_come_in_the_same_from_pandas_and_go_out_to_it(pandas, tmp_path, charts):
    frame = pandas.DataFrame(rows(charts))
    frame.to_csv(tmp_path / "charts.csv", index=False)
    out = pandas.DataFrame(ChartRepository.from_frame(frame).frame().rows(named=True))
    arrays = frame.assign(tags=[np.array(chart.tags, dtype=object) for chart in charts])
    for given_ in (frame, frame.convert_dtypes(), frame.set_index("chart_id"), arrays, tmp_path / "charts.csv"):
        assert loaded(given_) == charts, type(given_)
    by_id = sorted(charts, key=lambda chart: chart.chart_id)
    assert sorted(loaded(out), key=lambda chart: chart.chart_id) == by_id
    assert list(out["revision"]) == [charts.index(chart) + 1 for chart in by_id]


def test_pandas_says_nothing_in_four_ways_and_has_ids_that_are_floats(pandas):
    nothing = [None, float("nan"), pandas.NA, pandas.NaT, ""]
    frame = pandas.DataFrame(
        {"chart_id": np.arange(5) + 1.0, "title": "Costs", "description": nothing, "tags": nothing}
    )
    assert frame["chart_id"].dtype == float
    assert loaded(frame) == [Chart(chart_id=i, title="Costs") for i in range(1, 6)]
    assert loaded(frame.to_dict("records")) == loaded(frame)
    categories = frame.assign(title=frame["title"].astype("category"))
    assert loaded(categories) == loaded(frame)


@pytest.mark.parametrize(
    "seven",
    [7, 7.0, "7", " 7 ", "7.0", np.int8(7), np.uint64(7), np.float32(7), np.float64(7), Decimal("7.00"), np.str_("7")],
    ids=lambda value: f"{type(value).__name__}-{value}",
)
def test_an_id_is_a_whole_number_in_whatever_type(seven):
    (chart,) = loaded([{"chart_id": seven, "title": np.str_("Costs")}])
    assert (type(chart.chart_id), chart.chart_id, type(chart.title)) == (int, 7, str)


@pytest.mark.parametrize(
    "wrong", [7.5, "7.5", "seven", True, np.True_, float("inf"), -7.0, 2.0**60, Decimal("7.5"), Decimal("inf"), "", " "]
)
def test_what_is_no_whole_number_is_no_id(wrong):
    with pytest.raises(ChartError, match=r"the list, row 1: chart_id=.*expected a whole number"):
        loaded([{"chart_id": wrong, "title": "Costs"}])


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("a;b", ["a", "b"]),
        (" a ; b ;; ", ["a", "b"]),
        ("a, b", ["a", "b"]),
        ("a|b, c", ["a", "b, c"]),
        ("a|b; c", ["a|b", "c"]),
        ("net, gross; tax", ["net, gross", "tax"]),
        ('["a, b", "c;d"]', ["a, b", "c;d"]),
        ("['a', \"it's\", ' \"x\" ']", ["a", "it's", ' "x" ']),
        ("[]", []),
        ("", []),
        ("  ", []),
        (None, []),
        (float("nan"), []),
        (("a", "b"), ["a", "b"]),
        (np.array(["a", "b"]), ["a", "b"]),
    ],
)
def test_a_list_may_be_text(cell, words):
    (chart,) = loaded([{"chart_id": 1, "title": "Costs", "tags": cell}])
    assert chart.tags == tuple(words)
    assert all(type(word) is str for word in chart.tags)


@pytest.mark.parametrize("cell", ["['a' 'b']", "['a'\n 'b']", "[a, b]", "[" * 10_000, '["a"', "[__import__('os')]"])
def test_a_list_that_cannot_be_read_is_named_with_how_it_is_written(cell):
    with pytest.raises(ChartError, match=r"the list, row 1: tags=.*expected a list in JSON, such as \[.*\], or words"):
        loaded([{"chart_id": 1, "title": "Costs", "tags": cell}])


# --- files as spreadsheets write them -----------------------------------------------------------------------------


def test_blank_rows_are_no_charts_and_count_as_rows(tmp_path):
    path = tmp_path / "charts.csv"
    path.write_text("chart_id,title,tags,\n1,Costs,a,\n\n, ,,\n4,Revenue,,,,\n,,,\n\n")
    assert loaded(path) == [Chart(chart_id=1, title="Costs", tags=["a"]), Chart(chart_id=4, title="Revenue")]
    path.write_text("chart_id,title,tags\n1,Costs,a\n\n,,\n4,,\n")
    with pytest.raises(ChartError, match=r"row 4 \(line 5\): title=''"):
        loaded(path)
    blank = {"chart_id": None, "title": float("nan"), "tags": []}
    assert len(loaded([*rows(CHARTS), blank, blank])) == len(CHARTS)
    assert len(loaded(pl.DataFrame({"chart_id": [1, None], "title": ["Costs", None], "tags": [None, []]}))) == 1


def test_a_first_line_that_tells_excel_the_separator_is_no_header(tmp_path):
    table = rows(CHARTS, semicolons)
    assert loaded(write_csv(tmp_path / "a.csv", table, delimiter=";", before="sep=;\r\n")) == CHARTS


def test_spaces_around_the_names_of_columns_do_not_count(tmp_path):
    (tmp_path / "a.csv").write_text("chart_id ; title\n1;Costs\n")
    assert loaded(tmp_path / "a.csv") == [Chart(chart_id=1, title="Costs")]


def test_the_delimiter_is_that_of_the_columns_and_not_the_most_frequent_character(tmp_path):
    (tmp_path / "a.csv").write_text('chart_id\ttitle\t"a, b, c; d; e"\n1\tCosts, net, gross, tax\tx\n')
    assert loaded(tmp_path / "a.csv") == [Chart(chart_id=1, title="Costs, net, gross, tax")]


def test_a_file_read_as_cp1252_is_said_and_one_that_is_damaged_utf8_is_not_taken_for_it(tmp_path, said):
    path = tmp_path / "charts.csv"
    path.write_bytes("chart_id,title\n1,Costs\n2,Erlöse\n".encode("cp1252"))
    assert loaded(path)[1].title == "Erlöse"
    (message,) = said.messages
    assert "charts.csv is read as cp1252: line 3: byte 0xf6 is not utf-8" in message

    path.write_bytes("chart_id,title\n1,Erlöse\n".encode() + b"2,Erl\xf6se\n")
    with pytest.raises(ChartError, match=r"line 3: byte 0xf6 is not utf-8; save it as UTF-8"):
        loaded(path)
    path.write_bytes(b"chart_id,title\n1,\x81\n")
    with pytest.raises(ChartError, match=r"line 2: byte 0x81 is not utf-8; save it as UTF-8"):
        loaded(path)


# --- what is wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_", "match"),
    [
        (pl.DataFrame({"chart_id": range(30)}).lazy(), r"^expected a frame .*not polars.*LazyFrame: call collect\(\)"),
        ({"chart_id": [1], "title": ["Costs"]}, r"^expected .* not builtins.dict: pl.DataFrame makes a frame"),
        (CHARTS[0], r"^expected .*\.Chart: save takes it"),
        (CHARTS, r"^the list, row 1: expected a dict, not Chart: save_many takes charts"),
        ([{"chart_id": 1, "title": "Costs"}, 7], r"^the list, row 2: expected a dict, not int: as in \{"),
        (np.zeros((300, 300)), r"^expected .*not numpy.ndarray"),
        (
            [{"chart_id": 1, "title": "Costs"}, {"chart_id": 2}],
            r"row 2: title=None: the cell is empty; expected 1 to 5",
        ),
        ([{"title": "Costs"}], r"has no column 'chart_id'; its columns are 'title'$"),
        ([{"chart_id": 1, "Titel": "Costs"}], r"no column 'title': rename 'Titel' if that is it"),
        ([{"ID": 1, "title": "x", "chart_type": "y"}], r"no column 'chart_id': rename 'ID' if that is it"),
        ([{"chart_type": "bar", "title": "Costs"}], r"no column 'chart_id'; its columns are 'chart_type', 'title'$"),
        (
            [{"chart_id": 1, "title": "Costs", "Title": "Net costs"}],
            r"^the list has the columns 'title' and 'Title', and either may be 'title': rename one of them",
        ),
        ({"chart_id": [1]}, r"path of a \.parquet, \.csv, \.tsv, \.ndjson, \.jsonl or \.xlsx file, not"),
        ([{f"c{i}": 1 for i in range(500)}], r"no column 'chart_id'; its columns are 'c0', .*'c19' and 480 more$"),
        ([{"chart_id": 1, "title": "x" * 501}], r"row 1: title has 501 characters: expected at most 500"),
    ],
)
def test_what_is_wrong_comes_before_what_was_given(given_, match):
    with pytest.raises(ChartError, match=match) as error:
        loaded(given_)
    assert len(str(error.value)) < 400


def test_pandas_names_the_row_and_the_column_twice(pandas):
    frame = pandas.DataFrame({"chart_id": [1, 2], "title": ["Costs", None]})
    with pytest.raises(ChartError, match=r"the frame, row 2: title=None: the cell is empty"):
        loaded(frame)
    with pytest.raises(ChartError, match=r"the column 'title' more than once"):
        loaded(pandas.concat([frame, frame["title"]], axis=1))


def test_a_column_may_have_capitals_spaces_and_hyphens_and_one_that_is_not_read_is_named_once(pandas, tmp_path, said):
    path = tmp_path / "a.csv"
    path.write_text("Chart ID;TITLE;chart-type;Description;Descr;dimension;tags\n1;Costs;bar;What we spend;x;y;\n")
    (chart,) = loaded(path)
    assert (chart.chart_id, chart.chart_type, chart.description) == (1, "bar", "What we spend")
    (message,) = said.messages
    assert "a.csv: not read, since no chart has such a field: 'Descr', 'dimension'" in message
    assert message.endswith("; did you mean 'dimensions' by 'dimension'?")
    row = {"Chart ID": 1, "Title": "Costs", "ChartType": "bar", "DESCRIPTION ": "What we spend"}
    for given_ in ([row], pl.DataFrame([row]), pandas.DataFrame([row])):
        assert loaded(given_) == [chart]
    loaded(ChartRepository.from_frame([row]).frame())
    assert len(said.messages) == 1, "what we write ourselves is known"


def test_bad_rows_are_named_together_with_their_lines_and_without_what_was_raised_on_the_way(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('chart_id,title\n1,"Two\nlines"\nseven,Costs\n1,Again\n8,\n9,a,b\n10,Good\n')
    with pytest.raises(ChartError) as error:
        loaded(path)
    assert [line.split(": ")[0] for line in str(error.value).split("\n")] == [
        f"{path}", "  row 2 (line 4)", "  row 3 (line 5)", "  row 4 (line 6)", "  row 5 (line 7)",
    ]  # fmt: skip
    assert ": 4 rows are no charts:" in str(error.value)
    path.write_text("sep=;\nchart_id;title\n" + "x;Costs\n" * 30)
    with pytest.raises(ChartError, match=r"30 rows are no charts; the first 10 are:\n  row 1 \(line 3\)") as error:
        loaded(path)
    assert str(error.value).count("\n") == 10

    path.write_text('chart_id,title\n1,Good\n2,"Costs\n3,Late\n')
    with pytest.raises(ChartError, match=r'row 2 \(line 3\): a double quote \("\) opens a field') as error:
        loaded(path)
    assert error.value.__suppress_context__
    assert error.value.__cause__ is None


def test_nothing_is_an_empty_catalogue_where_no_row_can_be_wrong():
    assert loaded([]) == []


def test_a_field_with_the_delimiter_in_it_is_named_with_the_remedy(tmp_path):
    (tmp_path / "a.csv").write_text("chart_id;title\n1;Costs\n2;Costs;net\n")
    with pytest.raises(
        ChartError, match=r"row 2 \(line 3\): it has 3 fields, the header has 2; a field with ';' in it stands in doub"
    ):
        loaded(tmp_path / "a.csv")


def test_a_key_takes_the_place_of_an_id_and_a_link_that_is_none_is_named_with_its_row(tmp_path):
    path = tmp_path / "charts.csv"
    path.write_text("key;title;url\nintranet:prod:B-12;Late flights;https://intranet/B-12\nintranet:prod:C-3;Costs;\n")
    first, second = charts_of(path)
    assert (first.chart_id, first.url) == (chart_id_of("intranet:prod:B-12"), "https://intranet/B-12")
    assert (second.chart_id, second.url) == (chart_id_of("intranet:prod:C-3"), "")
    for row, said in (
        ({"key": "B-12", "title": "Costs"}, "row 1: key='B-12': expected format:instance:native id"),
        ({"key": "", "title": "Costs"}, "row 1: chart_id=None: the cell is empty"),
        ({"chart_id": 1, "title": "Costs", "url": "/charts/1"}, "row 1: url='/charts/1': expected one such as https"),
    ):
        with pytest.raises(ChartError, match=said):
            charts_of([row])
