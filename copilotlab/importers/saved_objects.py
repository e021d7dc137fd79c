"""OpenSearch Dashboards and Kibana: saved objects in ndjson, or one JSON with `objects`; native id: the object's id."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from copilotlab.importers.columns import columns_of_sql
from copilotlab.importers.draft import Document, Draft, Skipped
from copilotlab.importers.tree import at, dicts, fields, items, text, texts, unpacked

NO_CHART = {
    "markdown": "a text panel is no chart",
    "input_control_vis": "a control panel is no chart",
    "input_control": "a control panel is no chart",
}
_KIBANAS = {"coreMigrationVersion", "typeMigrationVersion"}  # keys
_OF_KIBANA = {"lens", "map", "canvas-workpad", "links"}
_PATHS = {"lens": "/app/lens#/edit/", "map": "/app/maps/map/", "visualization": "/app/visualize#/edit/"}


class SavedObjects:
    """Reads saved objects: visualizations, Lens charts, maps, and what dashboards hold by value."""

    def __init__(self, format: str | None, base_url: str = "") -> None:
        self._format = format
        self._marked = self._unmarked = 0  # objects with marks of Kibana's, and without
        self._base_url = base_url.rstrip("/")
        self._charts: list[tuple[Draft | Skipped, list[tuple[str, str]]]] = []  # with what each refers to
        self._titles: dict[tuple[str, str], str] = {}  # type and id -> title, of index patterns
        self._searches: dict[str, list[tuple[str, str]]] = {}  # a saved search's id -> what it refers to
        self._dashboards: defaultdict[tuple[str, str], list[str]] = defaultdict(list)

    @property
    def format(self) -> str:
        """Which tool's objects these are, where nobody said it: most of Kibana's have marks of their own.

        Some of OpenSearch's have them too: they were made by Kibana once.
        """
        return self._format or ("kibana" if self._marked > self._unmarked else "opensearch")

    def take(self, document: Document) -> bool:
        taken = False
        for each in objects_of(document.content):
            self._take_object(each, document.path)
            marked = not _KIBANAS.isdisjoint(each) or each["type"] in _OF_KIBANA
            self._marked, self._unmarked = self._marked + marked, self._unmarked + (not marked)
            taken = True
        return taken

    def _take_object(self, each: dict[str, Any], path: str) -> None:
        kind, native_id = text(each.get("type")), text(each.get("id"))
        attributes = fields(each.get("attributes"))
        references = [(text(ref.get("type")), text(ref.get("id"))) for ref in dicts(each.get("references"))]
        title = text(attributes.get("title"))
        if kind in ("index-pattern", "data-source"):
            self._titles[kind, native_id] = text(attributes.get("name")) or title
        elif kind == "search":
            self._searches[native_id] = references
        elif kind == "dashboard":
            for reference in references:
                self._dashboards[reference].append(title)
            for draft, its_references in self._by_value(native_id, title, attributes, path, references):
                self._charts.append((draft, its_references))
        elif kind in _PATHS or kind == "observability-visualization":
            draft = self._draft(native_id, kind, attributes, path)
            if isinstance(draft, Draft):
                draft.url = f"{self._base_url}{_PATHS[kind]}{native_id}" if self._base_url and kind in _PATHS else ""
            self._charts.append((draft, [(kind, native_id), *references]))

    def _by_value(
        self, dashboard: str, title: str, attributes: dict[str, Any], path: str, references: list[tuple[str, str]]
    ) -> Iterator[tuple[Draft | Skipped, list[tuple[str, str]]]]:
        """Give the charts that stand in a dashboard itself, as newer Kibana makes them."""
        for panel in dicts(unpacked(attributes.get("panelsJSON"))):
            kind = text(panel.get("type"))
            held = fields(at(panel, "embeddableConfig", "attributes"))
            if not held and isinstance(saved := at(panel, "embeddableConfig", "savedVis"), dict):
                held = {"title": saved.get("title"), "visState": saved, "description": saved.get("description")}
            if kind not in _PATHS or not held:
                continue
            index = text(panel.get("panelIndex"))
            name = text(panel.get("title")) or text(at(panel, "embeddableConfig", "title")) or text(held.get("title"))
            draft = self._draft(f"{dashboard}/{index}" if index else "", kind, {**held, "title": name}, path)
            if isinstance(draft, Draft):
                draft.dashboards.append(title)
            own = [(text(ref.get("type")), text(ref.get("id"))) for ref in dicts(held.get("references"))]
            yield draft, own or [each for each in references if each[0] == "index-pattern"][:1]

    def _draft(self, native_id: str, kind: str, attributes: dict[str, Any], path: str) -> Draft | Skipped:
        draft = Draft(
            native_id, path, title=text(attributes.get("title")), description=text(attributes.get("description"))
        )
        if kind == "lens":
            _add_lens(draft, attributes)
        elif kind == "map":
            draft.chart_type = "map"
        elif kind == "observability-visualization":
            saved = fields(attributes.get("savedVisualization"))
            draft.title = draft.title or text(saved.get("name"))
            draft.description = draft.description or text(saved.get("description"))
            draft.chart_type = text(saved.get("type"))
        else:
            state = fields(unpacked(attributes.get("visState")))
            draft.chart_type = text(state.get("type"))
            draft.title = draft.title or text(state.get("title"))
            if draft.chart_type in NO_CHART:
                return Skipped(path, native_id, NO_CHART[draft.chart_type], no_chart=True)
            _add_aggregations(draft, state)
        return draft

    def charts(self) -> Iterable[Draft | Skipped]:
        for draft, references in self._charts:
            if isinstance(draft, Draft):
                draft.dashboards += self._dashboards[references[0]] if references else []
                draft.source = draft.source or self._source(references)
            yield draft

    def _source(self, references: list[tuple[str, str]]) -> str:
        """Return the index pattern's title, also where a saved search stands between; its id where it is not there."""
        followed = [*references, *(next_ for kind, id_ in references if kind == "search"
                                   for next_ in self._searches.get(id_, []))]  # fmt: skip
        found = [each for each in followed if each[0] == "index-pattern"]
        return next((self._titles[each] for each in found if each in self._titles), "") or next(
            (id_ for _, id_ in found if _is_word(id_)), ""
        )


