"""A fault that has ended is over: nothing of it reaches what comes next, and the next one survives what is still on."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import pytest
import redis
from trial import wait_until

from copilotlab.lab import FAULTS, LocalRedis
from copilotlab.lab.server import ServerError

STORM = FAULTS["client kill storm"]
ENDED = [name for name, fault in FAULTS.items() if fault.scope == "server" and not fault.passes]


@dataclass
class ServerAlone:
    """As much of a lab as a fault of the server needs."""

    redis: LocalRedis
    proxies: tuple = ()
    closed: bool = False
    embedder: None = None
    charts: None = None


@pytest.fixture(autouse=True)
def relentless(monkeypatch):
    """A round follows at once on the last: so many an end comes in the middle of one."""
    monkeypatch.setattr("copilotlab.lab.faults.STORM_PAUSE", 0.002)


@pytest.fixture
def lab():
    with LocalRedis() as server:
        yield ServerAlone(server)


def storms():
    return [thread for thread in threading.enumerate() if thread.name == "copilotlab-storm"]


def test_a_storm_that_has_ended_kills_nobody(lab):
    for ended_at in range(200):
        STORM.start(lab, 0)
        time.sleep(0.0001 * (ended_at % 40))  # in another moment of a round each time; nothing is awaited
        STORM.end(lab, 0)
        with lab.redis.client() as client:
            for _ in range(5):
                client.ping()
    assert storms() == []


def test_a_storm_ends_while_it_strikes(lab, monkeypatch):
    """Its thread is held in the middle of a round: whoever ends it waits, and the round is not finished later."""
    striking, go_on = threading.Event(), threading.Event()
    real = LocalRedis.client

    def client(server, **options):
        if threading.current_thread().name == "copilotlab-storm":
            striking.set()
            go_on.wait(10)
        return real(server, **options)

    monkeypatch.setattr(LocalRedis, "client", client)
    STORM.start(lab, 0)
    assert striking.wait(10)
    ending = threading.Thread(target=STORM.end, args=(lab, 0))
    ending.start()
    with real(lab.redis) as bystander:
        bystander.ping()
        go_on.set()
        ending.join(10)
        assert storms() == []
        bystander.ping()  # on the same connection: it tries once


def test_a_storm_that_is_begun_twice_is_one_and_ends_with_one_end(lab):
    STORM.start(lab, 0)
    STORM.start(lab, 0)
    assert len(storms()) == 1
    STORM.end(lab, 0)
    assert storms() == []
    STORM.end(lab, 0)


def test_a_storm_on_a_server_that_does_not_answer_ends_within_its_bound(lab):
    STORM.start(lab, 0)
    lab.redis.pause()
    try:
        began = time.monotonic()
        STORM.end(lab, 0)
        assert time.monotonic() - began < 30
        assert storms() == []
    finally:
        lab.redis.resume()
    # What it had said to the server while that stood still is done by the time that anybody else is answered.
    wait_until(lab.redis.ping, "the server answers")
    with lab.redis.client() as client:
        for _ in range(100):
            client.ping()


@pytest.mark.parametrize("name", [name for name in ENDED if name not in ("client kill storm", "server frozen")])
def test_a_command_of_the_lab_that_meets_a_storm_tries_again(lab, name):
    for _ in range(5):
        STORM.start(lab, 0)
        try:
            FAULTS[name].start(lab, 0)
        finally:
            FAULTS[name].end(lab, 0)
            STORM.end(lab, 0)
        assert lab.redis.ping()
        assert lab.redis.password is None


def test_a_server_that_is_stopped_in_a_storm_keeps_its_data(lab):
    with lab.redis.client() as client:
        client.set("kept", "1")
    STORM.start(lab, 0)
    try:
        for _ in range(10):
            lab.redis.stop()
            lab.redis.start()
    finally:
        STORM.end(lab, 0)
    with lab.redis.client() as client:
        assert client.get("kept") == b"1"


def test_a_command_of_the_lab_waits_for_a_server_that_comes_back(lab):
    lab.redis.stop()
    back = threading.Timer(0.3, lab.redis.start)
    back.start()
    FAULTS["memory lost"].start(lab, 0)
    back.join()


def test_a_command_of_the_lab_gives_up_within_its_bound(lab):
    lab.redis.stop()
    tried = []
    with pytest.raises(redis.ConnectionError):
        lab.redis.command(lambda client: (tried.append(1), client.ping()), patience=0.2)
    assert len(tried) > 1


def test_a_command_that_the_server_refuses_is_not_tried_again(lab):
    asked = []

    def refused(client):
        asked.append(1)
        client.execute_command("NO SUCH COMMAND")

    with pytest.raises(redis.ResponseError):
        lab.redis.command(refused)
    assert len(asked) == 1


@pytest.mark.parametrize("name", ENDED)
def test_a_fault_of_the_server_can_be_ended_twice_and_before_it_began(lab, name):
    FAULTS[name].end(lab, 0)
    FAULTS[name].start(lab, 0)
    FAULTS[name].end(lab, 0)
    FAULTS[name].end(lab, 0)
    assert lab.redis.ping()


def test_a_server_that_died_while_it_was_frozen_says_so_at_the_end_of_that(lab):
    FAULTS["server frozen"].start(lab, 0)
    lab.redis.kill()
    with pytest.raises(ServerError, match="the server is stopped"):
        FAULTS["server frozen"].end(lab, 0)
