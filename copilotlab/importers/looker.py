"""Looker: dashboards in LookML, which are YAML; native id: the dashboard's name and the element's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from copilotlab.importers.draft import Document, Draft, Skipped
from copilotlab.importers.tree import at, dicts, items, text, texts

NO_CHART = {
    "text": "a text panel is no chart",
    "button": "a button is no chart",
    "extension": "an extension is no chart",
}
_MEASURE_LIKE = (
    "count",
    "total",
    "sum",
    "average",
    "avg",
    "min",
    "max",
    "median",
    "percent",
    "rate",
    "ratio",
    "number_of",
)


class Looker:
    """Reads dashboards of Looker."""

    format = "looker"

    def __init__(self, base_url: str = "") -> None:
        self._base_url = base_url.rstrip("/")
        self._found: list[Draft | Skipped] = []

    def take(self, document: Document) -> bool:
        dashboards = [each for each in dicts(document.content) if "dashboard" in each and "elements" in each]
        for dashboard in dashboards:
            for element in dicts(dashboard.get("elements")):
                self._found.append(self._chart(dashboard, element, document.path))
        return bool(dashboards) and all(isinstance(each.get("elements"), list | None) for each in dashboards)

    def charts(self) -> Iterable[Draft | Skipped]:
        return self._found

    def _chart(self, dashboard: dict[str, Any], element: dict[str, Any], path: str) -> Draft | Skipped:
        board, name = text(dashboard.get("dashboard")), text(element.get("name"))
        native_id = f"{board}/{name}" if board and name else ""
        kind = text(element.get("type"))
        if kind in NO_CHART:
            return Skipped(path, native_id, NO_CHART[kind], no_chart=True)
        draft = Draft(
            native_id=native_id,
            path=path,
            title=text(element.get("title")) or text(element.get("title_text")) or name.replace("_", " "),
            description=text(element.get("note_text")) or text(element.get("note")),
            chart_type=kind,
            source=text(element.get("explore")),
            dashboards=[text(dashboard.get("title")) or board.replace("_", " ")],
            dimensions=[_column(each) for each in texts(element.get("dimensions"))],
            measures=[_column(each) for each in texts(element.get("measures"))],
        )
        if not draft.dimensions and not draft.measures:
            for each in texts(element.get("fields")):
                (draft.measures if _is_measure(each) else draft.dimensions).append(_column(each))
        if not draft.dimensions and not draft.measures:
            for query in dicts(element.get("merged_queries")):
                draft.dimensions += [_column(each) for each in texts(query.get("fields"))]
        draft.measures += [
            text(each.get("label")) or text(each.get("measure")) or text(each.get("table_calculation"))
            for each in dicts(element.get("dynamic_fields"))
        ]
        model = text(element.get("model")) or next(
            (text(at(each, "model")) for each in items(element.get("listen"))), ""
        )
        if self._base_url and model and board:
            draft.url = f"{self._base_url}/dashboards/{model}::{board}"
        return draft


def _column(name: str) -> str:
    """Return ``user_count`` of ``sessions.user_count``: the view is the source, said once."""
    return name.rpartition(".")[2] or name


def _is_measure(name: str) -> bool:
    """Guess whether a field is a measure, by its name: `fields` does not say."""
    column = _column(name).lower()
    return any(column == word or column.startswith(f"{word}_") or column.endswith(f"_{word}") for word in _MEASURE_LIKE)
