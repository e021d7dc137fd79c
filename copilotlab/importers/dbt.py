"""dbt: exposures, in YAML or in the manifest that dbt makes; native id: the project's name and the exposure's."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from copilotlab.importers.draft import Document, Draft, Skipped
from copilotlab.importers.tree import at, dicts, fields, items, text, texts

_REFERENCE = re.compile(r"""(?:ref|source|metric)\s*\(\s*["']([^"']+)["']\s*(?:,\s*["']([^"']+)["'])?""")
_VISUALIZATION = re.compile(r"^### Visualization: (.{1,60})$", re.MULTILINE)  # dbt-metabase writes these descriptions
_METADATA = re.compile(r"^#### Metadata\s*$.*", re.MULTILINE | re.DOTALL)
_QUERY_HEADING = re.compile(r"^#### Query\s*$", re.MULTILINE)
_NO_DESCRIPTION = re.compile(r"^No description provided in Metabase\s*$", re.MULTILINE)

NO_NAME = "it has no name"


class Dbt:
    """Reads exposures of dbt."""

    format = "dbt"

    def __init__(self, base_url: str = "") -> None:
        self._projects: list[tuple[str, str]] = []  # folder and name
        self._drafts: list[tuple[Draft, bool, str]] = []  # with whether it is disabled, and its project if it says it
        self._nameless: list[Skipped] = []

    def take(self, document: Document) -> bool:
        content = document.content
        if not isinstance(content, dict):
            return False
        folder, _, file = document.path.rpartition("/")
        exposures = content.get("exposures")
        if file in ("dbt_project.yml", "dbt_project.yaml"):
            self._projects.append((folder, text(content.get("name"))))
        elif isinstance(exposures, dict) and ("nodes" in content or "metadata" in content):
            for place, exposure in exposures.items():
                package = text(at(exposure, "package_name"))
                self._take_exposure(fields(exposure), document.path, package, f"exposure {text(place)}")
        elif isinstance(exposures, list):
            for number, exposure in enumerate(dicts(exposures), start=1):
                self._take_exposure(exposure, document.path, "", f"exposure {number}")
        else:
            return False
        return True

    def _take_exposure(self, exposure: dict[str, Any], path: str, project: str, place: str) -> None:
        name = text(exposure.get("name"))
        if not name.strip():
            label = text(exposure.get("label"))
            self._nameless.append(Skipped(f"{path}, {place}{f' ({label})' if label else ''}", "", NO_NAME))
            return
        description = text(exposure.get("description"))
        shown = _VISUALIZATION.search(description)
        for pattern in (_VISUALIZATION, _QUERY_HEADING, _METADATA, _NO_DESCRIPTION):
            description = pattern.sub("", description)
        draft = Draft(
            native_id=name,
            path=path,
            title=text(exposure.get("label")) or name.replace("_", " "),
            description=description,
            chart_type=shown[1].lower() if shown else text(exposure.get("type")),
            source=", ".join(dict.fromkeys(_sources(exposure.get("depends_on")))),
            tags=texts(exposure.get("tags")) + texts(at(exposure, "config", "tags")),
            url=text(exposure.get("url")),
        )
        disabled = text(at(exposure, "config", "enabled")) == "false" or at(exposure, "config", "enabled") is False
        self._drafts.append((draft, disabled, project))

    def charts(self) -> Iterable[Draft | Skipped]:
        for draft, disabled, project in self._drafts:
            project = project or self._project_of(draft.path)
            if project:
                draft.native_id = f"{project}.{draft.native_id}"
            yield Skipped(draft.path, draft.native_id, "it is disabled", no_chart=True) if disabled else draft
        yield from self._nameless

    def _project_of(self, path: str) -> str:
        """Return the project in whose folder a file lies: the innermost one."""
        around = [(folder, name) for folder, name in self._projects if not folder or path.startswith(f"{folder}/")]
        return max(around, default=("", ""))[1]


def _sources(depends_on: object) -> Iterable[str]:
    """Give the models' names: of ``ref('orders')``, and of the manifest's ``model.shop.orders``."""
    for node in texts(at(depends_on, "nodes")) if isinstance(depends_on, dict) else texts(items(depends_on)):
        if found := _REFERENCE.search(node):
            yield found[2] or found[1]
        elif re.fullmatch(r"[\w.-]+", node):
            yield node.rpartition(".")[2]
