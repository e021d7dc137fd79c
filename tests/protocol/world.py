"""A world in one thread: nodes, a repository, a model and a server, with every fault and all time in the test's hands.

What must hold after each step is checked by `check`, what must hold in the end by `settle`. A test that drives a world,
by hand or by Hypothesis, asserts nothing else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from math import inf
from typing import NamedTuple

import msgspec
import numpy as np

from copilotlab import Chart, ChartRepository, Node, Policy
from copilotlab.charts import Change, ChartNotFound, Heads, Identity, Look, Reading, RepositoryError, Unreadable
from copilotlab.clock import ManualClock
from copilotlab.digest import digest_of
from copilotlab.embedding.hashing import HashEmbedder
from copilotlab.lab.simulated_redis import SimulatedCarrier, SimulatedRedis
from copilotlab.protocol.carrier import Message
from copilotlab.protocol.events import (
    BATCHES,
    CHANNEL_OF,
    UPDATES,
    BatchChunkStored,
    BatchFinished,
    BatchStarted,
    ChartDeleted,
    ChartUpdated,
    Envelope,
    EventRejected,
    decode,
    encode,
    pack,
)
from copilotlab.protocol.keys import ALIVE, BATCH_IN_PROGRESS, GENERATION, WAS_DOWN
from copilotlab.protocol.peers import ALIVE_BEATS
from copilotlab.store import Record

DIM = 8
LOOKS = 8.0  # seconds by which a node has looked at the repository again, and compared all if it had to
POLICY = Policy(batch_timeout=60, adopt_after=120, chunk_size=2)


class Crash(BaseException):
    """The process ends here."""


class Broken(RuntimeError):
    """A promise is."""


class MemoryRepository(ChartRepository):
    """The repository, without a database, so that thousands of scenarios take minutes. It can be made unreachable."""

    def __init__(self) -> None:
        self._changes: dict[int, Change] = {}
        self._revision = 0
        self.identity = Identity("1" * 32, b"key")
        self.reachable = True
        self.damaged: set[int] = set()
        """Charts whose rows cannot be read."""
        self.backup: tuple[dict[int, Change], int] = ({}, 0)
        self.content: defaultdict[tuple[int, int], set[bytes | None]] = defaultdict(set)
        """(chart_id, revision) -> what that revision was, in each past that was; None for a deletion."""

    def _check(self) -> None:
        if not self.reachable:
            raise RepositoryError("the repository is unreachable")

    def _write(self, chart_id: int, chart: Chart | None) -> int:
        self._revision += 1
        content_hash = None if chart is None else chart.content_hash
        self._changes[chart_id] = Change(chart_id, self._revision, chart, content_hash or b"")
        self.content[chart_id, self._revision].add(content_hash)
        self.damaged.discard(chart_id)
        return self._revision

    def back_up(self) -> None:
        self.backup = dict(self._changes), self._revision

    def restore(self) -> None:
        self._changes, self._revision = dict(self.backup[0]), self.backup[1]
        self.damaged.clear()

    def import_anew(self, charts: Iterable[Chart]) -> None:
        """All is deleted with SQL, the counter too, and other charts are saved."""
        self._changes, self._revision = {}, 0
        self.damaged.clear()
        for chart in charts:
            self._write(chart.chart_id, chart)

    def save(self, chart: Chart) -> int:
        self._check()
        known = None if chart.chart_id in self.damaged else self._changes.get(chart.chart_id)  # that row is mended
        return known.revision if known is not None and known.chart == chart else self._write(chart.chart_id, chart)

    def delete(self, chart_id: int) -> int:
        self._check()
        if chart_id not in self:
            raise ChartNotFound(f"no chart {chart_id}")
        return self._write(chart_id, None)

    def read_many(self, chart_ids: Iterable[int]) -> Reading:
        self._check()
        found = {i: self._changes[i] for i in chart_ids if i in self._changes}
        bad = {i: change for i, change in found.items() if i in self.damaged and change.chart is not None}
        unreadable = {i: Unreadable(i, c.revision, "title", "blank", c.content_hash) for i, c in bad.items()}
        return Reading({i: change for i, change in found.items() if i not in bad}, unreadable)

    def restamp(self, chart_ids: Iterable[int] | None = None) -> list[int]:
        """Rows are mended with SQL by hand, and their hash left as it was."""
        self._check()
        stamped = [i for i in chart_ids or () if i in self and i not in self.damaged]
        for chart_id in stamped:
            self._write(chart_id, self._changes[chart_id].chart)
        return stamped

    def look(self, since: int | None = None) -> Look:
        heads = self.heads_since(self._revision if since is None else since)
        if since == 0:
            heads = Heads(*(column[~heads.deleted] for column in heads))
        live = [change for change in self._changes.values() if change.chart is not None]
        digest = digest_of((c.chart_id, c.revision, c.content_hash) for c in live)
        return Look(self.identity, self._revision, digest, heads)

    def changes_since(self, revision: int = 0) -> list[Change]:
        self._check()
        return sorted((c for c in self._changes.values() if c.revision > revision), key=lambda c: c.revision)

    def heads_since(self, revision: int = 0) -> Heads:
        changes = self.changes_since(revision)
        hashes = [change.chart.content_hash if change.chart is not None else b"" for change in changes]
        return Heads.of([(c.chart_id, c.revision, h, c.chart is None) for c, h in zip(changes, hashes, strict=True)])

    @property
    def revision(self) -> int:
        self._check()
        return self._revision

    def __contains__(self, chart_id: object) -> bool:
        return chart_id in self._changes and self._changes[chart_id].chart is not None

    def __len__(self) -> int:
        return sum(change.chart is not None for change in self._changes.values())

    def __repr__(self) -> str:
        return f"MemoryRepository(revision {self._revision})"


class NoisyEmbedder(HashEmbedder):
    """One node's model. No two embeddings of a text have the same bits, as with a real model in other batches.

    notice: is told of each batch of texts before it is embedded, and may raise; gives a number that is never the same.
    """

    def __init__(self, notice: Callable[[list[str]], int]) -> None:
        super().__init__(dim=DIM)
        self._notice = notice

    def _encode(self, batch: list[str]) -> np.ndarray:
        last = self._notice(batch)
        vectors = super()._encode(batch).astype(np.float64)
        vectors[:, 1] += 1e-6 * (last + np.arange(len(batch)))
        return vectors


class WatchedRedis(SimulatedRedis):
    """Sees to promise 6 where it is kept: nobody but its holder says or changes anything of a lease that stands."""

    def __init__(self, clock: ManualClock, fingerprint: str, charts: MemoryRepository) -> None:
        super().__init__(clock)
        self.fingerprint = fingerprint
        self._charts = charts
        self.losses = 0
        """How often it lost its memory."""
        self.rebuilt = True
        """Whether a rebuild has ended since it lost one that the nodes had begun."""
        self.updates = 0
        self.broken = ""
        self.begun: dict[str, int] = {}
        """The epoch of each node's own last batch."""

    def _publish(self, message):
        if message.channel == UPDATES:
            self.updates += 1
        if message.channel == BATCHES:
            source, *_, event = msgspec.structs.astuple(self.opened(message))
            assert isinstance(event, BatchStarted | BatchChunkStored | BatchFinished)
            self.begun[source] = event.epoch
            lease = self._lease()
            if not lease.startswith(f"{event.epoch} "):
                self._break(f"said of epoch {event.epoch} while the lease is {lease!r}")
            if isinstance(event, BatchFinished) and event.whole:
                self.rebuilt = True
        return super()._publish(message)

    def opened(self, message):
        return decode(message.payload, fingerprint=self.fingerprint, identity=self._charts.identity)

    def _run(self, name, keys, arguments):
        before = self._lease(), WAS_DOWN in self.held()
        stood = self._stands(before[0])
        answer = super()._run(name, keys, arguments)
        after = self._lease(), WAS_DOWN in self.held()
        anothers = stood and not (name in ("keep_lease", "release_lease") and arguments[0] == before[0])
        if anothers and name != "beat" and before != after:
            self._break(f"{name} {arguments[0]!r} made {after} of {before}: lease, and whether a rebuild is owed")
        if name == "take_lease" and answer[0] and answer[0] <= arguments[3]:
            self._break(f"epoch {answer[0]} for a node that knew of {arguments[3]}")
        return answer

    def _break(self, what: str) -> None:
        self.broken = self.broken or what  # not raised here: whatever is raised in a batch is caught as its failure

    def _lease(self) -> str:
        return (self._get(BATCH_IN_PROGRESS) or b"").decode()

    def _stands(self, lease: str) -> bool:
        """Whether it is of a holder that has shown a sign of life."""
        return bool(lease) and self._get(f"{ALIVE}:{lease.split(' ', 3)[2]}") is not None

    def start(self, *, keep_data: bool = True) -> None:
        if not keep_data:
            self._lose()
        super().start(keep_data=keep_data)

    def forget(self) -> None:
        self._lose()
        super().forget()

    def _lose(self) -> None:
        self.losses += 1
        self.rebuilt = self.rebuilt and self._get(GENERATION) is None


