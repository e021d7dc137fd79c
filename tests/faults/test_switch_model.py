"""A cluster changes its model while it answers: the second set is built beside the first, once, and takes its place."""

from __future__ import annotations

import threading
import time

import pytest
from rest import wait_for_rest

from copilotlab import Chart, ChartRepository, Lab, Policy, load_embedder
from copilotlab.embedding.hashing import HashEmbedder

# A busy machine stalls for a while; that is no outage, and no death, here.
QUICK = Policy(probe_interval=0.05, heartbeat_interval=0.5, redis_timeout=2.0, chunk_size=16)


def chart(chart_id: int, title: str = "") -> Chart:
    return Chart(chart_id=chart_id, title=title or f"Revenue of product {chart_id}")


def wait_until(condition, timeout=30.0):
    until = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < until, "the condition did not come true in time"
        time.sleep(0.005)


class Slow(HashEmbedder):
    """A model that takes its time, and counts what it was asked for. may_end: what it waits for within each batch."""

    def __init__(self) -> None:
        super().__init__(name="slow", dim=96)
        self.fingerprint = "slow:96"
        self.texts: list[str] = []
        self.may_end = threading.Event()
        self.may_end.set()

    def _encode(self, batch):
        self.texts += batch
        self.may_end.wait(30)
        time.sleep(0.002 * len(batch))
        return super()._encode(batch)


@pytest.fixture
def lab():
    charts = ChartRepository()
    charts.save_many([chart(chart_id) for chart_id in range(1, 201)])
    with Lab(nodes=3, model="hash", charts=charts, policy=QUICK) as lab:
        lab.wait_converged()
        wait_for_rest(*lab.nodes)
        yield lab


def test_searches_and_edits_go_on_while_the_model_is_changed(lab):
    model, wrong, done = Slow(), [], threading.Event()
    model.may_end.clear()

    def ask() -> None:
        while not done.wait(0.002):  # all the time, and yet the interpreter is not theirs alone
            for node in lab.nodes:
                found = node.search("revenue of product 5", k=1)["chart_id"].to_list()
                if found != [5]:
                    wrong.append((node.node_id, found))

    asking = threading.Thread(target=ask)
    asking.start()
    switching = [threading.Thread(target=node.switch_model, args=(model,)) for node in lab.nodes]
    for thread in switching:
        thread.start()
    try:
        wait_until(lambda: model.texts)
        assert lab.nodes[1].update_chart(chart(7, "Espresso consumption")).outcome == "published"
        wait_until(lambda: lab.nodes[2].search("espresso consumption", k=1)["chart_id"].to_list() == [7])
        assert lab.nodes[0].delete_chart(9).outcome == "published"
        model.may_end.set()
        for thread in switching:
            thread.join(timeout=60)
    finally:
        model.may_end.set()
        done.set()
        asking.join()

    assert wrong == []
    assert {node.embedder.fingerprint for node in lab.nodes} == {"slow:96"}
    lab.wait_converged()
    assert lab.nodes[2].search("espresso consumption", k=1)["chart_id"].to_list() == [7]
    corpus = [text for text in model.texts if "Revenue of product" in text or "Espresso" in text]
    assert len(corpus) == len(set(corpus)), "each text is embedded once in the whole cluster"


def test_nodes_that_switch_one_after_the_other_fetch_what_the_first_embedded(lab):
    model = Slow()
    lab.nodes[0].switch_model(model)
    made = len(model.texts)
    assert made == 200
    wait_for_rest(lab.nodes[0])  # all vectors are there a moment before the batch has ended
    assert lab.nodes[0].update_chart(chart(7, "Espresso consumption")).outcome == "published"
    assert lab.nodes[1].embedder.fingerprint != lab.nodes[0].embedder.fingerprint
    assert lab.nodes[1].search("revenue of product 5", k=1)["chart_id"].to_list() == [5]

    lab.nodes[1].switch_model(model)
    lab.nodes[2].switch_model(model)

    lab.wait_converged()
    assert len(model.texts) == made + 1


def test_a_switch_without_redis_is_done_by_each_node_alone(lab):
    before = [node.context.metrics["embeddings"] for node in lab.nodes]
    lab.redis.kill()
    wait_until(lambda: not any(node.coordinator.connected for node in lab.nodes))

    lab.nodes[0].switch_model(load_embedder("hash", dim=128))

    assert lab.nodes[0].search("revenue of product 5", k=1)["chart_id"].to_list() == [5]
    lab.redis.start(keep_data=False)
    wait_until(lambda: all(node.coordinator.connected for node in lab.nodes))
    for node in lab.nodes[1:]:
        node.switch_model(load_embedder("hash", dim=128))
    lab.wait_converged()
    made = [node.context.metrics["embeddings"] - number for node, number in zip(lab.nodes, before, strict=True)]
    assert made == [200, 0, 0]


def test_a_switch_that_fails_leaves_everything_as_it_was(lab):
    node = lab.nodes[0]
    with pytest.raises(TypeError, match="expected an Embedder"):
        node.switch_model("minilm")
    before = node.embedder

    threads = threading.active_count()
    failing = HashEmbedder(dim=32)
    failing.fingerprint = "failing:32"
    failing._encode = lambda batch: (_ for _ in ()).throw(OSError("no such device"))
    with pytest.raises(OSError, match="no such device"):
        node.switch_model(failing)

    assert node.embedder is before
    assert node.search("revenue of product 5", k=1)["chart_id"].to_list() == [5]
    wait_until(lambda: threading.active_count() <= threads)
    node.switch_model(before)  # to what it is: nothing to do


def test_a_node_that_is_added_after_a_switch_has_the_model_of_those_that_live(lab):
    before, model = lab.embedder, Slow()
    lab.kill(0)
    for node in lab.living:
        node.switch_model(model)
    assert lab.embedder is model
    assert "<bdi>slow</bdi>" in lab._repr_html_()

    made = len(model.texts)
    added = lab.add_node()
    added.wait_complete(timeout=30)
    assert added.embedder is model
    lab.wait_converged()
    assert len(model.texts) == made, "it fetched what the others have"

    for index in (1, 2, 3):
        lab.kill(index)
    assert lab.embedder is before
    assert lab.add_node().embedder is before
