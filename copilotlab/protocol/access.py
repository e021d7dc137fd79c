"""What Redis has to allow a node, and, in words, what its refusals mean."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterable, Iterator, Sequence

import redis

KEY_COMMANDS = ("GET", "MGET", "SET", "DEL", "EXISTS", "GETRANGE", "PEXPIRE")
"""What a node, and its scripts, do with keys."""
CHANNEL_COMMANDS = ("SUBSCRIBE", "PUBLISH")
"""What they do with channels."""
SCRIPT_COMMANDS = ("SCRIPT", "LOAD")

DEPLOYMENT = "docs/deployment.md"


def least(namespace: str = "") -> str:
    """Write the least rules that a node's user needs, as ``ACL SETUSER`` takes them."""
    scope = f"{namespace}:" if namespace else ""
    commands = ["PING", *KEY_COMMANDS, "EVALSHA", "|".join(SCRIPT_COMMANDS), *reversed(CHANNEL_COMMANDS)]
    return (
        f"~{scope}vector:* resetchannels &{scope}chart-vector-* &{scope}chart-deletions "
        f"-@all {' '.join('+' + command.lower() for command in commands)}"
    )


def needed(keys: Iterable[str], channels: Iterable[str], spoken: Iterable[str] = ()) -> list[tuple[str, str]]:
    """List all that a node does in operation, as pairs of a command and its key or channel, as `rehearse.lua` takes.

    channels: those that it listens to; spoken: those on which it only speaks.
    """
    on_keys = [(command, key) for command in KEY_COMMANDS for key in keys]
    heard = [(command, channel) for command in CHANNEL_COMMANDS for channel in channels]
    return [*on_keys, *heard, *(("PUBLISH", channel) for channel in spoken), SCRIPT_COMMANDS]


def forbidden(pairs: Sequence[tuple[str, str]], allowed: Sequence[int]) -> str:
    """Say in words which of ``pairs`` are not allowed; "" if all are.

    A command of which no pair is allowed is named alone, and so is such a key or channel; all else is named in pairs.
    """
    refused = {pair for pair, let in zip(pairs, allowed, strict=False) if not let}
    commands = _wholly(refused, pairs, 0)
    names = _wholly([pair for pair in refused if pair[0] not in commands], pairs, 1)
    rest = [f"{pair[0]} on {pair[1]}" for pair in pairs if pair in refused and not {*pair} & {*commands, *names}]
    told = [f"the command {command}" for command in commands]
    told += [f"the {'channel' if _is_channel(name, pairs) else 'key'} {name}" for name in names]
    return _some([*told, *rest])


def _wholly(refused: Iterable[tuple[str, str]], pairs: Sequence[tuple[str, str]], part: int) -> list[str]:
    """List the commands (part 0) or names (part 1) of which every pair is refused."""
    candidates = dict.fromkeys(pair[part] for pair in pairs if pair in refused)
    return [this for this in candidates if all(pair in refused for pair in pairs if pair[part] == this)]


def _is_channel(name: str, pairs: Sequence[tuple[str, str]]) -> bool:
    return any((command, name) in pairs for command in CHANNEL_COMMANDS)


def _some(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def asked(command: str, names: Iterable[str] = ()) -> str:
    """Name a command and the keys or channels that it was for."""
    return f"{command} on {_some(list(names), 3)}" if names else command


def refusal(error: BaseException, what: str) -> str | None:
    """Say why an error is no outage but a mistake that time does not heal, and how to mend it; None for an outage.

    what: the operation that Redis was asked for.
    """
    for cause in _chain(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"its certificate is not trusted: {cause.verify_message}. Name the authority that signed it, as in "
                "rediss://host:6379/0?ssl_ca_certs=/path/to/ca.crt, and the host as the certificate names it"
            )
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, _CUT):
            if "WRONG_VERSION_NUMBER" in str(cause) or "RECORD_LAYER_FAILURE" in str(cause):
                return _NO_TLS
            if "CERTIFICATE_REQUIRED" in str(cause):  # where it is heard before the line is cut; else `misspoken` asks
                return _NO_CERTIFICATE
            return f"TLS fails: {cause}. See {DEPLOYMENT} for the options of rediss://"
    text = str(error)
    if isinstance(error, redis.exceptions.NoPermissionError) or _in_script(text):
        return f"it lets us in, but its access list does not allow {what}: {text}. See {DEPLOYMENT}"
    if isinstance(error, redis.exceptions.AuthenticationError) or text.startswith(("NOAUTH", "WRONGPASS")):
        return f"{text}. Put the user and password into the URL, as in redis://user:password@host:6379/0"
    if isinstance(error, redis.exceptions.InvalidResponse):
        return f"what answers there is no Redis: {text}. Check host and port"
    if isinstance(error, redis.exceptions.MovedError) or "not allowed in cluster mode" in text:
        return 'this is a Redis Cluster: give redis.RedisCluster(...) in place of a URL, and namespace="{charts}"'
    if isinstance(error, redis.exceptions.ResponseError):
        if re.match("unknown .*command", text, re.IGNORECASE):
            lua = "; it runs no Lua scripts, which nodes need: " if "EVALSHA" in text or "SCRIPT" in text else ". "
            return f"it does not know {what}{lua}{DEPLOYMENT} names the commands that nodes use"
        for sign, remedy in _MENDED_BY.items():
            if sign in text:
                return f"{what}: {text}. {remedy}"
    return None


