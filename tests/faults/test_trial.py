"""A trial fails where a promise does: the test of the tests beside it."""

from __future__ import annotations

import numpy as np
import pytest
from trial import GRACE, POLICY, QUERIES, Threads, Trial, wait_until

from copilotlab import ChartRepository, Lab, Node, Policy, load_embedder
from copilotlab.lab import FAULTS, FragileModel, FragileRepository, Watch
from copilotlab.store import Record


def test_it_notices_what_is_lost():
    with Threads(2) as cluster:
        trial = Trial(cluster, "cut off", FAULTS["cut off"].what)
        FAULTS["cut off"].start(cluster, 1)
        trial.hold()
        with pytest.raises(
            AssertionError, match=r"not within 1 s: agreement after cut off; .*'node-1', 1025, 'missing'"
        ):
            trial.row(limit=1.0)


def test_it_notices_what_is_embedded_twice():
    with Threads(2) as cluster:
        trial = Trial(cluster, "nothing", "")
        trial.hold()
        cluster.model.embed(["Espresso 1, product 1025"])
        with pytest.raises(AssertionError, match=r"9 embeddings, expected \(8, 8\): .*product 1025"):
            trial.row()


def test_it_knows_a_machine_that_was_too_busy():
    with Threads(2) as cluster:
        trial = Trial(cluster, "nothing", "")
        trial.hold()
        trial._healed, trial._silences = trial._held + 0.9, len(cluster.silences())
        assert not trial.stalled
        cluster.lab.nodes[1].journal.note("slept", "for 0.9 s")
        assert not trial.stalled
        cluster.lab.nodes[1].journal.note("slept", f"for {GRACE} s")
        assert trial.stalled
        trial.hold()
        trial._healed, trial._silences = trial._held + POLICY["batch_timeout"], len(cluster.silences())
        assert trial.stalled
        trial.hold(until=lambda: True)
        trial._healed = trial._held + POLICY["batch_timeout"]
        assert not trial.stalled  # meant to last


# --- the watch --------------------------------------------------------------------------------------------------------


def record(revision: int) -> Record:
    return Record.of(7, revision, bytes(16), np.eye(1, 64, dtype=np.float32)[0])


@pytest.fixture
def node():
    node = Node(ChartRepository(), load_embedder("hash"), "redis://127.0.0.1:1/0", policy=Policy(ordered=False))
    yield node
    node.stop()


def test_a_watch_sees_a_chart_that_goes_back(node):
    with Watch(node, QUERIES, pause=0.001) as watch:
        for revision in (2, 1):
            node.store.put(record(revision))
            searched = len(watch.searches)
            wait_until(lambda searched=searched: len(watch.searches) > searched + 1, "two more searches")
    assert watch.backwards == [f"{node.node_id}: chart 7 at 1, after 2"]
    assert watch.errors == []


def test_a_watch_tells_what_a_search_raised(node):
    with Watch(node, [""], pause=0.001) as watch:
        wait_until(lambda: bool(watch.errors), "an error")
    assert "a query of 0 characters" in watch.errors[0]


# --- what can be made to fail -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "mend"), [("model fails", "FragileModel"), ("repository hangs", "FragileRepository")])
def test_what_cannot_fail_says_what_can(name, mend):
    with Lab(1, "hash") as lab, pytest.raises(TypeError, match=f"cannot be made to fail: .*{mend}"):
        FAULTS[name].start(lab, 0)


def test_a_fragile_model_answers_what_comes_alone_and_nothing_else():
    model = FragileModel(load_embedder("hash"))
    model.gate.fail()
    assert model.embed(["a query"]).shape == (1, 64)
    with pytest.raises(OSError, match="as it was told to"):
        model.embed(["two", "texts"])
    model.gate.mend()
    first, second = (model.embed(["two", "texts"]) for _ in range(2))
    assert first.tobytes() != second.tobytes()
    assert model.made == {"a query": 1, "two": 2, "texts": 2}


def test_a_gate_says_how_it_is():
    gate = FragileRepository().gate
    assert repr(gate) == "Gate(open)"
    gate.fail()
    assert repr(gate) == "Gate(failing)"
    gate.hang()
    assert repr(gate) == "Gate(hanging)"
    gate.mend()
    assert repr(gate) == "Gate(open)"


def test_a_fragile_repository_is_one_like_any_other_until_then():
    charts = FragileRepository()
    assert charts.revision == 0
    assert isinstance(charts, ChartRepository)
