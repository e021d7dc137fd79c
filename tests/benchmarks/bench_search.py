"""How fast and how good a store's search is, beside the bare libraries, on the same vectors in the same run.

    python tests/benchmarks/bench_search.py                      # 1,000, 10,000 and 100,000 charts of 384 floats
    python tests/benchmarks/bench_search.py --sizes 1000 50000 --vectors mine.npy --queries asked.npy

Columns: p50_ms and p95_ms of one search, k = 10; recall beside exact search; build_s until searches are at their best;
building_ms, the median of a search during that; put_us, the median of replacing one chart's vector; MB in all.
Without --vectors: clusters of uneven size on the unit sphere, and queries drawn like the charts.
Without hnswlib its row is left out: it comes as source alone, so no extra of ours asks for it; pip install hnswlib.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from copilotlab.store import Record, VectorStore

K = 10
PUTS = 200

Floats = npt.NDArray[np.float32]


@dataclass
class Measured:
    """One line of the table."""

    charts: int
    method: str
    search: Callable[[Floats], npt.NDArray[np.integer]]
    build_s: float = 0.0
    building_ms: list[float] = field(default_factory=list)
    put_us: list[float] = field(default_factory=list)
    megabytes: float = 0.0

    def row(self, vectors: Floats, queries: Floats) -> dict[str, object]:
        took, found = [], []
        for query in queries:
            start = time.perf_counter()
            found.append(self.search(query))
            took.append(1e3 * (time.perf_counter() - start))
        return {
            "charts": self.charts,
            "method": self.method,
            "p50_ms": float(np.median(took)),
            "p95_ms": float(np.quantile(took, 0.95)),
            "recall": recall(vectors, queries, found),
            "build_s": self.build_s,
            "building_ms": float(np.median(self.building_ms)) if self.building_ms else None,
            "put_us": float(np.median(self.put_us)) if self.put_us else None,
            "MB": self.megabytes,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="numbers of charts")
    parser.add_argument("--dim", type=int, default=384, help="floats of a made vector (default: %(default)s)")
    parser.add_argument("--vectors", type=Path, help=".npy, float32 (n, dim), unit length, n at least the largest size")
    parser.add_argument("--queries", type=Path, help=".npy, float32 (n, dim), unit length; needed with --vectors")
    options = parser.parse_args()
    if (options.vectors is None) != (options.queries is None):
        parser.error("--vectors and --queries go together")
    if not _has_hnswlib():
        print("hnswlib is not installed: left out; pip install hnswlib adds it (it needs a C++ compiler)")
    rows: list[dict[str, object]] = []
    for size in options.sizes:
        if options.vectors is None:
            vectors, queries = clusters(size, 300, options.dim)
        else:
            vectors, queries = np.load(options.vectors)[:size], np.load(options.queries)[:300]
            if len(vectors) < size:
                parser.error(f"{options.vectors} holds {len(vectors)} vectors, --sizes asks for {size}")
        for measured in methods(vectors):
            rows.append(measured.row(vectors, queries))
            print(f"{size:,} {measured.method}: done", flush=True)
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=140, float_precision=3, tbl_hide_dataframe_shape=True):
        print(pl.DataFrame(rows))


def methods(vectors: Floats) -> Iterator[Measured]:
    yield numpy_product(vectors)
    yield vector_store(vectors, "VectorStore")
    if len(vectors) > VectorStore(1).exact_limit:
        yield vector_store(vectors, "VectorStore, exact only", exact_limit=len(vectors) + PUTS)
    yield bare_usearch(vectors)
    if _has_hnswlib():
        yield bare_hnswlib(vectors)


def _has_hnswlib() -> bool:
    return find_spec("hnswlib") is not None


def numpy_product(vectors: Floats) -> Measured:
    def search(query: Floats) -> npt.NDArray[np.integer]:
        return np.argpartition(vectors @ query, len(vectors) - K)[-K:]

    return Measured(len(vectors), "numpy product, argpartition", search, megabytes=vectors.nbytes / 1e6)


def vector_store(vectors: Floats, method: str, **options: int) -> Measured:
    store = VectorStore(vectors.shape[1], **options)
    measured = Measured(len(vectors), method, lambda query: store.search(query, K).chart_ids)
    records = [Record.of(chart_id, 1, bytes(16), vector) for chart_id, vector in enumerate(vectors)]
    start = time.perf_counter()
    store.put_many(records)
    while store.index_state == "building":
        begun = time.perf_counter()
        store.search(vectors[0], K)
        measured.building_ms.append(1e3 * (time.perf_counter() - begun))
        time.sleep(0.02)
    measured.build_s = time.perf_counter() - start
    for record in records[:PUTS]:  # the same vector at a newer revision: the answers stay
        newer = Record.of(record.chart_id, 2, record.content_hash, record.vector)
        begun = time.perf_counter()
        store.put(newer)
        measured.put_us.append(1e6 * (time.perf_counter() - begun))
    measured.megabytes = store.nbytes / 1e6
    return measured


def bare_usearch(vectors: Floats) -> Measured:
    from usearch.index import Index

    index = Index(ndim=vectors.shape[1], metric="ip")
    start = time.perf_counter()
    index.add(np.arange(len(vectors), dtype=np.uint64), vectors)
    measured = Measured(
        len(vectors),
        "usearch as it comes",
        lambda query: index.search(query, K).keys,
        build_s=time.perf_counter() - start,
    )
    for key, vector in enumerate(vectors[:PUTS]):
        begun = time.perf_counter()
        index.remove(key)
        index.add(key, vector)
        measured.put_us.append(1e6 * (time.perf_counter() - begun))
    measured.megabytes = index.memory_usage / 1e6
    return measured


def bare_hnswlib(vectors: Floats) -> Measured:
    import hnswlib

    index = hnswlib.Index(space="ip", dim=vectors.shape[1])
    start = time.perf_counter()
    index.init_index(max_elements=len(vectors), M=16, ef_construction=200)
    index.add_items(vectors, np.arange(len(vectors)))
    index.set_ef(64)
    measured = Measured(
        len(vectors),
        "hnswlib, M 16, ef 200 and 64",
        lambda query: index.knn_query(query, K)[0][0],
        build_s=time.perf_counter() - start,
    )
    for key, vector in enumerate(vectors[:PUTS]):
        begun = time.perf_counter()
        index.add_items(vector[None], [key])
        measured.put_us.append(1e6 * (time.perf_counter() - begun))
    measured.megabytes = index.index_file_size() / 1e6
    return measured


def recall(vectors: Floats, queries: Floats, found: list[npt.NDArray[np.integer]]) -> float:
    """The share of results that score no less than the K-th best, so that equal vectors count alike."""
    hits = 0
    for query, ids in zip(queries, found, strict=True):
        scores = vectors @ query
        hits += int((scores[ids.astype(np.int64)] >= np.partition(scores, -K)[-K] - 1e-6).sum())
    return hits / (K * len(queries))


def clusters(n: int, n_queries: int, dim: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Unit vectors as embeddings lie: many clusters of uneven size, which share few directions, and some noise."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((48, dim)).astype(np.float32)
    centres = rng.standard_normal((2000, 48), dtype=np.float32) @ directions

    def draw(count: int) -> Floats:
        near = rng.standard_normal((count, 48), dtype=np.float32) @ directions
        noise = rng.standard_normal((count, dim), dtype=np.float32)
        vectors = centres[rng.zipf(1.3, count) % len(centres)] + 0.7 * near + 2.0 * noise
        return np.ascontiguousarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)

    return draw(n), draw(n_queries)


if __name__ == "__main__":
    main()
