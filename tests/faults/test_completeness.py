"""Whoever asks can see whether a node holds all that there is."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest
from trial import wait_until

from copilotlab import Chart, ChartRepository, Lab, LocalRedis, Node, Policy, load_embedder
from copilotlab.answer import Answer, NodeIncomplete
from copilotlab.lab import NotConverged
from copilotlab.lab.fragile_model import FragileModel
from copilotlab.lab.fragile_repository import FragileRepository

LIMIT = 60.0
HASH = load_embedder("hash")
QUESTION = "revenue by region"


@pytest.fixture
def server():
    with LocalRedis() as server:
        yield server


def some(count: int) -> list[Chart]:
    return [Chart(chart_id=i, title=f"Revenue {i} by region") for i in range(count)]


def full(count: int = 12) -> ChartRepository:
    charts = ChartRepository()
    charts.save_many(some(count))
    return charts


class Gated(FragileModel):
    """A model that stands still in a batch until it is let on; single queries pass."""

    def __init__(self) -> None:
        super().__init__(HASH)
        self.reached, self.open = threading.Event(), threading.Event()

    def _encode(self, batch):
        if len(batch) > 1:
            self.reached.set()
            assert self.open.wait(LIMIT)
        return super()._encode(batch)


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "incomplete" in record.getMessage()]


def test_a_node_that_has_read_nothing_says_so_once_in_the_log_and_in_every_answer(server: LocalRedis, caplog):
    node = Node(full(), HASH, redis=server.url, node_id="a")
    with caplog.at_level(logging.WARNING, "copilotlab.node"):
        answers = [node.search(QUESTION), node.search_many([QUESTION, "cost"]), node.search(QUESTION)]
    assert [answer.complete for answer in answers] == [False] * 3
    assert [answer.height for answer in answers] == [0] * 3
    (said,) = warned(caplog)
    assert "from 0 charts: this node has not read the repository yet" in said
    for shown in (str(answers[0]), repr(answers[0]), answers[0]._repr_html_()):
        assert "incomplete" in shown
        assert "0 charts: this node has not read the repository yet" in shown
    status = node.status()
    assert (status["complete"], status["charts"], status["expected"]) == (False, 0, None)
    with pytest.raises(NodeIncomplete, match=r"node 'a' holds 0 charts: .*; start\(\) it"):
        node.search(QUESTION, require_complete=True)
    with pytest.raises(NodeIncomplete, match="0 charts"):
        node.search_many([QUESTION], require_complete=True)
    node.stop()


def test_a_node_that_is_filled_and_runs_is_complete_and_says_out_of_how_many(server: LocalRedis, caplog):
    with caplog.at_level(logging.WARNING, "copilotlab.node"), Node(full(), HASH, redis=server.url) as node:
        result = node.rebuild()
        assert (result.missing, result.reason) == (0, "")
        answer = node.search(QUESTION, require_complete=True)
        assert answer.complete
        assert node.complete
        assert (answer.completeness.held, answer.completeness.expected) == (12, 12)
        assert "incomplete" not in str(answer)
        assert "from <bdi>12 of 12 charts</bdi>" in answer._repr_html_()
        assert node.search_many([QUESTION, "cost"], require_complete=True).height == 20
        status = node.status()
        assert (status["complete"], status["incomplete"], status["expected"]) == (True, "", 12)
    assert warned(caplog) == []


def test_a_frame_made_of_an_answer_is_a_frame_that_says_nothing_of_completeness(server: LocalRedis):
    node = Node(full(), HASH, redis=server.url)
    answer = node.search(QUESTION)
    assert isinstance(answer, Answer)
    for derived in (answer.filter(True), answer.head(2), answer.select("rank"), answer.clone()):
        assert "incomplete" not in str(derived)
        assert getattr(derived, "complete", None) is None
    node.stop()


def test_a_fill_that_was_interrupted_says_how_many_charts_it_lacks(server: LocalRedis):
    model = Gated()
    charts = full(200)
    with Node(charts, model, redis=server.url, node_id="a", policy=Policy(adopt_after=LIMIT)) as node:
        filling = threading.Thread(target=node.rebuild)
        filling.start()
        assert model.reached.wait(LIMIT)
        answer = node.search(QUESTION)
        assert answer.complete is False
        assert "0 of 200 charts: 200 of them are still to come" in str(answer)
        with pytest.raises(NodeIncomplete, match=r"0 of 200 charts.*wait_complete\(\)"):
            node.search(QUESTION, require_complete=True)
        node.replica.batches.cancel()
        model.open.set()
        filling.join(LIMIT)
    result = node.rebuild()
    assert result.outcome == "cancelled"
    assert result.missing == 200 - len(node.store) > 0
    assert result.reason == f"{result.missing} charts are still to come: the batch was cancelled"


def test_a_node_that_was_stopped_is_no_longer_complete(server: LocalRedis):
    with Node(full(), HASH, redis=server.url) as node:
        node.rebuild()
        assert node.complete
    assert node.search(QUESTION).completeness.reason == "stopped, so it hears of no changes"


def test_a_node_whose_repository_does_not_answer_cannot_know_that_it_is_complete(server: LocalRedis):
    charts = FragileRepository()
    charts.save_many(some(12))
    with Node(charts, HASH, redis=server.url, policy=Policy(heartbeat_interval=0.1)) as node:
        node.rebuild()
        node.wait_complete(LIMIT)  # its first look may still be going through what the batch has brought
        charts.gate.fail()
        wait_until(lambda: not node.complete, "it notices")
        assert "the repository does not answer" in node.search(QUESTION).completeness.reason
        charts.gate.mend()
        wait_until(lambda: node.complete, "it is back")


def test_a_rebuild_returns_when_the_batch_of_another_node_has_filled_this_one(server: LocalRedis):
    model, charts = Gated(), full(100)
    with (
        Node(charts, model, redis=server.url, node_id="a") as a,
        Node(charts, HASH, redis=server.url, node_id="b") as b,
    ):
        results = []
        first = threading.Thread(target=a.rebuild)
        first.start()
        assert model.reached.wait(LIMIT)
        second = threading.Thread(target=lambda: results.append(b.rebuild()))
        second.start()
        second.join(0.3)
        assert second.is_alive(), "it waits for the other node's batch"
        model.open.set()
        first.join(LIMIT)
        second.join(LIMIT)
        (result,) = results
        assert (result.missing, result.reason, len(b.store)) == (0, "", 100)
        assert b.complete


def test_a_rebuild_names_the_charts_that_are_left_out(server: LocalRedis):
    charts = FragileRepository()
    charts.save_many(some(5))
    charts.spoil()
    with Node(charts, HASH, redis=server.url) as node:
        result = node.rebuild()
    assert (result.missing, result.reason) == (1, "1 charts are left out, see skipped()")


# --- the lab ----------------------------------------------------------------------------------------------------------


def test_a_lab_does_not_say_that_nodes_agree_which_are_not_heard_or_differ_from_the_repository():
    with Lab(nodes=2, model="hash", charts=full()) as lab:
        lab.wait_converged(LIMIT)
        assert "they agree" in repr(lab)
        assert "both nodes agree" in lab._repr_html_()
        lab.charts.save(Chart(chart_id=99, title="Saved past the nodes"))
        for shown in (repr(lab), lab._repr_html_()):
            assert "agree" not in shown, "at once, before any node has looked"
        lab.wait_converged(LIMIT)
        lab.redis.kill()
        wait_until(lambda: all(node.status()["redis"] == "away" for node in lab.nodes), "the nodes notice", LIMIT)
        with pytest.raises(NotConverged, match="node-0 is not connected"):
            lab.wait_converged(1.0)
        for shown in (repr(lab), lab._repr_html_()):
            assert "agree" not in shown


def test_the_time_to_convergence_counts_from_the_last_change_and_is_nothing_where_there_was_none():
    with Lab(nodes=2, model="hash", charts=full()) as lab:
        lab.wait_converged(LIMIT)
        assert lab.wait_converged(LIMIT) == 0.0
        lab.partition(1)
        changed = lab._changed.at
        lab.nodes[0].update_chart(Chart(chart_id=50, title="New"))
        assert lab._changed.at > changed, "an edit on a node is a change"
        changed = lab._changed.at
        threading.Timer(0.5, lab.heal, [1]).start()
        seconds = lab.wait_converged(LIMIT)
        healed = lab._changed.at
        assert healed > changed + 0.4
        assert seconds < LIMIT
        assert any(event == "heal" for event in lab.timeline()["event"])


def test_a_search_that_is_awaited_leaves_the_event_loop_free():
    model = FragileModel(HASH)
    asked, answered = threading.Event(), threading.Event()

    def encode(batch):
        asked.set()
        assert answered.wait(LIMIT)
        return HASH.embed(batch)

    model._encode_query = encode
    node = Node(full(), model)

    async def both():
        search = asyncio.create_task(node.asearch(QUESTION, k=3, chart_ids=[1]))
        while not asked.is_set():
            await asyncio.sleep(0.01)
        assert not search.done()
        answered.set()
        return await search

    assert isinstance(asyncio.run(asyncio.wait_for(both(), LIMIT)), Answer)
    node.close()
