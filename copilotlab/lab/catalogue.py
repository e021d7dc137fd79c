"""The catalogue that ships: charts of 25 business subjects, questions, and judgements of which chart answers which.

How it was made, and its licence: ``data/README.md``.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from copilotlab.reasons import short

_PACKAGE = Path(__file__).parents[1]


def catalogue_path(name: str) -> Path:
    """Return the path of a shipped file: in a checkout from data/, else from the wheel.

    name: "charts", "questions" or "judgements".

    Raises ValueError for another name, FileNotFoundError if the file is missing.
    """
    if name not in ("charts", "questions", "judgements"):
        raise ValueError(f"catalogue_path({short(name)}): expected 'charts', 'questions' or 'judgements'")
    places = [_PACKAGE.parent / "data" / f"{name}.parquet", _PACKAGE / "data" / f"{name}.parquet"]
    for path in places:
        if path.is_file():
            return path
    raise FileNotFoundError(f"{name}.parquet is neither at {places[0]} nor at {places[1]}; `make catalogue` makes it")


def charts() -> pl.DataFrame:
    """Read the charts: chart_id, title, description, chart_type, dimensions, measures, source, tags."""
    return pl.read_parquet(catalogue_path("charts"))


def questions(split: str | None = None) -> pl.DataFrame:
    """Read the questions: query_id, text, subject, kind, split; only those of ``split`` ("dev" or "test") if given.

    Raises ValueError for another split.
    """
    if split not in (None, "dev", "test"):
        raise ValueError(f"questions({short(split)}): expected 'dev' or 'test', or None for both")
    frame = pl.read_parquet(catalogue_path("questions"))
    return frame if split is None else frame.filter(pl.col("split") == split)


def judgements() -> pl.DataFrame:
    """Read which chart answers which question: query_id, chart_id, relevance (2: fully, 1: in part); all else is 0."""
    return pl.read_parquet(catalogue_path("judgements"))
