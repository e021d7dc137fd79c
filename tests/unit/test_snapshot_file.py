"""A restart begins with what the node held before: nothing is embedded again, and nothing wrong is taken in."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import pytest

from copilotlab import Chart, ChartRepository, Node, Policy, load_embedder
from copilotlab.clock import ManualClock
from copilotlab.embedding.hashing import HashEmbedder
from copilotlab.lab.simulated_redis import SimulatedRedis
from copilotlab.store import FileRefused, Record, VectorStore

DIM = 24


@pytest.fixture
def path(tmp_path):
    return tmp_path / "node.vectors"


@pytest.fixture
def charts():
    repository = ChartRepository()
    repository.save_many(Chart(chart_id=i, title=f"Revenue {i}") for i in range(1, 31))
    return repository


class Counting(HashEmbedder):
    """Counts the texts that it is given."""

    texts = 0

    def _encode(self, batch):
        self.texts += len(batch)
        return super()._encode(batch)


def filled(count=40, dim=DIM):
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((count, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    store = VectorStore(dim)
    store.put_many(Record.of(i, i + 1, bytes(15) + bytes([i % 256]), vectors[i]) for i in range(count))
    return store, vectors


# --- the file ---------------------------------------------------------------------------------------------------------


def test_a_store_that_is_filled_from_a_file_is_the_store_that_was_saved(path):
    store, vectors = filled()
    store.remove(3, revision=100)
    assert store.save(path, model="m", catalogue="c") == 39
    other = VectorStore(DIM)
    assert other.restore(path, model="m", catalogue="c") == 39
    assert (other.digest, other.content, len(other)) == (store.digest, store.content, 39)
    assert 3 not in other
    for vector in vectors[:5]:
        before, after = store.search(vector), other.search(vector)
        assert before.chart_ids.tolist() == after.chart_ids.tolist()
        assert before.scores.tolist() == after.scores.tolist()
    assert other.put(Record.of(5, 200, bytes(16), vectors[9])), "it goes on like any store"
    assert other.remove(7, revision=300)
    assert len(other) == 38


def test_an_empty_store_and_a_large_one_travel_as_well(path):
    for count in (0, 9000):
        store, _ = filled(count, dim=3)
        store.save(path, model="m", catalogue="c")
        other = VectorStore(3)
        assert other.restore(path, model="m", catalogue="c") == count
        assert other.digest == store.digest


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"model": "another"}, "model"),
        ({"catalogue": "another"}, "catalogue"),
    ],
)
def test_what_is_of_another_model_or_catalogue_is_refused(path, asked, said):
    filled()[0].save(path, model="m", catalogue="c")
    with pytest.raises(FileRefused, match=f"{said} '[mc]', expected 'another'"):
        VectorStore(DIM).restore(path, **{"model": "m", "catalogue": "c", **asked})
    with pytest.raises(FileRefused, match="dimension 24, expected 7"):
        VectorStore(7).restore(path, model="m", catalogue="c")


def test_a_file_with_any_byte_changed_or_cut_off_anywhere_is_refused_and_the_store_stays_empty(path):
    filled(5)[0].save(path, model="m", catalogue="c")
    whole = path.read_bytes()
    store = VectorStore(DIM)
    for place in range(0, len(whole), 7):
        for damaged in (whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :], whole[:place]):
            path.write_bytes(damaged)
            with pytest.raises(FileRefused):
                store.restore(path, model="m", catalogue="c")
    path.write_bytes(whole + b"x")
    with pytest.raises(FileRefused, match="cut off or added to"):
        store.restore(path, model="m", catalogue="c")
    assert (len(store), store.version) == (0, 0)


def test_what_cannot_be_written_leaves_the_file_as_it_was(path, monkeypatch):
    filled(5)[0].save(path, model="m", catalogue="c")
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        filled(9)[0].save(path, model="m", catalogue="c")
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_only_a_new_store_is_filled(path):
    store, _ = filled(5)
    store.save(path, model="m", catalogue="c")
    with pytest.raises(ValueError, match="only a store that is new"):
        store.restore(path, model="m", catalogue="c")


# --- the node ---------------------------------------------------------------------------------------------------------


def a_node(charts, path, embedder=None, **options):
    clock = ManualClock()
    redis = SimulatedRedis(clock).carrier()
    return Node(charts, embedder or Counting(dim=DIM), redis, node_id="n", clock=clock, snapshot=path, **options)


def drive(node, steps=40):
    for _ in range(steps):
        node.clock.advance(0.5)
        node.listen()
        while node.work():
            pass


def test_after_a_restart_nothing_is_embedded_again_but_what_has_changed(charts, path):
    node = a_node(charts, path)
    node.connect()
    drive(node)
    assert node.complete or len(node.store) == 30
    digest = node.store.digest
    assert node.embedder.texts == 30
    node.stop()

    again = a_node(charts, path)
    assert len(again.store) == 30, "it answers before it has met anybody"
    assert again.search("Revenue 7", k=1)["chart_id"].to_list() == [7]
    charts.save(Chart(chart_id=31, title="Profit"))
    charts.delete(4)
    again.embedder.texts = 0  # the question
    again.connect()
    drive(again)
    assert (again.embedder.texts, len(again.store), 4 in again.store) == (1, 30, False)
    assert again.store.digest != digest
    assert "charts" in again.status()["snapshot"]
    again.stop()


def test_the_file_is_written_in_the_background_a_minute_after_a_change(charts, path):
    node = a_node(charts, path)
    node.connect()
    drive(node)
    assert not path.exists()
    drive(node, steps=200)
    until = time.monotonic() + 30
    while not node.context.metrics["snapshots"]:
        assert time.monotonic() < until
        time.sleep(0.01)
    written = path.stat().st_mtime_ns
    drive(node, steps=200)
    node.stop()
    assert path.stat().st_mtime_ns == written, "nothing has changed since"


def test_a_file_of_another_model_or_damaged_is_left_aside_and_said(charts, path, caplog):
    path.write_bytes(b"not a file of vectors")
    with caplog.at_level("WARNING", logger="copilotlab.node"):
        node = a_node(charts, path)
    assert "snapshot_left_aside" in [entry.event for entry in node.journal.entries()]
    assert "left aside" in node.status()["snapshot"]
    assert [record for record in caplog.records if "format" in record.getMessage()]
    node.connect()
    drive(node)
    node.stop()
    other = a_node(charts, path, load_embedder("wordllama"))
    assert len(other.store) == 0
    assert "left aside" in other.status()["snapshot"]
    other.stop()


def test_two_nodes_do_not_keep_their_vectors_in_one_file(charts, path):
    node = a_node(charts, path)
    with pytest.raises(RuntimeError, match="give each node a file of its own"):
        a_node(charts, path)
    node.stop()
    a_node(charts, path).stop()


def test_a_node_that_could_not_be_made_leaves_the_file_to_the_next(charts, path):
    with pytest.raises(ValueError, match="redis") as held:  # as a notebook keeps the last error, and its frames
        Node(charts, Counting(dim=DIM), "no url", snapshot=path)
    a_node(charts, path).stop()
    assert held.value is not None


def test_a_writing_that_outlasts_the_stop_leaves_the_file_when_it_has_ended(charts, path, monkeypatch):
    node = a_node(charts, path)
    node.connect()
    drive(node)
    may_go_on = threading.Event()
    monkeypatch.setattr(os, "fsync", lambda _: may_go_on.wait(30))
    node.stop(timeout=0.2)
    with pytest.raises(RuntimeError, match="give each node a file of its own"):
        a_node(charts, path)
    may_go_on.set()
    until = time.monotonic() + 30
    while not node.context.metrics["snapshots"] or any(
        each.name.startswith("copilotlab-snapshot") for each in threading.enumerate()
    ):
        assert time.monotonic() < until
        time.sleep(0.01)
    other = a_node(charts, path)
    assert len(other.store) == 30
    other.stop()


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (7, TypeError),
        ("/no/such/folder/node.vectors", ValueError),
        (".", ValueError),
    ],
)
def test_what_is_no_file_is_refused_before_anything_is_opened(charts, given, error):
    with pytest.raises(error, match="snapshot="):
        a_node(charts, given)


def test_a_policy_that_never_looks_at_the_repository_keeps_no_file(charts, path):
    with pytest.raises(ValueError, match="reconciles"):
        a_node(charts, path, policy=Policy.seed())
