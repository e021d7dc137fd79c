"""Health: whether a node's process answers, whether it may be asked, and whether all is well, each with reasons.

A pure function of a node's `Vitals` and alerts. A node without Redis stays ready: it answers from its own memory, and
restarting it would make an outage worse.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from copilotlab.monitoring.alerts import Alert
from copilotlab.monitoring.vitals import Vitals


class Health(msgspec.Struct, frozen=True):
    """live: the process answers, for /livez. ready: the node may be asked, for /readyz; not_ready: why it may not.
    well: nothing is wrong, for /healthz; troubles: what is."""

    live: bool
    ready: bool
    not_ready: tuple[str, ...]
    well: bool
    troubles: tuple[str, ...]


def health_of(vitals: Vitals, alerts: Sequence[Alert] = (), *, held_back: str = "") -> Health:
    """Judge how a node is. held_back: why it is not to be asked although it could be; "" if it is.

    It is not ready before its first fill, while it is stopped or was not started, and while it is held back; nothing
    else takes it out of service.
    """
    not_ready = []
    if vitals.state in ("stopped", "not started"):
        not_ready.append(f"the node is {vitals.state}")
    if not vitals.filled:
        missing = f"{vitals.behind_charts:,} charts are missing" if vitals.behind_charts else "it has not looked yet"
        not_ready.append(f"before the first fill: {vitals.charts:,} charts are here, {missing}")
    if held_back:
        not_ready.append(f"held back: {held_back}")
    troubles = list(not_ready)
    if vitals.state == "failed":
        troubles.append("a thread of the node was ended by an error: start() begins it again")
    if vitals.redis != "connected":
        troubles.append(
            f"Redis is {vitals.redis} for {vitals.away_for:.1f} s: {vitals.redis_reason or 'no reason yet'}"
        )
    troubles += [f"{alert.name} ({alert.severity}) for {vitals.at - alert.since:.1f} s" for alert in alerts]
    return Health(True, not not_ready, tuple(not_ready), not troubles, tuple(troubles))
