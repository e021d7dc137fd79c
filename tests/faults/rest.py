"""When nodes are at rest: what a test waits for before it says what becomes of the next change."""

from __future__ import annotations

from trial import LIMIT, at_rest, wait_until

from copilotlab import Node
from copilotlab.protocol.carrier import CarrierAway


def wait_for_rest(*nodes: Node, limit: float = LIMIT) -> None:
    """Until each of them holds the same, owes nothing, and nobody has the lease of their model.

    That all hold everything is not enough: a batch ends after its last chunk, and what is saved meanwhile is deferred.
    """
    wait_until(lambda: _at_rest(nodes), f"{[node.node_id for node in nodes]} are at rest", limit)


def _at_rest(nodes: tuple[Node, ...]) -> bool:
    if not at_rest([node.status() for node in nodes]):
        return False
    try:
        flags = [node.coordinator.flags() for node in nodes]
    except CarrierAway:
        return False
    return not any(flag.owed or flag.batch_holder for flag in flags)
