"""What happens on a node, told to listeners: a journal for people and counters for machines are two of them."""

from copilotlab.monitoring.alerts import Alert, Alerts, Thresholds
from copilotlab.monitoring.happenings import Happening
from copilotlab.monitoring.journal import Entry, Journal, timeline
from copilotlab.monitoring.listeners import Listener, Listeners
from copilotlab.monitoring.metrics import Metrics
from copilotlab.monitoring.vitals import Vitals

__all__ = [
    "Alert",
    "Alerts",
    "Entry",
    "Happening",
    "Journal",
    "Listener",
    "Listeners",
    "Metrics",
    "Thresholds",
    "Vitals",
    "timeline",
]
