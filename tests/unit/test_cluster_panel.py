"""The panel of a cluster without a browser: what it shows, what its buttons do, and that nothing is left of it."""

from __future__ import annotations

import threading
import time

import pytest

from copilotlab import Cluster, Policy
from copilotlab.lab.simulated_lab import SimulatedLab
from copilotlab.widgets.cluster_panel import alerts_html, differences_html

LIMIT = 30.0  # seconds for what is certain to come


class Lab:
    """A simulated lab that is watched; its nodes take a step whenever the one who watches does."""

    def __init__(self) -> None:
        self.lab = SimulatedLab(2, Policy())
        self.lab.fill(5)
        self.cluster = Cluster(
            self.lab.redis.carrier(), charts=self.lab.charts, policy=self.lab.policy, clock=self.lab.clock, start=False
        )
        self.cluster.connect()
        self.run()
        self.panel = self.cluster.panel()
        assert self.panel.widget

    def run(self, seconds: float = 2.0) -> None:
        for _ in range(round(seconds / 0.1)):
            self.lab.run(0.1)
            while self.cluster.listen():
                pass


@pytest.fixture
def watched():
    made = Lab()
    yield made
    made.panel.close()
    made.cluster.close()


def wait_for(condition) -> None:
    until = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def button(watched, node: str, words: str):
    _, card = next(card for key, card in watched.panel._cards.items() if key[0] == node)
    return next(button for button in card.children[1].children if button.description == words)


def test_it_shows_the_verdict_a_card_for_each_node_alerts_and_the_timeline(watched):
    panel = watched.panel
    panel.refresh()
    assert "Both nodes agree" in panel._verdict.value
    assert [key[0] for key in panel._cards] == ["n0", "n1"]
    assert "aria-label='n0'" in panel._cards[next(iter(panel._cards))][0].value
    assert "no alert" in panel._alerts.value
    assert "appeared" in panel._events.value
    assert panel._confirming.layout.display == "none"
    watched.lab.kill(1)
    watched.run(12)
    panel.refresh()
    assert "node silent" in panel._alerts.value
    assert button(watched, "n1", "Stop").disabled
    assert panel._repr_html_() == watched.cluster._repr_html_()


def test_an_action_says_what_will_happen_and_happens_only_when_it_is_confirmed(watched):
    panel = watched.panel
    told = []
    watched.cluster.act = lambda *words: told.append(words) or "sync begun"
    panel.refresh()
    button(watched, "n1", "Sync").click()
    assert "Sync n1</bdi>?" in panel._question.value
    assert "fetches what differs" in panel._question.value
    panel._cancel.click()
    wait_for(lambda: panel.messages)
    assert told == []
    button(watched, "n1", "Sync").click()
    panel._confirm.click()
    wait_for(lambda: told)
    assert told == [("n1", "sync", "")]
    wait_for(lambda: "n1: sync begun" in [message.said for message in panel.messages])
    panel.refresh()
    assert panel._confirm.disabled


def test_a_panel_of_a_closed_cluster_says_so_and_leaves_no_thread(watched):
    watched.cluster.close()
    assert watched.panel.refresh() is False
    assert "closed" in watched.panel._notice.value
    watched.panel.close()
    assert not [thread for thread in threading.enumerate() if "copilotlab-panel" in thread.name]


def test_what_is_shown_is_escaped():
    import polars as pl

    evil = "<script>alert(1)</script>"
    row = {"node": evil, "name": evil, "severity": "warning", "seconds": 1.0, "evidence": evil, "remedy": evil}
    shown = alerts_html(pl.DataFrame([row])) + differences_html(pl.DataFrame([{"node": evil}]))
    assert "<script>" not in shown
