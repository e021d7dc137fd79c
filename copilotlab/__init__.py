"""copilotlab: a chart-finding copilot whose nodes answer from memory and agree through Redis.

Names are loaded when first used, so ``import copilotlab`` costs milliseconds and brings in neither torch nor Jupyter.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from copilotlab.charts import Chart, ChartRepository
    from copilotlab.cluster import Cluster
    from copilotlab.embedding import Embedder, available_embedders, load_embedder
    from copilotlab.importers import Catalogue, read_catalogue
    from copilotlab.lab import FaultProxy, Lab, LocalRedis
    from copilotlab.node import Node
    from copilotlab.protocol.coordinator import Coordinator
    from copilotlab.protocol.policy import Policy
    from copilotlab.store import VectorStore

__version__ = "0.2.0"

__all__ = [
    "Catalogue",
    "Chart",
    "ChartRepository",
    "Cluster",
    "Coordinator",
    "Embedder",
    "FaultProxy",
    "Lab",
    "LocalRedis",
    "Node",
    "Policy",
    "VectorStore",
    "available_embedders",
    "load_embedder",
    "read_catalogue",
]

_HOME = {
    "Catalogue": "importers",
    "Chart": "charts",
    "ChartRepository": "charts",
    "Cluster": "cluster",
    "Coordinator": "protocol.coordinator",
    "Embedder": "embedding",
    "FaultProxy": "lab",
    "Lab": "lab",
    "LocalRedis": "lab",
    "Node": "node",
    "Policy": "protocol.policy",
    "VectorStore": "store",
    "available_embedders": "embedding",
    "load_embedder": "embedding",
    "read_catalogue": "importers",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'copilotlab' has no attribute {name!r}")
    value = getattr(import_module(f"copilotlab.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
