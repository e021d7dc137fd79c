"""What a node made is late: meanwhile the chart was deleted, or saved again, and the node has heard of that."""

from __future__ import annotations

import pytest

from copilotlab.lab.simulated_lab import SimulatedLab, simulated_chart


@pytest.fixture
def c():
    made = SimulatedLab(2, tick=0.5)
    made.fill(3)
    made.run(5)
    return made


def after(monkeypatch, owner, name, then):
    """Have ``then`` happen once, when ``owner.name`` has done its work and before its caller goes on."""
    done = getattr(owner, name)

    def first(*arguments):
        monkeypatch.setattr(owner, name, done)
        result = done(*arguments)
        then()
        return result

    monkeypatch.setattr(owner, name, first)


def test_a_chart_that_was_deleted_while_it_was_saved_does_not_come_back(c, monkeypatch):
    def deleted_elsewhere():
        c.nodes[1].delete_chart(7)
        c.deliver()

    after(monkeypatch, c.charts, "save", deleted_elsewhere)
    c.nodes[0].update_chart(simulated_chart(7))

    assert 7 not in c.nodes[0].store
    assert c.nodes[0].store.tombstone(7) == c.charts.revision
    c.deliver()
    assert [7 in node.store for node in c.nodes] == [False, False]
    assert c.run_until_agreed(10) is not None


def test_what_is_heard_while_the_repository_is_asked_is_newer_than_its_answer(c, monkeypatch):
    def deleted_elsewhere():
        c.nodes[1].delete_chart(7)
        c.deliver()
        after(monkeypatch, c.charts, "get_many", saved_elsewhere)

    def saved_elsewhere():
        c.nodes[1].update_chart(simulated_chart(7, "Once more"))
        c.deliver()

    after(monkeypatch, c.charts, "save", deleted_elsewhere)
    c.nodes[0].update_chart(simulated_chart(7))

    assert c.nodes[0].store.head(7) == (c.charts.revision, simulated_chart(7, "Once more").content_hash)
    assert c.run_until_agreed(10) is not None


def test_a_deletion_that_is_late_leaves_what_was_saved_since(c, monkeypatch):
    def saved_elsewhere():
        c.nodes[1].update_chart(simulated_chart(2, "Back again"))
        c.deliver()

    after(monkeypatch, c.charts, "delete", saved_elsewhere)
    c.nodes[0].delete_chart(2)

    assert c.nodes[0].store.head(2) == (c.charts.revision, simulated_chart(2, "Back again").content_hash)
    assert c.run_until_agreed(10) is not None


def test_what_was_deleted_while_the_whole_repository_was_read_is_not_brought_back(c, monkeypatch):
    def deleted_elsewhere():
        c.nodes[1].delete_chart(2)
        c.deliver()

    after(monkeypatch, c.charts, "look", deleted_elsewhere)
    batches = c.nodes[0].replica.batches
    batches.begin("rebuild")
    while batches.advance():
        assert 2 not in c.nodes[0].store
    assert c.run_until_agreed(10) is not None
