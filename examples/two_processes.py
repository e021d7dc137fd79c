"""Two processes, one catalogue: the second follows the first, and embeds nothing.

python examples/two_processes.py [MODEL]
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from copilotlab import ChartRepository, LocalRedis, Node, load_embedder

MODEL = sys.argv[1] if len(sys.argv) > 1 else "minilm-int8"
CHARTS = [{"chart_id": 1, "title": "Patients waiting for a bed"}, {"chart_id": 2, "title": "Flights that left late"}]


def follow(database: str, redis: str) -> None:
    """What the second process does."""
    with Node(ChartRepository(database), load_embedder(MODEL), redis=redis, node_id="second") as node:
        node.wait_complete(timeout=60)
        best = node.search("hospital beds", k=1)["title"].item()
        print(f"the second process: {best!r}, {node.metrics().get('embeddings', 0)} embedded here", flush=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, LocalRedis() as redis:
        database = f"sqlite:///{Path(folder) / 'charts.db'}"
        charts = ChartRepository.from_frame(CHARTS, database)
        with Node(charts, load_embedder(MODEL), redis=redis.url, node_id="first") as node:
            print(f"the first process: {node.rebuild().embedded} embedded here", flush=True)
            subprocess.run([sys.executable, __file__, MODEL, database, redis.url], check=True, timeout=120)


if __name__ == "__main__":
    follow(*sys.argv[2:]) if len(sys.argv) > 2 else main()
