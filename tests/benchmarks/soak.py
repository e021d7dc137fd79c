"""Eight nodes in four processes for ten minutes: random edits, deletions, searches, faults; then all are compared.

    python tests/benchmarks/soak.py --minutes 10 --seed 7

At the end all faults are over and nobody writes any more. Every node must then hold what the repository holds, byte for
byte as the others do; no chart may ever have gone back or come back, and no search may have failed. Prints a summary;
the exit code is 1 if any of that is not so. What was decided at random follows from the seed; how threads and processes
interleave does not.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "faults"))

from processes import NodeProcess, Processes

from copilotlab import Chart, load_embedder
from copilotlab.lab.faults import FAULTS

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
# Whoever saves would wait for a repository that hangs, and here that is whoever edits.
CHOSEN = [name for name in FAULTS if name != "repository hangs"] + 3 * ["process frozen", "process killed"]


class Soak:
    """The cluster, and what was done to it."""

    def __init__(self, minutes: float, seed: int) -> None:
        self.seconds, self.seed = 60 * minutes, seed
        self.done: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.wrong: list[str] = []
        first = [Chart(chart_id=i, title=f"Revenue, product {i}") for i in range(1, CHARTS // 2)]
        self.cluster = Processes(NODES, charts=first, queries=QUERIES, policy=POLICY, per_process=NODES // PROCESSES)
        self.cluster.pace(0.002)
        self.slots = list(self.cluster.processes)
        self._stopping = threading.Event()
        self._words = iter(range(10**9))

    # --- edits ------------------------------------------------------------------------------------------------

    def edit_on(self, slot: int) -> None:
        """Edit through the nodes of one process, whichever is in this place now."""
        chance = random.Random(f"{self.seed} editor {slot}")
        while not self._stopping.wait(chance.uniform(0.0, 0.1)):
            process = self.slots[slot]
            try:
                outcome = self._edit(process, chance)
            except (EOFError, BrokenPipeError):
                outcome = "ended by a kill"
            except RuntimeError as error:
                outcome = "refused"
                if not any(expected in str(error) for expected in ("ChartNotFound", "unreachable")):
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
        """Random faults, until then; several at once where they need different things."""
        chance = random.Random(f"{self.seed} faults")
        under_way: list[tuple[float, set[str], Callable[[], object]]] = []
        while time.monotonic() < until:
            time.sleep(chance.uniform(0.5, 5.0))  # the pace of the faults; nothing is awaited
            for over in [fault for fault in under_way if fault[0] <= time.monotonic()]:
                over[2]()
                under_way.remove(over)
            name = chance.choice(CHOSEN)
            lasts, victim = chance.uniform(0.1, 6.0), chance.random()
            if not any(self._needs(name) & needs for _, needs, _ in under_way):
                self.faults[name] += 1
                under_way.append((time.monotonic() + lasts, self._needs(name), self._break(name, victim)))
        for _, _, end in under_way:
            end()

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

    def _break(self, name: str, victim: float) -> Callable[[], object]:
        """Begin; what ends it. victim: whom it hits, from 0 to 1."""
        slot = int(victim * PROCESSES)
        if name == "process killed":
            return self._kill(slot)
        if name == "process frozen":
            self.slots[slot].freeze()
            return self.slots[slot].thaw
        able = self.cluster.able
        fault, index = FAULTS[name], able[int(victim * len(able))]
        try:
            fault.start(self.cluster, index)
        except RuntimeError:  # a node that is not connected just now is not cut off
            self.faults[f"{name}, in vain"] += 1
        return lambda: fault.end(self.cluster, index)

    def _kill(self, slot: int) -> Callable[[], object]:
        self.slots[slot].kill()

        def replace() -> None:
            self.slots[slot] = self.cluster.add_process(wait=True)

        return replace

    # --- the end ----------------------------------------------------------------------------------------------

    def run(self) -> bool:
        """All of it; whether everything held."""
        began = time.monotonic()
        editors = [threading.Thread(target=self.edit_on, args=(slot,)) for slot in range(PROCESSES)]
        memory = self._memory()
        for editor in editors:
            editor.start()
        try:
            self.break_things(began + self.seconds)
        finally:
            self._stopping.set()
            for editor in editors:
                editor.join()
        lasted, healed = time.monotonic() - began, time.monotonic()
        while not (self.cluster.settled() and not self.cluster.differences()):
            if time.monotonic() - healed > SETTLES_WITHIN:
                self.wrong += self.cluster.differences()[:20] or ["something is still owed"]
                break
            time.sleep(0.05)
        agreed = time.monotonic() - healed
        self.wrong += self.cluster.complaints()
        stores = self.compare()
        self._print(lasted, agreed, stores, memory)
        return not self.wrong

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

    def _print(self, lasted: float, agreed: float, stores: str, memory: int) -> None:
        cluster = self.cluster
        took = sorted(s.seconds for searches in cluster.searches(0.0).values() for s in searches)
        made = cluster.made()
        counters: Counter[str] = Counter()
        for counted in cluster.ask_all("counters").values():
            counters.update(counted)
        shown = (
            "outages",
            "memory_losses",
            "gaps",
            "reconciliations",
            "digests_differed",
            "batches",
            "fenced",
            "sleeps",
        )
        print(f"soak: {NODES} nodes in {PROCESSES} processes, {lasted:.0f} s, seed {self.seed}")
        print(f"  edits       {sum(self.done.values()):,}: " + _listed(self.done))
        print(f"  faults      {sum(self.faults.values()):,}: " + _listed(self.faults))
        print("  noticed     " + ", ".join(f"{name} {counters[name]:,}" for name in shown))
        print(f"  embeddings  {made.total():,} for {len(made):,} texts ({made.total() - len(made):,} more than once)")
        print(
            f"  searches    {len(took):,} by those that live: median {1000 * statistics.median(took):.1f} ms, "
            f"99% {1000 * took[int(0.99 * len(took))]:.0f} ms, slowest {1000 * took[-1]:.0f} ms"
        )
        print(f"  moved       {cluster.bytes_moved() / 1e6:,.0f} MB; memory {memory} MB at first, {self._memory()} MB")
        print(f"  repository  revision {cluster.repository.revision:,}, {len(cluster.repository)} charts")
        print(f"  agreed      after {agreed:.2f} s")
        print(f"  compared    {stores}: " + ("all alike" if not self.wrong else "NOT alike, or worse:"))
        for complaint in self.wrong[:50]:
            print(f"    {complaint}")


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    chosen = parser.parse_args()
    print(f"seed {chosen.seed}", flush=True)
    soak = Soak(chosen.minutes, chosen.seed)
    with soak.cluster:
        return 0 if soak.run() else 1


if __name__ == "__main__":
    sys.exit(main())
