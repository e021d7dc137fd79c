"""What a model costs: time, memory, disk. Each is measured in a fresh process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import msgspec
import numpy as np
import polars as pl

from copilotlab.embedding import load_embedder, size_on_disk
from copilotlab.studies.collection import Collection
from copilotlab.studies.cost_process import Job, Measured
from copilotlab.studies.lexical import BM25
from copilotlab.studies.result_cache import cached

Row = tuple[str, str, float, float | None, float | None]  # measure, unit, value, low, high

DOCUMENTS = 64  # embedded in each round: one full batch
QUESTIONS = 60
ROUNDS = 5
K = 10  # charts that a question finds


def cost(model: str, collection: Collection, *, seed: int = 0) -> pl.DataFrame:
    """Measure what a model costs on charts like these: measure, unit, value, low, high.

    embeddings/s at batch 1 and at batch 64 (/s): the best of five rounds, because other load can only slow a round
    down; low and high are the slowest and the best. query p50 (ms): to embed a question and search all charts for ten;
    the median, and the quartiles. load time (s): from the first import of a fresh process to its first answer. memory
    (MB): resident at the end. size on disk (MB): the weights, without libraries. bm25 has no embeddings and no size.
    Speed and memory hold for this machine at this moment: measure where you will run it.

    Raises RuntimeError, with the last lines of its output, if the process fails.
    """
    documents = collection.documents()["text"]
    questions = collection.questions["text"]
    asked = questions.sample(min(QUESTIONS, len(questions)), seed=seed).to_list()
    if model == BM25:
        return _cost_of_words(documents.to_list(), asked)
    texts = documents.sample(min(DOCUMENTS, len(documents)), seed=seed).to_list()
    fingerprint = load_embedder(model).fingerprint  # if it has to be made or downloaded, that is not measured
    size = size_on_disk(model)
    return _cost_of_model(model, fingerprint, texts, asked, rows=len(documents), size=size)


@cached(version=1, code=False)
def _cost_of_model(
    model: str, fingerprint: str, documents: Sequence[str], questions: Sequence[str], *, rows: int, size: float
) -> pl.DataFrame:
    measured = _measure(Job(model, list(documents), list(questions), rows, K, ROUNDS))
    return _frame(
        [
            ("embeddings/s at batch 1", "/s", max(measured.one), min(measured.one), max(measured.one)),
            ("embeddings/s at batch 64", "/s", max(measured.batch), min(measured.batch), max(measured.batch)),
            *_common(measured),
            ("size on disk", "MB", size, None, None),
        ]
    )


@cached(version=1, code=False)
def _cost_of_words(documents: Sequence[str], questions: Sequence[str]) -> pl.DataFrame:
    return _frame(_common(_measure(Job(BM25, list(documents), list(questions), len(documents), K, ROUNDS))))


def _measure(job: Job) -> Measured:
    done = subprocess.run(
        [sys.executable, "-m", "copilotlab.studies.cost_process"],
        input=msgspec.json.encode(job),
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-5:]
        raise RuntimeError(f"measuring {job.model!r} failed with exit code {done.returncode}: " + "\n".join(said))
    return msgspec.json.decode(done.stdout, type=Measured)


def _common(measured: Measured) -> list[Row]:
    low, middle, high = (1000 * float(seconds) for seconds in np.quantile(measured.query, [0.25, 0.5, 0.75]))
    return [
        ("query p50", "ms", middle, low, high),
        ("load time", "s", measured.ready, None, None),
        ("memory", "MB", measured.memory / 1e6, None, None),
    ]


def _frame(rows: list[Row]) -> pl.DataFrame:
    schema = {"measure": pl.String, "unit": pl.String, "value": pl.Float64, "low": pl.Float64, "high": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")
