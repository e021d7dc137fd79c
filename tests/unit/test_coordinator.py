"""What a coordinator and a node refuse where they are made, before anything is connected."""

from __future__ import annotations

import pytest

from copilotlab import ChartRepository, Coordinator, Node, load_embedder

RIGHT = {"node_id": "a", "fingerprint": "hash:1", "dim": 8}


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"node_id": "\ud800"}, ValueError, r"node_id='\\ud800'.*surrogate"),
        ({"namespace": "a\udfff"}, ValueError, r"namespace='a\\udfff'.*surrogate"),
        ({"node_id": ""}, ValueError, r"node_id=''.*1 to 200"),
        ({"fingerprint": ""}, ValueError, r"fingerprint=''.*1 to 200"),
        ({"fingerprint": "\ud800"}, ValueError, "fingerprint=.*surrogate"),
        ({"dim": 0}, ValueError, "dim must be an integer from 1 .*got int 0"),
        ({"dim": 8.0}, ValueError, r"dim must be an integer from 1 .*got float 8\.0"),
        ({"policy": "seed"}, TypeError, r"policy='seed'.*Policy\.seed\(\)"),
        ({"clock": 5}, TypeError, r"clock=5: expected .*now\(\)"),
    ],
)
def test_a_coordinator_refuses_what_makes_no_sense(wrong, error, words):
    with pytest.raises(error, match=words):
        Coordinator("redis://127.0.0.1:1/0", **{**RIGHT, **wrong})


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"node_id": "\ud800"}, ValueError, r"node_id='\\ud800'.*surrogate"),
        ({"namespace": "\ud800"}, ValueError, r"namespace='\\ud800'.*surrogate"),
        ({"clock": 5}, TypeError, r"clock=5: expected .*now\(\)"),
        ({"clock": 0}, TypeError, r"clock=0: expected .*now\(\)"),
    ],
)
def test_a_node_refuses_what_makes_no_sense(wrong, error, words):
    with pytest.raises(error, match=words):
        Node(ChartRepository(), load_embedder("hash"), "redis://127.0.0.1:1/0", **wrong)


def test_names_of_any_language_are_taken():
    made = Coordinator("redis://127.0.0.1:1/0", **{**RIGHT, "node_id": "Zürich 東京 🙂"}, namespace="Köln")
    assert (made.node_id, made.namespace) == ("Zürich 東京 🙂", "Köln")
