"""A node that stood still does not put off for hours what was left to it."""

from __future__ import annotations

from world import World

from copilotlab import Policy


def test_an_edit_made_right_after_a_sleep_is_not_put_off():
    world = World(2)
    world.run(1.0)
    world.clock.advance(400.0)  # all were frozen
    world.model_fails = 1
    world.do(0, lambda node: node.replica.batches.begin("rebuild"))
    world.update(0, world.chart(1))  # deferred to a batch that will fail
    world.run(0.3)

    world.settle()


def test_a_holder_that_stood_still_before_its_first_step_asks_the_others_all_the_same():
    world = World(1)
    world.run(5.0)
    world.update(0, world.chart(1))
    world.add_node()  # empty: what it lacks, the other has
    world.nodes[1].replica.batches.begin("rebuild")
    world.clock.advance(11.0)
    world.listen(1)
    world.work(1)

    world.settle()  # which counts the embeddings
    assert sum(map(len, world.made.values())) == 1


def test_a_holder_does_not_take_a_slow_step_of_its_own_for_the_silence_of_the_others(monkeypatch):
    world = World(1)
    world.run(5.0)
    world.update(0, world.chart(1))
    world.run(11.0)  # its claim has ended
    world.add_node()  # empty: what it lacks, the other has
    batch = world.nodes[1].replica.batches.begin("rebuild")
    ask = batch.inquiry.step

    def ask_late(*arguments):
        world.clock.advance(4.0)
        return ask(*arguments)

    monkeypatch.setattr(batch.inquiry, "step", ask_late)
    world.turn()
    world.turn()

    world.settle()  # which counts the embeddings
    assert sum(map(len, world.made.values())) == 1


def test_a_reader_that_lags_behind_does_not_embed_what_is_on_its_way_to_it():
    count = 100
    world = World(2, Policy(batch_timeout=60, adopt_after=5, chunk_size=1))
    world.run(5.0)
    for chart_id in range(count):
        world.charts.save(world.chart(chart_id))
    batch = world.nodes[0].replica.batches.begin("rebuild")
    while not batch.finished.is_set():
        world.listen(0)
        world.work(0)
        if not batch.tally.embedded:  # the reader answers, and from then on the batch is too fast for it
            world.listen(1)
    while world.carriers[1].arrived:
        world.listen(0)
        world.listen(1)
        world.work(1)
        world.clock.advance(0.2)

    world.settle()
    assert sum(map(len, world.made.values())) == count
