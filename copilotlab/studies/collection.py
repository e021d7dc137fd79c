"""A test collection: documents, questions, and judgements of which document answers which question."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import polars as pl

from copilotlab.charts import ChartRepository
from copilotlab.lab import catalogue

FrameOrPath = pl.DataFrame | str | Path


@dataclass(frozen=True, slots=True, eq=False)
class Collection:
    """What models are compared on.

    charts: as `ChartRepository.frame`. questions: query_id (int), text, and whatever else describes them; only those
    with a judgement. judgements: query_id, chart_id, relevance (1 or more), only of charts that there are.
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
        """A collection of three frames or files (.parquet, .csv, .ndjson), or, without any, the one that ships.

        split: only the questions that have it in their column ``split``.

        Raises ValueError for one or two of the three, a missing column, a split that no question has, or if no
        question has a judgement; ChartError for a wrong chart.
        """
        given = (charts, questions, judgements)
        if all(part is None for part in given):
            charts, questions, judgements = catalogue.charts(), catalogue.questions(), catalogue.judgements()
        if charts is None or questions is None or judgements is None:
            raise ValueError("charts, questions and judgements belong together: give all three, or none of them")
        asked = _frame(questions, "questions", ("query_id", "text"))
        judged = _frame(judgements, "judgements", ("query_id", "chart_id", "relevance"))
        if split is not None:
            if "split" not in asked.columns or not (asked["split"] == split).any():
                raise ValueError(f"split={split!r}: no question has it; with split=None all questions count")
            asked = asked.filter(pl.col("split") == split)
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
        """A smaller collection: at most so many questions, the charts that answer them, and others up to `charts`.

        So no answer is lost, but fewer charts stand beside it: questions are easier than in the whole collection.
        """
        for name, size in (("charts", charts), ("questions", questions)):
            if size is not None and size < 1:
                raise ValueError(f"{name}={size!r}: expected 1 or more, or None for all")
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
        """What is searched: chart_id, and text, as nodes embed it."""
        listed = list(ChartRepository.from_frame(self.charts))
        return pl.DataFrame({"chart_id": [chart.chart_id for chart in listed], "text": [c.text for c in listed]})

    def __repr__(self) -> str:
        return (
            f"Collection({self.charts.height:,} charts, {self.questions.height:,} questions, "
            f"{self.judgements.height:,} judgements)"
        )


def _frame(frame_or_path: FrameOrPath, name: str, columns: tuple[str, ...]) -> pl.DataFrame:
    frame = frame_or_path if isinstance(frame_or_path, pl.DataFrame) else _read(Path(frame_or_path))
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise ValueError(f"{name} lacks {', '.join(missing)}: expected the columns {', '.join(columns)}")
    return frame


def _read(path: Path) -> pl.DataFrame:
    match path.suffix:
        case ".parquet":
            return pl.read_parquet(path)
        case ".csv":
            return pl.read_csv(path)
        case ".ndjson":
            return pl.read_ndjson(path)
    raise ValueError(f"{path}: expected a name that ends in .parquet, .csv or .ndjson")
