"""The panel of a cluster without a browser: what it shows, what its buttons do, and that nothing is left of it."""

from __future__ import annotations

import threading
import time
from html import escape

import pytest

from copilotlab import Cluster, Policy
from copilotlab.lab.simulated_lab import SimulatedLab
from copilotlab.toggle_words import ToggleTold
from copilotlab.widgets.cluster_panel import alerts_html, differences_html, fixed_html
from copilotlab.widgets.panel import parts

EVIL = "<script>alert(1)</script>"
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
        self.cluster.told_toggles = self.told  # else another thread would take the simulated steps
        self.panel = self.cluster.panel()
        assert self.panel.widget

    def told(self) -> dict[str, tuple[list[ToggleTold], str]]:
        nodes = {node.node_id: [ToggleTold(**toggle) for toggle in node.toggles()] for node in self.lab.nodes[:1]}
        return {**{name: (told, "") for name, told in nodes.items()}, EVIL: ([], EVIL)}

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


def test_a_toggle_is_set_once_it_is_confirmed_and_who_set_it_when_is_shown_beside_what_is_in_force(watched):
    panel, node = watched.panel, watched.lab.nodes[0]
    told = []

    def configure(*words, **changes):
        told.append((*words, changes))
        node.configure(everywhere=True, by=changes["by"], publishing=False)
        return "n0: configure done"

    def ask(toggle: str, value: object, by: str = "Ada") -> str:
        before = len(panel.messages)
        panel._toggle.value, panel._by.value = toggle, by
        (panel._number if isinstance(value, int) and not isinstance(value, bool) else panel._switch).value = value
        press("Set")
        wait_for(lambda: len(panel.messages) > before)
        return panel.messages[-1].said

    def press(words: str) -> None:
        next(part for part in parts(panel.widget) if getattr(part, "description", "") == words).click()

    watched.cluster.configure = configure
    wait_for(lambda: panel.refresh() and "Toggles" in panel._toggles.value)
    assert "cannot change" not in panel._toggles.value
    assert "the store keeps tombstones" in fixed_html()
    assert "expected seconds above 0" in ask("batch_timeout", 0)
    assert "say who sets it" in ask("publishing", False, by=" ")
    assert ask("publishing", False) == "to be confirmed above"
    panel.refresh()
    for words in ("Set publishing to off for every node", "Now on: n0; not told", "or come later", "set by Ada"):
        assert words in panel._question.value
    assert told == []
    panel._confirm.click()
    wait_for(lambda: panel.refresh() and "for every node, by Ada, 20" in panel._toggles.value)
    assert told == [("", {"everywhere": True, "by": "Ada", "publishing": False})]
    wait_for(lambda: "n0: configure done" in [message.said for message in panel.messages])
    assert f"does not tell: {escape(EVIL)}" in panel._toggles.value
    assert EVIL not in panel._toggles.value
    ask("chunk_size", 32)
    assert panel._pending.value == 32
    assert isinstance(panel._pending.value, int)


def test_a_panel_of_a_closed_cluster_says_so_and_leaves_no_thread(watched):
    watched.cluster.close()
    assert watched.panel.refresh() is False
    assert "closed" in watched.panel._notice.value
    watched.panel.close()
    wait_for(lambda: not [thread for thread in threading.enumerate() if "copilotlab-panel" in thread.name])


def test_what_is_shown_is_escaped():
    import polars as pl

    row = {"node": EVIL, "name": EVIL, "severity": "warning", "seconds": 1.0, "evidence": EVIL, "remedy": EVIL}
    shown = alerts_html(pl.DataFrame([row])) + differences_html(pl.DataFrame([{"node": EVIL}]))
    assert "<script>" not in shown
