"""Each field of the policy earns its place: without it a promise breaks, with it the promise holds."""

from __future__ import annotations

import pytest

from copilotlab import Policy
from copilotlab.studies.ablation import SCENARIOS, ablation, play


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
