"""``copilotlab import``: what another tool exports, mirrored into the repository, once or again and again."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence

from copilotlab.charts import CatalogueLike, ChartError, ChartRepository, MirrorResult, RepositoryError
from copilotlab.importers import read_catalogue
from copilotlab.reasons import reason, short
from copilotlab.service.settings import ImportSettings, load_settings
from copilotlab.urls import hide_password

LONGEST_WAIT = 3_600.0  # seconds between two attempts of a watch that fails, unless it is to wait longer anyway
_MOST_REASONS = 20
_MOST_PLACES = 3  # that are named for each reason
_MOST_UNREAD = 5  # files

FAILURES = (ValueError, OSError, RepositoryError)
"""What wrong settings, an unreadable source, a refused catalogue, and a repository that is away raise."""


def run_import(flags: Sequence[str] = (), *, wait: Callable[[float], object] = time.sleep) -> int:
    """Import, by these flags, the environment and a file; return 0, or 2 where nothing could be imported.

    wait: called with the seconds between two looks of ``--watch``, which ends by Ctrl-C alone.
    """
    try:
        settings, _ = load_settings(ImportSettings, flags, program="copilotlab import")
        with ChartRepository(settings.charts) as charts:
            _import(charts, settings, allow_shrink=settings.allow_shrink)
            if settings.watch is not None:
                _watch(charts, settings, settings.watch, wait)
    except FAILURES as error:
        print(f"copilotlab import: {error}", file=sys.stderr)
        return 2
    return 0


def _import(
    charts: ChartRepository, settings: ImportSettings, *, allow_shrink: bool = False, quiet: bool = False
) -> None:
    """Read and mirror once, and print what came of it. quiet: only where something was written."""
    catalogue = read_catalogue(
        settings.path,
        None if settings.format == "auto" else settings.format,
        settings.instance,
        query=settings.query,
        base_url=settings.base_url,
        token=settings.import_token.get_secret_value() if settings.import_token else "",
        user=settings.import_user or "",
        password=settings.import_password.get_secret_value() if settings.import_password else "",
    )
    if settings.skipped is not None:
        settings.skipped.write_text(catalogue.skipped.write_csv(), encoding="utf-8")
    try:
        result = charts.mirror(catalogue, allow_shrink=allow_shrink, dry_run=settings.dry_run, progress=True)
    except ChartError:
        for line in _skipped_lines(catalogue):  # most often it is why
            print(line, file=sys.stderr)
        raise
    has_written = bool(result.added or result.changed or result.deleted) and not settings.dry_run
    if not quiet or has_written:
        print(report(catalogue, result, settings.path, charts.revision, dry_run=settings.dry_run))
        if has_written and not quiet:  # a watch has said so
            print(
                f"  running nodes follow within about {settings.policy.made().adopt_after:g} seconds (adopt_after of "
                "their policy); copilotlab rebuild brings them at once"
            )
        sys.stdout.flush()


def _watch(charts: ChartRepository, settings: ImportSettings, seconds: float, wait: Callable[[float], object]) -> None:
    """Look again and again. What fails is told, and tried again after twice the time, up to an hour.

    A catalogue that shrank is refused then: that it may was said of what was there first, not of whatever may come.
    """
    failures = 0
    while True:
        wait(min(seconds * 2**failures, max(seconds, LONGEST_WAIT)))
        try:
            _import(charts, settings, quiet=not failures)
            failures = 0
        except FAILURES as error:
            failures = min(failures + 1, 32)
            print(f"copilotlab import: {reason(error)}; it is tried again", file=sys.stderr, flush=True)


def report(catalogue: CatalogueLike, result: MirrorResult, path: str, revision: int, *, dry_run: bool = False) -> str:
    """Say what came of a mirror: with titles, with what held deletions back, and with why charts were skipped."""
    counts = ", ".join(f"{count:,} {name}" for name, count in result._asdict().items())
    tried = "dry run, nothing is changed: " if dry_run else ""
    lines = [
        f"{tried}{catalogue.format}:{catalogue.instance} from {hide_password(path)}: {counts}; revision {revision:,}"
    ]
    for kind in ("added", "changed", "deleted") if dry_run else ("deleted",):
        lines += _titles(kind, getattr(result, kind), result.titles[kind])
    if result.held_back:
        lines += [f"  {_number_of(result.held_back, 'deletion')} held back: {_unread(result.unread)}"]
        lines += _titles("kept", result.held_back, result.titles["held_back"])
    return "\n".join([*lines, *_skipped_lines(catalogue)])


def _titles(kind: str, count: int, titles: Sequence[str]) -> list[str]:
    return [f"  {kind}: {_some(list(map(short, titles)), count)}"] if count else []


def _some(names: Sequence[str], count: int) -> str:
    more = f" and {count - len(names):,} more" if count > len(names) else ""
    return f"{', '.join(names)}{more}"


def _number_of(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' if count != 1 else ''}"


def _unread(paths: Sequence[str]) -> str:
    if not paths:
        return "the catalogue is not complete"
    return f"{_number_of(len(paths), 'file')} could not be read: {_some(paths[:_MOST_UNREAD], len(paths))}"


def _skipped_lines(catalogue: CatalogueLike) -> list[str]:
    """Say why charts were skipped, the most frequent reason first, and which ones, the first few of each."""
    skipped = catalogue.skipped
    if not skipped.height:
        return []
    reasons = Counter(skipped["reason"].to_list())
    places: dict[str, list[str]] = {}
    for path, native_id, why in skipped.select("path", "native_id", "reason").iter_rows():
        named = places.setdefault(why, [])
        if len(named) < _MOST_PLACES:
            named.append(f"{path}: {native_id}" if native_id else f"{path}")
    lines = []
    for why, count in reasons.most_common(_MOST_REASONS):
        lines.append(f"  {count:,} skipped: {why}")
        lines += [f"      {place}" for place in places[why]]
        if count > _MOST_PLACES:
            lines.append(f"      and {count - _MOST_PLACES:,} more; --skipped FILE.csv names all")
    if len(reasons) > _MOST_REASONS:
        others = skipped.height - sum(count for _, count in reasons.most_common(_MOST_REASONS))
        lines.append(f"  {others:,} for others; --skipped FILE.csv names all")
    return lines
