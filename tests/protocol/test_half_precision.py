"""`Policy(vectors="float16")`: rounded where they are made, nodes agree bit for bit, and half the bytes travel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from copilotlab import Policy, load_embedder
from copilotlab.embedding.half import HalfPrecision
from copilotlab.lab.simulated_lab import SimulatedLab, simulated_chart
from copilotlab.protocol.events import pack

HALF = Policy(vectors="float16")


def filled(policy: Policy) -> SimulatedLab:
    lab = SimulatedLab(3, policy)
    lab.charts.save_many(simulated_chart(chart_id, f"words {chart_id} of chart") for chart_id in range(1, 300))
    lab.nodes[0].rebuild()
    lab.nodes[1].update_chart(simulated_chart(7, "other words of a chart"))
    lab.run(10.0)
    return lab


def test_nodes_agree_on_rounded_vectors_and_half_the_bytes_travel() -> None:
    whole, half = filled(Policy()), filled(HALF)

    for lab in (whole, half):
        assert len({node.store.digest for node in lab.nodes}) == 1
        assert len(lab.nodes[2].store) == 299
        assert sum(node.context.metrics["embeddings"] for node in lab.nodes) == 300
    vector = half.nodes[2].store.get(7).vector
    assert vector.tobytes() == vector.astype(np.float16).astype(np.float32).tobytes()
    assert abs(vector - whole.nodes[2].store.get(7).vector).max() < 2**-11
    assert [len(pack(lab.nodes[2].store.get(7)).vector) for lab in (whole, half)] == [4 * 64, 2 * 64]
    assert (
        half.nodes[0].search("words 12 of chart")["chart_id"][0]
        == whole.nodes[0].search("words 12 of chart")["chart_id"][0]
    )


def test_rounded_and_whole_vectors_never_mix() -> None:
    lab = SimulatedLab(2)
    lab.policy = HALF
    rounding = lab.add_node()
    lab.nodes[0].update_chart(simulated_chart(1, "words"))
    lab.run(60.0)

    assert rounding.metrics()["dropped_foreign_model"] > 0
    assert rounding.store.get(1).vector_hash != lab.nodes[0].store.get(1).vector_hash
    assert lab.nodes[0].store.digest == lab.nodes[1].store.digest != rounding.store.digest


def test_a_model_that_rounds_already_is_taken_as_it_is(cluster: Callable[..., SimulatedLab]) -> None:
    lab = cluster(1, HALF)
    (node,) = lab.nodes

    assert isinstance(node.embedder, HalfPrecision)
    assert node.embedder.fingerprint == load_embedder("hash").fingerprint + ":float16"
    lab.embedder = node.embedder
    assert lab.add_node().embedder is node.embedder
