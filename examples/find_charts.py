"""Find charts by meaning: the catalogue that ships, one node, no server.

    python examples/find_charts.py [MODEL]

With nobody at its address of Redis a node says so once, and works alone.
"""

import sys

from copilotlab import ChartRepository, Node, load_embedder
from copilotlab.lab import catalogue

MODEL = sys.argv[1] if len(sys.argv) > 1 else "minilm-int8"
QUESTIONS = ("wage difference between men and women", "are enough nurses turning up for night duty")


def main() -> None:
    charts = ChartRepository.from_frame(catalogue.charts())
    with Node(charts, load_embedder(MODEL), redis="redis://127.0.0.1:1/0") as node:
        node.rebuild(progress=True)
        for question in QUESTIONS:
            print(question)
            for rank, score, title in node.search(question, k=3).select("rank", "score", "title").iter_rows():
                print(f"  {rank}. {title}  ({score:.2f})")


if __name__ == "__main__":
    main()
