"""How nodes end: by a signal, with the interpreter, in a forked child, and when nobody holds them any more."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from contextlib import contextmanager
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import psutil
import pytest

from copilotlab import Chart, ChartRepository, Lab, LocalRedis, Node, Policy, load_embedder
from copilotlab.charts import RepositoryError
from copilotlab.embedding.hashing import HashEmbedder
from copilotlab.lifetime import Bell, Latch
from copilotlab.protocol.keys import BATCH_IN_PROGRESS

LIMIT = 60.0  # seconds for a process, or for what is waited for; no test waits for it to pass
QUICK = Policy(
    probe_interval=0.05, heartbeat_interval=0.3, adopt_after=0.3, redis_timeout=1.0
)  # a busy machine is not an outage


@pytest.fixture
def server():
    """One for each test: the nodes of one that failed are no clients of the next."""
    with LocalRedis(tcp=True) as server:
        yield server


def catalogue(size=20, url="sqlite://"):
    charts = ChartRepository(url)
    charts.save_many(Chart(chart_id=i, title=f"Revenue of product {i} by region") for i in range(1, size + 1))
    return charts


def wait_until(condition, limit=LIMIT):
    until = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < until, "the condition did not come true in time"
        time.sleep(0.005)


def own_threads():
    return {thread for thread in threading.enumerate() if thread.name.startswith("copilotlab")}


def clients(server):
    """The connections of nodes: a client of the test that looks has none of its own after it."""
    with server.client() as client:
        return len(client.client_list()) - 1


def collected(*references):
    gc.collect()
    return all(reference() is None for reference in references)


PRELUDE = """
import os, signal, sys, threading, time
from copilotlab import Chart, ChartRepository, Node, Policy, load_embedder
from copilotlab.embedding.hashing import HashEmbedder
url = sys.argv[1]
policy = Policy(redis_timeout=1.0)
def say(word):
    print(word, flush=True)
def catalogue(size):
    charts = ChartRepository()
    charts.save_many(Chart(chart_id=i, title=f"Revenue of product {i} by region") for i in range(1, size + 1))
    return charts
class Slow(HashEmbedder):
    def _encode(self, batch):
        time.sleep(0.0005 * len(batch))
        return super()._encode(batch)
"""


@contextmanager
def script(code, *arguments):
    """A Python process with that code; killed at the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def ended(process, limit=LIMIT):
    """Its status, and what it wrote on the standard error."""
    _, errors = process.communicate(timeout=limit)
    return process.returncode, errors


# --- the interpreter's end --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["minilm", "wordllama"])
@pytest.mark.parametrize("started", [True, False])
def test_an_interpreter_that_ends_in_a_batch_ends_the_node_and_gives_the_lease_back(server, model, started):
    code = """
node = Node(catalogue(3_000), load_embedder(sys.argv[2]), url, policy=policy, node_id="a")
if sys.argv[3] == "True":
    node.start()
else:
    node.connect()
threading.Thread(target=node.rebuild, daemon=True).start()
while not len(node.store):
    time.sleep(0.01)
say("in the batch")
"""
    with script(code, server.url, model, started) as process:
        assert process.stdout.readline().strip() == "in the batch"
        assert ended(process) == (0, "")
    assert not server.client().exists(BATCH_IN_PROGRESS)
    wait_until(lambda: clients(server) == 0)


def test_an_uncaught_error_ends_the_node_too_and_nothing_but_the_error_is_said(server):
    code = """
node = Node(catalogue(2_000), Slow(), url, policy=policy).start()
while not node.status()["lease"]:
    time.sleep(0.01)
raise SystemExit("I give up")
"""
    with script(code, server.url) as process:
        assert ended(process) == (1, "I give up\n")
    assert not server.client().exists(BATCH_IN_PROGRESS)


# --- a signal ---------------------------------------------------------------------------------------------------------

