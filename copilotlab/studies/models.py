"""Which embedding model? How well each finds the charts that answer, what it costs, and what it costs a cluster.

from copilotlab.studies.models import models, recommend

measured = models(["minilm", "minilm-int8", "bm25"], sample_charts=500)
print(recommend(measured).sentence)
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

import numpy as np
import polars as pl
from scipy.stats import bootstrap, false_discovery_control, permutation_test
from tqdm.auto import tqdm

from copilotlab.embedding import load_embedder
from copilotlab.markup import GOOD, card
from copilotlab.reasons import short
from copilotlab.studies.cluster import cluster
from copilotlab.studies.collection import Collection, FrameOrPath
from copilotlab.studies.cost import cost
from copilotlab.studies.lexical import BM25
from copilotlab.studies.retrieval import DEPTH, per_question, rankings

MODELS = ("minilm", "minilm-int8", "minilm-static", "wordllama", "minilm-int8+wordllama", "hash", BM25)
MORE_IS_BETTER = ("nDCG", "recall", "MRR", "shared", "embeddings/s")  # measures that begin so are better when higher

_SCHEMA = {
    "model": pl.String,
    "kind": pl.String,
    "measure": pl.String,
    "unit": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "difference": pl.Float64,
    "difference_low": pl.Float64,
    "difference_high": pl.Float64,
    "p": pl.Float64,
    "p_adjusted": pl.Float64,
}


class Recommendation(NamedTuple):
    """What `recommend` says: the model's name, and why, in a sentence."""

    model: str
    sentence: str

    def _repr_html_(self) -> str:
        return card(self.model, {"Why": self.sentence}, colour=GOOD)


def models(
    embedders: Sequence[str] = MODELS,
    *,
    charts: FrameOrPath | None = None,
    questions: FrameOrPath | None = None,
    judgements: FrameOrPath | None = None,
    split: str | None = None,
    sample_charts: int | None = None,
    sample_questions: int | None = None,
    reference: str = "minilm",
    k: int = 10,
    with_cost: bool = True,
    nodes: int = 3,
    cluster_charts: int = 300,
    resamples: int = 2000,
    seed: int = 0,
    progress: bool = True,
) -> pl.DataFrame:
    """Compare embedding models; one row a model and measure.

    Parameters:
        embedders: names for `load_embedder` (also any sentence-transformers name or folder), and "bm25" (`MODELS`).
        charts, questions, judgements: frames or files, see `Collection.read` (the catalogue that ships).
        split: only the questions of that split (all).
        sample_charts, sample_questions: measure on fewer, see `Collection.sample` (all).
        reference: the model that the others are compared with; it is measured too ("minilm").
        k: how many charts of an answer count (10); it changes quality only.
        with_cost: measure the costs, see `copilotlab.studies.cost` (on).
        nodes: of the cluster, see `copilotlab.studies.cluster`; with 0 there is none (3).
        cluster_charts: how many charts the cluster holds (300).
        resamples: of the bootstrap and of the permutation test (2,000).
        seed: of everything random (0).
        progress: show a bar.

    Returns:
        model; kind ("quality", "cost", "cluster"); measure; unit; value; low, high: for quality the 95 % confidence
        interval of the mean over questions (percentile bootstrap), else how far repetitions lay apart. For quality
        also difference: the paired difference from the reference, with its interval difference_low to difference_high;
        p: of a two-sided paired permutation test of no difference; p_adjusted: the same, corrected for the comparison
        of several models (Benjamini and Hochberg). Null where it does not apply: bm25 embeds nothing, and is in no
        cluster.

    Raises:
        ValueError: see `Collection`; also for a number out of range, such as k beyond 50, and for no embedder at all.
            What `load_embedder` raises for a name. All this before anything is measured.
    """
    if isinstance(embedders, str):
        raise ValueError(f"embedders={short(embedders)}: expected a list of names, such as ['minilm', 'bm25']")
    if not embedders:
        raise ValueError("embedders is empty: expected at least one name, such as 'minilm'")
    _check_whole("k", k, 1, DEPTH)
    _check_whole("nodes", nodes, 0, 64)  # as many as a lab has
    for name, size in (("sample_charts", sample_charts), ("sample_questions", sample_questions)):
        if size is not None:
            _check_whole(name, size, 1)
    _check_whole("cluster_charts", cluster_charts, 1)
    _check_whole("resamples", resamples, 1)
    _check_whole("seed", seed, 0)
    listed = list(dict.fromkeys([reference, *embedders]))
    collection = Collection.read(charts, questions, judgements, split=split)
    collection = collection.sample(charts=sample_charts, questions=sample_questions, seed=seed)
    few = collection.sample(charts=cluster_charts, questions=20, seed=seed)
    found, measured = [], []
    with tqdm(total=3 * len(listed), desc="models", disable=not progress) as bar:
        for model in listed:
            bar.set_postfix_str(f"{model}: loading")
            if model != BM25:
                load_embedder(model)  # it stays loaded; a model that cannot be had is told before anything is measured
        for model in listed:
            bar.set_postfix_str(f"{model}: quality")
            found.append(rankings([model], collection, progress=False))
            bar.update()
            bar.set_postfix_str(f"{model}: cost")
            if with_cost:
                measured.append(_labelled(cost(model, collection, seed=seed), model, "cost"))
            bar.update()
            bar.set_postfix_str(f"{model}: cluster")
            if nodes and model != BM25:
                ran = cluster(load_embedder(model), few.charts, few.questions["text"].to_list(), nodes=nodes)
                measured.append(_labelled(ran, model, "cluster"))
            bar.update()
    values = per_question(pl.concat(found), collection.judgements, k=k, reference=reference)
    summary = compared(values, reference=reference, resamples=resamples, seed=seed)
    whole = pl.concat([summary, *measured], how="diagonal").select(_SCHEMA.keys()).cast(_SCHEMA)  # type: ignore[arg-type]
    return whole.sort(pl.col("model").cast(pl.Enum(listed)), maintain_order=True)


