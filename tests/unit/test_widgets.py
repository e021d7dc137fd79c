"""The panels without a browser: what they send, what their buttons do, and that nothing is left of a closed one."""

from __future__ import annotations

import gc
import re
import sqlite3
import subprocess
import sys
import threading
import time
import weakref
from base64 import b64encode
from collections import Counter
from contextlib import closing
from dataclasses import replace
from html import escape
from itertools import pairwise
from types import SimpleNamespace
from unittest.mock import patch

import comm
import ipywidgets
import polars as pl
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from ipywidgets.widgets import widget as ipywidgets_widget

from copilotlab import Chart, ChartRepository, Lab, Node, Policy, load_embedder
from copilotlab.charts import ChartError
from copilotlab.lab import FAULTS, FragileModel, FragileRepository, catalogue
from copilotlab.markup import card, text
from copilotlab.monitoring.agreement import Agreement
from copilotlab.widgets import ComparisonPanel, LabPanel, LiveAnswer, SearchPanel
from copilotlab.widgets.drawings import drawing
from copilotlab.widgets.lab_panel import events_html, verdict_html
from copilotlab.widgets.model_index import Found, ModelIndex
from copilotlab.widgets.node_card import card_html, health, progress_html
from copilotlab.widgets.panel import WIDGET_VIEW
from copilotlab.widgets.pulse import Pulse
from copilotlab.widgets.question_panel import chart_cell

EVIL = "<script>alert('x')</script>"
RIGHT_TO_LEFT = "הכנסות לפי אזור"
CATALOGUE = [
    Chart(chart_id=1, title=f"{EVIL} revenue", chart_type="bar", source=EVIL, measures=[EVIL], dimensions=["Region"]),
    Chart(chart_id=2, title=f"{RIGHT_TO_LEFT} revenue", chart_type="line"),
    *(Chart(chart_id=number, title=f"Orders of product {number}", chart_type="pie") for number in range(3, 40)),
]
POLICY = Policy(probe_interval=0.05, redis_timeout=1.0)  # a busy machine is not an outage


def repository():
    charts = ChartRepository()
    charts.save_many(CATALOGUE)
    return charts


def wait_until(condition, timeout=60.0):
    until = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < until, "the condition did not come true in time"
        time.sleep(0.005)


def wait_for_rest(lab):
    """All agree and nobody is at work: nodes may agree before the batch that brought it gives its lease back."""
    lab.wait_converged(60)

    def rests(status):
        at_work = [status[name] for name in ("batch", "lease", "reconciling", "owes_rebuild", "lag")]
        here = status["state"], status["redis"], status["peers"]
        return here == ("running", "connected", len(lab.nodes) - 1) and not any(at_work)

    wait_until(lambda: all(rests(node.status()) for node in lab.nodes))


@pytest.fixture(scope="module", autouse=True)
def quick_collections():
    """What other tests left, models among it, is not looked through each time that one of these collects."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def shared_lab():
    """A lab for tests that do not break it."""
    with Lab(nodes=3, model="hash", charts=repository(), policy=POLICY) as lab:
        wait_for_rest(lab)
        yield lab


@pytest.fixture
def lab():
    with Lab(nodes=2, model="hash", charts=repository(), policy=POLICY) as lab:
        wait_for_rest(lab)
        yield lab


@pytest.fixture
def panel(lab):
    with lab.panel() as panel:
        yield panel


@pytest.fixture
def sent(monkeypatch):
    """What the kernel's widgets send to the page: (model, state)."""
    messages = []

    class RecordingComm(comm.DummyComm):
        def publish_msg(self, msg_type, data=None, **others):
            if msg_type == "comm_msg":
                messages.append((self.comm_id, data["state"]))

    monkeypatch.setattr(comm, "create_comm", RecordingComm)
    return messages


def parts(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from parts(child)


def button(panel, label, tooltip=""):
    (found,) = [
        part
        for part in parts(panel.widget)
        if isinstance(part, ipywidgets.Button) and part.description == label and tooltip in part.tooltip
    ]
    return found


def shown(panel):
    panel.refresh()
    texts = [part.value for part in parts(panel.widget) if isinstance(part, ipywidgets.HTML)]
    return "\n".join(value for value in texts if "<style>" not in value)


def press(panel, label, tooltip=""):
    before = len(panel.messages)
    button(panel, label, tooltip).click()
    wait_until(lambda: len(panel.messages) > before)
    return panel.messages[-1]


def panel_threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("copilotlab-panel")]


def describe_status(**changes):
    status = {"node": "node-0", "state": "running", "charts": 1, "digest": "aa", "redis": "connected", "batch": ""}
    more = {"lease": "", "epoch": 0, "lag": 0, "peers": 0, "reconciling": "", "next_model": "", "owes_rebuild": False}
    return {**status, **more, "away_for": 0.0, "complete": True, "toggles": [], **changes}


# --- a panel's life -----------------------------------------------------------------------------------------------


def test_a_lab_has_one_panel_until_it_is_closed(shared_lab):
    first = shared_lab.panel()
    assert shared_lab.panel() is first
    first.close()
    second = shared_lab.panel()
    assert second is not first
    second.close()


@pytest.mark.parametrize("make", [LabPanel, SearchPanel, ComparisonPanel])
def test_opened_and_closed_a_hundred_times_it_leaves_no_thread_no_widget_and_no_comm(shared_lab, make):
    widgets_before = len(ipywidgets_widget._instances)
    comms_before = len(comm.get_comm_manager().comms)
    threads_before = set(threading.enumerate())
    for _ in range(100):
        panel = make(shared_lab)
        panel.widget._view_count = 1  # a page shows it, so its thread runs
        assert len(panel_threads()) == 1
        panel.close()

    assert panel_threads() == []
    assert set(threading.enumerate()) <= threads_before
    assert len(ipywidgets_widget._instances) == widgets_before
    assert len(comm.get_comm_manager().comms) == comms_before


def test_its_thread_runs_only_while_something_shows_it(panel):
    assert panel_threads() == []
    panel.widget._view_count = 1
    wait_until(lambda: panel_threads() == ["copilotlab-panel-LabPanel"])
    panel.widget._view_count = 2
    assert panel_threads() == ["copilotlab-panel-LabPanel"]
    panel.widget._view_count = 0
    wait_until(lambda: panel_threads() == [])
    panel.widget._view_count = 1
    wait_until(lambda: panel_threads() == ["copilotlab-panel-LabPanel"])


def count_widgets():
    gc.collect()
    return len(ipywidgets_widget._instances)


