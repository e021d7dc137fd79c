"""``copilotlab import``: what another tool exports, mirrored into the repository, once or again and again."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence

from copilotlab.charts import CatalogueLike, ChartRepository, MirrorResult, RepositoryError
from copilotlab.importers import read_catalogue
from copilotlab.reasons import reason
from copilotlab.service.settings import ImportSettings, load_settings
from copilotlab.urls import hide_password

LONGEST_WAIT = 3_600.0  # seconds between two attempts of a watch that fails, unless it is to wait longer anyway
_MOST_REASONS = 20

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
    result = charts.mirror(catalogue, allow_shrink=allow_shrink, progress=True)
    if not quiet or result.added or result.changed or result.deleted:
        print(report(catalogue, result, settings.path, charts.revision), flush=True)


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


def report(catalogue: CatalogueLike, result: MirrorResult, path: str, revision: int) -> str:
    """Say what came of a mirror, and why charts were skipped, the most frequent reason first."""
    counts = ", ".join(f"{count:,} {name}" for name, count in result._asdict().items())
    lines = [f"{catalogue.format}:{catalogue.instance} from {hide_password(path)}: {counts}; revision {revision:,}"]
    reasons = Counter(catalogue.skipped["reason"].to_list() if catalogue.skipped.height else [])
    lines += [f"  {count:,} skipped: {why}" for why, count in reasons.most_common(_MOST_REASONS)]
    if len(reasons) > _MOST_REASONS:
        lines.append(f"  {sum(reasons.values()) - sum(n for _, n in reasons.most_common(_MOST_REASONS)):,} for others")
    return "\n".join(lines)
