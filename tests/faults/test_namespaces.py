"""Three processes in three network namespaces, PostgreSQL and the Redis server in a fourth, cut as networks are cut."""

from __future__ import annotations

import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from namespaces import POSTGRES, REDIS, Namespaces, Network, hindrance
from trial import BATCH, POLICY, QUERIES, Trial, first_charts, reused, wait_until

pytestmark = pytest.mark.slow

VICTIM = 1


@pytest.fixture(scope="module", autouse=True)
def allowed():
    if why := _hindrance():
        pytest.skip(why)


_hindrance = cache(hindrance)


class Cut(NamedTuple):
    """What is done to one node's line, or to all. refuses: whether it refuses edits then; None where that depends."""

    what: str
    begin: Callable[[Namespaces], object]
    refuses: bool | None = True


def _rules(*rules: str) -> Callable[[Namespaces], object]:
    def begin(cluster):
        for rule in rules:
            cluster.network.cut(cluster.network.nodes[VICTIM], *rule.split())

    return begin


def _link_down(cluster):
    cluster.network.ip(cluster.network.nodes[VICTIM], "link", "set", "eth0", "down")


def _all_down(cluster):
    cluster.network.ip(cluster.network.services, "link", "set", "br0", "down")


CUTS = {
    "packets dropped": Cut(
        "one node's namespace drops all packets, both ways (iptables)",
        _rules("-A INPUT -i eth0 -j DROP", "-A OUTPUT -o eth0 -j DROP"),
    ),
    "packets rejected": Cut(
        "one node's namespace answers each of its packets with a reset (iptables)",
        _rules("-A OUTPUT -o eth0 -p tcp -j REJECT --reject-with tcp-reset"),
    ),
    "link down": Cut("one node's link is down", _link_down),
    "link of the services down": Cut("the link of Redis and PostgreSQL is down: every node is alone", _all_down),
    "packets to Redis dropped": Cut(
        "what one node sends to Redis is dropped (iptables); it reaches PostgreSQL",
        _rules(f"-A OUTPUT -p tcp --dport {REDIS} -j DROP"),
        refuses=False,
    ),
    "packets from Redis dropped": Cut(
        "what Redis sends to one node is dropped (iptables); it reaches PostgreSQL",
        _rules(f"-A INPUT -p tcp --sport {REDIS} -j DROP"),
        refuses=False,
    ),
    "packets to PostgreSQL dropped": Cut(
        "what one node sends to PostgreSQL is dropped (iptables); it reaches Redis",
        _rules(f"-A OUTPUT -p tcp --dport {POSTGRES} -j DROP"),
    ),
    "large packets dropped": Cut(
        "packets of one node above 600 bytes are dropped, both ways, as by a wrong MTU (iptables)",
        _rules("-A INPUT -i eth0 -m length --length 600: -j DROP", "-A OUTPUT -o eth0 -m length --length 600: -j DROP"),
        refuses=None,
    ),
}


class NetworkTrial(Trial):
    """A trial in which an edit may be refused, since the repository is out of reach.

    accepted: every chart whose edit returned, with its title, or None where it was deleted. What was refused may have
    been saved all the same, since the answer was lost: then it is a chart like any other, with one embedding.
    """

    def __init__(self, cluster, fault: str, what: str) -> None:
        self.accepted: dict[int, str | None] = {}
        self.refused = 0
        self._tried: list[int] = []
        super().__init__(cluster, fault, what)

    def edit(self) -> None:
        """On each node that runs, all at once: each waits for its own line."""
        with ThreadPoolExecutor(3) as beside:
            edits = [(index, self._new(), self._doomed.pop().chart_id) for index in self.cluster.able]
            list(beside.map(lambda edit: self._edit_on(*edit), edits))

    def _edit_on(self, index: int, new, doomed: int) -> None:
        self._tried.append(new.chart_id)
        try:
            self.local += self.cluster.update(index, new) == "local"
            self.accepted[new.chart_id] = new.title
            self.cluster.delete(index, doomed)
            self.accepted[doomed] = None
        except RuntimeError as error:
            if "RepositoryError" not in str(error):
                raise
            self.refused += 1

    def edit_until_accepted(self) -> float:
        """Once more on each node, now that all is whole again, until each accepts it; the seconds that it took."""

        def accepted() -> bool:
            before = self.refused
            self.edit()
            return self.refused == before

        return wait_until(accepted, f"every node accepts an edit after {self.fault}")

    def _saved(self) -> dict[int, str]:
        return {chart.chart_id: chart.title for chart in self.cluster.repository}

    def row(self, *, spare: int = 0, limit: float = 60.0):
        saved = self._saved()
        lost = {i: title for i, title in self.accepted.items() if saved.get(i) != title}
        assert lost == {}, "accepted, and not in the repository"
        self.edits += len(saved.keys() & set(self._tried))
        return super().row(spare=spare, limit=limit)


