"""What a mirror takes: the catalogue of another tool, as charts with keys, checked before anything is changed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from copilotlab.charts.chart import Chart, ChartError, chart_id_of
from copilotlab.reasons import short

if TYPE_CHECKING:
    import polars as pl

_MOST_NAMED = 10  # rows that are no charts, in the log
_SHOWN_EVERY = 1_000  # charts
_COLUMNS = {field.name for field in fields(Chart)}

logger = logging.getLogger("copilotlab.charts")


class CatalogueLike(Protocol):
    """All charts that an instance of another tool has, as `ChartRepository.mirror` takes them.

    frame: the columns of `Chart` that there are, key and title among them; where url is null, or there is no such
    column, the link is not known, and one that is held stays. skipped: what could not be read: path, native_id ("" or
    null where it is not known) and reason; where it has a column no_chart, True there says that it was read and is no
    chart, or none any more; where it has a column may_hold, True there says that it is why complete is False.
    format, instance: the first two parts of each key.
    complete: False where something could not be read at all, so that a chart which is not here may be there still.
    """

    @property
    def frame(self) -> pl.DataFrame: ...
    @property
    def skipped(self) -> pl.DataFrame: ...
    @property
    def format(self) -> str: ...
    @property
    def instance(self) -> str: ...
    @property
    def complete(self) -> bool: ...


class _Counts(NamedTuple):
    added: int
    changed: int
    unchanged: int
    deleted: int
    skipped: int


class MirrorResult(_Counts):
    """What became of a mirror: how many charts were added, changed, left as they were, deleted, and skipped.

    skipped: what the catalogue names as skipped, and rows of it that are no charts, which the log names.
    Beside the tuple, held_back: how many charts are in the catalogue no more, and were not deleted, since something
    could not be read that may hold them. unread: the paths of that. titles: of the first few charts that were
    "added", "changed", "deleted" and "held_back".
    """

    held_back: int = 0
    unread: tuple[str, ...] = ()
    titles: Mapping[str, tuple[str, ...]] = MappingProxyType({})

    def __repr__(self) -> str:
        if not self.held_back:
            return super().__repr__()
        return f"{super().__repr__()[:-1]}, held_back={self.held_back}, unread={short(list(self.unread))})"


class Mirrored(NamedTuple):
    """A catalogue as charts: each once, by its id.

    prefix: of all their keys. kept: keys of charts that the other tool has and that could not be read now. ended: keys
    of what is no chart any more. complete: whether a chart that is not here is there no more. unread: paths of what
    could not be read and may hold some. unlinked: charts whose link is not known.
    """

    prefix: str
    charts: dict[int, Chart]
    kept: set[str]
    ended: set[str]
    skipped: int
    complete: bool = True
    unread: tuple[str, ...] = ()
    unlinked: frozenset[int] = frozenset()

    def lacks(self, chart_id: int, key: str) -> bool:
        """Return whether a chart that is held is none of the catalogue's, and was not skipped either."""
        return chart_id not in self.charts and key not in self.kept

    def is_over(self, key: str) -> bool:
        """Return whether a chart that is lacking is surely there no more."""
        return self.complete or key in self.ended


