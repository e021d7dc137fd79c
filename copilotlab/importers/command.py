"""``copilotlab import``: what another tool exports, mirrored into the repository, once or again and again."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from copilotlab.charts import CatalogueLike, ChartRepository, MirrorResult, RepositoryError
from copilotlab.reasons import reason
from copilotlab.urls import hide_password

LONGEST_WAIT = 3_600.0  # seconds between two attempts of a watch that fails, unless it is to wait longer anyway
_MOST_REASONS = 20

FAILURES = (ValueError, OSError, RepositoryError)
"""What a source that cannot be read, a catalogue that is refused, and a repository that is away raise."""


def run_import(arguments: Sequence[str], *, wait: Callable[[float], object] = time.sleep) -> int:
    """Run the command with these flags; return its exit code: 0, or 2 where nothing could be imported.

    wait: called with the seconds between two looks of ``--watch``, which ends by Ctrl-C alone.
    """
    options = _parser().parse_args(arguments)
    try:
        with ChartRepository(options.charts) as charts:
            _import(charts, options)
            if options.watch is not None:
                _watch(charts, options, wait)
    except FAILURES as error:
        print(f"copilotlab import: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="copilotlab import",
        description="Make the charts of one instance of a BI tool what its export says; nodes follow by themselves.",
        epilog="A live server is asked with COPILOTLAB_IMPORT_TOKEN, or _USER and _PASSWORD, from the environment.",
    )
    parser.add_argument(
        "format", metavar="FORMAT", help="such as superset, metabase or grafana; auto finds it by looking"
    )
    parser.add_argument("path", metavar="PATH", help="of the export: a file, a folder or a ZIP; or a URL")
    parser.add_argument("--instance", default="prod", metavar="NAME", help="which installation of the tool (prod)")
    parser.add_argument("--charts", required=True, metavar="URL", help="of the repository, as in sqlite:///charts.db")
    parser.add_argument("--base-url", metavar="URL", help="where the tool is served, for links that the export lacks")
    parser.add_argument("--query", metavar="SQL", help="what gives the charts, where PATH is the URL of a database")
    first = "; with --watch, the first time"
    parser.add_argument("--allow-shrink", action="store_true", help=f"also where it is empty or half as large{first}")
    parser.add_argument("--watch", type=_seconds, metavar="SECONDS", help="read it again each so many seconds")
    return parser


def _seconds(given: str) -> float:
    seconds = float(given)
    if not 1 <= seconds <= 30 * 86_400:
        raise argparse.ArgumentTypeError(f"{given}: expected seconds, 1 to 2,592,000")
    return seconds


def _import(charts: ChartRepository, options: argparse.Namespace, *, quiet: bool = False) -> None:
    """Read and mirror once, and print what came of it. quiet: only where something was written."""
    catalogue = _read(options)
    result = charts.mirror(catalogue, allow_shrink=options.allow_shrink, progress=True)
    if not quiet or result.added or result.changed or result.deleted:
        print(report(catalogue, result, options.path, charts.revision), flush=True)


def _read(options: argparse.Namespace) -> CatalogueLike:
    from copilotlab.importers import read_catalogue

    more: dict[str, Any] = {"base_url": options.base_url, "query": options.query}
    more |= {name: os.environ.get(f"COPILOTLAB_IMPORT_{name.upper()}") for name in ("token", "user", "password")}
    format_ = None if options.format == "auto" else options.format
    given = {name: value for name, value in more.items() if value is not None}
    return read_catalogue(options.path, format_, options.instance, **given)


def _watch(charts: ChartRepository, options: argparse.Namespace, wait: Callable[[float], object]) -> None:
    """Look again and again. What fails is told, and tried again after twice the time, up to an hour."""
    options.allow_shrink = False  # was said of what is there now, not of whatever may come
    failures = 0
    while True:
        wait(min(options.watch * 2**failures, max(options.watch, LONGEST_WAIT)))
        try:
            _import(charts, options, quiet=not failures)
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
