"""A chart, as far as words describe it, and the checks at the door."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from copilotlab.markup import facts_table, is_web_url
from copilotlab.reasons import short

MAX_CHART_ID = 2**63 - 1
MAX_TITLE = 500
MAX_DESCRIPTION = 10_000
MAX_WORD = 200
MAX_WORDS = 64
MAX_KEY = 500
MAX_URL = 2_000
HASH_BYTES = 16

LISTS = ("dimensions", "measures", "tags")
LINKS = ("key", "url")  # whence a chart comes, which says nothing of what it shows: no part of its text
# Between the words of a column's name: total_amount, orders.total, rate:5m, totalAmount, HTTPStatus.
_SEAM = re.compile(r"[_:./-]+|(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_EXPECTED_ID = "expected a whole number from 0 to 2**63 - 1"


class ChartError(ValueError):
    """A chart, frame or file is not what it should be; the message says what is wrong and what was expected."""


class ChartNotFound(ChartError, KeyError):
    """There is no chart of that id."""

    def __str__(self) -> str:
        return Exception.__str__(self)  # KeyError would show its quotes


@dataclass(frozen=True, kw_only=True)  # no slots: what is computed of a chart is kept in it
class Chart:
    """A chart, as far as words describe it. Lists are accepted for the tuples.

    chart_id: 0 to 2**63 - 1. title: 1 to 500 characters. description: at most 10,000. chart_type, source, and each of
    dimensions, measures and tags (at most 64 of each, none blank): at most 200 characters.
    key: of a chart that another tool has, "format:instance:native id", as in "superset:prod:12"; its chart_id is then
    `chart_id_of` that. url: what opens the chart there, http or https. Each is "" by default, is no part of `text`, and
    has at most 500 and 2,000 characters. Raises ChartError.
    """

    chart_id: int
    title: str
    description: str = ""
    chart_type: str = ""
    dimensions: tuple[str, ...] = ()
    measures: tuple[str, ...] = ()
    source: str = ""
    tags: tuple[str, ...] = ()
    key: str = ""
    url: str = ""

    if TYPE_CHECKING:  # what it takes is more than what it keeps, which a dataclass cannot say

        def __init__(
            self,
            *,
            chart_id: int | np.integer[Any],
            title: str,
            description: str = "",
            chart_type: str = "",
            dimensions: list[str] | tuple[str, ...] = (),
            measures: list[str] | tuple[str, ...] = (),
            source: str = "",
            tags: list[str] | tuple[str, ...] = (),
            key: str = "",
            url: str = "",
        ) -> None: ...

    def __post_init__(self) -> None:
        object.__setattr__(self, "chart_id", check_chart_id(self.chart_id))
        if not 0 <= self.chart_id <= MAX_CHART_ID:
            raise ChartError(f"chart_id={short(self.chart_id)}: {_EXPECTED_ID}")
        _check_text("title", self.title, MAX_TITLE)
        if not self.title.strip():
            raise ChartError(f"title={self.title!r}: expected 1 to {MAX_TITLE} characters")
        _check_text("description", self.description, MAX_DESCRIPTION)
        _check_text("chart_type", self.chart_type, MAX_WORD)
        _check_text("source", self.source, MAX_WORD)
        for name in LISTS:
            words = getattr(self, name)
            if not isinstance(words, list | tuple):
                raise ChartError(f"{name}={short(words)}: expected a list of strings")
            if len(words) > MAX_WORDS:
                raise ChartError(f"{name} has {len(words)} entries: expected at most {MAX_WORDS}")
            for word in words:
                _check_text(f"an entry of {name}", word, MAX_WORD)
                if not word.strip():
                    raise ChartError(f"an entry of {name} is blank, {word!r}: leave it out")
            object.__setattr__(self, name, tuple(words))
        if self.key != "":
            _check_key(self.key, self.chart_id)
        if self.url != "":
            _check_text("url", self.url, MAX_URL)
            if not is_web_url(self.url):
                raise ChartError(f"url={short(self.url)}: expected one such as https://bi.example.org/chart/7, or none")

    @cached_property
    def text(self) -> str:
        """The words that are embedded, those that tell most first; in composed Unicode (NFC), however it was typed.

        Title, tags (among them the dashboards that hold it), measures, dimensions, description. Columns are in words:
        "orders.total_amount" is "orders total amount". chart_type and source are no part of it: as tools write them,
        they draw all charts of one kind together. The description comes last: it may be long, and models read only the
        beginning of a text.
        """
        return _joined(
            self.title, ", ".join(self.tags), _columns(self.measures), _columns(self.dimensions), self.description
        )

    @cached_property
    def content_hash(self) -> bytes:
        """16 bytes that change whenever the chart's words do, those too that are no part of `text` (BLAKE2b)."""
        return hash_of(words_of(**{name: getattr(self, name) for name in _WORDS}))

    def _repr_html_(self) -> str:
        return facts_table({field.name: _words(getattr(self, field.name)) for field in fields(self)})


