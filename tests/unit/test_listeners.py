"""What happens on a node is told to whoever listens, and no listener can do the node any harm."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
from collections.abc import Mapping

import msgspec
import pytest

from copilotlab import Policy
from copilotlab.clock import ManualClock
from copilotlab.lab.simulated_lab import SimulatedLab, simulated_chart
from copilotlab.monitoring import Happening, Journal, Listeners, Metrics, happenings
from copilotlab.monitoring.happenings import (
    BatchBegan,
    BatchEnded,
    BatchHeard,
    ConnectionBack,
    ConnectionLost,
    Deleted,
    DigestsDiffered,
    Dropped,
    Line,
    PageTurnedAway,
    Reconciling,
    Searched,
    StepFailed,
    TransferEnded,
    Updated,
)
from copilotlab.monitoring.journal import OFTEN
from copilotlab.store import Record

LIMIT = 30.0  # seconds for what is certain to come

WORDS = {str: "words", int: 3, float: 1.5, bool: True}

EXPECTED: dict[str, tuple[dict[str, int], str]] = {
    # its counters, by how much each grows with the fields of WORDS; what the journal calls it, "" where it says nothing
    "Started": ({}, "started"),
    "Stopped": ({}, "stopped"),
    "LeftBehind": ({}, "left_behind"),
    "StepFailed": ({"steps_failed": 1}, "step_failed"),
    "ThreadFailed": ({}, "thread_failed"),
    "SnapshotRestored": ({}, "snapshot_restored"),
    "SnapshotLeftAside": ({}, "snapshot_left_aside"),
    "SnapshotSaved": ({"snapshots": 1}, ""),
    "SnapshotFailed": ({"snapshots_failed": 1}, "snapshot_failed"),
    "Slept": ({"sleeps": 1}, "slept"),
    "ModelSwitched": ({}, "model_switched"),
    "ToggleSet": ({}, "toggle_set"),
    "ConnectionLost": ({"refusals": 1}, "redis_refused"),
    "ConnectionBack": ({}, "redis_back"),
    "MemoryLost": ({"memory_losses": 1}, "memory_lost"),
    "PageTurnedAway": ({"pages_refused": 1}, "pages_refused"),
    "Said": ({"published": 1, "bytes_published": 3}, ""),
    "NotSaid": ({"publish_failed": 1}, ""),
    "Heard": ({"received": 1}, ""),
    "Dropped": ({"dropped_words": 1}, "dropped_words"),
    "PageFetched": ({"bytes_fetched": 3}, ""),
    "Applied": ({"applied": 3}, ""),
    "Unlistened": ({"unlistened": 1}, ""),
    "GapSeen": ({"gaps": 1}, ""),
    "ChunkMissed": ({"chunks_missed": 1}, ""),
    "DigestsDiffered": ({"digests_differed": 1}, ""),
    "Reconciling": ({"reconciliations": 1}, "reconcile"),
    "TransferEnded": ({}, ""),
    "Updated": ({}, ""),
    "Deleted": ({}, ""),
    "Owed": ({"local": 1}, ""),
    "ClaimLeft": ({}, "claim_left"),
    "Embedded": ({"embeddings": 3, "truncated": 3}, ""),
    "EmbeddingWasted": ({"embeddings_wasted": 3}, ""),
    "BatchBegan": ({"batches_taken_over": 1}, "words_started"),
    "BatchFailed": ({}, "words_failed"),
    "BatchEnded": ({"batches": 1, "fenced": 0}, "words_ended"),
    "BatchHeard": ({}, "batch_heard"),
    "RepositoryAway": ({"repository_away": 1}, "repository_away"),
    "WentBack": ({"went_back": 1}, "went_back"),
    "AnotherCatalogue": ({"another_catalogue": 1}, "another_catalogue"),
    "ComparedAnew": ({"compared_anew": 1}, "compared_anew"),
    "EditsLeft": ({}, "edits_left"),
    "ChartSkipped": ({"skipped": 1}, "skipped_words"),
    "Searched": ({"searches": 3}, ""),
    "SearchedIncomplete": ({}, "incomplete"),
    "Ordered": ({}, "ordered_words"),
    "DetailsMissing": ({"details_missing": 3}, "details_missing"),
    "AlertRaised": ({"alerts": 1}, "alert_words"),
    "AlertEnded": ({}, "alert_words_ended"),
}

KINDS = [
    kind
    for kind in vars(happenings).values()
    if isinstance(kind, type) and issubclass(kind, Happening) and kind is not Happening
]


def made(kind):
    """One of that kind, its fields filled."""
    return kind(**{field.name: WORDS[field.type] for field in msgspec.structs.fields(kind)})


# --- happenings -------------------------------------------------------------------------------------------------------


def test_every_happening_is_known_here():
    assert {kind.__name__ for kind in KINDS} == set(EXPECTED)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_happening_is_counted_and_written_by_names_that_stay_and_cannot_be_changed(kind):
    happening = made(kind)
    counts, event = EXPECTED[kind.__name__]
    assert isinstance(happening.counts, Mapping)
    assert dict(happening.counts) == counts
    line = happening.line
    assert line is None or isinstance(line, Line)
    assert ("" if line is None else line.event) == event
    assert line is None or isinstance(logging.getLevelName(line.level), str)
    for name in kind.__struct_fields__:
        with pytest.raises(AttributeError):
            setattr(happening, name, None)
    assert hash(happening) == hash(made(kind)), "equal ones are one in a set"
    assert kind.__doc__ != Happening.__doc__, "each says what it is"


@pytest.mark.parametrize(
    ("happening", "counts"),
    [
        (ConnectionLost("gone", False), {"outages": 1}),
        (ConnectionLost("no EVALSHA", True), {"refusals": 1}),
        (Updated(7, 1, "deferred"), {"deferred": 1}),
        (Updated(7, 1, "published"), {}),
        (BatchBegan("rebuild", 3, False, False), {}),
        (BatchEnded("rebuild", "fenced", 1, 1, 0, 0.5), {"batches": 1, "fenced": 1}),
        (Dropped("copy", "another copy"), {"dropped_copy": 1}),
    ],
)
def test_what_is_counted_depends_on_what_happened(happening, counts):
    assert dict(happening.counts) == counts


@pytest.mark.parametrize(
    ("happening", "line"),
    [
        (ConnectionLost("gone", False), Line("redis_away", "gone", logging.WARNING)),
        (ConnectionBack(2.5), Line("redis_back", "after 2.50 s", logging.INFO)),
        (
            StepFailed("work: boom", 0.5, False),
            Line("step_failed", "work: boom; it is tried again after 0.5 s", logging.ERROR),
        ),
        (
            StepFailed("work: boom", 0.5, True),
            Line("step_failed", "work: boom; it is tried again after 0.5 s", logging.DEBUG),
        ),
        (PageTurnedAway("a page", 0), Line("page_refused", "a page; it has a second try")),
        (BatchBegan("sync", 0, True, False), Line("sync_started", "for this node only: Redis is away")),
        (BatchBegan("rebuild", 3, False, False), Line("rebuild_started", "epoch 3")),
        (BatchBegan("rebuild", 0, False, False), Line("rebuild_started", "")),
        (
            BatchEnded("rebuild", "published", 5, 3, 1, 2.0),
            Line("rebuild_ended", "published: 5 charts, 3 embedded, 1 removed", logging.INFO),
        ),
    ],
)
def test_what_the_journal_says_is_what_it_always_said(happening, line):
    assert happening.line == line


def test_a_warning_that_comes_again_is_whispered_and_kept(caplog):
    journal = Journal("a", ManualClock(5.0))
    with caplog.at_level(logging.DEBUG, "copilotlab.node"):
        for reason in ("first", "second"):
            journal(Dropped("copy", reason))
        journal(Dropped("forged", "first of its kind"))
        journal(Searched(1, 0.1))
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.DEBUG, logging.WARNING]
    assert [(entry.event, entry.detail) for entry in journal.entries()] == [
        ("dropped_copy", "first"),
        ("dropped_copy", "second"),
        ("dropped_forged", "first of its kind"),
    ]


def test_a_warning_that_comes_on_and_on_leaves_room_for_what_else_happens_and_is_told_again_later():
    clock = ManualClock(5.0)
    journal = Journal("a", clock)
    for number in range(500):
        journal(Dropped("foreign_model", f"number {number}"))
    journal(Dropped("copy", "of another kind"))
    assert len(journal) == OFTEN + 1
    clock.advance(61.0)
    journal(Dropped("foreign_model", "later"))
    assert journal.entries()[-1].detail == "later"


# --- listeners --------------------------------------------------------------------------------------------------------


class Raising:
    """A listener that raises on everything."""

    def __init__(self):
        self.told = 0

    def __call__(self, happening):
        self.told += 1
        raise ValueError(f"number {self.told}")


def test_all_are_told_in_the_order_in_which_they_were_added_past_one_that_raises(caplog):
    metrics, raising, heard = Metrics(), Raising(), []
    listeners = Listeners(raising, metrics)
    listeners.add(lambda happening: heard.append((happening, metrics["searches"])))
    for number in (1, 2, 3):
        listeners.tell(Searched(number, 0.1))

    assert heard == [(Searched(1, 0.1), 1), (Searched(2, 0.1), 3), (Searched(3, 0.1), 6)]
    assert raising.told == 3, "it goes on being called"
    assert [record.getMessage() for record in caplog.records] == [
        "listener Raising raised ValueError('number 1'); it goes on being called"
    ]
    assert caplog.records[0].exc_info is not None
    assert listeners.trouble == {"Raising": "listener Raising: ValueError('number 3')"}


def test_an_interrupt_in_a_listener_is_not_swallowed():
    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Listeners(interrupt).tell(Searched(1, 0.1))


@pytest.mark.parametrize("wrong", [None, "print", 5])
def test_what_cannot_be_called_is_refused_and_nothing_changes(wrong):
    node = SimulatedLab(1).nodes[0]
    node.search("revenue")  # that it is incomplete is told the first time
    heard = []
    node.listen_to(heard.append)
    with pytest.raises(TypeError, match=f"listener={wrong!r}: expected a function"):
        node.listen_to(wrong)
    node.search("revenue")
    assert [type(happening) for happening in heard] == [Searched]
    assert node.status()["trouble"] == ""


def test_the_trouble_of_a_listener_is_shown_in_the_status_of_its_node():
    node = SimulatedLab(1).nodes[0]
    node.search("revenue")
    node.listen_to(Raising())
    node.search("revenue")
    assert node.status()["trouble"] == "listener Raising: ValueError('number 1')"
    assert node.status()["state"] == "not started"


# --- a node -----------------------------------------------------------------------------------------------------------


class Heard(list):
    """What a node told."""

    def of(self, kind):
        return [happening for happening in self if isinstance(happening, kind)]


def listened(lab):
    heard = [Heard() for _ in lab.nodes]
    for node, told in zip(lab.nodes, heard, strict=True):
        node.listen_to(told.append)
    return heard


def test_a_listener_hears_changes_and_searches():
    lab = SimulatedLab(1)
    lab.run(5.0)
    (heard,) = listened(lab)
    node = lab.nodes[0]
    assert node.update_chart(simulated_chart(1)).outcome == "published"
    assert node.update_chart(simulated_chart(1)).outcome == "unchanged"
    node.delete_chart(1)
    node.search("revenue")
    node.search_many(["revenue", "costs"])

    assert heard.of(Updated) == [Updated(1, 1, "published"), Updated(1, 1, "unchanged")]
    assert heard.of(Deleted) == [Deleted(1, 2, "published")]
    assert [happening.queries for happening in heard.of(Searched)] == [1, 2]
    assert all(0 <= happening.seconds < LIMIT for happening in heard.of(Searched))


def test_a_listener_hears_the_connection_go_and_come_and_what_is_left_unsaid():
    lab = SimulatedLab(1)
    lab.run(5.0)
    (heard,) = listened(lab)
    lab.redis.stop()
    lab.run(1.0)
    assert lab.nodes[0].update_chart(simulated_chart(1)).outcome == "local"
    lab.redis.start()
    lab.run(5.0)

    (lost,), (back,) = heard.of(ConnectionLost), heard.of(ConnectionBack)
    assert not lost.refused
    assert back.seconds >= 1.0
    assert heard.index(lost) < heard.index(back)
    assert heard.of(Updated) == [Updated(1, 1, "local")]
    assert heard.of(happenings.Owed) == [happenings.Owed(1)]


def test_a_listener_hears_a_batch_of_its_node_and_of_another():
    lab = SimulatedLab(2)
    lab.charts.save(simulated_chart(1))
    heard = listened(lab)
    lab.nodes[0].replica.batches.begin("rebuild")
    lab.run(5.0)

    (began,), (ended,) = heard[0].of(BatchBegan), heard[0].of(BatchEnded)
    assert (began.kind, began.alone, began.taken_over) == ("rebuild", False, False)
    assert (ended.kind, ended.outcome, ended.charts, ended.embedded) == ("rebuild", "published", 1, 1)
    assert heard[0].index(began) < heard[0].index(ended)
    assert heard[1].of(BatchBegan) == []
    assert [told.source for told in heard[1].of(BatchHeard)] == ["n0", "n0"]


def test_a_batch_whose_holder_died_is_told_as_taken_over():
    lab = SimulatedLab(2)
    lab.charts.save(simulated_chart(1))
    heard = listened(lab)
    lab.nodes[0].replica.batches.begin("rebuild")
    lab.kill(0)
    lab.run(15.0)

    assert [told.taken_over for told in heard[1].of(BatchBegan)] == [True]
    assert lab.nodes[1].metrics()["batches_taken_over"] == 1


def test_a_listener_hears_digests_that_differ_and_the_transfer_that_mends_it():
    lab = SimulatedLab(2)
    lab.fill(3)
    lab.run(5.0)
    heard = listened(lab)
    store = lab.nodes[0].store
    held = store.get(2)
    store._publish(store._base(), dying=[store._base().row_of(2)])  # as by a fault that nobody has thought of
    lab.hang(0)  # it does not look at the repository meanwhile, which would tell it too
    lab.run(5.0)
    assert DigestsDiffered("n1") in heard[0]
    lab.mend(0)
    lab.run(5.0)

    assert Reconciling("n1") in heard[0]
    assert TransferEnded("n1", 1) in heard[0]
    assert heard[0].index(DigestsDiffered("n1")) < heard[0].index(TransferEnded("n1", 1))
    found = store.get(2)
    assert isinstance(found, Record)
    assert found.vector_hash == held.vector_hash


def scenario(listener=None):
    """Changes, a batch, an outage and a lost memory on two nodes; their stores and counters afterwards."""
    lab = SimulatedLab(2, Policy(chunk_size=2))
    if listener is not None:
        for node in lab.nodes:
            node.listen_to(listener)
    lab.charts.save_many([simulated_chart(number) for number in range(6)])
    lab.run(10.0)
    lab.nodes[0].update_chart(simulated_chart(1, "Costs"))
    lab.nodes[1].delete_chart(2)
    lab.run(2.0)
    lab.redis.stop()
    lab.run(2.0)
    lab.nodes[1].update_chart(simulated_chart(9))
    lab.redis.start(keep_data=False)
    lab.run(20.0)
    for node in lab.nodes:
        node.search("costs")
    lab.nodes[0].rebuild()
    lab.run(5.0)
    assert lab.agree()
    outcome = [(node.store.digest, len(node.store), node.metrics()) for node in lab.nodes]
    return outcome, lab.timeline().rows()


def test_a_listener_that_raises_on_everything_changes_nothing(monkeypatch):
    monkeypatch.setattr(logging.getLogger("copilotlab.node"), "disabled", True)
    raising = Raising()
    with_it, without_it = scenario(raising), scenario()
    assert raising.told > 100
    assert with_it == without_it


def forked(work):
    """What ``work()`` returns in a forked child, by JSON."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = json.dumps(work())
        except BaseException as error:  # noqa: BLE001 - nothing of the child may go on in the test
            answer = json.dumps({"error": repr(error)})
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    try:
        assert select.select([reading], [], [], LIMIT)[0], "the child has not answered"
        return json.loads(os.read(reading, 65536))
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reading)


def test_listeners_are_told_in_a_forked_child_too_of_what_happens_there():
    lab = SimulatedLab(1)
    node = lab.nodes[0]
    heard = Heard()
    node.search("revenue")
    node.listen_to(heard.append)
    node.listen_to(Raising())
    node.search("revenue")

    def work():
        before = len(heard)
        node.search("revenue")
        told = [type(happening).__name__ for happening in heard[before:]]
        return [told, node.node_id, node.context.metrics["searches"], node.status()["trouble"]]

    told, name, searches, trouble = forked(work)
    assert told == ["SearchedIncomplete", "Searched"], "it is told anew that it is incomplete"
    assert name.startswith("n0-"), "it is another node"
    assert searches == 1, "with counters of its own"
    assert trouble == "listener Raising: ValueError('number 3')"
    assert [type(happening) for happening in heard] == [Searched], "the parent hears nothing of the child"
    assert node.context.metrics["searches"] == 2