@pytest.mark.parametrize("make", [LabPanel, SearchPanel, ComparisonPanel])
def test_a_panel_that_nobody_holds_goes_with_its_widgets_and_its_thread(shared_lab, make):
    before, comms_before = count_widgets(), len(comm.get_comm_manager().comms)
    for _ in range(3):
        panel = make(shared_lab)
        panel.widget._view_count = 1
        wait_until(panel_threads)
        shown(panel)
        panel.widget._view_count = 0
        gone = weakref.ref(panel)
        del panel
        wait_until(lambda: gc.collect() is not None and gone() is None)  # noqa: B023 - called before it changes
    wait_until(lambda: panel_threads() == [])
    assert count_widgets() == before
    assert len(comm.get_comm_manager().comms) == comms_before


def test_a_panel_that_a_page_shows_lives_without_a_name(shared_lab):
    panel = SearchPanel(shared_lab, models=[])
    seen, widget = weakref.ref(panel), panel.widget
    widget._view_count = 1
    del panel
    gc.collect()
    assert seen() is not None
    wait_until(lambda: len(panel_threads()) == 1)
    widget._view_count = 0  # the page has dropped it
    wait_until(lambda: gc.collect() is not None and seen() is None)
    assert widget.comm is None
    wait_until(lambda: panel_threads() == [])


def test_a_panel_whose_widgets_were_closed_elsewhere_ends_its_thread_and_makes_new_ones(shared_lab):
    panel = LabPanel(shared_lab)
    panel.widget._view_count = 1
    wait_until(panel_threads)
    for part in list(parts(panel.widget)):
        part.close()  # as Widget.close_all does
    panel._changed()
    wait_until(lambda: panel_threads() == [])
    assert "all 3 nodes agree" in shown(panel).lower()
    panel.close()


@pytest.fixture
def notebook(shared_lab):
    """Runs cells as a kernel does, whose output cache holds all that was ever shown."""
    shell = InteractiveShell()
    sys_hook = sys.displayhook
    shell.user_ns |= {"lab": shared_lab, "LiveAnswer": LiveAnswer, "SearchPanel": SearchPanel}
    shell.user_ns |= {"ComparisonPanel": ComparisonPanel, "widgets": ipywidgets}

    def run(cell):
        with patch("copilotlab.widgets.cells.get_ipython", return_value=shell), capture_output():
            shell.run_cell(cell, store_history=True).raise_error()
        return count_widgets()

    run.shell = shell
    yield run
    shell.reset()
    sys.displayhook = sys_hook
    gc.collect()


@pytest.mark.parametrize(
    "cell",
    [
        "SearchPanel(lab)",
        "ComparisonPanel(lab, models=['hash', 'wordllama'])",
        "panel = SearchPanel(lab, models=[])\ndisplay(panel)\nNone",
        "LiveAnswer(lambda number: number, {'number': widgets.IntSlider(1)})",
        "answer = LiveAnswer(lambda number: number, {'number': widgets.IntSlider(1)})\nanswer",
    ],
)
def test_a_cell_that_is_run_again_leaves_no_more_widgets_than_after_its_first_run(notebook, cell):
    first = notebook(cell)
    assert [notebook(cell) for _ in range(7)] == [first] * 7
    assert notebook("None") == first  # another cell takes nothing off the page


def test_a_cell_that_shows_the_same_panel_again_keeps_it_and_one_that_shows_none_lets_it_go(notebook):
    before = notebook("panel = SearchPanel(lab, models=[])")
    first = notebook("panel")
    widget = notebook.shell.user_ns["panel"].widget
    assert notebook("panel") == first > before
    assert notebook.shell.user_ns["panel"].widget is widget
    notebook("show = panel")
    assert notebook("show") == first
    notebook("panel = None")
    notebook.shell.events.trigger("pre_run_cell", SimpleNamespace(cell_id=None, raw_cell="panel"))
    notebook.shell.events.trigger("post_run_cell", None)
    assert widget.comm is not None, "another cell shows it"
    notebook.shell.events.trigger("pre_run_cell", SimpleNamespace(cell_id=None, raw_cell="show"))
    notebook.shell.events.trigger("post_run_cell", None)
    assert widget.comm is None
    assert notebook("show") == first, "shown again, it makes new ones"


def test_controls_that_two_answers_share_stay_with_the_one_that_is_left():
    control = number_control()
    first = LiveAnswer(lambda number: f"first {number}", {"number": control})
    second = LiveAnswer(lambda number: f"second {number}", {"number": control})
    first.off_the_page()
    assert first.closed
    control.value = 5
    assert seen(second)[0]["text/plain"] == "'second 5'"
    before = count_widgets()
    gone = weakref.ref(second)
    del second
    wait_until(lambda: gc.collect() is not None and gone() is None)
    assert count_widgets() < before
    assert control.comm is None


class Gate(threading.Event):
    """Holds every thread that comes to it for good, and knows them."""

    def __init__(self):
        super().__init__()
        self.held = set()

    def wait(self, timeout=None):
        self.held.add(threading.current_thread())
        return super().wait(timeout)


def test_it_sends_only_what_changed(sent):
    policy = replace(POLICY, heartbeat_interval=0.2)
    with Lab(nodes=2, model="hash", charts=repository(), policy=policy) as lab, LabPanel(lab) as panel:
        wait_for_rest(lab)
        gates = [Gate(), Gate()]
        for clock, gate in zip(lab._clocks, gates, strict=True):
            clock._flows = gate  # frozen; and no thread of a node is in the middle of something, once the gate has two
        wait_until(lambda: [len(gate.held) for gate in gates] == [2, 2])
        wait_until(lambda: [node.status()["peers"] for node in lab.nodes] == [0, 0])  # as time goes on for who looks
        assert panel.widget
        panel.refresh()
        del sent[:]
        for _ in range(5):
            panel.refresh()
        assert sent == []

        lab.delay(1, 0.0)  # one event in the timeline, and nothing else
        panel.refresh()
        assert [model for model, _ in sent] == [panel._events.model_id]

        del sent[:]
        lab.proxies[1].delay(0.01)
        panel.refresh()
        assert [(model, list(state)) for model, state in sent] == [(panel._cards[1].model_id, ["value"])]


def test_the_widgets_of_a_closed_panel_are_gone_and_its_static_page_remains(lab):
    panel = lab.panel()
    assert WIDGET_VIEW in panel._repr_mimebundle_()
    panel.close()
    panel.close()

    assert panel.closed
    assert set(panel._repr_mimebundle_()) == {"text/plain", "text/html"}
    with pytest.raises(RuntimeError, match="closed; make another one"):
        _ = panel.widget


