"""All nodes of one namespace, watched by one who holds no vectors.

    with Cluster("redis://127.0.0.1:6379/0", charts=charts) as cluster:
        cluster.wait(nodes=3)
        print(cluster.nodes())
        print(cluster.differences("a", "b"))

It hears the heartbeats and reports of the nodes, reads the lease, and asks single nodes for their manifests. It takes
no part: no node waits for it, and none is disturbed when it comes or goes.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import msgspec
import numpy as np
import polars as pl
import redis as redis_py

from copilotlab.charts import ChartRepository, Heads, Identity, RepositoryError
from copilotlab.clock import Clock
from copilotlab.lifetime import STOP_SECONDS, Background, Latch, ends_with_the_interpreter, renewed_by_fork
from copilotlab.markup import DOUBTFUL, GOOD, card, rows_table
from copilotlab.monitoring import Alerts, Happening, Thresholds
from copilotlab.monitoring.agreement import Agreement
from copilotlab.monitoring.alerts import CONDITIONS
from copilotlab.picture import CLUSTER_CONDITIONS, WATCHED, Lease, Overview, Picture, Row, agreements, holds, letter
from copilotlab.protocol import events, keys
from copilotlab.protocol.carrier import Carrier, CarrierAway
from copilotlab.protocol.context import Context, check_name
from copilotlab.protocol.link import SILENT_BEATS, Link
from copilotlab.protocol.policy import Policy
from copilotlab.protocol.toggles import POLICY_FIELDS, SWITCHES, Toggles
from copilotlab.reasons import short as shortened
from copilotlab.store import Manifest
from copilotlab.toggle_words import TogglesWanted, ToggleTold, read_toggles, written_wish

if TYPE_CHECKING:
    from copilotlab.widgets import ClusterPanel

LISTEN_SECONDS = 0.25  # how long the thread waits for one message before it looks whether to end
ACT_SECONDS = 5.0  # how long a node may take to begin what it is asked to do
MOST_ORDERS = 256  # whose end is waited for
ASK_SECONDS = 10.0  # how long a node may take to say what it holds
TRIES = 3  # a question, or its answer, may be lost
LOOK_SECONDS = 2.0  # how long one node may take to tell its toggles
MOST_ARGUMENT = 300  # characters of an order's
MOST_BY = 60  # of them for who sets toggles
MOST_TOGGLES = 100  # of a node
MOST_ROWS = 50_000_000  # of a manifest
MOST_LINE = 500  # characters of a lease's value that are looked at
REREAD_SECONDS = 5.0  # between two looks whether the catalogue was begun anew
REPOSITORY = "repository"
"""What `Cluster.differences` calls the repository."""

_NODES: dict[str, Any] = {
    "node": pl.String,
    "alive": pl.Boolean,
    "state": pl.String,
    "group": pl.String,
    "digest": pl.String,
    "charts": pl.Int64,
    "revision": pl.Int64,
    "lag": pl.Int64,
    "connection": pl.String,
    "lease": pl.String,
    "batch": pl.String,
    "alerts": pl.List(pl.String),
    "outages": pl.Int64,
    "model": pl.String,
    "version": pl.String,
    "address": pl.String,
    "heard": pl.Float64,
}
_ALERTS = {
    "node": pl.String,
    "name": pl.String,
    "severity": pl.String,
    "seconds": pl.Float64,
    "evidence": pl.String,
    "remedy": pl.String,
}
_DIFFERENCES = {
    "node": pl.String,
    "other": pl.String,
    "chart_id": pl.Int64,
    "difference": pl.String,
    "revision": pl.Int64,
    "other_revision": pl.Int64,
}
_TIMELINE = {"seconds": pl.Float64, "node": pl.String, "event": pl.String, "detail": pl.String}
_HISTORY = {
    "seconds": pl.Float64,
    "node": pl.String,
    "alive": pl.Boolean,
    "charts": pl.Int64,
    "lag": pl.Int64,
    "outages": pl.Int64,
}
_TOGGLES: dict[str, Any] = {
    "node": pl.String,
    "name": pl.String,
    "value": pl.String,
    "set_by": pl.String,
    "set_on": pl.String,
    "set_at": pl.String,
    "everywhere": pl.Boolean,
    "version": pl.Int64,
    "reason": pl.String,
}
_REMEDIES = {condition.name: condition.remedy for condition in CONDITIONS}

log = logging.getLogger("copilotlab.cluster")


class NodeSilent(TimeoutError):
    """A node did not say what it holds in time."""


class ActionRefused(RuntimeError):
    """A node, or the state of the lease, does not allow what was asked for; the message says why."""


class _Held(NamedTuple):
    """What a node or the repository holds: a manifest's columns. vectors: their hashes, None for the repository."""

    name: str
    model: str
    chart_ids: np.ndarray
    revisions: np.ndarray
    contents: np.ndarray
    vectors: np.ndarray | None


