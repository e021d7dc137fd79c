"""One node as a card, or as a row: its status in a few words, as HTML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from html import escape
from typing import NamedTuple

from copilotlab.markup import text
from copilotlab.monitoring.agreement import Agreement, short

_PROGRESS = re.compile(r"(\d+)/(\d+)")


class Health(NamedTuple):
    """How a node is, in one word, with a sign and a tone: colour alone would not tell everybody."""

    tone: str
    sign: str
    word: str


def health(status: Mapping[str, object], *, frozen: bool = False) -> Health:
    """Pick the one thing that matters most in a `Node.status`. frozen: whether it is; only its lab can tell (False)."""
    if status["state"] == "stopped":
        return Health("dead", "✕", "stopped")
    if frozen:
        return Health("away", "‖", "frozen")
    if status["redis"] != "connected":
        return Health("away", "▲", "Redis refuses" if status["redis"] == "refused" else "Redis away")
    if status["batch"]:
        return Health("busy", "◐", str(status["batch"]).split()[0])
    if status["reconciling"]:
        return Health("busy", "⇄", "reconciling")
    return Health("good", "●", str(status["state"]))


def card_html(status: Mapping[str, object], line: str, agreement: Agreement, *, frozen: bool = False) -> str:
    """Draw the card of one node.

    status: its `Node.status`. line: the faults of its line to the server. agreement: of all nodes. frozen: whether it
    stands still (False).
    """
    how = health(status, frozen=frozen)
    dead = how.tone == "dead"
    letter = agreement.letter(status["digest"])
    away = f"away {seconds(status['away_for'])}" if status["redis"] != "connected" else "connected"
    lag, leases = status["lag"], bool(status["lease"])
    facts: tuple[tuple[str, str, str], ...] = (
        ("charts", f"<b>{status['charts']:,}</b>", ""),
        ("digest", digest_chip(status["digest"], "" if dead else letter), ""),
        ("Redis", text("—" if dead else away), "" if dead or status["redis"] == "connected" else "cl-warn"),
        ("line", text(line), "" if line == "open" else "cl-warn"),
        ("lease", text(status["lease"] or "—"), "cl-strong" if leases else ""),
        ("epoch", text(f"{status['epoch']:,}"), ""),
        ("peers", text("—" if dead else status["peers"]), ""),
        ("lag", text("—" if dead else f"{lag:,} charts" if lag else "none"), "cl-warn" if lag and not dead else ""),
    )
    if said := _set_words(status):
        facts += (("set", text(said), "cl-warn"),)
    lacking = "" if dead or status["complete"] else text(f"not complete: {status['incomplete']}")
    return framed(status["node"], how, facts, _work(status) or lacking)


def framed(name: object, how: Health, facts: Iterable[tuple[str, str, str]], work: str) -> str:
    """Draw a card. facts: name, value and tone of each; work: what the node is at; values and work are HTML."""
    rows = "".join(f"<div><dt>{fact}</dt><dd class='{tone}'>{value}</dd></div>" for fact, value, tone in facts)
    return (
        f"<div class='cl-card-facts cl-{how.tone}' role='group' aria-label='{escape(str(name))}'>"
        f"<div class='cl-card-head'><span class='cl-name'>{text(name)}</span>"
        f"<span class='cl-state'><span aria-hidden='true'>{how.sign}</span> {text(how.word)}</span></div>"
        f"<dl>{rows}</dl><div class='cl-work'>{work}</div></div>"
    )


def row_html(status: Mapping[str, object], line: str, agreement: Agreement, pulse: str, *, frozen: bool = False) -> str:
    """Draw one node as a row, where there are too many for cards.

    pulse: how it has been doing, as HTML. The others are those of `card_html`.
    """
    how = health(status, frozen=frozen)
    dead = how.tone == "dead"
    letter = "" if dead else agreement.letter(status["digest"])
    said = text(line) if line != "open" and not dead else _work(status)
    return (
        f"<div class='cl-card-facts cl-node-row cl-{how.tone}' role='group' aria-label='{escape(str(status['node']))}'>"
        f"<span class='cl-name'>{text(status['node'])}</span>"
        f"<span class='cl-state'><span aria-hidden='true'>{how.sign}</span> {text(how.word)}</span>"
        f"<span class='cl-row-charts'><b>{status['charts']:,}</b> charts</span>"
        f"<span class='cl-row-digest' title='{escape(str(status['digest']))}'>{badge(letter)}</span>"
        f"{'' if dead else pulse}<span class='cl-row-said'>{said}</span></div>"
    )


def digest_chip(digest: object, letter: str) -> str:
    """Draw a digest, and the letter of the group of nodes that hold the same."""
    return f"{badge(letter)} <code>{text(short(digest))}</code>".strip()


def badge(letter: str) -> str:
    """Draw the letter of a group of nodes that hold the same; nothing for none."""
    return f"<span class='cl-letter cl-letter-{letter.lower()}'>{escape(letter)}</span>" if letter else ""


def progress_html(batch: str) -> str:
    """Draw a bar for "rebuild 64/200"; just the words where there are no such numbers in them."""
    found = _PROGRESS.search(batch)
    if found is None or int(found[2]) == 0:
        return text(batch)
    done, total = int(found[1]), int(found[2])
    share = min(100, 100 * done // total)
    return (
        f"{text(batch.split()[0])} <span class='cl-bar' role='progressbar' aria-label='{escape(batch)}' "
        f"aria-valuemin='0' aria-valuemax='{total}' aria-valuenow='{done}'><span style='width:{share}%'></span></span> "
        f"{done:,} of {total:,}"
    )


def seconds(value: object) -> str:
    """Write whole seconds, so that a card changes once a second and not at each refresh."""
    return f"{float(str(value)):.0f} s"


def _set_words(status: Mapping[str, object]) -> str:
    """Name what was turned off on a node, and the numbers that were set there; "" for nothing."""
    toggles = status["toggles"]
    assert isinstance(toggles, list)
    values = {str(toggle["name"]).replace("_", " "): toggle["value"] for toggle in toggles}
    return ", ".join(
        f"{name} {'off' if value is False else value}" for name, value in values.items() if value is not True
    )


def _work(status: Mapping[str, object]) -> str:
    if status["state"] == "stopped":
        return ""
    if status["batch"]:
        return progress_html(str(status["batch"]))
    if status["reconciling"]:
        return text(f"pulls what it lacks from {status['reconciling']}")
    if status["next_model"]:
        return text(f"prepares the model {status['next_model']}")
    return text("not all is mended yet") if status["owes_rebuild"] else ""
