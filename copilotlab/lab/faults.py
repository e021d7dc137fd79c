"""Faults by name, each with a way to end it: what a study, a soak or a button in a notebook can do to a cluster.

    lab = Lab(4, FragileModel(load_embedder("minilm")), FragileRepository.from_frame(...))
    fault = FAULTS["cut off"]
    fault.start(lab, 1); ...; fault.end(lab, 1)

A fault of the server, the model, the repository or its data concerns all nodes, whatever the index. Faults of different
lines can be in force together, and so can one of a line and one of the server.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol
from weakref import ReferenceType, WeakKeyDictionary, ref

import redis

from copilotlab.charts import Chart, ChartRepository
from copilotlab.embedding import Embedder
from copilotlab.embedding.half import HalfPrecision
from copilotlab.lab.fragile_repository import FragileRepository
from copilotlab.lab.gate import Gate
from copilotlab.lab.proxy import FaultProxy
from copilotlab.lab.server import LocalRedis
from copilotlab.node import Node
from copilotlab.protocol.events import UPDATES

Scope = Literal["server", "line", "model", "repository", "data", "peers"]

ROTATED = "rotated-"  # before the password, while it is rotated and the nodes have the old one
JUNK_BYTES = 4_096  # Valkey 9 shares larger payloads between its subscribers, and does not count them against the limit
MOST_JUNK = 8_000  # messages after which a subscriber that does not read must have been cut off
JUNK_AT_ONCE = 64  # messages, a quarter of what a subscriber may leave unread
TIME_TO_READ = 0.25  # seconds to read them in: on a busy machine a subscriber that reads is not cut off
STORM_PAUSE = 0.02  # seconds between two rounds of killing
STRIKE = 1.0  # seconds that a storm waits for one answer of the server
STRANGE_CHARTS = 50  # of the other catalogue, at most
STRANGE_DATABASE = 3  # the number of the database in which it has its keys
STRANGE_PAUSE = 0.02  # seconds between two of its edits


class Breakable(Protocol):
    """What faults need of a cluster. A `Lab` has it; where its model or its repository is to fail, give it a
    `FragileModel` or a `FragileRepository`."""

    @property
    def redis(self) -> LocalRedis: ...
    @property
    def proxies(self) -> list[FaultProxy]: ...
    @property
    def embedder(self) -> Any: ...
    @property
    def charts(self) -> Any: ...
    @property
    def closed(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Fault:
    """One way in which things go wrong.

    name: of the fault. what: a sentence that says what happens. scope: what is broken. start, end: called with a
    cluster and the index of the node whose line is meant; `end` may be called when nothing is wrong any more.
    A fault of the scope "data" changes what the repository holds, and the nodes have to follow; after any other, all
    that was saved is still there.
    """

    name: str
    what: str
    scope: Scope
    start: Callable[[Breakable, int], object]
    end: Callable[[Breakable, int], object]

    @property
    def passes(self) -> bool:
        """Whether it is over as soon as it has happened, so that there is nothing to end."""
        return self.end is _nothing

    def hindrance(self, lab: Breakable) -> str:
        """Say why it cannot be begun in ``lab``, and how to mend that; "" if it can be."""
        try:
            if self.scope == "model":
                _model(lab)
            elif self.scope == "repository":
                _repository(lab)
            elif self.scope == "data":
                _data(lab)
            elif self.scope == "peers":
                _peers(lab)
        except TypeError as error:
            return str(error)
        return ""


class _Beside:
    """A fault that goes on in a thread of its own, at most once for each server, until it or the lab is ended."""

    name = ""
    begins_within = ends_within = 20.0  # seconds: long enough for a few answers of any server

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: WeakKeyDictionary[LocalRedis, tuple[threading.Event, threading.Thread]] = WeakKeyDictionary()

    def start(self, lab: Breakable, _index: int) -> None:
        """Begin, and return when it is under way. Raises RuntimeError if that takes too long (`begins_within`)."""
        with self._lock:
            if lab.redis in self._under_way and self._under_way[lab.redis][1].is_alive():
                return
            begun, end = threading.Event(), threading.Event()
            thread = threading.Thread(target=self._go_on, args=(ref(lab), begun, end), name=self.name, daemon=True)
            thread.start()
            self._under_way[lab.redis] = end, thread
        if not begun.wait(self.begins_within):
            self.end(lab, _index)
            raise RuntimeError(f"{self.name} has not begun within {self.begins_within:g} s")

    def end(self, lab: Breakable, _index: int) -> None:
        """End, and return when it is over. Raises RuntimeError if that takes too long (`ends_within`)."""
        with self._lock:
            end, thread = self._under_way.get(lab.redis, (None, None))
            if end is None or thread is None:
                return
            end.set()
            thread.join(self.ends_within)
            if thread.is_alive():
                raise RuntimeError(f"{self.name} is not over after {self.ends_within:g} s; end it again")
            del self._under_way[lab.redis]

    def _go_on(self, known: ReferenceType[Breakable], begun: threading.Event, end: threading.Event) -> None:
        """Set ``begun``, and go on until ``end`` is set; hold no reference to the lab while waiting."""
        raise NotImplementedError


class _Storm(_Beside):
    """Kills every connection of a server, again and again."""

    name = "copilotlab-storm"

    def _go_on(self, known: ReferenceType[Breakable], begun: threading.Event, end: threading.Event) -> None:
        begun.set()
        while not end.wait(STORM_PAUSE) and self._strike(known()):
            pass

    def _strike(self, lab: Breakable | None) -> bool:
        """Kill all connections there are now; return False when there will be none any more."""
        if lab is None or lab.closed:
            return False
        try:
            with lab.redis.client(socket_timeout=STRIKE, socket_connect_timeout=STRIKE) as client:
                _kill_clients(client)
        except redis.RedisError:
            pass  # the server is away, and with it every connection; or it takes no commands just now
        return True


class _Stranger(_Beside):
    """A node of another catalogue, with other words under the same ids, that keeps saving and deleting charts.

    Its keys are in another database of the server; its messages are heard in all databases.
    """

    name = "copilotlab-stranger"

    def _go_on(self, known: ReferenceType[Breakable], begun: threading.Event, end: threading.Event) -> None:
        lab = known()
        if lab is None:
            return
        ids = [chart.chart_id for chart in itertools.islice(lab.charts, STRANGE_CHARTS)] or [1]
        url = f"{lab.redis.url.removesuffix('/0')}{'?db=' if lab.redis.address is None else '/'}{STRANGE_DATABASE}"
        embedder, revision = lab.embedder, lab.charts.revision
        del lab
        words = itertools.count()
        with ChartRepository() as charts, Node(charts, embedder, url, node_id="stranger") as node:
            while charts.revision <= revision:  # as a catalogue that has been in use for longer
                charts.save_many(_strange(chart_id, next(words)) for chart_id in ids)
            for chart_id in itertools.cycle(ids):
                node.update_chart(_strange(chart_id, next(words)))
                if chart_id % 2:
                    node.delete_chart(chart_id)
                begun.set()
                if end.wait(STRANGE_PAUSE) or (lab := known()) is None or lab.closed:
                    return
                del lab


def _strange(chart_id: int, number: int) -> Chart:
    return Chart(chart_id=chart_id, title=f"A chart of another catalogue, {number}")


def _kill_clients(client: redis.Redis) -> None:
    for kind in ("normal", "pubsub"):
        client.client_kill_filter(_type=kind, skipme=True)


def _command(*words: str) -> Callable[[Breakable, int], object]:
    def say(client: redis.Redis) -> object:
        return client.execute_command(*words)  # type: ignore[no-untyped-call]

    return lambda lab, _index: lab.redis.command(say)


def _start_empty(lab: Breakable, _index: int) -> None:
    if not lab.redis.running:
        lab.redis.start(keep_data=False)


def _rotate(lab: Breakable, index: int) -> None:
    known = (lab.redis.password or "").removeprefix(ROTATED)
    lab.redis.set_password(ROTATED + known)
    try:
        lab.redis.command(_kill_clients)
    except BaseException:  # an interrupt too: a fault that did not begin leaves nothing behind
        _rotate_back(lab, index)
        raise


def _rotate_back(lab: Breakable, _index: int) -> None:
    lab.redis.set_password((lab.redis.password or "").removeprefix(ROTATED) or None)


def _overflow(lab: Breakable, index: int) -> None:
    """Keep one node from reading, and send until the server cuts it off."""
    try:
        lab.proxies[index].one_way("to_client")
        if lab.redis.command(_is_cut_off):
            return
    except BaseException:  # an interrupt too: a fault that did not begin leaves nothing behind
        _drain(lab, index)
        raise
    _drain(lab, index)
    raise RuntimeError(f"node {index} was not cut off after {MOST_JUNK} messages: is it behind {lab.proxies[index]!r}?")


def _is_cut_off(client: redis.Redis) -> bool:
    """Send junk, and tell whether a subscriber was cut off because of it."""
    client.config_set("client-output-buffer-limit", "pubsub 1mb 0 0")
    before = _unread(client).keys()
    for number in range(MOST_JUNK):
        client.publish(UPDATES, bytes(JUNK_BYTES))
        if number % JUNK_AT_ONCE == 0:
            give_up = time.monotonic() + TIME_TO_READ
            while any((unread := _unread(client)).values()) and time.monotonic() < give_up:
                time.sleep(TIME_TO_READ / 50)
            if not before <= unread.keys():
                return True
    return False


def _unread(client: redis.Redis) -> dict[str, int]:
    """Return how many bytes the server keeps for each subscriber that has not read them, by the connection's id."""
    return {listed["id"]: int(listed["omem"]) for listed in client.client_list(_type="pubsub")}