TRAFFIC = """
import logging
logging.basicConfig(level=logging.DEBUG, stream=open(os.devnull, "w"))
node = Node(catalogue(200), HashEmbedder(), url, policy=policy).start()
node.rebuild()
took = []
def stop(*_):  # it raises nothing: polars, into which a signal may come, makes a panic of that
    began = time.monotonic()
    node.stop()
    took.append(time.monotonic() - began)
signal.signal(signal.SIGTERM, stop)
def search():
    while not took:
        node.search("revenue by region")
for _ in range(2):
    threading.Thread(target=search, daemon=True).start()
say("traffic")
turn = 0
while not took:
    turn += 1
    node.update_chart(Chart(chart_id=turn % 300, title=f"Orders of turn {turn}"))
    node.search("orders", k=3)
say(took[0])
"""


def test_a_node_is_stopped_by_a_signal_handler_in_the_middle_of_its_own_traffic(server):
    runs = 8
    stops = []
    for run in range(runs):
        with script(TRAFFIC, server.url) as process:
            assert process.stdout.readline().strip() == "traffic"
            time.sleep(0.05 + 0.013 * run)  # anywhere in the traffic
            process.send_signal(signal.SIGTERM)
            out, errors = process.communicate(timeout=LIMIT)
            assert (process.returncode, errors) == (0, "")
            stops.append(float(out.split()[-1]))
    assert max(stops) < 5.0, stops  # it states 1 s; the machine is shared
    assert not server.client().exists(BATCH_IN_PROGRESS)
    wait_until(lambda: clients(server) == 0)


LOCKS = """
class Stopped(BaseException):
    pass
class Interrupted:
    def __init__(self, lock):
        self.lock, self.armed, self.wanted = lock, True, threading.Event()
    def __enter__(self):
        self.acquire()
    def __exit__(self, *_):
        self.lock.release()
    def acquire(self, *arguments, **named):
        if threading.current_thread() is not threading.main_thread():
            if self.lock.acquire(blocking=False):
                return True
            self.wanted.set()
            return self.lock.acquire(*arguments, **named)
        taken = self.lock.acquire(*arguments, **named)
        if self.armed:
            self.armed = False
            self.wanted.clear()
            self.wanted.wait(0.5)  # until a thread of the node waits for it too, if one ever does
            try:
                os.kill(os.getpid(), signal.SIGUSR1)
            except Stopped:
                self.lock.release()
                raise
        return taken
    def __getattr__(self, name):
        return getattr(self.lock, name)
def stop(*_):
    began = time.monotonic()
    node.stop()
    say(f"{name} {time.monotonic() - began:.3f}")
    raise Stopped
signal.signal(signal.SIGUSR1, stop)
kinds = (type(threading.Lock()), type(threading.RLock()))
model, number = HashEmbedder(), 0
while True:
    name = ""
    node = Node(catalogue(40), model, url, policy=Policy(redis_timeout=1.0, heartbeat_interval=0.05)).start()
    node.rebuild()
    owners = {"node": node, "replica": node.replica, "coordinator": node.coordinator, "store": node.store,
              "link": node.coordinator.link, "view": node.replica.view, "threads": node.replica.threads,
              "batches": node.replica.batches, "metrics": node.context.metrics, "details": node._details,
              "backlog": node.replica.backlog,
              "transfers": node.replica.transfers, "carrier": node.coordinator.link.carrier}
    found = [(part, attribute) for part, owner in owners.items()
             for attribute, value in sorted(vars(owner).items()) if isinstance(value, kinds)]
    if number == len(found):
        node.stop()
        break
    part, attribute = found[number]
    name = f"{part}.{attribute}"
    lock = Interrupted(getattr(owners[part], attribute))
    setattr(owners[part], attribute, lock)
    try:
        for turn in range(3):
            node.update_chart(Chart(chart_id=turn, title=f"Orders of turn {turn}"))
            node.search("orders of turn", k=3)
            node.delete_chart(turn)
            node.charts.save(Chart(chart_id=turn, title="Saved elsewhere"))
            node.chart_changed(turn)
            node.status(), node.metrics()
            node.rebuild()
    except Stopped:
        pass
    lock.armed = False
    node.stop()
    left = [thread.name for thread in threading.enumerate() if node.node_id in thread.name]
    assert not left, (name, left)
    number += 1
"""


