"""The few Redis commands that the protocol stands on, each bounded in time.

`Carrier` is what the protocol needs; `RedisCarrier` gives it over redis-py. Studies and protocol tests use a server
that exists in memory only, with the clock under their control (`copilotlab.lab.simulated_redis`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qs, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import SentinelConnectionPool

from copilotlab.lifetime import renewed_by_fork
from copilotlab.protocol import access
from copilotlab.urls import hide_password

SCHEMES = ("redis", "rediss", "unix")


class CarrierAway(ConnectionError):
    """Redis did not answer in time, or cut the connection, or answered that it cannot serve."""


class CarrierRefused(CarrierAway):
    """Redis is there, but does not let us do what we must: a mistake to mend, that time alone does not heal.

    Password, user, access list, certificate, TLS or none, no Lua, no such database: the message names it, and a remedy.
    """


class Message(NamedTuple):
    """What arrived on a channel."""

    channel: str
    payload: bytes


class Carrier(Protocol):
    """Redis, as far as the protocol needs it. Every method raises CarrierAway instead of waiting for long."""

    @property
    def address(self) -> str:
        """Where the carrier leads, fit to be shown: without a password."""
        ...

    def ping(self) -> None: ...

    def get(self, *keys: str) -> list[bytes | None]:
        """Read the values of ``keys``, in one round trip."""
        ...

    def set(self, key: str, value: bytes, *, ttl: float | None = None, if_absent: bool = False) -> bool:
        """Set ``key``, for ``ttl`` seconds if given; False, and nothing is set, if ``if_absent`` and it was there."""
        ...

    def delete(self, *keys: str) -> int:
        """Delete ``keys``; return how many there were."""
        ...

    def read(self, key: str, most: int) -> bytes:
        """Read the value of ``key``, at most its first ``most`` bytes; b"" if it is not there."""
        ...

    def run(self, script: str, keys: Sequence[str], arguments: Sequence[object]) -> Any:
        """Run one of `copilotlab.protocol.scripts` by its name, in one step of the server; return what it returns.

        arguments: bytes, strings and whole numbers.
        """
        ...

    def publish(self, channel: str, payload: bytes) -> int:
        """Send to all who listen now; return how many that was."""
        ...

    def subscribe(self, channels: Sequence[str]) -> None:
        """Listen to ``channels`` from now on, on a new connection; an earlier subscription ends."""
        ...

    def receive(self, timeout: float) -> Message | None:
        """Return the next message, waiting at most ``timeout`` seconds; None if there is none.

        A broken subscription raises CarrierAway, and is never renewed silently.
        """
        ...

    def another(self) -> Carrier:
        """Make another carrier to the same server."""
        ...

    def close(self) -> None: ...


@cache
def script_source(name: str) -> str:
    """Read one of `copilotlab.protocol.scripts` as Lua; a line ``--# name`` in it stands for that script's text."""
    text = files("copilotlab.protocol.scripts").joinpath(f"{name}.lua").read_text()
    return re.sub(r"^--# (\w+)$", lambda part: script_source(part[1]), text, flags=re.MULTILINE)


