"""What there is to find: charts, and the repository that is their system of record."""

from copilotlab.charts.chart import Chart, ChartError, ChartNotFound, chart_id_of, check_chart_id, plain
from copilotlab.charts.database import RepositoryError
from copilotlab.charts.mirror import CatalogueLike, MirrorResult
from copilotlab.charts.repository import Change, ChartRepository, Heads, Identity, Look, Reading, Unreadable

__all__ = [
    "CatalogueLike",
    "Change",
    "Chart",
    "ChartError",
    "ChartNotFound",
    "ChartRepository",
    "Heads",
    "Identity",
    "Look",
    "MirrorResult",
    "Reading",
    "RepositoryError",
    "Unreadable",
    "chart_id_of",
    "check_chart_id",
    "plain",
]
