"""Nodes in processes of their own, each node behind its own proxy, on one real server and one file of charts."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace

from trial import at_rest

from copilotlab import Chart, ChartRepository
from copilotlab.lab import FaultProxy, LocalRedis
from copilotlab.lab.search_watch import Search

SCRIPT = Path(__file__).with_name("node_process.py")
PATIENCE = 60.0  # seconds for one answer of a process that runs


class NodeProcess:
    """One process with some nodes.

    group: the process group that it is put into. prefix: what runs it, as sudo would.
    """

    def __init__(self, given: dict, group: int, prefix: Sequence[str] = ()) -> None:
        self.nodes = list(given["nodes"])
        self.alive = True
        self.frozen = False
        self.pauses: list[tuple[float, float]] = []  # from when to when it was frozen
        self._process = subprocess.Popen(
            [*prefix, sys.executable, str(SCRIPT), json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=group,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        self._answers: queue.Queue[str] = queue.Queue()
        self._number = 0  # of the command that was sent last
        threading.Thread(target=self._read, daemon=True).start()
        self._asked = threading.Lock()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _read(self) -> None:
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def send(self, do: str, **arguments: object) -> None:
        """Ask, and read the answer later: so that all processes can be at it at once."""
        self._number += 1
        self._process.stdin.write(json.dumps({"do": do, "number": self._number, **arguments}) + "\n")
        self._process.stdin.flush()

    def read(self, limit: float = PATIENCE) -> dict:
        """The answer to what was sent last; late ones to what was given up are dropped."""
        give_up = time.monotonic() + limit
        while True:
            try:
                line = self._answers.get(timeout=max(0.0, give_up - time.monotonic()))
            except queue.Empty:
                raise TimeoutError(f"the process of {self.nodes} has not answered for {limit:g} s") from None
            if not line:
                self._answers.put(line)  # for whoever asks next
                raise EOFError(f"the process of {self.nodes} has ended, status {self._process.poll()}")
            answer = json.loads(line)
            if answer["number"] == self._number:
                return answer

    def ask(self, do: str, **arguments: object) -> object:
        """The answer to one command; whoever else asks this process waits meanwhile."""
        with self._asked:
            self.send(do, **arguments)
            return self.answer(do)

    def answer(self, do: str) -> object:
        answer = self.read()
        if "error" in answer:
            raise RuntimeError(f"{do} on {self.nodes}: {answer['error']}")
        return answer["answer"]

    def freeze(self) -> None:
        """SIGSTOP."""
        self._process.send_signal(signal.SIGSTOP)
        self.frozen = True
        self.pauses.append((time.monotonic(), float("inf")))

    def thaw(self) -> None:
        """SIGCONT."""
        self._process.send_signal(signal.SIGCONT)
        self.frozen = False
        self.pauses[-1] = (self.pauses[-1][0], time.monotonic())

    def was_frozen(self, search: Search) -> bool:
        """Whether it took long since the whole process stood still."""
        return any(search.asked < end and search.asked + search.seconds > begin for begin, end in self.pauses)

    @property
    def crashed(self) -> bool:
        """Whether it ended though nobody ended it."""
        return self.alive and self._process.poll() is not None

    def kill(self) -> None:
        """SIGKILL."""
        self.alive = False
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End it in order; by force if it will not."""
        if self.alive and not self.frozen:
            with suppress(BrokenPipeError):  # it has ended by itself
                self._process.stdin.close()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
        else:
            self.kill()
        self.alive = False
        self._process.stdout.close()


class _Gate:
    """A gate in every process that runs, or in one of them."""

    def __init__(self, cluster: Processes, part: str) -> None:
        self._cluster, self._part = cluster, part

    def _all(self, action: str) -> None:
        """Tell every process; one that cannot be told keeps it from nobody else."""
        troubles = []
        for process in self._cluster.running:
            try:
                process.ask("gate", part=self._part, action=action)
            except (OSError, EOFError, RuntimeError) as error:
                troubles.append(error)
        if troubles:
            raise troubles[0]

    def fail(self) -> None:
        self._all("fail")

    def hang(self) -> None:
        self._all("hang")

    def mend(self) -> None:
        self._all("mend")