@pytest.mark.parametrize("make", [LabPanel, SearchPanel, ComparisonPanel])
def test_a_panel_whose_lab_is_closed_says_so_and_stops(make):
    with Lab(nodes=1, model="hash", charts=repository()) as lab:
        panel = make(lab)
        panel.widget._view_count = 1
        wait_until(panel_threads)
    wait_until(lambda: panel_threads() == [])

    assert "This lab is closed" in panel._notice.value
    assert all(part.disabled for part in parts(panel.widget) if part.has_trait("disabled"))
    panel.close()


def test_a_refresh_that_fails_is_told_and_tried_again(panel, monkeypatch):
    def failing():
        raise OSError("the journal is <b>gone</b>")

    with monkeypatch.context() as patch:
        patch.setattr(panel.lab, "timeline", failing)
        assert "OSError: the journal is &lt;b&gt;gone&lt;/b&gt;" in shown(panel)
    assert "cannot be refreshed" not in shown(panel)


def test_the_static_faces_need_no_widget_manager(shared_lab, monkeypatch):
    with SearchPanel(shared_lab) as search, ComparisonPanel(shared_lab) as comparison, LabPanel(shared_lab) as panel:
        for shown_panel in (search, comparison, panel):
            bundle = shown_panel._repr_mimebundle_()
            assert set(bundle) == {"text/plain", "text/html", WIDGET_VIEW}
            assert bundle[WIDGET_VIEW]["model_id"] == shown_panel.widget.model_id
        with monkeypatch.context() as patch:
            patch.setattr("copilotlab.widgets.lab_panel.summary_html", lambda lab: f"static {id(lab)}")
            assert panel._repr_mimebundle_()["text/html"] == f"static {id(shared_lab)}"
        assert "nothing was asked yet" in search._repr_html_()
        search.ask("orders of product 7")
        # A title that the repository told late is there at a later refresh.
        wait_until(lambda: search.refresh() and "Orders of product 7" in search._repr_html_())


def test_importing_the_package_does_not_load_ipywidgets():
    code = "import sys, copilotlab; copilotlab.Lab; print('ipywidgets' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "False"


def test_without_ipywidgets_the_error_says_what_to_install():
    code = (
        "import sys; sys.modules['ipywidgets'] = None\n"
        "import importlib.util as u; found = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'ipywidgets' else found(name, *a)\n"
        "import copilotlab.widgets"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert "copilotlab.widgets needs ipywidgets: pip install 'copilotlab[lab]'" in done.stderr


# --- the panel of a lab -------------------------------------------------------------------------------------------


def test_the_servers_buttons_do_what_they_say(panel):
    lab = panel.lab
    assert not press(panel, "Pause").failed
    assert lab.redis.state == "paused"
    assert "paused" in shown(panel)
    press(panel, "Resume", "server")
    assert lab.redis.state == "running"
    press(panel, "Kill", "server")
    assert lab.redis.state == "stopped"
    press(panel, "Start with data")
    assert lab.redis.state == "running"
    first = lab.redis.pid
    press(panel, "Restart")
    assert lab.redis.pid not in (None, first)
    press(panel, "Stop")
    assert lab.redis.state == "stopped"
    press(panel, "Start empty")
    assert lab.redis.state == "running"
    assert lab.wait_converged(60) >= 0
    events = lab.timeline().filter(pl.col("node") == "lab")["event"].to_list()
    assert events[3:] == ["pause", "resume", "kill", "start_with_data", "restart", "stop", "start_empty"]


def test_a_nodes_buttons_do_what_they_say(panel):
    lab = panel.lab
    for label, state in (
        ("Partition", "cut"),
        ("Heal", "open"),
        ("Mute", "nothing reaches the server"),
        ("Deafen", "nothing reaches the client"),
        ("Heal", "open"),
        ("Delay", "delay 0.2 s"),
    ):
        assert not press(panel, label, "node-1").failed
        assert (lab.proxies[0].state, lab.proxies[1].state) == ("open", state)
        assert state in shown(panel)
    press(panel, "Heal", "node-1")
    assert not press(panel, "Reset", "node-1").failed
    press(panel, "Kill", "node-1")
    assert [node.running for node in lab.nodes] == [True, False]
    panel.refresh()
    assert "✕" in panel._cards[1].value
    assert "stopped" in panel._cards[1].value


def test_a_killed_node_is_offered_for_nothing_any_more(panel):
    panel.refresh()
    _ = panel.widget
    panel._writer.value = panel._victim.value = 1
    with SearchPanel(panel.lab, models=[]) as search:
        _ = search.widget
        search._node.value = 1
        press(panel, "Kill", "node-0")
        panel.refresh()
        search.refresh()
        assert [list(part.options) for part in (panel._writer, panel._victim, search._node)] == 3 * [[("node-1", 1)]]
        assert [part.value for part in (panel._writer, panel._victim, search._node)] == [1, 1, 1]
        assert all(part.disabled for part in panel._node_buttons[0])
        assert not any(part.disabled for part in panel._node_buttons[1])
        press(panel, "Kill", "node-1")
        panel.refresh()
        assert press(panel, "Save").said == "ValueError: no node is alive; start the lab, or add a node"
        assert search.refresh()


def test_one_control_adds_nodes_and_removes_those_that_were_added_last(panel):
    lab = panel.lab
    _ = panel.widget
    assert panel._count.value == 2
    panel._count.value = 4
    assert press(panel, "Scale").said == "4 nodes: node-2, node-3 added"
    lab.freeze(3)
    panel._count.value = 1
    assert press(panel, "Scale").said == "1 nodes: node-3, node-2, node-1 removed"
    assert [node.running for node in lab.nodes] == [True, False, False, False]
    panel.refresh()
    assert panel._count.value == 1
    assert press(panel, "Scale").said == "1 nodes: as before"
    panel._count.value = 2
    assert press(panel, "Scale").said == "2 nodes: node-4 added"
    assert lab.wait_converged(60) >= 0
    events = lab.timeline().filter(pl.col("node") == "lab", pl.col("event") == "remove_node")
    assert events["detail"].to_list() == ["node-3", "node-2", "node-1"]


def test_more_than_eight_nodes_are_rows_with_their_last_minute(panel):
    _ = panel.widget
    assert "cl-line" not in shown(panel)
    panel._count.value = 9
    press(panel, "Scale")
    panel.lab.nodes[3].search("orders", k=1)
    assert shown(panel).count("class='cl-line'") == 3 * 9
    assert "cl-rows" in panel._grid._dom_classes


def test_a_pulse_keeps_a_minute_a_sample_a_second(shared_lab):
    now = [100.0]
    node = shared_lab.nodes[0]
    pulse = Pulse(node, clock=lambda: now[0])
    listeners = len(node.context.listeners.added)
    for lag in range(200):
        now[0] += 0.5
        pulse.take(lag)
    node.search("orders", k=1)
    now[0] += 1
    pulse.take(7)
    assert len(pulse.samples) == 60
    assert pulse.samples[-1].lag == 7
    assert pulse.samples[-1].search_ms > 0
    assert [b.lag - a.lag for a, b in pairwise(list(pulse.samples)[:-1])] == 58 * [2]
    assert "lag in charts over the last minute: at most 198, now 7" in pulse.html()
    Pulse(node)
    assert len(node.context.listeners.added) == listeners, "one listener for all panels"


def begin(panel, fault, victim=0):
    _ = panel.widget
    panel._fault.value, panel._victim.value = fault, victim
    return press(panel, "Begin")


def test_a_fault_is_begun_and_ended_by_its_name(panel):
    lab = panel.lab
    message = begin(panel, "half-open", 1)
    assert (message.failed, message.said) == (False, "half-open, node-1: begun")
    assert (lab.proxies[0].state, lab.proxies[1].state) == ("open", "blackhole")
    assert "half-open, node-1</bdi></b> is on" in shown(panel)
    assert (panel._begin.disabled, panel._end.disabled) == (True, False)
    lab.nodes[0].update_chart(Chart(chart_id=900, title="Espresso"))
    wait_until(lambda: "Nodes differ: 2 versions" in shown(panel))

    assert press(panel, "End").said == "half-open, node-1: ended"
    assert "is on" not in shown(panel)
    assert (panel._begin.disabled, panel._end.disabled) == (False, True)
    wait_for_rest(lab)
    assert "Both nodes agree" in shown(panel)
    events = lab.timeline().filter(pl.col("node") == "lab").tail(2)
    assert events.select("event", "detail").rows() == [
        ("begin_fault", "half-open, node-1"),
        ("end_fault", "half-open, node-1"),
    ]


def test_every_fault_has_its_name_in_the_panel_and_its_sentence_beside_it(panel):
    _ = panel.widget
    assert list(panel._fault.options) == list(FAULTS)
    assert list(panel._victim.options) == [("node-0", 0), ("node-1", 1)]
    for name, fault in FAULTS.items():
        panel._fault.value = name
        assert text(fault.what) in shown(panel)
        assert panel._victim.disabled == (fault.scope != "line")  # of the others there is one, for all nodes


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.scope == "server"])
def test_a_fault_of_the_server_is_begun_and_ended_and_the_nodes_agree_again(panel, name):
    assert begin(panel, name).said == f"{name}, server: begun"
    panel.refresh()
    if FAULTS[name].passes:
        assert (panel._begin.disabled, panel._end.disabled) == (False, True)  # there is nothing to end
    else:
        assert press(panel, "End").said == f"{name}, server: ended"
    wait_for_rest(panel.lab)


