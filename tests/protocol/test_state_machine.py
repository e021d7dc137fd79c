"""Two to five nodes, every interleaving, every fault: Hypothesis looks for a sequence that breaks a promise.

`make test` tries 2,000 scenarios, of one seed; `make scenarios` many more, of another seed each time. A failure prints
the steps that lead to it, the seed, and the `@reproduce_failure` that plays it again. They are tried in parts, so that
several processors share them.
"""

from __future__ import annotations

import math
import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from world import World

from copilotlab.charts import Identity
from copilotlab.protocol.keys import BATCH_IN_PROGRESS

CHARTS = st.integers(1, 4)
NODES = st.integers(0, 4)
LIARS = ["another catalogue", "forger", "node"]


class Protocol(RuleBasedStateMachine):
    """What happens; that all promises hold is checked by `World`."""

    @initialize(size=st.integers(2, 5), filled=st.integers(0, 4))
    def begin(self, size, filled):
        self.world = World(size)
        for chart_id in range(1, filled + 1):
            self.world.charts.save(self.world.chart(chart_id))

    def _node(self, node):
        return node % len(self.world.nodes)

    # --- changes ---

    @rule(node=NODES, chart_id=CHARTS)
    def update(self, node, chart_id):
        self.world.update(self._node(node), self.world.chart(chart_id))

    @rule(node=NODES, chart_id=CHARTS)
    def delete(self, node, chart_id):
        self.world.delete(self._node(node), chart_id)

    @rule(chart_id=CHARTS, told=st.lists(NODES, max_size=3))
    def save_elsewhere(self, chart_id, told):
        if not self.world.charts.reachable:
            return
        self.world.charts.save(self.world.chart(chart_id))
        for node in told:
            if self.world.nodes:
                self.world.tell(self._node(node), chart_id)

    @rule(chart_id=CHARTS)
    def delete_elsewhere(self, chart_id):
        """Nobody is told."""
        if self.world.charts.reachable and chart_id in self.world.charts:
            self.world.charts.delete(chart_id)

    @rule(node=NODES, chart_id=CHARTS)
    def update_again(self, node, chart_id):
        """With the words that it has."""
        known = self.world.charts._changes.get(chart_id)
        if known is not None and known.chart is not None:
            self.world.update(self._node(node), known.chart)

    @rule(node=NODES, chart_id=CHARTS)
    def update_back(self, node, chart_id):
        """With words that it had once."""
        former = self.world.former_words(chart_id)
        if former is not None:
            self.world.update(self._node(node), former)

    @rule(node=NODES)
    def rebuild(self, node):
        self.world.do(self._node(node), lambda node: node.replica.batches.begin("rebuild"))

    @rule(node=NODES, name=st.sampled_from(["publishing", "listening"]), on=st.booleans(), everywhere=st.booleans())
    def configure(self, node, name, on, everywhere):
        self.world.configure(self._node(node), everywhere=everywhere, **{name: on})

    # --- time and turns ---

    @rule(node=NODES, times=st.integers(1, 6))
    def listen(self, node, times):
        for _ in range(times):
            if not self.world.nodes:
                return
            self.world.listen(self._node(node))

    @rule(node=NODES, times=st.integers(1, 6))
    def work(self, node, times):
        for _ in range(times):
            if not self.world.nodes:
                return
            self.world.work(self._node(node))

    @rule(seconds=st.sampled_from([0.3, 1.0, 3.0]))
    def live(self, seconds):
        self.world.run(seconds)

    @rule(seconds=st.sampled_from([0.1, 0.6, 2.0, 11.0, 35.0, 61.0, 400.0]))
    def jump(self, seconds):
        """The clock goes on while no node does: all were frozen."""
        self.world.clock.advance(seconds)

    # --- faults ---

    @rule(node=NODES)
    def crash(self, node):
        if len(self.world.nodes) > 1:
            self.world.crash(self._node(node))

    @rule(node=NODES, operations=st.integers(1, 4), after=st.booleans())
    def crash_soon(self, node, operations, after):
        if len(self.world.nodes) > 1:
            carrier = self.world.carriers[self._node(node)]
            carrier.crash_in, carrier.after = operations, after

    @rule()
    def join(self):
        if len(self.world.nodes) < 5:
            self.world.add_node()

    @rule(node=NODES)
    def blink(self, node):
        self.world.carriers[self._node(node)].blink()

    @rule(node=NODES)
    def partition(self, node):
        self.world.carriers[self._node(node)].cut()

    @rule(node=NODES)
    def heal(self, node):
        self.world.carriers[self._node(node)].heal()

    @rule()
    def server_stops(self):
        self.world.redis.stop()

    @rule(keep_data=st.booleans())
    def server_starts(self, keep_data):
        if not self.world.redis.running:
            self.world.redis.start(keep_data=keep_data)

    @rule()
    def server_forgets(self):
        self.world.redis.forget()

    @rule()
    def lease_expires(self):
        self.world.redis.expire(BATCH_IN_PROGRESS)

    @rule(node=NODES, place=st.integers(0, 9), what=st.sampled_from(["lose", "double", "delay"]))
    def message(self, node, place, what):
        arrived = self.world.carriers[self._node(node)].arrived
        if not arrived:
            return
        place %= len(arrived)
        message = arrived[place]
        if what != "double":
            del arrived[place]
        if what != "lose":
            arrived.append(message)

    @rule(node=NODES, place=st.integers(0, 9), copy=st.booleans())
    def keep_back(self, node, place, copy):
        self.world.keep_back(self._node(node), place, copy=copy)

    @rule(node=NODES)
    def echo(self, node):
        """What this node hears of batches from now on is kept, to arrive once more, much later."""
        self.world.carriers[self._node(node)].echo = self.world.kept_back

    @rule(places=st.lists(st.integers(0, 9), min_size=1, max_size=6))
    def bring(self, places):
        for place in places:
            self.world.bring(place)

    @rule(times=st.integers(1, 2))
    def model_fails(self, times):
        self.world.model_fails = times

    @rule(reachable=st.booleans())
    def repository(self, reachable):
        self.world.charts.reachable = reachable

    @rule()
    def back_up(self):
        self.world.charts.back_up()

    @rule()
    def restore(self):
        """The repository goes back to the last backup; what is saved next may take it past where it was."""
        if self.world.charts.reachable:
            self.world.restore()

    @rule(count=st.integers(0, 4))
    def import_anew(self, count):
        if self.world.charts.reachable:
            self.world.import_anew(count)

    @rule(
        chart_id=CHARTS,
        ahead=st.integers(0, 3),
        deletes=st.booleans(),
        who=st.sampled_from(["other", "forger", "node"]),
    )
    def lie(self, chart_id, ahead, deletes, who):
        """Another catalogue speaks on these channels, or somebody without the key, or a node that is wrong."""
        own = self.world.charts.identity
        identity = {
            "other": Identity("2" * 32, b"its own"),
            "forger": Identity(own.incarnation, b"guessed"),
            "node": own,
        }
        self.world.lie(chart_id, ahead, deletes=deletes, identity=identity[who], knows=who == "node")

    @rule(chart_id=CHARTS)
    def damage(self, chart_id):
        self.world.damage(chart_id)

    @rule()
    def mend(self):
        self.world.mend()

    @rule(chart_id=CHARTS)
    def spoil(self, chart_id):
        self.world.spoil(chart_id)

    # --- what must hold ---

    @invariant()
    def promises_hold(self):
        if hasattr(self, "world"):
            if not self.world.nodes:
                self.world.add_node()
            self.world.check()

    def teardown(self):
        if hasattr(self, "world"):
            self.world.settle()


SCENARIOS = int(os.environ.get("COPILOTLAB_SCENARIOS", "2000"))
PARTS = 4

Protocol.TestCase.settings = settings(
    max_examples=math.ceil(SCENARIOS / PARTS),
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)


@pytest.mark.timeout(1800)  # thousands of scenarios, and machines may be busy
@pytest.mark.parametrize("part", range(PARTS))
def test_promises_hold_whatever_happens(part, pytestconfig):
    machine = type("Protocol", (Protocol,), {"__module__": __name__})
    seed = pytestconfig.getoption("hypothesis_seed")
    if part and seed is not None:  # the first part draws from the seed itself: a seed that a failure prints plays there
        machine._hypothesis_internal_use_seed = f"{seed}, part {part}"  # what hypothesis.seed sets on functions
    run_state_machine_as_test(machine, settings=Protocol.TestCase.settings)
