"""The thread that keeps one panel up to date."""

from __future__ import annotations

import threading
import time
import weakref
from typing import Protocol

from copilotlab.lifetime import Bell

IDLE_FACTOR = 10  # a refresher rests at least so many times as long as its last refresh took


class Refreshable(Protocol):
    """What a refresher keeps up to date."""

    interval: float

    def refresh(self) -> bool: ...


class Refresher(threading.Thread):
    """Calls ``panel.refresh()`` every ``panel.interval`` seconds, sooner when woken, until that returns False.

    It holds no reference to the panel between two refreshes, and ends as soon as nobody else does. It takes at most a
    tenth of one core: where a refresh is slow, the next one waits longer.
    """

    def __init__(self, panel: Refreshable) -> None:
        super().__init__(name=f"copilotlab-panel-{type(panel).__name__}", daemon=True)
        self._wake = Bell()
        self._stopped = False
        wake = self._wake
        self._panel = weakref.ref(panel, lambda _: wake.set())

    def wake(self) -> None:
        """Refresh now."""
        self._wake.set()

    def stop(self) -> None:
        """End, after a refresh that is under way."""
        self._stopped = True
        self._wake.set()

    def run(self) -> None:
        """The thread's work."""
        while (pause := self._refresh()) is not None:
            self._wake.wait(pause)

    def _refresh(self) -> float | None:
        self._wake.clear()  # before the refresh: what is told during it is for the next one
        panel = self._panel()
        if panel is None or self._stopped:
            return None
        began = time.perf_counter()
        if not panel.refresh():
            return None
        return max(panel.interval, IDLE_FACTOR * (time.perf_counter() - began))
