"""Pieces of HTML: text that is escaped and isolated in its own direction of writing, tables, and cards."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

GOOD, DOUBTFUL = "#2e8540", "#c05600"  # readable on white and on black
_CELL = "text-align:left;padding:3px 10px 3px 0"
_HEAD = f"{_CELL};border-bottom:1px solid rgba(128,128,128,.35)"
_TABLE = "<table style='border:none;margin:4px 0'>"


def text(value: object) -> str:
    """Escape ``value``: markup in it is shown, not obeyed, and right-to-left text does not reverse its neighbours."""
    return f"<bdi>{html.escape(str(value))}</bdi>"


def is_web_url(url: str) -> bool:
    """Tell whether a page may link to ``url``: http or https, a host, and no white space or control character."""
    if not url.isprintable() or url.split() != [url]:
        return False
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        return False


def link(words: object, url: str) -> str:
    """Make ``words`` a link that opens in a page of its own; only text where ``url`` is none of http or https."""
    if not is_web_url(url):
        return text(words)
    return f"<a href='{html.escape(url)}' target='_blank' rel='noopener'>{text(words)}</a>"


def facts_table(facts: Mapping[str, object], *, caption: str = "") -> str:
    """Make a table with a name and a fact in each row."""
    rows = "".join(
        f"<tr><th style='{_CELL}' scope='row'>{text(name)}</th><td style='{_CELL}'>{text(fact)}</td></tr>"
        for name, fact in facts.items()
    )
    above = f"<caption>{text(caption)}</caption>" if caption else ""
    return f"{_TABLE}{above}<tbody>{rows}</tbody></table>"


def rows_table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Make a table with a heading for each column."""
    head = "".join(f"<th style='{_HEAD}' scope='col'>{text(name)}</th>" for name in columns)
    cells = ("".join(f"<td style='{_CELL}'>{text(cell)}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f"{_TABLE}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def card(heading: str, facts: Mapping[str, object], *, colour: str, more: str = "") -> str:
    """Make a card: a heading and a table of facts beside a bar of that colour, on any background.

    more: HTML that stands below them.
    """
    return (
        "<div style='display:flex;gap:12px'>"
        f"<div style='flex:none;width:8px;border-radius:4px;background:{colour}'></div>"
        f"<div><div style='font-size:1.15em;font-weight:600'>{text(heading)}</div>"
        f"{facts_table(facts)}{more}</div></div>"
    )
