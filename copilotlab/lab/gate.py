"""A gate in front of calls that can be made to fail or to hang."""

from __future__ import annotations

import threading


class Gate:
    """Every call asks it first: it lets calls pass, makes them fail, or makes them wait until it is mended."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self._mended = threading.Event()
        self._held_back = threading.Semaphore(0)  # one permit for each of the next calls to hold back
        self._failing = False

    def fail(self) -> None:
        """Make every call fail from now on."""
        self._failing = True

    def hang(self) -> None:
        """Make every call wait for `mend` from now on."""
        self._open.clear()

    def hang_once(self) -> None:
        """Make the next call alone wait for `mend`; those after it pass."""
        self._mended.clear()
        self._held_back.release()

    def mend(self) -> None:
        """Let calls pass again; those that wait go on."""
        self._failing = False
        while self._held_back.acquire(blocking=False):
            pass  # a call that never came
        self._mended.set()
        self._open.set()

    def passes(self) -> bool:
        """Wait while calls are held back; return False if the call is to fail."""
        if self._held_back.acquire(blocking=False):
            self._mended.wait()
        self._open.wait()
        return not self._failing

    def __repr__(self) -> str:
        return f"Gate({'hanging' if not self._open.is_set() else 'failing' if self._failing else 'open'})"
