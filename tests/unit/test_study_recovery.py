"""The study of recovery: what is seen during a fault, what is made of it, and what is refused."""

from __future__ import annotations

import threading
from pathlib import Path

import polars as pl
import pytest

from copilotlab.lab.search_watch import Watch
from copilotlab.lab.simulated_lab import SimulatedLab, simulated_chart
from copilotlab.node import Node
from copilotlab.studies.recovery import POLICIES, Experiment, _Book, recovery, summary

SHORT = {"charts": 20, "lasts": 0.4}


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COPILOTLAB_CACHE", str(tmp_path / "cache"))


def test_both_policies_under_one_fault() -> None:
    seen = recovery(["deaf"], **SHORT, written_limit=0.5, jobs=2, progress=False)

    ours, written = summary(seen).iter_rows(named=True)
    assert (ours["policy"], written["policy"]) == ("Policy()", "the written design")
    assert ours["agreed_after"] is not None
    assert written["agreed_after"] is None
    assert (ours["wrong"], ours["backwards"], ours["unanswered"]) == (0, 0, 0)
    assert ours["embeddings"] == ours["edits"] == 12
    assert written["wrong"] > 0
    assert seen.group_by("policy", "seconds").len()["len"].unique().to_list() == [3]
    assert set(seen["node"]) == {"node-0", "node-1", "node-2"}
    for (policy,), part in seen.group_by("policy"):
        assert part["phase"].unique(maintain_order=True).to_list() == ["before", "fault", "after"], policy
        assert part.filter(phase="before")["wrong"].sum() == 0
        assert part.filter(phase="before")["seconds"].max() < 0 <= part.filter(phase="fault")["seconds"].min()
        assert part["search_ms"].drop_nulls().len() > 0


def test_no_phase_begins_during_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = Experiment("deaf", POLICIES["Policy()"], **SHORT)
    lab = SimulatedLab(3)
    lab.fill(2)
    experiment._book = _Book().next(lab.charts.heads_since(0))
    watches = [Watch(node, ["espresso"]) for node in lab.nodes]
    breaks = threading.Thread(target=experiment._enter, args=["fault"])
    status = Node.status

    def it_breaks_meanwhile(node: Node) -> dict[str, object]:
        if node is lab.nodes[1]:
            breaks.start()
            breaks.join(0.1)  # it would take no time, if nothing held it up
        return status(node)

    monkeypatch.setattr(Node, "status", it_breaks_meanwhile)
    experiment._look(watches)
    breaks.join()
    monkeypatch.setattr(Node, "status", status)
    experiment._look(watches)

    assert experiment.timeline()["phase"].to_list() == ["before"] * 3 + ["fault"] * 3


def test_each_phase_is_seen_however_short_and_however_rare_the_looks() -> None:
    experiment = Experiment("cut off", POLICIES["Policy()"], charts=20, lasts=0.01, pace=60.0)
    experiment.run()

    seen = experiment.timeline()
    assert seen["phase"].unique(maintain_order=True).to_list() == ["before", "fault", "after"]
    assert seen.filter(seconds=seen["seconds"].max())["wrong"].sum() == 0


def test_what_was_measured_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {"faults": ["cut off"], "policies": ["Policy()"], **SHORT, "progress": False}
    first = recovery(**chosen)
    monkeypatch.setattr(Experiment, "run", lambda _: pytest.fail("it ran again"))

    assert recovery(**chosen).equals(first)


def test_a_fault_of_the_model_comes_in_a_batch() -> None:
    experiment = Experiment("model hangs", POLICIES["Policy()"], **SHORT)
    experiment.run()

    seen = experiment.timeline()
    assert "rebuild" in " ".join(seen.filter(phase="fault")["batch"])
    assert experiment.agreed is not None
    assert experiment.embeddings == experiment.edits == 60


def test_an_experiment_can_be_looked_at_and_stopped_from_outside() -> None:
    experiment = Experiment("half-open", POLICIES["the written design"], charts=20, lasts=60.0)
    assert experiment.timeline().is_empty()
    thread = threading.Thread(target=experiment.run)
    thread.start()
    while experiment.timeline().filter(phase="fault").is_empty():
        assert thread.is_alive()
    experiment.stop()
    thread.join()

    assert experiment.agreed is None
    assert not [
        left.name for left in threading.enumerate() if left.name.startswith(("copilotlab-exp", "copilotlab-node"))
    ]


def test_a_node_is_compared_with_what_the_repository_held_when_it_was_last_written() -> None:
    lab = SimulatedLab(1)
    lab.fill(2)
    (node,) = lab.nodes
    book = _Book().next(lab.charts.heads_since(0))
    assert book.compare(node) == (1.0, 0, 0.0)

    node.update_chart(simulated_chart(1, "newer than the book"))
    assert book.compare(node).wrong == 0

    lab.charts.save(simulated_chart(2, "not yet on the node"))
    held = book.next(lab.charts.heads_since(0)).compare(node)
    assert (held.coverage, held.wrong) == (0.5, 1)
    assert held.staleness > 0

    lab.charts.delete(2)
    held = book.next(lab.charts.heads_since(0)).compare(node)
    assert (held.coverage, held.wrong) == (1.0, 1)


def test_a_summary_is_of_the_end_and_of_the_worst() -> None:
    looks = {"seconds": [-0.1, 0.0, 1.0, 1.0], "node": ["a", "a", "a", "b"], "search_ms": [90.0, 1.0, None, 3.0]}
    looks |= {"phase": ["before", "fault", "after", "after"]}
    looks |= {"coverage": [1.0, 0.5, 0.9, 1.0], "wrong": [0, 5, 2, 1], "staleness": [0.0, 1.0, 0.5, 0.0]}
    whole = {"agreed_after": 0.5, "edits": 4, "embeddings": 5, "backwards": 0, "unanswered": 0, "scope": "line"}
    seen = pl.DataFrame(looks).with_columns(pl.lit(value).alias(name) for name, value in whole.items())
    seen = seen.with_columns(fault=pl.lit("deaf"), policy=pl.lit("Policy()"))

    assert summary(seen).to_dicts() == [
        {
            "fault": "deaf",
            "policy": "Policy()",
            **whole,
            "wrong": 3,
            "lowest_coverage": 0.5,
            "longest_staleness": 1.0,
            "search_p50_ms": 2.0,
            "search_max_ms": 3.0,
        }
    ]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"faults": ["flood"]}, r"faults=\['flood'\]: expected names of server killed, "),
        ({"faults": []}, r"faults=\[\]: expected names of"),
        ({"policies": ["seed"]}, r"policies=\['seed'\]: expected names of Policy\(\), the written design"),
        ({"jobs": 0}, "jobs=0: expected at least 1"),
        ({"lasts": 0.0}, r"lasts=0.0, .*: expected seconds above 0"),
        ({"nodes": 1}, "nodes=1, charts=60: expected at least 2 nodes, and 8 charts"),
    ],
)
def test_what_makes_no_sense_is_said(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        recovery(**{"faults": ["deaf"], **wrong}, progress=False)  # type: ignore[arg-type]


def test_an_unknown_fault_has_no_experiment() -> None:
    with pytest.raises(ValueError, match="fault='flood': expected one of server killed, "):
        Experiment("flood", POLICIES["Policy()"])
