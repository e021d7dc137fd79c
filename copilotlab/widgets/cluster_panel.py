"""A cluster, live: its nodes, its alerts, what happens, and what can be done about it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from typing import TYPE_CHECKING, NamedTuple

import ipywidgets as widgets
import polars as pl

from copilotlab.lifetime import Background
from copilotlab.markup import text
from copilotlab.monitoring.agreement import Agreement, short
from copilotlab.picture import Lease, Row, holds
from copilotlab.protocol.carrier import CarrierAway
from copilotlab.protocol.policy import Policy
from copilotlab.protocol.toggles import FIXED, SWITCHES
from copilotlab.toggle_words import POLICY_MEANINGS, ToggleTold
from copilotlab.widgets.cells import weakly
from copilotlab.widgets.lab_panel import EVERYBODY, events_html, timeline_controls
from copilotlab.widgets.node_card import Health, digest_chip, framed, progress_html, seconds
from copilotlab.widgets.panel import Panel, label, set_options

if TYPE_CHECKING:
    from copilotlab.cluster import Cluster

DIFFERENCES_SHOWN = 200
TOGGLES_SECONDS = 2.0  # between two looks at what is set on the nodes
EVERY_NODE = "every node"
MEANINGS = {**SWITCHES, **POLICY_MEANINGS}
RELEASE = "release_lease"
CONFIGURE = "configure"
ACTIONS = {"rebuild": "Rebuild", "sync": "Sync", "stop": "Stop"}  # of each card
EFFECTS: Mapping[str, str] = {
    "rebuild": "It takes the lease and brings the whole catalogue into all nodes; what no node has is embedded, once. "
    "Searches go on.",
    "sync": "It compares all that it holds with the repository and fetches what differs. Searches go on.",
    "switch_model": "It builds the vectors of that model beside the present ones, which takes memory for both, and "
    "answers with them once it has all. The other nodes keep theirs.",
    "stop": "It ends in order: it gives its lease back and leaves Redis. It comes back only if somebody or a "
    "supervisor starts it.",
    RELEASE: "What its holder says from then on is refused, and its batch ends as fenced. What was published stays; "
    "the next node that beats takes up the rest.",
    CONFIGURE: "It holds at once, until it is set again or the nodes have ended: what is to last belongs into their "
    "settings too.",
}


class _Pending(NamedTuple):
    """What is to be confirmed. said: what more there is to say; value, by: of the toggle that is the argument."""

    action: str
    node: str
    argument: str = ""
    said: str = ""
    value: bool | int | float = False
    by: str = ""

    def __str__(self) -> str:
        if self.action == CONFIGURE:
            return f"set {self.argument.replace('_', ' ')} to {_valued(self.value)} for {self.node or EVERY_NODE}"
        return f"{self.action.replace('_', ' ')} {self.node}{f' to {self.argument}' * (self.action == 'switch_model')}"


class ClusterPanel(Panel):
    """The live panel of a cluster; `Cluster.panel` makes it.

    It tells whether the nodes agree and who holds the lease, and shows the alerts with what to do, a card for each
    node, the progress of a batch with its estimate, what differs chart by chart, and the timeline, newest first. Nodes
    are told to rebuild, to sync, to switch their model and to stop, toggles are set on one or on all, beside what is in
    force and who set it when, and a lease that is stuck is released; each says first what will happen, and waits to be
    confirmed. The cluster stays yours: closing the panel does not close it.
    """

    def __init__(self, cluster: Cluster) -> None:
        super().__init__()
        self.cluster = cluster
        self._cards: dict[tuple[str, str, bool], tuple[widgets.HTML, widgets.VBox]] = {}
        self._asks: dict[str, _Pending] = {}  # what each button of a card asks for, by the widget's id
        self._pending: _Pending | None = None
        self._compared = ""
        self._told: Mapping[str, tuple[Sequence[ToggleTold], str]] = {}
        self._untold = ""  # why nobody could be asked
        self._looked_at = float("-inf")
        self._looking = False

    def _over(self) -> str:
        return "This Cluster is closed: what is shown is how it ended." if self.cluster.closed else ""

    # --- building -----------------------------------------------------------------------------------------------

    def _build(self) -> list[widgets.Widget]:
        self._cards, self._asks, self._pending = {}, {}, None
        self._verdict = self._html("cl-verdict-widget")
        self._alerts = self._html("cl-alerts")
        self._grid = widgets.GridBox()
        self._grid.add_class("cl-cards")
        self._events, self._differing, self._toggles = self._html("cl-events"), self._html(), self._html()
        return [
            self._verdict,
            self._confirm_row(),
            self._alerts,
            self._grid,
            self._work_row(),
            self._compare_row(),
            self._scroller(self._differing, "12rem"),
            self._toggle_row(),
            self._scroller(self._toggles, "20rem"),
            widgets.HTML(fixed_html()),
            self._timeline_row(),
            self._scroller(self._events, "15rem"),
        ]

    def _confirm_row(self) -> widgets.HBox:
        self._question = self._html("cl-hint")
        self._confirm = self._button("Confirm", "Confirm what is asked", self._do_pending, tone="danger")
        self._cancel = self._button("Cancel", "Cancel what is asked", self._drop_pending)
        self._confirming = self._row(self._question, self._cancel, self._confirm)
        return self._confirming

    def _work_row(self) -> widgets.HBox:
        self._who = widgets.Dropdown(description="On", layout=widgets.Layout(width="11rem"))
        self._model = widgets.Text(
            description="model", placeholder="its name", continuous_update=False, layout=widgets.Layout(width="16rem")
        )
        switch = self._button("Switch model", "Switch model of the chosen node", self._ask_switch, icon="exchange")
        self._release = self._button("Release lease", "Release lease of its holder", self._ask_release, tone="danger")
        return self._row(label("Work"), self._who, self._model, switch, self._release)

    def _compare_row(self) -> widgets.HBox:
        self._left = widgets.Dropdown(description="Node", layout=widgets.Layout(width="12rem"))
        self._right = widgets.Dropdown(description="compared with", layout=widgets.Layout(width="15rem"))
        compare = self._button("Compare", "Compare chart by chart", self._compare, icon="columns")
        return self._row(label("Differences"), self._left, self._right, compare)

    def _toggle_row(self) -> widgets.HBox:
        self._toggle = widgets.Dropdown(
            options=[(name.replace("_", " "), name) for name in MEANINGS],
            description="set",
            layout=widgets.Layout(width="16rem"),
        )
        self._switch = widgets.Dropdown(
            options=[("on", True), ("off", False)], description="to", layout=widgets.Layout(width="8rem")
        )
        self._number = widgets.FloatText(description="to the number", layout=widgets.Layout(width="14rem"))
        self._where = widgets.Dropdown(
            options=[(EVERY_NODE, "")], description="for", layout=widgets.Layout(width="11rem")
        )
        self._by = widgets.Text(
            description="set by", placeholder="your name", continuous_update=False, layout=widgets.Layout(width="14rem")
        )
        ask = self._button("Set", "Set the chosen toggle", self._ask_configure, does="waits to be confirmed")
        self._meaning = self._html("cl-hint")
        self._follow(self._toggle)
        parts = (self._toggle, self._switch, self._number, self._where, self._by, ask, self._meaning)
        return self._row(label("Toggles"), *parts)

    def _timeline_row(self) -> widgets.HBox:
        self._of, self._like = timeline_controls()
        self._follow(self._of, self._like)
        return self._row(label("Timeline"), self._of, self._like)

    def _add_card(self, row: Row) -> tuple[widgets.HTML, widgets.VBox]:
        facts = self._html()
        parts: list[widgets.Widget] = [facts]
        if not row.builds:
            buttons = [self._asking(words, _Pending(action, row.node)) for action, words in ACTIONS.items()]
            actions = self._row(*buttons, name="cl-card-buttons")
            actions.add_class("cl-actions")
            parts.append(actions)
        card = widgets.VBox(parts)
        card.add_class("cl-card")
        return facts, card

    def _asking(self, words: str, pending: _Pending) -> widgets.Button:
        """Make a button that asks to be confirmed."""
        button = widgets.Button(
            description=words,
            tooltip=f"{words} {pending.node}: says what will happen, and waits to be confirmed",
            layout=self._button_layout,
            style=self._button_style,
        )
        button.add_class("cl-button")
        if pending.action == "stop":
            button.add_class("cl-danger")
        self._asks[button.model_id] = pending
        button.on_click(weakly(self._asked))
        return button

    # --- what the buttons do --------------------------------------------------------------------------------------

    def _asked(self, button: widgets.Button) -> None:
        self._pending = self._asks.get(button.model_id)
        self._changed()

    def _ask_switch(self) -> str:
        if not self._model.value.strip():
            raise ValueError("no model: give its name, such as 'wordllama'")
        self._pending = _Pending("switch_model", self._chosen(), self._model.value.strip())
        return "to be confirmed above"

    def _ask_release(self) -> str:
        lease = self.cluster.lease
        if lease is None:
            raise RuntimeError("the lease is free")
        self._pending = _Pending(RELEASE, lease.holder, lease.value)
        return "to be confirmed above"

    def _ask_configure(self) -> str:
        name, node, by = self._toggle.value, self._where.value, self._by.value.strip()
        value: bool | int | float = self._switch.value if _is_switch(name) else self._number.value
        if type(getattr(Policy(), name, None)) is int and value % 1 == 0:
            value = int(value)
        if why := self.cluster.why_not(name, value):
            raise ValueError(f"{name}={value}: {why}")
        if not by:
            raise ValueError("nobody is named: say who sets it")
        spread = (
            "The other nodes keep theirs." if node else "Nodes that are away, or come later, learn it from the others."
        )
        said = f"Now {_present(self._told, name, node)}. {spread} It is recorded as set by {by}, with the time."
        self._pending = _Pending(CONFIGURE, node, name, said, value, by)
        return "to be confirmed above"

    def _chosen(self) -> str:
        if self._who.value is None:
            raise ValueError("no node is alive")
        return str(self._who.value)

    def _do_pending(self) -> str:
        pending, self._pending = self._pending, None
        if pending is None:
            raise RuntimeError("nothing is asked for")
        self._changed()
        if pending.action == RELEASE:
            self.cluster.release_lease(pending.argument)
            return f"{pending}: done"
        if pending.action == CONFIGURE:
            change = {pending.argument: pending.value}
            said = self.cluster.configure(pending.node, everywhere=not pending.node, by=pending.by, **change)
            self._looked_at = float("-inf")
            return said
        return f"{pending.node}: {self.cluster.act(pending.node, pending.action, pending.argument)}"

    def _drop_pending(self) -> str:
        pending, self._pending = self._pending, None
        return f"{pending or 'nothing'}: not done"

    def _compare(self) -> str:
        found = self.cluster.differences(self._left.value or None, self._right.value or "")
        self._compared = differences_html(found)
        return f"{found.height:,} charts differ" if found.height else "nothing differs"

    # --- what is set on the nodes ---------------------------------------------------------------------------------

    def _look_at_toggles(self) -> None:
        """Begin to ask the nodes what is set on them, in a thread: some may not answer."""
        with self._lock:
            soon = time.monotonic() - self._looked_at < TOGGLES_SECONDS
            if self._looking or soon or self.cluster.closed or not self.cluster.connected:
                return
            self._looking = True
            self._looked_at = time.monotonic()
        Background(self._learn_toggles, "copilotlab-panel-toggles").start()

    def _learn_toggles(self) -> None:
        try:
            self._told, self._untold = self.cluster.told_toggles(), ""
        except CarrierAway as error:
            self._untold = f"what is set cannot be read: {error}"
        finally:
            self._looking = False
        self._changed()

    # --- showing --------------------------------------------------------------------------------------------------

    def _show(self) -> None:
        cluster = self.cluster
        rows, lease, found = cluster.rows(), cluster.lease, cluster.agreement()
        self._verdict.value = verdict_html(cluster, rows, lease, found)
        self._alerts.value = alerts_html(cluster.alerts())
        self._show_pending()
        self._show_cards(rows, lease, found)
        living = [row.node for row in rows if row.alive and row.version and not row.builds]
        names: list[tuple[str, object]] = [(name, name) for name in dict.fromkeys(living)]
        set_options(self._who, names)
        set_options(self._where, [(EVERY_NODE, ""), *names])
        self._show_toggles()
        set_options(self._left, [("every node", ""), *names])
        set_options(self._right, [("the repository" if cluster.charts is not None else "the most", ""), *names])
        everybody = sorted({row.node for row in rows})
        set_options(self._of, [(EVERYBODY, EVERYBODY), ("cluster", "cluster"), *((name, name) for name in everybody)])
        self._release.disabled = cluster.closed or lease is None
        self._differing.value = self._compared
        self._events.value = events_html(cluster.timeline(), self._of.value, self._like.value)

    def _show_toggles(self) -> None:
        self._look_at_toggles()
        name = self._toggle.value
        self._switch.layout.display, self._number.layout.display = ("", "none") if _is_switch(name) else ("none", "")
        self._meaning.value = text(f"{'on means' if _is_switch(name) else 'it means'}: {MEANINGS[name]}")
        self._toggles.value = toggles_html(self._told, self._untold)

    def _show_pending(self) -> None:
        pending = self._pending
        self._confirming.layout.display = "none" if pending is None else "flex"
        self._confirm.disabled = self._cancel.disabled = pending is None or self.cluster.closed
        effect = "" if pending is None else f"{EFFECTS[pending.action]} {pending.said}".strip()
        words = "" if pending is None else f"<b>{text(str(pending).capitalize())}?</b> {text(effect)}"
        self._question.value = f"<span role='alert'>{words}</span>" if words else ""

    def _show_cards(self, rows: Sequence[Row], lease: Lease | None, found: Mapping[str, Agreement]) -> None:
        keys = [(row.node, row.model, row.builds) for row in rows]
        gone = [self._cards.pop(key) for key in self._cards.keys() - set(keys)]
        for key, row in zip(keys, rows, strict=True):
            if key not in self._cards:
                self._cards[key] = self._add_card(row)
            facts, card = self._cards[key]
            facts.value = card_html(row, lease, found.get(row.model))
            for button in card.children[1].children if len(card.children) > 1 else ():
                button.disabled = self.cluster.closed or not row.alive or not row.version
        children = tuple(self._cards[key][1] for key in dict.fromkeys(keys))
        if self._grid.children != children:
            self._grid.children = children
        for _, card in gone:
            for button in card.children[1].children if len(card.children) > 1 else ():
                self._asks.pop(button.model_id, None)
                button.close()
            for part in (*card.children, card):
                part.close()

    def _repr_html_(self) -> str:
        return self.cluster._repr_html_()

    def __repr__(self) -> str:
        return f"ClusterPanel({self.cluster!r}{', closed' if self.closed else ''})"


def health(row: Row) -> Health:
    """Pick the one thing that matters most of a node."""
    if row.alive is None:
        return Health("away", "?", "unknown")
    if row.connection == "left":
        return Health("dead", "✕", "stopped")
    if not row.alive:
        return Health("away", "▲", "silent")
    if row.batch is not None:
        return Health("busy", "◐", row.batch.kind)
    if row.builds:
        return Health("busy", "◐", "building a model")
    if row.alerts:
        return Health("away", "▲", "alerts")
    return Health("good", "●", "alive" if row.state == "not told" else row.state)


def card_html(row: Row, lease: Lease | None, agreement: Agreement | None) -> str:
    """Draw the card of one node. agreement: of the nodes with its model."""
    letter = agreement.letter(row.digest) if agreement is not None and row.answers else ""
    held = holds(row, lease)
    gone = row.alive is False
    lag = "—" if gone or row.lag is None else f"{row.lag:,} charts" if row.lag else "none"
    outages = "not told" if row.outages is None else f"{row.outages:,}"
    facts = (
        ("charts", f"<b>{row.charts:,}</b>", ""),
        ("digest", digest_chip(row.digest, letter), ""),
        ("Redis", text(row.connection), "" if row.connection in ("connected", "left") else "cl-warn"),
        ("lag", text(lag), "cl-warn" if row.lag and not gone else ""),
        ("to", text(f"{row.revision:,} of {row.repository:,}"), "" if row.revision >= row.repository else "cl-warn"),
        ("lease", text("held" if held else "—"), "cl-strong" if held else ""),
        ("outages", text(outages), ""),
        ("version", text(row.version or "older"), ""),
        ("model", text(row.model), ""),
        ("at", text(row.address or "not told"), ""),
    )
    return framed(row.node, health(row), facts, _work(row))


def _work(row: Row) -> str:
    if row.alerts:
        names = ", ".join(alert.name.replace("_", " ") for alert in row.alerts)
        return f"<span class='cl-warn'>{text(names)}</span>"
    if row.batch is not None and row.alive is not False:
        return progress_html(f"{row.batch.kind} {row.batch.done}/{row.batch.total}")
    return ""


def verdict_html(cluster: Cluster, rows: Sequence[Row], lease: Lease | None, found: Mapping[str, Agreement]) -> str:
    """Say in one line how the cluster stands, who holds which version, who has the lease, and which batches run."""
    groups = "".join(
        f"<span class='cl-group' title='{escape(', '.join(nodes))}'>"
        f"<span class='cl-letter cl-letter-{agreement.letter(digest).lower()}'>{agreement.letter(digest)}</span> "
        f"<code>{text(short(digest))}</code> {text(', '.join(nodes[:4]))}{' …' if len(nodes) > 4 else ''}</span>"
        for agreement in found.values()
        for digest, nodes in agreement.groups.items()
    )
    tone, sign = ("good", "✓") if cluster.agree else ("warn", "▲")
    verdict = cluster.verdict
    held = "free" if lease is None else f"{lease.holder}, epoch {lease.epoch}, for {seconds(lease.seconds)}"
    gone = ", who shows no sign of life" if lease is not None and lease.alive is False else ""
    owed = ", a rebuild is owed" if cluster.owed else ""
    batches = "".join(
        f"<span class='cl-batch'><b>{text(row.node)}</b> "
        f"{progress_html(f'{row.batch.kind} {row.batch.done}/{row.batch.total}')}, {_left(row)}</span>"
        for row in rows
        if row.batch is not None and row.alive is not False
    )
    return (
        f"<div class='cl-verdict cl-{tone}' role='status'><span class='cl-sign' aria-hidden='true'>{sign}</span> "
        f"<b>{text(verdict[:1].upper() + verdict[1:])}</b>{groups}"
        f"<span class='cl-repository'>lease: {text(held + gone + owed)}</span></div>"
        f"<div class='cl-batches'>{batches or 'no batch is under way'}</div>"
    )


def _left(row: Row) -> str:
    assert row.batch is not None
    if row.batch.expected is None:
        return "no estimate yet"
    return f"about {seconds(max(0.0, row.batch.expected - row.batch.seconds))} to go"


def alerts_html(alerts: pl.DataFrame) -> str:
    """Draw the alerts: what, on whom, for how long, the evidence, and what to do."""
    items = "".join(
        f"<li class='cl-{'bad' if alert['severity'] == 'critical' else 'warn'}'>"
        f"<span class='cl-sign' aria-hidden='true'>{'✕' if alert['severity'] == 'critical' else '▲'}</span> "
        f"<b>{text(alert['name'].replace('_', ' '))}</b> {text(alert['node'])}, {text(alert['severity'])}, "
        f"since {seconds(alert['seconds'])}: {text(alert['evidence'])}<br>"
        f"<span class='cl-small'>{text(alert['remedy'])}</span></li>"
        for alert in alerts.iter_rows(named=True)
    )
    return f"<ul class='cl-messages' aria-label='Alerts'>{items or '<li>no alert</li>'}</ul>"


def toggles_html(told: Mapping[str, tuple[Sequence[ToggleTold], str]], untold: str = "") -> str:
    """Draw what is in force on each node as a table: a row for each toggle, who set it for whom, and when.

    told: as `Cluster.told_toggles` returns it; untold: why it could not be asked for.
    """
    silent = [f"{node} does not tell: {reason}" for node, (_, reason) in told.items() if reason]
    problems = "".join(f"<div class='cl-warn'>{text(said)}</div>" for said in [*silent, *[untold] * bool(untold)])
    said = f"<div role='status'>{problems}</div>" if problems else ""
    if not told:
        return said
    head = "".join(f"<th scope='col'>{text(name)}</th>" for name in ("toggle", *told))
    rows = "".join(
        f"<tr><th scope='row' title='{escape(meaning)}'>{text(name.replace('_', ' '))}</th>"
        + "".join(f"<td>{_toggle_cell(known, name)}</td>" for known, _ in told.values())
        + "</tr>"
        for name, meaning in MEANINGS.items()
    )
    return (
        f"{said}<table class='cl-table cl-toggles' aria-label='Toggles'>"
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _toggle_cell(known: Sequence[ToggleTold], name: str) -> str:
    toggle = next((toggle for toggle in known if toggle.name == name), None)
    if toggle is None:
        return "not told"
    if not toggle.version:
        return text(_valued(toggle.value))
    whose = EVERY_NODE if toggle.everywhere else "this node"
    said = f"for {whose}, by {toggle.set_by}, {_local(toggle.set_at)}"
    return f"<b>{text(_valued(toggle.value))}</b><div class='cl-small'>{text(said)}</div>"


def _local(at: str) -> str:
    """Write a time as it is here."""
    try:
        return datetime.fromisoformat(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return at


def _valued(value: bool | int | float) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else f"{value:.15g}"


def _is_switch(name: str) -> bool:
    return isinstance(getattr(Policy(), name, True), bool)


def _present(told: Mapping[str, tuple[Sequence[ToggleTold], str]], name: str, node: str) -> str:
    """Say which nodes have a toggle at which value."""
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for other, (known, _) in told.items():
        if node in ("", other):
            values = [_valued(toggle.value) for toggle in known if toggle.name == name]
            alike[values[0] if values else "not told"].append(other)
    return "; ".join(f"{value}: {', '.join(nodes)}" for value, nodes in alike.items()) or "not told"


def fixed_html() -> str:
    """Draw the fields of the policy that cannot change on a running node, each with the reason."""
    rows = "".join(
        f"<div><dt>{text(name.replace('_', ' '))}</dt><dd>{text(why)}</dd></div>" for name, why in FIXED.items()
    )
    summary = "<summary>What cannot change on a running node, and why</summary>"
    return f"<details class='cl-fixed'>{summary}<dl>{rows}</dl></details>"


def differences_html(found: pl.DataFrame) -> str:
    """Draw what differs as a table."""
    rows = "".join(
        "<tr>" + "".join(f"<td>{text('—' if cell is None else cell)}</td>" for cell in row) + "</tr>"
        for row in found.head(DIFFERENCES_SHOWN).iter_rows()
    )
    if not rows:
        return ""
    head = "".join(f"<th scope='col'>{text(name.replace('_', ' '))}</th>" for name in found.columns)
    more = f"<caption>the first {DIFFERENCES_SHOWN} of {found.height:,}</caption>" * (found.height > DIFFERENCES_SHOWN)
    table = f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
    return f"<table class='cl-table' aria-label='Differences'>{more}{table}</table>"