class Cluster:
    """All nodes of a namespace, watched from the moment it is made until `close`.

    redis: as for `Node`. namespace: that of the nodes, "" by default. charts: their repository, or its identity
    (`ChartRepository.identity`): what nodes say is signed with a key that is in it. **Without it nothing that is heard
    can be verified, so no node is shown**: only who claims to be there, how often, and the lease, which anybody can
    write. policy: of the nodes, for `redis_timeout`, and `heartbeat_interval` of those that do not tell theirs; clock:
    the system's by default. start: whether to connect and listen in the background; else `connect` and `listen` drive
    it.

    With Redis away it says so, and begins to hear when Redis is there. Nodes that use `Policy(reconcile=False)` say no
    heartbeats, and are not seen. It ends with `close`, with the ``with`` block, with the interpreter, and when it is
    garbage. In a forked child it is not running, and has heard nothing.

    Raises ValueError for a wrong URL or namespace, TypeError for what is no repository, identity, policy or clock, and
    CarrierRefused for what time does not heal (password, access list, certificate).
    """

    def __init__(
        self,
        redis: str | redis_py.Redis | redis_py.RedisCluster | Carrier = "redis://127.0.0.1:6379/0",
        namespace: str = "",
        *,
        charts: ChartRepository | Identity | None = None,
        policy: Policy | None = None,
        clock: Clock | None = None,
        start: bool = True,
    ) -> None:
        if not isinstance(charts, ChartRepository | Identity | None):
            raise TypeError(
                f"charts={shortened(charts)}: expected the ChartRepository of the nodes, or its identity; without it "
                "nothing that they say can be verified"
            )
        context = Context.of(f"watcher-{secrets.token_hex(6)}", namespace=namespace, policy=policy, clock=clock)
        self._charts = charts
        self._observer = _Observer(redis, context, charts)
        self._thread: Background | None = None
        self._panel: ClusterPanel | None = None
        self._starting = threading.Lock()
        self._finalizer = self._finalized()
        renewed_by_fork(self)
        if start:
            try:
                self.start()
            except BaseException:
                self.close()
                raise

    def _finalized(self) -> Callable[[], object]:
        finalizer = weakref.finalize(self, self._observer.let_go)
        finalizer.atexit = False
        return finalizer

    # --- life -------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Connect, and listen in the background; a second call does nothing. Raises RuntimeError after `close`."""
        with self._starting:
            if self._observer.stopping.is_set():
                raise RuntimeError("this Cluster was closed; make another one")
            if self._thread is None:
                self._observer.connect()
                ends_with_the_interpreter(self)
                self._thread = Background(self._observer.run, f"copilotlab-{self._observer.context.node_id}")
                self._thread.start()
        return self

    def connect(self) -> bool:
        """Connect now, without a thread, to drive it by `listen`; False if Redis is away. Raises CarrierRefused."""
        return self._observer.connect()

    def listen(self, timeout: float = 0.0) -> bool:
        """Take one step: hear one message, waiting at most ``timeout`` seconds; True if something happened."""
        return self._observer.listen(timeout)

    @property
    def running(self) -> bool:
        """Whether it listens in the background."""
        thread = self._thread
        return thread is not None and not thread.ended.is_set() and not self._observer.stopping.is_set()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._observer.stopping.is_set()

    def close(self, timeout: float = STOP_SECONDS) -> None:
        """End the thread and leave Redis, within ``timeout`` seconds (10). A second call does nothing."""
        self.let_go()
        thread = self._thread
        if thread is None:
            self._observer.leave()
        elif not thread.ended.wait(max(0.0, timeout)):
            log.warning("%s still listens after %g s; it ends when it comes back", thread.name, timeout)

    stop = close

    def let_go(self) -> None:
        """Begin to end, and wait for nothing. Takes no lock."""
        self._observer.let_go()

    def after_fork(self) -> None:
        """Begin anew in a forked child, not running: the thread is in the parent, and locks may be held."""
        former = self._observer
        self._finalizer = _nothing  # the parent's observer is let go by the parent
        self._observer = _Observer(former.link.carrier.another(), former.context, self._charts)
        self._starting = threading.Lock()
        self._thread = None
        if former.stopping.is_set():
            self._observer.let_go()
        self._finalizer = self._finalized()

    def __enter__(self) -> Self:
        return self if self.running else self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- what is seen -----------------------------------------------------------------------------------------

    @property
    def charts(self) -> ChartRepository | None:
        """The repository, where one was given."""
        return self._charts if isinstance(self._charts, ChartRepository) else None

    @property
    def verified(self) -> bool:
        """Whether what nodes say can be verified, so that nodes are shown."""
        return self._charts is not None

    @property
    def connected(self) -> bool:
        """Whether the nodes can be heard."""
        return self._observer.link.connected

    @property
    def reason(self) -> str:
        """Why nothing can be heard; "" while connected."""
        link = self._observer.link
        return "" if link.connected else link.reason or "not connected yet"

    @property
    def address(self) -> str:
        """Where Redis is, without its password."""
        return self._observer.link.address

    @property
    def namespace(self) -> str:
        """The namespace that is watched."""
        return self._observer.context.namespace

    @property
    def thresholds(self) -> Thresholds:
        """How long each condition of the cluster may last before it is an alert; may be set at any time."""
        return self._observer.alerts.thresholds

    @thresholds.setter
    def thresholds(self, thresholds: Thresholds) -> None:
        self._observer.alerts.thresholds = thresholds

    def rows(self) -> tuple[Row, ...]:
        """Return the nodes as they were heard last, with all that they told; `nodes` is a frame of the most of it."""
        return self._observer.picture.rows(self._now)

    def nodes(self) -> pl.DataFrame:
        """List the nodes: node, alive (null while this is cut off), state, group, digest, charts, revision, lag,
        connection, lease, batch, alerts, outages, model, version, address, heard (seconds ago).

        state: "running", "building" (vectors of a model that takes over when it has all), "stopped", "silent",
        "failed", "not started", or "not told" by a node of an older version, of which lag, alerts, outages and version
        are null or empty. group: alike where nodes hold the same, "A" for the most. revision: of the repository, up to
        which it holds all. A node that is silent is shown for an hour.
        """
        rows = self.rows()
        groups = agreements(rows)
        lease = self.lease
        made = [
            {
                **{name: getattr(row, name) for name in _NODES if name in Row._fields},
                "group": letter(row, groups),
                "lease": "held" if holds(row, lease) else "",
                "batch": "" if row.batch is None else f"{row.batch.kind} {row.batch.done}/{row.batch.total}",
                "alerts": [alert.name for alert in row.alerts],
            }
            for row in rows
        ]
        return pl.DataFrame(made, schema=_NODES, orient="row")

    def agreement(self) -> dict[str, Agreement]:
        """Tell which nodes hold the same: an `Agreement` for each model that nodes answer with."""
        return agreements(self.rows())

    @property
    def agree(self) -> bool:
        """Whether nodes of one model live, hold the same to the last bit, and lack nothing, as they tell it."""
        found = self.agreement()
        return self.connected and len(found) == 1 and all(agreement.complete for agreement in found.values())

    @property
    def lease(self) -> Lease | None:
        """Who holds the lease of a batch, as it stands in Redis, where anybody can write it; None if it is free."""
        return self._observer.picture.lease(self._now)

    @property
    def owed(self) -> bool:
        """Whether a rebuild is owed, as it stands in Redis."""
        return self._observer.picture.owed

    def speakers(self) -> dict[str, str]:
        """Return who speaks here and is not believed: the name that each claims, and of which catalogue it speaks."""
        return self._overview().speakers

    def alerts(self) -> pl.DataFrame:
        """List what is wrong: node, name, severity, seconds, evidence, remedy; those of the whole first.

        Those of "cluster" are seen from here, the others are told by the nodes, with their evidence cut to fit.
        """
        now = self._now
        mine = [
            (WATCHED, alert.name, alert.severity, now - alert.since, alert.told, alert.remedy)
            for alert in self._observer.alerts.active()
        ]
        told = [
            (row.node, alert.name, alert.severity, alert.seconds, alert.evidence, _REMEDIES.get(alert.name, ""))
            for row in self.rows()
            for alert in row.alerts
        ]
        return pl.DataFrame([*mine, *told], schema=_ALERTS, orient="row")

    def timeline(self) -> pl.DataFrame:
        """List what happened since the watching began: seconds, node, event, detail; the last 2,000."""
        picture = self._observer.picture
        rows = [(e.time - picture.began, e.node_id, e.event, e.detail) for e in picture.entries()]
        return pl.DataFrame(rows, schema=_TIMELINE, orient="row")

    def history(self) -> pl.DataFrame:
        """List the last hour, every ten seconds: seconds, node, alive, charts, lag, outages.

        With more than 138 nodes it is less than an hour.
        """
        picture = self._observer.picture
        rows = [
            (at - picture.began, row.node, row.alive, row.charts, row.lag, row.outages)
            for at, sample in picture.samples()
            for row in sample
        ]
        return pl.DataFrame(rows, schema=_HISTORY, orient="row")

    @property
    def seconds(self) -> float:
        """Seconds since the watching began, as in `timeline`."""
        return self._now - self._observer.picture.began

    def wait(self, nodes: int = 1, timeout: float = 10.0, *, agree: bool = False) -> None:
        """Wait until so many nodes live and have told how they are, and, if wanted, agree.

        timeout: seconds. Raises TimeoutError, which says what was seen, and RuntimeError after `close`.
        """
        until = time.monotonic() + timeout
        while True:
            if self.closed:
                raise RuntimeError("this Cluster was closed; make another one")
            living = [row for row in self.rows() if row.alive and row.digest]
            if len(living) >= nodes and (self.agree or not agree):
                return
            if time.monotonic() >= until:
                raise TimeoutError(f"{self!r} after {timeout:g} s, expected {nodes} nodes{' that agree' * agree}")
            self._pause()

    def _pause(self, latch: Latch | None = None) -> None:
        """Let something happen, for a moment at most."""
        if not self.running:
            self._observer.listen(0.02)
        else:
            (latch or self._observer.stopping).wait(0.05)

    @property
    def _now(self) -> float:
        return self._observer.context.clock.now()

    def _overview(self) -> Overview:
        return self._observer.overview()

    # --- what differs -----------------------------------------------------------------------------------------

    def differences(self, node: str | None = None, other: str = "", *, timeout: float = ASK_SECONDS) -> pl.DataFrame:
        """List what nodes hold otherwise: node, other, chart_id, difference, revision, other_revision.

        node: whom to look at; None for all that live. other: what to compare with, a node or "repository"; by default
        the repository, or, where none was given, the node that holds what most hold. difference: "missing" (at the
        node), "surplus", "revision", "content" (the words), or "vector" (between nodes of one model). A revision is
        null where the chart is not held.

        Each node is asked for its manifest, once for all that hold the same; what changes meanwhile may be listed.
        timeout: seconds for all. Raises ValueError for a node that is not there, or whose version does not answer who
        is no node, NodeSilent, RepositoryError, CarrierAway.
        """
        until = time.monotonic() + timeout
        known: dict[tuple[str, str], _Held] = {}
        chosen = [self._row(node)] if node is not None else [row for row in self.rows() if row.alive and row.digest]
        against = self._against(other, chosen)
        if against is None:
            return pl.DataFrame(schema=_DIFFERENCES)
        right = self._held(against, until, known)
        rows: list[tuple[object, ...]] = []
        for row in chosen:
            if row is against or (isinstance(against, Row) and row.digest == against.digest):
                continue
            rows += _compared(self._held(row, until, known)._replace(name=row.node), right)
        return pl.DataFrame(rows, schema=_DIFFERENCES, orient="row")

    def _against(self, other: str, chosen: Sequence[Row]) -> Row | ChartRepository | None:
        if other == REPOSITORY or not other:
            if self.charts is not None:
                return self.charts
            if other:
                raise ValueError("this Cluster knows no repository, only its key: give charts=ChartRepository(...)")
            groups = [nodes for agreement in agreements(chosen).values() for nodes in agreement.groups.values()]
            return self._row(max(groups, key=len)[0]) if groups else None
        return self._row(other)

    def _row(self, node: str) -> Row:
        rows = [row for row in self.rows() if row.node == node]
        if not rows:
            names = ", ".join(sorted({row.node for row in self.rows()})) or "none"
            raise ValueError(f"node {node!r} was not heard of; there are: {names}")
        return rows[0]

    def _held(self, of: Row | ChartRepository, until: float, known: dict[tuple[str, str], _Held]) -> _Held:
        if isinstance(of, ChartRepository):
            heads: Heads = of.heads_since(0)
            live = np.flatnonzero(~heads.deleted)
            live = live[np.argsort(heads.chart_ids[live], kind="stable")]
            columns = heads.chart_ids[live], heads.revisions[live], heads.content_hashes[live]
            return _Held(REPOSITORY, "", *columns, None)
        key = of.model, of.digest
        if key not in known:
            pages = list(self._pages(of, until))
            parts = [
                np.concatenate([getattr(page, name) for page in pages])
                for name in ("chart_ids", "revisions", "content_hashes", "vector_hashes")
            ]
            known[key] = _Held(of.node, of.model, *parts)
        return known[key]

    def _pages(self, row: Row, until: float) -> Iterator[Manifest]:
        if not row.version:
            raise ValueError(f"node {row.node!r} is of a version that does not answer who is no node; update it")
        after, total, more = -1, 0, True
        while more:
            manifest, more = self._observer.page(row, after, until, self._pause)
            yield manifest
            total += len(manifest)
            further = int(manifest.chart_ids[-1]) if len(manifest) else after
            if more and (further <= after or total > MOST_ROWS):
                raise events.EventRejected("malformed", f"the manifest of {row.node!r} would never end")
            after = further

    # --- what can be done ---------------------------------------------------------------------------------------

    def act(self, node: str, action: str, argument: str = "", *, timeout: float = ACT_SECONDS) -> str:
        """Have a node do something; return once it has begun, what it said. What comes of it is told by `timeline`.

        action: "rebuild", "sync", "switch_model" (argument: a name for `load_embedder`), or "stop": the node, or the
        service that it is in, ends in order. timeout: seconds. Raises ValueError for a node that is not there or too
        old, ActionRefused with the node's reason, NodeSilent where it does not answer, CarrierAway.
        """
        row = self._able(node)
        return self._observer.order(row, action, argument, time.monotonic() + timeout, self._pause)

    def configure(
        self,
        node: str = "",
        *,
        everywhere: bool = False,
        by: str = "",
        timeout: float = ACT_SECONDS,
        **changes: bool | int | float,
    ) -> str:
        """Set toggles on one node, or everywhere, while they run, as `Node.configure` does; return what was said.

        node: which; else everywhere=True: on all of this namespace, also on those that are away or come later. by: who
        sets them, 1 to 60 printable characters, by default this process and its host. timeout: seconds for all.

        Raises ValueError, before anything is changed, for what is no toggle, for a field of the policy that cannot
        change on a running node, with the reason, and for a value that makes no sense; for a node that is not there or
        too old; ActionRefused with the node's reason, NodeSilent where it does not answer, CarrierAway.
        """
        if everywhere == bool(node):
            raise ValueError(f"node={node!r} and everywhere={everywhere}: expected one of them, as everywhere=True")
        by = check_name("by", by or f"process {os.getpid()} on {socket.gethostname()}"[:MOST_BY])
        if len(by) > MOST_BY or not by.isprintable():
            raise ValueError(f"by={shortened(by)}: expected 1 to {MOST_BY} printable characters")
        if not changes:
            raise ValueError("nothing to set: name a toggle, as in publishing=False")
        for name, value in changes.items():
            if why := self.why_not(name, value):
                raise ValueError(f"{name}={shortened(value)}: {why}")
        until = time.monotonic() + timeout
        said = [
            f"{row.node}: {self._observer.order(row, 'configure', argument, until, self._pause)}"
            for row in ([self._able(node)] if node else self._tellers())
            for argument in _arguments(changes, everywhere=everywhere, by=by)
        ]
        return "; ".join(said)

    def why_not(self, name: str, value: object) -> str:
        """Tell why this cannot be set on nodes that run, whatever node it is for; "" if it can."""
        return Toggles("", self._observer.context.policy).why_not(name, value)

    def _able(self, node: str) -> Row:
        row = self._row(node)
        if not row.version:
            raise ValueError(f"node {node!r} is of a version that takes no orders; update it")
        return row

    def _tellers(self) -> list[Row]:
        """Pick a node of each model that tells the others: toggles are carried among nodes of one model."""
        tellers = {row.model: row for row in reversed(self.rows()) if row.alive and row.version and row.answers}
        if not tellers:
            raise ValueError("no node lives that could tell the others; see whether any runs")
        return list(tellers.values())

    def toggles(self, *, timeout: float = ASK_SECONDS) -> pl.DataFrame:
        """List what is in force on each node that lives: node, name, value, set_by, set_on, set_at, everywhere,
        version, reason.

        Each node is asked. value: as JSON, such as "false" or "300.0"; null where the node did not tell, for the
        reason given. The others as in `Node.toggles`. timeout: seconds for all. Raises CarrierAway.
        """
        rows: list[dict[str, object]] = []
        for node, (known, reason) in self.told_toggles(timeout=timeout).items():
            for told in known:
                rows.append({"node": node, **told._asdict(), "value": msgspec.json.encode(told.value).decode()})
            if reason:
                rows += [{"node": node, "name": name, "reason": reason} for name in (*SWITCHES, *POLICY_FIELDS)]
        return pl.DataFrame(rows, schema=_TOGGLES, orient="row").with_columns(pl.col("reason").fill_null(""))

    def told_toggles(self, *, timeout: float = ASK_SECONDS) -> dict[str, tuple[list[ToggleTold], str]]:
        """Return, for each node that lives, its toggles, and "", or none, and why it did not tell them.

        timeout: seconds for all. Raises CarrierAway.
        """
        until = time.monotonic() + timeout
        told: dict[str, tuple[list[ToggleTold], str]] = {}
        for row in self.rows():
            if row.alive and row.answers:
                try:
                    told[row.node] = self._toggles_of(row, min(until, time.monotonic() + LOOK_SECONDS)), ""
                except (ActionRefused, NodeSilent, ValueError) as error:
                    told[row.node] = [], str(error)
        return told

    def _toggles_of(self, row: Row, until: float) -> list[ToggleTold]:
        if not row.version:
            raise ValueError("its version takes no orders; update it")
        found: list[ToggleTold] = []
        while True:
            page = read_toggles(self._observer.look(row, "tell_toggles", str(len(found)), until, self._pause))
            found += page.toggles
            if not page.toggles or len(found) >= min(page.of, MOST_TOGGLES):
                return found

    def release_lease(self, value: str) -> None:
        """Take the lease from its holder, if it is still the one that was seen: ``cluster.lease.value``.

        What the holder says from then on is refused (its batch ends as fenced), and a rebuild that is owed is begun by
        another node at its next heartbeat. Raises ActionRefused if the lease is another one by now, CarrierAway.
        """
        self._observer.release(value)

    # --- to look at -------------------------------------------------------------------------------------------

    def panel(self) -> ClusterPanel:
        """Return the live panel of this cluster, to show in a notebook; the same one until it is closed.

        Raises ImportError, with the command that mends it, where ipywidgets is not installed.
        """
        from copilotlab.widgets import ClusterPanel

        if self._panel is None or self._panel.closed:
            self._panel = ClusterPanel(self)
        return self._panel

    @property
    def verdict(self) -> str:
        """How it stands, in a sentence."""
        if self.closed:
            return "closed"
        if not self.connected and not self.running and not self._observer.link.reason:
            return "not running"
        if not self.connected:
            return f"cut off from Redis at {self.address}: {self.reason}"
        if not self.verified:
            named = ", ".join(self.speakers()) or "nobody so far"
            return f"cannot verify what it hears, so shows no node: give charts=. These claim to be nodes: {named}"
        found = self.agreement()
        if not found:
            return "no node is heard"
        if len(found) == 1:
            return str(next(iter(found.values())))
        return "; ".join(f"{model}: {agreement}" for model, agreement in found.items())

    def __repr__(self) -> str:
        scope = f", namespace={self.namespace!r}" if self.namespace else ""
        return f"Cluster({self.address!r}{scope}, {self.verdict})"

    def _repr_html_(self) -> str:
        lease, alerts = self.lease, self.alerts()
        facts = {
            "Redis": f"{self.address}, {'connected' if self.connected else self.reason}",
            "Lease": "free" if lease is None else f"{lease.holder}, epoch {lease.epoch}",
            "Alerts": ", ".join(f"{node}: {name}" for node, name in alerts.select("node", "name").iter_rows())
            or "none",
        }
        columns = ("node", "state", "group", "charts", "revision", "lag", "connection", "lease", "alerts")
        rows = [
            ["—" if cell in (None, "", []) else ", ".join(cell) if isinstance(cell, list) else cell for cell in row]
            for row in self.nodes().select(columns).iter_rows()
        ]
        verdict = self.verdict
        well = self.agree and alerts.is_empty()
        heading = f"Cluster{f' {self.namespace}' if self.namespace else ''}: {verdict}"
        return card(heading, facts, colour=GOOD if well else DOUBTFUL, more=rows_table(columns, rows))


