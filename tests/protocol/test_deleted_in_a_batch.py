"""A chart is deleted while a batch has it before it."""

from __future__ import annotations

from world import World


def test_what_was_deleted_since_the_catalogue_was_read_is_not_embedded_again(monkeypatch):
    world = World(2)
    world.run(5.0)
    for chart_id in (1, 2):
        world.update(0, world.chart(chart_id))
    world.run(world.policy.claim_timeout + 1)  # what was claimed then is forgotten
    read = world.charts.heads_since

    def read_and_meanwhile_delete(revision):
        monkeypatch.undo()
        changes = read(revision)
        world.delete(1, 1)
        for _ in range(5):  # to what itself said, too
            world.listen(0)
        assert 1 not in world.nodes[0].store
        return changes

    world.nodes[0].replica.batches.begin("rebuild")
    monkeypatch.setattr(world.charts, "heads_since", read_and_meanwhile_delete)
    world.work(0)

    world.settle()
    assert 1 not in world.nodes[0].store
    assert sum(map(len, world.made.values())) == 2
