"""How well each model finds the charts that answer: nDCG@10, recall@10 and MRR@10, beside BM25.

On the shipped catalogue (all questions, and its test split), and on nvBench where a copy is at hand
(``--nvbench FOLDER``, by default ``../shared/data/nvbench``; a thousand of its questions). What was measured before is
read from the cache; ``copilotlab study models`` has the costs as well.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import polars as pl

from copilotlab.studies.models import models, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    beside = Path(__file__).parents[3] / "shared" / "data" / "nvbench"
    parser.add_argument("--nvbench", type=Path, default=beside)
    nvbench = parser.parse_args().nvbench
    collections: dict[str, dict[str, object]] = {"data/, all": {}, "data/, test": {"split": "test"}}
    if (nvbench / "charts.parquet").is_file():
        files = {"charts": "charts", "questions": "queries", "judgements": "qrels"}
        collections["nvBench, 1,000 questions"] = {
            "sample_questions": 1000,
            **{name: nvbench / f"{file}.parquet" for name, file in files.items()},
        }
    else:
        print(f"nvBench is not at {nvbench}: left out")
    for name, collection in collections.items():
        measured = models(**collection, with_cost=False, nodes=0)  # type: ignore[arg-type]
        with pl.Config(tbl_rows=-1, tbl_width_chars=160, tbl_hide_dataframe_shape=True):
            print(f"\n{name}: mean over questions [95 % interval]")
            print(table(measured, "quality"))


if __name__ == "__main__":
    main()
