"""The admin page: a view of all nodes of a cluster over HTTP, live, and what can be done from there.

    page = AdminPage(Cluster(...), node_id="a")
    app.include_router(page.router(check))

The page is three files of this package, which hold no data and need no token. All that they show comes from /v1/cluster
with the token in a header, as a stream of server-sent events that is read by fetch, since an EventSource sends no
headers. What is done there is asked of nodes through the cluster's own channels, so it reaches every node, whether it
has an address or not.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.resources import files
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import ASGIApp, Receive, Scope, Send

from copilotlab import __version__
from copilotlab.charts import RepositoryError
from copilotlab.cluster import ActionRefused, Cluster, NodeSilent
from copilotlab.picture import Row, agreements, holds, letter
from copilotlab.protocol.carrier import CarrierAway
from copilotlab.protocol.toggles import FIXED, SWITCHES
from copilotlab.reasons import short
from copilotlab.service.problems import Problem, ProblemError, problem
from copilotlab.service.settings import is_loopback
from copilotlab.service.toggles import DESCRIBED, ClusterTogglesBody
from copilotlab.service.tokens import Role
from copilotlab.toggle_words import POLICY_MEANINGS

log = logging.getLogger("copilotlab.service")

Given = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]
Check = Callable[[Role, HTTPAuthorizationCredentials | None], None]
"""Raises ProblemError unless who asks may do what needs that role."""

SECOND = 1.0  # between two events of a stream
HISTORY_SECONDS = 10.0  # between two that have the last hour in them
MOST_STREAMS = 64  # pages that look at the same time
MOST_LINES = 100  # of the timeline
MOST_DIFFERENCES = 1_000  # rows in one answer
MOST_POINTS = 120  # of a node's history
FILES = {
    "": ("index.html", "text/html"),
    "admin.css": ("admin.css", "text/css"),
    "admin.js": ("admin.js", "text/javascript"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}


class Action(BaseModel):
    """What is to be done. node: which does it; argument: the model's name, or the lease's value as it was shown."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"action": "sync", "node": "a"}]}
    )

    action: Literal["rebuild", "sync", "switch_model", "stop", "release_lease"]
    node: str = Field("", max_length=200)
    argument: str = Field("", max_length=600)


class Done(BaseModel):
    """What the node said."""

    said: str = Field(examples=["sync begun"])


SETTABLE = {name: {"meaning": meaning, **DESCRIBED[name]} for name, meaning in {**SWITCHES, **POLICY_MEANINGS}.items()}
"""What can be set on a running node: what it means, and its type and bounds, as OpenAPI has them."""