class Processes:
    """A cluster of ``size`` nodes, ``per_process`` of them in each process. It has what `copilotlab.lab.faults` need.

    Use it as a context manager. charts: what the repository has before any node starts.
    """

    where = "processes"
    closed = False

    def __init__(
        self, size: int, *, charts: list[Chart], queries: list[str], policy: dict, per_process: int = 1
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="copilotlab-")
        self.folder = self._folder.name
        self._log = Path(self.folder, "embedded.log")
        self._log.touch()
        self._start_services()
        self.repository.save_many(charts)
        self.embedder = SimpleNamespace(gate=_Gate(self, "model"))
        self.charts = SimpleNamespace(gate=_Gate(self, "repository"))
        self.trials, self.sound = 0, True  # that it went through; whether the last one ended well
        self.proxies: list[FaultProxy] = []
        self.processes: list[NodeProcess] = []
        self._process_of: list[NodeProcess] = []
        self._policy, self._queries, self._per_process = policy, queries, per_process
        try:
            for _ in range(0, size, per_process):
                self.add_process()
            for process in self.processes:
                process.read()  # it is ready
        except BaseException:  # an interrupt too: a cluster that did not start leaves nothing running
            self.__exit__()
            raise

    def _start_services(self) -> None:
        """Start what all nodes share: the server, and the repository with its URL, as the nodes know it."""
        self.url = f"sqlite:///{self.folder}/charts.db"
        self.repository = ChartRepository(self.url)
        self.redis = LocalRedis(password="known").start()

    def _new_line(self, index: int) -> str:
        """The URL of the server, as node ``index`` knows it."""
        self.proxies.append(FaultProxy(self.redis.endpoint))
        return self.proxies[index].url("known")

    def _prefix(self) -> Sequence[str]:
        """What runs the next process."""
        return ()

    def add_process(self, *, wait: bool = False) -> NodeProcess:
        """One more, with new nodes that hold nothing."""
        first = len(self._process_of)
        nodes = {f"node-{index}": self._new_line(index) for index in range(first, first + self._per_process)}
        process = NodeProcess(
            {
                "repository": self.url,
                "log": str(self._log),
                "policy": self._policy,
                "pace": 0.0,
                "queries": self._queries,
                "nodes": nodes,
            },
            # The server's: what is in it ends with the owner, even if the owner is killed and it is frozen.
            self.redis._watchdog.pid,
            self._prefix(),
        )
        self.processes.append(process)
        self._process_of += [process] * self._per_process
        if wait:
            try:
                process.read()
            except BaseException:  # an interrupt too: what is not ready is no member
                process.kill()
                raise
        return process

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True
        with ExitStack() as stack:  # the last first, and each of them whatever the others raise
            stack.callback(self._folder.cleanup)
            stack.callback(self.repository.close)
            stack.callback(self.redis.close)
            for part in (*self.proxies, *self.processes):
                stack.callback(part.close)

    # --- members ----------------------------------------------------------------------------------------------

    @property
    def running(self) -> list[NodeProcess]:
        return [process for process in self.processes if process.alive and not process.frozen]

    @property
    def able(self) -> list[int]:
        """The nodes that can be told something now."""
        return [i for i, process in enumerate(self._process_of) if process in self.running]

    def process_of(self, index: int) -> NodeProcess:
        return self._process_of[index]

    def ask(self, index: int, do: str, **arguments: object) -> object:
        return self._process_of[index].ask(do, node=f"node-{index}", **arguments)

    def ask_all(self, do: str, **arguments: object) -> dict:
        """The answers of all processes that run, by node."""
        asked = self.running
        answers: dict = {}
        with ExitStack() as stack:
            for process in asked:
                stack.enter_context(process._asked)
                process.send(do, **arguments)
            for process in asked:
                answers.update(process.answer(do))
        return answers

    # --- what a trial asks of a cluster -----------------------------------------------------------------------

    def update(self, index: int, chart: Chart) -> str:
        return str(self.ask(index, "update", chart_id=chart.chart_id, title=chart.title))

    def delete(self, index: int, chart_id: int) -> str:
        return str(self.ask(index, "delete", chart_id=chart_id))

    def save_elsewhere(self, charts: list[Chart]) -> None:
        self.repository.save_many(charts)

    def begin_batch(self, index: int) -> None:
        self.ask(index, "begin")

    def batch_progress(self, index: int) -> int:
        """How many charts of its batch are done; -1 without one."""
        batch = str(self.ask(index, "batch"))
        return int(batch.split()[1].split("/")[0]) if batch else -1

    def pace(self, seconds: float) -> None:
        for process in self.running:
            process.ask("pace", seconds=seconds)

    def settled(self) -> bool:
        """Whether all nodes that run are at rest."""
        return at_rest(self.ask_all("states").values())

    def differences(self, nodes: list[int] | None = None) -> list[str]:
        """What keeps these nodes, or all that run, from holding what the repository holds, and all the same bits."""
        changes = self.repository.changes_since(0)
        expected = {c.chart_id: (c.revision, c.chart.content_hash.hex()) for c in changes if c.chart is not None}
        found: list[str] = []
        bits: dict[int, str] = {}
        for index in self.able if nodes is None else nodes:
            rows = {row[0]: row[1:] for row in self.ask(index, "manifest")}
            for chart_id in sorted(rows.keys() | expected.keys()):
                revision, content, vector = rows.get(chart_id, (None, None, None))
                if expected.get(chart_id) != (None if revision is None else (revision, content)):
                    found.append(f"node-{index}: chart {chart_id}: {revision}, not {expected.get(chart_id)}")
                elif vector != bits.setdefault(chart_id, vector):
                    found.append(f"node-{index}: chart {chart_id}: other bits")
        return found

    def made(self) -> Counter[str]:
        """How often each text was embedded, by whomever, queries left out."""
        with self._log.open() as lines:
            return Counter(text for line in lines if (text := json.loads(line)) not in self._queries)

    def bytes_moved(self) -> int:
        return sum(proxy.bytes_up + proxy.bytes_down for proxy in self.proxies)

    def searches(self, since: float) -> dict[str, list[Search]]:
        """Every search since then of the processes that run, without those during which the process was frozen."""
        kept = {}
        for process in self.running:
            for name, searches in process.ask("searches", since=since).items():
                timed = [Search(*search) for search in searches]
                kept[name] = [search for search in timed if not process.was_frozen(search)]
        return kept

    def silences(self) -> list[float]:
        """None that tells of the machine: processes are frozen on purpose."""
        return []

    def complaints(self) -> list[str]:
        """What searches raised, and what went backwards."""
        return [complaint for found in self.ask_all("found").values() for complaint in found]