class CrashingCarrier(SimulatedCarrier):
    """A connection that can be told to end the process at its n-th operation from now: before it, or after it."""

    def __init__(self, server: SimulatedRedis) -> None:
        super().__init__(server)
        self.crash_in: int | None = None
        self.after = False
        self.received: Message | None = None
        self.echo: list[tuple[CrashingCarrier, Message]] | None = None
        """Where what arrives of batches is kept, to arrive once more."""

    def receive(self, timeout):
        self.received = message = super().receive(timeout)
        if self.echo is not None and message is not None and message.channel == BATCHES:
            self.echo.append((self, message))
        return message

    def get(self, *keys):
        return self._crashing(super().get, *keys)

    def set(self, key, value, *, ttl=None, if_absent=False):
        return self._crashing(super().set, key, value, ttl=ttl, if_absent=if_absent)

    def delete(self, *keys):
        return self._crashing(super().delete, *keys)

    def run(self, script, keys, arguments):
        return self._crashing(super().run, script, keys, arguments)

    def publish(self, channel, payload):
        return self._crashing(super().publish, channel, payload)

    def subscribe(self, channels):
        return self._crashing(super().subscribe, channels)

    def _crashing(self, operation, *arguments, **options):
        if self.crash_in is not None:
            self.crash_in -= 1
        now = self.crash_in is not None and self.crash_in <= 0
        if now and (not self.after or self.crash_in < 0):  # below 0: it is dead, whatever its code would still do
            raise Crash
        answer = operation(*arguments, **options)
        if now:
            raise Crash
        return answer


