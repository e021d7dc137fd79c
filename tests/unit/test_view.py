"""What one node knows of the cluster: it is changed in one place, under one lock, and calls nobody."""

from __future__ import annotations

import sys
import threading
from math import inf
from pathlib import Path

import pytest

from copilotlab.protocol import view as view_module
from copilotlab.protocol.view import ANYBODY, Flags, View

THREADS = 8
ROUNDS = 1_000
LIMIT = 30.0  # seconds for what is certain to come


@pytest.fixture
def view():
    return View(100.0, 3.0)


def test_at_first_nothing_is_known_and_nothing_is_suspect(view):
    assert view.flags == Flags(None, False, 0)
    assert view.accepted == ("", 0)
    assert view.awaited_revision == 0
    assert view.suspects() == []
    assert (view.away, view.knew_all, view.back_since) == (False, True, 100.0)
    assert repr(view) == "View(Flags(batch_holder=None, owed=False, epoch=0), batch ('', 0), 0 suspects)"


def test_what_redis_said_last_holds(view):
    view.saw(Flags("a", True, 3))
    view.saw(Flags("b", False, 4))
    assert view.flags == Flags("b", False, 4)


def test_a_batch_that_begins_has_a_holder_and_leaves_the_rest_as_it_is(view):
    view.saw(Flags(None, True, 3))
    view.batch_began("a")
    assert view.flags == Flags("a", True, 3)


