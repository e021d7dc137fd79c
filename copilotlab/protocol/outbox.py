"""What changed here and was not said yet, since Redis is away or publishing is off: it is said once that is over."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from contextlib import suppress

from copilotlab.monitoring.happenings import Owed
from copilotlab.protocol import events
from copilotlab.protocol.carrier import CarrierAway
from copilotlab.protocol.coordinator import Coordinator, Need
from copilotlab.protocol.pages import PageRefused
from copilotlab.store import Record, VectorStore

HANDED_OVER = 1_000  # changes that a node says to all after an outage; the others fetch the rest


class Outbox:
    """The changes of one store that the other nodes were not told of. Safe for the threads of a node."""

    def __init__(self, store: VectorStore, coordinator: Coordinator) -> None:
        self._store = store
        self._coordinator = coordinator
        self._unsaid: dict[int, None] = {}

    def say(self, event: events.Event, chart_id: int, *needs: Need) -> bool:
        """Tell the other nodes of a change; while that cannot be, keep it to be said later, and return False."""
        context = self._coordinator.context
        if context.toggles.now.publishing:
            with suppress(CarrierAway):
                self._coordinator.publish(event, *needs)
                return True
        self.owe([chart_id])
        context.tell(Owed(chart_id))
        return False

    def owe(self, chart_ids: Iterable[int]) -> None:
        """Note changes that the other nodes are still to be told of."""
        self._unsaid.update(dict.fromkeys(chart_ids))

    def hand_over(self) -> None:
        """Say all that was not said, a thousand changes at most: the others fetch the rest. Raises CarrierAway.

        Vectors go in pages, which the others fetch: said one by one, they would keep this node from listening for so
        long that it counts as dead.
        """
        owed = list(self._unsaid)
        for chart_id in owed:
            self._unsaid.pop(chart_id, None)  # before it is read: a caller may change it again, and note that
        try:
            self._say_what_is_here(owed[:HANDED_OVER])
        except BaseException:
            self.owe(owed)  # what was said already is said again
            raise

    def _say_what_is_here(self, chart_ids: list[int]) -> None:
        held = []
        for chart_id in chart_ids:
            if (record := self._store.get(chart_id)) is not None:
                held.append(record)
            elif (removed := self._store.tombstone(chart_id)) is not None:
                self._coordinator.publish(events.ChartDeleted(chart_id, removed))
        while held:
            piece = held[: min(events.MAX_RECORDS, self._coordinator.link.pages.records(self._store.dim))]
            try:
                self._say_records(piece)
            except PageRefused:
                continue  # fewer go into a page now
            held = held[len(piece) :]

    def _say_records(self, records: list[Record]) -> None:
        needs = [Need(record.chart_id, record.content_hash, record.revision) for record in records]
        if len(records) == 1:
            self._coordinator.publish(events.ChartUpdated(events.pack(records[0])), *needs)
            return
        bulk = secrets.token_hex(16)
        self._coordinator.put_bulk(bulk, events.page_of(self._coordinator.link.fingerprint, records))
        self._coordinator.publish(events.ChartsUpdated(bulk), *needs)

    def __len__(self) -> int:
        return len(self._unsaid)

    def __repr__(self) -> str:
        return f"Outbox({len(self)} changes)"