def test_a_fault_that_this_lab_cannot_have_says_why(panel):
    _ = panel.widget
    panel._fault.value = "repository hangs"
    assert (panel._begin.disabled, panel._end.disabled) == (True, True)
    assert "Lab(charts=FragileRepository" in panel._begin.tooltip
    assert "cannot be made to fail: give the lab one that can" in shown(panel)
    panel._fault.value = "half-open"
    assert (panel._begin.disabled, panel._begin.tooltip) == (False, "Begin the fault")


def test_a_fault_that_cannot_be_begun_or_ended_is_told_and_can_be_tried_again(panel):
    lab = panel.lab
    lab.redis.stop()
    message = begin(panel, "server frozen")
    assert (message.failed, message.said) == (True, "ServerError: the server is stopped; start() it first")
    assert "is on" not in shown(panel)
    lab.redis.start()
    assert not begin(panel, "server frozen").failed
    lab.redis.kill()
    assert press(panel, "End").failed
    assert "server frozen, server</bdi></b> is on" in shown(panel)
    lab.redis.start()
    assert not press(panel, "End").failed
    events = lab.timeline().filter(pl.col("node") == "lab")["event"].to_list()
    assert [event for event in events if event.endswith("failed")] == ["begin_fault_failed", "end_fault_failed"]
    assert press(panel, "End").said == "RuntimeError: no fault is on; begin one first"


@pytest.mark.parametrize("name", ["repository hangs", "repository unreachable", "model hangs"])
def test_a_repository_that_hangs_holds_neither_the_panel_nor_its_end_up(name):
    charts = FragileRepository()
    charts.save_many(CATALOGUE)
    with Lab(2, FragileModel(load_embedder("hash")), charts, POLICY) as lab, LabPanel(lab) as panel:
        wait_for_rest(lab)
        assert "39 charts, revision 39" in shown(panel)
        begin(panel, name)
        html = shown(panel)
        assert f"{name}, " in html
        assert "Both nodes agree" in html
        assert "cannot be refreshed" not in html
        if FAULTS[name].scope == "repository":
            assert "39 charts, revision 39, when it answered" in html
            assert shown(panel) == html
        assert not press(panel, "End").failed
        wait_until(lambda: "39 charts, revision 39<" in shown(panel))


@pytest.mark.parametrize("first", ["panel", "lab"])
@pytest.mark.parametrize("name", ["client kill storm", "half-open", "server killed", "repository hangs"])
def test_a_fault_that_is_on_ends_with_its_panel_and_leaves_no_thread(name, first):
    threads_before = set(threading.enumerate())
    charts = FragileRepository()
    charts.save_many(CATALOGUE)
    with Lab(nodes=1, model="hash", charts=charts, policy=POLICY) as lab, LabPanel(lab) as panel:
        wait_for_rest(lab)
        panel.widget._view_count = 1
        begin(panel, name)
        if first == "lab":
            lab.close()
            wait_until(lambda: panel_threads() == [])
        panel.close()
        if first == "panel":
            wait_for_rest(lab)  # all is well again
            assert lab.proxies[0].state == "open"
    wait_until(lambda: set(threading.enumerate()) <= threads_before)


def test_a_node_is_frozen_and_goes_on(panel):
    lab = panel.lab
    assert not press(panel, "Freeze", "node-1").failed
    assert lab.living == [lab.nodes[0]]
    assert "<bdi>frozen</bdi>" in (shown(panel) and panel._cards[1].value)
    assert "frozen" not in panel._cards[0].value
    press(panel, "Resume", "node-1")
    assert lab.living == lab.nodes
    assert "frozen" not in (shown(panel) and panel._cards[1].value)


def test_a_node_is_added_and_nothing_that_was_chosen_is_lost(panel):
    _ = panel.widget
    panel._of.value = "lab"
    panel._writer.value = 1
    cards = panel._grid.children

    _ = panel.widget
    panel._count.value = 3
    assert press(panel, "Scale").said == "3 nodes: node-2 added"
    assert "node-2" in shown(panel)

    assert panel._grid.children[:2] == cards
    assert [name for name, _ in panel._of.options] == ["all", "lab", "node-0", "node-1", "node-2"]
    assert (panel._of.value, panel._writer.value) == ("lab", 1)
    assert not press(panel, "Partition", "node-2").failed
    assert panel.lab.proxies[2].state == "cut"


