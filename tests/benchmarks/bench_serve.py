"""What HTTP adds to a search: `copilotlab serve` in a process of its own, beside ``node.search`` here, in one run.

    python tests/benchmarks/bench_serve.py                       # the shipped catalogue and questions, model hash
    python tests/benchmarks/bench_serve.py --model wordllama --requests 4000 --clients 16

First one client, which asks each question over HTTP and then of a node in this process: p50 and p99 of both, in ms.
Then several clients at once: requests per second, and per second of the service's processor time, which is what one
core can do where the machine is busy with other things too. Both nodes hold the same charts; no question comes twice
within 256, so that none is answered from the node's memory of the last queries.
"""

from __future__ import annotations

import argparse
import re
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit

import numpy as np
import polars as pl

from copilotlab import ChartRepository, LocalRedis, Node, load_embedder
from copilotlab.lab import catalogue
from copilotlab.lab.services import ServiceProcess

K = 10
STARTS_WITHIN = 120.0  # seconds


class Client:
    """One kept connection, with as little of its own as can be: what is measured is the service."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._read = b""

    def get(self, path: str) -> bytes:
        """Return the body of what is there. Raises RuntimeError for anything but 200."""
        self._socket.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
        while (end := self._read.find(b"\r\n\r\n")) < 0:
            self._receive()
        head, length = self._read[:end].lower(), 0
        if not head.startswith(b"http/1.1 200"):
            raise RuntimeError(f"GET {path}: {self._read!r}")
        if stated := re.search(rb"content-length: (\d+)", head):
            length = int(stated[1])
        while len(self._read) < end + 4 + length:
            self._receive()
        body, self._read = self._read[end + 4 : end + 4 + length], self._read[end + 4 + length :]
        return body

    def _receive(self) -> None:
        if not (piece := self._socket.recv(65_536)):
            raise RuntimeError("the service closed the connection")
        self._read += piece

    def processor_seconds(self) -> float:
        """Return what the service has used of the processor so far."""
        found = re.search(rb"^process_cpu_seconds_total (\S+)", self.get("/metrics"), re.MULTILINE)
        assert found
        return float(found[1])

    def close(self) -> None:
        self._socket.close()


@contextmanager
def served(charts: str, redis: str, model: str, flags: Sequence[str], log: Path) -> Iterator[int]:
    """Run a service, and give its port once it is ready."""
    words = ["--charts", charts, "--redis", redis, "--model", model, "--port", "0", "--node-id", "served", *flags]
    process = ServiceProcess(*words, "--drain", "0", log=log).begin()
    try:
        port = urlsplit(process.wait_ready(STARTS_WITHIN).url).port
        assert port
        yield port
    finally:
        process.stop(30)


def path_of(question: str) -> str:
    return f"/v1/search?q={quote(question)}&k={K}"


def one_after_the_other(port: int, node: Node, questions: Sequence[str]) -> tuple[list[float], list[float], float]:
    """Ask each question over HTTP and of the node; return how long each took, in ms, and the processor's seconds."""
    client, http, direct = Client(port), [], []
    used = client.processor_seconds()
    for question in questions:
        path = path_of(question)
        began = time.perf_counter()
        client.get(path)
        between = time.perf_counter()
        node.search(question, K)
        direct.append(1e3 * (time.perf_counter() - between))
        http.append(1e3 * (between - began))
    used = client.processor_seconds() - used
    client.close()
    return http, direct, used


def all_at_once(port: int, questions: Sequence[str], clients: int) -> tuple[float, float, list[float]]:
    """Ask with several clients; return the seconds that passed, those of the service's processor, and each in ms."""
    took: list[list[float]] = [[] for _ in range(clients)]
    ready = threading.Barrier(clients + 1, timeout=60)

    def ask(number: int) -> None:
        client = Client(port)
        ready.wait()
        for question in questions[number::clients]:
            began = time.perf_counter()
            client.get(path_of(question))
            took[number].append(1e3 * (time.perf_counter() - began))
        client.close()

    threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(clients)]
    for thread in threads:
        thread.start()
    onlooker = Client(port)
    used = onlooker.processor_seconds()
    ready.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds, used = time.perf_counter() - began, onlooker.processor_seconds() - used
    onlooker.close()
    return seconds, used, [one for client in took for one in client]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="hash", help="the embedding model (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=3_000, help="of each part (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=8, help="in the second part (default: %(default)s)")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="for the service: all that follows")
    options = parser.parse_args()
    asked = catalogue.questions()["text"].to_list()
    questions = [asked[number % len(asked)] for number in range(options.requests)]
    with tempfile.TemporaryDirectory() as folder, LocalRedis(tcp=True) as server:
        url = f"sqlite:///{folder}/charts.db"
        with (
            ChartRepository.from_frame(catalogue.charts(), url) as charts,
            served(url, server.url, options.model, options.flags, Path(folder) / "log") as port,
            Node(charts, load_embedder(options.model), server.url, node_id="here") as node,
        ):
            node.wait_complete(STARTS_WITHIN)
            one_after_the_other(port, node, questions[:500])  # what is read and compiled once
            http, direct, alone = one_after_the_other(port, node, questions)
            seconds, used, at_once = all_at_once(port, questions, options.clients)
            held = len(node.store)
    rows = [
        ("node.search", 1, *np.quantile(direct, [0.5, 0.99]), None, None),
        ("over HTTP", 1, *np.quantile(http, [0.5, 0.99]), 1e3 * len(http) / sum(http), len(http) / alone),
        ("over HTTP", options.clients, *np.quantile(at_once, [0.5, 0.99]), len(at_once) / seconds, len(at_once) / used),
    ]
    schema = ["search", "clients", "p50_ms", "p99_ms", "per_second", "per_core_second"]
    print(f"{held:,} charts, model {options.model}, k = {K}, {options.requests:,} requests each")
    with pl.Config(tbl_cols=-1, tbl_width_chars=140, float_precision=2, tbl_hide_dataframe_shape=True):
        print(pl.DataFrame(rows, schema=schema, orient="row"))


if __name__ == "__main__":
    main()