def test_a_signal_handler_may_stop_a_node_while_the_code_that_it_interrupts_holds_any_of_its_locks(server):
    with script(LOCKS, server.url) as process:
        out, errors = process.communicate(timeout=2 * LIMIT)
    assert (process.returncode, errors) == (0, "")
    took = {name: float(seconds) for name, seconds in map(str.split, out.splitlines())}
    assert {"link.speaking", "view._lock", "metrics._lock", "store._lock"} <= took.keys()
    assert max(took.values()) < 5.0, took  # it states 1 s; the machine is shared


@pytest.mark.parametrize("started", [True, False])
def test_a_signal_in_a_rebuild_gives_the_lease_back(server, started):
    code = """
node = Node(catalogue(5_000), Slow(), url, policy=policy)
if sys.argv[2] == "True":
    node.start()
else:
    node.connect()
def stop(*_):
    node.stop()
    say("stopped")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
say("rebuild")
node.rebuild()
"""
    with script(code, server.url, started) as process:
        assert process.stdout.readline().strip() == "rebuild"
        wait_until(lambda: server.client().exists(BATCH_IN_PROGRESS))
        process.send_signal(signal.SIGTERM)
        assert ended(process) == (0, "")
    assert not server.client().exists(BATCH_IN_PROGRESS)


@pytest.mark.parametrize("started", [True, False])
def test_ctrl_c_anywhere_in_a_rebuild_gives_the_lease_back(server, started):
    code = """
node = Node(catalogue(640), Slow(), url, policy=Policy(redis_timeout=1.0, reuse_vectors=False))
if sys.argv[2] == "True":
    node.start()
else:
    node.connect()
def interrupt(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, interrupt)
for turn in range(30):
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0005 * (turn + 1), 5.0)
        while True:
            node.rebuild()
    except KeyboardInterrupt:
        signal.setitimer(signal.ITIMER_REAL, 0)
    until = time.monotonic() + 20
    while node.coordinator.flags().batch_holder and time.monotonic() < until:
        time.sleep(0.01)
    say(node.coordinator.flags().batch_holder)
node.stop()
"""
    with script(code, server.url, started) as process:
        # An interrupt that hits a finalizer is shown among the errors by Python.
        out, errors = process.communicate(timeout=2 * LIMIT)
    assert process.returncode == 0, errors
    assert out.split() == ["None"] * 30


def test_a_latch_and_a_bell_can_be_set_where_one_waits_for_them():
    latch, bell = Latch(), Bell()
    assert not latch.wait(0.0)
    waiting = [threading.Thread(target=latch.wait, args=(LIMIT,)) for _ in range(5)]
    for thread in waiting:
        thread.start()
    latch.set()
    latch.set()
    for thread in waiting:
        thread.join(LIMIT)
    assert not any(thread.is_alive() for thread in waiting)
    assert latch.wait()
    for _ in range(3):
        bell.set()
    began = time.monotonic()
    bell.wait(LIMIT)
    assert time.monotonic() - began < LIMIT / 2
    bell.set()
    bell.clear()
    bell.wait(0.0)


# --- bounds -----------------------------------------------------------------------------------------------------------


class Hanging(HashEmbedder):
    """Hangs in batches until it is let go."""

    def __init__(self):
        super().__init__()
        self.free, self.reached = threading.Event(), threading.Event()

    def _encode(self, batch):
        if len(batch) > 1:
            self.reached.set()
            self.free.wait(LIMIT)
        return super()._encode(batch)


@pytest.mark.parametrize("started", [True, False])
def test_stop_leaves_a_thread_that_hangs_in_the_model_and_says_so_and_the_rest_follows(server, started, caplog):
    model = Hanging()
    node = Node(catalogue(), model, server.url, policy=QUICK, node_id="a")
    if started:
        node.start()
    else:
        node.connect()
    results = []
    waiting = threading.Thread(target=lambda: results.append(node.rebuild()))
    waiting.start()
    assert model.reached.wait(LIMIT)
    began = time.monotonic()
    node.stop(timeout=0.2)
    assert time.monotonic() - began < 5
    assert "left behind still at work after 0.2 s" in caplog.text
    assert ("copilotlab-a-work" if started else "who drives its batch") in caplog.text
    assert server.client().exists(BATCH_IN_PROGRESS)

    model.free.set()
    waiting.join(LIMIT)
    assert results[0].outcome == "cancelled"
    wait_until(lambda: not server.client().exists(BATCH_IN_PROGRESS))
    wait_until(lambda: clients(server) == 0)
    node.stop()
    assert node.status()["state"] == "stopped"


