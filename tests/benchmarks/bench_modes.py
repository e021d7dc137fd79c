"""How well searches by meaning, by words, and by both find the charts that answer, and how long each takes.

    python tests/benchmarks/bench_modes.py                               # data/, dev and test, and others beside it
    python tests/benchmarks/bench_modes.py --models minilm-int8 wordllama --by-kind
    python tests/benchmarks/bench_modes.py --sizes 2209 10000 100000     # times and memory instead

nDCG@10 of a node's own answers, with 95 % intervals over questions; difference and p beside "meaning": a paired
permutation test. "no vocabulary" is hybrid without what abbreviations stand for. Other collections are read where a
copy is at hand (``--beside FOLDER``, by default ``../shared/data``): nvBench, 1,000 questions, and real exports.
Times are of one thread; beside them, FTS5 and, where it is installed, tantivy, both over trigrams, the best 256.
"""

from __future__ import annotations

import argparse
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl

from copilotlab import ChartRepository, Node, load_embedder
from copilotlab.embedding import Embedder
from copilotlab.fusion import by_both, by_words, matched, text_of
from copilotlab.lab import catalogue
from copilotlab.store import Lexicon, Record, VectorStore, Words, words_of
from copilotlab.studies.collection import Collection
from copilotlab.studies.models import compared
from copilotlab.studies.retrieval import per_question

MODES = ("meaning", "words", "hybrid")
NO_VOCABULARY = "hybrid, no vocabulary"
NOWHERE = "redis://127.0.0.1:1/0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["minilm-int8"], help="as for load_embedder (%(default)s)")
    parser.add_argument("--beside", type=Path, default=Path(__file__).parents[3] / "shared" / "data")
    parser.add_argument("--by-kind", action="store_true", help="a table of each kind of question, too")
    parser.add_argument("--sizes", type=int, nargs="+", help="measure times and memory at so many charts")
    options = parser.parse_args()
    pl.Config.set_tbl_rows(-1)
    pl.Config.set_tbl_width_chars(160)
    pl.Config.set_tbl_hide_dataframe_shape(True)
    pl.Config.set_float_precision(3)
    if options.sizes:
        print(pl.DataFrame([row for size in options.sizes for row in times(size)]))
        return
    for model in options.models:
        embedder = load_embedder(model)
        for name, collection in collections(options.beside):
            quality(f"{name}, {model}", collection, embedder, by_kind=options.by_kind)


def collections(beside: Path) -> Iterator[tuple[str, Collection]]:
    """Give the collections that are at hand."""
    for split in ("dev", "test"):
        yield f"data/, {split}", Collection.read(split=split)
    for name, folder, files in (
        ("nvBench", beside / "nvbench", ("charts", "queries", "qrels")),
        ("real exports", beside / "bi" / "questions", ("charts", "questions", "judgements")),
    ):
        if not (folder / "charts.parquet").is_file():
            print(f"{name} is not at {folder}: left out")
            continue
        charts, questions, judgements = (pl.read_parquet(folder / f"{file}.parquet") for file in files)
        fields = [column for column in charts.columns if column != "key"]  # those of the exports are no keys of ours
        yield name, Collection.read(charts.select(fields), questions, judgements).sample(questions=1_000)


def quality(name: str, collection: Collection, embedder: Embedder, *, by_kind: bool) -> None:
    """Print how good each mode is on one collection."""
    with ChartRepository.from_frame(collection.charts) as charts:
        node = Node(charts, embedder, NOWHERE, words=True)
        node.rebuild(progress=True)
        plain = Node(charts, embedder, NOWHERE, words=True)
        plain.store.put_many(record for i in charts for record in [node.store.get(i.chart_id)] if record is not None)
        plain.rebuild()
        plain._vocabulary = type(plain._vocabulary)({})
        asked = collection.questions.select("query_id", "text")
        found = [_ranked(mode, node, mode, asked) for mode in MODES] + [_ranked(NO_VOCABULARY, plain, "hybrid", asked)]
    values = per_question(pl.concat(found), collection.judgements).filter(measure="nDCG@10")
    print(f"\n{name}: {collection.questions.height:,} questions, {collection.charts.height:,} charts")
    columns = ("model", "value", "low", "high", "difference", "difference_low", "difference_high", "p")
    print(compared(values, reference="meaning").select(columns))
    if by_kind and "kind" in collection.questions.columns:
        kinds = values.join(collection.questions.select("query_id", "kind"), on="query_id")
        means = kinds.group_by("kind", "model").agg(pl.col("value").mean(), pl.len())
        wide = means.pivot(on="model", index=["kind", "len"], values="value")
        print(wide.select("kind", "len", *MODES, NO_VOCABULARY).sort("kind"))


