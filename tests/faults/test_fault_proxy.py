"""A FaultProxy passes everything on, until it is told to fail; then it fails in just that way, and heals."""

from __future__ import annotations

import gc
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from copilotlab.lab.proxy import FaultProxy
from copilotlab.lab.server import LocalRedis


@pytest.fixture(scope="module", params=["socket", "port"])
def server(request: pytest.FixtureRequest) -> Iterator[LocalRedis]:
    with LocalRedis(tcp=request.param == "port") as server:
        yield server


@pytest.fixture
def own_server() -> Iterator[LocalRedis]:
    """A server that a test may break."""
    with LocalRedis() as server:
        yield server


@pytest.fixture
def line(server: LocalRedis) -> Iterator[FaultProxy]:
    server.client().flushall()
    with FaultProxy(server.endpoint) as line:
        yield line


def client_of(line: FaultProxy, timeout: float = 20.0, **options: Any) -> redis.Redis:
    return redis.Redis.from_url(line.url(), socket_timeout=timeout, retry=Retry(NoBackoff(), 0), **options)


def eventually(condition: Callable[[], bool], limit: float = 20.0) -> bool:
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def seconds_of(action: Callable[[], object]) -> float:
    begun = time.monotonic()
    action()
    return time.monotonic() - begun


def raw(line: FaultProxy, timeout: float = 20.0) -> socket.socket:
    return socket.create_connection(line.address, timeout=timeout)


def read_to_the_end(connection: socket.socket) -> tuple[bytes, bool]:
    """All that arrives, and whether it ended with a reset."""
    received = bytearray()
    try:
        while data := connection.recv(65536):
            received += data
    except ConnectionResetError:
        return bytes(received), True
    return bytes(received), False


# Without a fault.


def test_it_passes_commands_and_answers_on(line: FaultProxy) -> None:
    client = client_of(line)
    value = random.Random(1).randbytes(3_000_000)
    client.set("chart", value)
    assert client.get("chart") == value
    assert line.state == "open"
    assert line.connections == 1
    assert line.bytes_up > len(value)
    assert line.bytes_down > len(value)


def test_it_passes_messages_on(line: FaultProxy, server: LocalRedis) -> None:
    with client_of(line).pubsub() as news:
        news.subscribe("charts")
        assert news.get_message(timeout=20)["type"] == "subscribe"
        for number in range(100):
            server.client().publish("charts", number)
        got = [news.get_message(timeout=20)["data"] for _ in range(100)]
    assert got == [str(number).encode() for number in range(100)]


