"""What every request passes through: its id, its log line, and the bounds of its body."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from copilotlab.service.problems import ProblemError, problem

REQUEST_ID: ContextVar[str] = ContextVar("copilotlab_request_id", default="")

LAST = ((b"connection", b"close"),)

log = logging.getLogger("copilotlab.service")


class Door:
    """ASGI middleware. max_body: bytes; body_seconds: how long a body may take to arrive; ending: tells whether the
    service ends: then an answer is the last of its connection, and its client asks another service.

    A request keeps the X-Request-ID that it came with, if that is 1 to 64 plain characters; else it is given one.
    """

    def __init__(self, app: ASGIApp, *, max_body: int, body_seconds: float, ending: Callable[[], bool]) -> None:
        self._app = app
        self._max_body = max_body
        self._body_seconds = body_seconds
        self._ending = ending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        request_id = headers.get(b"x-request-id", b"").decode("latin-1")
        if not re.fullmatch(r"[\w.-]{1,64}", request_id, re.ASCII):
            request_id = secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        token, began, status = REQUEST_ID.set(request_id), time.perf_counter(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = (b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff")
                message["headers"] = [*message["headers"], *extra, *(LAST if self._ending() else ())]
            await send(message)

        try:
            length = headers.get(b"content-length", b"0")
            if length.isdigit() and int(length) > self._max_body:
                raise ProblemError(413, self._too_large())
            await self._app(scope, self._bounded(receive), answer)
        except ProblemError as error:  # before a body was read, no handler of the application is there yet
            if not status:
                await problem(error.status_code, error.detail, request_id)(scope, receive, answer)
        finally:
            seconds = time.perf_counter() - began
            log.info("%s %s %d %.1f ms", scope["method"], scope["path"], status, 1000 * seconds)
            REQUEST_ID.reset(token)

    def _too_large(self) -> str:
        return f"the body is larger than {self._max_body:,} bytes, which is max_body"

    def _bounded(self, receive: Receive) -> Receive:
        deadline, size, arrived = time.monotonic() + self._body_seconds, 0, False

        async def bounded() -> Message:
            nonlocal size, arrived
            if arrived:
                return await receive()  # only whether the client goes away
            try:
                message = await asyncio.wait_for(receive(), deadline - time.monotonic())
            except TimeoutError:
                raise ProblemError(408, f"the body did not arrive in {self._body_seconds:g} s") from None
            size += len(message.get("body", b""))
            arrived = not message.get("more_body", False)
            if size > self._max_body:
                raise ProblemError(413, self._too_large())
            return message

        return bounded


class Rate:
    """So many calls a minute. now: the clock."""

    def __init__(self, per_minute: int, now: Callable[[], float] = time.monotonic) -> None:
        self._most = per_minute
        self._now = now
        self._calls: deque[float] = deque()

    def admit(self) -> float:
        """Count a call, and return 0.0; or the seconds to wait, and it is not counted."""
        now = self._now()
        while self._calls and self._calls[0] <= now - 60.0:
            self._calls.popleft()
        if len(self._calls) >= self._most:
            return self._calls[0] + 60.0 - now
        self._calls.append(now)
        return 0.0
