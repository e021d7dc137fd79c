"""A BI tool's own server, asked for JSON: each wait, answer and number of tries is bounded, and errors are words."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import httpx

from copilotlab.importers.draft import CatalogueError
from copilotlab.reasons import reason, short

MAX_ANSWER = 256 * 2**20  # bytes; Metabase answers with all cards at once
LONGEST_ANSWER = 300.0  # seconds from the first byte to the last
_PAUSES = (0.5, 2.0)  # seconds before the second and the third try
_LONGEST_PAUSE = 10.0  # seconds that a server may ask us to wait
_BUSY = (429, 502, 503, 504)
_REMEDIES = {
    401: "give token=, or user= and password=",
    403: "its user or token may not read this",
    404: "is this the right address, and the right format?",
}


class Refused(CatalogueError):
    """The server answered, but not with what was asked for: something else of it may still be had."""


class Server:
    """One server. Use it in a ``with`` block.

    url: such as https://bi.example.org, with the path that it is served under. headers: sent to it alone; a redirect
    is not followed. timeout: seconds to connect, and that it may be silent.
    """

    def __init__(self, url: str, headers: Mapping[str, str], timeout: float) -> None:
        self.url = url.rstrip("/")
        try:
            parts = urlsplit(self.url)
            is_plain = bool(parts.hostname) and "@" not in parts.netloc and not parts.query and not parts.fragment
        except ValueError:
            is_plain = False
        if not is_plain:
            raise CatalogueError("expected the address of a server, as in https://bi.example.org; a password goes "
                                 "into user= and password=")  # fmt: skip
        if any(not value.isprintable() or not value.isascii() for value in headers.values()):
            raise CatalogueError("token: expected printable letters of ASCII")
        self._client = httpx.Client(headers={"Accept": "application/json", **headers}, timeout=timeout)

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def authorize(self, token: str) -> None:
        """Send this token from now on."""
        self._client.headers["Authorization"] = f"Bearer {token}"

    def get(self, path: str, **params: str | int) -> Any:
        """Return what the server answers at ``path``.

        Raises CatalogueError, and of these `Refused` where only this cannot be had.
        """
        return self._asked("GET", path, params=params)

    def post(self, path: str, content: Mapping[str, str]) -> Any:
        """Return what the server answers to this content, sent as JSON; raises as `get` does."""
        return self._asked("POST", path, json=content)

    def _asked(self, method: str, path: str, **options: Any) -> Any:
        where = f"{self.url}{path}"
        for pause in (*_PAUSES, None):
            try:
                with self._client.stream(method, where, **options) as response:
                    if response.status_code in _BUSY and pause is not None:
                        pause = _asked_for(response, pause)
                    else:
                        return _content(response, where)
            except httpx.InvalidURL as error:
                raise CatalogueError(f"{where}: {reason(error)}") from error
            except httpx.HTTPError as error:
                if pause is None or not isinstance(error, httpx.TransportError):
                    raise CatalogueError(f"{where} cannot be reached: {reason(error)}") from error
            time.sleep(pause)
        raise AssertionError("the last try returns or raises")


def _asked_for(response: httpx.Response, pause: float) -> float:
    """Return how long the server asks us to wait, in seconds: no longer than is good for us."""
    said = response.headers.get("Retry-After", "")
    return min(float(said), _LONGEST_PAUSE) if said.isascii() and said.isdigit() else pause


def _content(response: httpx.Response, where: str) -> Any:
    if response.is_redirect:
        raise CatalogueError(f"{where} points to {short(response.headers.get('Location', ''))}: give the right address")
    if response.status_code != 200:
        remedy = _REMEDIES.get(response.status_code, "")
        raise Refused(
            f"{where} answers {response.status_code} {response.reason_phrase}{': ' if remedy else ''}{remedy}"
        )
    data = bytearray()
    began = time.monotonic()
    for piece in response.iter_bytes():
        data += piece
        if len(data) > MAX_ANSWER:
            raise CatalogueError(f"{where} answers with more than {MAX_ANSWER / 2**20:,.0f} MB: that is not read")
        if time.monotonic() - began > LONGEST_ANSWER:
            raise CatalogueError(f"{where} has not come to an end of its answer in {LONGEST_ANSWER:.0f} s")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Refused(f"{where} does not answer in JSON: {reason(error)}") from error


def pages(server: Server, path: str, size: int, most: int, **params: str | int) -> Iterator[list[Any]]:
    """Give the pages of a list that is asked for by ``page`` from 1 and ``limit``, until one is not full."""
    before: object = None
    for number in range(1, most + 1):
        page = server.get(path, page=number, limit=size, **params)
        if page == before:  # a server that knows no pages
            return
        before = page
        if not isinstance(page, list):
            raise Refused(f"{server.url}{path} answers with {type(page).__name__}, not with a list")
        if page:
            yield page
        if len(page) < size:
            return
    raise CatalogueError(f"{server.url}{path} has more than {most:,} pages of {size:,}: that is not read")
