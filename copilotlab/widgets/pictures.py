"""Frames and figures of notebooks, for people: tables in words, pictures that bear a dark page."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import altair as alt
import polars as pl

from copilotlab.markup import text

MISSING = "—"
# Told apart without their hue, too: each is clearly lighter than the one before it, and all are readable on white.
INK, BLUE, ORANGE, GREEN = "#212529", "#0b4a8f", "#d9480f", "#37a673"

_CELL = "padding:3px 12px 3px 0;vertical-align:top;white-space:pre-line"


def enable(*, scale: float = 1.5) -> None:
    """Have Altair show pictures as PNG, on a background of their own with room around it, so that a dark page shows all
    of them. scale: pixels to a unit (1.5)."""
    alt.theme.register("copilotlab", enable=True)(_theme)
    alt.renderers.enable("png", scale_factor=scale)


def _theme() -> alt.theme.ThemeConfig:
    return {
        "background": "white",
        "padding": 12,
        "config": {
            "axis": {"labelColor": "#343a40", "titleColor": INK, "titleFontWeight": "normal"},
            "legend": {"labelColor": "#343a40", "titleColor": INK},
            "title": {"color": INK, "subtitleColor": "#495057"},
            "range": {"category": [BLUE, ORANGE, GREEN, INK]},
        },
    }


class Table:
    """A frame as a table for people: no quotes, types or padding, numbers to the right, a dash for what is missing.

    frame: any frame. digits: of numbers with a fraction (2); by a column's name where they differ. Names of columns are
    shown with spaces for underscores.
    """

    def __init__(self, frame: pl.DataFrame, digits: int | Mapping[str, int] = 2) -> None:
        self.frame = frame
        self._digits = digits

    def _words(self, column: str, value: object) -> str:
        if value is None:
            return MISSING
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, float):
            digits = self._digits if isinstance(self._digits, int) else self._digits.get(column, 2)
            return f"{value:,.{digits}f}"
        return f"{value:,}" if isinstance(value, int) and not column.endswith("id") else str(value).strip()

    def _rows(self) -> list[list[str]]:
        return [
            [self._words(column, value) for column, value in zip(self.frame.columns, row, strict=True)]
            for row in self.frame.iter_rows()
        ]

    def _repr_html_(self) -> str:
        sides = ["right" if dtype.is_numeric() else "left" for dtype in self.frame.dtypes]
        head = "".join(
            f"<th scope='col' style='{_CELL};text-align:{side}'>{escape(name.replace('_', ' '))}</th>"
            for name, side in zip(self.frame.columns, sides, strict=True)
        )
        lines = (zip(row, sides, strict=True) for row in self._rows())
        cells = (
            "".join(f"<td style='{_CELL};text-align:{side}'>{text(cell)}</td>" for cell, side in line) for line in lines
        )
        body = "".join(f"<tr>{line}</tr>" for line in cells)
        return f"<table style='border:none'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def __repr__(self) -> str:
        names = [name.replace("_", " ") for name in self.frame.columns]
        return "\n".join(" | ".join(line) for line in [names, *self._rows()])

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": self._repr_html_()}
