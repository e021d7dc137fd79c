"""Toggles on running nodes: what each holds back, that it is made good afterwards, and how a setting reaches all."""

from __future__ import annotations

from zlib import crc32

import pytest

from copilotlab import Chart, Node, Policy
from copilotlab.protocol import events
from copilotlab.protocol.events import Setting
from copilotlab.protocol.keys import BATCH_IN_PROGRESS


@pytest.fixture
def c(cluster):
    """Three nodes that hold the same ten charts."""
    c = cluster(3)
    c.fill(10)
    c.settle()
    assert c.agree()
    return c


def value(node, name):
    return node.context.toggles.now.value(name)


def words(chart_id, title="Other words"):
    return Chart(chart_id=chart_id, title=title)


def test_what_is_held_back_is_said_once_publishing_is_on_again(c):
    first, second, _ = c.nodes
    made = c.embeddings()
    first.configure(publishing=False)

    assert first.update_chart(words(1)).outcome == "local"
    assert first.delete_chart(2).outcome == "local"
    c.deliver()
    assert 2 in second.store
    assert len(first.replica.outbox) == 2
    assert first.status()["owes_rebuild"]

    first.configure(publishing=True)
    c.settle()
    assert c.agree()
    assert len(first.replica.outbox) == 0
    assert c.embeddings() == made + 1
    assert first.update_chart(words(3)).outcome == "published"


def test_who_asks_a_node_that_does_not_publish_is_answered(c):
    first, second, _ = c.nodes
    first.configure(publishing=False)
    first.update_chart(words(1))
    c.settle()

    assert second.store.head(1) == first.store.head(1)
    assert c.agree()


def test_a_node_that_may_not_publish_runs_no_batch_for_all_and_one_under_way_ends(c):
    first, *others = c.nodes
    for chart_id in range(20, 400):
        c.charts.save(words(chart_id))
    batch = first.replica.batches.begin("rebuild")
    first.work()
    first.work()
    first.configure(publishing=False)
    c.settle(60)

    assert batch.result.outcome == "cancelled"
    assert c.agree()
    assert not any(node.status()["owes_rebuild"] for node in others)
    assert {node.context.metrics["batches"] for node in others} >= {1}
    assert first.rebuild().outcome == "local"


def test_what_was_not_listened_to_is_fetched_once_listening_is_on_again(c):
    deaf, second, _ = c.nodes
    made = c.embeddings()
    deaf.configure(listening=False)
    before = deaf.store.head(1)
    second.update_chart(words(1))
    second.update_chart(words(50))
    second.rebuild()
    c.settle(60)  # for longer than other nodes' changes are waited for

    assert deaf.store.head(1) == before
    assert 50 not in deaf.store
    assert not deaf.complete
    assert deaf.context.metrics["unlistened"] >= 2

    deaf.configure(listening=True)
    c.settle()
    assert c.agree()
    assert c.embeddings() == made + 2


def test_all_off_and_on_again_under_edits_converges(c):
    first, second, third = c.nodes
    first.configure(everywhere=True, publishing=False, listening=False)
    c.settle(3)
    assert not any(value(node, "publishing") or value(node, "listening") for node in c.nodes)
    for round_ in range(3):
        for number, node in enumerate(c.nodes):
            node.update_chart(words(1 + number, f"Round {round_}"))
            node.update_chart(words(9, f"Round {round_} of {node.node_id}"))
        c.settle(40)
    third.delete_chart(5)
    second.configure(everywhere=True, publishing=True, listening=True)
    c.settle(60)

    assert c.agree()
    assert not any(node.status()["owes_rebuild"] for node in c.nodes)


def test_a_sync_that_was_held_back_is_due_when_it_is_on_again_and_an_interval_counts_at_once(cluster):
    c = cluster(1, Policy(sync_interval=1_000))
    c.fill(5)
    (node,) = c.nodes
    c.settle(5)
    node.configure(scheduled_sync=False, sync_interval=20)
    c.settle(60)
    assert node.status()["last_sync_age"] > 60

    node.configure(scheduled_sync=True)
    c.settle(2)
    assert node.status()["last_sync_age"] <= 2
    c.settle(50)
    assert node.status()["last_sync_age"] <= 21


def test_the_next_lease_lasts_as_long_as_was_set(c):
    first = c.nodes[0]
    first.configure(batch_timeout=7)
    first.replica.batches.begin("rebuild")

    _, until = c.redis._keys[BATCH_IN_PROGRESS]
    assert until - c.clock.now() == 7
    assert first.policy.batch_timeout == 7


# --- how a setting reaches all ----------------------------------------------------------------------------------------


