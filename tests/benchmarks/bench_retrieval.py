"""How well each model finds the charts that answer: nDCG@10, MRR@10 and recall@10, beside BM25.

On the shipped catalogue (all questions, and its test split), and on nvBench where a copy is at hand
(``--nvbench FOLDER``, by default ``../shared/data/nvbench``; a thousand of its questions).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import bm25s
import ir_measures
import numpy as np
import polars as pl
from ir_measures import RR, R, nDCG

from copilotlab import ChartRepository, VectorStore, available_embedders, load_embedder
from copilotlab.lab import catalogue
from copilotlab.store import Record

MEASURES = [nDCG @ 10, RR @ 10, R @ 10]
MODELS = ("minilm", "wordllama", "hash")


def evaluate(found: list[tuple[int, list[int], list[float]]], judgements: pl.DataFrame) -> list[float]:
    """The three measures of what was found: (query_id, chart_ids, scores) a question."""
    wanted = {query_id for query_id, _, _ in found}
    qrels = [
        ir_measures.Qrel(str(query_id), str(chart_id), relevance)
        for query_id, chart_id, relevance in judgements.select("query_id", "chart_id", "relevance").iter_rows()
        if query_id in wanted
    ]
    run = [
        ir_measures.ScoredDoc(str(query_id), str(chart_id), score)
        for query_id, chart_ids, scores in found
        for chart_id, score in zip(chart_ids, scores, strict=True)
    ]
    figures = ir_measures.calc_aggregate(MEASURES, qrels, run)
    return [float(figures[measure]) for measure in MEASURES]


def dense(model: str, charts: ChartRepository, questions: pl.DataFrame) -> tuple[list, float]:
    embedder = load_embedder(model)
    listed = [change for change in charts.changes_since(0) if change.chart is not None]
    embedder.embed(["a first text, so that loading is not measured"])
    began = time.perf_counter()
    vectors = embedder.embed([change.chart.text for change in listed], progress=True)
    rate = len(listed) / (time.perf_counter() - began)
    store = VectorStore(embedder.dim)
    store.put_many(
        [
            Record.of(change.chart_id, change.revision, change.chart.content_hash, vector)
            for change, vector in zip(listed, vectors, strict=True)
        ]
    )
    matches = store.search_many(embedder.embed(questions["text"].to_list()), 10)
    found = [
        (query_id, match.chart_ids.tolist(), match.scores.tolist())
        for query_id, match in zip(questions["query_id"], matches, strict=True)
    ]
    return found, rate


def lexical(charts: ChartRepository, questions: pl.DataFrame) -> list:
    listed = list(charts)
    texts = [f"{chart.title} {chart.description} {' '.join(chart.tags)} {chart.source}" for chart in listed]
    index = bm25s.BM25()
    index.index(bm25s.tokenize(texts, stopwords="en", show_progress=False), show_progress=False)
    tokens = bm25s.tokenize(questions["text"].to_list(), stopwords="en", show_progress=False)
    rows, scores = index.retrieve(tokens, k=10, show_progress=False)
    chart_ids = np.array([chart.chart_id for chart in listed])
    return [
        (query_id, chart_ids[row].tolist(), score.tolist())
        for query_id, row, score in zip(questions["query_id"], rows, scores, strict=True)
    ]


def compare(name: str, charts: pl.DataFrame, questions: pl.DataFrame, judgements: pl.DataFrame) -> pl.DataFrame:
    """One row a model."""
    repository = ChartRepository.from_frame(charts)
    rows = [(name, "bm25", *evaluate(lexical(repository, questions), judgements), None)]
    installed = set(available_embedders().filter(pl.col("installed"))["name"])
    for model in MODELS:
        if model in installed:
            found, rate = dense(model, repository, questions)
            rows.append((name, model, *evaluate(found, judgements), rate))
    schema = ["catalogue", "model", "nDCG@10", "MRR@10", "recall@10", "charts/s"]
    return pl.DataFrame(rows, schema=schema, orient="row")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    beside = Path(__file__).parents[3] / "shared" / "data" / "nvbench"
    parser.add_argument("--nvbench", type=Path, default=beside)
    chosen = parser.parse_args()
    tables = [
        compare("data/ (all)", catalogue.charts(), catalogue.questions(), catalogue.judgements()),
        compare("data/ (test)", catalogue.charts(), catalogue.questions("test"), catalogue.judgements()),
    ]
    if (chosen.nvbench / "charts.parquet").is_file():
        charts, questions, judgements = (
            pl.read_parquet(chosen.nvbench / f"{name}.parquet") for name in ("charts", "queries", "qrels")
        )
        tables.append(compare("nvbench", charts, questions.sample(1000, seed=0), judgements))
    else:
        print(f"nvBench is not at {chosen.nvbench}: left out")
    with pl.Config(float_precision=3, tbl_rows=-1):
        print(pl.concat(tables))


if __name__ == "__main__":
    main()
