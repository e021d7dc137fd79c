"""The thread that keeps one panel up to date."""

from __future__ import annotations

import threading
import time
import weakref
from typing import Protocol

from copilotlab.lifetime import Bell

IDLE_FACTOR = 10  # the pause after a refresh is at least so many times as long as the refresh took


class Refreshable(Protocol):
    """What a refresher keeps up to date."""

    interval: float

    def refresh(self) -> bool: ...


class Refresher(threading.Thread):
    """Calls ``panel.refresh()`` every ``panel.interval`` seconds, sooner when woken, until that returns False.

    Between two refreshes it holds no reference to the panel, and it ends as soon as nobody else holds one. It takes at
    most a tenth of one core: the slower a refresh, the longer the pause after it.
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
        """End after the refresh that is under way."""
        self._stopped = True
        self._wake.set()

    def run(self) -> None:
        """Do the thread's work."""
        while (pause := self._refresh()) is not None:
            self._wake.wait(pause)

    def _refresh(self) -> float | None:
        self._wake.clear()  # before the refresh: a call of `wake` during it asks for another
        panel = self._panel()
        if panel is None or self._stopped:
            return None
        began = time.perf_counter()
        if not panel.refresh():
            return None
        return max(panel.interval, IDLE_FACTOR * (time.perf_counter() - began))