def test_what_goes_wrong_behind_a_button_is_told_in_the_panel(panel):
    message = press(panel, "Resume", "server")
    assert not message.failed
    message = press(panel, "Start empty")
    assert message.failed
    assert message.said == "ServerError: the server is running; use restart(keep_data=False)"
    assert "role='alert'" in shown(panel)
    events = panel.lab.timeline().filter(pl.col("node") == "lab")["event"].to_list()
    assert events[-2:] == ["start_empty", "start_empty_failed"]
    assert "use restart(keep_data=False)" in shown(panel)


def test_an_action_under_way_is_not_begun_again(panel, monkeypatch):
    free = threading.Event()
    calls = []
    monkeypatch.setattr(panel.lab.redis, "restart", lambda: (calls.append(1), free.wait(60)))
    button(panel, "Restart").click()
    wait_until(lambda: calls)
    assert press(panel, "Restart").said == "is still under way"
    assert not press(panel, "Pause").failed  # others are not held up
    press(panel, "Resume", "server")
    free.set()
    wait_until(lambda: panel.messages[-1].action == "Restart, the server")
    assert calls == [1]


def test_whoever_is_told_what_came_of_a_button_may_press_it_again(panel, monkeypatch):
    under_way, tell = [], panel._tell

    def told(action, *said, **how):
        under_way.append(action in panel._under_way)
        tell(action, *said, **how)

    monkeypatch.setattr(panel, "_tell", told)
    assert [press(panel, "Resume", "server").failed, press(panel, "Resume", "server").failed] == [False, False]
    assert under_way == [False, False]


def test_a_chart_saved_in_the_panel_is_shown_as_text_and_nodes_that_missed_it_differ(panel):
    lab = panel.lab
    assert "All 2 nodes agree" not in shown(panel)
    assert "Both nodes agree" in shown(panel)
    press(panel, "Partition", "node-1")
    panel._title.value = f"{EVIL} {RIGHT_TO_LEFT}"

    assert press(panel, "Save").said == "chart 40 on node-0: published, revision 40"
    wait_until(lambda: "Nodes differ: 2 versions" in shown(panel))
    assert "cl-letter-b" in panel._cards[1].value
    press(panel, "Heal", "node-1")
    wait_for_rest(lab)
    assert "Both nodes agree" in shown(panel)
    assert press(panel, "Rebuild").said.startswith("node-0: published, 40 charts")
    assert not press(panel, "Sync").failed
    panel._title.value = "  "
    assert "expected 1 to 500 characters" in press(panel, "Save").said


def test_a_toggle_is_turned_off_everywhere_or_on_one_node_and_its_card_says_so(panel):
    panel.refresh()
    assert press(panel, "Turn off").said == "publishing is off on all nodes, version 1"
    wait_until(
        lambda: all("publishing off" in shown(panel) and "publishing off" in card.value for card in panel._cards)
    )
    panel._where.value = 1
    assert press(panel, "Turn on").said == "publishing is on on node-1, version 2"
    panel.refresh()
    assert ["publishing off" in card.value for card in panel._cards] == [True, False]


def test_the_timeline_is_newest_first_and_can_be_filtered(panel):
    panel.lab.partition(1)
    panel.lab.heal(1)
    html = shown(panel) and panel._events.value
    assert html.index("<bdi>heal</bdi>") < html.index("<bdi>partition</bdi>") < html.index("<bdi>add node</bdi>")
    panel._like.value = "PARTI"
    assert panel._events.value.count("<tr class=") == 1
    panel._like.value = ""
    panel._of.value = "node-0"
    assert "<bdi>node-1</bdi>" not in panel._events.value
    panel._like.value = "no such thing"
    assert "no such event yet" in panel._events.value


def test_events_are_escaped():
    timeline = pl.DataFrame({"seconds": [1.0], "node": [EVIL], "event": [EVIL], "detail": [EVIL]})
    assert "<script" not in events_html(timeline)
    assert events_html(timeline).count("&lt;script&gt;") == 3


# --- a node's card ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("good", "running")),
        ({"state": "not started"}, ("good", "not started")),
        ({"batch": "rebuild 3/9"}, ("busy", "rebuild")),
        ({"reconciling": "node-1"}, ("busy", "reconciling")),
        ({"redis": "away", "batch": "rebuild 3/9"}, ("away", "Redis away")),
        ({"redis": "refused"}, ("away", "Redis refuses")),
        ({"state": "stopped", "redis": "away"}, ("dead", "stopped")),
    ],
)
def test_health_is_the_one_thing_that_matters_most(changes, expected):
    how = health(describe_status(**changes))
    assert (how.tone, how.word) == expected


def test_a_card_shows_lease_lag_epoch_and_what_is_reconciled():
    status = describe_status(lease="held", epoch=7, lag=1234, peers=3, reconciling=EVIL)
    html = card_html(status, "delay 0.2 s", Agreement.of([status]))
    for said in (">held<", ">7<", ">3<", "1,234 charts", "pulls what it lacks from", "delay 0.2 s", ">A</span>"):
        assert said in html
    assert "<script" not in html


def test_a_card_names_what_was_turned_off_and_the_numbers_that_were_set():
    names = {"publishing": False, "listening": True, "sync_interval": 60}
    status = describe_status(toggles=[{"name": name, "value": value} for name, value in names.items()])

    html = card_html(status, "open", Agreement.of([status]))
    assert "publishing off, sync interval 60" in html
    assert "listening" not in html


def test_a_card_says_that_its_node_is_not_complete_and_why():
    status = describe_status(complete=False, incomplete=EVIL)
    html = card_html(status, "open", Agreement.of([status]))
    assert f"not complete: {escape(EVIL)}" in html
    assert "not complete" not in card_html(describe_status(), "open", Agreement.of([status]))


@pytest.mark.parametrize(
    ("changes", "tone", "said"),
    [
        ({}, "good", "Both nodes agree"),
        ({"lag": 5}, "warn", "up to 5 charts behind"),
        ({"digest": "bb"}, "warn", "Nodes differ: 2 versions, held by 1 + 1 nodes"),
        ({"state": "stopped", "digest": "bb", "lag": 5}, "good", "One node, alone"),
        ({"batch": "rebuild 3/9"}, "good", "3 of 9"),
    ],
)
def test_the_verdict_is_good_only_when_all_agree_and_nobody_is_behind(changes, tone, said):
    statuses = [describe_status(node=EVIL), describe_status(node="node-1", **changes)]
    html = verdict_html(statuses, Agreement.of(statuses), "1,234 charts, revision 5,678")
    assert f"cl-verdict cl-{tone}'" in html
    assert said in html
    assert "1,234 charts, revision 5,678" in html
    assert "<script" not in html


