"""How long until a published vector can be found on every node, beside a bare redis-py publish and subscribe.

Both run on one server, in one process, over the same kind of connection, turn by turn. The model is left out (a vector
is at hand), so that what is measured is the way, not the embedding. Prints medians and their ratio.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time

import numpy as np
import polars as pl

from copilotlab import Chart, ChartRepository, LocalRedis, Node
from copilotlab.lab.instant_model import InstantModel

DIM = 384


def bare(server: LocalRedis, listeners: int) -> tuple[object, list[threading.Event], list[threading.Thread]]:
    """``listeners`` threads that subscribe with redis-py and only note that a message came."""
    arrived = [threading.Event() for _ in range(listeners)]

    def listen(event: threading.Event, ready: threading.Event) -> None:
        subscription = server.client().pubsub()
        subscription.subscribe("bare")
        subscription.get_message(timeout=1)
        ready.set()
        for message in subscription.listen():
            if message["data"] == b"end":
                return
            event.set()

    threads = []
    for event in arrived:
        ready = threading.Event()
        threads.append(threading.Thread(target=listen, args=(event, ready), daemon=True))
        threads[-1].start()
        ready.wait(5)
    return server.client(), arrived, threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=300)
    chosen = parser.parse_args()
    payload = np.zeros(DIM, np.float32).tobytes()
    ours: list[float] = []
    updates: list[float] = []
    theirs: list[float] = []
    with LocalRedis() as server:
        charts, embedder = ChartRepository(), InstantModel()
        nodes = [Node(charts, embedder, server.url, node_id=f"node-{i}").start() for i in range(chosen.nodes)]
        client, arrived, threads = bare(server, chosen.nodes - 1)
        for number in range(chosen.rounds):
            for event in arrived:
                event.clear()
            began = time.perf_counter()
            client.publish("bare", payload)
            for event in arrived:
                event.wait()
            theirs.append(time.perf_counter() - began)

            chart = Chart(chart_id=number, title=f"Chart {number}")
            began = time.perf_counter()
            nodes[0].update_chart(chart)
            updates.append(time.perf_counter() - began)
            while not all(number in node.store for node in nodes):
                time.sleep(0)
            ours.append(time.perf_counter() - began)
        client.publish("bare", b"end")
        for thread in threads:
            thread.join()
        for node in nodes:
            node.stop()
    rows = [
        ("redis-py publish, seen by all", statistics.median(theirs) * 1000, 1.0),
        (
            "update_chart returns",
            statistics.median(updates) * 1000,
            statistics.median(updates) / statistics.median(theirs),
        ),
        (
            "update_chart, found on all",
            statistics.median(ours) * 1000,
            statistics.median(ours) / statistics.median(theirs),
        ),
    ]
    print(f"publish to visible, {chosen.nodes} nodes, {chosen.rounds} rounds, medians")
    print(pl.DataFrame(rows, schema=["what", "ms", "ratio"], orient="row"))


if __name__ == "__main__":
    main()
