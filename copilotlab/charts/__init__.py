"""What there is to find: charts, and the repository that is their system of record."""

from copilotlab.charts.chart import Chart, ChartError, ChartNotFound, check_chart_id, plain
from copilotlab.charts.database import RepositoryError
from copilotlab.charts.repository import Change, ChartRepository, Heads, Identity, Look, Reading, Unreadable

__all__ = [
    "Change",
    "Chart",
    "ChartError",
    "ChartNotFound",
    "ChartRepository",
    "Heads",
    "Identity",
    "Look",
    "Reading",
    "RepositoryError",
    "Unreadable",
    "check_chart_id",
    "plain",
]