class RedisCarrier:
    """A `Carrier` over redis-py.

    redis: a URL (redis://, rediss://, unix://), or a client that you made (Sentinel, Cluster, TLS): it is used as it
    is, so give it timeouts, and is not closed.
    timeout: seconds that one command waits at most, 0.25 by default.

    clustered: whether it leads to a Redis Cluster: all that a command or script touches must then be in one hash slot.

    Raises ValueError for anything that is not such a URL or client; connects only when first used.
    """

    def __init__(self, redis_: str | redis.Redis | redis.RedisCluster, *, timeout: float = 0.25) -> None:
        self.timeout = timeout
        self.clustered = isinstance(redis_, redis.RedisCluster)
        self._target = redis_
        self._owned = isinstance(redis_, str)
        self._client = _client(redis_, timeout) if isinstance(redis_, str) else _checked(redis_)
        self._address = hide_password(redis_) if isinstance(redis_, str) else _address(redis_)
        self._scripts: dict[str, redis.commands.core.Script] = {}
        self._subscription: redis.client.PubSub | None = None
        self._broken = False
        renewed_by_fork(self)

    def after_fork(self) -> None:
        """Connect anew in a forked child: the connections are the parent's, and a lock of their pool may be held."""
        if self._subscription is not None:
            self._subscription.connection = None  # otherwise its finalizer would give it back to the pool
            self._subscription = None
        if isinstance(self._target, str) and isinstance(self._client, redis.Redis):
            self._client.auto_close_connection_pool = False  # otherwise it would close the parent's connections
            self._client = _client(self._target, self.timeout)
        self._scripts.clear()

    @property
    def address(self) -> str:
        return self._address

    def ping(self) -> None:
        try:
            with self._asking("PING"):
                self._client.ping()
        except CarrierRefused:
            raise
        except CarrierAway as error:
            if told := access.misspoken(self._client, error.__cause__, self.timeout):
                raise CarrierRefused(f"Redis at {self._address} refuses us: {told}") from error
            raise

    def get(self, *keys: str) -> list[bytes | None]:
        with self._asking("MGET", *keys):
            return list(self._client.mget(keys))  # type: ignore[arg-type]  # bytes: we set decode_responses nowhere

    def set(self, key: str, value: bytes, *, ttl: float | None = None, if_absent: bool = False) -> bool:
        milliseconds = None if ttl is None else max(1, round(ttl * 1000))
        with self._asking("SET", key):
            return bool(self._client.set(key, value, px=milliseconds, nx=if_absent))

    def delete(self, *keys: str) -> int:
        with self._asking("DEL", *keys):
            return int(self._client.delete(*keys))

    def read(self, key: str, most: int) -> bytes:
        with self._asking("GETRANGE", key):
            return bytes(self._client.getrange(key, 0, most - 1))  # type: ignore[arg-type]  # bytes, as above

    def run(self, script: str, keys: Sequence[str], arguments: Sequence[object]) -> Any:
        with self._asking(f"EVALSHA of {script}.lua", *keys):
            if script not in self._scripts:
                self._scripts[script] = self._client.register_script(script_source(script))
            return self._scripts[script](keys=keys, args=list(arguments))  # type: ignore[arg-type]  # as said above

    def publish(self, channel: str, payload: bytes) -> int:
        with self._asking("PUBLISH", channel):
            return int(self._client.publish(channel, payload))

    def subscribe(self, channels: Sequence[str]) -> None:
        self._unsubscribe()
        with self._asking("SUBSCRIBE", *channels):
            subscription = self._client.pubsub()  # type: ignore[no-untyped-call]
            subscription.subscribe(*channels)
            for _ in channels:  # the server's word that each subscription stands: what is published now arrives
                if subscription.get_message(timeout=self.timeout) is None:
                    subscription.close()
                    raise CarrierAway(f"Redis at {self._address} did not confirm a subscription in {self.timeout:g} s")
        # redis-py silently renews a broken subscription by itself; what was published meanwhile is lost.
        # So its connect hook marks the subscription broken, and `receive` raises.
        self._broken = False
        assert subscription.connection is not None
        subscription.connection.register_connect_callback(self._note_reconnect)
        self._subscription = subscription

    def receive(self, timeout: float) -> Message | None:
        subscription = self._subscription
        if subscription is None:
            raise CarrierAway(f"not subscribed at {self._address}")
        with self._asking("to hear what was published"):
            message = subscription.get_message(ignore_subscribe_messages=True, timeout=timeout)
        if self._broken:
            raise CarrierAway(f"the subscription at {self._address} was cut: what was sent meanwhile is lost")
        if message is None or message["type"] != "message":
            return None
        return Message(message["channel"].decode(), message["data"])

    def another(self) -> RedisCarrier:
        return RedisCarrier(self._target, timeout=self.timeout)

    def close(self) -> None:
        self._unsubscribe()
        if self._owned:
            self._client.close()

    def _asking(self, command: str, *names: str) -> _answering:
        return _answering(self._address, access.asked(command, names))

    def _note_reconnect(self, _connection: object) -> None:
        self._broken = True

    def _unsubscribe(self) -> None:
        if self._subscription is not None:
            subscription, self._subscription = self._subscription, None
            subscription.close()

    def __repr__(self) -> str:
        return f"RedisCarrier({self._address!r})"