def _drain(lab: Breakable, index: int) -> None:
    lab.proxies[index].heal()
    lab.redis.command(lambda client: client.config_set("client-output-buffer-limit", "pubsub 33554432 8388608 60"))


def _gate(part: Any, example: str) -> Gate:
    gate = getattr(part, "gate", None)
    if gate is None:
        raise TypeError(f"{part!r} cannot be made to fail: give the lab one that can, as in {example}")
    return gate  # type: ignore[no-any-return]  # a Gate, or what passes calls on to gates in other processes


def _model(lab: Breakable) -> Gate:
    model = lab.embedder
    if isinstance(model, HalfPrecision):  # in which a node wraps the model that it was given
        model = model.inner
    return _gate(model, "Lab(model=FragileModel(load_embedder('minilm')))")


def _repository(lab: Breakable) -> Gate:
    return _gate(lab.charts, "Lab(charts=FragileRepository.from_frame(...))")


def _data(lab: Breakable) -> FragileRepository:
    charts = lab.charts
    if not isinstance(charts, FragileRepository):
        example = "Lab(charts=FragileRepository.from_frame(...))"
        raise TypeError(
            f"the database of {charts!r} cannot be tampered with: give the lab one that can, as in {example}"
        )
    charts.check_restorable()
    return charts


