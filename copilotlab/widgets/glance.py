"""What a repository holds, in words, though it may not answer."""

from __future__ import annotations

from copilotlab.charts import ChartRepository, RepositoryError
from copilotlab.patience import PatientCall


class Glance:
    """Tells what a repository holds; where it is away or hangs, what it held when it last answered."""

    def __init__(self, charts: ChartRepository) -> None:
        self._charts = charts
        self._told = ""
        self._answers = False
        self._look = PatientCall(self._ask, "copilotlab-glance")

    def words(self) -> str:
        """Say "39 charts, revision 41", in `PATIENCE` seconds at most; at once while the repository hangs."""
        self._look.begin()
        if self._look.wait() and self._answers:
            return self._told
        return f"{self._told}, when it answered" if self._told else "no answer yet"

    def _ask(self) -> None:
        try:
            self._told = f"{len(self._charts):,} charts, revision {self._charts.revision:,}"
            self._answers = True
        except RepositoryError:
            self._answers = False  # who works with the repository is told why

    def __repr__(self) -> str:
        return f"Glance({self._charts!r})"
