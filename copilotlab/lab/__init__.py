"""The lab: several nodes in one process, a real server, and ways to break them."""

from copilotlab.lab.faults import FAULTS, Fault
from copilotlab.lab.fragile import FragileModel, FragileRepository
from copilotlab.lab.lab import Lab, NotConverged
from copilotlab.lab.proxy import FaultProxy
from copilotlab.lab.server import LocalRedis, ServerNotFound
from copilotlab.lab.watch import Watch

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
