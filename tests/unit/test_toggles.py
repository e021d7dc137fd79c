"""What can be set on a running node, and which setting is in force: pure, so every order of hearing is tried."""

from __future__ import annotations

import inspect
from dataclasses import fields

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from copilotlab import Policy
from copilotlab.node import Changeable, Node
from copilotlab.protocol.events import MAX_SETTINGS, MAX_VERSION, Setting
from copilotlab.protocol.peers import NO_SETTINGS
from copilotlab.protocol.toggles import FIXED, POLICY_FIELDS, SWITCHES, Toggles
from copilotlab.toggle_words import POLICY_MEANINGS

SETTINGS = st.builds(
    Setting,
    name=st.sampled_from(["publishing", "listening", "sync_interval", "from_the_future"]),
    node=st.sampled_from(["", "n0", "n1"]),
    value=st.sampled_from([True, False, 60, 61.0]),
    version=st.integers(1, 3),
    at=st.sampled_from([0.0, 1.0]),
    by=st.sampled_from(["Ada", "Bob"]),
    source=st.sampled_from(["n0", "n1"]),
)


def toggles(node_id="n0", policy=None):
    return Toggles(node_id, policy or Policy())


def put(these, *, node="n0", **changes):
    return these.set(changes, node=node, by="Ada", at=5.0)


def test_every_field_that_can_be_set_is_explained_to_who_sets_it():
    assert list(POLICY_MEANINGS) == list(POLICY_FIELDS)
    assert not POLICY_MEANINGS.keys() & SWITCHES.keys()


def test_every_field_of_the_policy_can_be_set_or_is_refused_with_a_reason():
    assert {field.name for field in fields(Policy)} == {*POLICY_FIELDS, *FIXED}
    assert not set(POLICY_FIELDS) & set(FIXED)
    assert set(Changeable.__annotations__) == {*SWITCHES, *POLICY_FIELDS}
    assert all(name in inspect.getdoc(Node.configure) for name in SWITCHES)
    for name, why in FIXED.items():
        with pytest.raises(ValueError, match="cannot change on a running node") as error:
            put(toggles(), **{name: getattr(Policy(), name)})
        assert why in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"publishing": 1},
        {"listening": "off"},
        {"sync_interval": 0.01},
        {"sync_interval": float("nan")},
        {"batch_timeout": 1e300},
        {"chunk_size": 0},
        {"chunk_size": 10**30},
        {"rebuild_at_reconnect": None},
        {"colour": True},
        {"publishing": False, "fenced": False},
    ],
)
def test_what_makes_no_sense_changes_nothing(changes):
    these = toggles()
    with pytest.raises(ValueError, match=r".{10}"):
        put(these, **changes)
    assert these.settings == []
    assert (these.digest, these.now.publishing) == (NO_SETTINGS, True)


def test_the_policy_in_force_is_replaced_as_a_whole_and_the_given_one_stays():
    these = toggles()
    before = these.now
    (made, _) = put(these, sync_interval=60, rebuild_at_reconnect=False)

    assert these.now.policy == Policy(sync_interval=60, rebuild_at_reconnect=False)
    assert before.policy == these.given == Policy()
    assert these.now.settings["sync_interval"] == made
    assert (made.version, made.by, made.at, made.source) == (1, "Ada", 5.0, "n0")


def test_the_version_grows_past_all_that_is_known_and_the_last_word_counts_for_one_or_for_all():
    these = toggles()
    put(these, publishing=False)
    put(these, node="", publishing=True)
    assert these.now.publishing
    put(these, publishing=False)
    assert not these.now.publishing
    assert [setting.version for setting in these.settings] == [2, 3]

    put(these, node="n1", listening=False)
    assert these.now.listening, "that was for another node"
    these.learn([Setting("publishing", "", True, MAX_VERSION, 0.0, "Bob", "n1")])
    assert these.now.publishing
    assert put(these, publishing=False)[0].version == MAX_VERSION


def test_without_reconcile_nothing_is_held_back_and_no_other_node_is_set():
    these = toggles(policy=Policy.seed())
    for changes, node in (({"publishing": False}, "n0"), ({"sync_interval": 60}, ""), ({"sync_interval": 60}, "n1")):
        with pytest.raises(ValueError, match="reconcile"):
            put(these, node=node, **changes)
    put(these, scheduled_sync=False)
    assert not these.now.scheduled_sync


@given(st.lists(SETTINGS, max_size=12), st.randoms(use_true_random=False), st.integers(0, 12))
def test_what_nodes_know_adds_up_to_the_same_in_any_order(settings, chance, cut):
    one, other = toggles(), toggles()
    one.learn(settings)
    chance.shuffle(settings)
    for part in (settings[:cut], settings[cut:], settings[:cut]):
        other.learn(part)

    assert one.digest == other.digest
    assert one.now == other.now
    assert one.learn(other.settings) == []


def test_what_this_version_does_not_know_is_kept_for_others_and_not_in_force():
    these = toggles()
    unknown = Setting("from_the_future", "", True, 7, 0.0, "Ada", "n1")
    nonsense = Setting("publishing", "", 3, 8, 0.0, "Ada", "n1")
    endless = msgspec.structs.replace(nonsense, value=float("nan"), version=9)

    assert these.learn([unknown, nonsense, endless]) == []
    assert these.now.publishing is True
    assert these.settings == [unknown, nonsense]


def test_no_more_settings_are_kept_than_fit_and_those_for_all_go_last():
    these = toggles()
    put(these, node="", listening=False)
    many = [Setting("publishing", f"m{i}", False, 2 + i, 0.0, "Ada", "n1") for i in range(2 * MAX_SETTINGS)]
    these.learn(many)
    turned = toggles()
    turned.learn([*reversed(many), *these.settings])

    assert len(these.settings) == MAX_SETTINGS
    assert not these.now.listening
    assert turned.digest == these.digest
