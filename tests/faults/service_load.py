"""Clients of several services, behind a balancer of the least kind: what they were answered, and what they lost."""

from __future__ import annotations

import itertools
import json
import select
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPConnection, HTTPException
from typing import Any, NamedTuple, Self
from urllib.parse import quote, urlsplit

import numpy as np

from copilotlab.lab.services import Services

LIMIT = 60.0  # seconds for what is certain to come
LOOK = 0.1  # seconds between two looks of the balancer
PAUSE, BETWEEN_EDITS = 0.02, 0.1  # seconds between two requests of one client
QUERIES = ["revenue by region", "late flights", "sick leave", "profit by product", "orders that were late", "energy"]


class Lost(NamedTuple):
    """A request whose connection was accepted, and that got no answer. at: seconds of the monotonic clock."""

    at: float
    service: str
    why: str


class Figures(NamedTuple):
    """What clients saw: searches answered, median and 99th of 100 in ms, and the longest time in seconds in which no
    service was ready, as the balancer saw it."""

    searches: int
    p50: float
    p99: float
    none_ready: float


class Refused(ConnectionError):
    """No connection was accepted: nothing was asked."""


class Client:
    """Kept connections, one to each service."""

    def __init__(self, urls: dict[str, str], token: str, timeout: float = 30.0) -> None:
        where = {name: urlsplit(url) for name, url in urls.items()}
        self._kept = {name: HTTPConnection(at.hostname or "", at.port, timeout=timeout) for name, at in where.items()}
        self._token = token

    def ask(self, service: str, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Return status and body. Raises Refused; OSError or HTTPException for no answer after a connection."""
        connection = self._kept[service]
        if connection.sock is not None and select.select([connection.sock], [], [], 0)[0]:
            connection.close()  # the service hung up while nothing was asked
        try:
            if connection.sock is None:
                try:
                    connection.connect()
                except OSError as error:
                    raise Refused(str(error)) from error
            headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        for connection in self._kept.values():
            connection.close()


class Load:
    """Searches and edits services from several threads, as clients behind a balancer do, while ``with`` lasts.

    Who is ready is asked of /readyz; a request goes to those in turn, and to the next where no connection is accepted.

    clients: how many threads ask. accepted: title of each chart whose PUT was answered 200. lost, failed: requests
    without an answer, and those that were answered with 5xx.
    """

    def __init__(self, services: Services, *, searchers: int = 4, first_id: int = 1_000_000) -> None:
        self.services = services
        self.clients = searchers + 1
        self.accepted: dict[int, str] = {}
        self.lost: list[Lost] = []
        self.failed: list[str] = []
        self.errors: list[str] = []
        self._took: list[float] = []
        self._none_ready = 0.0
        self._ready = list(services.urls)
        self._ids = itertools.count(first_id)
        self._stop = threading.Event()
        work: Sequence[Callable[[], None]] = [self._balance, self._edit, *[self._search] * searchers]
        self._threads = [threading.Thread(target=self._guarded, args=(one,), daemon=True) for one in work]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.wait_for_more()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(LIMIT)
            assert not thread.is_alive(), "a client got no answer, and no end"
        assert self.errors == []

    def wait_for_more(self, searches: int = 100, edits: int = 5) -> None:
        """Wait until so many more searches and edits were answered."""
        asked, edited = len(self._took) + searches, len(self.accepted) + edits
        wait_for(lambda: len(self._took) >= asked and len(self.accepted) >= edited)

    def wait_unready(self, service: str) -> None:
        """Wait until the balancer has seen that a service is not ready."""
        wait_for(lambda: service not in self._ready)

    def figures(self) -> Figures:
        p50, p99 = np.quantile(self._took, [0.5, 0.99])
        return Figures(len(self._took), 1e3 * p50, 1e3 * p99, self._none_ready)

    # --- the threads ------------------------------------------------------------------------------------------

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - whatever it is, the test that made this load has to see it
            self.errors.append(repr(error))

    def _balance(self) -> None:
        last_ready = time.monotonic()
        while not self._stop.wait(LOOK):
            self._ready = [name for name, one in self.services.processes.items() if one.ready(1.0)]
            now = time.monotonic()
            if self._ready:
                last_ready = now
            self._none_ready = max(self._none_ready, now - last_ready)

    def _search(self) -> None:
        queries = itertools.cycle(QUERIES)
        for client, turn in self._turns(PAUSE):
            began = time.monotonic()
            status, body = self._answered(client, turn, "GET", f"/v1/search?q={quote(next(queries))}&k=5")
            if status == 200 and body["results"]:
                self._took.append(time.monotonic() - began)
            elif status:
                self.failed.append(f"search: {status} {body}")

    def _edit(self) -> None:
        for (client, turn), chart_id in zip(self._turns(BETWEEN_EDITS), self._ids, strict=False):
            title = f"Written under fire number {chart_id}"
            status, body = self._answered(client, turn, "PUT", f"/v1/charts/{chart_id}", {"title": title})
            if status == 200:
                self.accepted[chart_id] = title
            elif status:
                self.failed.append(f"edit: {status} {body}")

    def _turns(self, pause: float) -> Iterator[tuple[Client, int]]:
        client = Client(self.services.urls, self.services.token)
        try:
            for turn in itertools.count():
                if self._stop.wait(pause):
                    return
                yield client, turn
        finally:
            client.close()

    def _answered(self, client: Client, turn: int, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Ask one that is ready, and the next where it is refused or lost; status 0 where a change was lost."""
        until = time.monotonic() + LIMIT
        while time.monotonic() < until:
            ready = self._ready or list(self.services.urls)
            service = ready[turn % len(ready)]
            try:
                return client.ask(service, method, path, body)
            except Refused:
                pass
            except (OSError, HTTPException) as error:
                self.lost.append(Lost(time.monotonic(), service, repr(error)))
                if method != "GET":
                    return 0, None  # it may have been done: a new chart comes next
            turn += 1
        raise TimeoutError(f"{method} {path}: no service took it for {LIMIT:g} s")


def wait_for(condition: Callable[[], Any]) -> Any:
    until = time.monotonic() + LIMIT
    while not (found := condition()):
        assert time.monotonic() < until, f"it did not come within {LIMIT:g} s"
        time.sleep(0.02)
    return found
