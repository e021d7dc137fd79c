"""Kill Redis under three nodes, go on, bring it back empty, and see all nodes agree.

python examples/lose_redis.py [MODEL]
"""

import sys

from copilotlab import Chart, Lab
from copilotlab.lab import catalogue

MODEL = sys.argv[1] if len(sys.argv) > 1 else "minilm-int8"


def main() -> None:
    with Lab(nodes=3, model=MODEL, charts=catalogue.charts().head(300)) as lab:
        lab.wait_converged(timeout=60)
        lab.redis.kill()
        for number, node in enumerate(lab.nodes):  # each saves a chart while it hears nothing of the others
            saved = node.update_chart(Chart(chart_id=number, title=f"Saved on {node.node_id}"))
            print(f"{node.node_id}: {saved.outcome}, {node.search('revenue', k=3).height} charts found")
        lab.redis.start(keep_data=False)
        print(f"agreed again after {lab.wait_converged(timeout=60):.2f} s")
        print(lab.status().select("node", "charts", "digest"))


if __name__ == "__main__":
    main()
