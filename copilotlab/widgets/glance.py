"""A look at a repository that may not answer."""

from __future__ import annotations

import threading

from copilotlab.charts import ChartRepository, RepositoryError

PATIENCE = 0.25  # seconds that a look waits for the repository


class Glance:
    """What a repository holds, in words; of one that is away or hangs, what it held when it last answered."""

    def __init__(self, charts: ChartRepository) -> None:
        self._charts = charts
        self._told = ""
        self._answers = False
        self._thread: threading.Thread | None = None

    def words(self) -> str:
        """ "39 charts, revision 41", in `PATIENCE` seconds at most; while it hangs, at once."""
        if self._thread is None or not self._thread.is_alive():
            # A thread of its own, since nobody can end a call into a database that hangs.
            self._thread = threading.Thread(target=self._ask, name="copilotlab-glance", daemon=True)
            self._thread.start()
            self._thread.join(PATIENCE)
        if self._answers and not self._thread.is_alive():
            return self._told
        return f"{self._told}, when it answered" if self._told else "no answer yet"

    def _ask(self) -> None:
        try:
            self._told = f"{len(self._charts):,} charts, revision {self._charts.revision:,}"
            self._answers = True
        except RepositoryError:
            self._answers = False  # whoever works with the repository is told why

    def __repr__(self) -> str:
        return f"Glance({self._charts!r})"