class AdminPage:
    """The page over one cluster.

    node_id: of the node that serves it, "" for none. admit: counts a call of an action, and raises ProblemError where
    there were too many.
    """

    def __init__(self, cluster: Cluster, *, node_id: str = "", admit: Callable[[], object] = lambda: None) -> None:
        self.cluster = cluster
        self.ending = False
        """Set it once the service ends: the streams end with it."""
        self._node_id = node_id
        self._admit = admit
        self._streams = 0
        self._made: tuple[float, bytes] = (0.0, b"")
        self._history: tuple[float, bytes] = (0.0, b"")
        self._toggles: tuple[float, bytes] = (0.0, b"")
        self._asking = threading.Lock()

    def router(self, check: Check) -> APIRouter:
        """Return the routes: /admin, /v1/cluster, and what is below them."""
        router = APIRouter()
        told: dict[int | str, dict[str, Any]] = {s: {"model": Problem} for s in (401, 403, 413, 422, 500, 503)}

        # async, or each would be called on yet another thread

        async def reader(request: Request, given: Given) -> None:
            check("read", given)
            if given is None:
                _named_rightly(request)

        async def admin(given: Given) -> None:
            check("admin", given)

        @router.get("/admin", include_in_schema=False)
        @router.get("/admin/", include_in_schema=False)
        async def page() -> Response:
            return _file("")

        @router.get("/admin/{name}", include_in_schema=False)
        async def part(name: str) -> Response:
            if name not in FILES:
                raise ProblemError(404, "the page has no such part")
            return _file(name)

        @router.get("/v1/cluster", responses=told, dependencies=[Depends(reader)])
        async def cluster() -> Response:
            """Tell how all nodes of the cluster are: who agrees, alerts, lease, timeline, as this service hears it."""
            return _json(await asyncio.to_thread(self.snapshot))

        @router.get("/v1/cluster/events", include_in_schema=False, dependencies=[Depends(reader)])
        async def events(request: Request) -> Response:
            """Tell the same once a second, as server-sent events: "now", and every ten seconds "history"."""
            if self._streams >= MOST_STREAMS:
                raise ProblemError(503, f"{MOST_STREAMS} pages look already: try again later", Retry_After="10")
            stream = self._events(request.is_disconnected)
            return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})

        @router.get(
            "/v1/cluster/differences",
            responses={**told, 409: {"model": Problem}, 504: {"model": Problem}},
            dependencies=[Depends(reader)],
        )
        async def differences(
            node: Annotated[str, Query(max_length=200)] = "", other: Annotated[str, Query(max_length=200)] = ""
        ) -> Response:
            """List what a node (or each) holds otherwise than another, or the repository, chart by chart."""
            return _json(await asyncio.to_thread(self.differences, node, other))

        @router.post(
            "/v1/cluster/actions",
            responses={**told, **{status: {"model": Problem} for status in (400, 408, 409, 429, 504)}},
            response_model=Done,
            dependencies=[Depends(admin)],
        )
        async def act(body: Action) -> Response:
            """Have a node do something, or release a lease that is stuck; answered once the node has begun."""
            self._admit()
            return _json(await asyncio.to_thread(self.act, body.action, body.node, body.argument))

        @router.get(
            "/v1/cluster/toggles",
            responses={**told, 409: {"model": Problem}},
            dependencies=[Depends(reader)],
        )
        async def toggles() -> Response:
            """Tell what is in force on each node that lives, who set it, when, and what cannot be set, and why."""
            return _json(await asyncio.to_thread(self.toggles))

        @router.patch(
            "/v1/cluster/toggles",
            responses={**told, **{status: {"model": Problem} for status in (400, 408, 409, 429, 504)}},
            response_model=Done,
            dependencies=[Depends(admin)],
        )
        async def configure(body: ClusterTogglesBody) -> Response:
            """Set toggles on one node, or on all; answered once the node that was told has them in force."""
            self._admit()
            return _json(await asyncio.to_thread(self.configure, body))

        return router

    # --- answers ----------------------------------------------------------------------------------------------

    def snapshot(self) -> bytes:
        """Return how all is now, as JSON; made once for all who ask within half a second."""
        at, made = self._made
        if not made or time.monotonic() - at > SECOND / 2:
            made = msgspec.json.encode(self._now())
            self._made = time.monotonic(), made
        return made

    def _now(self) -> dict[str, object]:
        cluster = self.cluster
        rows, lease = cluster.rows(), cluster.lease
        groups = agreements(rows)
        lines = cluster.timeline().tail(MOST_LINES).to_dicts()
        now = cluster.seconds
        return {
            "service": {"node": self._node_id, "version": __version__},
            "namespace": cluster.namespace,
            "redis": cluster.address,
            "connected": cluster.connected,
            "reason": cluster.reason,
            "verified": cluster.verified,
            "speakers": cluster.speakers(),
            "verdict": cluster.verdict,
            "agree": cluster.agree,
            "owed": cluster.owed,
            "lease": None if lease is None else lease._asdict(),
            "nodes": [
                {
                    **{name: getattr(row, name) for name in _SHOWN},
                    "group": letter(row, groups),
                    "lease": holds(row, lease),
                    "batch": None if row.batch is None else msgspec.structs.asdict(row.batch),
                    "alerts": [alert.name for alert in row.alerts],
                }
                for row in rows
            ],
            "alerts": cluster.alerts().to_dicts(),
            "timeline": [{**line, "ago": now - line["seconds"]} for line in lines],
        }

    def history(self) -> bytes:
        """Return the last hour of each node, as JSON: [seconds ago, charts, lag, outages] at a time."""
        at, made = self._history
        if not made or time.monotonic() - at > HISTORY_SECONDS / 2:
            points: defaultdict[str, list[list[object]]] = defaultdict(list)
            now = self.cluster.seconds
            for row in self.cluster.history().iter_rows(named=True):
                points[row["node"]].append([round(now - row["seconds"]), row["charts"], row["lag"], row["outages"]])
            thinned = {node: of[:: max(1, len(of) // MOST_POINTS)] for node, of in points.items()}
            made = msgspec.json.encode(thinned)
            self._history = time.monotonic(), made
        return made

    def differences(self, node: str, other: str) -> bytes:
        """Return what differs, as JSON. Raises ProblemError."""
        with _as_problems():
            found = self.cluster.differences(node or None, other)
        shown = found.head(MOST_DIFFERENCES).to_dicts()
        return msgspec.json.encode({"count": found.height, "differences": shown})

    def act(self, action: str, node: str, argument: str) -> bytes:
        """Have it done, and return what was said, as JSON. Raises ProblemError."""
        log.info("admin: %s %s", action, node)
        with _as_problems():
            if action == "release_lease":
                self.cluster.release_lease(argument)
                said = "the lease is released; the next heartbeat of a node takes up what is owed"
            else:
                said = self.cluster.act(node, action, argument)
        return msgspec.json.encode({"said": said})

    def toggles(self) -> bytes:
        """Return what is in force on each node, as JSON; asked once a second. Raises ProblemError."""
        with self._asking:
            at, made = self._toggles
            if not made or time.monotonic() - at > SECOND:
                with _as_problems():
                    told = self.cluster.told_toggles()
                nodes = {
                    node: {"toggles": [toggle._asdict() for toggle in known], "reason": reason}
                    for node, (known, reason) in told.items()
                }
                made = msgspec.json.encode({"nodes": nodes, "settable": SETTABLE, "fixed": FIXED})
                self._toggles = time.monotonic(), made
            return made

    def configure(self, body: ClusterTogglesBody) -> bytes:
        """Have it set, and return what was said, as JSON. Raises ProblemError."""
        log.info("admin: %s sets %s on %s", body.by, body.set, body.node or "all nodes")
        if body.node and body.node not in {row.node for row in self.cluster.rows()}:
            raise ProblemError(409, f"node {body.node!r} was not heard of")
        if unknown := [name for name in body.set if name not in SETTABLE and name not in FIXED]:
            raise ProblemError(422, f"{short(unknown[0])}: no such toggle; there are {', '.join(SETTABLE)}")
        with _as_problems(wrong=422):
            said = self.cluster.configure(body.node, everywhere=not body.node, by=body.by, **body.set)
        self._toggles = 0.0, b""
        return msgspec.json.encode({"said": said})

    async def _events(self, gone: Callable[[], Awaitable[bool]]) -> AsyncIterator[bytes]:
        self._streams += 1
        try:
            next_history = 0.0
            while not self.ending and not await gone():
                yield _event("now", await asyncio.to_thread(self.snapshot))
                if time.monotonic() >= next_history:
                    next_history = time.monotonic() + HISTORY_SECONDS
                    yield _event("history", await asyncio.to_thread(self.history))
                until = time.monotonic() + SECOND
                while time.monotonic() < until and not self.ending:
                    await asyncio.sleep(0.1)
        finally:
            self._streams -= 1

    def __repr__(self) -> str:
        return f"AdminPage({self.cluster!r}, {self._streams} streams)"


_SHOWN = (
    "node",
    "alive",
    "state",
    "connection",
    "digest",
    "charts",
    "revision",
    "repository",
    "lag",
    "skipped",
    "outages",
    "model",
    "version",
    "address",
    "uptime",
    "heard",
)
assert set(_SHOWN) <= set(Row._fields)


class _as_problems:
    """Turns what a cluster raises into problems. wrong: the status of a ValueError."""

    def __init__(self, wrong: int = 409) -> None:
        self._wrong = wrong

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, NodeSilent):
            raise ProblemError(504, str(error)) from error
        if isinstance(error, ActionRefused):
            raise ProblemError(409, str(error)) from error
        if isinstance(error, CarrierAway):
            raise ProblemError(503, f"cut off from Redis: {error}", Retry_After="5") from error
        if isinstance(error, ValueError) and not isinstance(error, RepositoryError):
            raise ProblemError(self._wrong, str(error)) from error  # no such node, or one that cannot


class OwnSite:
    """ASGI middleware that refuses what another site's page has a browser ask for.

    A link to a page is followed, wherever it stands; all else that a browser says comes from elsewhere is refused, and
    so is what names an origin that is not this host.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (said := _foreign(scope)):
            await problem(403, said, scope.get("state", {}).get("request_id", ""))(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _foreign(scope: Scope) -> str:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    site = headers.get("sec-fetch-site", "none")
    follows = scope["method"] == "GET" and headers.get("sec-fetch-mode") == "navigate"
    if site not in ("same-origin", "none") and not follows:
        return f"a request from another site ({site}) is refused"
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != headers.get("host", ""):
        return f"a request from {origin[:200]} is refused: this is {headers.get('host', '')[:200]}"
    return ""


def _named_rightly(request: Request) -> None:
    """Raise ProblemError where no token is given and the host is not this machine: a name may be made to lead here."""
    name = request.url.hostname or ""
    if not is_loopback(name):
        raise ProblemError(403, f"without a token this is for 127.0.0.1 and localhost, not for {name[:200]!r}")


def _event(name: str, data: bytes) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"


def _file(name: str) -> Response:
    file, kind = FILES[name]
    body = files("copilotlab.service").joinpath("page", file).read_bytes()
    return Response(body, media_type=kind, headers=HEADERS)


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json", headers={"Cache-Control": "no-store"})