def mirrored(catalogue: CatalogueLike, instance: str | None, *, progress: bool) -> Mirrored:
    """Make the charts of a catalogue, under the keys of ``instance``; None: of its own.

    Raises ChartError for a format or instance that cannot stand in a key, for a key of another one, and where two keys
    have one id.
    """
    from tqdm.auto import tqdm

    own = _prefix(catalogue.format, catalogue.instance)
    prefix = own if instance is None else _prefix(catalogue.format, instance)
    charts: dict[int, Chart] = {}
    unlinked: set[int] = set()
    kept = {f"{prefix}{native}" for native in _skipped_ids(catalogue.skipped, no_chart=False)}
    ended = {f"{prefix}{native}" for native in _skipped_ids(catalogue.skipped, no_chart=True)}
    refused = 0
    rows = enumerate(catalogue.frame.iter_rows(named=True), start=1)
    label, total = f"reading {prefix[:-1]}", catalogue.frame.height
    for number, row in tqdm(rows, label, total, miniters=_SHOWN_EVERY, disable=None if progress else True):
        key = row.get("key")
        if not isinstance(key, str) or not key.startswith(own):
            raise ChartError(f"the catalogue, row {number}: key={short(key)}: expected one that begins with {own!r}")
        key = f"{prefix}{key[len(own) :]}"
        try:
            chart = _chart(row, key, charts)
        except ChartError as error:
            refused += 1
            kept.add(key)
            if refused <= _MOST_NAMED:
                more = f". These are {_MOST_NAMED}: others are not named here" if refused == _MOST_NAMED else ""
                logger.warning("the catalogue, row %s, %s, is left out: %s%s", number, short(key), error, more)
            continue
        if (other := charts.get(chart.chart_id)) is not None:
            raise collision(chart, other.key)
        charts[chart.chart_id] = chart
        if row.get("url") is None:
            unlinked.add(chart.chart_id)
    skipped = catalogue.skipped
    return Mirrored(
        prefix, charts, kept, ended, skipped.height + refused, catalogue.complete, _unread(skipped), frozenset(unlinked)
    )


def check_size(catalogue: Mirrored, held: set[str]) -> None:
    """Raise ChartError for a catalogue that came out empty, or with less than half of the charts that are held.

    held: the keys of those of the same instance.
    """
    found, whose = len(catalogue.charts), catalogue.prefix[:-1]
    remedy = (
        "nothing was changed. Is it the whole of it? Only where the others are gone, say allow_shrink=True, or "
        "--allow-shrink; with dry_run=True, or --dry-run, that says which, and changes nothing"
    )
    if not found and not held:
        raise ChartError(
            f"the catalogue of {whose} came out empty, and no charts of it are held: there is nothing to mirror. Is it "
            "the right export?"
        )
    if not found:
        raise ChartError(f"the catalogue of {whose} came out empty, and {len(held):,} of its charts are held: {remedy}")
    if 2 * (found + len(catalogue.kept & held)) < len(held):
        raise ChartError(
            f"the catalogue of {whose} came out with {found:,} charts, less than half of the {len(held):,} that are "
            f"held: {remedy}"
        )


def _prefix(format_: str, instance: str) -> str:
    for name, value in (("format", format_), ("instance", instance)):
        if not isinstance(value, str) or not value.strip() or ":" in value:
            raise ChartError(f"{name}={short(value)}: expected a name without a colon, such as prod")
    return f"{format_}:{instance}:"


def _skipped_ids(skipped: pl.DataFrame, *, no_chart: bool) -> list[str]:
    """Return the ids of what could not be read, or of what is no chart, where they are known."""
    if "native_id" not in skipped.columns:
        return []
    said = skipped["no_chart"].to_list() if "no_chart" in skipped.columns else [False] * skipped.height
    natives = zip(skipped["native_id"].to_list(), said, strict=True)
    return [str(native) for native, is_none in natives if native not in (None, "") and (is_none is True) == no_chart]


def _unread(skipped: pl.DataFrame) -> tuple[str, ...]:
    """Return the paths of what may hold charts that are not in the catalogue, where they are known."""
    if not {"path", "may_hold"}.issubset(skipped.columns):
        return ()
    said = zip(skipped["path"].to_list(), skipped["may_hold"].to_list(), strict=True)
    return tuple(str(path) for path, may_hold in said if may_hold is True)


def _chart(row: dict[str, Any], key: str, others: dict[int, Chart]) -> Chart:
    """Make the chart of one row. Raises ChartError, also where another row has this key."""
    cells = {name: cell for name, cell in row.items() if name in _COLUMNS and cell is not None}
    if "title" not in cells:
        raise ChartError("title=None: the cell is empty")
    chart = Chart(**{**cells, "chart_id": chart_id_of(key), "key": key})
    other = others.get(chart.chart_id)
    if other is not None and other.key == key:
        raise ChartError("another row has this key already; expected each once")
    return chart


def collision(chart: Chart, other: str) -> ChartError:
    """Return the error of two keys that have one id."""
    return ChartError(
        f"chart_id={chart.chart_id}: the key {short(chart.key)} gives the id that the chart with the key "
        f"{short(other)} has: rename one of them in its tool, or give its instance another name"
    )
