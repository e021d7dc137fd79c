"""Superset: the YAML of its exports, one file a chart, dataset or dashboard; native id: the chart's uuid."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

from copilotlab.importers.columns import names_in_expression
from copilotlab.importers.draft import CatalogueError, Document, Draft, Skipped
from copilotlab.importers.server import Refused, Server
from copilotlab.importers.tree import at, dicts, fields, items, text, unpacked

# What a chart's parameters call what it counts and what it counts by; each visualization has its own names.
_MEASURES = (
    "metric", "metrics", "metrics_b", "percent_metrics", "metric_2", "secondary_metric", "x", "y", "size",
    "left_metric", "right_metric", "point_radius_fixed",
)  # fmt: skip
_DIMENSIONS = (
    "x_axis", "groupby", "groupby_b", "groupbyRows", "groupbyColumns", "columns", "all_columns", "all_columns_x",
    "all_columns_y", "series", "entity", "source", "target", "source_category", "id", "parent", "name", "column",
    "dimension", "hierarchies", "start_time", "end_time", "y_axis", "geojson", "line_column",
)  # fmt: skip
_LATE = ("granularity_sqla",)  # the time column: of every chart, so it stands last
_LOGIN = "/api/v1/security/login"
_CHARTS = "/api/v1/chart/"
_PAGE = 100  # charts; the server gives no more, unless it is told to
_MOST_PAGES = 10_000
_MOST_READINGS = 3  # of all pages
_FILE = re.compile(r"(?:(.*)_)?(\d{1,18})\.ya?ml", re.IGNORECASE)
_NOT_BARE = re.compile(r"[^A-Za-z0-9]")
_LONGEST_LABEL = 120  # characters; a longer one is the metric's SQL


def of_server(server: Server, user: str, password: str) -> Iterator[Document | Skipped]:
    """Ask a server for its charts, page by page, until there are as many as it says.

    Charts of one title have no order in the list that pages are cut from, and others change it meanwhile: one chart may
    stand on two pages, and another on none.
    """
    if user:
        answer = server.post(_LOGIN, {"username": user, "password": password, "provider": "db"})
        server.authorize(text(at(answer, "access_token")))
    charts: dict[str, dict[str, Any]] = {}
    for _ in range(_MOST_READINGS):
        count = _read_pages(server, charts)
        if len(charts) >= count:
            break
    else:
        raise CatalogueError(f"{server.url}{_CHARTS} says {count:,} charts, and gives {len(charts):,}: try again")
    if charts and not any(text(chart.get("uuid")) for chart in charts.values()):
        raise CatalogueError(
            f"{server.url} is a Superset whose API gives no uuids: export the charts, and read the ZIP"
        )
    for number_, chart in charts.items():
        yield Document(f"{_CHARTS}{number_}", chart)


def _read_pages(server: Server, charts: dict[str, dict[str, Any]]) -> int:
    """Add the charts of all pages, and return how many there are, as the server says."""
    count = 0
    for number in range(_MOST_PAGES):
        asked = f"(order_column:slice_name,order_direction:asc,page:{number},page_size:{_PAGE})"
        answer = server.get(_CHARTS, q=asked)
        page, count = at(answer, "result"), at(answer, "count")
        if not isinstance(page, list) or not isinstance(count, int):
            raise Refused(f"{server.url}{_CHARTS} does not answer with a count and a result: is this a Superset?")
        charts.update((text(chart.get("id")), chart) for chart in dicts(page))
        if not page or len(charts) >= count:
            break
    return count


class Superset:
    """Reads an export of Superset."""

    format = "superset"

    def __init__(self, base_url: str = "") -> None:
        self._base_url = base_url.rstrip("/")
        self._charts: list[tuple[Draft, str]] = []  # with the uuid of its dataset
        self._tables: dict[str, str] = {}
        self._dashboards: defaultdict[str, list[str]] = defaultdict(list)  # chart's uuid -> titles
        self._renamed: defaultdict[str, list[str]] = defaultdict(list)  # chart's uuid -> what tiles call it

    def take(self, document: Document) -> bool:
        content = document.content
        if not isinstance(content, dict):
            return False
        if "slice_name" in content and ("viz_type" in content or "params" in content):
            draft = _chart(content, document.path)
            link = text(content.get("url"))  # the API says it, exports do not
            if not link.startswith("/") and (number := _number_of(document.path, draft.title)):
                link = f"/explore/?slice_id={number}"
            draft.url = f"{self._base_url}{link}" if self._base_url and link.startswith("/") else ""
            self._charts.append((draft, text(content.get("dataset_uuid"))))
        elif "dashboard_title" in content and ("position" in content or "metadata" in content):
            self._take_dashboard(content)
        elif "table_name" in content and ("columns" in content or "metrics" in content):
            self._tables[text(content.get("uuid"))] = text(content["table_name"])
        else:
            return False
        return True

    def _take_dashboard(self, content: dict[str, Any]) -> None:
        title = text(content["dashboard_title"])
        for tile in fields(unpacked(content.get("position"))).values():
            if uuid := text(at(tile, "meta", "uuid")):
                self._dashboards[uuid].append(title)
                self._renamed[uuid].append(text(at(tile, "meta", "sliceNameOverride")))

    def charts(self) -> Iterable[Draft | Skipped]:
        for draft, dataset in self._charts:
            draft.dashboards += self._dashboards[draft.native_id]
            draft.tags += [name for name in self._renamed[draft.native_id] if name != draft.title]
            draft.source = draft.source or self._tables.get(dataset, "")
            yield draft


def _chart(content: dict[str, Any], path: str) -> Draft:
    """Make the draft of a chart, as an export or the API has it."""
    params = fields(unpacked(content.get("params")))
    return Draft(
        native_id=text(content.get("uuid")),
        path=path,
        title=text(content.get("slice_name")),
        description=text(content.get("description")),
        chart_type=text(content.get("viz_type")) or text(params.get("viz_type")),
        measures=[name for key in _MEASURES for item in items(params.get(key)) for name in _names(item)],
        dimensions=[name for key in (*_DIMENSIONS, *_LATE) for item in items(params.get(key)) for name in _names(item)],
        source=text(at(content, "table", "table_name")) or text(content.get("datasource_name_text")).rpartition(".")[2],
        dashboards=[text(each.get("dashboard_title")) for each in dicts(content.get("dashboards"))],
        tags=[text(tag.get("tag_name")) or text(tag.get("name")) for tag in dicts(content.get("tags"))]
        + [tag for tag in items(content.get("tags")) if isinstance(tag, str)],
    )


def _number_of(path: str, title: str) -> str:
    """Return a chart's number, of which Superset makes the name of its file: Basket_size_3.yaml; "" for other names.

    What stands before it must be the title, else "Sales_2024.yaml" would be the chart 2024.
    """
    found = _FILE.fullmatch(PurePosixPath(path).name)
    return found[2] if found and _bare(found[1] or "") == _bare(title) else ""


def _bare(name: str) -> str:
    ascii_ = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return _NOT_BARE.sub("", ascii_)


def _names(item: object) -> list[str]:
    """Return what people call a metric or column, which is a name, or a dict that says how it is made."""
    if not isinstance(item, dict):
        return [text(item)]
    column = text(at(item, "column", "column_name"))
    label = text(item.get("label"))
    made = text(item.get("sqlExpression"))
    if label and (item.get("hasCustomLabel") is True or text(item.get("hasCustomLabel")) == "true"):
        return [label]
    if made and (not label or label == made or len(label) > _LONGEST_LABEL):
        return names_in_expression(made)
    return [label or column]
