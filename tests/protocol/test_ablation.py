"""Each field of the policy earns its place: without it a promise breaks, with it the promise holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from copilotlab import Policy
from copilotlab.studies import ablation as module
from copilotlab.studies.ablation import SCENARIOS, ablation, outcomes, play
from copilotlab.studies.result_cache import measured_anew


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COPILOTLAB_CACHE", str(tmp_path / "cache"))


def test_every_switch_has_its_scenario():
    assert {scenario.field for scenario in SCENARIOS} == set(Policy.remedies())


@pytest.mark.parametrize("field", Policy.remedies())
def test_without_it_a_promise_breaks(field):
    assert not play(field, on=False).holds


@pytest.mark.parametrize("field", Policy.remedies())
def test_with_it_the_promise_holds(field):
    outcome = play(field, on=True)

    assert outcome.holds
    assert outcome.lost == 0
    assert outcome.seconds is not None


def test_the_frame_has_two_rows_a_field():
    frame = ablation(["claim", "reconcile"])

    assert frame.select("field", "on", "holds").rows() == [
        ("claim", False, False),
        ("claim", True, True),
        ("reconcile", False, False),
        ("reconcile", True, True),
    ]
    assert frame.filter(field="claim")["embeddings"].to_list() == [3, 1]
    assert frame.filter(field="reconcile")["seconds"].to_list()[0] is None


def test_what_was_played_is_read_again_as_it_was(monkeypatch):
    played = []
    monkeypatch.setattr(module, "play", lambda field, *, on: played.append((field, on)) or play(field, on=on))
    first = outcomes(["reconcile"], progress=False)
    again = outcomes(["claim", "reconcile"], progress=False)
    with measured_anew():
        anew = outcomes(["reconcile"], progress=False)

    reconcile, claim = ([(field, on) for on in (False, True)] for field in ("reconcile", "claim"))
    assert played == [*reconcile, *claim, *reconcile]
    for key, outcome in first.items():
        for other in (again[key], anew[key]):
            assert replace(other, story=outcome.story) == outcome
            assert other.story.schema == outcome.story.schema
            assert other.story.equals(outcome.story)


def test_an_unknown_field_is_named():
    with pytest.raises(ValueError, match="'fencing'"):
        ablation(["fencing"])


def test_the_story_begins_with_the_trouble_and_ends_with_what_came_of_it():
    broken, kept = (play("reconcile", on=on).story for on in (False, True))

    assert broken["event"].to_list() == ["edit", "message_lost", "promise_broken"]
    assert kept["event"].to_list()[:2] == ["edit", "message_lost"]
    assert {"reconcile", "agreed"} < set(kept["event"])
    assert kept.row(-1)[2:] == ("promise_kept", "charts held wrongly: 0, embeddings: 1, rebuilds: 0")


def test_two_batches_beside_each_other_are_seen():
    assert [play("fenced", on=on).side_by_side for on in (False, True)] == [2, 1]
