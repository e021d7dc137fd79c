"""Who a node is and by which rules it acts: every room of the protocol is given this."""

from __future__ import annotations

from dataclasses import dataclass, field

from copilotlab.clock import Clock, SystemClock, check_clock
from copilotlab.monitoring import Happening, Journal, Listener, Listeners, Metrics
from copilotlab.protocol.policy import Policy, check_policy
from copilotlab.protocol.toggles import Toggles
from copilotlab.reasons import short


@dataclass(frozen=True, slots=True)
class Context:
    """One node's name, namespace, toggles, policy and clock, and the listeners that are told what happens on it.

    Make it with `of`, which checks its arguments; all rooms of a node share one. sessions: of all connections that this
    node has made: while it changes its model it has two, and what one says is no stranger's to the other.
    """

    node_id: str
    namespace: str
    toggles: Toggles
    clock: Clock
    journal: Journal
    metrics: Metrics
    listeners: Listeners
    sessions: set[int] = field(default_factory=set)

    @classmethod
    def of(
        cls,
        node_id: str,
        *,
        namespace: str = "",
        policy: Policy | None = None,
        clock: Clock | None = None,
        listeners: tuple[Listener, ...] = (),
    ) -> Context:
        """Make a context, with a journal and counters of its own.

        node_id: 1 to 200 characters; namespace: "" by default, or likewise; policy: `Policy()` by default; clock: the
        system's by default; listeners: told of all that happens, beside the journal and the counters. Raises ValueError
        for a wrong name, TypeError for what is no policy or clock.
        """
        check_policy(policy)
        check_clock(clock)
        check_name("node_id", node_id)
        if not isinstance(namespace, str) or namespace:
            check_name("namespace", namespace)
        clock = clock or SystemClock()
        journal, metrics = Journal(node_id, clock), Metrics()
        heard_by = Listeners(metrics, journal)
        for listener in listeners:
            heard_by.add(listener)
        return cls(node_id, namespace, Toggles(node_id, policy or Policy()), clock, journal, metrics, heard_by)

    @property
    def policy(self) -> Policy:
        """The policy in force, replaced as a whole by what is set on the running node: read it at each use."""
        return self.toggles.now.policy

    def tell(self, happening: Happening) -> None:
        """Tell all listeners of ``happening``."""
        self.listeners.tell(happening)

    def scope(self, name: str) -> str:
        """Return the name of a key or channel in this namespace."""
        return f"{self.namespace}:{name}" if self.namespace else name


def check_name(field: str, value: object) -> str:
    """Return the name; ValueError for anything but a text of 1 to 200 characters that can be sent."""
    if not isinstance(value, str) or not 1 <= len(value) <= 200:
        raise ValueError(f"{field}={short(value)}: expected 1 to 200 characters")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{field}={value!r}: has half a surrogate pair, which cannot be sent; leave it out")
    return value
