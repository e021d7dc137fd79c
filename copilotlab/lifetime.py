"""How what runs in the background ends: with its owner, by a signal, with the interpreter, and in a forked child.

What may be called by a signal handler or by the collector of garbage comes in the middle of anything, a lock of ours
held by the very code that it has interrupted. So here it takes no lock, and waits only for a while.
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

STOP_SECONDS = 10.0  # how long an end waits for threads that are in a model or a database; what hangs there is left
FORK_SECONDS = 5.0  # how long a fork waits for a transaction that is under way
HANDLER_SECONDS = 1.0  # likewise in a signal handler, which holds up the very call that the threads may wait for


class Latch:
    """Unset, then set for good. Unlike `threading.Event` it may be set by a signal handler or a finalizer."""

    def __init__(self) -> None:
        self._set = False
        self._gate = _thread.allocate_lock()
        self._gate.acquire()

    def set(self) -> None:
        """Let everybody pass, now and ever after."""
        self._set = True
        with suppress(RuntimeError):  # it is open already
            self._gate.release()

    def is_set(self) -> bool:
        """Whether it is set."""
        return self._set

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, at most ``timeout`` seconds; whether it is."""
        if not self._set and self._gate.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
            with suppress(RuntimeError):
                self._gate.release()  # for the next who waits
        return self._set

    def __repr__(self) -> str:
        return f"Latch({'set' if self._set else 'unset'})"


class Bell:
    """Wakes one thread that waits for it. It may be rung by a signal handler or a finalizer."""

    def __init__(self) -> None:
        self._rung: SimpleQueue[None] = SimpleQueue()  # whose put() is re-entrant, by its documentation

    def set(self) -> None:
        """Ring."""
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
    """A daemon thread that the end of the interpreter waits for, a while: cut off inside a model it aborts the process.

    ended: set at its end. (`Thread.join` is not for a main thread that Ctrl-C may reach: in Python 3.11 a join that
    was interrupted takes a thread that runs for one that has ended.)
    """

    def __init__(self, target: Callable[[], object], name: str) -> None:
        super().__init__(target=target, name=name, daemon=True)
        self.ended = Latch()

    def start(self) -> None:
        """As of every thread."""
        _threads.add(self)
        super().start()

    def run(self) -> None:
        """As of every thread."""
        try:
            super().run()
        finally:
            self.ended.set()
            _threads.discard(self)


class Mortal(Protocol):
    """What the end of the interpreter ends. `let_go` says so, waiting for nothing; `stop` waits, a while."""

    def let_go(self) -> None: ...

    def stop(self, timeout: float = STOP_SECONDS) -> None: ...


class ForkGate:
    """``with gate:`` around what a fork in another thread must not cut in two, since the child could never end it.

    A fork waits for those who are inside, at most FORK_SECONDS, and who comes meanwhile waits for the fork.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside: Counter[int] = Counter()  # threads
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
        """Before a fork; whether nobody is inside now."""
        with self._changed:
            self._shut = True
            others = self._inside.keys() - {threading.get_ident()}
            self._changed.wait_for(lambda: not others & self._inside.keys(), FORK_SECONDS)
            return not self._inside

    def open(self) -> None:
        """After it, in the parent."""
        with self._changed:
            self._shut = False
            self._changed.notify_all()


class Heir(Protocol):
    """What a forked child has a copy of. `before_fork` and `after_fork_in_parent` are called where it has them."""

    def after_fork(self) -> None:
        """In the child, before anything else runs there: no thread of the parent is here, and a lock that one held
        stays locked; connections are the parent's."""
        ...


def ends_with_the_interpreter(mortal: Mortal) -> None:
    """Have ``mortal`` stopped before the interpreter ends, and before what was made earlier is: a server, a model."""
    _mortals[next(_numbers)] = mortal
    atexit.unregister(_end)  # so that it comes first at the end: handlers are called in reverse
    atexit.register(_end)
    processes = sys.modules.get("multiprocessing.process")
    if processes is not None and processes.parent_process() is not None:
        from multiprocessing.util import Finalize

        Finalize(None, _end, exitpriority=0)  # a child of multiprocessing calls these, and not those of atexit


def renewed_by_fork(heir: Heir) -> None:
    """Have ``heir.after_fork()`` called in every child that is forked; in the order in which they were given here."""
    _heirs[next(_numbers)] = heir


def interrupted_one_of_our_calls() -> bool:
    """Whether the caller of this module's caller is a signal handler that has interrupted a call of this package.

    Then locks may be held that are given back only after the handler has returned.
    """
    if threading.get_ident() != threading.main_thread().ident:
        return False  # where no signal handler runs
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _package(frame) in ("copilotlab", "contextlib"):  # who has called, not who was cut
        frame = frame.f_back
    while frame is not None and _package(frame) not in ("copilotlab", "redis", "logging"):
        frame = frame.f_back
    return frame is not None


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


_threads: set[Background] = set()  # that run
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