def test_progress_is_a_bar_that_screen_readers_can_read():
    html = progress_html("rebuild 64/200")
    assert "aria-valuenow='64'" in html
    assert "aria-valuemax='200'" in html
    assert "width:32%" in html
    assert progress_html("rebuild 0/0") == "<bdi>rebuild 0/0</bdi>"


def test_agreement_counts_the_living_and_names_the_largest_group_a():
    statuses = [describe_status(node=f"node-{number}", digest=digest) for number, digest in enumerate("xyyz")]
    statuses[3]["state"] = "stopped"
    agreement = Agreement.of(statuses)
    assert agreement.groups == {"y": ["node-1", "node-2"], "x": ["node-0"]}
    assert [agreement.letter(digest) for digest in "xyz"] == ["B", "A", ""]
    assert str(agreement) == "nodes differ: 2 versions, held by 2 + 1 nodes"
    assert str(Agreement.of([])) == "no node is alive"
    assert Agreement.of(statuses[1:3]).alike


# --- asking -------------------------------------------------------------------------------------------------------


def test_a_question_is_answered_and_every_text_of_a_chart_is_shown_as_text(shared_lab):
    with SearchPanel(shared_lab, models=[]) as panel:
        panel.ask("revenue")
        panel._k.value = 39
        wait_until(lambda: "found 39 charts" in (html := shown(panel)) and "<bdi>chart " not in html)  # all titles told
        html = shown(panel)
        assert "<script" not in html
        assert html.count("&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;") == 3  # title, measure, source
        assert f"<bdi>{RIGHT_TO_LEFT} revenue</bdi>" in html
        assert "all nodes give these" in html
        assert html.count("✓") == 3


def test_a_search_panel_follows_the_nodes_without_being_asked_again(lab):
    with SearchPanel(lab, models=[]) as panel:
        panel.ask("espresso machines by floor")
        wait_until(lambda: "all nodes give these" in shown(panel))
        lab.partition(1)
        wait_until(lambda: not lab.nodes[1].coordinator.connected)
        lab.nodes[0].update_chart(Chart(chart_id=900, title="Espresso machines by floor"))
        wait_until(lambda: "1 of 2 nodes give these" in shown(panel))
        assert "node-1 ≠ 9/10" in shown(panel)
        lab.heal(1)
        wait_until(lambda: "all nodes give these" in shown(panel))
        lab.kill(0)
        wait_until(lambda: "node-0 ✓" not in shown(panel))


def test_a_title_that_the_repository_tells_late_is_shown_when_it_does():
    charts = repository()
    node = Node(charts, load_embedder("hash"))
    node.rebuild()
    slow = threading.Event()
    read = charts.get_many
    charts.get_many = lambda chart_ids: slow.wait(60) and read(chart_ids)
    with SearchPanel(node, models=[]) as panel:
        panel.interval = 0.01
        panel.ask("orders of product 7")
        wait_until(lambda: "<bdi>chart 7</bdi>" in shown(panel))
        slow.set()
        wait_until(lambda: "<bdi>Orders of product 7</bdi>" in shown(panel))
        wait_until(lambda: "chart 7" not in shown(panel))


def test_a_search_panel_asks_another_node_another_model_and_for_more_charts(shared_lab):
    with SearchPanel(shared_lab, models=["wordllama"]) as panel:
        panel.ask("orders")
        wait_until(lambda: "found 10 charts" in shown(panel))
        panel._k.value = 3
        wait_until(lambda: "found 3 charts" in shown(panel))
        panel._node.value = 2
        wait_until(lambda: "<b><span class='cl-chip cl-strong' title=''><bdi>node-2</bdi>" in shown(panel))
        panel._model.value = "wordllama"
        wait_until(lambda: "cl-strong' title=''><bdi>wordllama</bdi>" in shown(panel), timeout=60)
        assert not panel.messages


def test_the_nodes_own_model_is_asked_through_the_nodes_and_another_of_its_name_by_its_fingerprint(shared_lab):
    own, other = load_embedder("hash"), load_embedder("hash", dim=128)
    assert list(SearchPanel(shared_lab, models=["hash", own, "wordllama"]).models) == ["wordllama"]
    assert list(SearchPanel(shared_lab, models=[other]).models) == [other.fingerprint]


def test_a_model_that_fails_is_told_once_and_the_others_answer(shared_lab):
    with ComparisonPanel(shared_lab, models=["no-such-model", load_embedder("hash", dim=128)]) as panel:
        panel.ask("orders")
        wait_until(lambda: panel._answer is not None)
        assert [column.model for column in panel._answer.columns] == [
            "hash",
            load_embedder("hash", dim=128).fingerprint,
        ]
        first = panel._answer
        press(panel, "Ask")
        wait_until(lambda: panel._answer is not first)
        assert [message.action for message in panel.messages if message.failed] == ["ask no-such-model"]


def test_a_question_that_fails_is_told_once(shared_lab):
    with SearchPanel(shared_lab, models=["no-such-model"]) as panel:
        panel.ask("orders")
        _ = panel.widget
        panel._model.value = "no-such-model"
        wait_until(lambda: panel.messages)
        for _ in range(5):
            panel.refresh()
        wait_until(lambda: not panel._asking)
        assert len(panel.messages) == 1
        assert "no model is called &#x27;no-such-model&#x27;" in shown(panel)


def test_panels_of_one_node_and_of_no_node():
    charts = repository()
    node = Node(charts, load_embedder("hash"))
    node.rebuild()
    with SearchPanel(node) as panel:
        panel.ask("orders of product 7")
        wait_until(lambda: "Orders of product 7" in shown(panel))
    with pytest.raises(ValueError, match="there is no node to ask"):
        SearchPanel([])


def test_nodes_that_answer_alike_share_a_column_and_a_model_has_its_own(lab):
    with ComparisonPanel(lab, models=["wordllama"]) as panel:
        panel.ask("espresso")
        wait_until(lambda: panel._answer is not None, timeout=60)
        assert [column.nodes for column in panel._answer.columns] == [("node-0", "node-1"), ()]
        lab.partition(1)
        lab.nodes[0].update_chart(Chart(chart_id=900, title="Espresso machines by floor"))
        wait_until(lambda: panel.refresh() and len(panel._answer.columns) == 3, timeout=60)
        html = shown(panel)
        assert "only here" in html
        assert "9 of 10 shared with the first column" in html
        assert "<script" not in html
        assert not panel.messages


