"""Text shown in HTML: escaped, and isolated in its own direction of writing. And a card, of which a page is made."""

from __future__ import annotations

import html
from collections.abc import Mapping

GOOD, DOUBTFUL = "#2e8540", "#c05600"  # readable on white and on black
CELL = "style='text-align:left;padding:3px 10px 3px 0'"


def text(value: object) -> str:
    """``value`` as text: markup in it is shown, not obeyed, and right-to-left text does not turn its neighbours."""
    return f"<bdi>{html.escape(str(value))}</bdi>"


def card(heading: str, facts: Mapping[str, object], *, colour: str, more: str = "") -> str:
    """A heading and a table of facts beside a bar of that colour, on any background; ``more`` is HTML below them."""
    rows = "".join(
        f"<tr><th {CELL} scope='row'>{text(name)}</th><td {CELL}>{text(fact)}</td></tr>" for name, fact in facts.items()
    )
    return (
        "<div style='display:flex;gap:12px'>"
        f"<div style='flex:none;width:8px;border-radius:4px;background:{colour}'></div>"
        f"<div><div style='font-size:1.15em;font-weight:600'>{text(heading)}</div>"
        f"<table style='border:none;margin:4px 0'><tbody>{rows}</tbody></table>{more}</div></div>"
    )