# --- a thread that meets what it does not know ------------------------------------------------------------------------


def test_a_worker_that_meets_what_it_does_not_know_says_so_and_goes_on(server, caplog, monkeypatch):
    charts = catalogue()
    with Node(charts, load_embedder("hash"), server.url, policy=QUICK, node_id="a") as node:
        node.wait_complete(timeout=LIMIT)
        monkeypatch.setattr(ChartRepository, "look", lambda self, since=None: [].pop())
        wait_until(lambda: node.context.metrics["steps_failed"] >= 3)
        status = node.status()
        assert status["state"] == "running"
        assert "work: IndexError('pop from empty list') at " in status["trouble"]
        monkeypatch.undo()
        charts.save(Chart(chart_id=99, title="Saved elsewhere"))
        wait_until(lambda: 99 in node.store)
        wait_until(lambda: not node.status()["trouble"])
    assert caplog.text.count("step failed") == 1  # and not once a try


def test_a_node_whose_thread_has_died_says_so_and_start_begins_only_that_one_again(server, monkeypatch):
    before = own_threads()
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    node = Node(catalogue(), load_embedder("hash"), server.url, policy=QUICK, node_id="a").start()
    node.wait_complete(timeout=LIMIT)

    def die():
        raise SystemExit("a thread of ours does not do that")

    monkeypatch.setattr(node.replica, "work", die)
    wait_until(lambda: node.status()["state"] == "failed")
    assert "SystemExit" in node.status()["trouble"]
    monkeypatch.delattr(node.replica, "work")
    listener = {thread for thread in own_threads() - before if thread.name.endswith("-listen")}
    node.start()
    assert {thread for thread in own_threads() - before if thread.name.endswith("-listen")} == listener
    assert node.status()["state"] == "running"
    node.charts.save(Chart(chart_id=99, title="Saved elsewhere"))
    wait_until(lambda: 99 in node.store)
    node.stop()
    assert own_threads() <= before


def test_an_error_of_a_driver_without_words_is_named_by_its_kind(monkeypatch):
    import sqlalchemy as sa

    charts = catalogue()

    def wordless(*_, **__):
        raise sa.exc.OperationalError("SELECT 1", {}, TimeoutError())

    monkeypatch.setattr(charts._engine, "connect", wordless)
    with pytest.raises(RepositoryError, match="cannot do this: TimeoutError"):
        len(charts)


# --- nobody holds it any more -----------------------------------------------------------------------------------------


def test_a_node_that_nobody_holds_goes_and_so_do_its_threads_connections_and_its_place_among_peers(server):
    charts, model = catalogue(), load_embedder("hash")
    with Node(charts, model, server.url, policy=QUICK, node_id="stays") as stays:
        stays.rebuild()
        threads = own_threads()
        for turn in range(8):  # a cell that is run again and again
            node = Node(charts, model, server.url, policy=QUICK, node_id=f"cell-{turn}").start()
            node.wait_complete(timeout=LIMIT)
            node.search("revenue")
        gone = weakref.ref(node)
        del node
        wait_until(lambda: collected(gone))
        wait_until(lambda: own_threads() <= threads)
        wait_until(lambda: stays.status()["peers"] == 0)
    wait_until(lambda: clients(server) == 0)


def test_a_node_that_nobody_holds_gives_the_lease_of_its_batch_back(server):
    node = Node(catalogue(3_000), Slow(), server.url, policy=QUICK).start()
    wait_until(lambda: server.client().exists(BATCH_IN_PROGRESS))
    gone = weakref.ref(node)
    del node
    wait_until(lambda: collected(gone))
    wait_until(lambda: not server.client().exists(BATCH_IN_PROGRESS))
    wait_until(lambda: clients(server) == 0)


class Slow(HashEmbedder):
    def _encode(self, batch):
        time.sleep(0.002 * len(batch))
        return super()._encode(batch)


