"""Count and print what happens on a node, as a service would for its dashboards.

python examples/watch_a_node.py [MODEL]
"""

import queue
import sys

from copilotlab import Chart, ChartRepository, LocalRedis, Node, load_embedder
from copilotlab.monitoring import Happening

MODEL = sys.argv[1] if len(sys.argv) > 1 else "minilm-int8"


def main() -> None:
    happenings: queue.SimpleQueue[Happening] = queue.SimpleQueue()
    with LocalRedis() as redis:
        node = Node(ChartRepository(), load_embedder(MODEL), redis=redis.url, node_id="web-1")
        node.listen_to(happenings.put)  # quick: what is slow is done by whoever empties the queue
        with node:
            node.rebuild()
            node.update_chart(Chart(chart_id=1, title="Revenue by region"))
            redis.kill()
            node.update_chart(Chart(chart_id=2, title="Late flights"))
    while not happenings.empty():
        happening = happenings.get()
        if happening.line is not None:
            print(f"{happening.line.event}: {happening.line.detail}")
    for name, value in node.metrics().items():
        print(f'copilotlab_{name}{{node="{node.node_id}"}} {value:g}')


if __name__ == "__main__":
    main()