def _check_whole(name: str, value: object, least: int, most: float = inf) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        wanted = f", {least} or more" if most == inf else f" from {least} to {most}"
        raise ValueError(f"{name}={short(value)}: expected a whole number{wanted}")


def compared(values: pl.DataFrame, *, reference: str, resamples: int = 2000, seed: int = 0) -> pl.DataFrame:
    """Average over questions, with intervals, and compare each model with the reference, question by question.

    values: as `per_question` gives them, with the same questions for each model. Returns the columns of `models`, of
    kind "quality".
    """
    rows = []
    for (measure,), part in values.group_by("measure", maintain_order=True):
        wide = part.pivot(on="model", index="query_id", values="value").sort("query_id")
        theirs = wide[reference].to_numpy()
        for model in part["model"].unique(maintain_order=True):
            ours = wide[model].to_numpy()
            tested = model != reference and not str(measure).startswith("shared")
            rows.append(
                {
                    "model": model,
                    "kind": "quality",
                    "measure": measure,
                    "unit": "0 to 1",
                    **_interval("", ours, resamples, seed),
                    **(_interval("difference_", ours - theirs, resamples, seed) if tested else {}),
                    "p": _p_value(ours - theirs, resamples, seed) if tested else None,
                }
            )
    frame = pl.DataFrame(rows, schema={name: dtype for name, dtype in _SCHEMA.items() if name != "p_adjusted"})
    return pl.concat(_adjusted(part) for _, part in frame.group_by("measure", maintain_order=True))


def _interval(prefix: str, values: np.ndarray, resamples: int, seed: int) -> dict[str, float]:
    names = (prefix.rstrip("_") or "value", f"{prefix}low", f"{prefix}high")
    mean = float(values.mean())
    if len(values) < 2:
        return dict(zip(names, (mean, mean, mean), strict=True))
    rng = np.random.default_rng(seed)
    interval = bootstrap((values,), np.mean, n_resamples=resamples, method="percentile", rng=rng).confidence_interval
    return dict(zip(names, (mean, float(interval.low), float(interval.high)), strict=True))


def _p_value(differences: np.ndarray, resamples: int, seed: int) -> float:
    rng = np.random.default_rng(seed)
    tested = permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=resamples, rng=rng)
    return float(tested.pvalue)


def _adjusted(part: pl.DataFrame) -> pl.DataFrame:
    tested = part["p"].is_not_null()
    adjusted = np.full(part.height, None, dtype=object)
    if tested.any():
        adjusted[tested.to_numpy()] = false_discovery_control(part["p"].drop_nulls().to_numpy())
    return part.with_columns(pl.Series("p_adjusted", adjusted.tolist(), dtype=pl.Float64))


