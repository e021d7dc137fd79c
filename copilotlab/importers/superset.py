"""Superset: the YAML of its exports, one file a chart, dataset or dashboard; native id: the chart's uuid."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from copilotlab.importers.columns import names_in_expression
from copilotlab.importers.draft import Document, Draft, Skipped
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
_LONGEST_LABEL = 120  # characters; a longer one is the metric's SQL


class Superset:
    """Reads an export of Superset."""

    format = "superset"

    def __init__(self, base_url: str = "") -> None:
        self._charts: list[tuple[Draft, str]] = []  # with the uuid of its dataset
        self._tables: dict[str, str] = {}
        self._dashboards: defaultdict[str, list[str]] = defaultdict(list)  # chart's uuid -> titles
        self._renamed: defaultdict[str, list[str]] = defaultdict(list)  # chart's uuid -> what tiles call it

    def take(self, document: Document) -> bool:
        content = document.content
        if not isinstance(content, dict):
            return False
        if "slice_name" in content and ("viz_type" in content or "params" in content):
            self._charts.append((chart_of(content, document.path), text(content.get("dataset_uuid"))))
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


def chart_of(content: dict[str, Any], path: str) -> Draft:
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
        tags=[text(tag.get("tag_name")) or text(tag.get("name")) for tag in dicts(content.get("tags"))]
        + [tag for tag in items(content.get("tags")) if isinstance(tag, str)],
    )


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
