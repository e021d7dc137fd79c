"""One node of several in a process stands still, and goes on."""

from __future__ import annotations

from rest import wait_for_rest

from copilotlab import Chart, Lab, load_embedder


def test_a_frozen_node_hears_nothing_and_the_others_go_on() -> None:
    with Lab(3, load_embedder("hash")) as lab:
        wait_for_rest(*lab.nodes)
        lab.freeze(1)
        assert lab.living == [lab.nodes[0], lab.nodes[2]]
        assert lab.nodes[0].update_chart(Chart(chart_id=7, title="Revenue by region")).outcome == "published"
        lab.wait_converged(10)
        assert lab.nodes[1].store.revision(7) is None
        assert lab.nodes[1].status()["charts"] == 0  # whoever asks from outside is answered

        lab.resume(1)
        lab.wait_converged(10)
        assert lab.nodes[1].store.revision(7) is not None
        assert lab.timeline().filter(node="lab")["event"].to_list()[-2:] == ["freeze", "resume"]


def test_a_lab_with_a_frozen_node_can_be_closed_and_a_frozen_node_killed() -> None:
    with Lab(2, load_embedder("hash")) as lab:
        lab.freeze(0)
        lab.kill(0)
        lab.freeze(1)
    assert not lab.living