def objects_of(content: object) -> list[dict[str, Any]]:
    """Return the saved objects of a document: of its `objects`, of a list of them, or the only one."""
    objects = content.get("objects") if isinstance(content, dict) and "objects" in content else content
    return [
        each
        for each in dicts(objects)
        if isinstance(each.get("attributes"), dict) and isinstance(each.get("type"), str)
    ]


def _is_word(native_id: str) -> bool:
    """Return whether an id was given by people, as in ``logs-web``; not a random one, and no placeholder."""
    return native_id == native_id.lower() and sum(c.isdigit() for c in native_id) < 8


def _add_aggregations(draft: Draft, state: dict[str, Any]) -> None:
    for aggregation in dicts(state.get("aggs")):
        if text(aggregation.get("enabled")) == "false" or aggregation.get("enabled") is False:
            continue
        params = fields(aggregation.get("params"))
        kind, column = text(aggregation.get("type")), text(params.get("field"))
        label = text(params.get("customLabel"))
        if text(aggregation.get("schema")) in ("metric", "radius"):
            draft.measures.append(label or (f"{kind} {column}".strip()))
        else:
            draft.dimensions.append(label or column or kind)
    params = fields(state.get("params"))
    for series in dicts(params.get("series")) if draft.chart_type == "metrics" else []:  # TSVB
        label = text(series.get("label"))
        names = [
            f"{text(metric.get('type'))} {text(metric.get('field'))}".strip() for metric in dicts(series.get("metrics"))
        ]
        draft.measures += [label] if label else names
        draft.dimensions += texts(series.get("terms_field"))
    if draft.chart_type == "metrics":
        draft.source = text(params.get("index_pattern"))
    if draft.chart_type == "vega":
        _add_vega(draft, params)


def _add_vega(draft: Draft, params: dict[str, Any]) -> None:
    """Read what Vega-Lite in JSON says; in Hjson, which most of these are, nothing is read."""
    spec = unpacked(text(params.get("spec")))
    for data in dicts(at(spec, "data")):
        draft.source = draft.source or next(iter(texts(at(data, "url", "index"))), "")
    for channel in fields(at(spec, "encoding")).values():
        name = text(at(channel, "title")) or text(at(channel, "field"))
        (draft.measures if text(at(channel, "type")) == "quantitative" else draft.dimensions).append(name)


def _add_lens(draft: Draft, attributes: dict[str, Any]) -> None:
    draft.chart_type = text(attributes.get("visualizationType")).removeprefix("lns").lower()
    state = fields(unpacked(attributes.get("state")))
    shape = at(state, "visualization", "shape") or at(state, "visualization", "preferredSeriesType")
    draft.chart_type = text(shape) or draft.chart_type
    for source in fields(state.get("datasourceStates")).values():
        for layer in fields(at(source, "layers")).values():
            for column in fields(at(layer, "columns")).values():
                name = text(at(column, "label")) or text(at(column, "sourceField"))
                bucketed = at(column, "isBucketed") is True
                (draft.dimensions if bucketed else draft.measures).append(name)
            if query := text(at(layer, "query", "esql")):
                draft.source = draft.source or columns_of_sql(query).source
            draft.dimensions += [text(at(column, "fieldName")) for column in dicts(items(at(layer, "columns")))]