class _Observer:
    """What listens. Holds no `Cluster`, so that one can become garbage."""

    def __init__(
        self,
        redis: str | redis_py.Redis | redis_py.RedisCluster | Carrier,
        context: Context,
        charts: ChartRepository | Identity | None,
    ) -> None:
        self.context = context
        self._charts = charts
        self._inbox = context.scope(f"{events.INBOX}:{context.node_id}")
        self._heartbeats, self._reports = context.scope(events.HEARTBEATS), context.scope(events.REPORTS)
        channels = [self._heartbeats, self._reports, self._inbox]
        self.link = Link(redis, context, channels, fingerprint="none", identity=self._identity, scripted=False)
        self.stopping = Latch()
        interval = context.policy.heartbeat_interval
        self.picture = Picture(context.clock.now(), interval)
        self.alerts = Alerts(self._tell, conditions=CLUSTER_CONDITIONS)
        self._interval = interval
        self._next_beat = self._next_look = self._next_reread = context.clock.now()
        self._unanswered = 0
        self._echo = secrets.token_bytes(16)
        self._awaited: dict[str, Latch] = {}
        self._orders: OrderedDict[str, tuple[str, str]] = OrderedDict()  # their node and action
        self._looks: dict[str, str] = {}  # the node of each question whose answer is waited for
        self._answers: dict[str, events.OrderAnswer] = {}
        self._leaving = threading.Lock()
        self._said_trouble = ""
        self._rereading: Background | None = None

    @property
    def _identity(self) -> Identity:
        charts = self._charts
        return charts.identity if isinstance(charts, ChartRepository) else charts or events.NO_CATALOGUE

    def _tell(self, happening: Happening) -> None:
        if (line := happening.line) is not None:
            self.picture.note(self.context.clock.now(), WATCHED, line.event, line.detail)

    def overview(self) -> Overview:
        """Return all that is known."""
        link = self.link
        return self.picture.overview(
            self.context.clock.now(),
            reason="" if link.connected else link.reason or "not connected yet",
            verified=self._charts is not None,
        )

    # --- life -------------------------------------------------------------------------------------------------

    def connect(self) -> bool:
        """Connect now; False if Redis is away. Raises CarrierRefused."""
        if self.link.connect(self._greet):
            self.picture.back(self.context.clock.now())
            return True
        self.picture.lost(self.context.clock.now(), self.link.reason)
        return False

    def _greet(self) -> None:
        self._unanswered = 0

    def run(self) -> None:
        """Listen until told to end, then leave Redis."""
        try:
            while not self.stopping.is_set():
                try:
                    if not self.listen(LISTEN_SECONDS) and not self.link.connected:
                        self.stopping.wait(min(LISTEN_SECONDS, self.context.policy.probe_interval / 4))
                    self._said_trouble = ""
                except Exception as error:
                    if repr(error) != self._said_trouble:
                        self._said_trouble = repr(error)
                        log.error("%s: %r", self.context.node_id, error, exc_info=error)
                    self.stopping.wait(self.context.policy.probe_interval)
        finally:
            self.leave()

    def let_go(self) -> None:
        """Begin to end. Takes no lock."""
        self.stopping.set()

    def leave(self) -> None:
        """Leave Redis."""
        with self._leaving:
            self.link.close()

    # --- listening --------------------------------------------------------------------------------------------

    def listen(self, timeout: float = 0.0) -> bool:
        """Take one step; True if something happened."""
        now = self.context.clock.now()
        if now >= self._next_look:
            self._next_look = now + self._interval / 2
            self.picture.look(now)
            self.alerts.look(self.overview())
        if not self.link.connected:
            if self.stopping.is_set() or not self.link.probe(self._greet):
                self.picture.lost(now, self.link.reason)
                return False
            self.picture.back(self.context.clock.now())
            return True
        try:
            if now >= self._next_beat:
                self._next_beat = now + self._interval
                self._beat(now)
            message = self.link.ask(lambda: self.link.carrier.receive(timeout))
        except CarrierAway:
            self.picture.lost(self.context.clock.now(), self.link.reason)
            return True
        if message is None:
            return False
        self._unanswered = 0
        if message.channel == self._inbox and message.payload == self._echo:
            return True
        self._take(message.channel, message.payload)
        return True

    def _beat(self, now: float) -> None:
        """Look at the lease; and say something to oneself, to notice a line on which nothing comes any more."""
        link, context = self.link, self.context
        link.ask(lambda: link.carrier.publish(self._inbox, self._echo))
        lease, owed = link.ask(
            lambda: link.carrier.get(context.scope(keys.BATCH_IN_PROGRESS), context.scope(keys.WAS_DOWN))
        )
        value = (lease or b"")[:MOST_LINE].decode(errors="replace")
        parts = value.split(" ", 3)
        alive: bool | None = None
        if len(parts) == 4:
            (sign,) = link.ask(lambda: link.carrier.get(f"{link.signs_of_life}{parts[2]}"))
            alive = sign is not None
        self.picture.saw_lease(value, now, alive=alive, owed=owed is not None)
        self._unanswered += 1
        if self._unanswered > SILENT_BEATS:
            link.lose_to_silence()

    def _take(self, channel: str, payload: bytes) -> None:
        now = self.context.clock.now()
        try:
            envelope = events.decode(payload, fingerprint=None, identity=self._identity)
            kind = events.CHANNEL_OF[type(envelope.event)]
            expected = {self._heartbeats: events.HEARTBEATS, self._reports: events.REPORTS, self._inbox: events.INBOX}
            if expected.get(channel) != kind or (kind != events.INBOX and not envelope.session):
                raise events.EventRejected("malformed", f"{type(envelope.event).__name__} on {channel}")
        except events.EventRejected as error:
            catalogue, source = events.claimed(payload)
            self.picture.dropped(error.kind, now, catalogue=catalogue, source=source)
            if error.kind == "foreign_catalogue":
                self._reread(now)
            return
        if isinstance(envelope.event, events.OrderAnswer):
            self._note_answer(envelope.source, envelope.event, now)
            return
        if isinstance(envelope.event, events.BulkReady):
            if latch := self._awaited.get(envelope.event.bulk):
                latch.set()
            return
        self.picture.heard(envelope, now)

    def _reread(self, now: float) -> None:
        """See whether the catalogue was emptied and begun anew, in a thread of its own: the database may hang."""
        charts = self._charts
        if not isinstance(charts, ChartRepository) or now < self._next_reread:
            return
        if self._rereading is not None and not self._rereading.ended.is_set():
            return
        self._next_reread = now + REREAD_SECONDS

        def reread() -> None:
            try:
                charts.look()
            except RepositoryError as error:
                log.debug("whether the catalogue was begun anew is not known: %s", error)

        self._rereading = Background(reread, f"copilotlab-{self.context.node_id}-identity")
        self._rereading.start()

    # --- asking -----------------------------------------------------------------------------------------------

    def say(self, row: Row, event: events.Event) -> None:
        """Say something to one node. Raises CarrierAway."""
        envelope = events.Envelope(self.context.node_id, row.model, events.WATCHER, 0, event)
        payload = events.encode(envelope, self._identity)
        inbox = self.context.scope(f"{events.INBOX}:{row.node}")
        self.link.ask(lambda: self.link.carrier.publish(inbox, payload))

    def page(self, row: Row, after: int, until: float, pause: Callable[[Latch], object]) -> tuple[Manifest, bool]:
        """Fetch a page of a node's manifest, and whether there are more.

        until: on the machine's clock. Raises NodeSilent, EventRejected, CarrierAway.
        """
        for _ in range(TRIES):
            bulk, latch = secrets.token_hex(16), Latch()
            self._awaited[bulk] = latch
            try:
                self.say(row, events.ManifestWanted(bulk, after))
                patience = time.monotonic() + max(2 * row.interval, ASK_SECONDS / TRIES)
                while not latch.is_set() and time.monotonic() < min(until, patience):
                    self.link.check()
                    pause(latch)
            finally:
                del self._awaited[bulk]
            if latch.is_set():
                key = self.context.scope(f"{keys.BULK}:{bulk}")
                payload = self.link.ask(partial(self.link.carrier.read, key, events.MAX_BULK_BYTES + 1))
                self.link.ask(partial(self.link.carrier.delete, key))
                if payload:
                    return events.decode_manifest(payload, fingerprint=row.model, identity=self._identity)
            if time.monotonic() >= until:
                break
        raise NodeSilent(f"node {row.node!r} did not say what it holds in time; see whether it still lives")

    def order(self, row: Row, action: str, argument: str, until: float, pause: Callable[[Latch], object]) -> str:
        """Have a node begin something. until: on the machine's clock. Raises ActionRefused, NodeSilent, CarrierAway."""
        order = secrets.token_hex(16)
        self._orders[order] = row.node, action
        while len(self._orders) > MOST_ORDERS:
            forgotten, _ = self._orders.popitem(last=False)
            self._answers.pop(forgotten, None)
        answer = self._answered(row, events.Order(order, row.session, action, argument), until, pause)
        return f"{action} {answer.outcome}{f': {answer.said}' if answer.said else ''}"

    def look(self, row: Row, what: str, argument: str, until: float, pause: Callable[[Latch], object]) -> str:
        """Have a node tell something, of which no line is kept; as `order`."""
        order = secrets.token_hex(16)
        self._looks[order] = row.node
        try:
            return self._answered(row, events.Order(order, row.session, what, argument), until, pause).said
        finally:
            del self._looks[order]
            self._answers.pop(order, None)

    def _answered(
        self, row: Row, event: events.Order, until: float, pause: Callable[[Latch], object]
    ) -> events.OrderAnswer:
        order, action, latch = event.order, event.action, Latch()
        self._awaited[order] = latch
        try:
            for _ in range(TRIES):
                self.say(row, event)  # under the same id: it is done once
                patience = time.monotonic() + ACT_SECONDS / TRIES
                while not latch.is_set() and time.monotonic() < min(until, patience):
                    self.link.check()
                    pause(latch)
                if latch.is_set() or time.monotonic() >= until:
                    break
        finally:
            del self._awaited[order]
        answer = self._answers.get(order)
        if answer is None:
            raise NodeSilent(f"node {row.node!r} did not answer: {action} may not have begun; see whether it lives")
        if answer.outcome in ("refused", "failed"):
            raise ActionRefused(f"node {row.node!r} refuses to {action.replace('_', ' ')}: {answer.said}")
        return answer

    def _note_answer(self, source: str, answer: events.OrderAnswer, now: float) -> None:
        node, action = self._orders.get(answer.order) or (self._looks.get(answer.order, ""), "")
        if node != source or self._answers.get(answer.order) == answer:
            return
        self._answers[answer.order] = answer
        if action:
            self.picture.note(now, node, f"{action}_{answer.outcome}", answer.said)
        if latch := self._awaited.get(answer.order):
            latch.set()

    def release(self, value: str) -> None:
        """Take the lease away. Raises ActionRefused, CarrierAway."""
        key = self.context.scope(keys.BATCH_IN_PROGRESS)
        if not self.link.ask(lambda: self.link.carrier.run("disclaim", [key], [value])):
            raise ActionRefused("the lease is another one by now, or free: look again")
        self.picture.note(self.context.clock.now(), WATCHED, "lease_released", value[:MOST_LINE])

    def __repr__(self) -> str:
        return f"_Observer({self.link!r}, {self.picture!r})"