def _client(url: str, timeout: float) -> redis.Redis:
    try:
        _check_url(url)
        client = redis.Redis.from_url(
            url,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),  # the coordinator decides when to ask again, not the client
        )
        client.connection_pool.make_connection()  # connects to nothing, but raises for an unknown option
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"redis={hide_password(url)!r} is not a Redis URL ({error}); expected one such as redis://127.0.0.1:6379/0"
        ) from error
    return client


def _check_url(url: str) -> None:
    """Raise ValueError for what redis-py would silently accept, and take for something else."""
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise ValueError("it starts with none of redis://, rediss:// and unix://")
    database = parts.path.strip("/")
    if parts.scheme != "unix" and database and not database.isdecimal():
        raise ValueError(f"the database is {database!r}, and no number")
    for option, values in parse_qs(parts.query).items():
        if option in _OURS:
            raise ValueError(f"{option} is not for the URL: {_OURS[option]}")
        if option in _FILES and not Path(values[-1]).exists():
            raise ValueError(f"{option}={values[-1]} is not there")


_FILES = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
_OURS = {
    "socket_timeout": "it is Policy(redis_timeout=...)",
    "socket_connect_timeout": "it is Policy(redis_timeout=...)",
    "retry_on_timeout": "a call waits for Policy(redis_timeout=...), and is not repeated",
    "decode_responses": "what travels is bytes",
}


def _checked(client: redis.Redis | redis.RedisCluster) -> redis.Redis | redis.RedisCluster:
    if client.get_encoder().decode_responses:
        raise ValueError(f"redis={client!r}: what travels is bytes; make the client without decode_responses=True")
    return client


def _address(client: redis.Redis | redis.RedisCluster) -> str:
    """Name where a client leads: a server, the sentinels that know of one, or a cluster's startup nodes."""
    if isinstance(client, redis.RedisCluster):
        return f"redis-cluster://{','.join(sorted(client.nodes_manager.startup_nodes))}"
    pool = client.connection_pool
    settings = pool.connection_kwargs
    database = settings.get("db", 0)
    if isinstance(pool, SentinelConnectionPool):
        sentinels = [s.connection_pool.connection_kwargs for s in pool.sentinel_manager.sentinels]
        places = ",".join(f"{place['host']}:{place.get('port', 26379)}" for place in sentinels)
        return f"redis-sentinel://{places}/{pool.service_name}/{database}"
    if "path" in settings:
        return f"unix://{settings['path']}"
    if "host" in settings:
        scheme = "rediss" if access.speaks_tls(client) else "redis"
        return f"{scheme}://{settings['host']}:{settings.get('port', 6379)}/{database}"
    return type(client).__name__


class _answering:
    """Turns what redis-py raises when Redis cannot serve into CarrierAway, and when it will not into CarrierRefused."""

    def __init__(self, address: str, what: str) -> None:
        self.address = address
        self.what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, _trace: object) -> None:
        # For a cluster that cannot be reached, redis-py raises what is no RedisError.
        if not isinstance(error, redis.exceptions.RedisError | redis.exceptions.RedisClusterException | OSError):
            return
        if isinstance(error, CarrierAway):
            return
        if told := access.refusal(error, self.what):
            raise CarrierRefused(f"Redis at {self.address} refuses us: {told}") from error
        raise CarrierAway(f"Redis at {self.address} is away: {error or type(error).__name__}") from error
