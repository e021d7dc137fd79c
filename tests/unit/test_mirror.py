"""A catalogue of another tool becomes charts with keys and links; what was there before, and of others, stays."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import polars as pl
import pytest

from copilotlab import Chart, ChartRepository
from copilotlab.charts import ChartError, MirrorResult, RepositoryError, chart_id_of
from copilotlab.charts import chart as chart_module
from copilotlab.charts import mirror as mirror_module

SKIPPED = {"path": pl.String, "native_id": pl.String, "reason": pl.String}


@dataclass
class Given:
    """A catalogue, as an importer gives it."""

    frame: pl.DataFrame
    instance: str = "prod"
    format: str = "superset"
    skipped: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=SKIPPED))
    complete: bool = True


def catalogue(
    titles: dict[str, str],
    *,
    instance: str = "prod",
    skipped: tuple[str, ...] = (),
    host: str = "https://bi.example.org/",
) -> Given:
    keys = [f"superset:{instance}:{native}" for native in titles]
    frame = pl.DataFrame({"key": keys, "title": list(titles.values())}, schema={"key": pl.String, "title": pl.String})
    frame = frame.with_columns(
        chart_id=pl.Series([chart_id_of(key) for key in keys], dtype=pl.Int64),
        url=host + pl.col("key"),
        dimensions=pl.Series([["Region"]] * len(keys), dtype=pl.List(pl.String)),
    )
    rows = [("export.zip", native, "it has no title") for native in skipped]
    return Given(frame, instance, skipped=pl.DataFrame(rows, schema=SKIPPED, orient="row"))


def titles_of(charts: ChartRepository, prefix: str = "") -> dict[str, str]:
    return {chart.key: chart.title for chart in charts if chart.key.startswith(prefix)}


def test_a_mirror_adds_changes_and_deletes_what_is_of_its_instance_and_touches_nothing_else():
    charts = ChartRepository()
    charts.save(Chart(chart_id=1, title="By hand"))
    charts.mirror(catalogue({"1": "Elsewhere"}, instance="PROD"))
    charts.mirror(catalogue({"1": "Elsewhere"}, instance="prod-eu"))
    others = [(c.chart_id, c.revision) for c in charts.changes_since(0)]
    assert charts.mirror(catalogue({"1": "Revenue", "2": "Orders", "3": "Late"})) == MirrorResult(3, 0, 0, 0, 0)
    revision = charts.revision

    assert charts.mirror(catalogue({"1": "Revenue", "2": "Orders", "3": "Late"})) == MirrorResult(0, 0, 3, 0, 0)
    assert charts.revision == revision, "nothing was written"

    assert charts.mirror(catalogue({"1": "Revenue", "2": "Sales", "4": "New"})) == MirrorResult(1, 1, 1, 1, 0)
    prefix = "superset:prod:"
    assert titles_of(charts, prefix) == {f"{prefix}1": "Revenue", f"{prefix}2": "Sales", f"{prefix}4": "New"}
    assert [(c.chart_id, c.revision) for c in charts.changes_since(0)][:3] == others
    one = charts.get(chart_id_of(f"{prefix}1"))
    assert (one.url, one.dimensions) == (f"https://bi.example.org/{prefix}1", ("Region",))
    found = charts.frame().filter(pl.col("title") == "New")
    assert (found["key"].item(), found["url"].item()) == (f"{prefix}4", f"https://bi.example.org/{prefix}4")
    look = charts.look(0)
    charts.restamp()
    assert charts.look(0).digest == look.digest, "kept in line with the rows"

    assert charts.mirror(catalogue({"3": "Late"}), allow_shrink=True) == MirrorResult(1, 0, 0, 3, 0)
    assert charts.mirror(catalogue({"3": "Late"}), instance="copy").added == 1
    assert charts.get(chart_id_of("superset:copy:3")).key == "superset:copy:3"


def test_a_new_link_is_a_change_of_the_chart_and_none_of_its_words():
    charts = ChartRepository()
    charts.mirror(catalogue({"1": "Revenue", "2": "Orders"}))
    before = charts.look(0)

    moved = catalogue({"1": "Revenue", "2": "Orders"}, host="https://new.example.org/")

    assert charts.mirror(moved) == MirrorResult(0, 2, 0, 0, 0)
    after = charts.look(0)
    assert after.heads.revisions.tolist() == [3, 4]
    assert after.heads.content_hashes.tolist() == before.heads.content_hashes.tolist()


def test_a_catalogue_that_came_out_empty_or_shrank_by_more_than_half_is_refused_unless_told():
    charts = ChartRepository()
    full = {str(number): f"Chart {number}" for number in range(5)}
    with pytest.raises(ChartError, match=r"superset:prod came out empty, and no charts of it are held") as error:
        charts.mirror(catalogue({}))
    assert "shrink" not in str(error.value), "what would that mend?"
    charts.mirror(catalogue(full))
    for fewer, said in (({}, "came out empty, and 5"), ({"0": "New", "1": "Chart 1"}, "with 2 charts, less than half")):
        with pytest.raises(ChartError, match=said):
            charts.mirror(catalogue(fewer))
    assert charts.revision == 5
    assert charts.mirror(catalogue({"0": "New", "1": "Chart 1"}, skipped=("4",))).deleted == 2
    assert charts.mirror(catalogue({}), allow_shrink=True) == MirrorResult(0, 0, 0, 3, 0)


def test_a_chart_that_could_not_be_read_this_time_has_not_vanished(caplog):
    charts = ChartRepository()
    charts.mirror(catalogue({"1": "Revenue", "2": "Orders", "3": "Late"}))

    result = charts.mirror(catalogue({"1": "Revenue", "2": " ", "4": "New", "5": "x" * 501}, skipped=("3", "9")))

    assert result == MirrorResult(1, 0, 1, 0, 4)
    assert set(titles_of(charts).values()) == {"Revenue", "Orders", "Late", "New"}
    assert "row 2, 'superset:prod:2', is left out: title=' ': expected 1 to 500 characters" in caplog.text


def test_what_is_no_chart_any_more_is_deleted_and_what_could_not_be_read_stays():
    charts = ChartRepository()
    charts.mirror(catalogue({str(number): f"Chart {number}" for number in range(8)}))
    now = catalogue({"0": "Chart 0", "1": "Chart 1", "2": "Chart 2"}, skipped=("1", "3", "4", "4", "5", ""))
    no_chart = pl.Series("no_chart", [True, True, True, False, None, True])
    now.skipped = now.skipped.with_columns(no_chart)

    now.complete = False
    assert charts.mirror(now) == MirrorResult(0, 0, 3, 1, 6)
    assert {f"Chart {number}" for number in (0, 1, 2, 4, 5, 6, 7)} == set(titles_of(charts).values())

    now.complete = True
    assert charts.mirror(now) == MirrorResult(0, 0, 3, 2, 6)
    assert {f"Chart {number}" for number in (0, 1, 2, 4, 5)} == set(titles_of(charts).values())

    now.frame = now.frame.clear()
    with pytest.raises(ChartError, match="came out empty"):  # what became of the others is no excuse for a bad export
        charts.mirror(now)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (Given(pl.DataFrame({"key": ["superset:dev:1"], "title": ["x"]})), "row 1: key='superset:dev:1': expected one"),
        (Given(pl.DataFrame({"title": ["x"]})), "row 1: key=None: expected one that begins with 'superset:prod:'"),
        (catalogue({"1": "x"}, instance="a:b"), "instance='a:b': expected a name without a colon"),
        (Given(pl.DataFrame(), format=" "), "format=' ': expected a name"),
    ],
)
def test_a_catalogue_that_is_none_of_its_instance_is_refused_in_words(given, said):
    charts = ChartRepository()
    with pytest.raises(ChartError, match=said):
        charts.mirror(given)
    assert charts.revision == 0


def test_a_key_is_named_once_and_two_that_have_one_id_are_refused_in_words(monkeypatch):
    charts = ChartRepository()
    twice = catalogue({"1": "Revenue"})
    twice.frame = pl.concat([twice.frame, twice.frame])
    assert charts.mirror(twice) == MirrorResult(1, 0, 0, 0, 1)

    the_id = chart_id_of("superset:prod:1")
    assert 0 <= the_id < 2**63
    monkeypatch.setattr(chart_module, "chart_id_of", lambda key: the_id)
    monkeypatch.setattr(mirror_module, "chart_id_of", lambda key: the_id)
    said = f"chart_id={the_id}: the key 'superset:dev:2' gives the id that the chart with the key 'superset:prod:1' has"
    with pytest.raises(ChartError, match=said):
        charts.mirror(catalogue({"2": "Orders"}, instance="dev"))
    with pytest.raises(ChartError, match=said):
        charts.save(Chart(chart_id=the_id, title="Orders", key="superset:dev:2"))
    with pytest.raises(ChartError, match="the key 'superset:dev:3' gives the id"):
        charts.mirror(catalogue({"2": "Orders", "3": "Late"}, instance="dev"))
    assert [chart.key for chart in charts] == ["superset:prod:1"]


@pytest.mark.parametrize("key", ["superset", "superset:prod", "superset:prod:", ":prod:1", "a: :1", "a:b:" + "x" * 500])
def test_a_key_has_three_parts_and_gives_the_charts_id(key):
    with pytest.raises(ChartError, match="key"):
        Chart(chart_id=chart_id_of(key), title="Revenue", key=key)
    with pytest.raises(ChartError, match=r"chart_id=7: the chart with the key 'a:b:c:d' has the id \d+"):
        Chart(chart_id=7, title="Revenue", key="a:b:c:d")
    assert Chart(chart_id=chart_id_of("a:b:c:d"), title="Revenue", key="a:b:c:d").text == "Revenue"


@pytest.mark.parametrize("ends", ["interrupted", "broken"])
def test_a_mirror_that_ends_early_has_changed_nothing(monkeypatch, ends):
    charts = ChartRepository()
    charts.mirror(catalogue({"1": "Revenue"}))
    before = charts.changes_since(0)
    monkeypatch.setattr("copilotlab.charts.repository._ROWS_PER_STATEMENT", 1)
    write, written = charts._write, []

    def fail(*arguments):
        write(*arguments)
        written.append(arguments)
        if len(written) == 2:
            raise KeyboardInterrupt if ends == "interrupted" else RepositoryError("the disk is full")

    monkeypatch.setattr(charts, "_write", fail)
    with pytest.raises(KeyboardInterrupt if ends == "interrupted" else RepositoryError):
        charts.mirror(catalogue({"2": "Orders", "3": "Late", "4": "New"}))
    monkeypatch.undo()
    assert len(written) == 2
    assert charts.changes_since(0) == before


def test_a_change_between_comparing_and_writing_is_not_lost(monkeypatch):
    charts = ChartRepository()
    charts.mirror(catalogue({"1": "Revenue", "2": "Orders"}))
    edited = Chart(chart_id=chart_id_of("superset:prod:3"), title="Put there meanwhile", key="superset:prod:3")
    compare, compared = charts._compare, []

    def compare_and_be_overtaken(*arguments, **options):
        found = compare(*arguments, **options)
        compared.append(found.result)
        return found

    monkeypatch.setattr(charts, "_compare", compare_and_be_overtaken)
    current = charts._current
    monkeypatch.setattr(
        charts, "_current", lambda connection: current(connection) - 1
    )  # as if somebody has saved since
    charts.save(edited)
    assert charts.mirror(catalogue({"1": "Revenue", "2": "Sales"})) == MirrorResult(0, 1, 1, 1, 0)
    assert len(compared) == 2
    assert sorted(titles_of(charts).values()) == ["Revenue", "Sales"]


def test_a_hundred_thousand_lines_are_not_logged_for_a_bad_catalogue(caplog):
    with caplog.at_level(logging.WARNING):
        charts = ChartRepository()
        result = charts.mirror(catalogue({"good": "Revenue", **{str(number): "" for number in range(50)}}))
    assert result == MirrorResult(1, 0, 0, 0, 50)
    assert len(caplog.records) == 10
    assert caplog.records[-1].getMessage().endswith("These are 10: others are not named here")


def test_a_catalogue_that_could_not_be_read_to_the_end_deletes_nothing():
    charts = ChartRepository()
    charts.mirror(catalogue({"1": "Revenue", "2": "Orders", "3": "Returns"}))
    part = catalogue({"1": "Revenue", "2": "Orders by month"})
    part.complete = False
    result = charts.mirror(part)
    assert (result.changed, result.deleted) == (1, 0)
    assert "superset:prod:3" in titles_of(charts)
    assert (result.held_back, result.unread, result.titles["held_back"]) == (1, (), ("Returns",))

    rows = [("broken.json", None, "it cannot be read", True), ("sales.json", "7", "a text panel is no chart", False)]
    part.skipped = pl.DataFrame(rows, schema={**SKIPPED, "may_hold": pl.Boolean}, orient="row")
    assert repr(charts.mirror(part)) == (
        "MirrorResult(added=0, changed=0, unchanged=2, deleted=0, skipped=2, held_back=1, unread=['broken.json'])"
    )


def test_a_dry_run_says_what_would_become_of_it_with_titles_and_changes_nothing():
    charts = ChartRepository()
    charts.mirror(catalogue({str(number): f"Chart {number}" for number in range(9)}))
    before = charts.changes_since(0)
    less = catalogue({"0": "New title", "new": "New"})

    result = charts.mirror(less, allow_shrink=True, dry_run=True)

    assert result == MirrorResult(1, 1, 0, 8, 0)
    assert result.titles == {
        "added": ("New",),
        "changed": ("New title",),
        "deleted": ("Chart 1", "Chart 2", "Chart 3", "Chart 4", "Chart 5"),
        "held_back": (),
    }
    assert charts.changes_since(0) == before
    assert charts.mirror(less, allow_shrink=True).titles == result.titles


def test_a_link_that_a_catalogue_does_not_know_stays_and_one_that_it_has_no_more_goes():
    charts = ChartRepository()
    charts.mirror(catalogue({"1": "Revenue", "2": "Orders"}))
    revision = charts.revision
    unlinked = catalogue({"1": "Revenue", "2": "Orders", "3": "New"})
    unlinked.frame = unlinked.frame.with_columns(url=pl.lit(None, pl.String))

    assert charts.mirror(unlinked) == MirrorResult(1, 0, 2, 0, 0)
    unlinked.frame = unlinked.frame.drop("url").with_columns(title=pl.lit("Renamed"))
    assert charts.mirror(unlinked) == MirrorResult(0, 3, 0, 0, 0)
    urls = {chart.key: chart.url for chart in charts}
    assert urls["superset:prod:1"] == "https://bi.example.org/superset:prod:1"
    assert urls["superset:prod:3"] == ""
    assert charts.revision == revision + 4

    unlinked.frame = unlinked.frame.with_columns(url=pl.lit(""))
    charts.mirror(unlinked)
    assert {chart.url for chart in charts} == {""}
