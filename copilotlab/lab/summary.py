"""A lab at a glance, as a static page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from copilotlab.lab.agreement import agree
from copilotlab.markup import DOUBTFUL, GOOD, card, rows_table
from copilotlab.monitoring.agreement import Agreement, short

if TYPE_CHECKING:
    from copilotlab.lab.lab import Lab


def summary_html(lab: Lab) -> str:
    """Draw the lab as static HTML, without scripts: verdict, server, catalogue, policy, and a table of the nodes."""
    statuses = [node.status() for node in lab.nodes]
    agreement = Agreement.of(statuses)
    agreed = agreement.complete and agree(lab.living, lab.charts)
    said = agreement if agreed or not agreement.complete else f"{len(lab.living)} nodes differ from the repository"
    facts = {
        "Server": f"{lab.redis.kind} {lab.redis.version}, {lab.redis.state}",
        "Model": lab.embedder.name,
        "Repository": f"{len(lab.charts):,} charts, revision {lab.charts.revision:,}",
        "Policy": repr(lab.policy),
    }
    columns = ("Node", "State", "Charts", "Digest", "Redis", "Line", "Lease", "Lag", "Batch")
    rows = [_row(lab, index, status, agreement) for index, status in enumerate(statuses)]
    closed = " (closed)" if lab.closed else ""
    table = (
        f"<details{' open' if len(statuses) <= 8 else ''}><summary>{len(statuses)} nodes</summary>"
        f"{rows_table(columns, rows)}</details>"
    )
    return card(f"Lab{closed}: {said}", facts, colour=GOOD if agreed else DOUBTFUL, more=table)


def _row(lab: Lab, index: int, status: Mapping[str, object], agreement: Agreement) -> list[object]:
    return [
        status["node"],
        status["state"],
        f"{status['charts']:,}",
        f"{agreement.letter(status['digest'])} {short(status['digest'])}".strip(),
        status["redis"],
        lab.proxies[index].state,
        status["lease"] or "—",
        status["lag"],
        status["batch"] or "—",
    ]
