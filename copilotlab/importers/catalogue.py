"""The charts of one installation of a tool, as a frame, and what is not among them with the reason."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from copilotlab.charts.chart import MAX_DESCRIPTION, MAX_TITLE, MAX_URL, MAX_WORD, MAX_WORDS, chart_id_of
from copilotlab.importers.draft import CatalogueError, Draft, Skipped
from copilotlab.importers.words import description_of, listed, one_line, title_of
from copilotlab.markup import facts_table, is_web_url, rows_table
from copilotlab.reasons import short

if TYPE_CHECKING:
    import polars as pl

MAX_NATIVE_ID = 200
_INSTANCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MOST_SHOWN = 8  # reasons

SAME_ID = "its id stands in the catalogue already"
SAME_ID_OTHER_TITLE = "its id stands in the catalogue already, with another title: is this another instance?"
NO_ID = "it has no id"
LONG_ID = f"its id has more than {MAX_NATIVE_ID} characters, or some that no database keeps"
NO_TITLE = "it has no title, and neither a dashboard nor columns to make one of"


@dataclass(frozen=True)
class Catalogue:
    """The charts of one installation of a tool, as `read_catalogue` found them.

    frame: a polars frame with the columns of `Chart`, `key` (``format:instance:native id``) and `url` ("" where there
    is none, null where it is not known for lack of a base_url). skipped: a frame of path, native_id, reason; no_chart:
    True where it was read and is no chart, or none any more, False where it could not be read; and may_hold: True where
    charts may be in it. format: such as "superset". instance: such as "prod".
    complete: False where a file or dashboard could not be read at all, so that what is not here may be there still.
    """

    frame: pl.DataFrame
    skipped: pl.DataFrame
    format: str
    instance: str = "prod"
    complete: bool = True

    def __len__(self) -> int:
        return self.frame.height

    def reasons(self) -> dict[str, int]:
        """Return how many were skipped for each reason, the most frequent first."""
        return dict(Counter(self.skipped["reason"].to_list()).most_common())

    def __repr__(self) -> str:
        reasons = self.reasons()
        why = "; ".join(f"{count:,} {reason}" for reason, count in list(reasons.items())[:_MOST_SHOWN])
        more = f"; {len(reasons) - _MOST_SHOWN} more reasons" if len(reasons) > _MOST_SHOWN else ""
        skipped = f"{self.skipped.height:,} skipped{f' ({why}{more})' if why else ''}"
        parts = "" if self.complete else ", not complete"
        return f"Catalogue({self.format}:{self.instance}, {len(self):,} charts, {skipped}{parts})"

    def _repr_html_(self) -> str:
        facts = {"instance": self.instance, "charts": f"{len(self):,}", "skipped": f"{self.skipped.height:,}"}
        if not self.complete:
            facts["complete"] = "no: see skipped for what could not be read at all"
        reasons = self.reasons()
        shown = [(f"{count:,}", reason) for reason, count in list(reasons.items())[:_MOST_SHOWN]]
        if len(reasons) > _MOST_SHOWN:
            shown.append((f"{sum(list(reasons.values())[_MOST_SHOWN:]):,}", "for other reasons: see skipped"))
        return facts_table(facts, caption=f"Catalogue of {self.format}") + (
            rows_table(("skipped", "because"), shown) if shown else ""
        )


def check_instance(instance: str) -> None:
    """Raise CatalogueError unless ``instance`` can be part of a key."""
    if not isinstance(instance, str) or not _INSTANCE.fullmatch(instance):
        raise CatalogueError(
            f"instance={short(instance)}: expected 1 to 64 letters, digits, '.', '_' or '-', as in 'prod'; it is part "
            "of each chart's key"
        )


def catalogue_of(
    found: Iterable[Draft | Skipped], format: str, instance: str, *, knows_links: bool = True
) -> Catalogue:
    """Make a catalogue of drafts: each cleaned, cut to what a `Chart` takes, with its key. Bad ones are skipped.

    knows_links: whether a draft without a link has none; else a base_url was lacking, and the link is null.
    """
    import polars as pl

    rows: dict[str, dict[str, Any]] = {}
    skipped: list[Skipped] = []
    for draft in found:
        if isinstance(draft, Skipped):
            skipped.append(draft)
            continue
        row = _row(draft, f"{format}:{instance}:{draft.native_id}")
        if isinstance(row, dict) and not draft.url and not knows_links:
            row["url"] = None
        if isinstance(row, str):
            skipped.append(Skipped(draft.path, draft.native_id, row, no_chart=row == NO_TITLE))
        elif (first := rows.setdefault(row["key"], row)) is not row:
            reason = SAME_ID if first["title"] == row["title"] else SAME_ID_OTHER_TITLE
            skipped.append(Skipped(draft.path, draft.native_id, reason))
            first["tags"] = listed([*first["tags"], *row["tags"]], MAX_WORDS, MAX_WORD)
    columns: dict[str, Any] = {
        "chart_id": pl.Int64,
        **dict.fromkeys(("title", "description", "chart_type"), pl.String),
        **dict.fromkeys(("dimensions", "measures"), pl.List(pl.String)),
        "source": pl.String,
        "tags": pl.List(pl.String),
        **dict.fromkeys(("key", "url"), pl.String),
    }
    return Catalogue(
        frame=pl.DataFrame(list(rows.values()), schema=columns, orient="row"),
        skipped=pl.DataFrame(
            {
                "path": [one_line(each.path, 500) for each in skipped],
                "native_id": [one_line(each.native_id, MAX_NATIVE_ID) for each in skipped],
                "reason": [one_line(each.reason, 500) for each in skipped],
                "no_chart": [each.no_chart for each in skipped],
                "may_hold": [each.may_hold for each in skipped],
            },
            schema={
                **dict.fromkeys(("path", "native_id", "reason"), pl.String),
                **dict.fromkeys(("no_chart", "may_hold"), pl.Boolean),
            },
        ),
        format=format,
        instance=instance,
        complete=not any(each.may_hold for each in skipped),
    )


def _row(draft: Draft, key: str) -> dict[str, Any] | str:
    """Return the row of a draft, or why there is none."""
    if not draft.native_id.strip():
        return NO_ID
    if one_line(draft.native_id, MAX_NATIVE_ID) != draft.native_id:
        return LONG_ID
    dimensions = listed(draft.dimensions, MAX_WORDS, MAX_WORD)
    measures = listed(draft.measures, MAX_WORDS, MAX_WORD)
    dashboards = [title_of(title, MAX_WORD, draft.variables) for title in draft.dashboards]
    chart_type = one_line(draft.chart_type, MAX_WORD)
    title = title_of(draft.title, MAX_TITLE, draft.variables) or _made_title(
        dashboards, dimensions, measures, chart_type
    )
    if not title:
        return NO_TITLE
    return {
        "chart_id": chart_id_of(key),
        "title": title,
        "description": description_of(draft.description, MAX_DESCRIPTION, draft.variables),
        "chart_type": chart_type,
        "dimensions": dimensions,
        "measures": measures,
        "source": title_of(draft.source, MAX_WORD, draft.variables),
        "tags": listed([*dashboards, *draft.tags], MAX_WORDS, MAX_WORD),
        "key": key,
        "url": link_of(draft.url),
    }


def _made_title(dashboards: list[str], dimensions: list[str], measures: list[str], chart_type: str) -> str:
    """Say what a chart without title is: "Sales: revenue by region (bar)"; "" where there is too little to say."""
    dashboard = next(filter(None, dashboards), "")
    columns = " by ".join(", ".join(names[:3]) for names in (measures, dimensions) if names)
    what = ": ".join(filter(None, (dashboard, columns)))
    return one_line(f"{what} ({chart_type})" if chart_type else what, MAX_TITLE) if what else ""


def link_of(url: str) -> str:
    """Return a link that is safe to show: to a host, by http or https. "" for anything else."""
    url = url.strip()
    if len(url) > MAX_URL or not is_web_url(url) or any(c in url for c in "\"'<>\\`"):
        return ""
    return url if urlsplit(url).password is None else ""