_CUT = ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError | ssl.SSLWantReadError | ssl.SSLWantWriteError
_NO_TLS = "it does not speak TLS: the URL is redis://, not rediss://"
_NO_CERTIFICATE = "it asks for a certificate of ours: add ssl_certfile= and ssl_keyfile= to the URL"
_MENDED_BY = {
    "DB index": "Give a database number that it has; or 0 and a namespace",
    "SELECT is not": "Give database number 0 and a namespace",
    "protected mode": "Give it a password, or let it listen to this host",
    "WRONGTYPE": "Another program uses this key; give all nodes a namespace",
}


def _in_script(text: str) -> bool:
    """Tell whether Valkey or Redis says that the access list forbids what a script was about to do."""
    return "ACL failure in script" in text or "user executing the script can't" in text


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def misspoken(client: object, error: BaseException | None, timeout: float) -> str | None:
    """Find out whether the other side speaks TLS where we do not, or the other way round; say what mends that, or None.

    error: what the first command to it raised. A Redis with TLS cuts a client that speaks plainly; one without TLS
    waits for the end of a line that never comes. So this looks, by one more connection, for at most twice ``timeout``
    seconds.
    """
    place = getattr(getattr(client, "connection_pool", None), "connection_kwargs", {})
    if "host" not in place:
        return None
    host, port = place["host"], int(place.get("port", 6379))
    timed_out, cut = isinstance(error, redis.TimeoutError), _was_cut(error)
    if speaks_tls(client):
        if timed_out and _answers_plainly(host, port, timeout):
            return _NO_TLS
        if cut and not place.get("ssl_certfile") and _wants_certificate(host, port, timeout):
            return _NO_CERTIFICATE
    elif cut and _shakes_hands(host, port, timeout):
        return "it speaks TLS: the URL is rediss://, with ssl_ca_certs=/path/to/ca.crt where the authority is your own"
    return None


def _was_cut(error: BaseException | None) -> bool:
    signs = ConnectionResetError | BrokenPipeError | ssl.SSLEOFError
    return "closed by server" in str(error) or any(isinstance(cause, signs) for cause in _chain(error))


def speaks_tls(client: object) -> bool:
    """Tell whether a redis-py client was made for TLS."""
    kind = getattr(getattr(client, "connection_pool", None), "connection_class", object)
    return issubclass(kind, redis.SSLConnection)


def _answers_plainly(host: str, port: int, timeout: float) -> bool:
    try:
        with socket.create_connection((host, port), timeout) as line:
            line.sendall(b"PING\r\n")
            return line.recv(1) in (b"+", b"-")
    except OSError:
        return False


def _shakes_hands(host: str, port: int, timeout: float) -> bool:
    try:
        with socket.create_connection((host, port), timeout) as line, _unverified().wrap_socket(line):
            return True
    except ssl.SSLError as error:
        return "ALERT" in str(error)
    except OSError:
        return False


def _wants_certificate(host: str, port: int, timeout: float) -> bool:
    """Tell whether the server wants a certificate of ours.

    With TLS 1.3 it says so only after the handshake, and is heard only if we say nothing else.
    """
    try:
        with socket.create_connection((host, port), timeout) as line, _unverified().wrap_socket(line) as secure:
            secure.recv(1)
    except ssl.SSLError as error:
        return "CERTIFICATE" in str(error) or "HANDSHAKE_FAILURE" in str(error)
    except OSError:
        return False
    return False


def _unverified() -> ssl.SSLContext:
    """Make a context only to see what is spoken there: nothing is sent over it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