def _labelled(frame: pl.DataFrame, model: str, kind: str) -> pl.DataFrame:
    return frame.select(pl.lit(model).alias("model"), pl.lit(kind).alias("kind"), pl.all())


def table(measured: pl.DataFrame, kind: str) -> pl.DataFrame:
    """Lay out what `models` returned for people: one row a model, one column a measure of that kind, in words.

    Quality reads "0.59 [0.53, 0.66]", all else has its unit: "1.36 ms". Raises ValueError for a kind that is not there.
    """
    part = measured.filter(pl.col("kind") == kind)
    if part.is_empty():
        raise ValueError(
            f"kind={short(kind)}: nothing of that kind was measured, but {measured['kind'].unique().to_list()}"
        )
    words = [
        f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        if kind == "quality"
        else f"{row['value']:9,.2f} {row['unit']}"
        for row in part.iter_rows(named=True)
    ]
    return part.with_columns(pl.Series("words", words)).pivot(on="measure", index="model", values="words").fill_null("")


def frontier(measured: pl.DataFrame, *, quality: str = "nDCG@10", cost: str = "query p50") -> pl.DataFrame:
    """Set quality beside cost: model, quality, low, high, cost, frontier; the best quality first.

    measured: as `models` returns it; models that lack one of the two measures are left out. frontier: true where no
    other model is at least as good and costs less, or is better and costs no more. Raises ValueError for a measure that
    no model has.
    """
    for measure in (quality, cost):
        if measured.filter(pl.col("measure") == measure).is_empty():
            known = ", ".join(measured["measure"].unique(maintain_order=True))
            raise ValueError(f"no model has the measure {short(measure)}; there are: {known}")
    sign = -1.0 if cost.startswith(MORE_IS_BETTER) else 1.0
    good = measured.filter(pl.col("measure") == quality).select("model", "low", "high", quality="value")
    paid = measured.filter(pl.col("measure") == cost).select("model", cost="value")
    both = good.join(paid, on="model").select("model", "quality", "low", "high", "cost")
    points = list(zip(both["quality"], sign * both["cost"], strict=True))
    unbeaten = [not any(q >= p[0] and c <= p[1] and (q, c) != p for q, c in points) for p in points]
    return both.with_columns(pl.Series("frontier", unbeaten)).sort("quality", "model", descending=[True, False])


def recommend(
    measured: pl.DataFrame,
    *,
    quality: str = "nDCG@10",
    cost: str = "query p50",
    reference: str = "minilm",
    margin: float = 0.02,
) -> Recommendation:
    """Recommend the model that costs least among those that are as good as the reference, and say why.

    A model is as good if the whole 95 % interval of its paired difference lies at or above -`margin` (0.02); where the
    questions say too little about a model, it is not recommended. bm25 does not count: it has no vectors for a node to
    hold. Raises ValueError for a measure or a reference that `measured` lacks.
    """
    points = frontier(measured, quality=quality, cost=cost).filter(pl.col("model") != BM25)
    if reference not in points["model"]:
        raise ValueError(f"reference={short(reference)}: it is none of the models that were measured")
    compared = measured.filter(pl.col("measure") == quality).select("model", "difference", "difference_low")
    good = points.join(compared, on="model").filter(
        (pl.col("model") == reference) | (pl.col("difference_low") >= -margin)
    )
    best = good.sort("cost", descending=cost.startswith(MORE_IS_BETTER)).row(0, named=True)
    unit = measured.filter(pl.col("measure") == cost)["unit"][0]
    theirs = points.row(by_predicate=pl.col("model") == reference, named=True)
    paid = f"{cost} {_short(best['cost'])} {unit}"
    if best["model"] == reference:
        return Recommendation(
            reference,
            f"Stay with {reference} ({quality} {theirs['quality']:.3f}, {paid}): no model that costs less is surely "
            f"within {margin:g} of its {quality}.",
        )
    return Recommendation(
        best["model"],
        f"Take {best['model']}: its {quality} of {best['quality']:.3f} is, with 95 % confidence, at most {margin:g} "
        f"below {reference}'s {theirs['quality']:.3f}; {paid} instead of {_short(theirs['cost'])} {unit}.",
    )


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
