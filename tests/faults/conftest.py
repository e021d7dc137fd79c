"""The table of all faults, made by a run: `make faults-table`, or

pytest tests/faults --faults-table docs/faults.md --faults-runs 3
"""

from __future__ import annotations

import os
import platform
import statistics
from pathlib import Path

import pytest

from copilotlab import LocalRedis


def pytest_addoption(parser):
    parser.addoption("--faults-table", type=Path, help="write what the trials measured into this file")
    parser.addoption("--faults-runs", type=int, default=1, help="how often each trial is made (1)")


def pytest_generate_tests(metafunc):
    if "run" in metafunc.fixturenames:
        metafunc.parametrize("run", range(metafunc.config.getoption("faults_runs", 1)))


@pytest.fixture(scope="session")
def faults_table(request, notes):
    """What trials append their rows to."""
    rows = []
    yield rows
    path = request.config.getoption("faults_table", None)
    if path is not None:
        path.write_text(_document(rows, notes))


@pytest.fixture(scope="session")
def notes():
    """What else was measured, each in a sentence."""
    return []


def _document(rows, notes) -> str:
    runs = {}
    for row in rows:
        runs.setdefault((row.fault, row.where), []).append(row)
    with LocalRedis() as server:
        machine = f"{server.kind} {server.version}, {os.cpu_count()} cores, {platform.system()}, shared with others"
    times = max((len(made) for made in runs.values()), default=0)
    lines = [
        "# Faults",
        "",
        "Made by `make faults-table`, never by hand. A cluster on a real server agrees, then a fault begins; every "
        "node that can saves new charts and deletes old ones; the fault ends, each node edits once more, and all have "
        "to agree, bit for bit. A row is written only if that came true, if the number of embeddings is as expected, "
        "if no chart went back to an older revision or came back from deletion, and if every node that ran answered "
        "searches during the fault.",
        "",
        f"{times} runs of each, on {machine}. *Agreed after*: from the last edit, which follows at once on the "
        "end of the fault; median. "
        "*Embeddings*: expected, and made; a range where a chunk may be made twice, since its maker died or was away "
        "for longer than its lease, or the server forgot who is at work. To double: all may be, where the machine was "
        "so slow that a node was silent for as long as others wait for it. "
        "*Search*: milliseconds of one answer, the median and the slowest of all runs. "
        "*Moved*: between all nodes and the server, heartbeats included. *Where*: nodes as threads of one process, in "
        "a process each, or in a process each in a network namespace of its own, with PostgreSQL and the server in "
        "another; there its traffic is in *moved*, too.",
        "",
        "| fault | what happens | where | agreed after | embeddings: expected | made | search | slowest | moved |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for (fault, where), made in runs.items():
        expected = [number for row in made for number in row.expected]
        lines.append(
            f"| {fault} | {made[0].what} | {where} "
            f"| {statistics.median(row.seconds for row in made):.2f} s "
            f"| {_span(expected)} | {_span([row.made for row in made])} "
            f"| {1000 * statistics.median(row.median_search for row in made):.1f} ms "
            f"| {1000 * max(row.slowest_search for row in made):.0f} ms "
            f"| {statistics.median(row.bytes_moved for row in made) / 1e6:.2f} MB |"
        )
    lines += ["", "Measured by the same run:", "", *(f"* {note}" for note in notes)] if notes else []
    return "\n".join(lines) + "\n"


def _span(numbers) -> str:
    least, most = min(numbers), max(numbers)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"