def test_a_node_that_does_not_start_leaves_nothing_running(server, monkeypatch):
    before = own_threads()
    node = Node(catalogue(), load_embedder("hash"), server.url, policy=QUICK)
    monkeypatch.setattr(node.replica.threads, "start", lambda: [].pop())
    with pytest.raises(IndexError), node:
        pytest.fail("it started")
    assert own_threads() <= before
    wait_until(lambda: clients(server) == 0)


def test_a_lab_that_nobody_holds_goes_with_its_nodes_its_lines_and_its_server(server):
    before = own_threads()
    for _ in range(2):
        lab = Lab(nodes=2, model="hash", charts=catalogue(), policy=QUICK).start()
        pid, lines = lab.redis.pid, [weakref.ref(proxy) for proxy in lab.proxies]
        gone = [weakref.ref(lab), *(weakref.ref(node) for node in lab.nodes)]
        del lab
        wait_until(lambda: collected(*gone, *lines))  # noqa: B023 - called before they change
        wait_until(lambda: own_threads() <= before)
        wait_until(lambda: not psutil.pid_exists(pid))  # noqa: B023
    theirs = Lab(nodes=2, model="hash", charts=catalogue(), policy=QUICK, redis=server).start()
    gone = [weakref.ref(theirs)]
    del theirs
    wait_until(lambda: collected(*gone))
    wait_until(lambda: own_threads() <= before)
    wait_until(lambda: clients(server) == 0)
    assert server.ping()


# --- forks ------------------------------------------------------------------------------------------------------------


