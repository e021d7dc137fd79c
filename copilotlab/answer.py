"""What a search gives: a frame that says out of how many charts it was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl

from copilotlab.markup import text
from copilotlab.protocol.follower import Completeness

FOUND: dict[str, type[pl.DataType] | pl.DataType] = {
    "rank": pl.UInt32,
    "chart_id": pl.Int64,
    "score": pl.Float32,
    "title": pl.String,
    "chart_type": pl.String,
    "source": pl.String,
    "dimensions": pl.List(pl.String),
    "measures": pl.List(pl.String),
    "tags": pl.List(pl.String),
    "description": pl.String,
    "key": pl.String,
    "url": pl.String,
}

COPIES: dict[str, type[pl.DataType] | pl.DataType] = {"copies": pl.UInt32}
"""What a search that collapses near-copies tells besides."""
WHY: dict[str, type[pl.DataType] | pl.DataType] = {
    "why": pl.Struct({"matched": pl.List(pl.String), "meaning": pl.Float32, "words": pl.Float32})
}
"""What a search by words tells besides: the words of a chart that were asked for, and the parts of its score."""


class NodeIncomplete(RuntimeError):
    """A search that requires all charts met a node that lacks some. ``completeness``: how much is there, and why."""

    def __init__(self, message: str, completeness: Completeness) -> None:
        super().__init__(message)
        self.completeness = completeness


class Findings(NamedTuple):
    """What a search found, before it is a frame.

    columns: name -> values, best first, as `Node.search` says; completeness: how much the node held when it was asked.
    """

    columns: Mapping[str, Sequence[object]]
    completeness: Completeness

    def rows(self) -> list[dict[str, object]]:
        """Return a dict for each chart found."""
        return [dict(zip(self.columns, row, strict=True)) for row in zip(*self.columns.values(), strict=True)]


class Answer(pl.DataFrame):
    """The frame of a search, which says below its rows where it may lack charts.

    completeness: how much of the repository the node held when it was asked; None for a frame that was made of an
    answer, as by ``filter``: that is a frame like any other.
    """

    completeness: Completeness | None = None

    @property
    def complete(self) -> bool | None:
        """Whether the node held all that the repository held at its last look; None where `completeness` is."""
        return None if self.completeness is None else self.completeness.complete

    def __repr__(self) -> str:
        return f"{super().__repr__()}{self._note()}"

    def __str__(self) -> str:
        return f"{super().__str__()}{self._note()}"

    def _note(self) -> str:
        return f"\nincomplete, from {self.completeness}" if self.complete is False else ""

    def _repr_html_(self, **options: Any) -> str:
        shown: str = super()._repr_html_(**options)
        if self.completeness is None:
            return shown
        said = "from" if self.complete else "<b>incomplete</b>, from"
        return f"{shown}<div role='note'>{said} {text(self.completeness)}</div>"
