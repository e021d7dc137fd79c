"""Services of one cluster, each a process of its own, on an embedded server: `make serve`.

with Services(3) as services:
    services.urls["node-0"]  # its page is at /admin, and wants services.token
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
from pathlib import Path
from types import TracebackType
from typing import Self

from copilotlab.charts import ChartRepository
from copilotlab.lab.catalogue import catalogue_path
from copilotlab.lab.server import LocalRedis
from copilotlab.reasons import short

PATIENCE = 120.0  # seconds until a service listens
TO_END = 20.0  # seconds that a service gets to end in order


class Services:
    """Some services as processes, with a Redis and a database of their own, which go with them.

    nodes: how many, 1 to 16; model: their embedding model; charts: a file of charts, by default the catalogue that
    ships. Begin with `start`, end with `close`, or use ``with``. Raises ValueError for a number that makes no sense,
    and, from `start`, RuntimeError for a service that does not come up, with what it said.
    """

    def __init__(self, nodes: int = 3, *, model: str = "wordllama", charts: str | Path | None = None) -> None:
        if isinstance(nodes, bool) or not isinstance(nodes, int) or not 1 <= nodes <= 16:
            raise ValueError(f"nodes={short(nodes)}: expected 1 to 16")
        self.token = secrets.token_urlsafe(24)
        """What all of them want for what is not reading."""
        self.urls: dict[str, str] = {}
        """Where each listens, by its name."""
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._names = [f"node-{number}" for number in range(nodes)]
        self._model = model
        self._charts = catalogue_path("charts") if charts is None else charts
        self._ends = contextlib.ExitStack()

    def start(self) -> Self:
        """Start the server, fill the database, and start all services; returns once each listens."""
        try:
            folder = Path(self._ends.enter_context(tempfile.TemporaryDirectory(prefix="copilotlab-services-")))
            server = self._ends.enter_context(LocalRedis())
            database = f"sqlite:///{folder / 'charts.db'}"
            with ChartRepository(database) as repository:
                repository.load_frame(self._charts)
            self._ends.callback(self._end)
            for name in self._names:
                self._begin(name, folder / f"{name}.log", "--charts", database, "--redis", server.url)
            for name in self._names:
                self.urls[name] = self._listens(name, folder / f"{name}.log")
        except BaseException:
            self.close()
            raise
        return self

    def _begin(self, name: str, log: Path, *flags: str) -> None:
        words = ["serve", *flags, "--model", self._model, "--node-id", name, "--port", "0"]
        with log.open("wb") as said:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "copilotlab", *words],
                stderr=said,
                env=os.environ | {"COPILOTLAB_TOKEN": self.token},
            )

    def _listens(self, name: str, log: Path) -> str:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            if found := re.search(r"listening on (http://\S+)", log.read_text(errors="replace")):
                return found[1]
            if self.processes[name].poll() is not None:
                break
            time.sleep(0.05)
        raise RuntimeError(f"{name} does not serve: {log.read_text(errors='replace')[-1_000:]}")

    def _end(self) -> None:
        for process in self.processes.values():
            process.terminate()
        until = time.monotonic() + TO_END
        for process in self.processes.values():
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

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
        running = sum(process.poll() is None for process in self.processes.values())
        return f"Services({running} of {len(self._names)} running, {self._model!r})"


def main() -> int:
    """Run three services until Ctrl-C, and open the page of the first."""
    told = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: told.set())
    print("starting three services ...", flush=True)
    with Services(3) as services:
        for name, url in services.urls.items():
            print(f"{name}  {url}/admin")
        print(f"token   {services.token}\nCtrl-C ends them", flush=True)
        webbrowser.open(f"{services.urls['node-0']}/admin")
        while not told.wait(1.0):
            pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
