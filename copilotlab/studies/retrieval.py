"""Which charts a model finds, and how good that answer is."""

from __future__ import annotations

from collections.abc import Sequence

import ir_measures
import numpy as np
import polars as pl
from ir_measures import RR, R, nDCG

from copilotlab.embedding import Embedder, load_embedder
from copilotlab.reasons import short
from copilotlab.store import Record, VectorStore
from copilotlab.studies.collection import Collection
from copilotlab.studies.lexical import BM25, LexicalIndex
from copilotlab.studies.result_cache import cached

DEPTH = 50  # how many charts are kept per question: the largest k of any measure

_NO_HASH = b"\0" * 16


def rankings(
    models: Sequence[str], collection: Collection, *, depth: int = DEPTH, progress: bool = True
) -> pl.DataFrame:
    """Rank the charts by each model: model, query_id, rank (from 1), chart_id, score; best first.

    Parameters:
        models: names for `load_embedder`, or "bm25".
        depth: how many charts per question (50), or all if there are fewer.
        progress: show a bar while texts are embedded.
    """
    documents, questions = collection.documents(), collection.questions.select("query_id", "text")
    return pl.concat(
        (
            _lexical(documents, questions, depth=depth)
            if model == BM25
            else _dense(load_embedder(model), documents, questions, depth=depth, progress=progress)
        ).select(pl.lit(model).alias("model"), pl.all())
        for model in models
    )


def per_question(
    found: pl.DataFrame, judgements: pl.DataFrame, *, k: int = 10, reference: str | None = None
) -> pl.DataFrame:
    """Measure how good the first k charts of each ranking are: model, query_id, measure, value (0 to 1).

    Measures: nDCG (both grades of relevance count), recall and MRR (the reciprocal rank of the first relevant chart),
    by ir-measures; and, with a `reference` among the models, shared: the share of the first k charts that are also
    among the first k of the reference.

    Raises ValueError for k beyond the depth of `found`, or a reference that it does not hold.
    """
    if not 1 <= k <= DEPTH:
        raise ValueError(f"k={short(k)}: expected 1 to {DEPTH}")
    names = {nDCG @ k: f"nDCG@{k}", R @ k: f"recall@{k}", RR @ k: f"MRR@{k}"}
    judged = judgements.join(found, on="query_id", how="semi").select("query_id", "chart_id", "relevance")
    qrels = [ir_measures.Qrel(str(query), str(chart), grade) for query, chart, grade in judged.iter_rows()]
    best = found.filter(pl.col("rank") <= k)
    rows = []
    for (model,), ranked in best.group_by("model", maintain_order=True):
        # By rank, not score: charts of equal score stay in the order in which a user sees them.
        ranks = ranked.select("query_id", "chart_id", "rank").iter_rows()
        run = [ir_measures.ScoredDoc(str(query), str(chart), -rank) for query, chart, rank in ranks]
        rows += [
            (model, int(metric.query_id), names[metric.measure], float(metric.value))
            for metric in ir_measures.iter_calc(list(names), qrels, run)
        ]
    schema = {"model": pl.String, "query_id": pl.Int64, "measure": pl.String, "value": pl.Float64}
    values = pl.DataFrame(rows, schema=schema, orient="row")
    if reference is not None:
        values = pl.concat([values, _shared(best, k, reference)])
    order = pl.Enum([*names.values(), f"shared@{k}"])
    return values.sort(pl.col("measure").cast(order), "query_id", "model")


def _shared(best: pl.DataFrame, k: int, reference: str) -> pl.DataFrame:
    theirs = best.filter(pl.col("model") == reference).select("query_id", "chart_id", pl.lit(1).alias("both"))
    if theirs.is_empty():
        raise ValueError(f"reference={short(reference)}: it is none of the models that were ranked")
    return (
        best.join(theirs, on=["query_id", "chart_id"], how="left")
        .group_by("model", "query_id")
        .agg((pl.col("both").sum() / pl.len()).alias("value"))
        .select("model", "query_id", pl.lit(f"shared@{k}").alias("measure"), "value")
    )


@cached(version=2, code=False)
def _dense(
    embedder: Embedder, documents: pl.DataFrame, questions: pl.DataFrame, *, depth: int, progress: bool
) -> pl.DataFrame:
    """Rank by vectors, with a node's own store, searched exactly."""
    vectors = embedder.embed(documents["text"].to_list(), progress=progress)
    store = VectorStore(embedder.dim)
    store.put_many(
        Record.of(chart_id, 1, _NO_HASH, vector)
        for chart_id, vector in zip(documents["chart_id"], vectors, strict=True)
    )
    found = store.search_many(embedder.embed_query(questions["text"].to_list()), depth)
    return _ranked(questions, [match.chart_ids for match in found], [match.scores for match in found])


@cached(version=2, code=False)
def _lexical(documents: pl.DataFrame, questions: pl.DataFrame, *, depth: int) -> pl.DataFrame:
    chart_ids = documents["chart_id"].to_numpy()
    index = LexicalIndex(documents["text"].to_list())
    rows, scores = index.search(questions["text"].to_list(), min(depth, len(chart_ids)))
    return _ranked(questions, list(chart_ids[rows]), list(scores))


def _ranked(questions: pl.DataFrame, chart_ids: list[np.ndarray], scores: list[np.ndarray]) -> pl.DataFrame:
    schema: dict[str, pl.DataType | type[pl.DataType]] = {
        "query_id": pl.Int64,
        "chart_id": pl.List(pl.Int64),
        "score": pl.List(pl.Float64),
    }
    return (
        pl.DataFrame(
            {
                "query_id": questions["query_id"],
                "chart_id": [ids.tolist() for ids in chart_ids],
                "score": [values.tolist() for values in scores],
            },
            schema=schema,
        )
        .with_columns(pl.int_ranges(1, pl.col("chart_id").list.len() + 1).alias("rank"))
        .explode("rank", "chart_id", "score")
        .select("query_id", "rank", "chart_id", "score")
    )