_WORDS = tuple(field.name for field in fields(Chart) if field.name not in ("chart_id", *LINKS))


def chart_id_of(key: str) -> int:
    """Return the chart_id of a chart with this key: the first 63 bits of its BLAKE2b hash, so the same everywhere."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1


def words_of(
    *,
    title: str,
    description: str,
    chart_type: str,
    dimensions: Sequence[str],
    measures: Sequence[str],
    source: str,
    tags: Sequence[str],
) -> str:
    """Return all words of a chart as one text, of which its content hash is made.

    Repositories keep these hashes, so this stays as it is, however `Chart.text` comes to be made.
    """
    return _joined(title, ", ".join(measures), ", ".join(dimensions), ", ".join(tags), chart_type, source, description)


def hash_of(words: str) -> bytes:
    """Return the content hash of a chart that has these words."""
    return hashlib.blake2b(words.encode(), digest_size=HASH_BYTES).digest()


def _joined(*parts: str) -> str:
    return unicodedata.normalize("NFC", ". ".join(part.strip().rstrip(".") for part in parts if part.strip()))


def _columns(names: Sequence[str]) -> str:
    """Write names of columns as words, each once, whatever its letters' case."""
    told: dict[str, str] = {}
    for name in names:
        words = " ".join(_SEAM.sub(" ", name).split())
        told.setdefault(words.casefold(), words)
    return ", ".join(filter(None, told.values()))


def check_chart(chart: object) -> None:
    if not isinstance(chart, Chart):
        raise ChartError(f"expected a Chart, as in Chart(chart_id=7, title='Revenue by region'), not {short(chart)}")


def check_chart_id(chart_id: object) -> int:
    """Return ``chart_id``, an integer of Python or numpy, as an int; ChartError for anything else."""
    if isinstance(chart_id, bool) or not isinstance(chart_id, int | np.integer):
        raise ChartError(f"chart_id={short(chart_id)}: {_EXPECTED_ID}")
    return int(chart_id)


def _check_key(key: str, chart_id: int) -> None:
    _check_text("key", key, MAX_KEY)
    parts = key.split(":", 2)
    if len(parts) < 3 or not all(map(str.strip, parts)):
        raise ChartError(f"key={short(key)}: expected format:instance:native id, as in superset:prod:12, or none")
    if chart_id != chart_id_of(key):
        raise ChartError(
            f"chart_id={chart_id}: the chart with the key {short(key)} has the id {chart_id_of(key)}, which is "
            "chart_id_of(key); give it that, or leave the key out"
        )


def _check_text(name: str, value: object, most: int) -> None:
    if not isinstance(value, str):
        raise ChartError(f"{name}={short(value)}: expected a string")
    if len(value) > most:
        raise ChartError(f"{name} has {len(value):,} characters: expected at most {most:,}")
    if not value.isprintable() and any(c == "\x00" or "\ud800" <= c <= "\udfff" for c in value):
        raise ChartError(
            f"{name}={short(value)}: has a null character or half a surrogate pair, which no database keeps"
        )


def plain(value: object) -> object:
    """Return a value of a chart as a frame holds it: a list in place of a tuple."""
    return list(value) if isinstance(value, tuple) else value


def _words(value: object) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)
