"""Each format gives its charts with the words that people search for, and says what it leaves out."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from textwrap import dedent
from typing import Any

import exports
import pytest

from copilotlab import Catalogue, Chart, read_catalogue
from copilotlab.importers import CatalogueError

WORDS = ("title", "description", "chart_type", "dimensions", "measures", "source", "tags")


def charts(catalogue: Catalogue) -> dict[str, dict[str, Any]]:
    """The rows by native id. Each is a chart that a repository takes."""
    rows = {row["key"].split(":", 2)[2]: row for row in catalogue.frame.to_dicts()}
    for row in rows.values():
        Chart(chart_id=row["chart_id"], **{name: row[name] for name in WORDS})
    return rows


def skipped(catalogue: Catalogue) -> dict[str, str]:
    return dict(catalogue.skipped.select("native_id", "reason").iter_rows())


def test_superset_names_columns_as_people_do_and_says_which_dashboards_hold_a_chart(folder):
    catalogue = read_catalogue(folder(exports.SUPERSET))

    assert catalogue.format == "superset"
    revenue, untitled = charts(catalogue).values()
    assert {name: revenue[name] for name in WORDS} == {
        "title": "Revenue by region",
        "description": "Net of returns & tax",
        "chart_type": "echarts_timeseries_bar",
        "dimensions": ["order_date", "region", "Band"],
        "measures": ["count", "Net revenue", "price", "units", "margin"],
        "source": "orders",
        "tags": ["Sales", "Seen"],
    }
    assert revenue["key"] == "superset:prod:11111111-0000-4000-8000-000000000001"
    assert untitled["title"] == "Sales: units by channel (pie)"
    assert skipped(catalogue) == {
        "11111111-0000-4000-8000-000000000003": "it has no title, and neither a dashboard nor columns to make one of"
    }


def test_a_chart_of_superset_opens_by_the_number_in_the_name_that_superset_gave_its_file(folder):
    files = {
        "charts/Ventes_dete_3.yaml": "Ventes d'été",
        "charts/7.yaml": "売上",
        "charts/Sales_2024.yaml": "Sales 2024",  # was written by hand: it has no number
        "charts/moved/Old_title_5.yaml": "New title",
    }
    root = folder(
        {
            name: f"slice_name: {title}\nviz_type: pie\nuuid: 11111111-0000-4000-8000-00000000000{number}\n"
            for number, (name, title) in enumerate(files.items())
        }
    )

    catalogue = read_catalogue(root, base_url="https://bi.example.org/")

    links = dict(catalogue.frame.select("title", "url").iter_rows())
    assert links == {
        "Ventes d'été": "https://bi.example.org/explore/?slice_id=3",
        "売上": "https://bi.example.org/explore/?slice_id=7",
        "Sales 2024": "",
        "New title": "",
    }
    assert set(read_catalogue(root).frame["url"]) == {None}, "nobody said where it is served"


def test_a_zip_says_what_its_folder_says(folder, tmp_path: Path):
    root = folder(exports.SUPERSET)
    with zipfile.ZipFile(tmp_path / "export.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in root.rglob("*.yaml"):
            archive.write(path, f"dashboard_export_20261128/{path.relative_to(root)}")

    assert read_catalogue(tmp_path / "export.zip").frame.equals(read_catalogue(root).frame)


def test_grafana_reads_rows_old_and_new_and_puts_labels_for_variables(folder):
    catalogue = read_catalogue(
        folder({"a.json": {"dashboard": exports.GRAFANA_CLASSIC, "meta": {}}}), base_url="https://g.example.org/"
    )

    assert catalogue.format == "grafana"
    found = charts(catalogue)
    requests = found["web/2"]
    assert requests["title"] == "Requests of Host name / interval, by job"
    assert requests["description"] == "Requests < 7.0 MB, per <namespace>"
    assert requests["measures"] == ["http_requests_total", "up"]
    assert requests["dimensions"] == ["status", "job", "method"]
    assert (requests["source"], requests["tags"]) == ("prometheus", ["Web servers", "nginx"])
    assert requests["url"] == "https://g.example.org/d/web?viewPanel=2"
    assert found["web/5"]["title"] == "Web servers: up (table)"
    assert found["web/no-number"]["source"] == "Loki"
    orders = found["web/6"]
    assert (orders["measures"], orders["dimensions"], orders["source"]) == (["total"], ["region", "day"], "postgres")
    assert found["web/9"]["source"] == ""
    assert skipped(catalogue) == {"web/3": "a text panel is no chart"}


def test_grafana_reads_the_newer_models(folder):
    catalogue = read_catalogue(folder({"v1.json": exports.GRAFANA_V1, "v2.json": exports.GRAFANA_V2}))

    found = charts(catalogue)
    assert list(found) == ["web-v1/1", "web-v2/1", "web-v2/3"]
    assert found["web-v1/1"]["tags"] == ["One"]
    load = found["web-v2/1"]
    assert (load["title"], load["chart_type"], load["source"]) == ("Load in Zone", "timeseries", "prometheus")
    assert (load["measures"], load["dimensions"], load["tags"]) == (["node_load1"], ["zone"], ["Two", "v2"])
    assert found["web-v2/3"]["title"] == "Shared"
    assert skipped(catalogue) == {"web-v2/2": "a text panel is no chart"}


def test_opensearch_follows_a_saved_search_to_its_index_pattern(folder):
    lines = "\n".join(map(json.dumps, exports.OPENSEARCH))
    catalogue = read_catalogue(folder({"saved.ndjson": lines}))

    assert catalogue.format == "opensearch"
    found = charts(catalogue)
    visitors = found["visitors"]
    assert visitors["title"] == "Visitors by country"
    assert (visitors["measures"], visitors["dimensions"]) == (["Visitors", "sum bytes"], ["geo.country"])
    assert (visitors["source"], visitors["tags"]) == ("access-*", ["Traffic"])
    assert (found["tsvb"]["measures"], found["tsvb"]["dimensions"]) == (["count"], ["code"])
    assert found["tsvb"]["source"] == "logs-*"
    assert skipped(catalogue) == {"note": "a text panel is no chart"}
    assert charts(read_catalogue(folder({"saved.ndjson": "", "all.json": {"objects": exports.OPENSEARCH}}))) == found


def test_kibana_is_told_by_its_marks_and_gives_what_dashboards_hold_by_value(folder):
    catalogue = read_catalogue(folder({"all.ndjson": "\n".join(map(json.dumps, exports.KIBANA))}))

    assert catalogue.format == "kibana"
    found = charts(catalogue)
    lens = found["lens-1"]
    assert (lens["measures"], lens["dimensions"]) == (["Sum of price"], ["Top categories"])
    assert (lens["chart_type"], lens["source"], lens["tags"]) == ("bar_stacked", "shop", ["Shop"])
    assert found["board/7"]["title"] == "Held by value"
    assert read_catalogue(folder({}), format="opensearch").frame["key"][0] == "opensearch:prod:lens-1"


def test_metabase_tells_measures_from_dimensions_and_leaves_out_the_trash(folder):
    catalogue = read_catalogue(folder(exports.METABASE), base_url="https://m.example.org")

    assert catalogue.format == "metabase"
    orders, no_entity = charts(catalogue).values()
    assert (orders["measures"], orders["dimensions"]) == (["Count"], ["Created At: Month"])
    assert (orders["source"], orders["tags"]) == ("Orders", ["Shop", "Finance"])
    assert orders["key"] == "metabase:prod:abcdefghijklmnopqrstu"
    assert orders["url"] == "https://m.example.org/question/4"
    assert no_entity["key"] == "metabase:prod:6"
    assert skipped(catalogue) == {"5": "it is in the trash"}


def test_dbt_leaves_out_what_was_generated_and_links_to_nothing_but_pages(folder, tmp_path: Path):
    catalogue = read_catalogue(folder(exports.DBT))

    kpis, generated = charts(catalogue).values()
    assert (kpis["title"], kpis["description"], kpis["source"]) == ("How are we doing?", "", "orders, payments")
    assert (kpis["key"], kpis["url"]) == ("dbt:prod:shop.weekly_kpis", "https://bi.example.org/1")
    assert (generated["title"], generated["description"]) == ("from metabase", "Returned orders")
    assert (generated["chart_type"], generated["url"]) == ("scalar", "")
    (tmp_path / "manifest.json").write_text(json.dumps(exports.DBT_MANIFEST))
    (of_manifest,) = charts(read_catalogue(tmp_path / "manifest.json")).values()
    assert (of_manifest["key"], of_manifest["source"]) == (kpis["key"], "orders")


def test_lightdash_reads_calculations_as_measures(folder):
    catalogue = read_catalogue(folder(exports.LIGHTDASH))

    (orders,) = charts(catalogue).values()
    assert (orders["key"], orders["title"]) == ("lightdash:prod:orders-by-status", "Orders by status")
    assert (orders["measures"], orders["dimensions"]) == (["orders_count", "Share of all"], ["orders_status"])
    assert (orders["source"], orders["tags"], orders["chart_type"]) == ("orders", ["Shop", "finance"], "cartesian")


def test_looker_guesses_the_measures_among_fields(folder):
    catalogue = read_catalogue(folder(exports.LOOKER))

    users, by_field = charts(catalogue).values()
    assert (users["description"], users["dimensions"], users["measures"]) == (
        "Of the last month",
        ["day"],
        ["user_count"],
    )
    assert (by_field["title"], by_field["dimensions"], by_field["measures"]) == (
        "by field",
        ["country"],
        ["total_revenue"],
    )
    assert (by_field["source"], by_field["tags"]) == ("sessions", ["Web"])
    assert skipped(catalogue) == {"web/header": "a text panel is no chart"}


def test_the_chart_id_is_made_of_the_key_so_that_an_instance_has_its_own(folder):
    root = folder(exports.LOOKER)
    prod, staging = read_catalogue(root).frame, read_catalogue(root, instance="staging").frame

    assert prod["chart_id"].to_list() == read_catalogue(root, format="looker").frame["chart_id"].to_list()
    assert set(prod["chart_id"]).isdisjoint(staging["chart_id"])
    assert prod["chart_id"].min() >= 0
    with pytest.raises(CatalogueError, match=r"instance='a:b'.*part of each chart's key"):
        read_catalogue(root, instance="a:b")


def test_an_id_that_stands_twice_is_kept_once_with_both_dashboards(folder):
    copy = {"id": "d2", "type": "dashboard", "attributes": {"title": "Copy"}, "references": []}
    copy["references"] = [{"type": "visualization", "id": "visitors"}]
    other = json.loads(json.dumps(exports.OPENSEARCH[0]))
    other["attributes"]["title"] = "Another"
    root = folder(
        {"a.json": {"objects": exports.OPENSEARCH}, "b.json": {"objects": [exports.OPENSEARCH[0], copy, other]}}
    )

    catalogue = read_catalogue(root)

    assert charts(catalogue)["visitors"]["tags"] == ["Traffic", "Copy"]
    assert catalogue.skipped.filter(catalogue.skipped["native_id"] == "visitors")["reason"].to_list() == [
        "its id stands in the catalogue already",
        "its id stands in the catalogue already, with another title: is this another instance?",
    ]


def test_two_formats_in_one_folder_are_named_and_either_can_be_chosen(folder):
    root = folder({**exports.LIGHTDASH, **exports.LOOKER})

    with pytest.raises(CatalogueError, match=r"lightdash \(2 files\), looker \(1 files\): name one"):
        read_catalogue(root)
    assert len(read_catalogue(root, format="looker")) == 2


def test_an_exposure_without_a_name_is_found_by_its_place_and_label(tmp_path: Path):
    (tmp_path / "d.yml").write_text(
        "exposures: [{name: a, type: dashboard}, {nmae: b, label: Weekly revenue}, {name: }]"
    )
    catalogue = read_catalogue(tmp_path, "dbt")
    assert catalogue.skipped.select("path", "reason").rows() == [
        ("d.yml, exposure 2 (Weekly revenue)", "it has no name"), ("d.yml, exposure 3", "it has no name"),
    ]  # fmt: skip
    assert len(catalogue) == 1


def test_a_format_that_is_not_there_is_said_with_the_one_that_is(tmp_path: Path):
    (tmp_path / "a.json").write_text(json.dumps(exports.GRAFANA_CLASSIC))
    for named in ("dbt", "superset", "looker"):
        with pytest.raises(CatalogueError, match=rf"^nothing in .* is {named}; it looks like grafana \(1 file\): name"):
            read_catalogue(tmp_path, named)
    (tmp_path / "a.json").write_text("{}")
    assert not len(read_catalogue(tmp_path, "dbt")), "what is left of a tool whose charts are all gone"
    (tmp_path / "a.csv").write_text("id,title\n1,Revenue\n")
    with pytest.raises(CatalogueError, match="is no export of dbt: it is a table, so say format='table'"):
        read_catalogue(tmp_path / "a.csv", "dbt")


def reasons_of_what_is_no_chart(catalogue: Catalogue) -> dict[str, str]:
    return dict(catalogue.skipped.filter("no_chart").select("native_id", "reason").iter_rows())


def test_each_reason_says_whether_it_is_a_chart_that_could_not_be_read_or_no_chart_any_more(folder, tmp_path: Path):
    said = "it has no title, and neither a dashboard nor columns to make one of"
    superset = read_catalogue(folder({"superset": {}, **exports.SUPERSET}), "superset")
    assert reasons_of_what_is_no_chart(superset) == {"11111111-0000-4000-8000-000000000003": said}
    classic = json.loads(json.dumps(exports.GRAFANA_CLASSIC))
    classic["panels"][0] |= {"type": "text", "targets": []}  # it was a chart before
    (tmp_path / "a.json").write_text(json.dumps([classic, exports.GRAFANA_V2]))
    assert reasons_of_what_is_no_chart(read_catalogue(tmp_path / "a.json")) == dict.fromkeys(
        ("web/2", "web/3", "web-v2/2"), "a text panel is no chart"
    )
    (tmp_path / "b.json").write_text(json.dumps(exports.OPENSEARCH))
    assert reasons_of_what_is_no_chart(read_catalogue(tmp_path / "b.json")) == {"note": "a text panel is no chart"}
    (tmp_path / "c.json").write_text(json.dumps(list(exports.METABASE.values())[:2]))
    assert reasons_of_what_is_no_chart(read_catalogue(tmp_path / "c.json")) == {"5": "it is in the trash"}
    (tmp_path / "dbt_project.yml").write_text("name: shop")
    (tmp_path / "d.yml").write_text("exposures: [{name: a, config: {enabled: false}}, {name: b, type: dashboard}]")
    disabled = read_catalogue(tmp_path, "dbt")
    assert (reasons_of_what_is_no_chart(disabled), len(disabled)) == ({"shop.a": "it is disabled"}, 1)
    (tmp_path / "e.dashboard.lookml").write_text(dedent(exports.LOOKER["web.dashboard.lookml"]))
    looker = read_catalogue(tmp_path / "e.dashboard.lookml")
    assert reasons_of_what_is_no_chart(looker) == {"web/header": "a text panel is no chart"}
    (tmp_path / "f.csv").write_text('id,title,tags\n1,Good,x\n2,Bad,"[""open"\n')
    unread = read_catalogue(tmp_path / "f.csv").skipped
    assert unread["native_id"].to_list() == ["2"]
    assert not unread["no_chart"].any(), "one cell of it cannot be read: it is still a chart"


def test_a_catalogue_shows_what_was_skipped_and_why(folder):
    catalogue = read_catalogue(folder(exports.LOOKER))

    assert repr(catalogue) == "Catalogue(looker:prod, 2 charts, 1 skipped (1 a text panel is no chart))"
    assert "a text panel is no chart" in catalogue._repr_html_()
    assert catalogue.reasons() == {"a text panel is no chart": 1}
