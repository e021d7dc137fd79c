"""Searches a node again and again, and notes how long each answer takes and whether any chart goes backwards."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import NamedTuple, Self

from copilotlab.node import Node


class Search(NamedTuple):
    """One search: when it was asked (seconds of the machine's monotonic clock), and how many seconds it took."""

    asked: float
    seconds: float


class Watch:
    """Searches ``node`` in a thread of its own, again and again.

    queries: what to ask, in turn. pause: seconds between two searches (0.02).

    searches: every search that ended. errors: what searches raised. backwards: each chart that was seen at an older
    revision than before, or again after its deletion; promises 4 and 5 say that there is none.
    """

    def __init__(self, node: Node, queries: Sequence[str], *, pause: float = 0.02) -> None:
        self.node = node
        self.searches: list[Search] = []
        self.errors: list[str] = []
        self.backwards: list[str] = []
        self._queries = list(queries)
        self._pause = pause
        self._highest: dict[int, int] = {}
        self._version = -1
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._go_on, name=f"copilotlab-{node.node_id}-watch", daemon=True)

    def start(self) -> Self:
        """Begin to search."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """End after the search that is under way."""
        self._stopping.set()
        self._thread.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _go_on(self) -> None:
        turn = 0
        while not self._stopping.wait(self._pause):
            asked = time.monotonic()
            try:
                self.node.search(self._queries[turn % len(self._queries)])
            except Exception as error:  # noqa: BLE001 - whatever it is, it is what this watch is there to report
                self.errors.append(repr(error))
            self.searches.append(Search(asked, time.monotonic() - asked))
            self._look()
            turn += 1

    def _look(self) -> None:
        store = self.node.store
        if store.version == self._version:
            return
        self._version = store.version
        # Deletions first: a chart that is deleted between the two is in neither, and is seen at the next look.
        buried = store.tombstones()
        manifest = store.manifest()
        for chart_id, revision in zip(manifest.chart_ids.tolist(), manifest.revisions.tolist(), strict=True):
            if revision < self._highest.get(chart_id, 0):
                self.backwards.append(
                    f"{self.node.node_id}: chart {chart_id} at {revision}, after {self._highest[chart_id]}"
                )
            self._highest[chart_id] = revision
        for chart_id, revision in buried.items():
            self._highest[chart_id] = max(self._highest.get(chart_id, 0), revision + 1)

    def __repr__(self) -> str:
        return f"Watch({self.node.node_id!r}, {len(self.searches)} searches, {len(self.errors)} errors)"