class Making(NamedTuple):
    """A text was embedded: by whom, when, in a batch or for a caller, with Redis away (or publishing off) or not, and
    which memory it had.

    Two makings of one text break promise 3, unless `World._excused` says why neither node could know of the other's.
    """

    node: str
    at: float
    in_batch: bool
    alone: bool
    memory: int


class World:
    """Some nodes, and everything that can happen to them."""

    def __init__(self, size: int, policy: Policy = POLICY) -> None:
        self.policy = policy
        self.clock = ManualClock(1_000.0)
        self.charts = MemoryRepository()
        self.redis = WatchedRedis(self.clock, HashEmbedder(dim=DIM).fingerprint, self.charts)
        self.nodes: list[Node] = []
        self.carriers: list[CrashingCarrier] = []
        self.model_fails = 0  # so many times from now
        self.unreadable: set[str] = set()  # texts that the model fails on
        self.made: defaultdict[str, list[Making]] = defaultdict(list)
        self.kept_back: list[tuple[CrashingCarrier, Message]] = []
        self.words = 0
        self._texts: dict[str, Chart] = {}
        self._in_batch = False
        self._born = 0
        self._listened: dict[str, float] = {}
        self._seen: dict[str, dict[int, int]] = {}
        self._epochs: dict[str, int] = {}
        self._deferred: dict[str, dict[int, int]] = {}
        self._misled: float | None = None  # since when nodes may hold what the repository has not; None if none may
        for _ in range(size):
            self.add_node()

    # --- members ----------------------------------------------------------------------------------------------

    def add_node(self) -> Node:
        carrier = CrashingCarrier(self.redis)
        self.redis._carriers.append(carrier)
        name = f"n{self._born}"
        self._born += 1
        embedder = NoisyEmbedder(lambda texts: self._note_made(name, texts))
        node = Node(self.charts, embedder, carrier, policy=self.policy, node_id=name, clock=self.clock)
        node.connect()
        self.carriers.append(carrier)
        self.nodes.append(node)
        self._listened[name] = self.clock.now()
        self._seen[name] = {}
        self._deferred[name] = {}
        self._epochs[name] = 0
        return node

    def _pairs(self):
        return zip(self.nodes, self.carriers, strict=True)

    def crash(self, index: int) -> None:
        """The node is gone, with all that it held; what is in Redis stays."""
        self.nodes.pop(index)
        self.carriers.pop(index).cut()

    def do(self, index: int, action) -> object:
        """Let a node do something; it may crash over it."""
        try:
            return action(self.nodes[index])
        except Crash:
            self.crash(index)
            return None

    # --- changes ----------------------------------------------------------------------------------------------

    def chart(self, chart_id: int) -> Chart:
        """A chart with words that were never there before."""
        self.words += 1
        chart = Chart(chart_id=chart_id, title=f"Chart {chart_id}, words {self.words}")
        self._texts[chart.text] = chart
        return chart

    def former_words(self, chart_id: int) -> Chart | None:
        """The chart with the first words that it had, if it has others now."""
        now = self.charts._changes.get(chart_id)
        former = next((chart for chart in self._texts.values() if chart.chart_id == chart_id), None)
        if former is None or now is None or now.chart == former:
            return None
        self.made.pop(former.text, None)  # it may be embedded once more
        return former

    def update(self, index: int, chart: Chart) -> None:
        def action(node: Node) -> None:
            before, said = self.charts._revision, self.redis.updates
            try:
                outcome, revision = node.update_chart(chart)
            except (OSError, RepositoryError):
                if self.charts._revision != before:
                    raise Broken("an update raised, and yet something was changed") from None
                return
            held = node.store.revision(chart.chart_id)
            connected = node.coordinator.connected
            if self.charts._changes[chart.chart_id].revision != revision:
                raise Broken(f"{outcome}: the repository has another revision")
            if outcome in ("published", "local", "unchanged") and held != revision:
                raise Broken(f"{outcome} {revision}, but the node holds {held}")
            quiet = not node.context.toggles.now.publishing
            if (outcome == "published") != (self.redis.updates > said) or (
                outcome == "local" and connected and not quiet
            ):
                raise Broken(f"{outcome}, but {self.redis.updates - said} updates were sent; connected: {connected}")
            if outcome == "deferred":
                self._deferred[node.node_id][chart.chart_id] = revision

        self.do(index, action)

    def delete(self, index: int, chart_id: int) -> None:
        def action(node: Node) -> None:
            try:
                node.delete_chart(chart_id)
            except (ChartNotFound, RepositoryError):
                return
            if chart_id in node.store:
                raise Broken("deleted, and still there")

        self.do(index, action)

    def tell(self, index: int, chart_id: int) -> None:
        def action(node: Node) -> None:
            with suppress(ChartNotFound, RepositoryError, OSError):
                outcome, revision = node.chart_changed(chart_id)
                if outcome == "deferred":
                    self._deferred[node.node_id][chart_id] = revision

        self.do(index, action)

    # --- toggles ----------------------------------------------------------------------------------------------

    def configure(self, index: int, *, everywhere: bool = False, **changes: bool) -> None:
        """Somebody sets toggles. What a node has set counts there at once."""

        def action(node: Node) -> None:
            node.configure(everywhere=everywhere, by="somebody", **changes)
            if any(getattr(node.context.toggles.now, name) != value for name, value in changes.items()):
                raise Broken(f"{node.node_id}: {changes} was set, and is not in force: {node.context.toggles}")

        self.do(index, action)

    def _turn_all_on(self) -> None:
        """All nodes learn all that was set, and then that all is on again."""
        limit = 5 * self.policy.heartbeat_interval
        self._run_until(self._know_the_same, limit)
        if not self._know_the_same():
            raise Broken(f"what was set is not known everywhere: {[node.context.toggles for node in self.nodes]}")
        if not self.nodes[0].context.toggles.settings:
            return
        self.configure(0, everywhere=True, publishing=True, listening=True)
        self._run_until(self._all_is_on, limit)
        if not self._all_is_on():
            raise Broken(f"not all is on again: {[node.context.toggles for node in self.nodes]}")

    def _know_the_same(self) -> bool:
        return len({node.context.toggles.digest for node in self.nodes}) == 1

    def _all_is_on(self) -> bool:
        in_force = [node.context.toggles.now for node in self.nodes]
        return self._know_the_same() and all(now.publishing and now.listening for now in in_force)

    # --- the repository, and those who speak of another ----------------------------------------------------------

    def restore(self) -> None:
        """The repository is as it was at the last backup, and is written on from there."""
        self.charts.restore()
        self._mislead()

    def import_anew(self, count: int) -> None:
        """The repository is emptied, and filled anew, up to whatever revision that gives."""
        self.charts.import_anew([self.chart(chart_id) for chart_id in range(1, count + 1)])
        self._mislead()

    def _mislead(self) -> None:
        """Until all have looked again, a node may hold what is not so, and what was deferred may never have been."""
        self._misled = self.clock.now()
        for node in self.nodes:
            self._deferred[node.node_id].clear()

    def lie(self, chart_id: int, ahead: int, *, deletes: bool, identity: Identity, knows: bool) -> None:
        """Somebody who may publish says what is not so: of another catalogue, without the key, or (knows) with it."""
        revision = self.charts._revision + ahead
        vector = np.eye(DIM, dtype=np.float32)[0]
        record = Record.of(chart_id, revision, b"lie" * 5 + b"!", vector)
        event = ChartDeleted(chart_id, revision) if deletes else ChartUpdated(pack(record))
        self.words += 1
        envelope = Envelope("liar", self.redis.fingerprint, 1, self.words, event)
        if knows:
            self._mislead()
            self.charts.content[chart_id, revision].add(None if deletes else record.content_hash)
        carrier = SimulatedCarrier(self.redis)
        if self.redis.running:
            carrier.publish(CHANNEL_OF[type(event)], encode(envelope, identity))

    def damage(self, chart_id: int) -> None:
        """A row is edited by hand, so that no chart can be made of it; who has it keeps it."""
        if chart_id in self.charts:
            self.charts.damaged.add(chart_id)

    def mend(self) -> None:
        self.charts.damaged.clear()

    def spoil(self, chart_id: int) -> None:
        """The model fails on the words that this chart has now, if nobody made a vector of them yet."""
        change = self.charts._changes.get(chart_id)
        if change is not None and change.chart is not None and not self.made[change.chart.text]:
            self.unreadable.add(change.chart.text)

    def _is_bad(self, chart_id: int) -> bool:
        """Whether a chart cannot be had by a node that has it not."""
        change = self.charts._changes.get(chart_id)
        bad_words = change is not None and change.chart is not None and change.chart.text in self.unreadable
        return bad_words or chart_id in self.charts.damaged

    # --- messages ---------------------------------------------------------------------------------------------

    def keep_back(self, index: int, place: int, *, copy: bool) -> None:
        """A message, or a copy of it, is on its way for long: until `bring`."""
        carrier = self.carriers[index]
        if carrier.arrived:
            place %= len(carrier.arrived)
            self.kept_back.append((carrier, carrier.arrived[place]))
            if not copy:
                del carrier.arrived[place]

    def bring(self, place: int) -> None:
        """What was kept back arrives, if its receiver still listens."""
        if self.kept_back:
            carrier, message = self.kept_back.pop(place % len(self.kept_back))
            if message.channel in carrier.channels:
                carrier.arrived.append(message)

    # --- steps ------------------------------------------------------------------------------------------------

    def listen(self, index: int) -> bool:
        node, carrier = self.nodes[index], self.carriers[index]
        self._listened[node.node_id] = self.clock.now()
        dropped = self._dropped(node)
        carrier.received = None
        busy = bool(self.do(index, lambda node: node.listen()))
        if carrier.received is not None and carrier.received.channel == BATCHES:
            self._check_epoch(node, carrier.received, taken=self._dropped(node) == dropped)
        return busy

    def _dropped(self, node: Node) -> int:
        """How many events it has not obeyed: of a batch that is over, or of one that it takes for another copy."""
        metrics = node.context.metrics
        return metrics["dropped_epoch"] + metrics["dropped_copy"] + metrics["unlistened"]

    def _check_epoch(self, node: Node, message: Message, *, taken: bool) -> None:
        try:
            envelope = self.redis.opened(message)
        except EventRejected:
            return
        if envelope.source == node.node_id or not taken:
            return
        epoch = envelope.event.epoch
        latest = max(self._epochs[node.node_id], self.redis.begun.get(node.node_id, 0))
        if epoch < latest:
            raise Broken(f"{node.node_id} obeys a batch of epoch {epoch} after it knew of {latest}")
        self._epochs[node.node_id] = epoch

    def work(self, index: int) -> bool:
        self._in_batch = True
        busy = bool(self.do(index, lambda node: node.work()))
        self._in_batch = False
        return busy

    def turn(self) -> bool:
        """Each node listens and works once."""
        busy = False
        for node in list(self.nodes):
            if node in self.nodes:
                busy |= self.listen(self.nodes.index(node))
            if node in self.nodes:
                busy |= self.work(self.nodes.index(node))
        return busy

    def run(self, seconds: float, tick: float = 0.5) -> None:
        """Let all nodes live for so long."""
        until = self.clock.now() + seconds
        while self.clock.now() < until:
            for _ in range(500):
                if not self.turn():
                    break
            else:
                raise Broken("the nodes never come to rest")
            self.check()
            self.clock.advance(tick)

    # --- promise 3 --------------------------------------------------------------------------------------------

    def _note_made(self, name: str, texts: list[str]) -> int:
        if self.model_fails:
            self.model_fails -= 1
            raise OSError("the model has failed")
        if self.unreadable.intersection(texts):
            raise OSError("the model fails on this text")
        index = next(i for i, node in enumerate(self.nodes) if node.node_id == name)
        node = self.nodes[index]
        alone = not (node.coordinator.connected and self._reaches(index) and node.context.toggles.now.publishing)
        making = Making(name, self.clock.now(), self._in_batch, alone, self.redis.losses)
        for text in texts:
            if text not in self._texts:
                continue  # a text to see whether the model works
            for earlier in self.made[text]:
                if not self._excused(text, earlier, making):
                    self.redis._break(f"{text!r} was embedded twice: {earlier}, {making}")
            self.made[text].append(making)
        return sum(map(len, self.made.values()))

    def _reaches(self, index: int) -> bool:
        return self.redis.running and self.carriers[index].reachable

    def _excused(self, text: str, earlier: Making, later: Making) -> bool:
        """Why a text was embedded twice, and no node could have known; False if there is no such reason."""
        holders = [i for i, node in enumerate(self.nodes) if self._holds(node, text) and self._can_be_asked(i)]
        if later.alone:
            return True
        if later.in_batch:
            # Whoever has it died with it, or could not be asked. Or, since the repository went back, what was made met
            # words of the lost past, of a higher revision, was dropped for them, and came again after all were asked.
            return not holders or self._misled is not None
        forgotten = earlier.memory != later.memory or later.at - earlier.at >= self.policy.claim_timeout
        return earlier.alone or forgotten

    def _holds(self, node: Node, text: str) -> bool:
        chart = self._texts[text]
        head = node.store.head(chart.chart_id)
        return head is not None and head[1] == chart.content_hash

    def _can_be_asked(self, index: int) -> bool:
        """Whether a node hears a question, and is known to be there.

        It is connected, and has been for a heartbeat, and was not frozen for so long that it counts as dead.
        """
        silent = self.clock.now() - self._listened[self.nodes[index].node_id]
        coordinator = self.nodes[index].coordinator
        just_back = self.clock.now() - coordinator.link.back_since < self.policy.heartbeat_interval
        connected = coordinator.connected and self._reaches(index) and not just_back
        return (
            connected and bool(self.carriers[index].channels) and silent <= ALIVE_BEATS * self.policy.heartbeat_interval
        )

    # --- what must hold ---------------------------------------------------------------------------------------

    def check(self) -> None:
        """The safety promises, as of now."""
        if self.redis.broken:
            raise Broken(self.redis.broken)
        if self._are_misled():
            for seen in self._seen.values():
                seen.clear()
            return
        for node in self.nodes:
            seen = self._seen[node.node_id]
            held = node.store.manifest().chart_ids.tolist()
            for record in map(node.store.get, held):
                if record.revision < seen.get(record.chart_id, 0):
                    raise Broken(f"{node.node_id} went back: {record}, after revision {seen[record.chart_id]}")
                if record.content_hash not in self.charts.content[record.chart_id, record.revision]:
                    raise Broken(f"{node.node_id} holds what never was: {record}")
                seen[record.chart_id] = record.revision
            for chart_id in seen.keys() - held:
                deleted = self._deleted_since(chart_id, seen[chart_id])
                if deleted is None:
                    raise Broken(f"{node.node_id} lost chart {chart_id}, which it had at revision {seen[chart_id]}")
                seen[chart_id] = deleted + 1
            for chart_id, revision in node.store.tombstones().items():
                if chart_id not in held:
                    seen[chart_id] = max(seen.get(chart_id, 0), revision + 1)

    def _are_misled(self) -> bool:
        """Whether a node may hold, and pass on, what it was told, or what the repository had in another past."""
        if self._misled is None:
            return False
        looked_at = [(node.replica.follower.last_look or (0.0, 0))[0] for node in self.nodes]
        arriving = any(carrier.arrived for carrier in self.carriers)
        if (
            min(looked_at, default=inf) > self._misled + LOOKS
            and not arriving
            and not any(map(self._holds_other_than_is, self.nodes))
        ):
            self._misled = None
        return self._misled is not None

    def _holds_other_than_is(self, node: Node) -> bool:
        """Whether it has a chart that the repository has not, or has older, or in other words at this revision.

        Or takes for deleted what the repository has.
        """
        held = {i: node.store.head(i) for i in node.store.manifest().chart_ids.tolist()}
        there = {i: (c.revision, c.content_hash) for i, c in self.charts._changes.items() if c.chart is not None}
        if any(i in there and removed >= there[i][0] for i, removed in node.store.tombstones().items()):
            return True
        return any(
            i not in there or head[0] > there[i][0] or (head[0] == there[i][0] and head != there[i])
            for i, head in held.items()
        )

    def _deleted_since(self, chart_id: int, revision: int) -> int | None:
        """The first revision at which the chart was deleted after that one; None if it was not."""
        deletions = (r for (i, r), contents in self.charts.content.items() if i == chart_id and None in contents)
        return min((deleted for deleted in deletions if deleted + 1 >= revision), default=None)

    def differences(self) -> list[str]:
        """What keeps the nodes from holding exactly what the repository holds, all with the same bits."""
        expected = {c.chart_id: (c.revision, c.content_hash) for c in self.charts._changes.values() if c.chart}
        found = []
        for node in self.nodes:
            held = {i: node.store.head(i) for i in node.store.manifest().chart_ids.tolist()}
            found += [
                f"{node.node_id}: chart {i}: {held.get(i)}, not {expected.get(i)}"
                for i in sorted(held.keys() | expected.keys())
                if held.get(i) != expected.get(i) and not self._is_bad(i)
            ]
        if len({node.store.digest for node in self.nodes}) > 1 and not any(map(self._is_bad, expected)):
            found.append("digests: " + ", ".join(f"{n.node_id} {n.store.digest[:6]}" for n in self.nodes))
        return found

    def overdue(self) -> list[str]:
        """What promise 7 has an end for: a batch that is owed, and what was left to a batch by a node that lives."""
        found = ["a rebuild is owed"] if WAS_DOWN in self.redis.held() else []
        for left in self.nodes:
            for chart_id, revision in self._deferred[left.node_id].items():
                for node in self.nodes:
                    there = max(node.store.revision(chart_id) or 0, node.store.tombstone(chart_id) or 0)
                    deleted = chart_id not in self.charts and chart_id not in node.store
                    if there < revision and not deleted and not self._is_bad(chart_id):
                        found.append(f"{node.node_id} lacks chart {chart_id}, deferred by {left.node_id} at {revision}")
        return found

    def settle(self) -> None:
        """All faults end, writes have stopped: what was left to a batch is done in time, and the nodes agree."""
        self.charts.reachable = True
        self.model_fails = 0
        self.redis.start()
        for carrier in self.carriers:
            carrier.heal()
            carrier.crash_in = None
        if not self.nodes:
            self.add_node()
        policy = self.policy
        slack = policy.claim_timeout + 5 * policy.heartbeat_interval
        self.run(3 * policy.heartbeat_interval)  # by then each has noticed what has happened
        self._turn_all_on()
        # A holder that is gone is replaced after three heartbeats; two that wait for each other's claims, once each.
        self._run_until(lambda: not self.overdue(), ALIVE_BEATS * policy.heartbeat_interval + 2 * slack)
        if found := self.overdue():
            raise Broken("; ".join(found))
        self._run_until(self._at_rest, policy.adopt_after + slack)
        if found := self.differences():
            raise Broken("; ".join(found))
        self.mend()
        self.unreadable.clear()
        self._run_until(self._at_rest, 2 * (policy.adopt_after + slack))
        self.run(5.0)
        self._run_until(self._at_rest, slack)  # who asks a peer that is dead waits for it before it asks another
        if found := self.differences():
            raise Broken("; ".join(found))
        if any(node.replica.unsettled for node in self.nodes):
            raise Broken(f"something is still owed: {[node.status() for node in self.nodes]}")
        if not self.redis.rebuilt:
            raise Broken("the server lost its memory, and no rebuild followed")

    def _run_until(self, reached: Callable[[], bool], limit: float) -> None:
        until = self.clock.now() + limit
        while not reached() and self.clock.now() < until:
            self.run(1.0)

    def _at_rest(self) -> bool:
        return not self.differences() and not any(node.replica.unsettled for node in self.nodes)