def test_who_set_what_and_when_is_in_the_status_and_in_every_journal(c):
    first, _, third = c.nodes
    version = first.configure(everywhere=True, by="Ada", chunk_size=32)
    c.deliver()

    (toggle,) = third.status()["toggles"]
    assert (toggle["name"], toggle["value"], toggle["set_by"], toggle["version"]) == ("chunk_size", 32, "Ada", version)
    assert toggle["set_on"] == first.node_id
    assert toggle["set_at"].startswith("20")
    for node in c.nodes:
        told = [entry.detail for entry in node.journal.entries() if entry.event == "toggle_set"]
        assert told == [f"chunk_size=32 for all nodes, by Ada on {first.node_id}, version 1"]


def test_one_node_is_set_from_another_and_the_third_stays_as_it_is(c):
    first, second, third = c.nodes
    first.configure(node_id=second.node_id, listening=False)
    c.deliver()

    assert [value(node, "listening") for node in c.nodes] == [True, False, True]
    assert third.status()["toggles"] == []


def test_a_node_that_was_away_learns_what_was_set_and_the_others_what_was_set_on_it(c):
    first, second, third = c.nodes
    c.carriers[2].cut()
    first.configure(everywhere=True, publishing=False)
    second.configure(everywhere=True, sync_interval=60)
    third.configure(everywhere=True, bulk_ttl=9)
    c.settle(5)
    assert value(third, "publishing")
    assert value(first, "bulk_ttl") == 120

    c.carriers[2].heal()
    c.settle(5)
    for node in c.nodes:
        assert [value(node, name) for name in ("publishing", "sync_interval", "bulk_ttl")] == [False, 60, 9]


def test_who_starts_again_and_who_is_new_learn_it_from_any_that_lives_though_redis_forgot(c):
    first, _, third = c.nodes
    first.configure(node_id="n1", adopt_after=5)
    first.configure(everywhere=True, publishing=False)
    c.settle(3)
    c.kill(0)
    c.kill(1)
    c.redis.forget()
    new = c.add_node()
    c.carriers.append(c.redis.carrier())
    again = Node(c.charts, c.embedder, c.carriers[-1], policy=c.policy, node_id="n1", clock=c.clock)
    c.nodes.append(again)
    c._still.discard("n1")
    c.nodes.pop(1)
    again.connect()
    c.settle(5)

    assert (value(again, "adopt_after"), value(new, "adopt_after")) == (5, 30)
    assert not any(value(node, "publishing") for node in (third, again, new))
    assert again.configure(everywhere=True, publishing=True) == 3
    c.deliver()
    assert all(value(node, "publishing") for node in (third, again, new))


def test_two_nodes_that_are_set_at_the_same_moment_end_alike(c):
    first, second, third = c.nodes
    first.configure(everywhere=True, listening=False)
    second.configure(everywhere=True, listening=True, chunk_size=32)
    assert not value(first, "listening")
    assert value(second, "listening")
    c.deliver()

    assert len({node.context.toggles.digest for node in c.nodes}) == 1
    assert {value(node, "listening") for node in c.nodes} == {True}, "the later one, by the wall clock"
    assert {value(node, "chunk_size") for node in c.nodes} == {32}
    assert third.configure(everywhere=True, listening=False) == 2


def test_a_word_that_was_lost_is_said_again_and_one_that_is_known_is_not(c):
    said = []
    for node in c.nodes:
        node.listen_to(lambda happening: said.append(getattr(happening, "event", "")))
    c.settle(5)
    assert "SettingsHeld" not in said

    c.nodes[0].configure(everywhere=True, publishing=False)
    for carrier in c.carriers:
        carrier.arrived.clear()
    c.settle(5)
    assert not any(value(node, "publishing") for node in c.nodes)
    assert said.count("SettingsHeld") < 20

    said.clear()
    c.settle(20)
    assert "SettingsHeld" not in said


def test_two_nodes_of_one_name_hold_what_was_set_for_that_name(c):
    carrier = c.redis.carrier()
    namesake = Node(c.charts, c.embedder, carrier, policy=c.policy, node_id="n1", clock=c.clock)
    c.carriers.append(carrier)
    c.nodes.append(namesake)
    namesake.connect()
    c.nodes[0].configure(node_id="n1", chunk_size=8)
    c.settle(5)
    namesake.configure(chunk_size=16)
    c.settle(5)

    assert [value(node, "chunk_size") for node in c.nodes] == [64, 16, 64, 16]


def test_nothing_is_believed_that_no_node_of_this_catalogue_has_signed(c):
    first, second, _ = c.nodes
    setting = Setting("publishing", "", False, 9, 0.0, "Mallory", "m")
    link = first.coordinator.link
    payload = link.encode(events.SettingsHeld("0" * 32, True, [setting]))
    forged = payload[:21] + bytes(16) + payload[37:]
    whole = payload[:1] + crc32(forged[5:]).to_bytes(4, "little") + forged[5:]
    c.redis.carrier().publish(f"{events.INBOX}:{second.node_id}", whole)
    c.deliver()

    assert second.context.metrics["dropped_forged"] == 1
    assert value(second, "publishing")
