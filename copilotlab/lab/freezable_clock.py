"""A clock for one node of several in a process, so that this node alone can be made to stand still."""

from __future__ import annotations

import threading

from copilotlab.clock import Clock


class FreezableClock:
    """The clock of one node. While it is frozen, the node's own threads wait whenever they ask for the time.

    inner: where the time comes from. node_id: the node whose threads wait; all other threads get an answer.

    A frozen node is like a process that the system has stopped: its connections stay open, messages wait for it, and
    when it goes on it finds that time has passed. It stops only when it next asks for the time, so a step under way,
    such as one chunk of a batch, is finished first.
    """

    def __init__(self, inner: Clock, node_id: str) -> None:
        self._inner = inner
        self._threads = f"copilotlab-{node_id}-"
        self._flows = threading.Event()
        self._flows.set()

    def freeze(self) -> None:
        """Stop the node's threads when they next ask for the time."""
        self._flows.clear()

    def resume(self) -> None:
        """Let the node's threads go on."""
        self._flows.set()

    @property
    def frozen(self) -> bool:
        """Whether the node is frozen."""
        return not self._flows.is_set()

    def now(self) -> float:
        if threading.current_thread().name.startswith(self._threads):
            self._flows.wait()
        return self._inner.now()

    def __repr__(self) -> str:
        return f"FreezableClock({self._inner!r}{', frozen' if self.frozen else ''})"