def test_many_clients_share_it_without_mixing(line: FaultProxy) -> None:
    wrong: list[object] = []

    def use(me: int) -> None:
        client = client_of(line)
        for turn in range(50):
            client.set(f"chart:{me}", f"{me}:{turn}" * 100)
            if client.get(f"chart:{me}") != (f"{me}:{turn}" * 100).encode():
                wrong.append((me, turn))
        client.close()

    threads = [threading.Thread(target=use, args=(me,)) for me in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert eventually(lambda: line.connections == 0)


def test_its_url_carries_password_and_database(own_server: LocalRedis) -> None:
    own_server.set_password("p@ss:w/rd")
    with FaultProxy(own_server.endpoint) as line:
        client = redis.Redis.from_url(line.url("p@ss:w/rd", db=3))
        client.set("chart", 7)
        assert own_server.client(db=3).get("chart") == b"7"
        with pytest.raises(redis.AuthenticationError):
            client_of(line).ping()


def test_a_client_that_closes_its_half_still_gets_its_answer(line: FaultProxy) -> None:
    with raw(line) as connection:
        connection.sendall(b"PING\r\n")
        connection.shutdown(socket.SHUT_WR)
        assert read_to_the_end(connection) == (b"+PONG\r\n", False)
    assert eventually(lambda: line.connections == 0)


def test_what_a_leaving_client_said_still_arrives(line: FaultProxy, server: LocalRedis) -> None:
    line.delay(0.05)
    with raw(line) as connection:
        connection.sendall(b"SET chart 7\r\n")
        connection.shutdown(socket.SHUT_WR)
        assert read_to_the_end(connection)[0] == b"+OK\r\n"
    assert server.client().get("chart") == b"7"


def test_a_client_that_leaves_is_seen_by_the_server(line: FaultProxy, server: LocalRedis) -> None:
    client = client_of(line, client_name="leaver")
    client.ping()
    names = lambda: [each["name"] for each in server.client().client_list()]  # noqa: E731
    assert "leaver" in names()
    client.close()
    assert eventually(lambda: "leaver" not in names())
    assert eventually(lambda: line.connections == 0)


# When the server is away.


def test_without_a_server_a_client_is_told_at_once_and_comes_back_with_it(own_server: LocalRedis) -> None:
    with FaultProxy(own_server.endpoint) as line:
        client = client_of(line)
        client.ping()
        for end in (own_server.stop, own_server.kill):
            end()
            for _ in range(3):
                with pytest.raises(redis.ConnectionError):
                    client.ping()
            own_server.start()
            assert client.ping()


def test_its_target_need_not_exist_yet(tmp_path: Path) -> None:
    with FaultProxy(tmp_path / "redis.sock") as line, pytest.raises(redis.ConnectionError):
        client_of(line).ping()


def test_a_paused_server_is_a_timeout_and_answers_later(own_server: LocalRedis) -> None:
    with FaultProxy(own_server.endpoint) as line, raw(line) as connection:
        connection.sendall(b"PING\r\n")
        assert connection.recv(100) == b"+PONG\r\n"
        own_server.pause()
        connection.sendall(b"PING\r\n")
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(100)
        own_server.resume()
        connection.settimeout(20)
        assert connection.recv(100) == b"+PONG\r\n"


# Partitions.


def test_a_cut_drops_connections_and_refuses_new_ones_until_it_heals(line: FaultProxy, server: LocalRedis) -> None:
    client = client_of(line, client_name="cut-off")
    client.ping()
    line.cut()
    assert line.state == "cut"
    assert line.connections == 0
    with pytest.raises(redis.ConnectionError):
        client.ping()
    with pytest.raises(ConnectionRefusedError):
        raw(line)
    assert eventually(lambda: "cut-off" not in [each["name"] for each in server.client().client_list()])
    line.heal()
    assert line.state == "open"
    assert client.ping()


def test_a_cut_and_a_heal_can_be_repeated(line: FaultProxy) -> None:
    client = client_of(line)
    for _ in range(10):
        line.cut()
        line.cut()
        with pytest.raises(redis.ConnectionError):
            client.ping()
        line.heal()
        line.heal()
        assert client.ping()


def test_a_black_hole_moves_no_byte_and_closes_nothing(line: FaultProxy, server: LocalRedis) -> None:
    with raw(line) as old:
        old.sendall(b"PING\r\n")
        assert old.recv(100) == b"+PONG\r\n"
        line.cut("blackhole")
        moved = line.bytes_up, line.bytes_down
        with raw(line, timeout=0.2) as new:
            old.settimeout(0.2)
            for connection in (old, new):
                connection.sendall(b"INCR arrived\r\n")
                with pytest.raises(TimeoutError):
                    connection.recv(100)
            assert (line.bytes_up, line.bytes_down) == moved
            assert line.state == "blackhole"
            assert eventually(lambda: line.connections == 2)
            assert server.client().get("arrived") is None
            line.heal()  # TCP would send again: it arrives late, not never
            for connection in (old, new):
                connection.settimeout(20)
                assert connection.recv(100) in (b":1\r\n", b":2\r\n")
    assert server.client().get("arrived") == b"2"


def test_in_a_black_hole_nobody_hears_that_the_other_side_died(own_server: LocalRedis) -> None:
    with FaultProxy(own_server.endpoint) as line, raw(line) as half_open:
        half_open.sendall(b"PING\r\n")
        assert half_open.recv(100) == b"+PONG\r\n"
        line.cut("blackhole")
        own_server.kill()
        half_open.settimeout(0.2)
        with pytest.raises(TimeoutError):
            half_open.recv(100)
        line.heal()
        half_open.settimeout(20)
        assert read_to_the_end(half_open)[0] == b""


def test_one_way_to_the_server_holds_commands_but_not_news(line: FaultProxy, server: LocalRedis) -> None:
    with raw(line) as listener, raw(line, timeout=0.2) as caller:
        listener.sendall(b"SUBSCRIBE charts\r\n")
        assert b"subscribe" in listener.recv(1000)
        line.one_way("to_server")
        assert line.state == "nothing reaches the server"
        caller.sendall(b"SET chart 7\r\n")
        with pytest.raises(TimeoutError):
            caller.recv(100)
        assert server.client().get("chart") is None
        server.client().publish("charts", "news")
        assert b"news" in listener.recv(1000)
        line.heal()
        caller.settimeout(20)
        assert caller.recv(100) == b"+OK\r\n"


def test_one_way_to_the_client_holds_answers_but_not_commands(line: FaultProxy, server: LocalRedis) -> None:
    with raw(line, timeout=0.2) as caller:
        line.one_way("to_client")
        assert line.state == "nothing reaches the client"
        caller.sendall(b"SET chart 7\r\n")
        assert eventually(lambda: server.client().get("chart") == b"7")
        with pytest.raises(TimeoutError):
            caller.recv(100)
        line.heal()
        caller.settimeout(20)
        assert caller.recv(100) == b"+OK\r\n"


def test_one_partition_replaces_another(line: FaultProxy) -> None:
    client = client_of(line, timeout=0.2)
    line.cut()
    line.cut("blackhole")
    with pytest.raises(redis.TimeoutError):
        client.ping()
    line.one_way("to_client")
    with pytest.raises(redis.TimeoutError):
        client.ping()
    line.cut("refuse")
    with pytest.raises(redis.ConnectionError):
        client.ping()
    line.heal()
    assert client_of(line).ping()


# Slow lines.


def test_a_delay_counts_each_way_and_ends(line: FaultProxy) -> None:
    client = client_of(line)
    client.ping()
    line.delay(0.1)
    assert line.state == "delay 0.1 s"
    assert seconds_of(client.ping) >= 0.19
    line.delay(0)
    assert line.state == "open"
    undelayed = min(seconds_of(client.ping) for _ in range(20))
    assert undelayed < 0.1


def test_a_delay_is_latency_and_not_a_queue(line: FaultProxy) -> None:
    client = client_of(line)
    client.ping()
    line.delay(0.1)
    pipeline = client.pipeline(transaction=False)
    for number in range(200):
        pipeline.set(f"chart:{number}", "x" * 1000)
    assert 0.19 <= seconds_of(pipeline.execute) < 200 * 0.1


def test_jitter_keeps_the_order(line: FaultProxy, server: LocalRedis) -> None:
    with client_of(line).pubsub() as news:
        news.subscribe("charts")
        assert news.get_message(timeout=20) is not None
        line.delay(0.001, jitter=0.02)
        assert line.state == "delay 0.001 s and up to 0.02 s more"
        publisher = server.client()
        for number in range(200):
            publisher.publish("charts", number)
        got = [int(news.get_message(timeout=20)["data"]) for _ in range(200)]
    assert got == list(range(200))


def test_jitter_takes_time_by_chance(line: FaultProxy) -> None:
    client = client_of(line)
    client.ping()
    line.delay(0, jitter=0.03)
    assert line.state == "delay 0 s and up to 0.03 s more"
    taken = [seconds_of(client.ping) for _ in range(20)]
    assert sum(taken) >= 0.2  # 0.6 on average
    assert len({round(seconds, 3) for seconds in taken}) > 1


def test_what_a_long_delay_holds_arrives_when_it_heals(line: FaultProxy) -> None:
    with raw(line) as connection:
        line.delay(3600)
        connection.sendall(b"PING\r\n")
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(100)
        line.heal()
        connection.settimeout(20)
        assert connection.recv(100) == b"+PONG\r\n"


def test_a_delay_holds_back_whoever_sends_too_much(line: FaultProxy) -> None:
    with raw(line) as connection:
        connection.sendall(b"PING\r\n")
        assert connection.recv(100) == b"+PONG\r\n"
        line.delay(3600)
        connection.settimeout(0.5)
        flood = b"PING\r\n" * 10_000_000  # far more than the window and the system's own buffers take
        with pytest.raises(TimeoutError):
            connection.sendall(flood)


def test_a_throttled_line_takes_the_time_that_its_rate_gives(line: FaultProxy, server: LocalRedis) -> None:
    server.client().set("chart", b"x" * 50_000)
    client = client_of(line)
    client.ping()
    line.throttle(100_000)
    assert line.state == "throttle 100000 B/s"
    assert seconds_of(lambda: client.get("chart")) >= 0.4
    line.throttle(None)
    assert line.state == "open"
    assert client.get("chart") == b"x" * 50_000


def test_a_throttle_is_shared_by_all_connections(line: FaultProxy, server: LocalRedis) -> None:
    server.client().set("chart", b"x" * 20_000)
    clients = [client_of(line) for _ in range(3)]
    for client in clients:
        client.ping()
    line.throttle(100_000)
    threads = [threading.Thread(target=client.get, args=("chart",)) for client in clients]

    def all_of_them() -> None:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert seconds_of(all_of_them) >= 0.5


def test_everything_arrives_whole_over_a_bad_line(line: FaultProxy) -> None:
    value = random.Random(2).randbytes(300_000)
    line.delay(0.005, jitter=0.01)
    line.throttle(1_000_000)
    client = client_of(line)
    client.set("chart", value)
    assert client.get("chart") == value
    assert line.state == "delay 0.005 s and up to 0.01 s more, throttle 1e+06 B/s"


# Resets.


def test_a_reset_ends_what_is_open_and_nothing_else(line: FaultProxy) -> None:
    with raw(line) as first, raw(line) as second:
        for connection in (first, second):
            connection.sendall(b"PING\r\n")
            assert connection.recv(100) == b"+PONG\r\n"
        assert line.reset() == 2
        assert read_to_the_end(first) == (b"", True)
        assert read_to_the_end(second) == (b"", True)
    assert line.connections == 0
    assert line.reset() == 0
    assert client_of(line).ping()


def test_a_reset_in_the_middle_of_a_reply_leaves_the_bytes_before_it(line: FaultProxy, server: LocalRedis) -> None:
    server.client().set("chart", b"x" * 1000)
    with raw(line) as connection:
        connection.sendall(b"PING\r\n")
        assert connection.recv(100) == b"+PONG\r\n"
        assert line.reset(after_bytes=107) == 1
        connection.sendall(b"GET chart\r\n")
        assert read_to_the_end(connection) == (b"$1000\r\n" + b"x" * 100, True)


def test_a_client_sees_a_reset_in_the_middle_of_a_reply_as_a_lost_connection(
    line: FaultProxy, server: LocalRedis
) -> None:
    server.client().set("chart", b"x" * 100_000)
    client = client_of(line)
    client.ping()
    line.reset(after_bytes=50_000)
    with pytest.raises(redis.ConnectionError):
        client.get("chart")
    assert client.get("chart") == b"x" * 100_000


def test_a_reset_that_waits_for_its_bytes_is_healed_too(line: FaultProxy) -> None:
    client = client_of(line)
    client.ping()
    line.reset(after_bytes=3)
    line.heal()
    assert client.ping()
    assert line.connections == 1


def test_a_subscriber_whose_connection_is_reset_can_subscribe_again(line: FaultProxy, server: LocalRedis) -> None:
    with client_of(line).pubsub() as news:
        news.subscribe("charts")
        assert news.get_message(timeout=20) is not None
        line.reset()
        with pytest.raises(redis.ConnectionError):
            news.get_message(timeout=20)
        news.subscribe("charts")
        assert eventually(lambda: server.client().publish("charts", "news") == 1)


# Backpressure.


def test_a_subscriber_that_does_not_read_is_cut_off_by_the_server_and_not_hidden_by_the_proxy() -> None:
    limit = ["--client-output-buffer-limit", "pubsub 1mb 0 0"]
    with LocalRedis(args=limit) as server, FaultProxy(server.endpoint) as line, raw(line) as slow:
        slow.sendall(b"SUBSCRIBE charts\r\n")
        assert b"subscribe" in slow.recv(1000)
        burst = server.client().pipeline(transaction=False)
        sent, heard = 0, True
        while heard:
            for _ in range(100):
                burst.publish("charts", b"x" * 1600)
            heard = burst.execute()[-1] > 0
            sent += 100 * 1600
            assert sent < 100_000_000, "the proxy swallows without end"
        received, _ = read_to_the_end(slow)  # what was on the way arrives, then the end
        assert 0 < len(received) < sent


def test_the_proxy_reads_no_more_than_it_can_pass_on(line: FaultProxy, server: LocalRedis) -> None:
    server.client().set("chart", b"x" * 60_000_000)
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        slow.connect(line.address)
        slow.settimeout(20)
        slow.sendall(b"GET chart\r\n")
        header = slow.recv(11, socket.MSG_WAITALL)
        assert header == b"$60000000\r\n"
        still = -1
        while still != line.bytes_down:  # until nothing moves any more
            still = line.bytes_down
            time.sleep(0.2)
        assert line.bytes_down < 60_000_000 / 2
        rest = bytearray()
        while len(rest) < 60_000_002:
            rest += slow.recv(1 << 20)
        assert bytes(rest[-2:]) == b"\r\n"


# Its own life.


def open_files() -> int:
    return len(os.listdir("/dev/fd"))


def test_closing_leaves_no_thread_and_no_socket(server: LocalRedis) -> None:
    gc.collect()  # clients of other tests, whose sockets would be closed in the midst of this one
    threads, files = threading.active_count(), open_files()
    for fault in ("", "cut", "blackhole", "delay"):
        line = FaultProxy(server.endpoint)
        client = client_of(line)
        client.ping()
        if fault == "cut":
            line.cut()
        elif fault == "blackhole":
            line.cut("blackhole")
            with client_of(line, timeout=0.1) as impatient, pytest.raises(redis.TimeoutError):
                impatient.ping()
            raw(line).close()
        elif fault == "delay":
            line.delay(3600)
            with client_of(line, timeout=0.1) as impatient, pytest.raises(redis.TimeoutError):
                impatient.ping()
        assert threading.active_count() == threads + 1
        line.close()
        line.close()
        client.close()
        assert line.state == "closed"
        assert line.connections == 0
    assert threading.active_count() == threads
    assert open_files() == files


def test_a_closed_proxy_takes_no_more_faults_and_no_more_clients(server: LocalRedis) -> None:
    with FaultProxy(server.endpoint) as line:
        pass
    with pytest.raises(RuntimeError, match="closed; make another"):
        line.cut()
    with pytest.raises(ConnectionRefusedError):
        raw(line)


def test_closing_resets_the_clients_and_the_server_forgets_them(server: LocalRedis) -> None:
    before = len(server.client().client_list())
    line = FaultProxy(server.endpoint)
    with raw(line) as connection:
        connection.sendall(b"PING\r\n")
        assert connection.recv(100) == b"+PONG\r\n"
        line.close()
        assert read_to_the_end(connection) == (b"", True)
    assert eventually(lambda: len(server.client().client_list()) <= before)


def test_faults_from_many_threads_under_traffic_leave_a_line_that_works(line: FaultProxy) -> None:
    done = threading.Event()
    surprises: list[BaseException] = []

    def use() -> None:
        while not done.is_set():
            with client_of(line, timeout=0.05) as client:
                try:
                    for _ in range(20):
                        client.set("chart", random.randbytes(20_000))
                except (redis.ConnectionError, redis.TimeoutError):
                    pass
                except BaseException as error:  # noqa: BLE001
                    surprises.append(error)
                    return

    def disturb(seed: int) -> None:
        dice = random.Random(seed)
        faults: list[Callable[[], object]] = [
            line.cut,
            lambda: line.cut("blackhole"),
            lambda: line.one_way("to_client"),
            lambda: line.delay(dice.random() / 100, dice.random() / 100),
            lambda: line.throttle(dice.choice([None, 10_000, 1_000_000])),
            lambda: line.reset(dice.choice([None, 1, 1000])),
            line.heal,
        ]
        for _ in range(60):
            dice.choice(faults)()

    users = [threading.Thread(target=use) for _ in range(3)]
    disturbers = [threading.Thread(target=disturb, args=(seed,)) for seed in range(3)]
    for thread in [*users, *disturbers]:
        thread.start()
    for thread in disturbers:
        thread.join()
    done.set()
    for thread in users:
        thread.join()
    assert surprises == []
    line.heal()
    assert eventually(lambda: line.connections == 0)
    assert client_of(line).ping()


@pytest.mark.skipif(not os.path.exists("/proc/version"), reason="only Linux keeps a port for a server that is away")
def test_its_port_stays_its_own_while_it_refuses(line: FaultProxy) -> None:
    line.cut()
    with socket.socket() as thief, pytest.raises(OSError, match="in use"):
        thief.bind(line.address)


def test_it_listens_where_it_is_told(server: LocalRedis) -> None:
    with FaultProxy(server.endpoint) as line:
        host, port = line.address
        with pytest.raises(OSError, match=f"cannot have port {port}"):
            FaultProxy(server.endpoint, listen=f"{host}:{port}")
    with FaultProxy(server.endpoint, listen=f"{host}:{port}") as line:
        assert line.address == (host, port)
        assert client_of(line).ping()


def test_it_shows_its_line_and_its_state(server: LocalRedis) -> None:
    with FaultProxy(("127.0.0.1", 6379)) as line:
        line.delay(0.2)
        port = line.address[1]
        assert repr(line) == (f"<FaultProxy 127.0.0.1:{port} to 127.0.0.1:6379, delay 0.2 s, 0 connections>")


@pytest.mark.parametrize("target", ["", "redis://127.0.0.1:6379", ("127.0.0.1",), ("", 1), ("h", 0), ("h", "1"), 7])
def test_a_wrong_target_is_refused(target: Any) -> None:
    with pytest.raises(ValueError, match="target is"):
        FaultProxy(target)


@pytest.mark.parametrize("listen", ["", "127.0.0.1", "0.0.0.0:0", "10.0.0.1:80", "127.0.0.1:x", "127.0.0.1:70000"])
def test_an_address_that_others_could_reach_is_refused(listen: str) -> None:
    with pytest.raises(ValueError, match="listen is"):
        FaultProxy("/tmp/redis.sock", listen=listen)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda line: line.cut("gently"), "cut"),
        (lambda line: line.one_way("up"), "one_way"),
        (lambda line: line.delay(-1), "delay"),
        (lambda line: line.delay(float("nan")), "delay"),
        (lambda line: line.delay(0, jitter=float("inf")), "jitter"),
        (lambda line: line.throttle(0), "throttle"),
        (lambda line: line.throttle(float("nan")), "throttle"),
        (lambda line: line.reset(-1), "reset"),
        (lambda line: line.reset(1.5), "reset"),
    ],
)
def test_a_wrong_fault_is_refused_and_changes_nothing(
    line: FaultProxy, fault: Callable[[FaultProxy], object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fault(line)
    assert line.state == "open"
