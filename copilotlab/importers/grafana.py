"""Grafana: dashboards in JSON, classic, as a resource (V1), in elements (V2); native id: dashboard's uid, panel's id.

What a panel of V2 calls `kind` and `group` moved between its versions: before v2beta1 the plugin stands in `kind`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

from copilotlab.importers.columns import Columns, columns_of_promql, columns_of_sql, labels_of_legend
from copilotlab.importers.draft import Document, Draft, Skipped
from copilotlab.importers.server import Refused, Server, pages
from copilotlab.importers.tree import at, dicts, fields, items, text, texts
from copilotlab.reasons import reason

NO_CHART = {
    "text": "a text panel is no chart",
    "news": "a news panel is no chart",
    "row": "",
    **dict.fromkeys(
        ("alertlist", "dashlist", "annolist", "pluginlist", "gettingstarted", "welcome"), "a list panel is no chart"
    ),
}
_PAGE = 1_000  # dashboards; the server takes 5,000 at most
_MOST_PAGES = 1_000
_DEEPEST = 8  # rows in rows
_DATASOURCES = re.compile(r"^(?:-- .* --|grafana|\$\w+|\$\{.*\}|\[\[.*\]\])$", re.IGNORECASE)


def of_server(server: Server) -> Iterator[Document | Skipped]:
    """Ask a server for its dashboards, one after the other: the list of them has no panels."""
    for page in pages(server, "/api/search", _PAGE, _MOST_PAGES, type="dash-db"):
        for found in dicts(page):
            path = f"/api/dashboards/uid/{quote(text(found.get('uid')), safe='')}"
            try:
                yield Document(path, server.get(path))
            except Refused as error:
                yield Skipped(path, "", reason(error), may_hold=True)


class Grafana:
    """Reads dashboards of Grafana."""

    format = "grafana"

    def __init__(self, base_url: str = "") -> None:
        self._base_url = base_url.rstrip("/")
        self._found: list[Draft | Skipped] = []

    def take(self, document: Document) -> bool:
        taken = False
        for content in dicts(document.content):
            dashboard, uid, link, folder = content, "", "", ""
            if isinstance(inner := content.get("dashboard"), dict):  # as the API answers, with a `meta` beside it
                dashboard, link = inner, text(at(content, "meta", "url"))
                folder = text(at(content, "meta", "folderTitle"))
            if isinstance(inner := dashboard.get("spec"), dict) and text(dashboard.get("kind")) == "Dashboard":
                dashboard, uid = inner, text(at(dashboard, "metadata", "name"))
            if isinstance(dashboard.get("elements"), dict) and ("layout" in dashboard or "variables" in dashboard):
                found = list(self._of_elements(dashboard, uid, document.path))
            elif _is_classic(dashboard):
                found = list(self._of_panels(dashboard, uid, link, document.path))
            else:
                continue
            for each in found:
                if isinstance(each, Draft) and folder not in ("", "General"):
                    each.tags.append(folder)
            self._found += found
            taken = True
        return taken

    def charts(self) -> Iterable[Draft | Skipped]:
        return self._found

    def _of_panels(self, dashboard: dict[str, Any], uid: str, link: str, path: str) -> Iterator[Draft | Skipped]:
        uid = uid or text(dashboard.get("uid")) or text(dashboard.get("id")) or _slug(text(dashboard.get("title")))
        variables = {
            text(each.get("name")): text(each.get("label")) for each in dicts(at(dashboard, "templating", "list"))
        }
        library = fields(dashboard.get("__elements"))
        for panel in _panels(dashboard, 0):
            if isinstance(shared := panel.get("libraryPanel"), dict):
                model = fields(at(library.get(text(shared.get("uid"))), "model")) or fields(shared.get("model"))
                panel = {**model, **{key: value for key, value in panel.items() if value not in (None, "")}}
                panel["title"] = text(panel.get("title")) or text(shared.get("name"))
            native_id = _native_id(uid, text(panel.get("id")), text(panel.get("title")))
            kind = text(panel.get("type"))
            if kind in NO_CHART:
                if NO_CHART[kind]:
                    yield Skipped(path, native_id, NO_CHART[kind], no_chart=True)
                continue
            yield self._draft(
                Draft(
                    native_id=native_id,
                    path=path,
                    title=text(panel.get("title")),
                    description=text(panel.get("description")),
                    chart_type=kind,
                    dashboards=[text(dashboard.get("title"))],
                    tags=texts(dashboard.get("tags")),
                    url=self._url(uid, text(panel.get("id")), link),
                    variables=variables,
                ),
                [(target.get("datasource"), target) for target in dicts(panel.get("targets"))],
                panel.get("datasource"),
            )

    def _of_elements(self, dashboard: dict[str, Any], uid: str, path: str) -> Iterator[Draft | Skipped]:
        uid = uid or text(dashboard.get("uid")) or _slug(text(dashboard.get("title")))
        variables = {
            text(at(each, "spec", "name")): text(at(each, "spec", "label"))
            for each in dicts(dashboard.get("variables"))
        }
        for name, element in fields(dashboard.get("elements")).items():
            spec = fields(at(element, "spec"))
            number = text(spec.get("id")) or text(name)
            native_id = _native_id(uid, number, text(spec.get("title")))
            shared = text(at(spec, "libraryPanel", "name"))
            visualization = at(spec, "vizConfig")
            kind = text(at(visualization, "group")) or text(at(visualization, "kind"))
            if kind in NO_CHART:
                yield Skipped(path, native_id, NO_CHART[kind] or "a row is no chart", no_chart=True)
                continue
            queries = [at(query, "spec", "query") for query in dicts(at(spec, "data", "spec", "queries"))]
            yield self._draft(
                Draft(
                    native_id=native_id,
                    path=path,
                    title=text(spec.get("title")) or shared,
                    description=text(spec.get("description")),
                    chart_type=kind,
                    dashboards=[text(dashboard.get("title"))],
                    tags=texts(dashboard.get("tags")),
                    url=self._url(uid, number, ""),
                    variables=variables,
                ),
                [(_datasource_of_query(query), fields(at(query, "spec"))) for query in queries],
                None,
            )

    def _draft(self, draft: Draft, targets: list[tuple[object, dict[str, Any]]], datasource: object) -> Draft:
        found = Columns(source=_datasource(datasource))
        for its_datasource, target in targets:
            source = _datasource(its_datasource)
            found.source = found.source or source
            _add_columns(found, target, (source or found.source).lower())
        draft.measures, draft.dimensions, draft.source = found.measures, found.dimensions, found.source
        return draft

    def _url(self, uid: str, number: str, link: str) -> str:
        if not self._base_url or not number:
            return ""
        path = link if link.startswith("/d/") else f"/d/{uid}"
        return f"{self._base_url}{path}?viewPanel={number}"


def _is_classic(dashboard: dict[str, Any]) -> bool:
    panels = isinstance(dashboard.get("panels"), list) or isinstance(dashboard.get("rows"), list)
    return panels and any(key in dashboard for key in ("schemaVersion", "templating", "timezone", "annotations", "uid"))


def _panels(holder: Mapping[str, Any], depth: int) -> Iterator[dict[str, Any]]:
    """Give the panels of a dashboard and those in its rows, which are panels that hold panels, or old `rows`."""
    if depth > _DEEPEST:
        return
    for panel in dicts(holder.get("panels")):
        if text(panel.get("type")) == "row" or isinstance(panel.get("panels"), list):
            yield from _panels(panel, depth + 1)
        else:
            yield panel
    for row in dicts(holder.get("rows")):
        yield from _panels(row, depth + 1)


def _native_id(uid: str, number: str, title: str) -> str:
    """Return ``uid/number``; of a panel without a number, with its title's words, which stay when panels are moved."""
    return f"{uid}/{number or _slug(title)}" if uid and (number or _slug(title)) else ""


