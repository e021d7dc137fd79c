"""How background work ends: with its owner, by a signal, with the interpreter, and in a forked child.

A signal handler or the garbage collector may interrupt any code, also while that code holds a lock of ours. So what
they call here takes no lock, and waits for a bounded time only.
"""

from __future__ import annotations

import _thread
import atexit
import os
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Protocol

STOP_SECONDS = 10.0  # how long an ending waits for threads in a model or a database; what hangs there is left behind
FORK_SECONDS = 5.0  # how long a fork waits for a transaction that is under way
HANDLER_SECONDS = 1.0  # how long an ending waits in a signal handler, which holds up the call it has interrupted


class Latch:
    """A flag that is set once, for good. Unlike a `threading.Event`, a signal handler or a finalizer may set it."""

    def __init__(self) -> None:
        self._set = False
        self._gate = _thread.allocate_lock()
        self._gate.acquire()

    def set(self) -> None:
        """Set it, and let all who wait go on."""
        self._set = True
        with suppress(RuntimeError):  # it is set already
            self._gate.release()

    def is_set(self) -> bool:
        """Tell whether it is set."""
        return self._set

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, at most ``timeout`` seconds; return whether it is."""
        if not self._set and self._gate.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
            with suppress(RuntimeError):
                self._gate.release()  # for the next thread that waits
        return self._set

    def __repr__(self) -> str:
        return f"Latch({'set' if self._set else 'unset'})"


class Bell:
    """Wakes the one thread that waits for it. A signal handler or a finalizer may ring it."""

    def __init__(self) -> None:
        self._rung: SimpleQueue[None] = SimpleQueue()  # its put() is documented as re-entrant

    def set(self) -> None:
        """Ring the bell."""
        if self._rung.empty():
            self._rung.put(None)

    def clear(self) -> None:
        """Forget that it was rung."""
        with suppress(Empty):
            while True:
                self._rung.get_nowait()

    def wait(self, timeout: float) -> None:
        """Wait until it is rung, at most ``timeout`` seconds."""
        with suppress(Empty):
            self._rung.get(timeout=max(0.0, timeout))


class Background(threading.Thread):
    """A daemon thread that the end of the interpreter waits for, since one cut off inside a model aborts the process.

    The wait is bounded. ended: set at the thread's end. (`Thread.join` is not safe in a main thread that Ctrl-C may
    reach: in Python 3.11, a join that was interrupted takes a running thread for one that has ended.)
    """

    def __init__(self, target: Callable[[], object], name: str) -> None:
        super().__init__(target=target, name=name, daemon=True)
        self.ended = Latch()

    def start(self) -> None:
        """Start the thread, and have the end of the interpreter wait for it."""
        _threads.add(self)
        super().start()

    def run(self) -> None:
        """Call the target, and note when it has ended."""
        try:
            super().run()
        finally:
            self.ended.set()
            _threads.discard(self)


class Mortal(Protocol):
    """What the end of the interpreter ends: `let_go` begins that and waits for nothing, `stop` waits for a while."""

    def let_go(self) -> None: ...

    def stop(self, timeout: float = STOP_SECONDS) -> None: ...


class ForkGate:
    """``with gate:`` goes around what a fork in another thread must not cut in two: the child could not finish it.

    A fork waits for the threads inside, at most FORK_SECONDS, and threads that come meanwhile wait for the fork.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside: Counter[int] = Counter()  # how often each thread has entered
        self._shut = False

    def __enter__(self) -> None:
        me = threading.get_ident()
        with self._changed:
            self._changed.wait_for(lambda: not self._shut or self._inside[me], 2 * FORK_SECONDS)
            self._inside[me] += 1

    def __exit__(self, *_: object) -> None:
        me = threading.get_ident()
        with self._changed:
            self._inside[me] -= 1
            if not self._inside[me]:
                del self._inside[me]
            self._changed.notify_all()

    def shut(self) -> bool:
        """Close the gate before a fork; return whether no thread is inside now."""
        with self._changed:
            self._shut = True
            others = self._inside.keys() - {threading.get_ident()}
            self._changed.wait_for(lambda: not others & self._inside.keys(), FORK_SECONDS)
            return not self._inside

    def open(self) -> None:
        """Open the gate after a fork, in the parent."""
        with self._changed:
            self._shut = False
            self._changed.notify_all()


class Heir(Protocol):
    """What a forked child has a copy of. `before_fork` and `after_fork_in_parent`, where defined, are called too."""

    def after_fork(self) -> None:
        """Make the copy usable in the child, before anything else runs there.

        No thread of the parent is there, locks that one held stay locked, and connections are the parent's.
        """
        ...


def ends_with_the_interpreter(mortal: Mortal) -> None:
    """Have ``mortal`` stopped before the interpreter ends, and before what was made earlier (a server, a model)."""
    _mortals[next(_numbers)] = mortal
    atexit.unregister(_end)  # so that it comes first at the end: handlers are called in reverse
    atexit.register(_end)
    processes = sys.modules.get("multiprocessing.process")
    if processes is not None and processes.parent_process() is not None:
        from multiprocessing.util import Finalize

        Finalize(None, _end, exitpriority=0)  # a child of multiprocessing calls these, and not those of atexit


def renewed_by_fork(heir: Heir) -> None:
    """Have ``heir.after_fork()`` called in every forked child, in the order in which heirs were given here."""
    _heirs[next(_numbers)] = heir


def interrupted_one_of_our_calls() -> bool:
    """Tell whether we were called by a signal handler that has interrupted a call of this package.

    Then locks may be held that are released only after the handler has returned.
    """
    if threading.get_ident() != threading.main_thread().ident:
        return False  # where no signal handler runs
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _package(frame) in ("copilotlab", "contextlib"):  # the caller, not what was interrupted
        frame = frame.f_back
    while frame is not None and _package(frame) not in ("copilotlab", "redis", "logging"):
        frame = frame.f_back
    return frame is not None


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


_threads: set[Background] = set()  # those that run
_mortals: weakref.WeakValueDictionary[int, Mortal] = weakref.WeakValueDictionary()
_heirs: weakref.WeakValueDictionary[int, Heir] = weakref.WeakValueDictionary()
_numbers = count()


def _end() -> None:
    mortals = [mortal for _, mortal in sorted(_mortals.items(), reverse=True)]
    for mortal in mortals:
        mortal.let_go()
    until = time.monotonic() + STOP_SECONDS
    for mortal in mortals:
        mortal.stop(max(0.0, until - time.monotonic()))
    for thread in list(_threads):
        thread.ended.wait(until - time.monotonic())


def _after_fork() -> None:
    _threads.clear()
    _mortals.clear()
    _call("after_fork")


def _call(name: str) -> None:
    for _, heir in sorted(_heirs.items()):
        getattr(heir, name, _nothing)()


def _nothing() -> None:
    pass


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(
        before=lambda: _call("before_fork"),
        after_in_parent=lambda: _call("after_fork_in_parent"),
        after_in_child=_after_fork,
    )
