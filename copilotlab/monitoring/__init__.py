"""What happens on a node, told: a journal for people, counters for machines."""

from copilotlab.monitoring.journal import Entry, Journal, timeline
from copilotlab.monitoring.metrics import Metrics

__all__ = ["Entry", "Journal", "Metrics", "timeline"]
