"""Rebuild, recovery and join at 10,000 and 100,000 charts, and what a frozen server costs.

The model costs nothing here (`InstantModel`), so that what is measured is the protocol; what a real model would add
is the number of embeddings. No search graph is built (`exact_limit`), since no search is measured. `Policy()` stands
beside `Policy.seed()`, and the join beside a bare transfer of the same bytes through the same server.
"""

from __future__ import annotations

import argparse
import statistics
import time

import polars as pl

from copilotlab import Chart, ChartRepository, LocalRedis, Node, Policy
from copilotlab.lab.instant_model import InstantModel

DIM = 384
PIECE = 256 * 4 * DIM  # bytes of one page of a transfer


def catalogue(count: int) -> ChartRepository:
    charts = ChartRepository()
    charts.save_many(
        Chart(chart_id=i, title=f"Revenue of product {i}", description="By month", tags=["finance", "sales"])
        for i in range(count)
    )
    return charts


def wait(condition, timeout: float = 600.0) -> float:  # type: ignore[no-untyped-def]
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > timeout:
            raise TimeoutError("the nodes do not agree")
        time.sleep(0.005)
    return time.monotonic() - began


def moved(nodes: list[Node]) -> float:
    return sum(n.context.metrics["bytes_published"] + n.context.metrics["bytes_fetched"] for n in nodes) / 1e6


def embedded(nodes: list[Node]) -> int:
    return sum(node.context.metrics["embeddings"] for node in nodes)


def agree(nodes: list[Node], charts: ChartRepository, timeout: float = 60.0) -> bool:
    """Wait until each node holds what the repository holds now; whether it came to that in time."""
    heads = charts.heads_since(0)
    chart_ids, revisions = heads.chart_ids[~heads.deleted], heads.revisions[~heads.deleted]
    until = time.monotonic() + timeout
    while not all(
        len(node.store) == len(chart_ids) and (node.store.heads(chart_ids)[0] == revisions).all() for node in nodes
    ):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def recovery(count: int, policy: Policy, name: str) -> list[tuple[str, int, str, float | None, int, float]]:
    """Two nodes: the first fill, then 1% of the charts changed while Redis was away, and lost its memory.

    Seconds are None where the nodes never came to agree: as written, they need not.
    """
    charts = catalogue(count)
    rows = []
    with LocalRedis() as server:
        nodes = [
            Node(charts, InstantModel(), server.url, policy=policy, node_id=f"n{i}", exact_limit=count).start()
            for i in range(2)
        ]
        began = time.monotonic()
        if nodes[0].rebuild().outcome == "deferred":
            nodes[0].wait_complete()
        seconds = time.monotonic() - began if agree(nodes, charts) else None
        rows.append((name, count, "first fill", seconds, embedded(nodes), moved(nodes)))
        before = embedded(nodes), moved(nodes)
        time.sleep(4)  # until each has heard of the other three times, as in a cluster that has run for a while
        server.kill()
        wait(lambda: not any(node.coordinator.connected for node in nodes))
        for i in range(0, count, 100):
            charts.save(Chart(chart_id=i, title=f"Revenue of product {i}, restated"))
        began = time.monotonic()
        server.start(keep_data=False)
        wait(lambda: all(node.coordinator.connected for node in nodes))
        if not policy.rebuild_at_reconnect:
            nodes[0].chart_changed(0)  # as written, nothing happens until somebody edits
        seconds = time.monotonic() - began if agree(nodes, charts) else None
        wait(lambda: not any(node.status()["batch"] for node in nodes))
        made, sent = embedded(nodes), moved(nodes)
        rows.append((name, count, "recovery, 1% changed", seconds, made - before[0], sent - before[1]))
        began = time.monotonic()
        nodes[0].rebuild()
        seconds = time.monotonic() - began
        rows.append((name, count, "rebuild, nothing changed", seconds, embedded(nodes) - made, moved(nodes) - sent))
        for node in nodes:
            node.stop()
    return rows


def bare_transfer(server: LocalRedis, total: int) -> float:
    """The same bytes, SET and GET in pieces of the same size, by one client."""
    client = server.client()
    piece = bytes(PIECE)
    began = time.monotonic()
    for _ in range(max(1, total // PIECE)):
        client.set("bare", piece)
        client.get("bare")
    return time.monotonic() - began


def join(count: int) -> tuple[int, float, float]:
    """Seconds until an empty node holds all that a full one holds, and of a bare transfer of the same bytes."""
    charts = catalogue(count)
    with LocalRedis() as server, Node(charts, InstantModel(), server.url, node_id="full", exact_limit=count) as full:
        full.wait_complete()
        wait(lambda: not full.status()["owes_rebuild"])
        began = time.monotonic()
        with Node(charts, InstantModel(), server.url, node_id="empty", exact_limit=count) as empty:
            wait(lambda: empty.store.digest == full.store.digest)
            seconds = time.monotonic() - began
            fetched = empty.context.metrics["bytes_fetched"]
            assert empty.context.metrics["embeddings"] == 0
        return count, seconds, bare_transfer(server, fetched)


def frozen() -> tuple[float, float]:
    """Milliseconds of the first update_chart on a frozen server, and the median of the next hundred."""
    with LocalRedis() as server, Node(catalogue(10), InstantModel(), server.url) as node:
        node.wait_complete()
        wait(lambda: not node.status()["owes_rebuild"])
        server.pause()
        took = []
        for number in range(101):
            began = time.perf_counter()
            node.update_chart(Chart(chart_id=1, title=f"Words {number}"))
            took.append((time.perf_counter() - began) * 1000)
        server.resume()
    return took[0], statistics.median(took[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000])
    chosen = parser.parse_args()
    pl.Config.set_tbl_rows(30).set_fmt_str_lengths(40)
    patience = {"redis_timeout": 2.0}  # a busy machine is no outage
    rows = [
        row
        for count in chosen.counts
        for name, policy in (("Policy()", Policy(**patience)), ("Policy.seed()", Policy.seed(**patience)))
        for row in recovery(count, policy, name)
    ]
    schema = ["policy", "charts", "what", "seconds", "embeddings", "MB moved"]
    print("rebuild and recovery, two nodes, a model that costs nothing")
    print(pl.DataFrame(rows, schema=schema, orient="row").with_columns(pl.col("seconds", "MB moved").round(2)))
    joins = [(*row, row[1] / row[2]) for row in map(join, chosen.counts)]
    print("join of an empty node, beside a bare SET and GET of the same bytes")
    print(pl.DataFrame(joins, schema=["charts", "seconds", "bare seconds", "ratio"], orient="row"))
    first, after = frozen()
    print(f"update_chart on a frozen server: the first {first:.0f} ms, those after it {after:.2f} ms (median of 100)")


if __name__ == "__main__":
    main()
