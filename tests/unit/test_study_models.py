"""The study of embedding models, on collections small enough to reckon by hand, with models that load at once."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from copilotlab.charts import ChartError
from copilotlab.embedding import EmbeddingError
from copilotlab.lab import catalogue
from copilotlab.studies.cluster import cluster
from copilotlab.studies.collection import Collection
from copilotlab.studies.cost import cost
from copilotlab.studies.cost_process import Job
from copilotlab.studies.lexical import LexicalIndex
from copilotlab.studies.models import compared, frontier, models, recommend, table
from copilotlab.studies.retrieval import per_question, rankings

NVBENCH = Path(__file__).parents[3] / "shared" / "data" / "nvbench"


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COPILOTLAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def frames() -> dict[str, pl.DataFrame]:
    """Three charts, three questions, one of them without an answer."""
    return {
        "charts": pl.DataFrame({"chart_id": [1, 2, 3], "title": ["Revenue by region", "Sick days", "Tickets by week"]}),
        "questions": pl.DataFrame(
            {
                "query_id": [10, 20, 30],
                "text": ["revenue per region", "sick days", "weather"],
                "split": ["dev", "test", "test"],
            }
        ),
        "judgements": pl.DataFrame({"query_id": [10, 20, 30], "chart_id": [1, 2, 99], "relevance": [2, 1, 2]}),
    }


# The collection


def test_without_frames_it_is_the_catalogue_that_ships() -> None:
    collection = Collection.read(split="test")
    assert collection.charts.height == catalogue.charts().height
    assert set(collection.questions["split"]) == {"test"}
    assert repr(collection).startswith("Collection(2,209 charts, 247 questions")


def test_only_questions_with_an_answer_among_the_charts_count(frames: dict[str, pl.DataFrame]) -> None:
    collection = Collection.read(**frames)
    assert collection.questions["query_id"].to_list() == [10, 20]
    assert collection.judgements["chart_id"].to_list() == [1, 2]
    assert Collection.read(**frames, split="test").questions["query_id"].to_list() == [20]


@pytest.mark.parametrize("suffix", ["parquet", "csv", "ndjson"])
def test_files_are_read_by_their_suffix(frames: dict[str, pl.DataFrame], tmp_path: Path, suffix: str) -> None:
    for name, frame in frames.items():
        getattr(frame, f"write_{suffix}")(tmp_path / f"{name}.{suffix}")
    read = Collection.read(**{name: tmp_path / f"{name}.{suffix}" for name in frames})
    whole = Collection.read(**frames)
    assert read.charts.equals(whole.charts)
    assert read.questions.equals(whole.questions)
    assert read.judgements.equals(whole.judgements)


def test_what_is_wrong_with_a_collection_is_said(frames: dict[str, pl.DataFrame], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="belong together: give all three, or none"):
        Collection.read(frames["charts"])
    with pytest.raises(ValueError, match="questions lacks text: expected the columns query_id, text"):
        Collection.read(**{**frames, "questions": frames["questions"].drop("text")})
    with pytest.raises(ValueError, match="split='train': no question has it"):
        Collection.read(**frames, split="train")
    with pytest.raises(ValueError, match="no question has a judgement"):
        Collection.read(**{**frames, "judgements": frames["judgements"].tail(1)})
    with pytest.raises(ValueError, match=r"questions\.txt\): expected a name that ends in"):
        Collection.read(**{**frames, "questions": tmp_path / "questions.txt"})
    with pytest.raises(ChartError, match="title"):
        Collection.read(**{**frames, "charts": frames["charts"].drop("title")})


def test_a_name_may_end_in_capitals(frames: dict[str, pl.DataFrame], tmp_path: Path) -> None:
    paths = {name: tmp_path / f"{name}.PARQUET" for name in frames}
    for name, frame in frames.items():
        frame.write_parquet(paths[name])
    assert Collection.read(**paths).questions.equals(Collection.read(**frames).questions)


@pytest.mark.parametrize("suffix", ["parquet", "csv", "ndjson"])
@pytest.mark.parametrize("name", ["questions", "judgements"])
def test_a_file_that_cannot_be_read_is_named(
    frames: dict[str, pl.DataFrame], tmp_path: Path, name: str, suffix: str
) -> None:
    path = tmp_path / f"mine.{suffix}"
    with pytest.raises(ValueError, match=rf"^{name} \({path}\): there is no such file$"):
        Collection.read(**{**frames, name: path})
    path.write_text("PAR1\nquery_id,text\n")
    with pytest.raises(ValueError, match=rf"^{name} \({path}\) cannot be read as {suffix}: ."):
        Collection.read(**{**frames, name: path})


@pytest.mark.parametrize(
    ("name", "column", "values", "said"),
    [
        ("questions", "query_id", ["q1", "q2", "q3"], "found String, such as 'q1'; expected whole numbers"),
        ("judgements", "query_id", ["q1", None, "q3"], "found String, such as 'q1'; expected whole numbers"),
        ("judgements", "chart_id", [1.5, 2.0, 3.0], "found Float64, such as 1.5; expected whole numbers"),
        ("judgements", "relevance", ["full", "part", "no"], "found String, such as 'full'; expected whole numbers"),
        ("questions", "text", [None, 7, 8], "found Int64, such as 7; expected text"),
    ],
)
def test_a_column_of_another_type_is_named(
    frames: dict[str, pl.DataFrame], tmp_path: Path, name: str, column: str, values: list[object], said: str
) -> None:
    wrong = frames[name].with_columns(pl.Series(column, values))
    with pytest.raises(ValueError, match=re.escape(f"{name}, column {column}: {said}")):
        Collection.read(**{**frames, name: wrong})
    path = tmp_path / "mine.ndjson"
    wrong.write_ndjson(path)
    with pytest.raises(ValueError, match=re.escape(f"{name} ({path}), column {column}: {said}")):
        Collection.read(**{**frames, name: path})


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("questions", pl.Series("text", ["revenue", None, "weather"]), "row 2: text=None: expected text"),
        ("judgements", pl.Series("relevance", [1, 2, None]), "row 3: relevance=None: expected a whole number"),
        (
            "questions",
            pl.Series("query_id", [2**63, 1, 2], pl.UInt64),
            "row 1: query_id=9223372036854775808: expected a whole number below 2**63",
        ),
    ],
)
def test_a_value_that_is_missing_or_beyond_is_named(
    frames: dict[str, pl.DataFrame], name: str, values: pl.Series, said: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{name}, {said}")):
        Collection.read(**{**frames, name: frames[name].with_columns(values)})


def test_narrow_numbers_and_categories_are_the_same_questions(frames: dict[str, pl.DataFrame]) -> None:
    questions = frames["questions"].cast({"query_id": pl.UInt16, "text": pl.Categorical, "split": pl.Categorical})
    judgements = frames["judgements"].cast({"query_id": pl.Int32, "chart_id": pl.UInt8, "relevance": pl.Int8})
    whole, read = (
        Collection.read(**parts, split="test")
        for parts in (frames, {**frames, "questions": questions, "judgements": judgements})
    )
    assert read.judgements.equals(whole.judgements)
    assert read.questions["text"].to_list() == whole.questions["text"].to_list()


def test_a_split_may_be_a_number(frames: dict[str, pl.DataFrame]) -> None:
    numbered = frames["questions"].with_columns(split=pl.Series([1, 2, 2]))
    assert Collection.read(**{**frames, "questions": numbered}, split="2").questions["query_id"].to_list() == [20]


def test_a_sample_keeps_every_answer_and_depends_on_the_seed_alone() -> None:
    whole = Collection.read()
    sample = whole.sample(charts=300, questions=20, seed=1)
    assert (sample.charts.height, sample.questions.height) == (300, 20)
    answers = whole.judgements.join(sample.questions, on="query_id", how="semi")
    assert sample.judgements.equals(answers)
    assert set(answers["chart_id"]) <= set(sample.charts["chart_id"])
    again, other = (whole.sample(charts=300, questions=20, seed=seed) for seed in (1, 2))
    assert again.charts.equals(sample.charts)
    assert not other.charts.equals(sample.charts)
    assert whole.sample(charts=10**6, questions=10**6).charts.equals(whole.charts)
    with pytest.raises(ValueError, match="questions=0: expected 1 or more, or None"):
        whole.sample(questions=0)


# What is found, and how good that is


def test_measures_are_those_that_one_reckons_by_hand() -> None:
    found = pl.DataFrame(
        {
            "model": ["a"] * 3 + ["b"] * 3,
            "query_id": [1] * 6,
            "rank": [1, 2, 3] * 2,
            "chart_id": [7, 8, 9, 9, 5, 7],
            "score": [1.0] * 6,  # ties: the order counts, not the score
        }
    )
    judgements = pl.DataFrame({"query_id": [1, 1, 1], "chart_id": [7, 9, 4], "relevance": [1, 2, 1]})
    values = per_question(found, judgements, k=3, reference="a")
    reckoned = dict(values.select(pl.concat_str("model", "measure", separator=" "), "value").iter_rows())
    ideal = 2 + 1 / np.log2(3) + 1 / np.log2(4)
    assert reckoned == pytest.approx(
        {
            "a nDCG@3": (1 + 2 / np.log2(4)) / ideal,
            "a MRR@3": 1,
            "a recall@3": 2 / 3,
            "a shared@3": 1,
            "b nDCG@3": (2 + 1 / np.log2(4)) / ideal,
            "b MRR@3": 1,
            "b recall@3": 2 / 3,
            "b shared@3": 2 / 3,
        }
    )
    first = per_question(found, judgements, k=1)
    assert first.filter(model="b", measure="MRR@1")["value"].item() == 1
    assert first.filter(model="b", measure="recall@1")["value"].item() == pytest.approx(1 / 3)


def test_a_question_that_finds_nothing_relevant_counts_as_nothing(frames: dict[str, pl.DataFrame]) -> None:
    found = pl.DataFrame({"model": "a", "query_id": [10, 20], "rank": 1, "chart_id": [1, 3], "score": 1.0})
    values = per_question(found, frames["judgements"], k=1)
    assert values.filter(measure="nDCG@1")["value"].to_list() == [1, 0]


def test_bm25_ranks_texts_of_one_score_in_their_order() -> None:
    many = ["sick days", *500 * ["revenue by region"], "revenue revenue", *500 * ["revenue by region"]]
    rows, scores = LexicalIndex(many).search(["revenue", "words that nobody knows", "the"], 4)

    assert rows.tolist() == [[501, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]]
    assert scores[0, 0] > scores[0, 1] == scores[0, 3] > 0
    assert scores[1:].max() == 0
    assert LexicalIndex(["revenue", "sick days"]).search(["sick"], 2)[0].tolist() == [[1, 0]]


def test_models_and_bm25_rank_all_charts_best_first(frames: dict[str, pl.DataFrame]) -> None:
    found = rankings(["hash", "bm25"], Collection.read(**frames), progress=False)
    assert found.columns == ["model", "query_id", "rank", "chart_id", "score"]
    for (_, query_id), ranked in found.group_by("model", "query_id"):
        assert ranked["rank"].to_list() == [1, 2, 3]
        assert ranked["score"].is_sorted(descending=True)
        assert ranked["chart_id"][0] == {10: 1, 20: 2}[query_id]


def test_a_wrong_depth_or_reference_is_refused(frames: dict[str, pl.DataFrame]) -> None:
    found = rankings(["bm25"], Collection.read(**frames))
    with pytest.raises(ValueError, match="k=51: expected 1 to 50"):
        per_question(found, frames["judgements"], k=51)
    with pytest.raises(ValueError, match="reference='minilm': it is none of the models"):
        per_question(found, frames["judgements"], reference="minilm")


# Comparing


def per_model(**values: list[float]) -> pl.DataFrame:
    return pl.concat(
        pl.DataFrame({"model": model, "query_id": range(len(given)), "measure": "nDCG@10", "value": given})
        for model, given in values.items()
    )


def test_a_difference_that_is_there_is_found_and_one_that_is_not_is_not() -> None:
    random = np.random.default_rng(0)
    reference = random.uniform(0, 1, 200)
    frame = compared(
        per_model(
            reference=reference.tolist(),
            same=reference.tolist(),
            worse=(reference - 0.1 + random.normal(0, 0.2, 200)).tolist(),
            shuffled=(reference + random.normal(0, 0.2, 200)).tolist(),
        ),
        reference="reference",
    )
    by_model = {row["model"]: row for row in frame.iter_rows(named=True)}
    assert by_model["reference"]["p"] is None
    assert by_model["reference"]["value"] == pytest.approx(reference.mean())
    assert by_model["reference"]["low"] < reference.mean() < by_model["reference"]["high"]
    assert by_model["same"]["p"] == 1
    assert by_model["same"]["difference_low"] == by_model["same"]["difference_high"] == 0
    assert by_model["worse"]["p_adjusted"] < 0.01
    assert by_model["worse"]["difference_low"] < -0.1 < by_model["worse"]["difference_high"] < 0
    assert by_model["shuffled"]["p"] > 0.05
    assert all(row["p"] is None or row["p_adjusted"] >= row["p"] for row in by_model.values())


def test_the_interval_of_a_mean_is_that_of_the_textbook_for_many_values() -> None:
    values = np.random.default_rng(1).uniform(0, 1, 2000)
    row = compared(per_model(a=values.tolist()), reference="a").row(0, named=True)
    half = 1.96 * values.std() / np.sqrt(2000)
    assert (row["low"], row["high"]) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.002)


# Cost and cluster


def test_costs_are_measured_in_a_process_of_their_own() -> None:
    collection = Collection.read().sample(charts=80, questions=5)
    frame = cost("hash", collection)
    values = dict(frame.select("measure", "value").iter_rows())
    assert list(values) == [
        "embeddings/s at batch 1",
        "embeddings/s at batch 64",
        "query p50",
        "load time",
        "memory",
        "size on disk",
    ]
    assert values.pop("size on disk") == 0
    assert all(value > 0 for value in values.values())
    assert values["memory"] < 200  # no polars, no torch
    assert frame.filter(pl.col("low") > pl.col("high")).is_empty()
    lexical = cost("bm25", collection)
    assert lexical["measure"].to_list() == ["query p50", "load time", "memory"]


def test_a_process_that_fails_says_why() -> None:
    from copilotlab.studies import cost as module

    with pytest.raises(RuntimeError, match=r"measuring 'nonsense' failed with exit code 1: [\s\S]*no model is called"):
        module._measure(Job("nonsense", ["a"], ["b"], 1, 1, 1))


def test_a_cluster_is_filled_through_redis_and_answers() -> None:
    from copilotlab import load_embedder

    collection = Collection.read().sample(charts=60, questions=5)
    frame = cluster(load_embedder("hash"), collection.charts, collection.questions["text"].to_list(), nodes=3)
    values = dict(frame.select("measure", "value").iter_rows())
    assert list(values) == ["rebuild time", "bytes moved", "query latency"]
    to_two_others = collection.charts.height * 64 * 4 * 2 / 1e6
    assert values["bytes moved"] > to_two_others
    assert values["rebuild time"] > 0


# The whole


def test_the_study_is_one_tidy_frame_and_runs_from_the_cache_the_second_time(
    frames: dict[str, pl.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {"reference": "hash", "nodes": 2, "resamples": 50, "progress": False}
    measured = models(["hash", "bm25"], **frames, **few)
    assert measured.columns == [
        "model",
        "kind",
        "measure",
        "unit",
        "value",
        "low",
        "high",
        "difference",
        "difference_low",
        "difference_high",
        "p",
        "p_adjusted",
    ]
    assert measured.filter(pl.struct("model", "measure").is_duplicated()).is_empty()
    assert set(measured.filter(model="hash")["kind"]) == {"quality", "cost", "cluster"}
    assert set(measured.filter(model="bm25")["kind"]) == {"quality", "cost"}
    assert measured.filter(model="hash", measure="nDCG@10")["value"].item() == 1
    assert measured["model"].unique(maintain_order=True).to_list() == ["hash", "bm25"]
    read = table(measured, "quality")
    assert read.columns == ["model", "nDCG@10", "recall@10", "MRR@10", "shared@10"]
    assert read["nDCG@10"][0] == "1.00 [1.00, 1.00]"
    assert table(measured, "cost")["memory"][0].endswith(" MB")
    assert table(measured, "cost").filter(model="bm25")["embeddings/s at batch 1"].item() == ""
    with pytest.raises(ValueError, match="kind='price': nothing of that kind was measured"):
        table(measured, "price")
    monkeypatch.setattr("copilotlab.studies.cost._measure", None)
    monkeypatch.setattr("copilotlab.studies.cluster.Lab", None)
    assert models(["hash", "bm25"], **frames, **few).equals(measured)


def test_the_reference_is_measured_also_when_it_is_not_named(frames: dict[str, pl.DataFrame]) -> None:
    only_quality = {"with_cost": False, "nodes": 0, "resamples": 50, "progress": False}
    measured = models(["bm25"], **frames, reference="hash", **only_quality)
    assert set(measured["model"]) == {"hash", "bm25"}
    assert set(measured["kind"]) == {"quality"}
    with pytest.raises(ValueError, match="embedders is empty"):
        models([], **frames)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"k": 0}, "k=0: expected a whole number from 1 to 50"),
        ({"k": 51}, "k=51: expected a whole number from 1 to 50"),
        ({"k": 2.5}, "k=2.5: expected a whole number from 1 to 50"),
        ({"resamples": 0}, "resamples=0: expected a whole number, 1 or more"),
        ({"nodes": -1}, "nodes=-1: expected a whole number from 0 to 64"),
        ({"nodes": True}, "nodes=True: expected a whole number from 0 to 64"),
        ({"cluster_charts": 0}, "cluster_charts=0: expected a whole number, 1 or more"),
        ({"sample_charts": 0}, "sample_charts=0: expected a whole number, 1 or more"),
        ({"sample_questions": -3}, "sample_questions=-3: expected a whole number, 1 or more"),
        ({"seed": -1}, "seed=-1: expected a whole number, 0 or more"),
        ({"embedders": "hash"}, "embedders='hash': expected a list of names, such as ['minilm', 'bm25']"),
        ({"embedders": ["bm25", "hahs"]}, "no model is called 'hahs'; did you mean 'hash'?"),
        ({"reference": "hahs"}, "no model is called 'hahs'; did you mean 'hash'?"),
    ],
)
def test_what_makes_no_sense_is_named_before_anything_is_measured(
    frames: dict[str, pl.DataFrame], monkeypatch: pytest.MonkeyPatch, wrong: dict[str, object], said: str
) -> None:
    monkeypatch.setattr("copilotlab.studies.models.rankings", None)
    given = {"embedders": ["hash", "bm25"], "reference": "hash", "progress": False, **frames}
    with pytest.raises((ValueError, EmbeddingError), match=re.escape(said)):
        models(**{**given, **wrong})


def test_it_works_on_nvbench() -> None:
    if not NVBENCH.is_dir():
        pytest.skip(f"nvBench is not at {NVBENCH}")
    files = {"charts": "charts", "questions": "queries", "judgements": "qrels"}
    paths = {name: NVBENCH / f"{file}.parquet" for name, file in files.items()}
    measured = models(
        ["bm25"],
        **paths,
        sample_charts=500,
        sample_questions=50,
        reference="hash",
        with_cost=False,
        nodes=0,
        progress=False,
    )
    best = measured.filter(model="bm25", measure="nDCG@10").row(0, named=True)
    assert 0.2 < best["low"] < best["value"] < best["high"] < 1


# Which one to take


def measured_frame(*rows: tuple[str, float, float | None, float]) -> pl.DataFrame:
    """model, quality, low end of its difference from the reference, milliseconds a query."""
    measures = []
    for model, value, low, milliseconds in rows:
        measures += [
            (model, "nDCG@10", "0 to 1", value, low),
            (model, "query p50", "ms", milliseconds, None),
            (model, "embeddings/s", "/s", 1000 / milliseconds, None),
        ]
    columns = ["model", "measure", "unit", "value", "difference_low"]
    nothing = [pl.lit(None, pl.Float64).alias(name) for name in ("low", "high", "difference", "difference_high")]
    return pl.DataFrame(measures, schema=columns, orient="row").with_columns(nothing)


MEASURED = measured_frame(
    ("minilm", 0.60, None, 10.0),
    ("onnx", 0.60, -0.001, 5.0),
    ("int8", 0.59, -0.03, 3.0),
    ("slow", 0.55, -0.2, 20.0),
    ("static", 0.40, -0.3, 0.1),
    ("bm25", 0.60, 0.0, 0.2),
)


def test_on_the_frontier_is_what_no_other_beats() -> None:
    for measure in ("query p50", "embeddings/s"):
        points = frontier(MEASURED.filter(pl.col("model") != "bm25"), cost=measure)
        assert points.filter("frontier")["model"].to_list() == ["onnx", "int8", "static"]
    assert points["quality"].is_sorted(descending=True)
    with pytest.raises(ValueError, match=r"no model has the measure 'price'; there are: nDCG@10, query p50"):
        frontier(MEASURED, cost="price")


def test_two_that_are_equal_are_both_on_the_frontier() -> None:
    twins = measured_frame(("a", 0.5, None, 1.0), ("b", 0.5, 0.0, 1.0))
    assert frontier(twins)["frontier"].to_list() == [True, True]


def test_the_cheapest_that_is_surely_as_good_is_recommended() -> None:
    for measure in ("query p50", "embeddings/s"):
        assert recommend(MEASURED, cost=measure).model == "onnx"
    assert recommend(MEASURED, margin=0.03).model == "int8"
    assert recommend(MEASURED).sentence == (
        "Take onnx: its nDCG@10 of 0.600 is, with 95 % confidence, at most 0.02 below minilm's 0.600; "
        "query p50 5 ms instead of 10 ms."
    )


def test_where_none_is_surely_as_good_the_reference_stays() -> None:
    few = MEASURED.filter(pl.col("model").is_in(["minilm", "int8", "slow", "bm25"]))
    said = recommend(few)
    assert said.model == "minilm"
    assert said.sentence.startswith("Stay with minilm (nDCG@10 0.600, query p50 10 ms)")
    with pytest.raises(ValueError, match="reference='other': it is none of the models"):
        recommend(MEASURED, reference="other")
