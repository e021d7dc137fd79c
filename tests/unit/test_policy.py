"""Every choice of the protocol, checked when it is made."""

from __future__ import annotations

import dataclasses

import pytest

from copilotlab import Policy


def test_the_written_design_is_one_call_away():
    seed = Policy.seed()

    assert (seed.batch_timeout, seed.sync_interval) == (300.0, 3600.0)
    assert [name for name in Policy.remedies() if getattr(seed, name)] == []


def test_by_default_every_remedy_is_on():
    assert len(Policy.remedies()) == 9
    assert [name for name in Policy.remedies() if not getattr(Policy(), name)] == []


def test_each_field_of_the_written_design_can_be_switched_alone():
    switches = [field.name for field in dataclasses.fields(Policy) if field.type == "bool"]

    assert len(switches) >= 4
    for name in switches:
        assert getattr(Policy.seed(**{name: True}), name) is True
        assert getattr(Policy(**{name: False}), name) is False


def test_a_policy_is_frozen_and_says_only_what_differs():
    policy = Policy(batch_timeout=60)

    assert repr(policy) == "Policy(batch_timeout=60)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.batch_timeout = 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_timeout": 0},
        {"batch_timeout": float("nan")},
        {"batch_timeout": "5 minutes"},
        {"redis_timeout": float("inf")},
        {"sync_interval": True},
        {"ordered": 1},
        {"chunk_size": 0},
        {"chunk_size": 2.5},
        {"vectors": "bfloat16"},
        {"vectors": 16},
    ],
)
def test_a_value_that_makes_no_sense_is_named(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        Policy(**wrong)