@contextmanager
def forked(work):
    """A child made by a bare fork that sends back what ``work()`` returns, as JSON; killed at the end if it hangs."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            answer = json.dumps(work()).encode()
        except BaseException as error:  # noqa: BLE001 - nothing of the child may go on in the test
            answer = json.dumps({"error": repr(error)}).encode()
        os.write(writing, answer)
        os._exit(0)
    os.close(writing)
    try:
        yield lambda: json.loads(read_all(reading))
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reading)


def read_all(descriptor, limit=LIMIT):
    found = b""
    while select.select([descriptor], [], [], limit)[0]:
        if not (piece := os.read(descriptor, 65536)):
            return found
        found += piece
    raise TimeoutError(f"the child has not answered within {limit:g} s")


def who(node):
    return [node.node_id, node.coordinator.link.session]


@pytest.mark.alone  # a child that stands still for longer than a claim lasts has its chart made by another
def test_a_node_made_before_a_fork_is_another_one_in_each_child_and_all_follow_each_other(server, tmp_path):
    charts = catalogue(url=f"sqlite:///{tmp_path}/charts.db")
    named = Node(charts, load_embedder("hash"), server.url, policy=QUICK, node_id="web")
    unnamed = Node(charts, load_embedder("hash"), server.url, policy=QUICK)
    named.connect()  # the connection is the parent's
    named.rebuild()
    seen = [who(named), who(unnamed)]

    def work():
        with named:
            chart_id = 1_000 + os.getpid()
            outcome = named.update_chart(Chart(chart_id=chart_id, title=f"Made by {chart_id}")).outcome
            wait_until(lambda: len(named.store) == 23)  # 20, and one of each child
            return [who(named), who(unnamed), outcome, named.context.metrics["embeddings"], named.store.digest]

    with forked(work) as first, forked(work) as second, forked(work) as third:
        found = [first(), second(), third()]
    for name, other, outcome, embeddings, _ in found:
        assert (outcome, embeddings) == ("published", 1)
        assert name[0].startswith("web-")
        seen += [name, other]
    assert len({name for name, _ in seen}) == len({session for _, session in seen}) == 8
    assert len({digest for *_, digest in found}) == 1
    assert named.node_id == "web"
    assert named.update_chart(Chart(chart_id=1, title="The parent's line is whole")).outcome == "published"
    named.stop()


def test_a_node_that_runs_in_the_parent_refuses_in_the_child_until_it_is_started_there(server, tmp_path):
    charts = catalogue(url=f"sqlite:///{tmp_path}/charts.db")
    with Node(charts, load_embedder("hash"), server.url, policy=QUICK, node_id="web") as node:
        node.rebuild()
        count = len(charts)

        def work():
            said = []
            calls = (
                lambda: node.update_chart(Chart(chart_id=77, title="Orders")),
                lambda: node.delete_chart(1),
                lambda: node.search("revenue"),
                node.rebuild,
                node.status,
            )
            for call in calls:
                with pytest.raises(RuntimeError, match=r"start\(\) it here") as error:
                    call()
                said.append(str(error.value))
            said.append(repr(node))
            held = len(charts)
            node.start()
            outcome = node.update_chart(Chart(chart_id=77, title="Orders")).outcome
            node.stop()
            return [said, held, outcome]

        with forked(work) as answer, forked(lambda: node.stop()) as stopped:
            said, held, outcome = answer()
            assert stopped() is None
        assert held == count, "what was refused has changed nothing"
        assert outcome == "published"
        assert all("'web'" in words for words in said[:5])
        wait_until(lambda: 77 in node.store)
        assert node.running
        assert node.update_chart(Chart(chart_id=1, title="And goes on")).outcome == "published"


def test_children_forked_in_the_middle_of_traffic_never_hang(server, tmp_path):
    charts = catalogue(200, url=f"sqlite:///{tmp_path}/charts.db")
    running = Node(charts, load_embedder("hash"), server.url, policy=QUICK, node_id="running").start()
    idle = Node(charts, load_embedder("hash"), server.url, policy=QUICK, node_id="idle")
    idle.connect()
    ending = threading.Event()

    def traffic(node, first):
        turn = 0
        while not ending.is_set():
            turn += 1
            node.update_chart(Chart(chart_id=first + turn % 50, title=f"Orders {turn} of {first}"))
            node.search("revenue by region")

    threads = [threading.Thread(target=traffic, args=(node, 300 + 50 * i)) for i in (0, 1) for node in (running, idle)]
    for thread in threads:
        thread.start()

    def work():
        idle.search("orders")
        idle.connect()
        outcomes = [idle.update_chart(Chart(chart_id=5_000, title=f"Child {os.getpid()}")).outcome]
        running.start()
        running.search("orders")
        outcomes.append(running.update_chart(Chart(chart_id=5_001, title=f"Child {os.getpid()}")).outcome)
        for node in (running, idle):
            node.stop()
        return outcomes

    try:
        for _ in range(25):
            with forked(work) as answer:
                outcomes = answer()
                assert set(outcomes) <= {"published", "deferred"}, outcomes
    finally:
        ending.set()
        for thread in threads:
            thread.join(LIMIT)
        running.stop()
        idle.stop()
    wait_until(lambda: clients(server) == 0)


def test_a_fork_waits_for_a_transaction_that_is_under_way_and_the_child_writes_at_once(tmp_path):
    charts = catalogue(url=f"sqlite:///{tmp_path}/charts.db")
    inside = threading.Event()

    def write():
        with charts._transaction(writes=True):
            inside.set()
            time.sleep(0.3)  # a slow one

    writing = threading.Thread(target=write)
    writing.start()
    assert inside.wait(LIMIT)
    with forked(lambda: charts.save(Chart(chart_id=1, title="Made in the child"))) as answer:
        assert answer() == 21
    writing.join()
    assert charts.get(1).title == "Made in the child"
    assert charts.save(Chart(chart_id=1, title="Made in the parent")) == 22


def in_a_pool(number):
    node = POOLED[0]
    outcome = node.update_chart(Chart(chart_id=100 + number, title=f"Made in a pool, {number}")).outcome
    return [*who(node), outcome, node.search("made in a pool", k=1).height]


POOLED = []


def test_a_pool_of_multiprocessing_works_with_a_node_that_was_made_before_it(server, tmp_path):
    charts = catalogue(url=f"sqlite:///{tmp_path}/charts.db")
    POOLED[:] = [Node(charts, load_embedder("hash"), server.url, policy=QUICK, node_id="pooled")]
    with Node(charts, load_embedder("hash"), server.url, policy=QUICK) as parent:
        parent.rebuild()
        with multiprocessing.get_context("fork").Pool(3, initializer=POOLED[0].start) as pool:
            found = pool.map_async(in_a_pool, range(12), chunksize=1).get(LIMIT)
            pool.close()
            pool.join()
        wait_until(lambda: len(parent.store) == 32)
        wait_until(lambda: parent.status()["peers"] == 0)
    assert {(outcome, height) for *_, outcome, height in found} == {("published", 1)}
    assert len({name for name, *_ in found}) == len({session for _, session, *_ in found}) <= 3
    assert not server.client().keys("vector:batch:in_progress")
    wait_until(lambda: clients(server) == 0)
    POOLED.clear()


def test_a_lab_in_a_child_is_closed_and_the_parents_goes_on():
    with Lab(nodes=2, model="hash", charts=catalogue(), policy=QUICK) as lab:
        pid = lab.redis.pid

        def work():
            states = [lab.closed, lab.redis.state, [proxy.state for proxy in lab.proxies]]
            lab.close()
            return states

        with forked(work) as answer:
            assert answer() == [True, "closed", ["closed", "closed"]]
        assert lab.redis.pid == pid
        lab.nodes[0].update_chart(Chart(chart_id=99, title="Orders"))
        lab.partition(1)
        lab.heal(1)
        lab.wait_converged(LIMIT)


APP = """
import json, os
from urllib.parse import parse_qs
from copilotlab import Chart, ChartRepository, Node, Policy, load_embedder

