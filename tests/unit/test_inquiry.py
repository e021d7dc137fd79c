"""Who is asked before a batch embeds, for how long, and when that is over."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from copilotlab import Policy
from copilotlab.clock import ManualClock
from copilotlab.protocol import events
from copilotlab.protocol.carrier import CarrierAway
from copilotlab.protocol.inquiry import LONGEST_SILENCE, Inquiry
from copilotlab.protocol.peers import Peers
from copilotlab.protocol.view import View

POLICY = Policy()
GRACE = POLICY.rejoin_grace
PATIENCE = 2 * POLICY.heartbeat_interval


class Room:
    """An inquiry among peers that a test lets speak; time moves by hand, and this node hears all at once."""

    def __init__(self, left_by=""):
        self.clock = ManualClock(1_000.0)
        self.context = SimpleNamespace(clock=self.clock, policy=POLICY)
        self.link = SimpleNamespace(connected=True, away_for=0.0, context=self.context)
        self.echoed = 1
        self.view = View(self.clock.now(), 3.0)
        self.peers = Peers(POLICY.heartbeat_interval)
        self.peer, self.taken, self.patience = "", 0, PATIENCE
        self.asked, self.given_up = [], 0
        self.lacking = [7, 8]
        self.inquiry = Inquiry("mine", self, self.view, self.peers, self, left_by=left_by)
        self.inquiry.begin()
        self.inquiry.announced(1)

    # As a coordinator does, and as transfers do.

    @property
    def heard_to(self):
        return self.clock.now()

    def ask(self, node_id, chart_ids):
        if not self.link.connected:
            raise CarrierAway("gone")
        self.asked.append((node_id, tuple(chart_ids)))
        self.peer = node_id
        return True

    def give_up(self):
        self.peer, self.given_up = "", self.given_up + 1

    # What happens.

    def says(self, *names, charts=5, batch="mine"):
        """Each of them beats."""
        for name in names:
            beat = events.Heartbeat("d" * 32, charts, 3, batch, False, 3, "0" * 32)
            self.peers.note(events.Envelope(name, "m", 1, 0, beat), self.clock.now())
            self.peers.note_heartbeat(name, beat, "e" * 32)

    def answers(self, records=1):
        """What was asked for has come."""
        self.taken += records
        self.peer = ""

    def step(self):
        return self.inquiry.step(lambda: list(self.lacking))

    def settle(self):
        """As a batch does once a step was over."""
        self.inquiry.answered = self.inquiry.has_asked = True


@pytest.fixture
def room():
    return Room()


def names(room):
    return [name for name, _ in room.asked]


def test_alone_nobody_is_asked(room):
    assert room.step()


def test_each_that_holds_something_is_asked_once_one_at_a_time_for_what_is_lacking_then(room):
    room.says("a", "b")
    room.says("empty", charts=0)
    assert not room.step()
    assert room.asked == [("a", (7, 8))]
    assert not room.step(), "it has not answered yet"
    room.answers()
    room.lacking = [8]
    assert not room.step()
    room.answers()
    assert room.step()
    assert room.asked == [("a", (7, 8)), ("b", (8,))]


def test_where_nothing_is_lacking_any_more_nobody_is_asked(room):
    room.says("a", "b")
    room.lacking = []
    steps = [room.step() for _ in range(3)]
    assert steps[-1]
    assert room.asked == []


def test_who_has_not_said_what_it_holds_is_not_asked(room):
    room.says("a")
    room.peers.went_silent(room.clock.now())
    room.peers.note(events.Envelope("a", "m", 1, 1, events.ChartDeleted(1, 1)), room.clock.now())
    assert room.peers.alive(room.clock.now())[0].charts == 5, "what it held before is no news"
    assert room.step()
    assert room.asked == []


def test_it_waits_for_its_own_word_to_come_back_as_long_as_the_grace(room):
    room.echoed = 0  # what was said before it is not all heard
    assert not room.step()
    room.clock.advance(GRACE - 0.01)
    assert not room.step()
    room.echoed = 1
    assert room.step()
    room.echoed = 0
    room.clock.advance(0.02)
    assert room.step(), "no longer than that"


def test_it_waits_for_whoever_listens_to_say_what_it_holds(room):
    room.inquiry.audience = 2
    room.says("a")
    room.says("b", batch="an earlier one")
    assert not room.step()
    assert room.asked == [], "first all are heard"
    room.says("b")
    assert not room.step()
    assert names(room) == ["a"]


def test_who_is_expected_back_after_an_outage_is_waited_for(room):
    room.says("a")
    room.peers.went_silent(room.clock.now())
    room.view.lost(room.clock.now() + 10)
    room.clock.advance(10.0)
    room.view.back(room.clock.now(), suspect_all=True)
    assert not room.step()
    room.clock.advance(GRACE)
    assert room.step()


def test_where_it_had_no_time_to_hear_of_all_before_the_outage_it_waits_for_whoever_there_may_be(room):
    room.clock.advance(1.0)
    room.view.lost(room.clock.now())
    room.view.back(room.clock.now(), suspect_all=True)
    assert not room.view.knew_all
    room.clock.advance(GRACE - 0.01)
    assert not room.step()
    room.clock.advance(0.02)
    assert room.step()


def test_who_left_its_lease_behind_is_waited_for_since_it_may_be_alive_and_is_asked_once_it_is_back():
    room = Room(left_by="a")
    room.says("b", charts=0)
    assert not room.step()
    room.clock.advance(GRACE - 0.01)
    assert not room.step()
    room.says("a")
    room.step()
    assert names(room) == ["a"]

    room = Room(left_by="a")
    room.clock.advance(GRACE)
    assert room.step(), "it is not coming back"


def test_without_redis_it_waits_for_it_and_not_for_ever(room):
    room.link.connected = False
    assert not room.step()
    room.link.away_for = GRACE
    assert room.step()
    room.link.away_for = 0.0
    room.settle()
    assert room.step(), "all were asked before"


def test_one_that_does_not_answer_is_given_up_where_another_is_left_to_ask(room):
    room.says("a")
    assert not room.step()
    room.clock.advance(PATIENCE)
    room.says("a")
    assert not room.step(), "there is nobody else"
    assert room.given_up == 0
    room.says("b")
    assert not room.step()
    assert (room.given_up, names(room)) == (1, ["a", "b"])


def test_all_together_have_so_long_however_many_come(room):
    for number in range(100):
        room.says(f"silent {number}")
        if room.step():
            break
        room.clock.advance(1.0)
    assert number == LONGEST_SILENCE * PATIENCE
    assert room.peer == ""


def test_as_long_as_something_comes_nobody_is_silent(room):
    for turn in range(60):
        room.says("a")
        assert not room.step()
        if turn % 5 == 4:
            room.taken += 1  # now and then: each time the patience begins anew
        room.clock.advance(1.0)
    assert room.given_up == 0


def test_all_are_asked_anew_for_what_was_left_to_others(room):
    room.says("a")
    room.step()
    room.answers()
    assert room.step()
    room.settle()
    room.inquiry.begin_anew()
    assert not room.step()
    assert names(room) == ["a", "a"]
    assert not room.inquiry.answered, "what comes is looked at before the next chunk"
    room.answers()
    assert room.step()


def test_the_silence_of_a_new_question_is_counted_from_that_question(room):
    room.says("a")
    room.step()
    room.answers()
    room.step()
    room.settle()
    room.clock.advance(LONGEST_SILENCE * PATIENCE)
    room.says("a")
    room.inquiry.begin_anew()
    assert not room.step()
    assert names(room) == ["a", "a"]


def test_who_comes_back_in_the_middle_is_asked_before_the_next_chunk(room):
    assert room.step()
    room.settle()
    room.says("late")
    assert not room.step()
    assert names(room) == ["late"]
    assert not room.inquiry.answered
    assert repr(room.inquiry) == "Inquiry(1 asked, under way)"


def test_who_was_being_asked_when_the_connection_went_is_asked_again(room):
    room.says("a")
    room.step()
    room.give_up()
    room.inquiry.forget()
    assert not room.step()
    assert names(room) == ["a", "a"]


def test_a_question_that_could_not_be_sent_is_sent_again(room):
    room.says("a")
    ask = room.ask

    def gone(*_):
        raise CarrierAway("gone")

    room.ask = gone
    assert not room.step()
    room.ask = ask
    assert not room.step()
    assert names(room) == ["a"]
