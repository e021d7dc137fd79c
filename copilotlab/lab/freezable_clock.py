"""Time for one node of several in a process, so that it alone can be made to stand still."""

from __future__ import annotations

import threading

from copilotlab.clock import Clock


class FreezableClock:
    """The time of one node: while it is frozen, the node's own threads wait for it, and so do nothing.

    inner: the clock. node_id: whose threads wait; whoever looks at the node from outside is answered all along.

    As with a process that the system has stopped, connections stay, what is said to the node waits for it, and it finds
    the clock ahead when it goes on. What it was in the middle of, such as one chunk of a batch, is done first.
    """

    def __init__(self, inner: Clock, node_id: str) -> None:
        self._inner = inner
        self._threads = f"copilotlab-{node_id}-"
        self._flows = threading.Event()
        self._flows.set()

    def freeze(self) -> None:
        """Stand still from now on."""
        self._flows.clear()

    def resume(self) -> None:
        """Go on."""
        self._flows.set()

    @property
    def frozen(self) -> bool:
        """Whether it stands still."""
        return not self._flows.is_set()

    def now(self) -> float:
        if threading.current_thread().name.startswith(self._threads):
            self._flows.wait()
        return self._inner.now()

    def __repr__(self) -> str:
        return f"FreezableClock({self._inner!r}{', frozen' if self.frozen else ''})"