@pytest.fixture(scope="module")
def clusters():
    with reused(lambda: Namespaces(3, charts=first_charts(), queries=QUERIES, policy=POLICY)) as clusters:
        yield clusters


@pytest.fixture(scope="module")
def waits(notes):
    """For how many seconds after each cut somebody still refused edits, one of them included."""
    waited = []
    yield waited
    if waited:
        notes.append(
            f"Three network namespaces, {len(waited)} cuts: after the cut was healed every node had accepted an edit "
            f"within {statistics.median(waited):.1f} s (median), {max(waited):.1f} s at most; "
            "*agreed after* begins there."
        )


@pytest.mark.parametrize("name", CUTS)
def test_no_accepted_edit_is_lost_and_each_is_embedded_once(clusters, name, faults_table, waits, run):
    cluster, cut = clusters(), CUTS[name]
    trial = NetworkTrial(cluster, f"{name}, in a namespace", cut.what)
    cut.begin(cluster)
    try:
        trial.hold(until=lambda: True)
    finally:
        cluster.network.heal()
    assert cut.refuses in (None, trial.refused > 0), trial.refused
    waits.append(trial.edit_until_accepted())
    faults_table.append(trial.row())


IN_A_BATCH = ["packets dropped", "link down", "large packets dropped"]


@pytest.mark.parametrize("name", IN_A_BATCH)
def test_a_batch_whose_holder_is_cut_off_for_less_than_its_lease_is_embedded_once(
    clusters, name, faults_table, waits, run
):
    cluster, cut = clusters(), CUTS[name]
    trial = NetworkTrial(cluster, f"{name}, in a namespace, in a batch", cut.what)
    trial.begin_batch(VICTIM)
    cut.begin(cluster)
    try:
        trial.hold(edits=False)
    finally:
        cluster.network.heal()
    waits.append(trial.edit_until_accepted())
    faults_table.append(trial.row())


@pytest.mark.parametrize("name", ["packets dropped", "link down"])
def test_a_batch_whose_holder_is_cut_off_for_longer_is_finished_by_another(clusters, name, faults_table, waits, run):
    """Neither side knows of the other: what was left when the line was cut may be made on both."""
    cluster, cut = clusters(), CUTS[name]
    trial = NetworkTrial(cluster, f"{name}, in a namespace, in a batch, longer than the lease", cut.what)
    trial.begin_batch(VICTIM)
    others = [index for index in cluster.able if index != VICTIM]
    cut.begin(cluster)
    try:
        trial.hold(until=lambda: not cluster.differences(others))
    finally:
        cluster.network.heal()
    waits.append(trial.edit_until_accepted())
    faults_table.append(trial.row(spare=BATCH))


# --- the network itself -----------------------------------------------------------------------------------------------


def namespaces() -> list[str]:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, timeout=20, check=True)
    return [line.split()[0] for line in listed.stdout.splitlines() if line.startswith("copilotlab-")]


def test_a_network_leaves_nothing_behind_when_its_owner_is_killed():
    program = "import time\nfrom namespaces import Network\nprint(Network(1).folder, flush=True)\ntime.sleep(100)"
    before = namespaces()
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent
    ) as owner:
        folder = Path(owner.stdout.readline().strip())
        assert folder.is_dir()
        name = f"copilotlab-{owner.pid}-0-node-0"
        assert name in namespaces()
        sleeper = subprocess.Popen(["ip", "netns", "exec", name, "sleep", "100"])
        owner.send_signal(signal.SIGKILL)
        assert sleeper.wait(20) == -signal.SIGKILL
    wait_until(lambda: namespaces() == before and not folder.exists(), "all of it is gone", limit=20)


def test_a_cut_is_what_it_says_and_heals():
    with Network(2) as network:
        first, second = network.nodes

        def reached(name: str) -> bool:
            dial = (
                "import socket, sys\n"
                "server = socket.socket(); server.settimeout(1)\n"
                "sys.exit(server.connect_ex(('10.213.0.1', 9)) != 111)"  # refused, since nobody listens: it was reached
            )
            return subprocess.run([*network.inside(name), sys.executable, "-c", dial], timeout=60).returncode == 0

        assert reached(first)
        network.cut(first, "-A", "OUTPUT", "-j", "DROP")
        assert not reached(first)
        assert reached(second)
        network.ip(second, "link", "set", "eth0", "down")
        assert not reached(second)
        network.heal()
        deadline = time.monotonic() + 20
        assert reached(first)
        while not reached(second):
            assert time.monotonic() < deadline