def _slug(title: str) -> str:
    return re.sub(r"[\W_]+", "-", title[:200].lower()).strip("-")[:80]


def _datasource(value: object) -> str:
    """Return the kind of a datasource, else its name; "" where a variable stands for it."""
    name = text(value) or text(at(value, "type")) or text(at(value, "uid"))
    return "" if _DATASOURCES.match(name) else name


def _datasource_of_query(query: object) -> str:
    kind = text(at(query, "kind"))
    return text(at(query, "group")) or (kind if kind != "DataQuery" else "") or text(at(query, "datasource", "name"))


def _add_columns(found: Columns, target: dict[str, Any], datasource: str) -> None:
    """Add what a query names, whichever language it is in."""
    if expression := text(target.get("expr")):
        _extend(found, columns_of_promql(expression))
    if sql := text(target.get("rawSql")) or text(target.get("rawQuery")) or text(target.get("queryText")):
        _extend(found, columns_of_sql(sql))
    elif (query := text(target.get("query"))) and re.match(r"\s*(?:select|with)\b", query, re.IGNORECASE):
        _extend(found, columns_of_sql(query))
    found.dimensions += labels_of_legend(text(target.get("legendFormat")))
    for metric in dicts(target.get("metrics")):  # Elasticsearch, OpenSearch
        found.measures.append(text(metric.get("field")) or text(metric.get("type")))
    found.dimensions += [text(bucket.get("field")) for bucket in dicts(target.get("bucketAggs"))]
    if name := text(target.get("metricName")):  # CloudWatch
        found.measures.append(name)
        found.dimensions += [text(key) for key in fields(target.get("dimensions"))]
    if measurement := text(target.get("measurement")):  # InfluxQL, made by its editor
        found.measures.append(measurement)
        for part in (part for parts in items(target.get("select")) for part in dicts(parts)):
            if text(part.get("type")) == "field":
                found.measures += texts(part.get("params"))
        for part in dicts(target.get("groupBy")):
            if text(part.get("type")) == "tag":
                found.dimensions += texts(part.get("params"))


def _extend(found: Columns, more: Columns) -> None:
    found.measures += more.measures
    found.dimensions += more.dimensions
    found.source = found.source or more.source
