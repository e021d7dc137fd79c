"""Eight nodes in four processes for ten minutes: random edits, deletions, searches, faults; then all are compared.

    python tests/benchmarks/soak.py --minutes 10 --seed 7

At the end all faults are over and nobody writes any more. Every node must then hold what the repository holds, byte for
byte as the others do; no chart may ever have gone back or come back, and no search may have failed. Prints a summary,
and whatever happens a verdict as the last line; the exit code is 1 if any of that is not so, or if the soak was not
carried through. What was decided at random follows from the seed; how threads and processes interleave does not.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import random
import shutil
import signal
import statistics
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "faults"))

from processes import PATIENCE, NodeProcess, Processes

from copilotlab import Chart, load_embedder
from copilotlab.charts import RepositoryError
from copilotlab.lab.faults import FAULTS, Fault

NODES, PROCESSES = 8, 4
CHARTS = 400
QUERIES = ["revenue of product 7", "espresso", "words that no chart has", "margin by region"]
POLICY = {
    "probe_interval": 0.2,
    "heartbeat_interval": 0.4,
    "batch_timeout": 5.0,
    "claim_timeout": 5.0,
    "adopt_after": 10.0,
    "sync_interval": 60.0,
    "chunk_size": 16,
}
SETTLES_WITHIN = 120.0  # seconds: a limit, not a measure
ENDS_WITHIN = 30.0  # seconds in which the end of a fault is tried again
EDITORS_END_WITHIN = 2 * PATIENCE  # seconds: an edit asks a process twice at most
OVERTIME = 900.0  # seconds beyond the asked for: then it hangs, and that is the verdict
BETWEEN_FAULTS = (0.5, 5.0)  # seconds
SHOWN = (
    "outages",
    "memory_losses",
    "gaps",
    "reconciliations",
    "digests_differed",
    "batches",
    "fenced",
    "sleeps",
)
# Whoever saves would wait for a repository that hangs, and here that is whoever edits; and what was saved has to stand.
CHOSEN = [
    name for name, fault in FAULTS.items() if fault.scope not in ("data", "peers") and name != "repository hangs"
] + 3 * [
    "process frozen",
    "process killed",
]


class Soak:
    """The cluster, and what was done to it.

    wrong: what did not hold, in a line each. traces: of what was raised where nothing may be. retries: what was met by
    another fault, and tried again.
    """

    def __init__(self, minutes: float, seed: int) -> None:
        self.seconds, self.seed = 60 * minutes, seed
        self.done: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.retries: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.traces: list[str] = []
        self.cluster: Processes
        self.slots: list[NodeProcess] = []
        self._under_way: list[tuple[float, set[str], str, Callable[[], object]]] = []
        self._stopping = threading.Event()
        self._words = iter(range(10**9))

    def _failed(self, what: str, error: BaseException) -> None:
        """Enter what was raised into the verdict."""
        self.wrong.append(f"{what}: {type(error).__name__}: {error}")
        self.traces.append("".join(traceback.format_exception(error)))

    def _attempt(self, what: str, step: Callable[[], object]) -> bool:
        """Take one step; whether it raised nothing. What it raises is told in the verdict, and the soak goes on."""
        try:
            step()
        except KeyboardInterrupt as error:
            self._failed(f"interrupted, {what}", error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the verdict tells it
            self._failed(what, error)
        else:
            return True
        return False

    # --- edits ------------------------------------------------------------------------------------------------

    def edit_on(self, slot: int) -> None:
        """Edit through the nodes of one process, whichever is in this place now."""
        chance = random.Random(f"{self.seed} editor {slot}")
        while not self._stopping.wait(chance.uniform(0.0, 0.1)):
            self._attempt(f"editor {slot}", lambda: self._edit_once(self.slots[slot], chance))

    def _edit_once(self, process: NodeProcess, chance: random.Random) -> None:
        try:
            outcome = self._edit(process, chance)
        except (EOFError, BrokenPipeError):
            outcome = "ended by a kill"  # or by itself: that is looked for in the end
        except RepositoryError as error:  # the editor's own, beside all those of the nodes
            if "locked" not in str(error):
                raise
            outcome = "refused, the database was locked"
        except RuntimeError as error:  # what a node has raised: then nothing was changed
            outcome = "refused, the database was locked" if "database is locked" in str(error) else "refused"
            if not any(expected in str(error) for expected in ("ChartNotFound", "unreachable", "database is locked")):
                self.wrong.append(str(error))
        self.done[outcome] += 1

    def _edit(self, process: NodeProcess, chance: random.Random) -> str:
        node, chart_id = chance.choice(process.nodes), chance.randrange(1, CHARTS)
        words = f"Espresso {next(self._words)}, product {chart_id}"
        match chance.choices(("update", "delete", "elsewhere", "rebuild"), (75, 15, 9, 1))[0]:
            case "update":
                return "updates " + str(process.ask("update", node=node, chart_id=chart_id, title=words))
            case "delete":
                return "deletions " + str(process.ask("delete", node=node, chart_id=chart_id))
            case "elsewhere":
                self.cluster.repository.save(Chart(chart_id=chart_id, title=words))
                told = chance.sample(process.nodes, chance.randrange(len(process.nodes) + 1))
                for each in told:
                    process.ask("changed", node=each, chart_id=chart_id)
                return f"saved elsewhere, {len(told)} told"
            case _:
                # A rebuild that is asked for while Redis is away embeds for that node alone all that others embedded.
                if process.ask("states")[node]["redis"] == "away":
                    return "rebuilds left out, without Redis"
                process.ask("begin", node=node)
                return "rebuilds"

    # --- faults -----------------------------------------------------------------------------------------------

    def break_things(self, until: float) -> None:
        """Random faults, until then, one at least; several at once where they need different things."""
        chance = random.Random(f"{self.seed} faults")
        over = False
        while not over:
            time.sleep(chance.uniform(*BETWEEN_FAULTS))  # the pace of the faults; nothing is awaited
            self.mend_things(time.monotonic())
            name = chance.choice(CHOSEN)
            lasts, victim = chance.uniform(0.1, 6.0), chance.random()
            if not any(self._needs(name) & needs for _, needs, _, _ in self._under_way):
                self.faults[name] += 1
                self._begin(name, victim, time.monotonic() + lasts)
            over = time.monotonic() >= until

    def mend_things(self, now: float = float("inf")) -> None:
        """End the faults whose time has come; all of them by default."""
        for over in [fault for fault in self._under_way if fault[0] <= now]:
            self._end(*over[2:])
            self._under_way.remove(over)

    def _end(self, name: str, end: Callable[[], object]) -> None:
        """End one fault, and again where that meets another one."""
        give_up = time.monotonic() + ENDS_WITHIN
        while True:
            try:
                end()
                return
            except Exception as error:  # noqa: BLE001 - whatever it is, the other faults have to be ended too
                if time.monotonic() > give_up:
                    self._failed(f"the end of {name!r}", error)
                    return
                self.retries[f"end of {name}: {type(error).__name__}"] += 1
            time.sleep(0.2)  # before it is tried again

    @staticmethod
    def _needs(name: str) -> set[str]:
        """What has to be whole for this fault to begin and to end."""
        if name == "process killed":
            return {"process", "server"}  # the new one has to be let in
        if name == "output buffer cut":
            return {"line", "server"}
        if name not in FAULTS:
            return {"process"}
        scope = FAULTS[name].scope
        return {scope, "process"} if scope in ("model", "repository") else {scope}

    def _begin(self, name: str, victim: float, until: float) -> None:
        """Begin, and know how it ends: what began by half has to be ended too. victim: whom it hits, from 0 to 1."""
        slot, able = int(victim * PROCESSES), self.cluster.able
        if name == "process killed":
            start, end = self.slots[slot].kill, lambda: self._replace(slot)
        elif name == "process frozen":
            start, end = self.slots[slot].freeze, self.slots[slot].thaw
        else:
            fault, index = FAULTS[name], able[int(victim * len(able))]
            start, end = (lambda: self._start(fault, index)), (lambda: fault.end(self.cluster, index))
        self._under_way.append((until, self._needs(name), name, end))
        self._attempt(f"the beginning of {name!r}", start)

    def _start(self, fault: Fault, index: int) -> None:
        try:
            fault.start(self.cluster, index)
        except RuntimeError as error:
            if "was not cut off" not in str(error):  # as a node that is not connected just now
                raise
            self.faults[f"{fault.name}, in vain"] += 1

    def _replace(self, slot: int) -> None:
        self.slots[slot] = self.cluster.add_process(wait=True)

    # --- the end ----------------------------------------------------------------------------------------------

    def run(self) -> bool:
        """All of it, verdict included; whether everything held."""
        print(f"seed {self.seed}", flush=True)
        watchdog = threading.Timer(self.seconds + OVERTIME, self._give_up)
        watchdog.daemon = True
        watchdog.start()
        try:
            if self._attempt("the start of the cluster", self._set_up):
                self._attempt("the soak", self._soak)
                self._attempt("the end of the cluster", lambda: self.cluster.__exit__())
        except BaseException as error:  # a second interrupt
            self._failed("interrupted", error)
            raise
        finally:
            watchdog.cancel()
            self._print_verdict()
        return not self.wrong

    def _set_up(self) -> None:
        first = [Chart(chart_id=i, title=f"Revenue, product {i}") for i in range(1, CHARTS // 2)]
        self.cluster = Processes(NODES, charts=first, queries=QUERIES, policy=POLICY, per_process=NODES // PROCESSES)
        self.slots = list(self.cluster.processes)

    def _soak(self) -> None:
        self.cluster.pace(0.002)
        began, memory = time.monotonic(), self._memory()
        editors = [threading.Thread(target=self.edit_on, args=(slot,), daemon=True) for slot in range(PROCESSES)]
        for editor in editors:
            editor.start()
        carried_through = self._attempt("the faults", lambda: self.break_things(began + self.seconds))
        self._stopping.set()
        self.mend_things()
        self._join(editors)
        lasted = time.monotonic() - began
        self.wrong += [f"the process of {p.nodes} has ended by itself" for p in self.cluster.processes if p.crashed]
        agreed, stores = float("nan"), "nothing"
        if carried_through:
            agreed = self._settle()
            self.wrong += self.cluster.complaints()
            stores = self.compare()
        for line in self._summary(lasted, agreed, stores, memory):
            self._attempt("the summary", lambda line=line: print(line()))

    def _join(self, editors: Sequence[threading.Thread]) -> None:
        give_up = time.monotonic() + EDITORS_END_WITHIN
        for editor in editors:
            editor.join(max(0.0, give_up - time.monotonic()))
            if editor.is_alive():
                self.wrong.append(f"{editor.name} is still at an edit after {EDITORS_END_WITHIN:g} s")
                self.traces.append("".join(traceback.format_stack(sys._current_frames()[editor.ident])))

    def _settle(self) -> float:
        """Wait until all agree; the seconds that it took."""
        healed = time.monotonic()
        while not (self.cluster.settled() and not self.cluster.differences()):
            if time.monotonic() - healed > SETTLES_WITHIN:
                self.wrong += self.cluster.differences()[:20] or ["something is still owed"]
                break
            time.sleep(0.05)
        return time.monotonic() - healed

    def _give_up(self) -> None:
        """The last resort, from a thread of its own: nothing here may hang."""
        faulthandler.dump_traceback(all_threads=True)
        self.wrong.append(f"the soak itself hangs: not over {OVERTIME:g} s after its time, see the stacks above")
        self._print_verdict()
        if hasattr(self, "cluster"):
            shutil.rmtree(self.cluster.folder, ignore_errors=True)
        os._exit(1)  # the server and all processes end with their owner

    def _print_verdict(self) -> None:
        for trace in self.traces[:20]:
            print(trace)
        if self.retries:
            print(f"  tried again {self.retries.total():,}: " + _listed(self.retries))
        for complaint in self.wrong[:50]:
            print(f"  wrong       {complaint}")
        held = f"FAILED: {len(self.wrong)} complaints" if self.wrong else "held"
        print(f"verdict: seed {self.seed} {held}", flush=True)

    def compare(self) -> str:
        """Every record of every store, beside the repository and beside each other; what was compared."""
        cluster, model = self.cluster, load_embedder("hash")
        expected = {
            c.chart_id: (c.revision, c.chart) for c in cluster.repository.changes_since(0) if c.chart is not None
        }
        first: np.ndarray | None = None
        for index in cluster.able:
            path = f"{cluster.folder}/node-{index}.npz"
            cluster.ask(index, "dump", path=path)
            with np.load(path) as held:
                ids, vectors = held["chart_ids"].tolist(), held["vectors"]
                rows = list(zip(ids, held["revisions"].tolist(), held["content_hashes"].tolist(), strict=True))
            if rows != [(i, r, c.content_hash.hex()) for i, (r, c) in sorted(expected.items())]:
                self.wrong.append(f"node-{index} does not hold what the repository holds")
            elif not np.allclose(vectors, model.embed([expected[i][1].text for i in ids]), atol=1e-4):
                self.wrong.append(f"node-{index} holds vectors of other words")
            elif first is not None and first.tobytes() != vectors.tobytes():
                self.wrong.append(f"node-{index} holds other bits than node-{cluster.able[0]}")
            first = vectors if first is None else first
        return (
            f"{len(cluster.able)} stores of {len(expected)} charts, {0 if first is None else first.nbytes:,} bytes each"
        )

    def _memory(self) -> int:
        """Resident megabytes of all processes."""
        pages = [int(Path(f"/proc/{p.pid}/statm").read_text().split()[1]) for p in self.cluster.running]
        return sum(pages) * 4096 // 2**20

    def _summary(self, lasted: float, agreed: float, stores: str, memory: int) -> list[Callable[[], str]]:
        """What makes the lines of it: one that fails costs itself alone."""
        cluster, done = self.cluster, self.done
        return [
            lambda: f"soak: {NODES} nodes in {PROCESSES} processes, {lasted:.0f} s, seed {self.seed}",
            lambda: f"  edits       {sum(done.values()):,}: " + _listed(done),
            lambda: f"  faults      {sum(self.faults.values()):,}: " + _listed(self.faults),
            self._noticed,
            self._embeddings,
            self._searches,
            lambda: (
                f"  moved       {cluster.bytes_moved() / 1e6:,.0f} MB; memory {memory} MB at first, {self._memory()} MB"
            ),
            lambda: f"  repository  revision {cluster.repository.revision:,}, {len(cluster.repository)} charts",
            lambda: f"  agreed      after {agreed:.2f} s",
            lambda: f"  compared    {stores}: " + ("all alike" if not self.wrong else "NOT alike, or worse"),
        ]

    def _noticed(self) -> str:
        counters: Counter[str] = Counter()
        for counted in self.cluster.ask_all("counters").values():
            counters.update(counted)
        return "  noticed     " + ", ".join(f"{name} {counters[name]:,}" for name in SHOWN)

    def _embeddings(self) -> str:
        made = self.cluster.made()
        twice = made.total() - len(made)
        return f"  embeddings  {made.total():,} for {len(made):,} texts ({twice:,} more than once)"

    def _searches(self) -> str:
        took = sorted(s.seconds for searches in self.cluster.searches(0.0).values() for s in searches)
        return (
            f"  searches    {len(took):,} by those that live: median {1000 * statistics.median(took):.1f} ms, "
            f"99% {1000 * took[int(0.99 * len(took))]:.0f} ms, slowest {1000 * took[-1]:.0f} ms"
        )


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    chosen = parser.parse_args(arguments)
    return 0 if Soak(chosen.minutes, chosen.seed).run() else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: in order, with a verdict
    sys.exit(main())
