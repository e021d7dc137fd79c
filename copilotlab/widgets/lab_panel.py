"""A lab, live: its nodes, its faults, and what happens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import ipywidgets as widgets
import polars as pl

from copilotlab.charts import Chart
from copilotlab.lab.faults import FAULTS, Fault
from copilotlab.lab.summary import summary_html
from copilotlab.markup import text
from copilotlab.monitoring.agreement import Agreement, short
from copilotlab.protocol.toggles import SWITCHES
from copilotlab.widgets.glance import Glance
from copilotlab.widgets.node_card import card_html, progress_html, row_html
from copilotlab.widgets.panel import Panel, label, set_options
from copilotlab.widgets.pulse import Pulse

if TYPE_CHECKING:
    from copilotlab.lab import Lab
    from copilotlab.lab.proxy import Direction
    from copilotlab.node import Node

EVENTS_SHOWN = 200
EVERYBODY = "all"
ALL_NODES = "all nodes"
TOGGLES = (*SWITCHES, "rebuild_at_reconnect")  # those that are on or off
BEGIN = "Begin the fault"
CARDS = 8  # more nodes than that are rows
MOST = 64  # nodes, as in `Lab`


class LabPanel(Panel):
    """The live panel of a lab; `Lab.panel` makes it.

    It has a card for each node (charts, digest, Redis, lease, lag, batch), or, for more than eight, a row with the last
    minute of each (lag, age of the last event, search time). It tells whether the nodes agree, and has buttons for the
    server and for each node, how many nodes there are to be, every fault of `FAULTS` to begin and to end, a chart to
    save on any node, and the timeline, newest first. A node that was stopped is offered for nothing any more. A button
    that fails says why under "messages". The lab stays yours: closing the panel does not close it, and what its buttons
    did to the server or to a node stays as it is; only a fault that was begun by its name ends with the panel or with
    the lab.
    """

    def __init__(self, lab: Lab) -> None:
        super().__init__()
        self.lab = lab
        self._cards: list[widgets.HTML] = []
        self._node_buttons: list[list[widgets.Button]] = []  # of each card
        self._pulses: list[Pulse] = []
        self._alive = 0  # nodes, at the last look
        self._glance = Glance(lab.charts)
        self._on: _Begun | None = None  # the fault that was begun by its name and has not ended

    def close(self) -> None:
        """Close the panel, as `Panel.close` does, and end the fault that is on."""
        super().close()
        self._end_what_is_on()

    def _over(self) -> str:
        return "This lab is closed: what is shown is how it ended." if self.lab.closed else ""

    # --- building -----------------------------------------------------------------------------------------------

    def _build(self) -> list[widgets.Widget]:
        self._cards, self._node_buttons, self._pulses, self._alive = [], [], [], 0
        self._verdict = self._html("cl-verdict-widget")
        self._server = self._html("cl-server")
        self._grid = widgets.GridBox()
        self._grid.add_class("cl-cards")
        self._events = self._html("cl-events")
        return [
            self._verdict,
            self._server_row(),
            self._nodes_row(),
            self._fault_row(),
            self._grid,
            self._change_row(),
            self._toggle_row(),
            self._timeline_row(),
            self._scroller(self._events, "15rem"),
        ]

    def _server_row(self) -> widgets.HBox:
        redis = self.lab.redis
        faults: tuple[tuple[str, str, Callable[[], object], str], ...] = (
            ("Stop", "stop", lambda: redis.stop(), "stop"),
            ("Kill", "kill", lambda: redis.kill(), "bolt"),
            ("Pause", "pause", lambda: redis.pause(), "pause"),
            ("Resume", "resume", lambda: redis.resume(), "play"),
            ("Start with data", "start with data", lambda: redis.start(), "power-off"),
            ("Start empty", "start empty", lambda: redis.start(keep_data=False), "power-off"),
            ("Restart", "restart", lambda: redis.restart(), "refresh"),
        )
        buttons = [
            self._button(words, f"{words}, the server", self._noted(what, "server", call), icon=icon)
            for words, what, call, icon in faults
        ]
        return self._row(label("Server"), self._server, *buttons)

    def _noted(self, what: str, detail: str, call: Callable[[], object]) -> Callable[[], None]:
        """Wrap ``call`` so that the timeline says so if it fails."""
        event = what.replace(" ", "_")

        def noted() -> None:
            try:
                call()
            except Exception:
                self.lab.note(f"{event}_failed", detail)
                raise

        return noted

    def _nodes_row(self) -> widgets.HBox:
        self._count = widgets.BoundedIntText(
            value=len(self.lab.nodes), min=1, max=MOST, description="how many", layout=widgets.Layout(width="9rem")
        )
        scale = self._button(
            "Scale", "Scale the nodes", self._scale, does="add or remove until so many run", icon="arrows-v"
        )
        self._delay = widgets.BoundedFloatText(
            value=0.2, min=0, max=60, step=0.1, description="Delay by (s)", layout=widgets.Layout(width="10rem")
        )
        return self._row(label("Nodes"), self._count, scale, self._delay)

    def _fault_row(self) -> widgets.HBox:
        self._fault = widgets.Dropdown(options=list(FAULTS), description="named", layout=widgets.Layout(width="18rem"))
        self._victim = widgets.Dropdown(description="hits", layout=widgets.Layout(width="10rem"))
        self._begin = self._button("Begin", BEGIN, self._begin_fault, icon="bolt")
        self._end = self._button("End", "End the fault", self._end_fault, icon="check")
        self._hint = self._html("cl-hint")
        self._follow(self._fault)
        return self._row(label("Fault"), self._fault, self._victim, self._begin, self._end, self._hint)

    def _change_row(self) -> widgets.HBox:
        self._writer = widgets.Dropdown(description="On", layout=widgets.Layout(width="11rem"))
        self._title = widgets.Text(
            description="save a chart",
            placeholder="its title",
            continuous_update=False,
            layout=widgets.Layout(width="22rem"),
        )
        return self._row(
            label("Work"),
            self._writer,
            self._title,
            self._button("Save", "Save the chart", self._save_chart, icon="save"),
            self._button("Rebuild", "Rebuild from the chosen node", self._rebuild, icon="cogs"),
            self._button("Sync", "Sync the chosen node", self._sync, icon="exchange"),
        )

    def _toggle_row(self) -> widgets.HBox:
        self._toggle = widgets.Dropdown(options=TOGGLES, description="set", layout=widgets.Layout(width="16rem"))
        self._where = widgets.Dropdown(
            options=[(ALL_NODES, ALL_NODES)], description="on", layout=widgets.Layout(width="11rem")
        )
        turn_on = self._button("Turn on", "Turn on the chosen toggle", lambda: self._set(True), icon="toggle-on")
        turn_off = self._button("Turn off", "Turn off the chosen toggle", lambda: self._set(False), icon="toggle-off")
        return self._row(label("Toggle"), self._toggle, self._where, turn_on, turn_off)

    def _timeline_row(self) -> widgets.HBox:
        self._of, self._like = timeline_controls()
        self._follow(self._of, self._like)
        return self._row(label("Timeline"), self._of, self._like)

    def _add_card(self, index: int) -> widgets.VBox:
        lab, name = self.lab, self.lab.nodes[index].node_id

        def fault(words: str, does: str, call: Callable[[], object], tone: str = "") -> widgets.Button:
            return self._button(words, f"{words} {name}", call, does=does, tone=tone)

        def one_way(direction: Direction) -> Callable[[], object]:
            return lambda: lab.one_way(index, direction)

        facts = self._html()
        buttons = [
            fault("Partition", "cut off from the server", lambda: lab.partition(index)),
            fault("Mute", "nothing that it sends arrives", one_way("to_server")),
            fault("Deafen", "nothing reaches it", one_way("to_client")),
            fault("Delay", "delay its line", lambda: lab.delay(index, self._delay.value)),
            fault("Reset", "reset its connections", lambda: lab.reset(index)),
            fault("Heal", "heal its line", lambda: lab.heal(index)),
            fault("Freeze", "let it stand still", lambda: lab.freeze(index)),
            fault("Resume", "let it go on", lambda: lab.resume(index)),
            fault("Kill", "end it as a crash does", lambda: lab.kill(index), tone="danger"),
        ]
        self._cards.append(facts)
        self._node_buttons.append(buttons)
        self._pulses.append(Pulse(lab.nodes[index]))
        card = widgets.VBox([facts, self._row(*buttons, name="cl-card-buttons")])
        card.add_class("cl-card")
        return card

    # --- what the buttons do that is more than one call -----------------------------------------------------------

    def _scale(self) -> str:
        """Add nodes, or stop those that were added last, as a deployment does, until as many run as are wanted."""
        wanted, lab = self._count.value, self.lab
        alive = [index for index, node in enumerate(lab.nodes) if not _stopped(node)]
        surplus = alive[wanted:][::-1]
        for index in surplus:
            lab.resume(index)  # one that stands still could not take its leave
            lab.note("remove_node", lab.nodes[index].node_id)
            lab.nodes[index].stop()
        added = [lab.add_node().node_id for _ in range(wanted - len(alive))]
        removed = [lab.nodes[index].node_id for index in surplus]
        changes = [f"{', '.join(names)} {what}" for names, what in ((added, "added"), (removed, "removed")) if names]
        return f"{wanted} nodes: {'; '.join(changes) or 'as before'}"

    def _begin_fault(self) -> str:
        fault = FAULTS[self._fault.value]
        begun = _Begun(fault, self._index(self._victim) if fault.scope == "line" else 0, self._victim.label)
        if self._on is not None:
            raise RuntimeError(f"{self._on} is on; end it first")
        self.lab.note("begin_fault", str(begun))
        self._noted("begin fault", str(begun), lambda: fault.start(self.lab, begun.at))()
        if not fault.passes:
            with self._lock:
                self._on = begun
                closed = self._closed
            if closed:
                self._end_what_is_on()
        return f"{begun}: begun"

    def _end_fault(self) -> str:
        begun = self._on
        if begun is None:
            raise RuntimeError("no fault is on; begin one first")
        said = self._undo(begun)
        self._on = None
        return said

    def _undo(self, begun: _Begun) -> str:
        self.lab.note("end_fault", str(begun))
        self._noted("end fault", str(begun), lambda: begun.fault.end(self.lab, begun.at))()
        return f"{begun}: ended"

    def _end_what_is_on(self) -> None:
        """End the fault that is on: once the panel or the lab is closed, nobody else can."""
        begun, self._on = self._on, None
        if begun is None:
            return
        gone = {"line": self.lab.closed, "server": self.lab.redis.state == "closed"}  # and the fault is gone too
        if not gone.get(begun.fault.scope, False):
            self._act("fault: end", lambda: self._undo(begun))

    def _index(self, nodes: widgets.Dropdown) -> int:
        index: int | None = nodes.value
        if index is None:
            raise ValueError("no node is alive; start the lab, or add a node")
        return index

    def _chosen(self) -> Node:
        return self.lab.nodes[self._index(self._writer)]

    def _save_chart(self) -> str:
        node = self._chosen()
        chart_id = max((chart.chart_id for chart in self.lab.charts), default=0) + 1
        result = node.update_chart(Chart(chart_id=chart_id, title=self._title.value))
        return f"chart {chart_id} on {node.node_id}: {result.outcome}, revision {result.revision}"

    def _rebuild(self) -> str:
        node = self._chosen()
        result = node.rebuild()
        return f"{node.node_id}: {result.outcome}, {result.charts:,} charts, {result.embedded:,} embedded"

    def _set(self, on: bool) -> str:
        name, where = self._toggle.value, self._where.value
        change: dict[str, Any] = {name: on}
        everywhere = where == ALL_NODES
        node = self._chosen() if everywhere else self.lab.nodes[where]
        version = node.configure(everywhere=everywhere, by="the lab's panel", **change)
        return f"{name} is {'on' if on else 'off'} on {where if everywhere else node.node_id}, version {version}"

    def _sync(self) -> str:
        node = self._chosen()
        return f"{node.node_id}: {node.sync().outcome}"

    # --- showing --------------------------------------------------------------------------------------------------

    def _show(self) -> None:
        nodes = list(self.lab.nodes)
        statuses = [node.status() for node in nodes]
        agreement = Agreement.of(statuses)
        if len(nodes) > len(self._cards):
            self._grow(len(nodes))
        self._offer(nodes, statuses)
        self._verdict.value = verdict_html(statuses, agreement, self._glance.words())
        self._show_fault()
        server = self.lab.redis
        self._server.value = (
            f"<span class='cl-server-state cl-{'good' if server.state == 'running' else 'warn'}' role='status'>"
            f"{text(f'{server.kind} {server.version}')} <b>{text(server.state)}</b></span>"
        )
        living = self.lab.living
        parts = zip(self._cards, self._pulses, nodes, statuses, self.lab.proxies, strict=False)
        for card, pulse, node, status, line in parts:
            frozen = node.running and node not in living
            pulse.take(int(str(status["lag"])))
            if len(nodes) > CARDS:
                card.value = row_html(status, line.state, agreement, pulse.html(), frozen=frozen)
            else:
                card.value = card_html(status, line.state, agreement, frozen=frozen)
        self._events.value = events_html(self.lab.timeline(), self._of.value, self._like.value)

    def _show_fault(self) -> None:
        if self.lab.closed:
            self._end_what_is_on()
        begun, chosen = self._on, FAULTS[self._fault.value]
        hindrance = chosen.hindrance(self.lab)
        self._hint.value = hint_html(chosen, hindrance) if begun is None else on_html(begun.fault, str(begun))
        self._victim.disabled = self.lab.closed or chosen.scope != "line"
        self._begin.disabled = self.lab.closed or begun is not None or bool(hindrance)
        self._begin.tooltip = f"{BEGIN}: {hindrance}" if hindrance else BEGIN  # it begins with the name
        self._end.disabled = self.lab.closed or begun is None

    def _grow(self, count: int) -> None:
        cards = [self._add_card(index) for index in range(len(self._cards), count)]
        self._grid.children = (*self._grid.children, *cards)
        if count > CARDS:
            self._grid.add_class("cl-rows")
        names = ["lab", *(node.node_id for node in self.lab.nodes[:count])]
        set_options(self._of, [(EVERYBODY, EVERYBODY), *((name, name) for name in names)])

    def _offer(self, nodes: Sequence[Node], statuses: Sequence[Mapping[str, object]]) -> None:
        """Offer nodes for work and for faults as long as they were not stopped."""
        running = [status["state"] != "stopped" for status in statuses]
        for runs, buttons in zip(running, self._node_buttons, strict=False):
            for button in buttons:
                button.disabled = self.lab.closed or not runs
        options: list[tuple[str, object]] = [
            (node.node_id, index) for index, (node, runs) in enumerate(zip(nodes, running, strict=True)) if runs
        ]
        for dropdown in (self._writer, self._victim):
            set_options(dropdown, options)
        set_options(self._where, [(ALL_NODES, ALL_NODES), *options])
        if self._count.value == self._alive or not self._alive:  # else somebody has typed another number
            self._count.value = max(1, sum(running))
        self._alive = max(1, sum(running))

    def _repr_html_(self) -> str:
        return summary_html(self.lab)

    def __repr__(self) -> str:
        return f"LabPanel({self.lab!r}{', closed' if self.closed else ''})"


def _stopped(node: Node) -> bool:
    return node.status()["state"] == "stopped"


class _Begun(NamedTuple):
    """A fault that was begun; for a fault of a line, also the index and the name of the node."""

    fault: Fault
    at: int
    node: str

    def __str__(self) -> str:
        return f"{self.fault.name}, {self.node if self.fault.scope == 'line' else self.fault.scope}"


def hint_html(fault: Fault, hindrance: str) -> str:
    """Say what a fault does, and, where it cannot be begun, why."""
    why = f"; <span class='cl-warn'>but {text(hindrance)}</span>" if hindrance else ""
    return f"<span role='status'>{text(fault.what)}{why}</span>"


def on_html(fault: Fault, name: str) -> str:
    """Say which fault is on, and what it does."""
    sign = "<span aria-hidden='true'>▲</span>"
    return f"<span role='status'><b class='cl-warn'>{sign} {text(name)}</b> is on: {text(fault.what)}</span>"


def verdict_html(statuses: Sequence[Mapping[str, object]], agreement: Agreement, repository: str) -> str:
    """Say in one line whether the nodes agree: who holds which version, how far behind, and which batches run.

    statuses: each node's `Node.status`. agreement: made of them. repository: what it holds, in words.
    """
    groups = "".join(
        f"<span class='cl-group' title='{escape(', '.join(nodes))}'>"
        f"<span class='cl-letter cl-letter-{agreement.letter(digest).lower()}'>{agreement.letter(digest)}</span> "
        f"<code>{text(short(digest))}</code> {text(_names(nodes))}</span>"
        for digest, nodes in agreement.groups.items()
    )
    tone, sign = ("good", "✓") if agreement.complete else ("warn", "…" if agreement.alike else "≠")
    late = f"<span class='cl-warn'>up to {agreement.lag:,} charts behind</span>" if agreement.lag else ""
    batches = "".join(
        f"<span class='cl-batch'><b>{text(status['node'])}</b> {progress_html(str(status['batch']))}</span>"
        for status in statuses
        if status["batch"] and status["state"] != "stopped"
    )
    return (
        f"<div class='cl-verdict cl-{tone}' role='status'><span class='cl-sign' aria-hidden='true'>{sign}</span> "
        f"<b>{escape(str(agreement)[:1].upper() + str(agreement)[1:])}</b>{groups}{late}"
        f"<span class='cl-repository'>repository: {escape(repository)}</span></div>"
        f"<div class='cl-batches'>{batches or 'no batch is under way'}</div>"
    )


def timeline_controls() -> tuple[widgets.Dropdown, widgets.Text]:
    """Make the two controls of a timeline: whose events, and with which words."""
    of = widgets.Dropdown(options=[(EVERYBODY, EVERYBODY)], description="of", layout=widgets.Layout(width="11rem"))
    words = widgets.Text(description="with", placeholder="part of an event", layout=widgets.Layout(width="18rem"))
    return of, words


def events_html(timeline: pl.DataFrame, node: str = EVERYBODY, words: str = "") -> str:
    """Draw the newest events as a table, newest first: those of ``node``, with ``words`` in them where given."""
    shown = timeline.with_columns(pl.col("event").str.replace_all("_", " "))
    if node != EVERYBODY:
        shown = shown.filter(pl.col("node") == node)
    if words.strip():
        said = pl.concat_str("node", "event", "detail", separator=" ").str.to_lowercase()
        shown = shown.filter(said.str.contains(words.strip().lower(), literal=True))
    rows = "".join(
        f"<tr class='{'cl-fault-row' if who == 'lab' else ''}'><td class='cl-number'>{when:.2f}</td>"
        f"<td>{text(who)}</td><td class='{_event_tone(event)}'>{text(event)}</td><td>{text(detail)}</td></tr>"
        for when, who, event, detail in shown.tail(EVENTS_SHOWN).reverse().iter_rows()
    )
    if not rows:
        return "<p class='cl-empty'>no such event yet</p>"
    head = "".join(f"<th scope='col'>{name}</th>" for name in ("s", "node", "event", "detail"))
    return f"<table class='cl-table' aria-label='Timeline'><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _event_tone(event: str) -> str:
    if event.endswith(("failed", "away", "refused")) or event.startswith("dropped"):
        return "cl-bad"
    return "cl-good" if event.endswith(("back", "ended")) else ""


def _names(nodes: list[str]) -> str:
    return ", ".join(nodes) if len(nodes) <= 4 else f"{', '.join(nodes[:3])} and {len(nodes) - 3} more"