@pytest.mark.parametrize(
    ("was_owed", "still_owed", "owed"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_a_batch_that_ends_has_no_holder_and_makes_no_debt(view, was_owed, still_owed, owed):
    view.saw(Flags("a", was_owed, 3))
    view.batch_ended(owed=still_owed, up_to=None)
    assert view.flags == Flags(None, owed, 3)


@pytest.mark.parametrize(("up_to", "left"), [(None, 7), (6, 7), (7, 0), (8, 0)])
def test_what_was_left_to_a_batch_is_awaited_until_one_brings_it(view, up_to, left):
    view.await_revision(7)
    view.await_revision(5)
    view.batch_ended(owed=False, up_to=up_to)
    assert view.awaited_revision == left


def test_one_batch_at_a_time_is_accepted_and_no_earlier_one(view):
    assert view.would_accept(0), "where leases have no epoch, each is later"
    assert view.accept("first", 4)
    assert view.accepts("first", 4)
    assert not view.accepts("first", 5)
    assert not view.accepts("other", 4)
    assert [view.would_accept(epoch) for epoch in (0, 3, 4, 5)] == [False, False, False, True]
    assert view.accept("second", 5)
    assert not view.accept("late", 4), "who asked Redis for so long that another was accepted"
    assert view.accepted == ("second", 5)


def test_suspects_are_named_in_order_each_once_until_they_are_cleared(view):
    for source in ("b", "a", "b", ANYBODY):
        view.suspect(source)
    assert view.suspects() == ["b", "a", ANYBODY]
    view.clear("b")
    view.clear("b")
    view.suspects().clear()
    assert view.suspects() == ["a", ANYBODY]


def test_a_lost_connection_is_news_once_and_it_is_kept_whether_all_were_known(view):
    assert view.lost(102.9)
    assert (view.away, view.knew_all) == (True, False), "three seconds had not passed"
    assert not view.lost(200.0)
    assert not view.knew_all
    view.back(110.0, suspect_all=False)
    assert (view.away, view.back_since, view.suspects()) == (False, 110.0, [])
    assert view.lost(113.0)
    assert view.knew_all
    view.back(120.0, suspect_all=True)
    assert view.suspects() == [ANYBODY]


def test_who_has_waited_has_heard_the_others_for_long_enough(view):
    assert not view.has_waited(102.9)
    assert view.has_waited(103.0)
    view.back(110.0, suspect_all=False)
    assert not view.has_waited(112.9)
    assert view.has_waited(113.0)


def test_a_sleep_is_noticed_by_the_next_step_of_listening_and_once(view):
    assert view.listened(103.0) == 0.0
    assert not view.slept(106.0)
    assert view.slept(106.1)
    assert view.suspects() == []
    assert view.listened(113.0) == 10.0
    assert not view.slept(113.0)
    assert (view.back_since, view.suspects()) == (113.0, [ANYBODY])
    assert not view.has_waited(115.9)
    assert view.listened(113.5) == 0.0


def test_where_no_heartbeats_are_heard_nobody_has_slept_or_waited():
    view = View(0.0, inf)
    assert not view.slept(1e9)
    assert view.listened(1e9) == 0.0
    assert not view.has_waited(2e9)
    assert view.suspects() == []


def test_no_method_calls_out(view):
    """Whoever holds the lock waits for nobody: neither a clock, nor Redis, nor a listener."""
    home = {view_module.__file__, "collections/__init__.py", "<string>"}  # of NamedTuple
    foreign = []

    def note(frame, kind, callee):
        code = frame.f_code
        if kind == "call" and not any(code.co_filename.endswith(name) for name in home):
            foreign.append(f"{code.co_filename}:{code.co_name}")
        if (
            kind == "c_call"
            and code.co_filename == view_module.__file__
            and callee.__module__ not in (None, "builtins")
        ):
            foreign.append(f"{callee.__module__}.{callee.__name__}")

    calls = {
        "saw": lambda: view.saw(Flags("a", True, 3)),
        "batch_began": lambda: view.batch_began("a"),
        "batch_ended": lambda: view.batch_ended(owed=True, up_to=3),
        "await_revision": lambda: view.await_revision(3),
        "accept": lambda: view.accept("a", 3),
        "accepts": lambda: view.accepts("a", 3),
        "would_accept": lambda: view.would_accept(3),
        "is_quiet": lambda: view.is_quiet(3.0),
        "suspect": lambda: view.suspect("a"),
        "suspects": view.suspects,
        "clear": lambda: view.clear("a"),
        "lost": lambda: view.lost(100.0),
        "back": lambda: view.back(100.0, suspect_all=True),
        "has_waited": lambda: view.has_waited(100.0),
        "slept": lambda: view.slept(100.0),
        "listened": lambda: view.listened(200.0),
    }
    methods = {
        name for name, value in vars(View).items() if not name.startswith("_") and not isinstance(value, property)
    }
    assert set(calls) == methods, "each is watched"
    here = str(Path(__file__))
    home.add(here)
    sys.setprofile(note)
    try:
        for call in calls.values():
            call()
    finally:
        sys.setprofile(None)
    assert foreign == []


def hammer(*jobs):
    """Run each job in several threads at once, again and again; what any of them raised."""
    barrier = threading.Barrier(len(jobs) * THREADS)
    raised = []

    def run(job, number):
        try:
            barrier.wait(LIMIT)
            for turn in range(ROUNDS):
                job(number * ROUNDS + turn)
        except BaseException as error:  # noqa: BLE001 - it is told to the test
            raised.append(error)

    threads = [
        threading.Thread(target=run, args=(job, number), daemon=True) for job in jobs for number in range(THREADS)
    ]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
    finally:
        sys.setswitchinterval(interval)
    assert not any(thread.is_alive() for thread in threads)
    assert raised == []


def test_what_redis_says_and_what_nodes_say_of_their_batches_do_not_undo_each_other(view):
    """What Redis has told last stands, whatever is heard of batches meanwhile: those never go back behind it."""
    lost = []
    teller = threading.Lock()

    def see(_):
        with teller:  # one after another, so that each knows what is to be there
            epoch = view.flags.epoch + 1
            view.saw(Flags("seen", True, epoch))
            flags = view.flags
            if flags.epoch != epoch or not flags.owed:
                lost.append((epoch, flags))

    hammer(see, lambda _: view.batch_began("told"), lambda _: view.batch_ended(owed=True, up_to=None))
    assert lost == []
    assert view.flags.epoch == THREADS * ROUNDS


def test_of_many_that_await_a_revision_the_latest_is_awaited_and_an_earlier_batch_ends_none_of_it(view):
    lost = []

    def wait_for(turn):
        view.await_revision(turn + 1)
        if view.awaited_revision < turn + 1:
            lost.append(turn)

    hammer(wait_for, lambda _: view.batch_ended(owed=False, up_to=0))
    assert lost == []
    last = THREADS * ROUNDS
    view.batch_ended(owed=False, up_to=last - 1)
    assert view.awaited_revision == last
    view.batch_ended(owed=False, up_to=last)
    assert view.awaited_revision == 0


def test_no_suspect_is_lost_while_others_are_cleared_and_looked_at(view):
    view.suspect("always")

    def suspect_and_clear(turn):
        view.suspect(f"once {turn}")
        view.clear(f"once {turn}")

    hammer(lambda turn: view.suspect(f"kept {turn % 50}"), suspect_and_clear, lambda _: view.suspects())
    assert set(view.suspects()) == {"always", *(f"kept {number}" for number in range(50))}
    assert view.suspects()[0] == "always"


def test_the_highest_epoch_stays_accepted_whoever_comes_last(view):
    lost = []

    def accept(turn):
        view.accept(f"batch {turn}", turn)
        if view.accepted[1] < turn:
            lost.append(turn)

    hammer(accept)
    assert lost == []
    last = THREADS * ROUNDS - 1
    assert view.accepted == (f"batch {last}", last)


def test_of_many_who_see_a_connection_go_one_sees_it_first():
    views = [View(100.0, 3.0) for _ in range(ROUNDS)]
    first = []
    hammer(lambda turn: views[turn % ROUNDS].lost(200.0) and first.append(1))
    assert len(first) == ROUNDS


def test_a_batch_that_is_over_in_redis_is_over_here_once_all_that_it_said_was_heard():
    view = View(0.0, grace=3.0)
    assert view.is_quiet(heard_to=0.0)
    view.saw(Flags("a", False, 1), 1.0)
    assert not view.is_quiet(heard_to=5.0)
    view.saw(Flags(None, False, 1), 2.0)
    assert [view.is_quiet(heard_to) for heard_to in (1.9, 2.0)] == [False, True]
    view.saw(Flags(None, False, 1), 3.0)
    assert view.is_quiet(heard_to=2.0), "that was known"


def test_a_batch_whose_end_was_heard_has_said_nothing_more():
    view = View(0.0, grace=3.0)
    view.batch_began("a")
    view.batch_ended(owed=False, up_to=7)
    view.saw(Flags(None, False, 1), 9.0)
    assert view.is_quiet(heard_to=1.0)
