"""``copilotlab serve``, ``rebuild``, ``admin`` and ``config``: from flags to what runs, and to its end."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from copilotlab.charts import ChartRepository
from copilotlab.cluster import Cluster
from copilotlab.embedding import load_embedder
from copilotlab.node import Node
from copilotlab.reasons import reason
from copilotlab.service.app import Service, create_admin, create_app
from copilotlab.service.door import REQUEST_ID
from copilotlab.service.settings import AdminSettings, ListeningSettings, NodeSettings, Settings, load_settings

_log = logging.getLogger("copilotlab.service")


def serve(flags: Sequence[str] = ()) -> int:
    """Serve one node until SIGTERM or Ctrl-C; return 0 if it ended in order.

    Then it is not ready, and goes on answering for ``drain`` seconds, each answer the last of its connection; takes no
    new connections, finishes the requests under way (at most ``grace`` seconds), gives a lease back, and leaves Redis.
    Raises SettingsError, EmbeddingError, RepositoryError, CarrierRefused, OSError.
    """
    settings, _ = load_settings(Settings, flags)
    _check_free(settings)
    with ChartRepository(settings.charts) as charts:
        node = _node_of(settings, charts, settings.snapshot)
        log_as(settings.log, node.node_id)
        if not len(charts):
            _log.warning("%r holds no charts yet: is that the one that was meant?", charts)
        try:
            return run(node, settings)
        finally:
            node.stop()


def run(node: Node, settings: Settings) -> int:
    """Serve a node that was made before; see `serve`."""
    app = create_app(node, settings)
    service: Service = app.state.service
    server = _Server(app, settings, service.hold_back, service.listens_at)
    service.node.orders.stop = server.end
    return server.serve_until_told()


def rebuild(flags: Sequence[str] = ()) -> int:
    """Bring every chart into the cluster once, as one more node of it, with a bar; return 0 if nothing is missing then.

    What the other nodes hold is fetched, and the rest is embedded here and told to them. Raises what `serve` does.
    """
    settings, _ = load_settings(NodeSettings, flags, program="copilotlab rebuild")
    with ChartRepository(settings.charts) as charts, _node_of(settings, charts) as node:
        log_as(settings.log, node.node_id)
        result = node.rebuild(progress=True)
        held, by = len(node.store), "another batch" if result.outcome in ("deferred", "fenced") else "this one"
        print(
            f"{held:,} charts held, brought by {by} ({result.outcome}: {result.embedded:,} embedded, "
            f"{result.reused:,} reused, {result.removed:,} removed, {result.seconds:.1f} s)"
        )
        if result.missing:
            print(f"{result.missing:,} charts are missing: {result.reason}")
    return 0 if not result.missing else 1


def admin(flags: Sequence[str] = ()) -> int:
    """Serve the admin page without a node until SIGTERM or Ctrl-C; return 0 if it ended in order.

    ``--connect URL`` is ``--redis URL``. Raises SettingsError, RepositoryError, CarrierRefused, OSError.
    """
    named = [f"--redis{flag[9:]}" if flag.partition("=")[0] == "--connect" else flag for flag in flags]
    settings, _ = load_settings(AdminSettings, named, program="copilotlab admin")
    _check_free(settings)
    log_as(settings.log, "admin")
    with (
        ChartRepository(settings.charts) as charts,
        Cluster(settings.redis, settings.namespace, charts=charts) as cluster,
    ):
        app, page = create_admin(cluster, settings)

        def end(_why: str) -> None:
            page.ending = True

        def listens_at(url: str) -> None:
            _log.info("the page is at %s/admin", url)

        return _Server(app, settings, end, listens_at).serve_until_told()


def _node_of(settings: NodeSettings, charts: ChartRepository, snapshot: Path | None = None) -> Node:
    return Node(
        charts,
        load_embedder(settings.model),
        settings.redis,
        policy=settings.policy.made(),
        node_id=settings.node_id,
        namespace=settings.namespace,
        snapshot=snapshot,
        words=True,
    )


def _check_free(settings: ListeningSettings) -> None:
    """Raise OSError where nobody could listen, before a model is loaded and a node begun for it."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise OSError(f"host={settings.host!r}, port={settings.port}: {reason(error)}; choose another") from None


