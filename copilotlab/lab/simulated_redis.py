"""A Redis that exists in memory only; a test or a study controls its time and all its faults.

It has the commands of `Carrier` and no others, and takes its time from the clock that it is given: a lease of five
minutes runs out when a `ManualClock` is moved on by five minutes. It runs the same Lua scripts as a real server (by
lupa, Lua 5.1 as in Redis). Messages arrive when the receiver asks for them.
It serves to drive nodes step by step in one thread; for all else use a real server (`LocalRedis`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from lupa.lua51 import LuaRuntime

from copilotlab.clock import Clock
from copilotlab.protocol.carrier import CarrierAway, Message, script_source


class SimulatedRedis:
    """The server. clock: by which its keys expire."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._keys: dict[str, tuple[bytes, float | None]] = {}
        self._carriers: list[SimulatedCarrier] = []
        self._scripts: dict[str, Callable[..., Any]] = {}
        self.running = True

    def carrier(self) -> SimulatedCarrier:
        """Return the `Carrier` of a new connection."""
        carrier = SimulatedCarrier(self)
        self._carriers.append(carrier)
        return carrier

    def stop(self) -> None:
        """Stop: every connection breaks, and messages that were not received are lost."""
        self.running = False
        for carrier in self._carriers:
            carrier.blink()

    def start(self, *, keep_data: bool = True) -> None:
        """Run again, with the keys that it had or with none."""
        if not keep_data:
            self._keys.clear()
        self.running = True

    def held(self) -> dict[str, bytes]:
        """Return the keys and values that it holds now."""
        return {key: value for key in list(self._keys) if (value := self._get(key)) is not None}

    def forget(self) -> None:
        """Lose all keys, as by FLUSHALL: no connection breaks."""
        self._keys.clear()

    def expire(self, key: str) -> None:
        """Expire one key now."""
        self._keys.pop(key, None)

    def _run(self, name: str, keys: Sequence[str], arguments: Sequence[object]) -> Any:
        if name not in self._scripts:
            self._scripts[name] = _compiled(name, self._call)
        plain = [part if isinstance(part, bytes) else str(part).encode() for part in (*keys, *arguments)]
        return _reply(self._scripts[name](plain[: len(keys)], plain[len(keys) :]))

    def _call(self, command: bytes, *parts: bytes | float) -> object:
        """Run a command of a script, and return the reply that Lua sees: false for nil."""
        key, *values = [part if isinstance(part, bytes) else str(int(part)).encode() for part in parts]
        name = key.decode()
        match command, values:
            case b"GET", []:
                value = self._get(name)
                return False if value is None else value
            case b"EXISTS", []:
                return int(self._get(name) is not None)
            case b"SET", [value]:
                return self._set(name, value, None, False)
            case b"SET", [value, b"PX", milliseconds]:
                return self._set(name, value, int(milliseconds) / 1000, False)
            case b"PEXPIRE", [milliseconds]:
                value = self._get(name)
                return value is not None and self._set(name, value, int(milliseconds) / 1000, False)
            case b"DEL", []:
                return self._delete([name])
            case b"PUBLISH", [payload]:
                return self._publish(Message(name, payload))
        raise NotImplementedError(f"the simulated Redis has no {command.decode()} with {len(values)} arguments")

    def _get(self, key: str) -> bytes | None:
        value, expires = self._keys.get(key, (None, None))
        if expires is not None and self._clock.now() >= expires:
            del self._keys[key]
            return None
        return value

    def _set(self, key: str, value: bytes, ttl: float | None, if_absent: bool) -> bool:
        if if_absent and self._get(key) is not None:
            return False
        self._keys[key] = (value, None if ttl is None else self._clock.now() + ttl)
        return True

    def _delete(self, keys: Sequence[str]) -> int:
        there = [key for key in keys if self._get(key) is not None]
        for key in there:
            del self._keys[key]
        return len(there)

    def _publish(self, message: Message) -> int:
        listeners = [carrier for carrier in self._carriers if message.channel in carrier.channels]
        for carrier in listeners:
            carrier.arrived.append(message)
        return len(listeners)

    def __repr__(self) -> str:
        return f"SimulatedRedis({'running' if self.running else 'down'}, {len(self.held())} keys)"


class SimulatedCarrier:
    """One node's connection to a `SimulatedRedis`.

    reachable: whether it reaches the server.
    arrived: messages on their way to the node, oldest first; a test may drop, double or reorder them.
    """

    address = "simulated"

    def __init__(self, server: SimulatedRedis) -> None:
        self._server = server
        self.reachable = True
        self.channels: frozenset[str] = frozenset()
        self.arrived: deque[Message] = deque()

    def cut(self) -> None:
        """Partition this node from the server."""
        self.reachable = False
        self.blink()

    def heal(self) -> None:
        """End the partition."""
        self.reachable = True

    def blink(self) -> None:
        """Break the connection once: the subscription is gone, and so are the messages on their way."""
        self.channels = frozenset()
        self.arrived.clear()

    def ping(self) -> None:
        if not (self.reachable and self._server.running):
            raise CarrierAway("the simulated Redis is away")

    def get(self, *keys: str) -> list[bytes | None]:
        self.ping()
        return [self._server._get(key) for key in keys]

    def set(self, key: str, value: bytes, *, ttl: float | None = None, if_absent: bool = False) -> bool:
        self.ping()
        return self._server._set(key, value, ttl, if_absent)

    def delete(self, *keys: str) -> int:
        self.ping()
        return self._server._delete(keys)

    def read(self, key: str, most: int) -> bytes:
        (value,) = self.get(key)
        return (value or b"")[:most]

    def run(self, script: str, keys: Sequence[str], arguments: Sequence[object]) -> Any:
        self.ping()
        return self._server._run(script, keys, arguments)

    def publish(self, channel: str, payload: bytes) -> int:
        self.ping()
        return self._server._publish(Message(channel, payload))

    def subscribe(self, channels: Sequence[str]) -> None:
        self.ping()
        self.arrived.clear()
        self.channels = frozenset(channels)

    def receive(self, timeout: float) -> Message | None:
        self.ping()
        if not self.channels:
            raise CarrierAway("the simulated subscription was cut")
        return self.arrived.popleft() if self.arrived else None

    def another(self) -> SimulatedCarrier:
        return self._server.carrier()

    def close(self) -> None:
        self.blink()

    def __repr__(self) -> str:
        return f"SimulatedCarrier({len(self.arrived)} messages on their way)"


def _compiled(name: str, call: Callable[..., object]) -> Callable[..., Any]:
    """Compile a script, in a Lua of its own, into a function of its keys and arguments."""
    lua = LuaRuntime(encoding=None, unpack_returned_tuples=True)
    script = lua.eval(
        b"function(call) redis = {call = call}; return function(keys, argv) KEYS = keys; ARGV = argv; "
        + b"return (function()\n"
        + script_source(name).encode()
        + b"\nend)() end end"
    )(call)
    return lambda keys, arguments: script(lua.table_from(keys), lua.table_from(arguments))


def _reply(value: Any) -> Any:
    """Turn what a script returned into what a client gets: whole numbers, bytes, None, lists of these."""
    if value is None or value is False:
        return None
    if isinstance(value, bytes):
        return value
    if isinstance(value, int | float):
        return int(value)
    return [_reply(part) for part in value.values()]
