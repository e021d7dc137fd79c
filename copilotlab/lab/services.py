"""Services of one cluster, each a process of its own, on an embedded server: `make serve`.

with Services(3) as services:
    services.urls["node-0"]  # its page is at /admin, and wants services.token
    services.partition("node-1"), services.redis.kill(), services.processes["node-2"].kill()
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
import webbrowser
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from copilotlab.charts import ChartRepository
from copilotlab.lab.catalogue import catalogue_path
from copilotlab.lab.proxy import FaultProxy
from copilotlab.lab.server import LocalRedis, ReservedPort
from copilotlab.reasons import short

PATIENCE = 120.0  # seconds until a service listens, and until it is ready
TO_END = 20.0  # seconds that a service gets to end in order
LOOK = 0.05  # seconds between two looks at what is waited for


class ServiceProcess:
    """A service as a process: begun, waited for, broken and ended; it can be begun again.

    flags: of ``command``, "serve" by default. log: the file that its log is added to. environment: variables besides
    those of this process.
    """

    def __init__(self, *flags: str, log: Path, command: str = "serve", environment: dict[str, str] | None = None):
        self.url = ""
        """Where it listens, once it does."""
        self.log = log
        self._words = [sys.executable, "-m", "copilotlab", command, *flags]
        self._environment = environment or {}
        self._process: subprocess.Popen[bytes] | None = None
        self._said = 0  # bytes of the log that are older than this process

    @property
    def running(self) -> bool:
        """Whether it lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        """How it ended; None while it lives or was not begun."""
        return self._process.poll() if self._process else None

    def begin(self) -> Self:
        """Start the process; wait for nothing."""
        with self.log.open("ab") as log:
            self._said = log.tell()
            self._process = subprocess.Popen(self._words, stderr=log, env=os.environ | self._environment)
        return self

    def wait_listening(self, timeout: float = PATIENCE) -> str:
        """Wait until it listens, and return where. Raises RuntimeError, with what it said, if it does not."""
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            if found := re.search(r"listening on (http://[^\s\"]+)", self.said()):
                self.url = found[1]
                return self.url
            if not self.running:
                break
            time.sleep(LOOK)
        raise RuntimeError(f"it does not serve: {self.said()[-1_000:]}")

    def wait_ready(self, timeout: float = PATIENCE) -> Self:
        """Wait until /readyz answers 200. Raises RuntimeError, with what it said, if it does not."""
        until = time.monotonic() + timeout
        self.wait_listening(timeout)
        while self.running and time.monotonic() < until:
            if self.ready():
                return self
            time.sleep(LOOK)
        raise RuntimeError(f"it is not ready after {timeout:g} s: {self.said()[-1_000:]}")

    def ready(self, timeout: float = 5.0) -> bool:
        """Tell whether /readyz answers 200, within so many seconds."""
        address = urlsplit(self.url)
        connection = HTTPConnection(address.hostname or "", address.port, timeout=timeout)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()

    def said(self) -> str:
        """Return what it has logged since it was last begun."""
        with self.log.open("rb") as log:
            log.seek(self._said)
            return log.read().decode(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal: SIGTERM asks it to end in order. Wait for nothing; one that has ended gets none."""
        if self._process is not None:
            self._process.send_signal(number)

    def wait(self, timeout: float = TO_END) -> int:
        """Wait until it has ended by itself, or end it at once after ``timeout`` seconds; return how it ended."""
        if self._process is None:
            return 0
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return self.kill()

    def stop(self, timeout: float = TO_END) -> int:
        """End it in order, or after ``timeout`` seconds at once; return how it ended, 0 where it did in order."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def kill(self) -> int:
        """End it at once, by SIGKILL; return how it ended."""
        if self._process is None:
            return 0
        self._process.kill()
        return self._process.wait()

    def __repr__(self) -> str:
        return f"ServiceProcess({self.url or 'not begun'}, {'running' if self.running else 'not running'})"


class Services:
    """Some services as processes, with a Redis and a database of their own, which go with them.

    nodes: how many, 1 to 16; model: their embedding model; charts: a file of charts, by default the catalogue that
    ships; database: URL of another database, which is not emptied; flags: more of `copilotlab serve`. Begin with
    `start`, end with `close`, or use ``with``. Each keeps its port when it is begun again, and reaches Redis through a
    line of its own. Raises ValueError for a number that makes no sense, and, from `start`, RuntimeError for a service
    that does not come up, with what it said.
    """

    def __init__(
        self,
        nodes: int = 3,
        *,
        model: str = "wordllama",
        charts: str | Path | None = None,
        database: str | None = None,
        flags: Sequence[str] = (),
    ) -> None:
        if isinstance(nodes, bool) or not isinstance(nodes, int) or not 1 <= nodes <= 16:
            raise ValueError(f"nodes={short(nodes)}: expected 1 to 16")
        self.token = secrets.token_urlsafe(24)
        """What all of them want for what is not reading."""
        self.urls: dict[str, str] = {}
        """Where each listens, by its name."""
        self.processes: dict[str, ServiceProcess] = {}
        self.lines: dict[str, FaultProxy] = {}
        """The line of each to Redis."""
        self._names = [f"node-{number}" for number in range(nodes)]
        self._model = model
        self._charts = catalogue_path("charts") if charts is None else charts
        self._database = database
        self._options = flags
        self._ends = contextlib.ExitStack()

    def start(self) -> Self:
        """Start the server, fill the database, and start all services; returns once each listens."""
        try:
            folder = Path(self._ends.enter_context(tempfile.TemporaryDirectory(prefix="copilotlab-services-")))
            self.redis = self._ends.enter_context(LocalRedis())
            database = self._database or f"sqlite:///{folder / 'charts.db'}"
            with ChartRepository(database) as repository:
                repository.load_frame(self._charts)
            self._ends.callback(self._end)
            for name in self._names:
                self.processes[name] = self._made(name, folder / f"{name}.log", database)
                self.processes[name].begin()
            for name in self._names:
                self._listens(name)
        except BaseException:
            self.close()
            raise
        return self

    def _made(self, name: str, log: Path, database: str) -> ServiceProcess:
        line = self.lines[name] = self._ends.enter_context(FaultProxy(self.redis.endpoint))
        port = self._ends.enter_context(contextlib.closing(ReservedPort()))
        where = ["--charts", database, "--redis", line.url(self.redis.password), "--port", str(port.address[1])]
        return ServiceProcess(
            *where,
            *("--model", self._model, "--node-id", name, *self._options),
            log=log,
            environment={"COPILOTLAB_TOKEN": self.token},
        )

    def _listens(self, name: str) -> None:
        try:
            self.urls[name] = self.processes[name].wait_listening()
        except RuntimeError as error:
            raise RuntimeError(f"{name}: {error}") from error

    def wait_ready(self, *names: str, timeout: float = PATIENCE) -> None:
        """Wait until these are ready, by default all. Raises RuntimeError for one that does not become it."""
        for name in names or self._names:
            self.processes[name].wait_ready(timeout)

    def partition(self, name: str) -> None:
        """Cut one off from Redis, until `heal`."""
        self.lines[name].cut("blackhole")

    def heal(self, name: str) -> None:
        """Mend the line of one to Redis."""
        self.lines[name].heal()

    def _end(self) -> None:
        for process in self.processes.values():
            process.signal(signal.SIGTERM)
        until = time.monotonic() + TO_END
        for process in self.processes.values():
            process.wait(max(0.1, until - time.monotonic()))  # told once: a second signal would cut the end short

    def close(self) -> None:
        """End all services in order, at most 20 s, then the server, and remove what they wrote."""
        self._ends.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        running = sum(process.running for process in self.processes.values())
        return f"Services({running} of {len(self._names)} running, {self._model!r})"


def main() -> int:
    """Run three services until Ctrl-C, and open the page of the first."""
    told = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: told.set())
    print("starting three services ...", flush=True)
    with Services(3, flags=["--drain", "0"]) as services:
        for name, url in services.urls.items():
            print(f"{name}  {url}/admin")
        print(f"token   {services.token}\nCtrl-C ends them", flush=True)
        webbrowser.open(f"{services.urls['node-0']}/admin")
        while not told.wait(1.0):
            pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
