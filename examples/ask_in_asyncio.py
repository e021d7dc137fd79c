"""Answer many at once in an event loop: each search in a thread, only what each user may see.

python examples/ask_in_asyncio.py [MODEL]
"""

import asyncio
import sys

from copilotlab import ChartRepository, LocalRedis, Node, load_embedder
from copilotlab.lab import catalogue

MODEL = sys.argv[1] if len(sys.argv) > 1 else "minilm-int8"
CHARTS = catalogue.charts()
IDS = CHARTS["chart_id"].to_list()
MAY_SEE = {"ann": IDS, "bob": IDS[:200], "eve": []}  # by whoever asks


async def answer(node: Node, user: str, question: str) -> str:
    found = await asyncio.to_thread(node.search, question, 1, chart_ids=MAY_SEE[user])
    return f"{user}: {found['title'].item() if found.height else 'nothing that you may see'}"


async def main() -> None:
    charts = ChartRepository.from_frame(CHARTS)
    with LocalRedis() as redis, Node(charts, load_embedder(MODEL), redis=redis.url) as node:
        await asyncio.to_thread(node.rebuild, progress=True)
        answers = await asyncio.gather(*(answer(node, user, "flights that were cancelled") for user in MAY_SEE))
    print("\n".join(answers))


if __name__ == "__main__":
    asyncio.run(main())
