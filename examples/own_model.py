"""A model of your own in a running node: the one that counts pairs of letters forgives spelling.

python examples/own_model.py [MODEL]
"""

import sys
from itertools import pairwise

import numpy as np

from copilotlab import ChartRepository, Embedder, LocalRedis, Node, load_embedder

MODEL = sys.argv[1] if len(sys.argv) > 1 else "minilm-int8"


class LetterPairs(Embedder):
    def __init__(self) -> None:
        super().__init__(name="letter-pairs", fingerprint="letter-pairs:1", dim=512)

    def _encode(self, batch: list[str]) -> np.ndarray:
        vectors = np.zeros((len(batch), self.dim))
        for row, text in enumerate(batch):
            for one, two in pairwise(text.lower()):
                vectors[row, (ord(one) * 31 + ord(two)) % self.dim] += 1
        return vectors


def main() -> None:
    titles = ("Profitability by product", "Late flights", "Beds in use")
    charts = ChartRepository.from_frame([{"chart_id": i, "title": title} for i, title in enumerate(titles)])
    with LocalRedis() as redis, Node(charts, load_embedder(MODEL), redis=redis.url) as node:
        node.rebuild()
        for model in (node.embedder, LetterPairs()):
            node.switch_model(model)  # built beside the first, while the node answers
            print(f"{model.name}: {node.search('proffitabillity', k=1)['title'].item()}")


if __name__ == "__main__":
    main()
