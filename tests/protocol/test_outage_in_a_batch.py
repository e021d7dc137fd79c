"""Redis goes away while a node is in the middle of a batch, and the others go on saving."""

from __future__ import annotations

import pytest
from world import World


def batch_under_way(nodes: int = 2) -> World:
    """Node 0 is in the middle of a batch of four new charts; node 1 knows that."""
    world = World(nodes)
    world.run(5.0)
    for chart_id in (1, 2, 3, 4):
        world.charts.save(world.chart(chart_id))
    world.nodes[0].replica.batches.begin("rebuild", ask_peers=False)
    world.work(0)
    world.work(0)
    while world.listen(1):
        pass
    return world


@pytest.mark.parametrize("keep_data", [True, False])
def test_what_others_save_meanwhile_is_embedded_by_them_alone(keep_data):
    world = batch_under_way()
    world.redis.stop()
    world.update(1, world.chart(5))
    world.work(0)
    world.work(0)
    world.redis.start(keep_data=keep_data)

    world.settle()
    assert sum(map(len, world.made.values())) == 5


@pytest.mark.parametrize("keep_data", [True, False])
def test_the_holder_that_is_back_first_does_not_embed_what_the_others_will_hand_over(keep_data):
    world = batch_under_way()
    world.redis.stop()
    world.update(1, world.chart(5))
    world.work(0)
    world.redis.start(keep_data=keep_data)
    world.clock.advance(1.0)
    for _ in range(4):
        world.listen(0)
        world.work(0)

    world.settle()
    assert sum(map(len, world.made.values())) == 5


def test_who_loses_redis_while_it_asks_the_others_asks_again_before_it_embeds():
    world = World(2)
    world.run(5.0)
    world.redis.stop()
    world.listen(0)
    world.update(1, world.chart(1))
    world.redis.start(keep_data=False)
    world.clock.advance(1.0)
    world.listen(1)  # it says what it embedded while nobody listens
    world.listen(0)
    for _ in range(3):
        world.work(0)
    assert world.nodes[0].replica.batches.present is not None
    world.carriers[0].cut()
    world.listen(0)
    world.work(0)
    world.work(0)
    world.carriers[0].heal()

    world.settle()
    assert sum(map(len, world.made.values())) == 1


def test_who_comes_back_in_the_middle_of_a_batch_is_asked_for_what_is_left():
    """A new node rebuilds after the memory was lost, while the one that has all vectors is not back yet."""
    world = World(1)
    for chart_id in range(1, 21):
        world.charts.save(world.chart(chart_id))
    world.run(5.0)
    world.carriers[0].cut()
    world.redis.forget()
    world.clock.advance(10.0)
    new = world.add_node()
    for _ in range(40):
        if new.context.metrics["embeddings"]:
            break
        world.listen(1)
        world.work(1)
        world.clock.advance(0.25)
    assert new.replica.batches.present is not None
    world.carriers[0].heal()
    made_alone = new.context.metrics["embeddings"]

    world.settle()
    assert made_alone < 20
    assert new.context.metrics["embeddings"] <= made_alone + world.policy.chunk_size


def test_a_holder_that_was_cut_off_and_went_on_is_waited_for_by_who_takes_its_batch_over():
    """It comes back after its lease was taken, and hands over what it made, and what was saved there meanwhile."""
    world = batch_under_way(3)
    world.update(1, world.chart(5))  # left to the batch
    world.carriers[0].cut()
    while world.nodes[1].replica.batches.present is None and world.nodes[2].replica.batches.present is None:
        world.run(0.5)
    world.update(0, world.chart(6))
    world.run(0.5)
    world.carriers[0].heal()

    world.settle()
    assert sum(map(len, world.made.values())) == 6
