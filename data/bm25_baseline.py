"""Measure how well BM25 answers the questions of the catalogue that ships, without any model.

    python data/bm25_baseline.py         prints the table of data/README.md

BM25 reads what the models read, `Chart.text`; English stop words are left out (bm25s). The figures are
ir-measures'. nDCG counts both grades. RR and R count charts of grade 1 and 2 alike, as is usual;
with (rel=2) they count only charts that answer fully.
"""

from __future__ import annotations

import ir_measures
import polars as pl
from ir_measures import RR, Qrel, R, ScoredDoc, nDCG
from make_catalogue import KINDS, SPLITS, Catalogue, read

from copilotlab import Chart
from copilotlab.studies.lexical import LexicalIndex

MEASURES = (nDCG @ 10, RR @ 10, R @ 10, RR(rel=2) @ 10, R(rel=2) @ 10)


def rank(charts: pl.DataFrame, questions: pl.DataFrame, k: int = 10) -> pl.DataFrame:
    """Find the k best charts for each question: query_id, chart_id, score, best first."""
    index = LexicalIndex([Chart(**row).text for row in charts.iter_rows(named=True)])
    rows, scores = index.search(questions["text"].to_list(), k)
    return pl.DataFrame(
        {
            "query_id": questions["query_id"].to_numpy().repeat(k),
            "chart_id": charts["chart_id"].to_numpy()[rows].ravel(),
            "score": scores.ravel(),
        }
    )


def evaluate(catalogue: Catalogue) -> pl.DataFrame:
    """Return a row for all questions, each split and each kind: their number, and the mean of each measure."""
    ranked = rank(catalogue.charts, catalogue.questions)
    run = [ScoredDoc(str(query), str(chart), score) for query, chart, score in ranked.iter_rows()]
    qrels = [Qrel(str(query), str(chart), grade) for query, chart, grade in catalogue.judgements.iter_rows()]
    values = pl.DataFrame(
        [
            (int(metric.query_id), str(metric.measure), metric.value)
            for metric in ir_measures.iter_calc(MEASURES, qrels, run)
        ],
        schema=["query_id", "measure", "value"],
        orient="row",
    ).pivot(on="measure", index="query_id", values="value")
    values = catalogue.questions.join(values, on="query_id", how="left").fill_null(0.0)
    groups = [("all", values)]
    groups += [(split, values.filter(pl.col("split") == split)) for split in SPLITS]
    groups += [(kind.replace("_", " "), values.filter(pl.col("kind") == kind)) for kind in KINDS]
    means = [pl.col(str(measure)).mean() for measure in MEASURES]
    return pl.concat(
        group.select(pl.lit(name).alias("questions"), pl.len().alias("n"), *means) for name, group in groups
    )


def main() -> None:
    """Print the table in Markdown."""
    with pl.Config(
        tbl_formatting="MARKDOWN",
        tbl_hide_column_data_types=True,
        tbl_hide_dataframe_shape=True,
        tbl_rows=-1,
        float_precision=3,
    ):
        print(evaluate(read()))


if __name__ == "__main__":
    main()
