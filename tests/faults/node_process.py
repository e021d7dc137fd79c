"""Some nodes in a process of their own, told on standard input what to do; each answer is one line of JSON.

    python node_process.py '{"repository": "sqlite:///charts.db", "log": "embedded.log", "policy": {}, "pace": 0.0,
                             "queries": ["revenue"], "nodes": {"a": "redis://127.0.0.1:6379/0"}}'

A command has a number, and so has its answer: who gave one up does not take its answer for the next one's.
Every node is searched all along. Every text that is embedded is noted in the log, which outlives a kill. The process
ends with its standard input, so with its owner.
"""

from __future__ import annotations

import json
import os
import sys
import threading

import numpy as np

from copilotlab import Chart, Node, Policy, load_embedder
from copilotlab.charts import RepositoryError
from copilotlab.lab.fragile_model import FragileModel
from copilotlab.lab.fragile_repository import FragileRepository
from copilotlab.lab.search_watch import Watch


class LoggedModel(FragileModel):
    """Notes what it embedded in a file that all processes share."""

    def __init__(self, path: str, pace: float) -> None:
        super().__init__(load_embedder("hash"), pace=pace)
        self._log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def _encode(self, batch):
        vectors = super()._encode(batch)
        os.write(self._log, "".join(json.dumps(text) + "\n" for text in batch).encode())
        return vectors


class Host:
    """The nodes, and what can be asked of them: each public method is a command."""

    def __init__(self, given: dict) -> None:
        self._repository = FragileRepository(given["repository"])
        self._model = LoggedModel(given["log"], given["pace"])
        policy = Policy(**given["policy"])
        self._nodes = {
            name: Node(self._repository, self._model, url, policy=policy, node_id=name).start()
            for name, url in given["nodes"].items()
        }
        self._watches = {name: Watch(node, given["queries"]).start() for name, node in self._nodes.items()}

    def update(self, node: str, chart_id: int, title: str) -> str:
        return self._nodes[node].update_chart(Chart(chart_id=chart_id, title=title)).outcome

    def changed(self, node: str, chart_id: int) -> str:
        return self._nodes[node].chart_changed(chart_id).outcome

    def delete(self, node: str, chart_id: int) -> str:
        return self._nodes[node].delete_chart(chart_id).outcome

    def search(self, node: str, query: str) -> list[int]:
        return self._nodes[node].search(query)["chart_id"].to_list()

    def begin(self, node: str) -> None:
        """Begin a rebuild, and do not wait for it."""
        threading.Thread(target=self._rebuild, args=(self._nodes[node],), daemon=True).start()

    def _rebuild(self, node: Node) -> None:
        try:
            node.rebuild()
        except (OSError, RepositoryError) as error:  # as they were told to
            node.journal.note("rebuild_raised", repr(error))

    def batch(self, node: str) -> str:
        return str(self._nodes[node].status()["batch"])

    def states(self) -> dict:
        """What is asked for often: digest, whether something is owed, the batch under way, and how Redis is."""
        states = {name: node.status() for name, node in self._nodes.items()}
        return {
            name: {key: state[key] for key in ("digest", "owes_rebuild", "batch", "redis")}
            for name, state in states.items()
        }

    def status(self, node: str) -> dict:
        return self._nodes[node].status()

    def journal(self, node: str) -> list:
        return self._nodes[node].journal.entries()

    def counters(self) -> dict:
        return {name: node.context.metrics.as_dict() for name, node in self._nodes.items()}

    def manifest(self, node: str) -> list[tuple[int, int, str, str]]:
        held = self._nodes[node].store.manifest()
        return [
            (chart_id, revision, content.tobytes().hex(), vector.tobytes().hex())
            for chart_id, revision, content, vector in zip(
                held.chart_ids.tolist(), held.revisions.tolist(), held.content_hashes, held.vector_hashes, strict=True
            )
        ]

    def dump(self, node: str, path: str) -> int:
        """Write every record, bit by bit; how many."""
        store = self._nodes[node].store
        records = [store.get(chart_id) for chart_id in store.manifest().chart_ids.tolist()]
        np.savez(
            path,
            chart_ids=[record.chart_id for record in records],
            revisions=[record.revision for record in records],
            content_hashes=[record.content_hash.hex() for record in records],
            vectors=np.array([record.vector for record in records]).reshape(len(records), store.dim),
        )
        return len(records)

    def searches(self, since: float) -> dict:
        return {
            name: [search for search in list(watch.searches) if search.asked >= since]
            for name, watch in self._watches.items()
        }

    def found(self) -> dict:
        """What the watches found wrong."""
        return {name: watch.errors + watch.backwards for name, watch in self._watches.items()}

    def gate(self, part: str, action: str) -> None:
        gate = {"model": self._model, "repository": self._repository}[part].gate
        {"fail": gate.fail, "hang": gate.hang, "mend": gate.mend}[action]()

    def pace(self, seconds: float) -> None:
        self._model.pace = seconds

    def _stop(self) -> None:
        for watch in self._watches.values():
            watch.stop()
        for node in self._nodes.values():
            node.stop()


def main() -> None:
    host = Host(json.loads(sys.argv[1]))
    print(json.dumps({"ready": os.getpid(), "number": 0}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        number = command.pop("number")
        try:
            answer = {"answer": getattr(host, command.pop("do"))(**command)}
        except Exception as error:  # noqa: BLE001 - whoever asked is told, and raises it there
            answer = {"error": repr(error)}
        print(json.dumps({**answer, "number": number}), flush=True)
    host._stop()


if __name__ == "__main__":
    main()
