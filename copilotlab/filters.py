"""Filters: which of a chart's own words a search may ask for, exactly, and what makes no sense to ask."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from copilotlab.charts import Chart
from copilotlab.reasons import short
from copilotlab.store import Facet

FIELDS = ("source", "chart_type", "tags", "dimensions", "measures", "instance")
MOST_VALUES = 1_000  # of one field

Where = Mapping[str, str | Collection[str]]
"""Field -> the value that a chart has to have there, or several, of which it has to have one."""


def facets_of(chart: Chart) -> tuple[Facet, ...]:
    """Return all that a chart can be filtered by. Its instance is the second part of its key."""
    single = {
        "source": chart.source,
        "chart_type": chart.chart_type,
        "instance": chart.key.split(":", 2)[1] if chart.key else "",
    }
    listed = {"tags": chart.tags, "dimensions": chart.dimensions, "measures": chart.measures}
    return (
        *((field, value) for field, value in single.items() if value),
        *((field, value) for field, values in listed.items() for value in values),
    )


def checked(where: Where) -> dict[str, tuple[str, ...]]:
    """Return a filter as field -> values. Raises TypeError or ValueError, which name what is known and expected."""
    if not isinstance(where, Mapping):
        raise TypeError(f'where={short(where)}: expected a mapping, as in {{"source": "Sales", "tags": ["finance"]}}')
    found: dict[str, tuple[str, ...]] = {}
    for field, given in where.items():
        if field not in FIELDS:
            raise ValueError(f"where has {short(field)}: expected one of {', '.join(FIELDS)}")
        one = isinstance(given, str | bytes | Mapping) or not isinstance(given, Collection)
        values: tuple[object, ...] = (given,) if one else tuple(given)
        if len(values) > MOST_VALUES:
            raise ValueError(f"where has {len(values):,} values of {field}: expected at most {MOST_VALUES:,}")
        texts = tuple(value for value in values if isinstance(value, str))
        if len(texts) < len(values):
            raise TypeError(
                f"where has {field}={short(given)}: expected a text, or a list of texts of which a chart has one"
            )
        found[field] = texts
    return found
