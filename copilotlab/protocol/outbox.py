"""What changed here and was not said yet, since Redis is away or publishing is off: it is said once that is over."""

from __future__ import annotations

from collections.abc import Iterable

from copilotlab.monitoring.happenings import Owed
from copilotlab.protocol import events
from copilotlab.protocol.carrier import CarrierAway
from copilotlab.protocol.coordinator import Coordinator, Need
from copilotlab.store import VectorStore

HANDED_OVER = 1_000  # changes that a node says one by one after an outage; the others fetch the rest


class Outbox:
    """The changes of one store that the other nodes were not told of. Safe for the threads of a node."""

    def __init__(self, store: VectorStore, coordinator: Coordinator) -> None:
        self._store = store
        self._coordinator = coordinator
        self._unsaid: dict[int, None] = {}

    def say(self, event: events.Event, chart_id: int, need: Need | None = None) -> bool:
        """Tell the other nodes of a change; if Redis is away, keep it to be said later, and return False."""
        if not self._coordinator.context.toggles.now.publishing:
            self.owe([chart_id])
            self._coordinator.context.tell(Owed(chart_id))
            return False
        try:
            self._coordinator.publish(event, need)
        except CarrierAway:
            self._unsaid[chart_id] = None
            self._coordinator.context.tell(Owed(chart_id))
            return False
        return True

    def owe(self, chart_ids: Iterable[int]) -> None:
        """Note changes that the other nodes are still to be told of."""
        self._unsaid.update(dict.fromkeys(chart_ids))

    def hand_over(self) -> None:
        """Say all that was not said, a thousand changes at most: the others fetch the rest. Raises CarrierAway."""
        for number, chart_id in enumerate(list(self._unsaid)):
            self._unsaid.pop(chart_id, None)  # before it is read: a caller may change it again, and note that
            if number >= HANDED_OVER:
                continue
            try:
                self._say_what_is_here(chart_id)
            except CarrierAway:
                self._unsaid[chart_id] = None
                raise

    def _say_what_is_here(self, chart_id: int) -> None:
        held = self._store.get(chart_id)
        removed = self._store.tombstone(chart_id)
        if held is not None:
            need = Need(chart_id, held.content_hash, held.revision)
            self._coordinator.publish(events.ChartUpdated(events.pack(held)), need)
        elif removed is not None:
            self._coordinator.publish(events.ChartDeleted(chart_id, removed))

    def __len__(self) -> int:
        return len(self._unsaid)

    def __repr__(self) -> str:
        return f"Outbox({len(self)} changes)"
