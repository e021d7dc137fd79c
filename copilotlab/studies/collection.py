"""A test collection: documents, questions, and judgements of which document answers which question."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import polars as pl

from copilotlab.charts import ChartRepository
from copilotlab.charts.files import read_file
from copilotlab.lab import catalogue
from copilotlab.markup import GOOD, card
from copilotlab.reasons import short

FrameOrPath = pl.DataFrame | str | Path

_TEXT = (pl.String, pl.Categorical, pl.Enum)


@dataclass(frozen=True, slots=True, eq=False)
class Collection:
    """What models are compared on.

    charts: as `ChartRepository.frame`. questions: query_id (int), text, and whatever else describes them; only
    questions with a judgement. judgements: query_id, chart_id, relevance (1 or more); only of charts in ``charts``.
    """

    charts: pl.DataFrame
    questions: pl.DataFrame
    judgements: pl.DataFrame

    @classmethod
    def read(
        cls,
        charts: FrameOrPath | None = None,
        questions: FrameOrPath | None = None,
        judgements: FrameOrPath | None = None,
        *,
        split: str | None = None,
    ) -> Self:
        """Read a collection from three frames or files (.parquet, .csv, .ndjson); without any, the one that ships.

        split: keep only the questions that have it in their column ``split`` (None: all).

        Raises ValueError where one or two of the three are given, a file cannot be read, a column is missing, of
        another type or without a value in some row, no question has the split, or no question has a judgement;
        ChartError for a wrong chart.
        """
        given = (charts, questions, judgements)
        if all(part is None for part in given):
            charts, questions, judgements = catalogue.charts(), catalogue.questions(), catalogue.judgements()
        if charts is None or questions is None or judgements is None:
            raise ValueError("charts, questions and judgements belong together: give all three, or none of them")
        asked = _frame(questions, "questions", ("query_id", "text"))
        judged = _frame(judgements, "judgements", ("query_id", "chart_id", "relevance"))
        if split is not None:
            if "split" not in asked.columns or split not in asked["split"].cast(pl.String):
                raise ValueError(f"split={short(split)}: no question has it; with split=None all questions count")
            asked = asked.filter(pl.col("split").cast(pl.String) == split)
        described = ChartRepository.from_frame(charts).frame().drop("revision")
        judged = (
            judged.select("query_id", "chart_id", "relevance")
            .filter(pl.col("relevance") > 0)
            .join(described, on="chart_id", how="semi")
            .join(asked, on="query_id", how="semi")
        )
        asked = asked.join(judged, on="query_id", how="semi", maintain_order="left")
        if asked.is_empty():
            raise ValueError("no question has a judgement of one of the charts: do query_id and chart_id match?")
        return cls(described, asked, judged)

    def sample(self, *, charts: int | None = None, questions: int | None = None, seed: int = 0) -> Self:
        """Draw a smaller collection: at most so many questions, the charts that answer them, and others up to `charts`.

        charts, questions: None for all. seed: of what is drawn. No answer is lost, but there are fewer charts to
        confuse it with: questions are easier than in the whole collection. Raises ValueError for numbers below 1.
        """
        for name, size in (("charts", charts), ("questions", questions)):
            if size is not None and size < 1:
                raise ValueError(f"{name}={short(size)}: expected 1 or more, or None for all")
        asked, described = self.questions, self.charts
        if questions is not None and questions < asked.height:
            asked = asked.sample(questions, seed=seed, shuffle=False)
        judged = self.judgements.join(asked, on="query_id", how="semi")
        if charts is not None and charts < described.height:
            answers = described.join(judged, on="chart_id", how="semi")
            others = described.join(judged, on="chart_id", how="anti")
            wanted = max(0, min(charts - answers.height, others.height))
            described = pl.concat([answers, others.sample(wanted, seed=seed)]).sort("chart_id")
        return replace(self, charts=described, questions=asked, judgements=judged)

    def documents(self) -> pl.DataFrame:
        """Return what is searched: chart_id, and text as nodes embed it."""
        listed = list(ChartRepository.from_frame(self.charts))
        return pl.DataFrame({"chart_id": [chart.chart_id for chart in listed], "text": [c.text for c in listed]})

    def __repr__(self) -> str:
        return (
            f"Collection({self.charts.height:,} charts, {self.questions.height:,} questions, "
            f"{self.judgements.height:,} judgements)"
        )

    def _repr_html_(self) -> str:
        facts = {
            "Charts": f"{self.charts.height:,}",
            "Questions": f"{self.questions.height:,}",
            "Judgements": f"{self.judgements.height:,}",
            "The first question": self.questions["text"].first(),
        }
        return card("Collection", facts, colour=GOOD)


def _frame(frame_or_path: FrameOrPath, name: str, columns: tuple[str, ...]) -> pl.DataFrame:
    if isinstance(frame_or_path, pl.DataFrame):
        origin, frame = name, frame_or_path
    else:
        origin = f"{name} ({frame_or_path})"
        frame = read_file(Path(frame_or_path), _READERS, origin)
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise ValueError(f"{origin} lacks {', '.join(missing)}: expected the columns {', '.join(columns)}")
    return frame.with_columns(_checked(frame[column], origin) for column in columns)


_READERS: dict[str, Callable[[Path], pl.DataFrame]] = {
    ".parquet": pl.read_parquet,
    ".csv": pl.read_csv,
    ".ndjson": pl.read_ndjson,
}


def _checked(values: pl.Series, origin: str) -> pl.Series:
    """Return a column as text or int64, so that frames can be joined. Raises ValueError for a row without a value."""
    dtype: type[pl.DataType]
    if values.name == "text":
        alike, dtype, many, one = values.dtype in _TEXT, pl.String, "text", "text"
    else:
        alike, dtype, many, one = values.dtype.is_integer(), pl.Int64, "whole numbers", "a whole number below 2**63"
    if not alike and len(values):
        found = f"{values.dtype}, such as {values.drop_nulls().first()!r}"
        raise ValueError(f"{origin}, column {values.name}: found {found}; expected {many}")
    kept = values.cast(dtype, strict=False)
    if kept.has_nulls():
        row = kept.is_null().arg_max() or 0
        raise ValueError(f"{origin}, row {row + 1}: {values.name}={values[row]!r}: expected {one}")
    return kept