def _config(app: FastAPI, settings: ListeningSettings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        settings.host,
        settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=settings.keep_alive,
        timeout_graceful_shutdown=max(1, round(settings.grace)),
        lifespan="on",
    )


ANY = ("0.0.0.0", "::")  # every address of this host
LOOK = 0.05  # seconds between two looks whether the end was asked for once more
LAST_WORDS = 0.1  # seconds in which a connection that was accepted last says what it wants


class _Server(uvicorn.Server):
    """Tells that it ends as soon as it is told to, and where it listens once it does.

    ends: called with why it ends. listens_at: called with its address.
    """

    def __init__(
        self,
        app: FastAPI,
        settings: ListeningSettings,
        ends: Callable[[str], object],
        listens_at: Callable[[str], object],
    ) -> None:
        super().__init__(_config(app, settings))
        self._ends = ends
        self._listens_at = listens_at
        self._drain = settings.drain

    def serve_until_told(self) -> int:
        """Serve until a signal; return 0 if it began to."""
        # uvicorn ends in order, and then raises the signal once more: that is to find somebody, and do nothing.
        before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            self.run()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return 0 if self.started else 1

    def end(self) -> None:
        """Begin to end, as by a signal."""
        self._ends("the service was asked to end")
        self.should_exit = True

    def handle_exit(self, sig: int, frame: object) -> None:
        """Begin to end, by a signal."""
        self._ends("the service is ending")
        super().handle_exit(sig, frame)  # type: ignore[arg-type]  # uvicorn's own frame

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Bind, and say where."""
        await super().startup(sockets)  # type: ignore[arg-type]
        for server in getattr(self, "servers", []):
            for listening in server.sockets:
                host, port = listening.getsockname()[:2]
                _log.info("listening on http://%s:%d", host, port)
                self._listens_at(f"http://{socket.gethostname() if host in ANY else host}:{port}")

    async def shutdown(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Answer until those who send requests here have seen that it ends, at most ``drain`` seconds; then end."""
        until = time.monotonic() + self._drain
        while not self.force_exit and time.monotonic() < until:
            await asyncio.sleep(LOOK)
        for server in self.servers:
            server.close()
        await asyncio.sleep(LAST_WORDS)  # uvicorn hangs up on a connection that has not asked for anything yet
        await super().shutdown(sockets)  # type: ignore[arg-type]


def show_config(flags: Sequence[str] = ()) -> int:
    """Print the effective settings, each with where it comes from, secrets hidden. Raises SettingsError."""
    _, effective = load_settings(Settings, flags, program="copilotlab config")
    width = max(len(row.name) for row in effective)
    values = max(len(row.value) for row in effective)
    for row in effective:
        print(f"{row.name:<{width}}  {row.value:<{values}}  {row.origin}")
    return 0


# --- logs -------------------------------------------------------------------------------------------------------------


def log_as(form: str, node_id: str) -> None:
    """Write the logs of copilotlab and uvicorn to stderr. form: "plain" or "json", an object a line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json(node_id) if form == "json" else _Plain(node_id))
    for name in ("copilotlab", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers[:], logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


class _Plain(logging.Formatter):
    def __init__(self, node_id: str) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s [%(node)s %(request)s] %(message)s")
        self._node_id = node_id

    def format(self, record: logging.LogRecord) -> str:
        record.node, record.request = self._node_id, REQUEST_ID.get() or "-"
        return super().format(record)


class _Json(logging.Formatter):
    def __init__(self, node_id: str) -> None:
        super().__init__()
        self._node_id = node_id

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "node": self._node_id,
            "request": REQUEST_ID.get(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)