def _nothing() -> None:
    pass


def _arguments(changes: Mapping[str, bool | int | float], *, everywhere: bool, by: str) -> list[str]:
    """Write what is to be set, in as few orders as it fits into."""
    written: list[str] = []
    begun: dict[str, bool | int | float] = {}
    for name, value in changes.items():
        longer = written_wish(TogglesWanted({**begun, name: value}, everywhere, by))
        if begun and len(longer) > MOST_ARGUMENT:
            begun, longer = {name: value}, written_wish(TogglesWanted({name: value}, everywhere, by))
            written.append(longer)
        else:
            begun = {**begun, name: value}
            written[-1:] = [longer]
    return written


def _compared(left: _Held, right: _Held) -> Iterator[tuple[object, ...]]:
    """Yield what ``left`` holds otherwise than ``right``, by chart."""
    ids = np.union1d(left.chart_ids, right.chart_ids)
    here, there = _at(left, ids), _at(right, ids)
    with_vectors = left.vectors is not None and right.vectors is not None and left.model == right.model
    both = (here >= 0) & (there >= 0)
    revision = both & (left.revisions[here] != right.revisions[there])
    content = both & ~revision & (left.contents[here] != right.contents[there]).any(axis=1)
    kinds = {"missing": here < 0, "surplus": there < 0, "revision": revision, "content": content}
    if with_vectors:
        assert left.vectors is not None
        assert right.vectors is not None
        kinds["vector"] = both & ~revision & ~content & (left.vectors[here] != right.vectors[there]).any(axis=1)
    found = sorted((int(at), kind) for kind, where in kinds.items() for at in np.flatnonzero(where))
    for at, kind in found:
        mine = int(left.revisions[here[at]]) if here[at] >= 0 else None
        theirs = int(right.revisions[there[at]]) if there[at] >= 0 else None
        yield left.name, right.name, int(ids[at]), kind, mine, theirs


def _at(held: _Held, ids: np.ndarray) -> np.ndarray:
    """Return the row of each id, -1 where it is not held."""
    if not len(held.chart_ids):
        return np.full(len(ids), -1)
    rows = np.minimum(np.searchsorted(held.chart_ids, ids), len(held.chart_ids) - 1)
    return np.where(held.chart_ids[rows] == ids, rows, -1)
