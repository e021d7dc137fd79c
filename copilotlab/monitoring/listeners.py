"""The listeners of a node, which are told of all that happens on it."""

from __future__ import annotations

import logging
from collections.abc import Callable

from copilotlab.monitoring.happenings import Happening
from copilotlab.reasons import short

Listener = Callable[[Happening], object]

logger = logging.getLogger("copilotlab.node")


class Listeners:
    """The listeners of one node. Each is called on the thread on which something happens, so it must be quick, and must
    not call the node, whose locks may be held.

    One that raises is logged the first time, and goes on being called: it harms neither the node nor the others.
    """

    def __init__(self, *listeners: Listener) -> None:
        self._own = listeners
        self.added: tuple[Listener, ...] = ()
        """Those given to `add`, beside the first."""
        self.trouble: dict[str, str] = {}
        """The last error that each listener raised, by the listener's name."""

    def add(self, listener: Listener) -> None:
        """Tell ``listener`` of all that happens from now on. Raises TypeError for what cannot be called."""
        if not callable(listener):
            raise TypeError(f"listener={short(listener)}: expected a function of one happening, as in print")
        self.added = (*self.added, listener)

    def tell(self, happening: Happening) -> None:
        """Tell every listener of ``happening``, in the order in which they were added."""
        for listener in (*self._own, *self.added):
            try:
                listener(happening)
            except Exception as error:  # noqa: BLE001 - a listener is foreign code, and none may harm the protocol
                self._note_failure(listener, error)

    def _note_failure(self, listener: Listener, error: Exception) -> None:
        name = getattr(listener, "__qualname__", None) or type(listener).__name__
        if name not in self.trouble:
            logger.error("listener %s raised %r; it goes on being called", name, error, exc_info=error)
        self.trouble[name] = f"listener {name}: {error!r}"

    def __repr__(self) -> str:
        count, troubled = len(self._own) + len(self.added), "; ".join(self.trouble.values())
        return f"Listeners({', '.join(filter(None, [str(count), troubled]))})"