@pytest.mark.parametrize("make", [SearchPanel, ComparisonPanel])
def test_an_answer_of_a_node_that_lacks_charts_says_so_until_it_is_complete(make):
    node = Node(repository(), load_embedder("hash"), "unix:///nowhere/redis.sock", node_id=EVIL)
    node.update_chart(Chart(chart_id=900, title="Espresso machines by floor"))
    with make([node], models=[]) as panel:
        panel.interval = 0.01
        panel.ask("espresso machines by floor")
        wait_until(lambda: "Espresso machines by floor" in shown(panel))
        said = f"<bdi>{escape(EVIL)}</bdi> is not complete, charts may be missing below: it holds <bdi>1 charts: "
        assert said in shown(panel)
        assert said in panel._repr_html_()
        (announced,) = re.findall("<div[^>]* role='status'>(?:(?!</div>).)*is not complete", shown(panel), re.DOTALL)
        assert EVIL not in announced
        with node:
            node.rebuild()
            wait_until(lambda: "is not complete" not in shown(panel))
            assert "is not complete" not in panel._repr_html_()


def test_no_model_is_asked_before_it_is_ticked(shared_lab):
    with ComparisonPanel(shared_lab) as panel:
        assert "wordllama" in panel.models
        panel.ask("orders")
        wait_until(lambda: panel._answer is not None)
        assert len(panel._answer.columns) == 1


def test_a_model_index_follows_saves_and_deletions():
    charts = repository()
    said = []
    index = ModelIndex(charts, "hash", said.append)
    assert repr(index) == "ModelIndex('hash', revision 0)"
    assert index.search("orders of product 7", 1)[0].chart_id == 7
    assert said[0] == "loading hash ..."
    assert said[-1] == ""
    charts.delete(7)
    charts.save(Chart(chart_id=99, title="Espresso", chart_type="kpi", source="Kitchen"))
    found = index.search("espresso", 50)
    assert found[0][:1] + found[0][2:] == (99, "Espresso", "kpi", "Kitchen", (), (), "")
    assert 7 not in {chart.chart_id for chart in found}
    assert repr(index) == f"ModelIndex('hash', revision {charts.revision})"


def test_a_title_is_a_link_where_the_chart_has_one_and_no_other_scheme_ever_gets_there():
    linked = Found(7, 0.5, "<b>Revenue</b>", url="https://bi.example.org/?a=1&b='\"><script>")
    assert chart_cell(linked) == (
        "<div class='cl-chart-title'><a href='https://bi.example.org/?a=1&amp;b=&#x27;&quot;&gt;&lt;script&gt;' "
        "target='_blank' rel='noopener'><bdi>&lt;b&gt;Revenue&lt;/b&gt;</bdi></a></div>"
    )
    for url in ("", "javascript:alert(1)", " javascript:alert(1)", "JAVASCRIPT:alert(1)//https://x", "data:text/html,x",
                "java\nscript:alert(1)", "https:alert(1)", "//host/x", "https://[", "https://a b/"):  # fmt: skip
        assert "<a" not in chart_cell(linked._replace(url=url))
        if url:
            with pytest.raises(ChartError, match="url="):
                Chart(chart_id=7, title="Revenue", url=url)


def test_a_model_index_tells_a_link_that_was_added_and_embeds_nothing_for_it():
    charts = repository()
    model = FragileModel(load_embedder("hash"))
    index = ModelIndex(charts, model)
    assert index.search("orders of product 7", 1)[0].url == ""
    made = model.made.copy()

    charts.save(replace(charts.get(7), url="https://bi.example.org/7"))

    assert index.search("orders of product 7", 1)[0].url == "https://bi.example.org/7"
    assert model.made - made == Counter({"orders of product 7": 1})


def test_a_model_index_follows_a_repository_that_is_restored_from_a_backup(tmp_path):
    charts = ChartRepository(f"sqlite:///{tmp_path}/charts.db")
    charts.save_many([Chart(chart_id=i, title=title) for i, title in enumerate(["Old title", "Espresso", "Tea"])])
    model = FragileModel(load_embedder("hash"))
    index = ModelIndex(charts, model)
    assert index.search("title", 1)[0].title == "Old title"
    made = model.made.copy()
    with closing(sqlite3.connect(tmp_path / "charts.db")) as live, closing(sqlite3.connect(":memory:")) as backup:
        live.backup(backup)
        charts.save(Chart(chart_id=0, title="New title"))
        charts.save(Chart(chart_id=7, title="Newer title"))
        charts.delete(1)
        assert {found.title for found in index.search("title", 5)} == {"New title", "Newer title", "Tea"}
        backup.backup(live)

    assert {found.title for found in index.search("title", 5)} == {"Old title", "Espresso", "Tea"}
    assert model.made["Tea"] == made["Tea"], "what has not changed is not embedded again"
    charts.save(Chart(chart_id=1, title="Espresso uptime"))
    assert index.search("espresso", 1)[0].title == "Espresso uptime"


def test_every_type_of_the_catalogue_has_a_drawing_of_its_own():
    types = set(catalogue.charts()["chart_type"])
    drawings = {drawing(name) for name in types}
    assert len(drawings) == len(types)
    assert drawing("no such type") == drawing("") not in drawings
    assert drawing(EVIL) == drawing("")
    assert all("aria-hidden='true'" in svg for svg in drawings)


# --- an answer that follows its controls --------------------------------------------------------------------------


class Picture:
    """What draws itself as a PNG, as plots do; not if it is negative."""

    def __init__(self, number):
        self.number = number

    def _repr_mimebundle_(self, include=None, exclude=None):
        if self.number < 0:
            raise ValueError("cannot draw <b>less</b> than nothing")
        return {"image/png": str(self.number).encode()}, {"image/png": {"width": 8}}


def number_control():
    return ipywidgets.IntText(1, description="number")


def seen(answer):
    """The data of all that is shown, one after the other, once there is nothing left to answer."""
    wait_until(lambda: not answer._working)
    return [output.get("data", output) for place in answer._places for output in place.outputs]


def png(number):
    return b64encode(str(number).encode()).decode()


def test_a_changed_control_has_another_answer():
    control = number_control()
    answer = LiveAnswer(lambda number: (f"number {number}", Picture(number)), {"number": control})
    assert seen(answer)[0]["text/plain"] == "'number 1'"
    assert seen(answer)[1]["image/png"] == png(1)
    control.value = 2
    assert seen(answer)[0]["text/plain"] == "'number 2'"
    assert seen(answer)[1]["image/png"] == png(2)


