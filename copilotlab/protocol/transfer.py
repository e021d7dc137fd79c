"""Fetching from a peer what it holds and this node does not, piece by piece, at this node's own pace.

The reader asks in the peer's inbox; the peer puts one page into a key with a short life and says so; the reader
fetches it and asks for the next. A few requests are under way at a time, so a reader that sleeps leaves a few pages in
Redis and nothing else, and the peer keeps no state: what it is asked twice, it answers twice. The peer bounds each page
in bytes; what did not fit is asked for again.
"""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from copilotlab.monitoring.happenings import TransferEnded
from copilotlab.protocol import events
from copilotlab.protocol.carrier import CarrierAway
from copilotlab.protocol.coordinator import Coordinator
from copilotlab.protocol.pages import PageRefused
from copilotlab.store import Record, VectorStore

REQUESTS_AT_ONCE = 4
TRIES = 3

Question = events.ManifestWanted | events.RecordsWanted


@dataclass(slots=True)
class _Request:
    question: Question
    deadline: float
    tries: int = 1


class Transfers:
    """One node's side of all transfers: it answers its peers, and fetches from one of them at a time.

    Safe for the threads of a node.
    """

    def __init__(self, coordinator: Coordinator, store: VectorStore) -> None:
        self._coordinator = coordinator
        self._store = store
        self._clock = coordinator.context.clock
        self.patience = 2 * coordinator.context.policy.heartbeat_interval
        """Seconds that an answer may take."""
        self._lock = threading.RLock()
        self._peer: str | None = None
        self._began = self._clock.now()
        self._ids: deque[npt.NDArray[np.int64]] = deque()  # pieces that were not asked for yet
        self._under_way: dict[str, _Request] = {}
        self.fetched = 0
        """Records that the store took from the transfer under way, or from the last one."""
        self.taken = 0
        """Records that the store took from all transfers."""

    @property
    def peer(self) -> str:
        """The node that is being asked; "" if none is."""
        return self._peer or ""

    # --- asking -----------------------------------------------------------------------------------------------

    def reconcile(self, peer: str) -> bool:
        """Begin to fetch the manifest of ``peer``, then what is newer there; False if a transfer is under way.

        Raises CarrierAway.
        """
        return self._begin(peer, [], manifest=True)

    def ask(self, peer: str, chart_ids: Iterable[int]) -> bool:
        """Begin to fetch what ``peer`` has of these charts; False if a transfer is under way. Raises CarrierAway."""
        return self._begin(peer, chart_ids, manifest=False)

    def _begin(self, peer: str, chart_ids: Iterable[int], *, manifest: bool) -> bool:
        with self._lock:
            if self._peer is not None:
                return False
            self._peer = peer
            self._began = self._clock.now()
            self.fetched = 0
            self._queue(np.unique(np.fromiter(chart_ids, dtype=np.int64)))
            if manifest:
                self._send(events.ManifestWanted(secrets.token_hex(16), -1))
            self._go_on()
            return True

    def _queue(self, chart_ids: npt.NDArray[np.int64]) -> None:
        at_once = min(events.MAX_RECORDS, self._coordinator.link.pages.records(self._coordinator.dim))
        self._ids.extend(chart_ids[start : start + at_once] for start in range(0, len(chart_ids), at_once))

    def _go_on(self) -> None:
        while self._ids and len(self._under_way) < REQUESTS_AT_ONCE:
            self._send(events.RecordsWanted(secrets.token_hex(16), events.pack_ids(self._ids.popleft())))
        if not self._under_way and not self._ids:
            self._end()

    def _send(self, question: Question, tries: int = 1) -> None:
        assert self._peer is not None
        self._under_way[question.bulk] = _Request(question, self._clock.now() + self.patience, tries)
        try:
            self._coordinator.tell(self._peer, question)
        except CarrierAway:
            self._end()
            raise

    def _end(self) -> None:
        if self._peer is not None:
            seconds = self._clock.now() - self._began
            self._coordinator.context.tell(TransferEnded(self._peer, self.fetched, seconds))
        self._peer = None
        self._ids.clear()
        self._under_way.clear()

    def give_up(self) -> None:
        """End the transfer under way, whose answers will not come."""
        with self._lock:
            if self._peer is not None:
                self._end()

    def check(self) -> None:
        """Ask again for what was not answered in time; after three times, give up. Raises CarrierAway.

        An answer that lies behind much else that this node has not heard yet is not late.
        """
        with self._lock:
            heard_to = self._coordinator.heard_to
            for late in [request for request in self._under_way.values() if heard_to >= request.deadline]:
                if late.tries >= TRIES:
                    self._end()
                    return
                self._send(late.question, late.tries + 1)

    def arrived(self, source: str, event: events.BulkReady) -> None:
        """Fetch an answer that is there, take it in, and ask for more. Raises CarrierAway."""
        with self._lock:
            request = self._under_way.get(event.bulk)
            if request is None or source != self._peer:
                return  # it was asked and answered twice; or nobody asked
            try:
                self._fetch(request.question)
            except CarrierAway:
                self._end()
                raise
            if self._peer is not None:
                self._go_on()

    def _fetch(self, question: Question) -> None:
        payload = self._coordinator.get_bulk(question.bulk)
        if payload is None:
            return  # it is gone, since this reader slept: once it is late, it is asked for again
        del self._under_way[question.bulk]
        self._coordinator.drop_bulk(question.bulk)
        try:
            if isinstance(question, events.RecordsWanted):
                records, more = self._coordinator.decode_record_page(payload)
                self._take(records, events.unpack_ids(question.chart_ids), more=more)
                return
            manifest, more = self._coordinator.decode_manifest(payload)
            if len(manifest) and manifest.chart_ids[0] <= question.after:
                raise events.EventRejected("malformed", "a page of a manifest that goes back: it would never end")
        except events.EventRejected as error:
            self._coordinator.reject(error)
            self._end()
            return
        self._queue(self._store.lacks(manifest))
        if more and len(manifest):
            self._send(events.ManifestWanted(secrets.token_hex(16), int(manifest.chart_ids[-1])))

    def _take(self, records: list[Record], wanted: npt.NDArray[np.int64], *, more: bool) -> None:
        asked = set(wanted.tolist())
        records = [record for record in records if record.chart_id in asked]
        taken = self._store.put_many(records)
        self.fetched += taken
        self.taken += taken
        if more:
            if not records:
                raise events.EventRejected("malformed", "a page of no records, and more to come: it would never end")
            self._queue(wanted[wanted > max(record.chart_id for record in records)])

    # --- answering --------------------------------------------------------------------------------------------

    def answer(self, source: str, question: Question) -> None:
        """Put what ``source`` asks for where it can fetch it, and say so. Raises CarrierAway."""
        try:
            while not self._put(question):
                pass  # it was too large: the bound is smaller now, or Redis counts as away
        except events.EventRejected as error:
            self._coordinator.reject(error)
            return
        self._coordinator.tell(source, events.BulkReady(question.bulk))

    def _put(self, question: Question) -> bool:
        try:
            self._coordinator.put_bulk(question.bulk, self._page(question))
        except PageRefused:
            return False
        return True

    def _page(self, question: Question) -> events.RecordPage | events.ManifestPage:
        link = self._coordinator.link
        fingerprint, bound = link.fingerprint, link.pages
        if isinstance(question, events.ManifestWanted):
            after, rows = question.after, bound.manifest_rows
            manifest = self._store.manifest(after, rows + 1)  # one more tells whether there are more
            return events.manifest_page(fingerprint, manifest, after=after, rows=rows)
        asked = events.unpack_ids(question.chart_ids)
        held = asked[self._store.heads(asked)[0] >= 0]
        fits = min(events.MAX_RECORDS, bound.records(self._coordinator.dim))
        columns = self._store.columns(held[:fits].tolist())
        return events.record_page(fingerprint, *columns, more=len(held) > fits and len(columns[0]) > 0)

    def __repr__(self) -> str:
        return f"Transfers({f'from {self._peer}, {self.fetched} fetched' if self._peer else 'idle'})"
