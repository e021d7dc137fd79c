"""Three services as processes, with PostgreSQL and Valkey, under searches and edits: no request that was accepted is
lost, no search is answered with 5xx, and what was written is found on all of them in the end.

What clients saw is shown. Each test breaks the same three services, and leaves them whole; the last one leaves them
with another model.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import quote

import polars as pl
import pytest
from service_load import LIMIT, Client, Figures, Load, wait_for

from copilotlab import ChartRepository
from copilotlab.lab.services import Services
from copilotlab.lab.simulated_lab import simulated_charts

pytestmark = pytest.mark.alone

FLAGS = ["--policy.heartbeat-interval", "0.3", "--policy.probe-interval", "0.1", "--policy.adopt-after", "0.5"]
FLAGS += ["--drain", "1"]


class Cluster:
    """Three services, what was accepted of them so far, and what their clients saw in each fault."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.seen: dict[str, Figures] = {}
        self._accepted: set[int] = set()

    @contextmanager
    def under_load(self, fault: str) -> Iterator[Load]:
        """Load while ``with`` lasts; then all have to hold what any of them accepted."""
        with Load(self.services, first_id=1_000_000 * (len(self.seen) + 1)) as load:
            yield load
            load.wait_for_more()  # also afterwards all goes on
        self.seen[fault] = load.figures()
        self._accepted |= load.accepted.keys()
        assert load.failed == []
        chart_id, title = list(load.accepted.items())[-1]
        for name in self.services.urls:
            wait_for(lambda name=name: not self._accepted - self._listed(name))
            _, found = self.ask(name, "GET", f"/v1/search?q={quote(title)}&k=1&chart_id={chart_id}")
            assert [row["title"] for row in found["results"]] == [title]

    def ask(self, name: str, method: str, path: str, body: object = None) -> tuple[int, Any]:
        with closing(Client(self.services.urls, self.services.token)) as client:
            return client.ask(name, method, path, body)

    def wait(self, name: str, condition: Callable[[dict], bool]) -> None:
        """Wait until a service's status is as it should be."""
        wait_for(lambda: condition(self.ask(name, "GET", "/v1/status")[1]["status"]))

    def begin(self, name: str) -> None:
        self.services.processes[name].begin().wait_ready(LIMIT)

    def _listed(self, name: str) -> set[int]:
        ids: set[int] = set()
        after: int | None = -1
        while after is not None:
            status, page = self.ask(name, "GET", f"/v1/charts?after={after}&limit=1000")
            assert status == 200, page
            ids, after = ids | set(page["chart_ids"]), page["next"]
        return ids


@contextmanager
def running(database: str, folder, request, **options) -> Iterator[Cluster]:
    try:
        with Services(3, database=database, flags=FLAGS, **options) as services:
            services.wait_ready()
            cluster = Cluster(services)
            yield cluster
    finally:
        with ChartRepository(database) as repository:
            repository._charts.metadata.drop_all(repository._engine)
    rows = [(fault, *figures) for fault, figures in cluster.seen.items()]
    schema = ["fault", "searches", "p50_ms", "p99_ms", "none_ready_s"]
    table = pl.DataFrame(rows, schema, orient="row")
    with (
        request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled(),
        pl.Config(tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True, float_precision=1, tbl_rows=-1),
    ):
        print(f"\n{table}")


@pytest.fixture(scope="module")
def cluster(postgres, tmp_path_factory, request) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("services")
    titles = [{"chart_id": chart.chart_id, "title": chart.title} for chart in simulated_charts(300)]
    pl.DataFrame(titles).write_csv(folder / "charts.csv")
    with running(postgres, folder, request, model="hash", charts=folder / "charts.csv") as cluster:
        yield cluster


# --- the faults -------------------------------------------------------------------------------------------------------


def kill_one(cluster: Cluster, load: Load, name: str) -> None:
    cluster.services.processes[name].kill()
    load.wait_unready(name)
    load.wait_for_more()
    cluster.begin(name)


def cut_one_off(cluster: Cluster, load: Load, name: str) -> None:
    cluster.services.partition(name)
    cluster.wait(name, lambda status: status["redis"] == "away")
    load.wait_for_more()
    assert cluster.services.processes[name].ready()
    assert cluster.services.processes[name].stop(LIMIT) == 0
    cluster.begin(name)
    cluster.services.heal(name)
    cluster.wait(name, lambda status: status["redis"] == "connected")


def kill_redis(cluster: Cluster, load: Load, _name: str) -> None:
    cluster.services.redis.kill()
    for name in cluster.services.urls:
        cluster.wait(name, lambda status: status["redis"] == "away")
    load.wait_for_more()
    cluster.services.redis.start(keep_data=False)
    for name in cluster.services.urls:
        cluster.wait(name, lambda status: status["redis"] == "connected")


def restart_all(cluster: Cluster, load: Load, _name: str) -> None:
    for name, process in cluster.services.processes.items():
        assert process.stop(LIMIT) == 0
        cluster.begin(name)
        load.wait_for_more(20, 0)


def switch_all(cluster: Cluster, load: Load, model: str) -> None:
    for name in cluster.services.urls:
        status, _ = cluster.ask(name, "POST", "/v1/model", {"name": model})
        assert status == 202
        cluster.wait(name, lambda status: status["model"].startswith(model))
        load.wait_for_more(20, 0)


# --- what they cost ---------------------------------------------------------------------------------------------------


def test_nothing_is_lost_while_nothing_is_wrong(cluster):
    with cluster.under_load("none") as load:
        load.wait_for_more(500)
    assert load.lost == []


def test_a_service_that_is_killed_costs_only_what_it_was_doing_and_comes_back(cluster):
    with cluster.under_load("kill -9 of one, restart") as load:
        kill_one(cluster, load, "node-1")
    assert {lost.service for lost in load.lost} <= {"node-1"}
    assert len(load.lost) <= 2 * load.clients, "what is under way, and what is accepted while it dies"


def test_a_service_cut_off_from_redis_is_asked_on_and_fills_itself_when_it_is_begun_again(cluster):
    with cluster.under_load("one cut off from Redis, restarted, healed") as load:
        cut_one_off(cluster, load, "node-2")
    assert load.lost == []


def test_redis_killed_and_begun_again_empty_costs_no_answer(cluster):
    with cluster.under_load("Redis killed, back empty") as load:
        kill_redis(cluster, load, "")
    assert load.lost == []


def test_a_rolling_restart_costs_no_answer_and_some_service_is_always_ready(cluster):
    with cluster.under_load("rolling restart") as load:
        restart_all(cluster, load, "")
    assert load.lost == []


def test_a_rolling_switch_of_the_model_costs_no_answer(cluster):
    with cluster.under_load("rolling switch of the model") as load:
        switch_all(cluster, load, "wordllama")
    assert load.lost == []


@pytest.mark.slow
def test_five_minutes_of_faults_of_every_kind_cost_no_answer_but_those_of_the_killed(postgres, tmp_path, request):
    chance = random.Random(request.config.getoption("hypothesis_seed") or 20261128)
    with running(postgres, tmp_path, request, model="wordllama") as cluster:
        until = time.monotonic() + 300.0
        while time.monotonic() < until:
            fault = chance.choice([kill_one, cut_one_off, kill_redis, restart_all, switch_all])
            name = chance.choice(["hash", "wordllama"] if fault is switch_all else list(cluster.services.urls))
            with cluster.under_load(f"{len(cluster.seen)}: {fault.__name__} {name}") as load:
                fault(cluster, load, name)
            assert {lost.service for lost in load.lost} <= ({name} if fault is kill_one else set())
