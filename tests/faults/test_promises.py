"""Every fault of `copilotlab.lab.faults`, at rest and in the middle of a batch: what was promised holds."""

from __future__ import annotations

import pytest
from trial import POLICY, Threads, Trial, reused

from copilotlab.charts import RepositoryError
from copilotlab.lab.faults import FAULTS

pytestmark = pytest.mark.alone

VICTIM = 1  # whose line breaks; in a batch it is the holder
AT_REST = [name for name, fault in FAULTS.items() if fault.scope in ("server", "line")]


# In a batch these show little that the others do not: `make slow` and the table have them.
SELDOM = {
    "all connections reset",
    "password rotated",
    "read-only",
    "slow line",
    "line slower than patience",
    "output buffer cut",
}
# A server that forgets also forgets who is at work on what: the chunk that a holder has in hand may be made twice.
SPARE = dict.fromkeys(("server killed", "memory lost"), POLICY["chunk_size"])
IN_A_BATCH = [
    pytest.param(name, marks=[pytest.mark.slow] if name in SELDOM else [])
    for name, fault in FAULTS.items()
    if fault.scope
    not in ("data", "peers")  # see test_data_faults.py: what was promised is promised of what the repository says now
]


@pytest.fixture(scope="module")
def clusters():
    with reused(Threads) as clusters:
        yield clusters


@pytest.mark.parametrize("name", AT_REST)
def test_at_rest(clusters, name, faults_table, run):
    cluster, fault = clusters(), FAULTS[name]
    trial = Trial(cluster, name, fault.what)
    fault.start(cluster, VICTIM)
    try:
        trial.hold()
    finally:
        fault.end(cluster, VICTIM)
    trial.edit()
    faults_table.append(trial.row())


@pytest.mark.parametrize("name", IN_A_BATCH)
def test_in_the_middle_of_a_batch(name, faults_table, run):
    fault = FAULTS[name]
    with Threads() as cluster:
        trial = Trial(cluster, f"{name}, in a batch", fault.what)
        trial.begin_batch(VICTIM)
        fault.start(cluster, VICTIM)
        try:
            trial.hold(edits=fault.scope != "repository")
        finally:
            fault.end(cluster, VICTIM)
        trial.edit()
        # Who loses Redis all the same, since the machine is too busy for `redis_timeout`, embeds what it saves at once.
        stalled = 0 if fault.scope in ("server", "line") else trial.local
        faults_table.append(trial.row(spare=SPARE.get(name, 0) + stalled))


def test_without_the_repository_an_edit_raises_and_nothing_was_changed():
    with Threads(2) as cluster:
        trial = Trial(cluster, "repository unreachable", "")
        cluster.charts.gate.fail()
        with pytest.raises(RepositoryError, match="unreachable"):
            trial.edit()
        cluster.charts.gate.mend()
        trial.hold()
        trial.row()
