"""One change, one embedding: who is told of it, by whom and how often makes no difference."""

from __future__ import annotations

from copilotlab.protocol.coordinator import Need
from copilotlab.protocol.keys import BATCH_IN_PROGRESS, WAS_DOWN


def quiet(c):
    """All nodes know each other, and nothing is owed."""
    c.settle(5)
    assert not {BATCH_IN_PROGRESS, WAS_DOWN} & c.redis.held().keys()
    return c.embeddings()


def test_a_change_told_to_three_nodes_at_once_is_embedded_once(cluster, make_chart):
    c = cluster(3)
    before = quiet(c)
    c.charts.save(make_chart(7))

    outcomes = [node.chart_changed(7).outcome for node in c.nodes]

    assert outcomes == ["published", "deferred", "deferred"]
    c.settle(5)
    assert c.agree()
    assert c.embeddings() == before + 1


def test_the_same_words_saved_on_two_nodes_are_embedded_once(cluster, make_chart):
    c = cluster(2)
    before = quiet(c)

    assert c.nodes[0].update_chart(make_chart(7)).outcome == "published"
    assert c.nodes[1].update_chart(make_chart(7)) == ("deferred", 1), "it has not heard of it yet"

    c.settle(5)
    assert c.agree()
    assert c.embeddings() == before + 1


def test_words_that_come_back_are_embedded_at_once(cluster, make_chart):
    c = cluster(2)
    before = quiet(c)
    c.nodes[0].update_chart(make_chart(7, "First words"))
    c.nodes[0].update_chart(make_chart(7, "Other words"))

    assert c.nodes[1].update_chart(make_chart(7, "First words")) == ("published", 3)
    c.deliver()
    assert c.agree()
    assert c.embeddings() == before + 3


def test_a_batch_whose_lease_is_gone_embeds_nothing(cluster, make_chart):
    c = cluster(2)
    before = quiet(c)
    c.charts.save(make_chart(7))
    batch = c.nodes[0].replica.batches.begin("rebuild", ask_peers=False)
    c.nodes[0].work()  # has read the catalogue
    c.redis.forget()  # the lease, and who claimed what

    assert c.nodes[1].chart_changed(7).outcome == "published"
    c.redis.forget()
    c.nodes[0].work()

    assert batch.result.outcome == "fenced"
    c.settle(10)
    assert c.agree()
    assert c.embeddings() == before + 1


def claimed_by(c, chart):
    """A node is about to embed the chart, which was just saved elsewhere."""
    revision = c.charts.save(chart)
    _, (granted,) = c.nodes[0].coordinator.admit([Need(chart.chart_id, chart.content_hash, revision)])
    assert granted


def test_a_rebuild_is_not_over_before_what_another_node_claimed_is_there(cluster, make_chart):
    c = cluster(2)
    before = quiet(c)
    claimed_by(c, make_chart(7))
    batch = c.nodes[1].replica.batches.begin("rebuild")
    c.run(5)
    assert not batch.over, "the node that claimed it lives, and may yet send it"

    c.run(c.policy.claim_timeout)
    assert batch.result.outcome == "published"
    assert c.nodes[1].store.revision(7) is not None, "it never did"
    assert c.agree()
    assert c.embeddings() == before + 1


def test_what_was_claimed_by_a_node_that_is_gone_is_made_at_once(cluster, make_chart):
    c = cluster(2)
    before = quiet(c)
    claimed_by(c, make_chart(7))
    c.nodes[0].stop()
    c.nodes.pop(0)
    c.carriers.pop(0)
    batch = c.nodes[0].replica.batches.begin("rebuild")
    c.run(4)

    assert (batch.result.outcome, batch.tally.embedded) == ("published", 1)
    assert c.agree()
    assert c.embeddings() == before + 1
