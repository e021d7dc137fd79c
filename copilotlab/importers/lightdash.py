"""Lightdash: charts as its command line downloads them, in YAML; native id: the chart's slug."""

from __future__ import annotations

from collections.abc import Iterable

from copilotlab.importers.draft import Document, Draft, Skipped
from copilotlab.importers.tree import at, dicts, text, texts


class Lightdash:
    """Reads charts of Lightdash, and the dashboards that hold them."""

    format = "lightdash"

    def __init__(self, base_url: str = "") -> None:
        self._base_url = base_url.rstrip("/")
        self._drafts: list[tuple[Draft, str]] = []  # with the slug of the dashboard that owns it
        self._titles: dict[str, str] = {}  # a dashboard's slug -> its name
        self._tiles: list[tuple[str, str]] = []  # a dashboard's name and a chart's slug

    def take(self, document: Document) -> bool:
        content = document.content
        if not isinstance(content, dict):
            return False
        if isinstance(content.get("metricQuery"), dict) and ("chartConfig" in content or "slug" in content):
            self._take_chart(document)
        elif isinstance(content.get("tiles"), list) and "slug" in content:
            name = text(content.get("name"))
            self._titles[text(content["slug"])] = name
            slugs = (text(at(tile, "properties", "chartSlug")) for tile in dicts(content["tiles"]))
            self._tiles += [(name, slug) for slug in slugs if slug]
        elif not (isinstance(content.get("sql"), str) and "slug" in content and "spaceSlug" in content):
            return False
        else:  # a chart made by SQL: no fields are named
            self._drafts.append((_draft(document), ""))
        return True

    def _take_chart(self, document: Document) -> None:
        content, query = document.content, document.content["metricQuery"]
        draft = _draft(document)
        labels = {
            text(each.get("name")): text(each.get("displayName")) or text(each.get("name"))
            for each in dicts(query.get("tableCalculations"))
        }
        named = texts(query.get("dimensions"))
        draft.dimensions = [
            *named,
            *(
                text(each.get("name"))
                for each in dicts(query.get("customDimensions"))
                if text(each.get("id")) not in named
            ),
        ]
        draft.measures = [*texts(query.get("metrics")), *labels.values()]
        draft.source = text(content.get("tableName")) or text(query.get("exploreName"))
        self._drafts.append((draft, text(content.get("dashboardSlug"))))

    def charts(self) -> Iterable[Draft | Skipped]:
        for draft, dashboard in self._drafts:
            draft.dashboards += [name for name, slug in self._tiles if slug == draft.native_id]
            if dashboard:
                draft.dashboards.append(self._titles.get(dashboard) or dashboard.replace("-", " "))
            yield draft


def _draft(document: Document) -> Draft:
    content = document.content
    return Draft(
        native_id=text(content.get("slug")),
        path=document.path,
        title=text(content.get("name")),
        description=text(content.get("description")),
        chart_type=text(at(content, "chartConfig", "type")) or text(at(content, "config", "type")),
        tags=texts(content.get("spaceSlug")),
    )
