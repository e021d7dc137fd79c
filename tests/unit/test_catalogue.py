"""The catalogue that ships: charts, questions and judgements in data/, and the script that makes them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import polars as pl
import pytest

from copilotlab import ChartRepository
from copilotlab.lab import catalogue

DATA = Path(__file__).parents[2] / "data"

SUBJECT = """
name = "Bakery"
tags = ["bread"]
[dimensions]
month = "Month"
shop = "Shop"
[[measures]]
key = "loaves"
label = "Loaves baked"
description = "Loaves that left the oven."
source = "Oven log"
dimensions = ["month", "shop"]
[[measures]]
key = "waste"
label = "Waste"
description = "Loaves thrown away."
source = "Bin log"
dimensions = ["month"]
related = ["loaves"]
[[questions]]
text = "what did we throw away"
kind = "vague"
measures = ["waste"]
dimensions = ["month"]
"""


@pytest.fixture(scope="module", autouse=True)
def _scripts_can_be_imported() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DATA))
        yield


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    return import_module("make_catalogue")


@pytest.fixture(scope="module")
def charts() -> pl.DataFrame:
    return pl.read_parquet(DATA / "charts.parquet")


@pytest.fixture(scope="module")
def questions() -> pl.DataFrame:
    return pl.read_parquet(DATA / "questions.parquet")


@pytest.fixture(scope="module")
def judgements() -> pl.DataFrame:
    return pl.read_parquet(DATA / "judgements.parquet")


# What ships -------------------------------------------------------------------------------------------------


def test_the_catalogue_is_large_enough_to_be_a_real_one(charts: pl.DataFrame, questions: pl.DataFrame) -> None:
    assert charts.height >= 2000
    assert questions.height >= 400
    assert questions["subject"].n_unique() >= 25


def test_ids_are_unique(charts: pl.DataFrame, questions: pl.DataFrame, judgements: pl.DataFrame) -> None:
    assert charts["chart_id"].is_unique().all()
    assert questions["query_id"].is_unique().all()
    assert not judgements.select("query_id", "chart_id").is_duplicated().any()


def test_every_judgement_is_of_a_question_and_a_chart_that_exist(
    charts: pl.DataFrame, questions: pl.DataFrame, judgements: pl.DataFrame
) -> None:
    assert set(judgements["query_id"]) == set(questions["query_id"])
    assert set(judgements["chart_id"]) <= set(charts["chart_id"])
    assert set(judgements["relevance"]) == {1, 2}


def test_every_question_has_a_chart_that_answers_it_fully(questions: pl.DataFrame, judgements: pl.DataFrame) -> None:
    answered = judgements.filter(pl.col("relevance") == 2)["query_id"]
    assert questions.filter(~pl.col("query_id").is_in(answered.implode()))["text"].to_list() == []


def test_the_order_of_charts_does_not_reveal_their_subject(
    charts: pl.DataFrame, questions: pl.DataFrame, judgements: pl.DataFrame
) -> None:
    # Of charts that lie side by side, few belong to one subject: with 30 subjects, about one pair in 30.
    subjects = dict(judgements.join(questions, on="query_id").select("chart_id", "subject").iter_rows())
    row = [subjects[chart_id] for chart_id in charts["chart_id"] if chart_id in subjects]
    side_by_side = sum(left == right for left, right in pairwise(row))
    assert side_by_side < len(row) / 10


def test_both_splits_hold_about_half_of_every_kind(questions: pl.DataFrame, generator: ModuleType) -> None:
    counts = {(kind, split): n for kind, split, n in questions.group_by("kind", "split").len().iter_rows()}
    assert {kind for kind, _ in counts} == set(generator.KINDS)
    for kind in generator.KINDS:
        assert abs(counts[kind, "dev"] - counts[kind, "test"]) <= 1


def test_both_splits_hold_every_subject(questions: pl.DataFrame) -> None:
    for _, asked in questions.group_by("subject"):
        share = (asked["split"] == "dev").mean()
        assert 0.3 <= share <= 0.7, asked["subject"][0]


def test_a_repository_takes_the_charts_as_they_are(charts: pl.DataFrame) -> None:
    with ChartRepository.from_frame(DATA / "charts.parquet") as repository:
        assert len(repository) == charts.height
        row = charts.row(0, named=True)
        chart = repository.get(row["chart_id"])
        assert chart is not None
        assert (chart.title, list(chart.dimensions)) == (row["title"], row["dimensions"])


def test_questions_said_to_share_no_words_share_none(generator: ModuleType) -> None:
    stop_words = set(import_module("bm25s.stopwords").STOPWORDS_EN_PLUS)

    def words(*texts: str) -> set[str]:
        return set(re.findall(r"[a-z0-9]{2,}", " ".join(texts).lower())) - stop_words

    subjects = generator.read_subjects(DATA / "subjects")
    tags = {subject.key: subject.tags for subject in subjects}
    measures = {name: measure for subject in subjects for name, measure in subject.measures.items()}
    shared = {}
    for subject in subjects:
        for question in subject.questions:
            if question.kind != "no_shared_words":
                continue
            for measure in (measures[name] for name in question.measures):
                named = words(measure.label, *measure.aliases, *measure.tags, *tags[subject.key])
                if common := words(question.text) & (named | words(measure.description)):
                    shared[question.text] = common
    assert shared == {}


def test_bm25_finds_the_questions_neither_easy_nor_hopeless(generator: ModuleType) -> None:
    scores = import_module("bm25_baseline").evaluate(generator.read())
    for row in scores.head(3).iter_rows(named=True):  # all, dev, test
        assert 0.35 <= row["nDCG@10"] <= 0.65, row
    readme = (DATA / "README.md").read_text()
    for name, _, *means in scores.select(scores.columns[:5]).iter_rows():
        figures = " | ".join(f"{mean:.3f}" for mean in means)
        assert re.search(rf"\| {name}( \(\d+\))? \| {re.escape(figures)} \|", readme), f"{name}: {figures}"


# How it is made ---------------------------------------------------------------------------------------------


def test_the_files_are_what_the_subject_files_make(generator: ModuleType) -> None:
    assert generator.check() == []


def test_a_changed_subject_file_is_noticed_and_changes_its_own_charts_only(
    generator: ModuleType, charts: pl.DataFrame, tmp_path: Path
) -> None:
    shutil.copytree(DATA / "subjects", tmp_path / "subjects")
    generator.write(generator.read(), tmp_path)
    assert generator.check(tmp_path) == []
    path = tmp_path / "subjects" / "finance.toml"
    path.write_text(path.read_text().replace('"Cash balance"', '"Cash position"'))
    assert any("charts.parquet" in difference for difference in generator.check(tmp_path))
    made = generator.make_catalogue(generator.read_subjects(tmp_path / "subjects")).charts
    before, after = (set(map(repr, frame.iter_rows())) for frame in (charts, made))
    assert before - after
    assert all("cash balance" in chart.lower() for chart in before - after)


def test_a_missing_file_is_noticed(generator: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "subjects").mkdir()
    (tmp_path / "subjects" / "bakery.toml").write_text(SUBJECT)
    assert generator.check(tmp_path) == [f"{n}.parquet is missing" for n in generator.Catalogue._fields]


def test_grades_follow_what_the_writer_listed(generator: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "bakery.toml").write_text(SUBJECT)
    subjects = generator.read_subjects(tmp_path)
    (question,) = subjects[0].questions
    related = {"bakery.loaves"}
    grades = {
        (chart.measures[0].label, chart.labels): generator.grade(question, chart, related)
        for chart in generator.make_charts(subjects)
    }
    assert grades["Waste", ("Month",)] == 2
    assert grades["Loaves baked", ("Month",)] == 1
    assert grades["Loaves baked", ("Shop",)] == 0


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ('name = "Bakery"', 'name = "Bakery"\ncolour = "red"', "unknown key 'colour'"),
        ('source = "Bin log"', 'source = "Bin log"\nunit = "kg"', "unknown key 'unit'"),
        ('source = "Bin log"', "", "source must be a text"),
        ('dimensions = ["month", "shop"]', 'dimensions = ["month", "town"]', "unknown dimension 'town'"),
        ('key = "waste"', 'key = "loaves"', "measure 'bakery.loaves' is there twice"),
        ('related = ["loaves"]', 'related = ["rolls"]', "unknown related measure 'bakery.rolls'"),
        ('measures = ["waste"]', 'measures = ["crumbs"]', "unknown measure 'bakery.crumbs'"),
        ('kind = "vague"', 'kind = "hard"', "unknown kind 'hard'"),
        ('["waste"]\ndimensions = ["month"]', '["waste"]\ndimensions = ["shop"]', "no chart of grade 2"),
        ('month = "Month"', 'month = "Flour"', "no time dimension"),
        ('name = "Bakery"', 'name = "Bakery', "not valid TOML"),
    ],
)
def test_a_wrong_subject_file_is_refused_with_its_fault(
    generator: ModuleType, tmp_path: Path, right: str, wrong: str, message: str
) -> None:
    assert right in SUBJECT
    (tmp_path / "bakery.toml").write_text(SUBJECT.replace(right, wrong))
    with pytest.raises(generator.CatalogueError, match=re.escape(message)) as caught:
        generator.read_subjects(tmp_path)
    assert "bakery.toml" in str(caught.value)


def test_all_faults_are_told_at_once(generator: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "bakery.toml").write_text(SUBJECT.replace('kind = "vague"', 'kind = "hard"'))
    (tmp_path / "cafe.toml").write_text(SUBJECT.replace('"Bakery"', '""').replace("throw", "bin"))
    with pytest.raises(generator.CatalogueError) as caught:
        generator.read_subjects(tmp_path)
    assert len(str(caught.value).splitlines()) == 2


def test_the_questions_of_a_split() -> None:
    assert set(catalogue.questions("dev")["split"]) == {"dev"}
    assert catalogue.questions().height == catalogue.questions("dev").height + catalogue.questions("test").height
    with pytest.raises(ValueError, match=r"questions\('nosuch'\): expected 'dev' or 'test'"):
        catalogue.questions("nosuch")
