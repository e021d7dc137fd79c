"""Threads on which a service calls its node, so that its event loop never waits.

Each kind of work has threads of its own: searches go on while all threads that write wait for a database. They are
daemons, so that one that hangs does not keep the process from ending.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

from copilotlab.lifetime import Background

T = TypeVar("T")


class Busy(RuntimeError):
    """All threads are at work, and as many calls wait as may."""


class Workers:
    """Some threads that do what is handed to them, first come, first served.

    count: threads. most: calls that may wait or be under way at the same time.
    """

    def __init__(self, name: str, count: int, most: int) -> None:
        self.name = name
        self._most = most
        self._pending = 0
        self._calls: SimpleQueue[tuple[asyncio.Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._threads = [Background(self._go_on, f"copilotlab-{name}-{number}") for number in range(count)]
        for thread in self._threads:
            thread.start()

    async def run(self, call: Callable[[], T]) -> T:
        """Return what ``call`` returns, or raise what it raises. Raises Busy. To be called on the event loop."""
        if self._pending >= self._most:
            raise Busy(f"{self._pending} calls wait or are under way ({self.name}): try again in a moment")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._pending += 1
        self._calls.put((future, call))
        future.add_done_callback(self._one_less)
        return await asyncio.shield(future)  # a client that has gone does not undo what is under way

    def end(self) -> None:
        """Have the threads end once they have done what was handed to them; wait for nothing."""
        for _ in self._threads:
            self._calls.put(None)

    def _one_less(self, future: asyncio.Future[Any]) -> None:
        self._pending -= 1
        if not future.cancelled():
            future.exception()  # seen: whoever asked may have gone

    def _go_on(self) -> None:
        while (handed := self._calls.get()) is not None:
            future, call = handed
            try:
                result, error = call(), None
            except Exception as raised:  # noqa: BLE001 - it is raised where it was asked for
                result, error = None, raised
            with suppress(RuntimeError):  # the loop has been closed: nobody waits any more
                future.get_loop().call_soon_threadsafe(_settle, future, result, error)
            del future, call, handed, result, error

    def __repr__(self) -> str:
        return f"Workers({self.name!r}, {len(self._threads)} threads, {self._pending} calls)"


def _settle(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
