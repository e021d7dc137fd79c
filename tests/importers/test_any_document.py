"""Whatever JSON or YAML there is: charts and reasons, never a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import exports
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from copilotlab import Chart, read_catalogue
from copilotlab.importers import FORMATS

TOOLS = tuple(name for name in FORMATS if name != "table")
REAL = {
    "superset": [*exports.SUPERSET.values()],
    "grafana": [exports.GRAFANA_CLASSIC, exports.GRAFANA_V1, exports.GRAFANA_V2],
    "opensearch": [exports.OPENSEARCH],
    "kibana": [exports.KIBANA],
    "metabase": [*exports.METABASE.values()],
    "dbt": [*exports.DBT.values(), exports.DBT_MANIFEST],
    "lightdash": [*exports.LIGHTDASH.values()],
    "looker": [*exports.LOOKER.values()],
}
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["$x", "{{ y }}", "<b>", "\ud800", "\x00", "[[z]]", "ref('a')", '{"type": "pie", "aggs": [1]}']),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def plain(content: object) -> Any:
    return yaml.safe_load(content) if isinstance(content, str) else json.loads(json.dumps(content))


def places(value: object) -> list[tuple[Any, Any]]:
    """Each dict or list in a document, with each of its keys."""
    if isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]
    return []


def check(path: Path, tool: str) -> None:
    catalogue = read_catalogue(path, format=tool)
    for row in catalogue.frame.drop("key", "url").to_dicts():
        Chart(**row)
    assert catalogue.frame["key"].is_unique().all()
    assert catalogue.skipped["reason"].str.len_chars().min() in (None, *range(1, 500))


quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("tool", TOOLS)
@quick
@given(data=st.data())
def test_an_export_in_which_anything_stands_anywhere_gives_charts_and_reasons(tool: str, tmp_path: Path, data):
    document = plain(data.draw(st.sampled_from(REAL[tool])))
    for _ in range(data.draw(st.integers(1, 4))):
        holder, key = data.draw(st.sampled_from(places(document)))
        holder[key] = data.draw(anything)

    (tmp_path / "a.json").write_text(json.dumps(document))
    check(tmp_path, tool)
    check(tmp_path / "a.json", tool)


@quick
@given(
    content=anything | st.binary(max_size=40) | st.text(max_size=40),
    name=st.sampled_from(["a.json", "a.yml", "a.ndjson"]),
)
def test_any_document_at_all_gives_charts_and_reasons(tmp_path: Path, content, name: str):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif isinstance(content, str):
        (tmp_path / name).write_text(content, errors="surrogatepass")
    else:
        (tmp_path / name).write_text(json.dumps(content))
    for tool in TOOLS:
        check(tmp_path / name, tool)
    (tmp_path / name).unlink()
