"""What a watcher of the cluster costs, which every service has for its page: processor time, and traffic from Redis.

    python tests/benchmarks/bench_watch.py                    # 3 and 16 nodes, 20 seconds each, the default policy
    python tests/benchmarks/bench_watch.py --nodes 4 --edits 50

The watcher is a `Cluster` in a process of its own, alone on its line to the server. Nodes are in this process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection

import polars as pl

from copilotlab import ChartRepository, Cluster, FaultProxy, LocalRedis, Node
from copilotlab.lab.instant_model import InstantModel
from copilotlab.lab.simulated_lab import simulated_chart, simulated_charts

LIMIT = 60.0  # seconds for what is certain to come
CHARTS = 200


def watch(redis: str, database: str, nodes: int, seconds: float, line: Connection) -> None:
    """Watch until told, and tell the processor's seconds."""
    with ChartRepository(database) as charts, Cluster(redis, charts=charts) as cluster:
        cluster.wait(nodes, LIMIT)
        line.send(None)
        used = time.process_time()
        time.sleep(seconds)
        line.send(time.process_time() - used)


def measure(nodes: int, seconds: float, edits: float) -> tuple[float, float, float]:
    """Return ms of the processor, and kB from and to Redis, each in a second."""
    with ExitStack() as ends:
        database = f"sqlite:///{ends.enter_context(tempfile.TemporaryDirectory())}/charts.db"
        server = ends.enter_context(LocalRedis())
        charts = ends.enter_context(ChartRepository(database))
        charts.save_many(simulated_charts(CHARTS))
        cluster = [
            ends.enter_context(Node(charts, InstantModel(), server.url, node_id=f"node-{number}"))
            for number in range(nodes)
        ]
        for node in cluster:
            node.wait_complete(LIMIT)
        proxy = ends.enter_context(FaultProxy(server.endpoint))
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        watcher = context.Process(target=watch, args=(proxy.url(), database, nodes, seconds, there), daemon=True)
        watcher.start()
        assert here.poll(LIMIT), "the watcher does not see the nodes"
        here.recv()
        down, up, edited = proxy.bytes_down, proxy.bytes_up, 0
        while not here.poll(1 / edits if edits else seconds):
            cluster[edited % nodes].update_chart(simulated_chart(1 + edited % CHARTS, f"Edit {edited}"))
            edited += 1
        moved = proxy.bytes_down - down, proxy.bytes_up - up
        used = here.recv()
        watcher.join(LIMIT)
    return 1e3 * used / seconds, moved[0] / seconds / 1e3, moved[1] / seconds / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[3, 16], help="how many (default: 3 16)")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each (default: %(default)s)")
    parser.add_argument("--edits", type=float, default=0.0, help="of charts in a second, meanwhile (default: none)")
    options = parser.parse_args()
    rows = [(nodes, *measure(nodes, options.seconds, options.edits)) for nodes in options.nodes]
    with pl.Config(float_precision=2, tbl_hide_dataframe_shape=True):
        print(pl.DataFrame(rows, ["nodes", "cpu_ms_per_s", "from_redis_kB_per_s", "to_redis_kB_per_s"], orient="row"))


if __name__ == "__main__":
    main()