def test_a_page_without_a_widget_manager_gets_each_thing_that_was_shown_first():
    control = number_control()
    answer = LiveAnswer(lambda number: (pl.DataFrame({"number": [number]}), Picture(number)), {"number": control})
    (top, _), (table, _), (picture, metadata) = answer._bundles()
    assert top["text/plain"] == "LiveAnswer(number=1)"
    assert "<td>1</td>" in table["text/html"]
    assert picture["image/png"] == png(1)
    assert "text/html" not in picture  # which a code host would prefer to the picture
    assert metadata == {"image/png": {"width": 8}}
    assert len({bundle[WIDGET_VIEW]["model_id"] for bundle in (top, table, picture)}) == 3


def test_what_goes_wrong_is_shown_in_place_of_the_answer_and_the_next_one_is_answered():
    control = number_control()
    answer = LiveAnswer(lambda number: (f"{6 / number:g}", Picture(number)), {"number": control})
    control.value = 0
    (error,) = seen(answer)
    assert (error["output_type"], error["traceback"]) == ("error", ["ZeroDivisionError: division by zero"])
    control.value = -1
    (error,) = seen(answer)
    assert error["traceback"] == ["ValueError: cannot draw <b>less</b> than nothing"]
    control.value = 3
    assert seen(answer)[1]["image/png"] == png(3)
    with pytest.raises(ZeroDivisionError):
        LiveAnswer(lambda number: 1 / number, {"number": ipywidgets.IntText(0)})


def test_an_answer_that_is_a_search_says_where_the_node_lacks_charts():
    node = Node(repository(), load_embedder("hash"), "unix:///nowhere/redis.sock")
    control = ipywidgets.IntText(3)
    with LiveAnswer(lambda k: node.search("orders", k), {"k": control}) as answer:
        assert "<b>incomplete</b>, from <bdi>0 charts: this node has not read" in seen(answer)[0]["text/html"]
        with node:
            node.rebuild()
            control.value = 4
            assert "incomplete" not in seen(answer)[0]["text/html"]


def test_of_quick_changes_the_last_one_is_answered_and_nobody_waits_for_the_others():
    free, asked = threading.Event(), []

    def slowly(number):
        asked.append(number)
        assert number == 1 or free.wait(60)
        return f"number {number}"

    control = number_control()
    answer = LiveAnswer(slowly, {"number": control})
    working = []
    answer._notice.observe(lambda _: working.append(answer._working), "value")
    for number in range(2, 100):
        control.value = number
    assert "working" in answer._notice.value
    free.set()
    assert seen(answer)[0]["text/plain"] == "'number 99'"
    assert asked[0] == 1
    assert asked[-1] == 99
    assert len(asked) <= 3
    assert answer._notice.value == ""
    assert working == [True, True]  # whoever sees that the work is over finds the notice gone


def test_something_long_is_seen_as_it_goes_and_given_up_for_the_next_question():
    more, ended = threading.Event(), []

    def counted(number):
        try:
            yield f"number {number}, begun"
            if number > 1:
                assert more.wait(60)
                yield f"number {number}, on its way"
            yield f"number {number}, done"
        finally:
            ended.append(number)

    control, start = number_control(), ipywidgets.Button()
    answer = LiveAnswer(counted, {"number": control}, box=ipywidgets.HBox([control, start]), start=start)

    def shown_now():
        return answer._places[0].outputs[0]["data"]["text/plain"]

    assert shown_now() == "'number 1, done'"
    control.value = 2
    assert not answer._working  # only the button begins
    start.click()
    wait_until(lambda: shown_now() == "'number 2, begun'")
    control.value = 3
    start.click()
    more.set()
    assert seen(answer)[0]["text/plain"] == "'number 3, done'"
    assert ended == [1, 2, 3]


def test_a_hundred_answers_that_were_closed_leave_no_thread_no_widget_and_no_comm():
    widgets_before = len(ipywidgets_widget._instances)
    comms_before = len(comm.get_comm_manager().comms)
    threads_before = set(threading.enumerate())
    for number in range(100):
        control, start = number_control(), ipywidgets.Button() if number % 2 else None
        with LiveAnswer(lambda number: (number, Picture(number)), {"number": control}, start=start) as answer:
            control.value = 2
            if start is not None:
                start.click()
            assert len(seen(answer)) == 2
        answer.close()
        assert answer.closed

    wait_until(lambda: set(threading.enumerate()) <= threads_before)
    assert len(ipywidgets_widget._instances) == widgets_before
    assert len(comm.get_comm_manager().comms) == comms_before


def test_a_closed_answer_answers_no_more_and_its_static_face_remains():
    more, asked = threading.Event(), []

    def counted(number):
        asked.append(number)
        yield f"number {number}, begun"
        if number > 1:
            assert more.wait(60)
            yield f"number {number}, done"

    control = number_control()
    answer = LiveAnswer(counted, {"number": control})
    control.value = 2
    wait_until(lambda: "number 2, begun" in answer._places[0].outputs[0]["data"]["text/plain"])
    control.value = 3
    answer.close()
    more.set()
    wait_until(lambda: not answer._working)
    control.value = 4

    assert asked == [1, 2]
    assert not answer._working
    (top, _), (place, _) = answer._bundles()
    assert top == {"text/plain": "LiveAnswer(number=4, closed)"}
    assert place == {"text/plain": "'number 2, begun'"}


# --- static pages -------------------------------------------------------------------------------------------------


def test_a_labs_static_page_shows_verdict_server_policy_and_nodes(lab):
    html = lab._repr_html_()
    for said in ("Lab: both nodes agree", "running", "39 charts, revision 39", "Policy(", "node-1", "hash"):
        assert said in html
    assert "<script" not in html
    lab.partition(1)
    lab.nodes[0].update_chart(Chart(chart_id=900, title="Espresso"))
    assert "nodes differ" in lab._repr_html_()
    lab.close()
    assert "Lab (closed): no node is alive" in lab._repr_html_()
    assert lab.closed


def test_a_nodes_static_page_is_a_card(lab):
    html = lab.nodes[0]._repr_html_()
    for said in ("Node node-0: running", "39, digest", "hash:64:v1:t2", "connected, "):
        assert said in html
    assert "#2e8540" in html
    lab.kill(0)
    assert "Node node-0: stopped" in lab.nodes[0]._repr_html_()
    assert "#2e8540" not in lab.nodes[0]._repr_html_()


def test_a_card_shows_its_words_as_text():
    html = card(EVIL, {EVIL: EVIL}, colour="red", more="<p>more</p>")
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 3
    assert "<p>more</p>" in html


def test_text_is_escaped_and_isolated():
    assert text("a & <b>'\u202e'</b>") == "<bdi>a &amp; &lt;b&gt;&#x27;\u202e&#x27;&lt;/b&gt;</bdi>"
