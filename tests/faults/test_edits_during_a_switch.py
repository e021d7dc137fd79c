"""A node changes its model at the worst moment: while a caller's text is in the former model's hands."""

from __future__ import annotations

import time

import numpy as np
import pytest
from rest import wait_for_rest

from copilotlab import Chart, ChartRepository, LocalRedis, Node, Policy
from copilotlab.embedding.hashing import HashEmbedder

QUICK = Policy(probe_interval=0.05, heartbeat_interval=0.1)


class Interrupted(HashEmbedder):
    """Once, in the middle of an embedding, something else happens."""

    def __init__(self, name, *, sign=1.0, dim=64):
        super().__init__(name=name, dim=dim)
        self.fingerprint = f"{name}:{dim}"
        self.sign = sign
        self.then = None

    def _encode(self, batch):
        if self.then is not None:
            then, self.then = self.then, None
            then()
        return self.sign * super()._encode(batch)


def chart(chart_id, title=""):
    return Chart(chart_id=chart_id, title=title or f"Revenue of product {chart_id}")


@pytest.fixture
def node():
    charts = ChartRepository()
    charts.save_many([chart(chart_id) for chart_id in range(1, 21)])
    with LocalRedis() as redis, Node(charts, Interrupted("former"), redis.url, policy=QUICK, node_id="a") as node:
        node.wait_complete(20)
        wait_for_rest(node)
        yield node


def wait_until(condition, timeout=20.0):
    until = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < until, "the condition did not come true in time"
        time.sleep(0.005)


@pytest.mark.parametrize("act", ["update_chart", "chart_changed"])
@pytest.mark.parametrize("dim", [64, 32])
def test_an_edit_never_brings_the_former_models_vector_into_the_next_ones_store(node, dim, act):
    following = Interrupted("next", sign=-1.0, dim=dim)
    words = chart(7, "Entirely other words")
    node.embedder.then = lambda: node.switch_model(following)

    if act == "update_chart":
        result = node.update_chart(words)
    else:
        node.charts.save(words)
        result = node.chart_changed(7)

    assert node.embedder is following
    assert result.outcome == "deferred"
    wait_until(lambda: node.store.revision(7) == result.revision)
    np.testing.assert_array_equal(node.store.get(7).vector, following.embed([words.text])[0])


def test_a_search_is_answered_by_one_model_alone_and_the_next_search_by_the_other(node):
    following = Interrupted("next", sign=-1.0)
    node.embedder.then = lambda: node.switch_model(following)

    assert node.search("revenue of product 5", k=1)["chart_id"].to_list() == [5]
    assert node.embedder is following
    assert node.search("revenue of product 5", k=1)["chart_id"].to_list() == [5]
    assert node.search_many(["revenue of product 5"], k=1)["chart_id"].to_list() == [5]
