"""The process in which one model's cost is measured: it does nothing else, so time and memory are the model's own.

python -m copilotlab.studies.cost_process < job.json > measured.json
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import msgspec
import numpy as np


class Job(msgspec.Struct):
    """What to measure.

    model: a name for `load_embedder`, or "bm25". documents: texts to embed or to index. questions: texts. rows: how
    many vectors each question is compared with. k: how many of them are found. rounds: how often the documents are
    embedded.
    """

    model: str
    documents: list[str]
    questions: list[str]
    rows: int
    k: int
    rounds: int


class Measured(msgspec.Struct):
    """What was measured.

    ready: seconds from the first import to the first answer. memory: bytes resident at the end. query: seconds of each
    question. one, batch: embeddings a second of each round, one by one and 64 at a time; empty for bm25.
    """

    ready: float
    memory: int
    query: list[float]
    one: list[float] = []
    batch: list[float] = []


def main() -> None:
    """Read the job from standard input, measure, and write the result to standard output."""
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    measured = (_lexical if job.model == "bm25" else _dense)(job, time.perf_counter())
    sys.stdout.buffer.write(msgspec.json.encode(measured))


def _dense(job: Job, began: float) -> Measured:
    from copilotlab.embedding import load_embedder

    embedder = load_embedder(job.model)
    embedder.embed(job.documents[:1])
    ready = time.perf_counter() - began
    embedder.embed(job.documents)  # the first batch allocates what later ones reuse
    few = job.documents[: max(1, len(job.documents) // 4)]
    one = [_rate(lambda: [embedder.embed([text]) for text in few], len(few)) for _ in range(job.rounds)]
    batch = [_rate(lambda: embedder.embed(job.documents), len(job.documents)) for _ in range(job.rounds)]

    from copilotlab.store import Record, VectorStore

    # An exact search takes the same time whatever the vectors are.
    vectors = np.random.default_rng(0).standard_normal((job.rows, embedder.dim), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    store = VectorStore(embedder.dim)
    store.put_many(Record.of(row, 1, b"\0" * 16, vector) for row, vector in enumerate(vectors))
    query = _times(lambda question: store.search(embedder.embed_query([question])[0], job.k), job.questions)
    return Measured(ready, _resident(), query, one, batch)


def _lexical(job: Job, began: float) -> Measured:
    from copilotlab.studies.lexical import LexicalIndex

    k = min(job.k, len(job.documents))
    index = LexicalIndex(job.documents)
    index.search(job.questions[:1], k)
    ready = time.perf_counter() - began
    return Measured(ready, _resident(), _times(lambda question: index.search([question], k), job.questions))


def _rate(embed: Callable[[], object], texts: int) -> float:
    began = time.perf_counter()
    embed()
    return texts / (time.perf_counter() - began)


def _times(ask: Callable[[str], object], questions: list[str]) -> list[float]:
    times = []
    for question in questions:
        began = time.perf_counter()
        ask(question)
        times.append(time.perf_counter() - began)
    return times


def _resident() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    main()
