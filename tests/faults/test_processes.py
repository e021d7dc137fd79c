"""Nodes in processes of their own: killed, frozen, cut off, all at once, at rest and in the middle of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
from processes import Processes
from trial import POLICY, QUERIES, Trial, first_charts, reused, wait_until

from copilotlab.lab.faults import FAULTS
from copilotlab.protocol.events import UPDATES

pytestmark = pytest.mark.alone

CHUNK = POLICY["chunk_size"]


class Scenario(NamedTuple):
    """What happens to a cluster, from the fault to its end.

    spare: embeddings that may be made twice over it. cuts: whether nodes lose Redis by it; if they do all the same,
    since the machine is too busy for `redis_timeout`, what was saved meanwhile may be made twice.
    """

    name: str
    what: str
    play: Callable[[Processes, Trial], None]
    spare: int
    cuts: bool


SCENARIOS: dict[str, Scenario] = {}


def scenario(name: str, *, spare: int = 0):
    """Enter a function into the table, with its docstring as what it says."""

    def enter(play):
        SCENARIOS[name] = Scenario(name, play.__doc__, play, spare, cuts=False)
        return play

    return enter


# --- the process ------------------------------------------------------------------------------------------------------


@scenario("process killed")
def _(cluster, trial):
    """a node's process is killed (kill -9); a new one joins, empty"""
    cluster.process_of(cluster.able[1]).kill()
    trial.hold()
    cluster.add_process(wait=True)


@scenario("holder killed, in a batch", spare=CHUNK)
def _(cluster, trial):
    """the process that embeds in a batch is killed (kill -9); another finishes it; a new one joins, empty"""
    holder = cluster.able[1]
    trial.begin_batch(holder)
    cluster.process_of(holder).kill()
    trial.hold()
    cluster.add_process(wait=True)


@scenario("process frozen")
def _(cluster, trial):
    """a node's process is stopped (SIGSTOP) and goes on later (SIGCONT)"""
    _freeze(cluster, trial, cluster.able[1])


@scenario("reader frozen, in a batch")
def _(cluster, trial):
    """a process that only reads is stopped (SIGSTOP) while another embeds"""
    trial.begin_batch(cluster.able[0])
    _freeze(cluster, trial, cluster.able[1])


@scenario("holder frozen, in a batch")
def _(cluster, trial):
    """the process that embeds is stopped (SIGSTOP), for less than its lease"""
    holder = cluster.able[1]
    trial.begin_batch(holder)
    _freeze(cluster, trial, holder)


@scenario("holder frozen for long, in a batch", spare=CHUNK)
def _(cluster, trial):
    """the process that embeds is stopped (SIGSTOP) until another has finished its batch; then it goes on, fenced"""
    holder = cluster.able[1]
    trial.begin_batch(holder)
    _freeze(cluster, trial, holder, until=lambda: cluster.settled() and not cluster.differences())


def _freeze(cluster, trial, index, **hold):
    process = cluster.process_of(index)
    process.freeze()
    try:
        trial.hold(**hold)
    finally:
        process.thaw()


@scenario("all frozen, one after the other")
def _(cluster, trial):
    """every process is stopped (SIGSTOP) in turn, the next before the last goes on"""
    processes = list(cluster.running)
    processes[0].freeze()
    for frozen, following in zip(processes, [*processes[1:], None], strict=True):
        if following is not None:
            trial.edit()
            following.freeze()
        frozen.thaw()
    trial.hold()


@scenario("sleeper cut off by the server")
def _(cluster, trial):
    """a process is stopped (SIGSTOP) and sent so much that the server cuts it off; it goes on and does not know"""
    process = cluster.process_of(cluster.able[1])
    with cluster.redis.client() as client:
        client.config_set("client-output-buffer-limit", "pubsub 1mb 0 0")
        listening = client.publish(UPDATES, b"")
        process.freeze()
        try:
            wait_until(lambda: _publish_junk(client) < listening, "the server cuts the sleeper off")
            trial.hold()
        finally:
            process.thaw()
            client.config_set("client-output-buffer-limit", "pubsub 33554432 8388608 60")


def _publish_junk(client) -> int:
    """A quarter of a megabyte that every node drops; how many listened at last."""
    for _ in range(63):
        client.publish(UPDATES, bytes(4_096))
    return client.publish(UPDATES, bytes(4_096))


# --- its parts --------------------------------------------------------------------------------------------------------


@scenario("holder's model hangs, in a batch", spare=CHUNK)
def _(cluster, trial):
    """the model of the process that embeds does not return, until another has finished its batch"""
    holder = cluster.able[1]
    trial.begin_batch(holder)
    process = cluster.process_of(holder)
    process.ask("gate", part="model", action="hang")
    others = [index for index in cluster.able if index != holder]
    try:
        trial.hold(until=lambda: not cluster.differences(others))
    finally:
        process.ask("gate", part="model", action="mend")


@scenario("holder's model fails, in a batch")
def _(cluster, trial):
    """the model of the process that embeds raises from now on; another node does what is left"""
    holder = cluster.able[1]
    trial.begin_batch(holder)
    process = cluster.process_of(holder)
    process.ask("gate", part="model", action="fail")
    try:
        trial.hold(until=lambda: cluster.settled() and not cluster.differences())
    finally:
        process.ask("gate", part="model", action="mend")


@scenario("repository locked, in a batch")
def _(cluster, trial):
    """another program holds the lock of the database file: whoever saves waits"""
    import sqlalchemy as sa

    trial.begin_batch(cluster.able[1])
    with sa.create_engine(cluster.url).connect() as other:
        other.exec_driver_sql("BEGIN IMMEDIATE")
        trial.hold(edits=False)
        other.exec_driver_sql("ROLLBACK")


# --- the faults of the lab --------------------------------------------------------------------------------------------

AT_REST = ["server killed", "server restarted with data", "client kill storm", "password rotated", "half-open"]
# A server that forgets also forgets who is at work on what: the chunk that a holder has in hand may be made twice.
FORGETS = {"server killed", "memory lost"}
IN_A_BATCH = ["server killed", "memory lost", "cut off", "out of memory"]


def _enter(name: str, *, in_a_batch: bool) -> None:
    fault = FAULTS[name]

    def play(cluster, trial):
        victim = cluster.able[1]
        if in_a_batch:
            trial.begin_batch(victim)
        fault.start(cluster, victim)
        try:
            trial.hold()
        finally:
            fault.end(cluster, victim)

    label = f"{name}, in a batch" if in_a_batch else name
    SCENARIOS[label] = Scenario(label, fault.what, play, CHUNK if in_a_batch and name in FORGETS else 0, cuts=True)


for each in AT_REST:
    _enter(each, in_a_batch=False)
for each in IN_A_BATCH:
    _enter(each, in_a_batch=True)


@pytest.fixture(scope="module")
def clusters():
    with reused(lambda: Processes(3, charts=first_charts(), queries=QUERIES, policy=POLICY)) as clusters:
        yield clusters


@pytest.mark.parametrize("name", SCENARIOS)
def test_processes(clusters, name, faults_table, run):
    cluster, played = clusters(), SCENARIOS[name]
    trial = Trial(cluster, name, played.what)
    played.play(cluster, trial)
    trial.edit()
    faults_table.append(trial.row(spare=played.spare + (0 if played.cuts else trial.local)))