def _ranked(name: str, node: Node, mode: str, asked: pl.DataFrame) -> pl.DataFrame:
    rows = [
        (name, query_id, rank, chart_id, score)
        for (query_id, text), found in zip(
            asked.iter_rows(),
            node.find_many(asked["text"].to_list(), 10, mode=mode),
            strict=True,  # type: ignore[arg-type]
        )
        for rank, chart_id, score, *_ in zip(*found.columns.values(), strict=True)
    ]
    schema = {"model": pl.String, "query_id": pl.Int64, "rank": pl.Int64, "chart_id": pl.Int64, "score": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


# --- times ------------------------------------------------------------------------------------------------------------


def times(size: int) -> Iterator[dict[str, object]]:
    """Measure what words cost at this number of charts, in the time of this thread, and peers on the same texts."""
    base = list(ChartRepository.from_frame(catalogue.charts()))
    questions = catalogue.questions()["text"].to_list()[:100]
    rng = np.random.default_rng(0)
    spare = [word for chart in base for word in words_of(chart.text)]

    def text(number: int) -> str:  # no two of them alike
        return f"{text_of(base[number % len(base)])}. {' '.join(spare[i] for i in rng.integers(0, len(spare), 3))}"

    texts = [text(number) for number in range(size)]
    vectors = rng.standard_normal((size, 384), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    store, lexicon = VectorStore(384, exact_limit=max(20_000, size if size <= 20_000 else 20_000)), Lexicon()
    store.put_many(Record.of(i, 1, bytes(16), vector) for i, vector in enumerate(vectors))
    began = time.perf_counter()
    for start in range(0, size, 1_000):
        lexicon.put(Words(i, 1, (), texts[i]) for i in range(start, min(start + 1_000, size)))
        while lexicon.tidy():
            pass
    filled = time.perf_counter() - began
    while store.index_state == "building":
        time.sleep(0.1)
    query = vectors[0]
    described = base[0]

    def put(number: int) -> None:
        lexicon.put([Words(number, time.perf_counter_ns(), (), texts[number])])
        while lexicon.tidy():
            pass

    meaning = _median(lambda _: store.search(query, 10), questions)
    both = _median(lambda asked: by_both(store, query, lexicon.shares(asked), 10, None), questions)
    shown = _median(lambda asked: [matched(asked, described) for _ in range(10)], questions)
    yield _row(size, "meaning", meaning)
    words = _median(lambda asked: by_words(store, lexicon.shares(asked), 10, None), questions)
    changed = 1e3 * _median(lambda number: put(number), list(range(100)))
    yield _row(size, "words", words, filled, changed, lexicon.nbytes / size)
    yield _row(size, "hybrid", both)
    yield _row(size, "hybrid, and why", both + shown)
    yield from _fts5(size, texts, questions)
    yield from _tantivy(size, texts, questions)


def _fts5(size: int, texts: list[str], questions: list[str]) -> Iterator[dict[str, object]]:
    database = sqlite3.connect(":memory:")
    database.execute("CREATE VIRTUAL TABLE charts USING fts5(text, tokenize='trigram')")
    began = time.perf_counter()
    database.executemany("INSERT INTO charts (rowid, text) VALUES (?, ?)", enumerate(texts))
    filled = time.perf_counter() - began

    def search(asked: str) -> list[object]:
        said = " OR ".join(f'"{gram}"' for gram in _trigrams(asked))
        return database.execute(
            "SELECT rowid, bm25(charts) FROM charts WHERE charts MATCH ? ORDER BY 2 LIMIT 256", (said,)
        ).fetchall()

    def put(number: int) -> None:
        database.execute("UPDATE charts SET text = ? WHERE rowid = ?", (texts[number], number))

    (pages,), (page,) = (database.execute(f"PRAGMA {what}").fetchone() for what in ("page_count", "page_size"))
    took, changed = _median(search, questions[:30]), 1e3 * _median(put, list(range(100)))
    yield _row(size, "FTS5, trigram", took, filled, changed, pages * page / size)


def _tantivy(size: int, texts: list[str], questions: list[str]) -> Iterator[dict[str, object]]:
    try:
        import tantivy
    except ImportError:
        return
    schema = tantivy.SchemaBuilder()
    schema.add_integer_field("chart_id", stored=True, indexed=True)
    schema.add_text_field("text", tokenizer_name="grams", index_option="freq")
    made = schema.build()
    index = tantivy.Index(made)
    grams = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.ngram(3, 3, False)).filter(tantivy.Filter.lowercase()).build()
    index.register_tokenizer("grams", grams)
    writer = index.writer(50_000_000, 1)
    began = time.perf_counter()
    for number, text in enumerate(texts):
        writer.add_document(tantivy.Document(chart_id=number, text=text))
    writer.commit()
    writer.wait_merging_threads()
    filled = time.perf_counter() - began
    index.reload()
    searcher, writer = index.searcher(), index.writer(50_000_000, 1)

    def search(asked: str) -> object:
        terms = [tantivy.Query.term_query(made, "text", gram) for gram in _trigrams(asked)]
        return searcher.search(tantivy.Query.boolean_query([(tantivy.Occur.Should, term) for term in terms]), 256)

    def put(number: int) -> None:
        writer.delete_documents("chart_id", number)
        writer.add_document(tantivy.Document(chart_id=number, text=texts[number]))
        writer.commit()

    yield _row(size, "tantivy, ngrams of 3", _median(search, questions), filled, 1e3 * _median(put, list(range(20))))


def _trigrams(asked: str) -> list[str]:
    return sorted({f" {word} "[start : start + 3] for word in words_of(asked) for start in range(len(word))})


def _median(call: Callable[[object], object], over: list[object] | list[str] | list[int]) -> float:
    """Return milliseconds, in the time of this thread: others work beside it."""
    took = []
    for each in over:
        began = time.thread_time()
        call(each)
        took.append(1e3 * (time.thread_time() - began))
    return float(np.median(took))


def _row(
    size: int, method: str, ms: float, filled: float = 0, put_us: float = 0, nbytes: float = 0
) -> dict[str, object]:
    return {"charts": size, "method": method, "ms": ms, "fill_s": filled, "put_us": put_us, "bytes_a_chart": nbytes}


if __name__ == "__main__":
    main()
