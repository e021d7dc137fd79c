"""What an import costs, a format a row: seconds to read an export and to mirror it, and the peak of memory meanwhile.

In brackets the seconds of the processor, which others who use the machine make no longer. Memory is what is added to an
interpreter that has imported the package. Each format is measured in a process of its own, on an export that the script
makes. With ``--real FOLDER``, what is found in real exports instead: a folder for each format, as in shared/data/bi.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl

from copilotlab import ChartRepository, read_catalogue

FORMATS = ("table", "opensearch", "grafana", "metabase", "superset")
REGIONS = ("north", "south", "east", "west", "overseas")
IN_A_DASHBOARD = 20
MEGABYTE = 2**20


def words(number: int) -> dict[str, Any]:
    """What a chart says: some 30 words, as the shipped ones have."""
    region = REGIONS[number % len(REGIONS)]
    return {
        "title": f"Revenue by product in the {region}, line {number}",
        "description": f"Net of returns, for the {region}; asked for by team {number % 97} in the plan of spring",
    }


def table(folder: Path, count: int) -> Path:
    rows = [{"id": n, **words(n), "type": "bar", "measures": '["Revenue"]'} for n in range(count)]
    pl.DataFrame(rows).write_csv(folder / "charts.csv")
    return folder / "charts.csv"


def opensearch(folder: Path, count: int) -> Path:
    state = {"type": "pie", "aggs": [{"schema": "metric", "type": "sum", "params": {"field": "revenue"}}]}
    with (folder / "export.ndjson").open("w") as file:
        for n in range(count):
            attributes = {**words(n), "visState": json.dumps(state)}
            each = {"id": f"vis-{n}", "type": "visualization", "attributes": attributes, "references": []}
            file.write(json.dumps(each) + "\n")
    return folder / "export.ndjson"


def grafana(folder: Path, count: int) -> Path:
    target = {"expr": "sum by (product) (rate(revenue_total[5m]))"}
    for start in range(0, count, IN_A_DASHBOARD):
        panels = [
            {"id": n, "type": "timeseries", **words(n), "datasource": {"type": "prometheus"}, "targets": [target]}
            for n in range(start, min(start + IN_A_DASHBOARD, count))
        ]
        dashboard = {"uid": f"d{start}", "title": f"Dashboard {start}", "schemaVersion": 39, "panels": panels}
        (folder / f"{start}.json").write_text(json.dumps(dashboard))
    return folder


def metabase(folder: Path, count: int) -> Path:
    cards = [
        {"id": n, "name": w["title"], "description": w["description"], "display": "bar", "dataset_query": {},
         "result_metadata": [{"display_name": "Region"}, {"display_name": "Revenue"}]}
        for n in range(count) for w in [words(n)]
    ]  # fmt: skip
    (folder / "cards.json").write_text(json.dumps(cards))
    return folder


def superset(folder: Path, count: int) -> Path:
    for n in range(count):
        w = words(n)
        (folder / f"{n}.yaml").write_text(
            f"slice_name: {w['title']}\ndescription: {w['description']}\nviz_type: pie\n"
            f"params:\n  metric: revenue\n  groupby: [product]\nuuid: {n:08d}-0000-4000-8000-000000000000\n"
        )
    return folder


MAKERS = {maker.__name__: maker for maker in (table, opensearch, grafana, metabase, superset)}


def peak() -> float:
    """The most memory that this process has had resident, in MB; not its parent's, which getrusage counts in."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024


def measure(path: Path, charts: str) -> Iterator[tuple[str, str]]:
    """Read, mirror, and mirror again; give what each took."""
    before = peak()
    with ChartRepository(charts) as repository:
        catalogue, took = timed(lambda: read_catalogue(path))
        yield "charts", f"{len(catalogue):,}"
        yield "read", took
        yield "MB by then", f"{peak() - before:,.0f}"
        yield "mirror", timed(lambda: repository.mirror(catalogue))[1]
        yield "MB in all", f"{peak() - before:,.0f}"
        yield "mirror again", timed(lambda: repository.mirror(catalogue))[1]


def timed(step: Callable[[], Any]) -> tuple[Any, str]:
    """Return what a step gives, and how long it took: "12.3 s (10.1)"."""
    began, worked = time.perf_counter(), time.process_time()
    result = step()
    return result, f"{time.perf_counter() - began:.1f} s ({time.process_time() - worked:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--charts", type=int, default=100_000)
    parser.add_argument("--formats", nargs="+", default=FORMATS, choices=FORMATS)
    parser.add_argument(
        "--database", help="SQLAlchemy URL of an empty database, such as PostgreSQL's (a file of SQLite)"
    )
    parser.add_argument("--real", type=Path, help="a folder of real exports: what is found in them")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)  # what the processes are told
    chosen = parser.parse_args()
    if chosen.measure:
        print(json.dumps(dict(measure(Path(chosen.measure[0]), chosen.measure[1]))))
        return
    if chosen.real:
        print("| format | charts | left out, and why |\n|---|---|---|")
        for folder in sorted(chosen.real.iterdir()):
            if folder.name != "questions" and folder.is_dir():
                catalogue = read_catalogue(folder)
                why = "; ".join(f"{count} {reason}" for reason, count in catalogue.reasons().items())
                print(f"| {catalogue.format} | {len(catalogue):,} | {why or 'nothing'} |")
        return
    for name in chosen.formats:
        with TemporaryDirectory() as place:
            folder = Path(place, "export")
            folder.mkdir()
            path = MAKERS[name](folder, chosen.charts)
            size = sum(file.stat().st_size for file in folder.rglob("*")) / MEGABYTE
            database = chosen.database or f"sqlite:///{place}/charts.db"
            command = [sys.executable, __file__, "--measure", str(path), database]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            figures = {"export": f"{size:.0f} MB", **json.loads(done.stdout.splitlines()[-1])}
            print(f"{name:<11}" + "  ".join(f"{label} {value}" for label, value in figures.items()), flush=True)


if __name__ == "__main__":
    main()
