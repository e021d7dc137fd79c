"""What people read of the charts that a search finds: titles and the like, kept at hand.

They are in the repository, which may be slow or away. A search that needs some of them waits for it, shortly; while a
read that took too long is under way, no other search waits.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from copilotlab.charts import Change, Chart, ChartRepository, RepositoryError
from copilotlab.monitoring import Journal, Metrics

MOST_DETAILS = 20_000  # charts that are kept at hand
PATIENCE = 0.25  # seconds that a search waits for the repository


class Details:
    """The charts that were saved or found of late.

    counters: "details_missing" counts the charts that were found and could not be described in time.
    """

    def __init__(self, charts: ChartRepository, journal: Journal, counters: Metrics) -> None:
        self._charts = charts
        self._journal = journal
        self._counters = counters
        self._known: OrderedDict[int, tuple[int, Chart]] = OrderedDict()
        self._lock = threading.Lock()
        self._late: threading.Event | None = None  # set when the read that took too long has ended

    def note(self, chart: Chart, revision: int) -> None:
        """This is the chart at that revision."""
        with self._lock:
            self._known[chart.chart_id] = (revision, chart)
            self._known.move_to_end(chart.chart_id)
            if len(self._known) > MOST_DETAILS:
                self._known.popitem(last=False)

    def forget(self, chart_id: int) -> None:
        """The chart was deleted."""
        with self._lock:
            self._known.pop(chart_id, None)

    def forget_after(self, revision: int) -> None:
        """The repository was restored from a backup: nothing newer than that is so."""
        with self._lock:
            for chart_id in [i for i, (noted, _) in self._known.items() if noted > revision]:
                del self._known[chart_id]

    def of(self, wanted: Mapping[int, int]) -> dict[int, Chart]:
        """The charts ``wanted``, each chart_id -> the least revision that will do.

        Of what the repository does not tell in time, an older revision, or nothing.
        """
        with self._lock:
            held = {chart_id: self._known[chart_id] for chart_id in wanted if chart_id in self._known}
        known = {chart_id: chart for chart_id, (_, chart) in held.items()}
        unread = [i for i, revision in wanted.items() if i not in held or held[i][0] < revision]
        if unread:
            for change in self._read(unread):
                if change.chart is not None:
                    known[change.chart_id] = change.chart
                    self.note(change.chart, change.revision)
        return known

    def _read(self, chart_ids: Sequence[int]) -> list[Change]:
        """What the repository says of these; nothing if it does not answer in time."""
        if self._late is not None and not self._late.is_set():
            self._counters.count("details_missing", len(chart_ids))
            return []
        found: list[Change] = []
        reason = f"no answer in {PATIENCE:g} s"
        ended = threading.Event()

        def read() -> None:
            nonlocal reason
            try:
                found.extend(self._charts.get_many(chart_ids).values())
                reason = ""
            except RepositoryError as error:
                reason = str(error)
            finally:
                ended.set()

        # A thread of its own, since nobody can end a call into a database that hangs.
        threading.Thread(target=read, name="copilotlab-details", daemon=True).start()
        if not ended.wait(PATIENCE):
            self._late = ended
        if reason:
            self._counters.count("details_missing", len(chart_ids))
            self._journal.warn_once("details_missing", f"the repository does not answer: {reason}")
            return []
        return found

    def __repr__(self) -> str:
        return f"Details({len(self._known)} charts)"