charts = ChartRepository(os.environ["CHARTS"])
node = Node(charts, load_embedder("wordllama"), os.environ["REDIS"], policy=Policy(redis_timeout=1.0), node_id="web")

def app(environ, start_response):
    asked = {key: values[0] for key, values in parse_qs(environ["QUERY_STRING"]).items()}
    if "title" in asked:
        node.update_chart(Chart(chart_id=int(asked["id"]), title=asked["title"]))
    found = node.search(asked["q"], k=1)["title"].to_list()
    said = {"name": node.node_id, "found": found, "charts": len(node.store), "made": node.context.metrics["embeddings"],
            "session": node.coordinator.link.session, "running": node.running}
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(said).encode()]
"""
CONFIG = """
def post_fork(server, worker):
    from app import node
    node.start()
"""


def test_two_workers_of_gunicorn_with_a_preloaded_node_search_update_and_end_in_order(server, tmp_path):
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "gunicorn.conf.py").write_text(CONFIG)
    url = f"sqlite:///{tmp_path}/charts.db"
    charts = catalogue(url=url)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--preload", "--workers", "2", "--bind", f"127.0.0.1:{port}", "--log-level", "warning"]
    process = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", *options, "--graceful-timeout", "20", "app:app"],
        cwd=tmp_path,
        env={**os.environ, "CHARTS": url, "REDIS": server.url},
        stderr=subprocess.PIPE,
        text=True,
    )

    def ask(**query):
        with urlopen(f"http://127.0.0.1:{port}/?{urlencode(query)}", timeout=LIMIT) as answer:
            return json.load(answer)

    workers = {}

    def asked(**query):
        answer = ask(**query)
        workers[answer["name"]] = answer
        return answer

    def up():
        try:
            return asked(q="revenue")["running"]
        except URLError:
            assert process.poll() is None
            return False

    try:
        wait_until(up)
        wait_until(lambda: asked(q="revenue")["charts"] == 20 and len(workers) == 2)
        for number in range(20):
            asked(q="orders", id=100 + number, title=f"Espresso orders of machine {number}")
        wait_until(lambda: asked(q="x") and {worker["charts"] for worker in workers.values()} == {40})
        assert all(name.startswith("web-") and worker["running"] for name, worker in workers.items())
        assert len({worker["session"] for worker in workers.values()}) == 2
        assert sum(worker["made"] for worker in workers.values()) == len(charts) == 40
        assert asked(q="espresso orders of machine 7")["found"] == ["Espresso orders of machine 7"]
        process.terminate()
        code, said = ended(process)
        others = [line for line in said.splitlines() if "incomplete answers" not in line]  # asked while it filled
        assert (code, others) == (0, [])
        wait_until(lambda: clients(server) == 0)
        assert not server.client().exists(BATCH_IN_PROGRESS)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
