"""The real exports of public repositories, where they lie beside the project: every chart in them is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from copilotlab import Chart, read_catalogue

FOUND = next((up / "shared/data/bi" for up in Path(__file__).parents if (up / "shared/data/bi").is_dir()), None)

pytestmark = pytest.mark.skipif(FOUND is None, reason="the real exports, shared/data/bi, are not beside the project")

AGAIN = "its id stands in the catalogue already"
OTHER = f"{AGAIN}, with another title: is this another instance?"
TEXT, CONTROL, LIST = (f"a {kind} panel is no chart" for kind in ("text", "control", "list"))


@pytest.mark.parametrize(
    ("format", "charts", "reasons"),
    [  # two releases of Superset share their uuids, two of Metabase their ids; dbt's are written in three ways
        ("superset", 241, {AGAIN: 71, OTHER: 1}),
        ("grafana", 1_283, {LIST: 9, TEXT: 3}),
        ("opensearch", 700 - 34 - 2, {TEXT: 107, AGAIN: 34, CONTROL: 17, OTHER: 2}),
        ("metabase", 14 - 7, {AGAIN: 7}),
        ("dbt", 35 - 16, {AGAIN: 16}),
        ("lightdash", 5, {}),
        ("looker", 8, {}),
    ],
)
def test_every_chart_of_a_real_export_is_found_or_named(format: str, charts: int, reasons: dict[str, int]) -> None:
    assert FOUND is not None

    catalogue = read_catalogue(FOUND / format)

    assert (catalogue.format, len(catalogue), catalogue.reasons()) == (format, charts, reasons)
    for row in catalogue.frame.drop("key", "url").to_dicts():
        Chart(**row)