def _peers(lab: Breakable) -> None:
    if not (isinstance(lab.embedder, Embedder) and isinstance(lab.charts, ChartRepository)):
        raise TypeError(
            f"{lab!r} keeps its model and its charts elsewhere: a node can be set beside those of a Lab only"
        )


def _begin_stranger(lab: Breakable, index: int) -> None:
    _peers(lab)
    _stranger.start(lab, index)


def _heal(lab: Breakable, index: int) -> None:
    lab.proxies[index].heal()


def _nothing(_lab: Breakable, _index: int) -> None:
    pass


_storm, _stranger = _Storm(), _Stranger()

FAULTS: dict[str, Fault] = {
    fault.name: fault
    for fault in (
        Fault(
            "server killed",
            "the server is killed, and comes back empty",
            "server",
            lambda lab, _: lab.redis.kill(),
            _start_empty,
        ),
        Fault(
            "server restarted with data",
            "the server is shut down in order, and comes back with all that it held; all nodes reconnect at once",
            "server",
            lambda lab, _: lab.redis.stop(),
            lambda lab, _: lab.redis.start(),
        ),
        Fault(
            "server frozen",
            "the server's process is stopped (SIGSTOP): connections stand, nobody answers",
            "server",
            lambda lab, _: lab.redis.pause(),
            lambda lab, _: lab.redis.resume(),
        ),
        Fault(
            "memory lost",
            "the server forgets everything (FLUSHALL); no connection breaks",
            "server",
            _command("FLUSHALL"),
            _nothing,
        ),
        Fault(
            "all connections reset",
            "every connection of every node is reset at the same moment",
            "server",
            lambda lab, _: [proxy.reset() for proxy in lab.proxies],
            _nothing,
        ),
        Fault(
            "client kill storm",
            f"every connection is killed each {STORM_PAUSE * 1000:g} ms",
            "server",
            _storm.start,
            _storm.end,
        ),
        Fault(
            "password rotated",
            "the password is changed and every connection killed; the nodes have the old one",
            "server",
            _rotate,
            _rotate_back,
        ),
        Fault(
            "out of memory",
            "the server refuses all writes (maxmemory, noeviction)",
            "server",
            _command("CONFIG", "SET", "maxmemory", "1"),
            _command("CONFIG", "SET", "maxmemory", "0"),
        ),
        Fault(
            "read-only",
            "the server becomes the replica of one that is away: it reads, and refuses all writes",
            "server",
            _command("REPLICAOF", "127.0.0.1", "1"),
            _command("REPLICAOF", "NO", "ONE"),
        ),
        Fault(
            "cut off",
            "one node's connections are reset, and new ones refused",
            "line",
            lambda lab, index: lab.proxies[index].cut("refuse"),
            _heal,
        ),
        Fault(
            "half-open",
            "nothing moves between one node and the server, and neither is told",
            "line",
            lambda lab, index: lab.proxies[index].cut("blackhole"),
            _heal,
        ),
        Fault(
            "mute",
            "nothing that one node says reaches the server; it hears all",
            "line",
            lambda lab, index: lab.proxies[index].one_way("to_server"),
            _heal,
        ),
        Fault(
            "deaf",
            "nothing that the server says reaches one node; the server hears all",
            "line",
            lambda lab, index: lab.proxies[index].one_way("to_client"),
            _heal,
        ),
        Fault(
            "slow line",
            "each way between one node and the server takes 50 to 100 ms longer",
            "line",
            lambda lab, index: lab.proxies[index].delay(0.05, 0.05),
            _heal,
        ),
        Fault(
            "line slower than patience",
            "each way between one node and the server takes 400 ms longer: no answer comes in time",
            "line",
            lambda lab, index: lab.proxies[index].delay(0.4),
            _heal,
        ),
        Fault(
            "reset in a frame",
            "one node's connections are reset after 100 more bytes, in the middle of a reply",
            "line",
            lambda lab, index: lab.proxies[index].reset(after_bytes=100),
            _heal,
        ),
        Fault(
            "output buffer cut",
            "one node does not read, and is sent so much that the server cuts it off",
            "line",
            _overflow,
            _drain,
        ),
        Fault(
            "model fails",
            "the model raises in the middle of a batch",
            "model",
            lambda lab, _: _model(lab).fail(),
            lambda lab, _: _model(lab).mend(),
        ),
        Fault(
            "model hangs",
            "the model does not return in the middle of a batch",
            "model",
            lambda lab, _: _model(lab).hang(),
            lambda lab, _: _model(lab).mend(),
        ),
        Fault(
            "repository unreachable",
            "every transaction of the repository fails",
            "repository",
            lambda lab, _: _repository(lab).fail(),
            lambda lab, _: _repository(lab).mend(),
        ),
        Fault(
            "repository hangs",
            "no transaction of the repository begins",
            "repository",
            lambda lab, _: _repository(lab).hang(),
            lambda lab, _: _repository(lab).mend(),
        ),
        Fault(
            "second catalogue",
            "a node of another catalogue, on another database of the same server, saves other words under the same ids",
            "peers",
            _begin_stranger,
            _stranger.end,
        ),
        Fault(
            "repository restored",
            "the repository is backed up, and put back to that at the end: what was saved meanwhile was never so",
            "data",
            lambda lab, _: _data(lab).back_up(),
            lambda lab, _: _data(lab).restore(),
        ),
        Fault(
            "repository restored and overtaken",
            "the repository is backed up, put back to that at the end, and beyond its revision before anybody looks",
            "data",
            lambda lab, _: _data(lab).back_up(),
            lambda lab, _: _data(lab).restore(overtaking=True),
        ),
        Fault(
            "repository imported anew",
            "the repository is emptied by hand and imported again, to the same revision, with the ids dealt otherwise",
            "data",
            lambda lab, _: _data(lab).import_anew(),
            _nothing,
        ),
        Fault(
            "bad row",
            "somebody has blanked the title of one chart, by hand, in the database",
            "data",
            lambda lab, _: _data(lab).spoil(),
            lambda lab, _: _data(lab).mend_rows(),
        ),
    )
}
