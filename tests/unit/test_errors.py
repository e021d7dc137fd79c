"""An error says in words what is wrong, and does not print what was given ahead of it."""

from __future__ import annotations

import re

import numpy as np
import polars as pl
import pytest

from copilotlab import Chart, ChartRepository, Embedder, Lab, Node, Policy, VectorStore, load_embedder
from copilotlab.charts import RepositoryError
from copilotlab.embedding import EmbeddingError
from copilotlab.monitoring.happenings import ConnectionLost
from copilotlab.reasons import short

FRAME = pl.DataFrame({"title": [f"Revenue {number}" for number in range(30)]})
HASH = load_embedder("hash")


class Uninitialised(Embedder):
    def __init__(self) -> None:
        pass

    def _encode(self, batch):
        return np.ones((len(batch), 3))


class Failing(Embedder):
    def __init__(self, error: Exception) -> None:
        super().__init__(name="failing", fingerprint="failing:1", dim=3)
        self.error = error

    def _encode(self, batch):
        raise self.error


@pytest.mark.parametrize(
    "use",
    [
        lambda given: Node(ChartRepository(), HASH, redis=given),
        lambda given: Node(ChartRepository(), HASH, policy=given),
        lambda given: Node(ChartRepository(), HASH, node_id=given),
        lambda given: Node(ChartRepository(), HASH).listen_to(given),
        lambda given: Node(given, HASH),
        lambda given: Node(ChartRepository(), given),
        lambda given: Lab(nodes=given),
        lambda given: Lab(model=given),
        lambda given: Lab(redis=given),
        lambda given: Node(ChartRepository(), HASH, clock=given),
        lambda given: Node(ChartRepository(), HASH, namespace=given),
        lambda given: Policy(batch_timeout=given),
        lambda given: VectorStore(4, exact_limit=given),
        lambda given: Node(ChartRepository(), HASH).search("revenue", k=given),
        lambda given: Node(ChartRepository(), HASH).search("revenue", chart_ids=given),
        lambda given: load_embedder(given),
    ],
)
def test_a_table_in_the_wrong_place_is_named_in_one_line_with_what_was_expected(use):
    with pytest.raises((TypeError, ValueError)) as caught:
        use(FRAME)
    (line,) = str(caught.value).splitlines()
    assert re.search(r"<DataFrame, shape: \(30, 1\)>\)?: expected|must be .*, got <DataFrame, shape: \(30, 1\)>$", line)


def test_what_was_given_takes_one_line_of_80_characters_at_most():
    assert short("x" * 200) == f"'{'x' * 76}..."
    assert short(FRAME) == "<DataFrame, shape: (30, 1)>"
    assert short(7) == "7"


@pytest.mark.parametrize("use", [lambda model: model.embed(["a"]), lambda model: Node(ChartRepository(), model)])
def test_a_model_that_does_not_call_its_base_class_is_told_to(use):
    with pytest.raises(AttributeError, match=r"Uninitialised has no '\w+': its __init__ has to call super"):
        use(Uninitialised())
    assert "Uninitialised" in repr(Uninitialised())
    assert not hasattr(Uninitialised(), "another_name")


@pytest.mark.parametrize("error", [KeyError("weights"), IndexError("7"), RuntimeError("boom")])
def test_what_a_model_raises_is_an_embedding_error_that_names_the_model_and_the_cause(error):
    with pytest.raises(EmbeddingError, match="failing failed on 1 texts: ") as caught:
        Failing(error).embed(["a"])
    assert caught.value.__cause__ is error
    assert repr(error) in str(caught.value)


def test_what_the_system_raises_in_a_model_passes_through():
    with pytest.raises(OSError, match="no such device"):
        Failing(OSError("no such device")).embed(["a"])


@pytest.mark.parametrize(
    "use", [len, lambda charts: charts.revision, lambda charts: charts.save(Chart(chart_id=1, title="Revenue"))]
)
def test_a_closed_repository_in_memory_says_that_it_was_closed(use):
    charts = ChartRepository()
    charts.close()
    with pytest.raises(RepositoryError, match="it was closed, and what was in memory is gone"):
        use(charts)


def test_an_outage_is_said_once_in_its_line():
    line = ConnectionLost("Redis at redis://127.0.0.1:1/0 is away: Connection refused", False).line
    assert f"{line.event} {line.detail}" == "redis_away at redis://127.0.0.1:1/0: Connection refused"


def test_a_node_is_closed_as_it_is_stopped():
    node = Node(ChartRepository(), HASH)
    node.close()
    assert node.status()["state"] == "stopped"
