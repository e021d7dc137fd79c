"""A TCP proxy between a node and its Redis server that fails on request, in the ways in which networks fail."""

from __future__ import annotations

import asyncio
import ipaddress
import math
import os
import random
import socket
import struct
import threading
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, TypeVar, cast, get_args
from urllib.parse import quote

from copilotlab.lab.server import ReservedPort
from copilotlab.lifetime import renewed_by_fork
from copilotlab.reasons import short

Direction = Literal["to_server", "to_client"]
CutMode = Literal["refuse", "blackhole"]

WINDOW = 1 << 20  # bytes under way, in each direction of a connection, at which the proxy stops reading
TICK = 0.02  # seconds that each piece of data takes on a throttled line

_T = TypeVar("_T")


class FaultProxy:
    """A line to a server, on a loopback port; its faults can be switched on and off at any time, from any thread.

        with LocalRedis() as server, FaultProxy(server.endpoint) as line:
            client = redis.Redis.from_url(line.url())
            line.cut(); ...; line.heal()

    target: (host, port), or the path of a socket file. It need not exist: while it is away, new connections are closed
    at once.
    listen: "host:port" of the loopback interface; with port 0 (the default) the system picks one. The port stays the
    same, and reserved, until `close`.

    A fault is in force when its method returns. Delay, throttle and one of the partitions (`cut`, `one_way`) can be
    combined. No data is lost from the middle of a connection, since TCP loses none: it arrives late, or the connection
    ends. The proxy holds a bounded amount of data (`WINDOW`), and then stops reading, so that the server notices a slow
    reader as it would without a proxy.

    One daemon thread serves the line. Raises ValueError for a wrong target, address or fault, OSError when the
    port is taken, RuntimeError for a fault after `close`.
    """

    def __init__(self, target: tuple[str, int] | str | os.PathLike[str], *, listen: str = "127.0.0.1:0") -> None:
        self.target = _target(target)
        self._port = ReservedPort(*_loopback(listen))
        self.address = self._port.address
        """(host, port) that it listens on."""
        self._faults = _Faults()
        self._line_free: dict[Direction, float] = {}
        self._moved: dict[Direction, int] = {"to_server": 0, "to_client": 0}
        self._ends: set[_End] = set()
        self._clients: set[_End] = set()
        self._greetings: set[asyncio.Task[Any]] = set()
        self._dials: set[asyncio.Task[Any]] = set()
        self._listener: socket.socket | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._loop = asyncio.SelectorEventLoop()
        name = f"copilotlab-proxy-{self.address[1]}"
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()
        renewed_by_fork(self)
        try:
            self.heal()
        except BaseException:
            self.close()
            raise

    def url(self, password: str | None = None, db: int = 0) -> str:
        """Return the ``redis://`` URL that leads to the server through this line."""
        credentials = f":{quote(password, safe='')}@" if password else ""
        return f"redis://{credentials}{self.address[0]}:{self.address[1]}/{db}"

    @property
    def connections(self) -> int:
        """How many clients are connected now."""
        return len(self._clients)

    @property
    def bytes_up(self) -> int:
        """How many bytes were passed on to the server."""
        return self._moved["to_server"]

    @property
    def bytes_down(self) -> int:
        """How many bytes were passed on to clients."""
        return self._moved["to_client"]

    @property
    def state(self) -> str:
        """The faults in force, in words; "open" without any, "closed" at the end."""
        return "closed" if self._closed else str(self._faults)

    def cut(self, mode: CutMode = "refuse") -> None:
        """Partition the node from the server, both ways.

        "refuse": connections are reset and new ones refused; both sides know at once.
        "blackhole": nothing moves, and neither side is told. Connections stay open although the other side may be gone
        (half-open); new ones are accepted and hang. After `heal` what was held arrives, as TCP would send it again.
        """
        if mode not in get_args(CutMode):
            raise ValueError(f"cut(mode={short(mode)}); expected one of {', '.join(get_args(CutMode))}")
        self._run(self._switch(partition=mode))

    def one_way(self, direction: Direction) -> None:
        """Hold all data in one direction, "to_server" or "to_client", until `heal`; the other way stays open."""
        if direction not in get_args(Direction):
            raise ValueError(f"one_way({short(direction)}); expected one of {', '.join(get_args(Direction))}")
        self._run(self._switch(partition=direction))

    def delay(self, seconds: float, jitter: float = 0.0) -> None:
        """Make everything take `seconds` longer, each way, and up to `jitter` more by chance. 0 ends it.

        Order is kept. It holds for data that is under way already, too.
        """
        for name, value in (("seconds", seconds), ("jitter", jitter)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ValueError(f"delay({name}={short(value)}); expected a finite number of seconds >= 0")
        self._run(self._switch(delay=float(seconds), jitter=float(jitter)))

    def throttle(self, bytes_per_second: float | None) -> None:
        """Let at most this many bytes a second through, each way, all connections together. None ends it."""
        rate = math.inf if bytes_per_second is None else float(bytes_per_second)
        if not rate > 0:
            raise ValueError(f"throttle({short(bytes_per_second)}); expected bytes per second > 0, or None")
        self._run(self._switch(rate=rate))

    def reset(self, after_bytes: int | None = None) -> int:
        """Reset (RST) the connections that are open now, and return how many those are. New ones are not touched.

        after_bytes: how many more bytes each client gets first, so that its connection ends in the middle of a reply.
        """
        if after_bytes is not None and (not isinstance(after_bytes, int) or after_bytes < 0):
            raise ValueError(f"reset(after_bytes={short(after_bytes)}); expected a whole number >= 0, or None")
        return self._run(self._reset(after_bytes or 0))

    def heal(self) -> None:
        """End every fault, and call off a reset that waits for its bytes."""
        self._run(self._heal())

    def close(self) -> None:
        """Reset all connections, give the port back and end the thread."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._port.close()

    def after_fork(self) -> None:
        """Close the copy of a forked child: the line and the event loop belong to the parent."""
        self._closed = True
        self._lock = threading.Lock()
        if self._listener is not None:
            self._listener.close()  # the child's copy; not through the loop, whose epoll both processes share
        self._port.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        host, port = self.address
        target = self.target if isinstance(self.target, str) else "{}:{}".format(*self.target)
        return f"<FaultProxy {host}:{port} to {target}, {self.state}, {self.connections} connections>"

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Do this in the thread of the line, one thing at a time."""
        with self._lock:
            if self._closed:
                work.close()
                raise RuntimeError("this FaultProxy is closed; make another one")
            return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    # What follows runs in the thread of the line.

    async def _switch(self, **changes: Any) -> None:
        self._faults = replace(self._faults, **changes)
        self._line_free = {"to_server": 0.0, "to_client": 0.0}
        if self._faults.partition == "refuse":
            self._hang_up()
            await self._drop_all()
        elif self._listener is None:
            self._listener = socket.create_server(self.address, backlog=100)
            self._listener.setblocking(False)
            self._loop.add_reader(self._listener, self._accept, self._listener)
        for end in list(self._ends):
            self._dial(end)
            end.flow()

    async def _heal(self) -> None:
        for client in self._clients:
            client.reset_after = None
        await self._switch(partition=None, delay=0.0, jitter=0.0, rate=math.inf)

    async def _reset(self, after_bytes: int) -> int:
        clients = list(self._clients)
        for client in clients:
            client.reset_after = after_bytes
        if not after_bytes:
            await self._drop_all()
        return len(clients)

    async def _drop_all(self) -> None:
        """Reset all connections, and return when their sockets are closed."""
        dropped = set(self._ends)
        for end in dropped:
            end.reset()
        while dropped & self._ends:
            await asyncio.sleep(0)  # asyncio closes them in its next round

    async def _shut_down(self) -> None:
        self._faults = _Faults(partition="refuse")
        self._hang_up()
        for dial in self._dials:
            dial.cancel()
        await asyncio.gather(*self._greetings, *self._dials, return_exceptions=True)
        await self._drop_all()
        await self._loop.shutdown_default_executor()  # it looked up the name of the target

    def _hang_up(self) -> None:
        """Refuse new clients."""
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # the client has gone already
        client, server = _End(self, "to_server"), _End(self, "to_client")
        client.peer, server.peer = server, client
        self._start(self._loop.connect_accepted_socket(lambda: client, connection), self._greetings)

    def _opened(self, end: _End) -> None:
        """Note that an end is connected."""
        self._ends.add(end)
        if end.toward == "to_server":
            self._clients.add(end)
        abandoned = end.toward == "to_client" and not end.peer.open  # the client went while we dialled
        if abandoned or self._faults.partition == "refuse":
            end.reset()
            return
        self._dial(end)
        end.flow()
        end.peer.flow()

    def _lost(self, end: _End) -> None:
        """Note that an end is closed."""
        self._ends.discard(end)
        self._clients.discard(end)

    def _dial(self, client: _End) -> None:
        """Connect a client's other end to the server, once, unless nothing may reach the server."""
        if client.toward == "to_server" and not client.dialled and self._faults.partition != "blackhole":
            client.dialled = True
            self._start(self._connect(client), self._dials)

    def _start(self, work: Coroutine[Any, Any, Any], tasks: set[asyncio.Task[Any]]) -> None:
        """Do this soon, and keep it among `tasks` until it is done."""
        task = self._loop.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def _connect(self, client: _End) -> None:
        try:
            if isinstance(self.target, str):
                await self._loop.create_unix_connection(lambda: client.peer, self.target)
            else:
                await self._loop.create_connection(lambda: client.peer, *self.target)
        except OSError:
            client.reset()  # the server is away, and the client has to see that


@dataclass(frozen=True, slots=True)
class _Faults:
    """What is wrong with a line."""

    partition: CutMode | Direction | None = None  # a direction: data that goes there is held
    delay: float = 0.0
    jitter: float = 0.0
    rate: float = math.inf  # bytes per second

    def hold(self, direction: Direction) -> bool:
        return self.partition in ("blackhole", direction)

    def __str__(self) -> str:
        partitions = {
            None: "",
            "refuse": "cut",
            "blackhole": "blackhole",
            "to_server": "nothing reaches the server",
            "to_client": "nothing reaches the client",
        }
        jitter = f" and up to {self.jitter:g} s more" if self.jitter else ""
        faults = (
            partitions[self.partition],
            f"delay {self.delay:g} s{jitter}" if self.delay or jitter else "",
            f"throttle {self.rate:g} B/s" if self.rate < math.inf else "",
        )
        return ", ".join(filter(None, faults)) or "open"


class _End(asyncio.Protocol):
    """One of the two sockets of a connection, and the data read from it that is under way to the other."""

    def __init__(self, proxy: FaultProxy, toward: Direction) -> None:
        self.toward: Direction = toward  # where the data read from it goes
        self.peer = self  # the other socket's; set when both are made
        self.dialled = False
        self.reset_after: int | None = None
        self._proxy = proxy
        self._loop = proxy._loop
        self._transport: asyncio.Transport | None = None
        self._under_way: deque[tuple[float, float, bytes]] = deque()  # arrival, luck, data; b"" is the end
        self._queued = 0
        self._ended = False
        self._congested = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._proxy._opened(self)

    def data_received(self, data: bytes) -> None:
        self._under_way.append((self._loop.time(), random.random(), data))
        self._queued += len(data)
        self.flow()

    def eof_received(self) -> bool:
        self._ended = True
        self.data_received(b"")
        return True  # keep the socket: what is under way to it has to arrive

    def pause_writing(self) -> None:
        self._congested = True  # flow() called write(), and looks at this next

    def resume_writing(self) -> None:
        self._congested = False
        self.peer.flow()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._proxy._lost(self)
        self.peer.reset()

    def flow(self) -> None:
        """Pass on what is due, as far as faults and the other socket allow; then read on, or stop reading.

        To stop reading bounds the memory: the sender's own buffers fill, as they would without a proxy.
        """
        if self._transport is None or not self.open:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        faults, line_free, now = self._proxy._faults, self._proxy._line_free, self._loop.time()
        while self._under_way and self._passable(faults):
            arrived, luck, data = self._under_way[0]
            due = max(arrived + faults.delay + luck * faults.jitter, line_free[self.toward])
            if due > now:
                self._timer = self._loop.call_at(due, self.flow)
                break
            self._under_way.popleft()
            if faults.rate < math.inf:
                size = math.ceil(faults.rate * TICK)
                if data[size:]:
                    self._under_way.appendleft((arrived, luck, data[size:]))
                    data = data[:size]
                line_free[self.toward] = now + len(data) / faults.rate
            self._queued -= len(data)
            if data:
                self.peer.send(data)
            else:
                self.peer.finish()
        if self._ended:
            return
        if self._passable(faults) and self._queued < WINDOW:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _passable(self, faults: _Faults) -> bool:
        return self.peer.open and not self.peer._congested and not faults.hold(self.toward)

    def send(self, data: bytes) -> None:
        """Write what the other end read."""
        assert self._transport is not None
        if self.reset_after is not None:
            data = data[: self.reset_after]
            self.reset_after -= len(data)
        self._proxy._moved[self.peer.toward] += len(data)
        self._transport.write(data)
        if self.reset_after == 0:
            self.reset()

    def finish(self) -> None:
        """End the stream: the other end sends no more, and all that it sent was passed on."""
        assert self._transport is not None
        if self.toward == "to_client":
            self._transport.write_eof()  # the server may still have answers to send
        else:
            self._transport.close()  # a Redis server never closes one direction alone: it is gone

    def reset(self) -> None:
        """Close at once with an RST (a socket file knows none, and just closes); data under way is lost."""
        if self._transport is None:
            return
        own = self._transport.get_extra_info("socket")
        if own.fileno() >= 0:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()


def _target(target: tuple[str, int] | str | os.PathLike[str]) -> tuple[str, int] | str:
    match target:
        case (str(host), int(port)) if host and 0 < port < 65536 and not isinstance(port, bool):
            return host, port
        case str() | os.PathLike() if (path := os.fspath(target)) and "://" not in path:
            return path
    raise ValueError(f"target is {short(target)}; expected (host, port from 1 to 65535) or the path of a socket file")


def _loopback(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    try:
        if ipaddress.IPv4Address(host).is_loopback and 0 <= int(port) < 65536:
            return host, int(port)
    except ValueError:
        pass
    raise ValueError(f"listen is {short(listen)}; expected an address of the loopback interface such as '127.0.0.1:0'")
