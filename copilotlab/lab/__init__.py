"""The lab: several nodes in one process, a real server, and ways to break them."""

from copilotlab.lab.lab import Lab, NotConverged
from copilotlab.lab.proxy import FaultProxy
from copilotlab.lab.server import LocalRedis, ServerNotFound

__all__ = ["FaultProxy", "Lab", "LocalRedis", "NotConverged", "ServerNotFound"]
