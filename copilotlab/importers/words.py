"""Titles and descriptions as people read them: without markup, templates and queries."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping

_MOST_READ = 40_000  # characters: more than a chart keeps, so that what is taken out may be long
_TAGS = (
    "a|abbr|b|big|blockquote|body|br|center|cite|code|dd|del|div|dl|dt|em|embed|figure|font|footer|h1|h2|h3|h4|h5|h6|"
    "head|header|hr|html|i|iframe|img|input|ins|kbd|label|li|link|main|mark|meta|nav|ol|p|pre|q|s|samp|script|section|"
    "small|span|strike|strong|style|sub|sup|svg|table|tbody|td|tfoot|th|thead|title|tr|tt|u|ul|var|video"
)
_ATTRIBUTE = r"""\s+[a-zA-Z:_-]{1,40}\s?=\s?(?:"[^"<>]{0,2000}"|'[^'<>]{0,2000}'|[^\s<>"']{1,2000})"""
_TAG = re.compile(rf"</?(?:{_TAGS})(?:{_ATTRIBUTE}){{0,30}}\s?/?>", re.IGNORECASE)
_UNSEEN = re.compile(r"<(script|style)\b[^<>]{0,500}>.*?(?:</\1\s?>|\Z)|<!--.*?(?:-->|\Z)", re.IGNORECASE | re.DOTALL)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z]{2,31});")
_FENCE = re.compile(r"(```|~~~).*?(?:\1|\Z)", re.DOTALL)
_LINK = re.compile(r"!?\[([^][]{0,500})\]\((?:[^()\s]|\([^()\s]{0,200}\)){1,2000}(?:\s[^()]{0,500})?\)")
_HEADING = re.compile(r"^[ ]{0,3}#{1,6}[ ]+", re.MULTILINE)
_EMPHASIS = re.compile(r"(?<!\w)(\*\*|__)(?=\S)([^*_\n]{1,500}?)(?<=\S)\1(?!\w)")
_QUERY = re.compile(  # not so "Select a region from the list"
    r"""\s*(?:with\s+[\w"`]+(?:\s*\([^()]*\))?\s+as\s*\(|select\s+(?:distinct\s+)?(?:\*|[\w."`]+(?:\s*[,(]|\s+as\s)))"""
    r".*\bfrom\b",
    re.IGNORECASE | re.DOTALL,
)
_STATEMENT = re.compile(r"\{%[^{}]{0,2000}%\}|\{#[^{}]{0,2000}#\}")
_TEMPLATE = re.compile(r"\{\{([^{}]{0,1000})\}\}|\[\[([^][]{1,200})\]\]|\$\{([^{}]{1,200})\}")
_VARIABLE = re.compile(r"\$(\w*[A-Za-z_]\w*)")
_QUOTED = re.compile(r"""["']([^"']{1,100})["']""")
_NAME = re.compile(r"[^\W\d]\w*")
_UNKEPT = re.compile(r"[\x00-\x08\x0e-\x1f\x7f\ud800-\udfff]")
_NOTHING = {"n/a", "n.a.", "na", "none", "null", "nil", "-", "--", "tbd", "todo", "undefined"}


def one_line(value: str, most: int) -> str:
    """Return the words in one line, without what no database keeps; at most so many characters, cut after a word."""
    line = " ".join(_UNKEPT.sub(" ", value[: most * 4]).split())
    if len(line) <= most:
        return line
    return (line[: most - 1].rsplit(" ", 1)[0].rstrip(",;: ") or line[: most - 1]) + "…"


def title_of(value: str, most: int, variables: Mapping[str, str] | None = None) -> str:
    """Return a title in plain words: markup as text, templates as their label or as a word."""
    return one_line(_blank(without_templates(_without_html(value[:_MOST_READ]), variables)), most)


def description_of(value: str, most: int, variables: Mapping[str, str] | None = None) -> str:
    """Return a description in plain words, as `title_of` does, without code and without a query that stands for one."""
    words = _FENCE.sub(" ", value[:_MOST_READ])
    words = _without_html(words)
    words = _EMPHASIS.sub(r"\2", _HEADING.sub("", _LINK.sub(r"\1", words)))
    if _QUERY.match(words):
        return ""
    return one_line(_blank(without_templates(words, variables)), most)


def without_templates(value: str, variables: Mapping[str, str] | None = None) -> str:
    """Replace ``{{ x }}``, ``[[x]]`` and ``${x}`` by a label or a plain word; ``$x`` too where there are variables."""
    labels = variables or {}

    def label(name: str) -> str:
        return labels.get(name) or name.strip("_").replace("_", " ")

    def replaced(found: re.Match[str]) -> str:
        inside = next(part for part in found.groups() if part is not None)
        quoted = _QUOTED.search(inside)
        name = _NAME.search(quoted[1] if quoted else inside)
        return label(name[0]) if name else ""

    words = _TEMPLATE.sub(replaced, _STATEMENT.sub(" ", value))
    return _VARIABLE.sub(lambda found: label(found[1]), words) if variables is not None else words


def listed(values: Iterable[str], most: int, longest: int) -> list[str]:
    """Return what is not blank, each once in one line, at most so many, none longer than that."""
    found: dict[str, None] = {}
    for value in values:
        word = one_line(value, longest)
        if word:
            found.setdefault(word)
        if len(found) == most:
            break
    return list(found)


def _without_html(value: str) -> str:
    """Turn HTML into its text. What has no name of HTML between its brackets stays, as in ``a < b`` and ``<host>``."""
    if "<" in value:
        value = _TAG.sub(" ", _UNSEEN.sub(" ", value))
    return _ENTITY.sub(lambda found: html.unescape(found[0]), value) if "&" in value else value


def _blank(value: str) -> str:
    return "" if value.strip().lower() in _NOTHING else value
