"""What a model costs a cluster: real nodes on a real server."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import polars as pl

from copilotlab.embedding import Embedder
from copilotlab.lab import Lab
from copilotlab.protocol.policy import Policy
from copilotlab.studies.result_cache import cached

CONVERGED_WITHIN = 600.0  # seconds


@cached(version=1)
def cluster(embedder: Embedder, charts: pl.DataFrame, questions: Sequence[str], *, nodes: int = 3) -> pl.DataFrame:
    """Fill empty nodes with charts, ask them questions, and measure: measure, unit, value, low, high.

    nodes: how many (3). The measures are: rebuild time (s), until every node holds every chart; bytes moved (MB)
    through Redis meanwhile, in and out; query latency (ms), the median of `Node.search` over all nodes and questions,
    each question new to the node that is asked, with the quartiles as low and high.
    """
    # A machine that is busy embedding is not an outage.
    with Lab(nodes=nodes, model=embedder, policy=Policy(redis_timeout=10.0)) as lab:
        lab.charts.load_frame(charts)
        with lab.redis.client() as client:
            before = _bytes_moved(client.info("stats"))
            began = time.perf_counter()
            lab.nodes[0].rebuild()
            lab.wait_converged(CONVERGED_WITHIN)
            seconds = time.perf_counter() - began
            moved = _bytes_moved(client.info("stats")) - before
        times = []
        for node in lab.nodes:
            for question in questions:
                began = time.perf_counter()
                node.search(question)
                times.append(1000 * (time.perf_counter() - began))
    low, middle, high = (float(value) for value in np.quantile(times, [0.25, 0.5, 0.75]))
    rows = [
        ("rebuild time", "s", seconds, None, None),
        ("bytes moved", "MB", moved / 1e6, None, None),
        ("query latency", "ms", middle, low, high),
    ]
    schema = {"measure": pl.String, "unit": pl.String, "value": pl.Float64, "low": pl.Float64, "high": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _bytes_moved(stats: dict[str, int]) -> int:
    return stats["total_net_input_bytes"] + stats["total_net_output_bytes"]
