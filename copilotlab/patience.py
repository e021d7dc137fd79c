"""Call what may hang, such as a database, and wait for it no longer than you like."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

PATIENCE = 0.25  # seconds to wait for an answer
HANGS = 30.0  # seconds after which a call counts as lost, and another is made beside it
MOST_HANGING = 3  # threads of one `PatientCall`, with those of lost calls


class PatientCall:
    """A call that is made on a thread of its own, since a call that hangs cannot be ended.

    One call is under way at a time. A call that hangs for 30 s (`HANGS`) counts as lost, and the next is made beside
    it. With 3 threads in all (`MOST_HANGING`) nothing is called until one of them ends.

    call: what to do. What it raises ends its thread, and nothing else. name: of the threads.
    """

    def __init__(self, call: Callable[[], object], name: str) -> None:
        self._call = call
        self._name = name
        self._ended = threading.Condition()
        self._due = False
        self._began: float | None = None  # when the call under way began; None: there is none
        self._threads: list[threading.Thread] = []  # the last one counts; those before it hang

    def begin(self) -> None:
        """Make the call; if it is under way, make it once more after that."""
        with self._ended:
            self._due = True
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            if self._threads and self._began is not None and time.monotonic() < self._began + HANGS:
                return
            if len(self._threads) >= MOST_HANGING:
                return
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._threads.append(thread)
            self._began = time.monotonic()
            thread.start()

    def wait(self, until: Callable[[], bool] | None = None, seconds: float = PATIENCE) -> bool:
        """Wait until a condition holds, by default that nothing is under way or due, and return whether it does.

        Waits no longer than ``seconds``, and not at all for a call that has taken `PATIENCE` seconds already.
        """
        until = until or self._is_idle
        deadline = time.monotonic() + seconds
        with self._ended:
            while not until():
                if self._began is None:
                    return False
                left = min(deadline, self._began + PATIENCE) - time.monotonic()
                if left <= 0:
                    return False
                self._ended.wait(left)
            return True

    def _is_idle(self) -> bool:
        return self._began is None and not self._due

    def _run(self) -> None:
        while self._goes_on():
            try:
                self._call()
            finally:
                with self._ended:
                    self._ended.notify_all()

    def _goes_on(self) -> bool:
        me = threading.current_thread()
        with self._ended:
            if me is not self._threads[-1]:
                return False  # this thread counted as lost, and another has taken its place
            if self._due:
                self._due = False
                self._began = time.monotonic()
                return True
            self._threads.remove(me)
            self._began = None
            self._ended.notify_all()
            return False

    def __repr__(self) -> str:
        return f"PatientCall({self._name!r}, {'idle' if self._is_idle() else 'under way'})"
