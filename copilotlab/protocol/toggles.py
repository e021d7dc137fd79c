"""What can be set on running nodes, what was set by whom and when, and what is in force on this node: `Toggles`.

Each setting is a word that wins over all earlier ones for the same toggle and the same nodes. What two nodes know of
settings adds up to the same, in whatever order they learn it, so nodes that tell each other all that they know agree.
Nothing here asks anybody: the caller hands in what was set, and the time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from hashlib import blake2b
from math import isfinite
from typing import NamedTuple

import msgspec

from copilotlab.protocol.events import MAX_SETTINGS, MAX_VERSION, Setting, Value
from copilotlab.protocol.peers import NO_SETTINGS
from copilotlab.protocol.policy import Policy
from copilotlab.reasons import short

SWITCHES = {
    "publishing": "this node tells the others what changes on it, and runs batches for all",
    "listening": "what the others say of charts is taken in, and what was missed is fetched",
    "scheduled_sync": "the whole repository is looked at every `sync_interval`",
}
"""The toggles that are no field of the policy, each on at first, and what that means."""

POLICY_FIELDS = (
    "rebuild_at_reconnect",
    "batch_timeout",
    "sync_interval",
    "claim_timeout",
    "adopt_after",
    "bulk_ttl",
    "chunk_size",
)
"""The fields of the policy that can change on a running node: each is read where it is used, by this node alone."""

_HOW_NODES_MEET = "the others judge by their own who is late or gone, and would take this node for dead: start all anew"
_WHAT_TRAVELS = "what was said before, and what is under way, relies on it: start all nodes with it"
FIXED = {
    "ordered": "the store keeps tombstones and ranks from the first chart on: start the node with it",
    "pick_up_deferred": "what is left to a batch under way relies on it: start all nodes with it",
    "reuse_vectors": "what counts as missing on a node depends on it: start all nodes with it",
    "renew_lease": "a lease that is held would run out in its batch: start all nodes with it",
    "fenced": "the kind of lease is chosen at the start, and must be the same on all nodes: start all with it",
    "tell_blips": "all nodes must read a return of Redis alike: start all with it",
    "reconcile": "what a node listens to is chosen at the start: start all nodes with it",
    "claim": _WHAT_TRAVELS,
    "redis_timeout": "connections are made with it: start the node with it",
    "probe_interval": _HOW_NODES_MEET,
    "heartbeat_interval": _HOW_NODES_MEET,
    "vectors": "vectors of another precision count as another model's: start all nodes with it",
}
"""The fields of the policy that cannot change on a running node, and why."""

SHORTEST, LONGEST = 0.1, 366 * 86_400.0  # seconds


class InForce(NamedTuple):
    """What holds on one node at one moment.

    policy: with what was set of it; publishing, listening, scheduled_sync: see `SWITCHES`; settings: those that it
    comes from, by name.
    """

    policy: Policy
    publishing: bool = True
    listening: bool = True
    scheduled_sync: bool = True
    settings: Mapping[str, Setting] = {}  # which nothing changes

    def value(self, name: str) -> Value:
        """Return the value of a toggle."""
        value: Value = getattr(self if name in SWITCHES else self.policy, name)
        return value


class Toggles:
    """All settings that one node knows of, and what is in force here. Safe for threads; reading takes no lock.

    node_id: this node. given: the policy that it was started with.
    """

    def __init__(self, node_id: str, given: Policy) -> None:
        self._node_id = node_id
        self._lock = threading.Lock()
        self._settings: dict[tuple[str, str], Setting] = {}  # (node, name) -> the last word; replaced as a whole
        self.given = given
        """The policy that the node was started with."""
        self.now = InForce(given)
        """What is in force here, replaced as a whole."""
        self.digest = NO_SETTINGS
        """Of all settings, 32 hex digits: the same on nodes that know the same."""

    @property
    def settings(self) -> list[Setting]:
        """All settings that are known here, also those for other nodes, by node and name."""
        return [setting for _, setting in sorted(self._settings.items())]

    def set(self, changes: Mapping[str, object], *, node: str, by: str, at: float) -> list[Setting]:
        """Set toggles for one node, "" for all, and return the settings that this makes, all of one version.

        by: who sets them; at: when, in seconds since 1970. Raises ValueError, before anything is changed, for what
        cannot be set, saying why, for a value that makes no sense, and for nothing to set.
        """
        if not changes:
            raise ValueError("nothing to set: name a toggle, as in publishing=False")
        values = {name: self._checked(name, value) for name, value in changes.items()}
        if node != self._node_id and not self.given.reconcile:
            raise ValueError("nodes of a policy without reconcile have no inboxes: set each on its own")
        with self._lock:
            latest = max((setting.version for setting in self._settings.values()), default=0)
            version = min(latest + 1, MAX_VERSION)
            made = [Setting(name, node, value, version, at, by, self._node_id) for name, value in values.items()]
            self._merge(made)
        return made

    def learn(self, settings: Iterable[Setting]) -> list[Setting]:
        """Take in what another node knows; return the settings that are new in force here."""
        with self._lock:
            before = self.now.settings
            self._merge(setting for setting in settings if isfinite(setting.value))
            return [setting for name, setting in self.now.settings.items() if before.get(name) != setting]

    def _merge(self, settings: Iterable[Setting]) -> None:
        known = dict(self._settings)
        for setting in settings:
            place = setting.node, setting.name
            if place not in known or _rank(known[place]) < _rank(setting):
                known[place] = setting
        # Which ones are dropped follows from the settings alone, so all nodes drop the same.
        kept = sorted(known.items(), key=lambda item: (item[1].node == "", _rank(item[1])), reverse=True)
        self._settings = dict(kept[:MAX_SETTINGS])
        self.digest = _digest(self.settings)
        self.now = self._decided()

    def _decided(self) -> InForce:
        in_force: dict[str, Setting] = {}
        for setting in self._settings.values():
            name = setting.name
            if setting.node not in ("", self._node_id) or self.why_not(name, setting.value):
                continue  # it is kept for the others, whose version may know it
            if name not in in_force or _rank(in_force[name]) < _rank(setting):
                in_force[name] = setting
        switches = {name: bool(setting.value) for name, setting in in_force.items() if name in SWITCHES}
        of_policy = {name: setting.value for name, setting in in_force.items() if name not in SWITCHES}
        return InForce(replace(self.given, **of_policy), **switches, settings=in_force)  # type: ignore[arg-type]

    def _checked(self, name: str, value: object) -> Value:
        if why := self.why_not(name, value):
            raise ValueError(f"{name}={short(value)}: {why}")
        assert isinstance(value, bool | int | float)
        return value

    def why_not(self, name: str, value: object) -> str:
        """Tell why this cannot be set on a running node; "" if it can."""
        if name in FIXED:
            return f"cannot change on a running node: {FIXED[name]}"
        if name in SWITCHES:
            if not isinstance(value, bool):
                return "expected True or False"
            if name != "scheduled_sync" and not self.given.reconcile:
                return "cannot change under a policy without reconcile: what was held back would never be mended"
            return ""
        if name not in POLICY_FIELDS:
            return f"no such toggle; there are {', '.join([*SWITCHES, *POLICY_FIELDS])}"
        try:
            replace(self.given, **{name: value})  # type: ignore[arg-type]
        except ValueError as error:
            return str(error).partition("): ")[2]
        if name in _SECONDS and isinstance(value, int | float) and not SHORTEST <= value <= LONGEST:
            return f"expected {SHORTEST:g} to {LONGEST:,.0f} seconds"
        return ""

    def __repr__(self) -> str:
        said = ", ".join(f"{name}={setting.value!r}" for name, setting in sorted(self.now.settings.items()))
        return f"Toggles({said or 'as started'})"


_SECONDS = {field.name for field in fields(Policy) if field.type == "float"}


def _rank(setting: Setting) -> tuple[object, ...]:
    """Order settings of one toggle: the version decides; where two nodes chose the same, the rest, alike everywhere."""
    return setting.version, setting.at, setting.source, setting.by, repr(setting.value), setting.node, setting.name


def _digest(settings: list[Setting]) -> str:
    if not settings:
        return NO_SETTINGS
    return blake2b(msgspec.msgpack.encode(settings), digest_size=16).hexdigest()
