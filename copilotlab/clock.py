"""Time, from one place: the system's clock in service, a controlled clock in tests and studies."""

from __future__ import annotations

import threading
import time
from typing import Protocol

from copilotlab.reasons import short


class Clock(Protocol):
    """What the protocol asks of a clock: seconds that only go forward."""

    def now(self) -> float:
        """Return the seconds since a fixed but arbitrary moment."""
        ...


class SystemClock:
    """The machine's monotonic clock, shared by all its processes; changes of the wall clock do not move it."""

    def now(self) -> float:
        return time.monotonic()

    def __repr__(self) -> str:
        return "SystemClock()"


class ManualClock:
    """A clock that stands still until it is told to move, so that a test decides what happens when.

    start: seconds that it shows at first, 0.0 by default.
    """

    def __init__(self, start: float = 0.0) -> None:
        self._now = start
        self._lock = threading.Lock()

    def now(self) -> float:
        with self._lock:
            return self._now

    def advance(self, seconds: float) -> float:
        """Move forward by ``seconds`` (>= 0, else ValueError) and return the new time."""
        if seconds < 0:
            raise ValueError(f"a clock cannot go back: advance({short(seconds)}); give seconds >= 0")
        with self._lock:
            self._now += seconds
            return self._now

    def __repr__(self) -> str:
        return f"ManualClock({self.now():g})"


def check_clock(clock: object) -> None:
    """Raise TypeError for what is neither a `Clock` nor None."""
    if clock is not None and not callable(getattr(clock, "now", None)):
        raise TypeError(f"clock={short(clock)}: expected an object whose now() gives seconds, as in ManualClock()")
