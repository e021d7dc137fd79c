"""What a call passes that is to fail, or to hang, on request."""

from __future__ import annotations

import threading


class Gate:
    """What every call passes: open, or failing, or holding back whoever comes until it is mended."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self._mended = threading.Event()
        self._held_back = threading.Semaphore(0)  # so many of the next calls
        self._failing = False

    def fail(self) -> None:
        """From now on calls raise."""
        self._failing = True

    def hang(self) -> None:
        """From now on calls wait for `mend`."""
        self._open.clear()

    def hang_once(self) -> None:
        """The next call alone waits for `mend`; those after it pass."""
        self._mended.clear()
        self._held_back.release()

    def mend(self) -> None:
        """Calls pass again; those that wait go on."""
        self._failing = False
        while self._held_back.acquire(blocking=False):
            pass  # nobody came
        self._mended.set()
        self._open.set()

    def passes(self) -> bool:
        """Wait while the gate hangs; False if the call is to fail."""
        if self._held_back.acquire(blocking=False):
            self._mended.wait()
        self._open.wait()
        return not self._failing

    def __repr__(self) -> str:
        return f"Gate({'hanging' if not self._open.is_set() else 'failing' if self._failing else 'open'})"
