"""What an importer makes of one chart, before it is cleaned, cut to size and keyed; and what it leaves out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


class CatalogueError(ValueError):
    """An export, table or server cannot be read at all; the message says what is wrong and how to mend it."""


@dataclass(frozen=True, slots=True)
class Document:
    """What one file says, or one page of a server. content: of dicts, lists, strings, numbers and None."""

    path: str
    content: Any


@dataclass(frozen=True, slots=True)
class Skipped:
    """What is not in the catalogue. native_id: "" where it is not known.

    may_hold: a file that may have charts. no_chart: it was read, and is none, or none any more.
    """

    path: str
    native_id: str
    reason: str
    may_hold: bool = False
    no_chart: bool = False


@dataclass(slots=True)
class Draft:
    """A chart as its tool has it. Texts may have markup and templates in them, lists what is blank or there twice.

    variables: the label of each template variable, "" where it has none; None where ``$name`` is no template.
    """

    native_id: str
    path: str
    title: str = ""
    description: str = ""
    chart_type: str = ""
    dimensions: list[str] = field(default_factory=list)
    measures: list[str] = field(default_factory=list)
    source: str = ""
    dashboards: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    url: str = ""
    variables: Mapping[str, str] | None = None


class Reader(Protocol):
    """Reads the documents of one format, one after the other, and then gives the charts."""

    @property
    def format(self) -> str: ...

    def take(self, document: Document) -> bool:
        """Keep what the document says, and return whether it is of this format."""
        ...

    def charts(self) -> Iterable[Draft | Skipped]:
        """Give what was taken, each chart with what other documents say of it."""
        ...
