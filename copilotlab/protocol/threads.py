"""Two thin threads around a replica's steps, one that listens and one that works, and how they end."""

from __future__ import annotations

import _thread
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from math import inf

from copilotlab.lifetime import STOP_SECONDS, Background, Bell, Latch
from copilotlab.monitoring.happenings import StepFailed, ThreadFailed
from copilotlab.protocol.context import Context

LISTEN, WORK = "listen", "work"


class Threads:
    """Two threads that take their steps again and again until they are told to end; a step that fails is tried again.

    listen, work: one step each. cancel: ends a batch before its next chunk, and takes no lock. leave: called once, when
    no step is taken any more: by the working thread, or by the caller that drives the steps where there are no threads.
    """

    def __init__(
        self,
        context: Context,
        *,
        listen: Callable[[], object],
        work: Callable[[], object],
        cancel: Callable[[], object],
        leave: Callable[[], object],
    ) -> None:
        self._context = context
        self._steps = {LISTEN: listen, WORK: work}
        self._cancel = cancel
        self._leave = leave
        self._threads: dict[str, Background] = {}
        self._starting = threading.Lock()
        self._leaving = threading.Lock()
        self._gone = Latch()
        self.driving = threading.Lock()
        """Held by the caller that drives a batch where there are no threads."""
        self.stopping = Latch()
        """Set once the threads are to end."""
        self.wake = Bell()
        """Rung where the working thread has something to do."""
        self.trouble: dict[str, str] = {}
        """What the last step of each thread failed with, by the thread's name; empty once all work again."""

    def start(self) -> None:
        """Start the threads, or those of them that have ended by an error."""
        with self._starting:
            for name in self._steps:
                thread = self._threads.get(name)
                if thread is None or thread.ended.is_set():
                    label = f"copilotlab-{self._context.node_id}-{name}"
                    self._threads[name] = Background(partial(self._go_on, name), label)
                    self._threads[name].start()

    def let_go(self) -> None:
        """Have the threads end, give back the lease of a batch under way and leave Redis; wait for nothing.

        It takes no lock, so a signal handler or a finalizer may call it.
        """
        self.stopping.set()
        self._cancel()
        self.wake.set()

    def stop(self, patience: float = STOP_SECONDS, *, in_handler: bool = False) -> str:
        """`let_go`, and wait until all that is done, at most ``patience`` seconds; return "", or in words what is left.

        in_handler: whether the calling thread may hold locks that this needs; then it takes none.
        """
        until = time.monotonic() + patience
        self.let_go()
        if not self.began and in_handler:
            _thread.start_new_thread(self.leave, ())  # a Thread would take a lock of `threading`
        elif not self.began:
            self.leave(patience)
        if self._gone.wait(until - time.monotonic()):
            return ""
        left = [thread.name for thread in self._threads.values() if not thread.ended.is_set()]
        return ", ".join(left) or "who drives its batch"

    def leave(self, patience: float = STOP_SECONDS) -> None:
        """Give the lease back and leave Redis; where a step is still under way, its thread does so afterwards."""
        if not self.driving.acquire(timeout=patience):
            return
        try:
            with self._leaving:
                if not self._gone.is_set():
                    self._leave()
                    self._gone.set()
        finally:
            self.driving.release()

    @property
    def began(self) -> bool:
        """Whether there are threads; without them, the caller drives the steps."""
        return bool(self._threads)

    @property
    def running(self) -> bool:
        """Whether both are at work."""
        ended = [thread.ended.is_set() for thread in list(self._threads.values())]
        return len(ended) == len(self._steps) and not self.stopping.is_set() and not any(ended)

    @property
    def gone(self) -> bool:
        """Whether the threads were told to end, and Redis was left."""
        return self._gone.is_set()

    def _go_on(self, name: str) -> None:
        policy, clock = self._context.policy, self._context.clock
        pause = policy.probe_interval
        failed_at = -inf
        try:
            while not self.stopping.is_set():
                try:
                    self._steps[name]()
                    # Long enough for all that is tried once per heartbeat to have been tried again.
                    if name in self.trouble and clock.now() - failed_at > 2 * policy.heartbeat_interval:
                        del self.trouble[name]
                        pause = policy.probe_interval
                except Exception as error:  # noqa: BLE001 - an unknown error of a driver or a model, which may pass
                    self._tell_trouble(name, error, pause)
                    self.stopping.wait(pause)
                    pause = min(2 * pause, policy.heartbeat_interval)
                    failed_at = clock.now()
            if name == WORK:
                self._threads[LISTEN].ended.wait(STOP_SECONDS)
                self.leave()
        except BaseException as error:
            self.trouble[name] = f"{name}: {error!r}"
            self._context.tell(ThreadFailed(f"{name}: {error!r}"))
            raise

    def _tell_trouble(self, name: str, error: Exception, pause: float) -> None:
        where = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{name}: {error!r} at {where.filename}:{where.lineno}"
        known, self.trouble[name] = self.trouble.get(name), said
        self._context.tell(StepFailed(said, pause, said == known))

    def __repr__(self) -> str:
        state = "running" if self.running else "stopping" if self.stopping.is_set() else "not running"
        return f"Threads({state}{''.join(f', {said}' for said in self.trouble.values())})"
