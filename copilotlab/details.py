"""The charts that searches find, kept at hand with their titles and all else that people read.

They are in the repository, which may be slow or away. A search that lacks some of them waits for a short while; while a
read that has taken too long is still under way, no other search waits. What comes too late for one search serves the
next.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping

from copilotlab.charts import Chart, ChartRepository, RepositoryError
from copilotlab.monitoring import Listeners
from copilotlab.monitoring.happenings import DetailsMissing
from copilotlab.patience import PATIENCE, PatientCall

MOST_DETAILS = 20_000  # charts kept at hand; as many may wait to be read
READ_AT_ONCE = 1_000


class Details:
    """The charts that were saved or found lately.

    listeners: told of charts that were found and could not be described in time.
    """

    def __init__(self, charts: ChartRepository, listeners: Listeners) -> None:
        self._charts = charts
        self._listeners = listeners
        self._known: OrderedDict[int, tuple[int, Chart]] = OrderedDict()
        self._wanted: OrderedDict[int, int] = OrderedDict()  # chart_id -> the least revision that will do, newest last
        self._reading: dict[int, int] = {}  # likewise, by the read under way
        self._refused: set[int] = set()  # what the last read was to bring, if it failed
        self._reason = ""  # why it did
        self._restored = 0  # how often the repository was: a read begun before that brings what is not so
        self._lock = threading.Lock()
        self._reads = PatientCall(self._read, "copilotlab-details")

    def note(self, chart: Chart, revision: int) -> None:
        """Keep the chart, as it is at that revision."""
        with self._lock:
            self._note(chart, revision)

    def forget(self, chart_id: int) -> None:
        """Drop a chart that was deleted."""
        with self._lock:
            self._known.pop(chart_id, None)

    def clear(self) -> None:
        """Drop all: the repository was restored, and its revisions mean something else."""
        with self._lock:
            self._restored += 1
            self._known.clear()

    def of(self, wanted: Mapping[int, int]) -> dict[int, Chart]:
        """Return the charts ``wanted``: chart_id -> the least revision that will do.

        Waits for the repository, `PATIENCE` seconds in all. A chart that it does not tell in time is given at an older
        revision, or left out; it is read all the same, for whoever asks next.
        """
        deadline = time.monotonic() + PATIENCE
        with self._lock:
            found = {i: self._known[i][1] for i in wanted if i in self._known}
            unread = [(i, revision) for i, revision in wanted.items() if not self._has(i, revision)]
        for start in range(0, len(unread), READ_AT_ONCE):
            found |= self._ask(dict(unread[start : start + READ_AT_ONCE]), deadline)
        return found

    def _ask(self, wanted: Mapping[int, int], deadline: float) -> dict[int, Chart]:
        with self._lock:
            for chart_id, revision in wanted.items():
                self._wanted[chart_id] = max(revision, self._wanted.pop(chart_id, revision))
            while len(self._wanted) > MOST_DETAILS:
                self._wanted.popitem(last=False)
        self._reads.begin()
        self._reads.wait(lambda: not self._awaited(wanted), deadline - time.monotonic())
        late = self._awaited(wanted)
        with self._lock:
            found = {i: self._known[i][1] for i in wanted if i in self._known}
            refused = [i for i, revision in wanted.items() if i in self._refused and not self._has(i, revision)]
            reason = self._reason if refused else f"no answer in {PATIENCE:g} s"
        if missing := {*late, *refused}:
            self._listeners.tell(DetailsMissing(len(missing), reason))
        return found

    def _awaited(self, wanted: Mapping[int, int]) -> list[int]:
        """List those of ``wanted`` that a read has yet to bring."""
        with self._lock:
            return [
                i
                for i, revision in wanted.items()
                if (i in self._wanted or i in self._reading) and not self._has(i, revision)
            ]

    def _read(self) -> None:
        """Read what is wanted, what was asked last first, a piece at a call; also for searches that no longer wait."""
        with self._lock:
            reading: dict[int, int] = {}
            while self._wanted and len(reading) < READ_AT_ONCE:
                chart_id, revision = self._wanted.popitem()
                if not self._has(chart_id, revision):  # else the read before this one brought it
                    reading[chart_id] = revision
            self._reading = reading
            restored = self._restored
            more = bool(self._wanted)
        if more:
            self._reads.begin()  # not under our lock: who waits for a read holds its lock, and takes ours
        if not reading:
            return
        changes, reason = {}, ""
        try:
            changes = self._charts.get_many(reading)
        except RepositoryError as error:
            reason = str(error)
        finally:
            with self._lock:
                self._refused, self._reason = (set(reading) if reason else set()), reason
                for change in changes.values() if restored == self._restored else ():
                    if change.chart is not None:
                        self._note(change.chart, change.revision)
                if self._reading is reading:  # else this read hung, and another has taken its place
                    self._reading = {}

    def _note(self, chart: Chart, revision: int) -> None:
        if self._has(chart.chart_id, revision + 1):
            return  # it was saved again while this was read
        self._known[chart.chart_id] = (revision, chart)
        self._known.move_to_end(chart.chart_id)
        if len(self._known) > MOST_DETAILS:
            self._known.popitem(last=False)

    def _has(self, chart_id: int, revision: int) -> bool:
        """Tell whether the chart is at hand, at that revision or a later one."""
        return chart_id in self._known and self._known[chart_id][0] >= revision

    def __repr__(self) -> str:
        return f"Details({len(self._known)} charts)"
