"""The lab: several nodes in one process, a real server, and ways to break them."""

from copilotlab.lab.faults import FAULTS, Fault
from copilotlab.lab.fragile_model import FragileModel
from copilotlab.lab.fragile_repository import FragileRepository
from copilotlab.lab.lab import Lab, NotConverged
from copilotlab.lab.proxy import FaultProxy
from copilotlab.lab.search_watch import Watch
from copilotlab.lab.server import LocalRedis, ServerNotFound

__all__ = [
    "FAULTS",
    "Fault",
    "FaultProxy",
    "FragileModel",
    "FragileRepository",
    "Lab",
    "LocalRedis",
    "NotConverged",
    "ServerNotFound",
    "Watch",
]
