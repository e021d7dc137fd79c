"""Three services as processes, with PostgreSQL and Valkey, under searches and edits: no request that was accepted is
lost, no search is answered with 5xx, and what was written is found on all of them in the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import quote

import polars as pl
import pytest
from service_load import Client, Figures, Load, wait_for

from copilotlab import ChartRepository
from copilotlab.lab.services import Services
from copilotlab.lab.simulated_lab import simulated_charts

pytestmark = pytest.mark.alone

QUICK = ["--policy.heartbeat-interval", "0.3", "--policy.probe-interval", "0.1", "--policy.adopt-after", "0.5"]
FLAGS = [*QUICK, "--drain", "1"]


class Cluster:
    """Three services, what was accepted of them so far, and what their clients saw in each fault."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.seen: dict[str, Figures] = {}
        self._accepted: dict[int, str] = {}

    @contextmanager
    def under_load(self, fault: str) -> Iterator[Load]:
        """Load while ``with`` lasts; then all have to hold what any of them accepted."""
        with Load(self.services, first_id=1_000_000 * (len(self.seen) + 1)) as load:
            yield load
        self.seen[fault] = load.figures()
        self._accepted |= load.accepted
        assert load.failed == []
        for name in self.services.urls:
            wait_for(lambda name=name: not self._accepted.keys() - self.listed(name))
            chart_id, title = list(load.accepted.items())[-1]
            _, found = self.ask(name, "GET", f"/v1/search?q={quote(title)}&k=1&chart_id={chart_id}")
            assert [row["title"] for row in found["results"]] == [title]

    def ask(self, name: str, method: str, path: str, body: object = None) -> tuple[int, Any]:
        with closing(Client(self.services.urls, self.services.token)) as client:
            return client.ask(name, method, path, body)

    def listed(self, name: str) -> set[int]:
        """The ids of all charts that a service holds."""
        ids: set[int] = set()
        after: int | None = -1
        while after is not None:
            status, page = self.ask(name, "GET", f"/v1/charts?after={after}&limit=1000")
            assert status == 200, page
            ids, after = ids | set(page["chart_ids"]), page["next"]
        return ids

    def status(self, name: str) -> dict:
        return self.ask(name, "GET", "/v1/status")[1]["status"]

    def wait(self, name: str, condition: Callable[[dict], bool]) -> None:
        wait_for(lambda: condition(self.status(name)))


@pytest.fixture(scope="module")
def cluster(postgres, tmp_path_factory, request) -> Iterator[Cluster]:
    file = tmp_path_factory.mktemp("services") / "charts.csv"
    pl.DataFrame([{"chart_id": chart.chart_id, "title": chart.title} for chart in simulated_charts(300)]).write_csv(
        file
    )
    try:
        with Services(3, model="hash", charts=file, database=postgres, flags=FLAGS) as services:
            services.wait_ready()
            cluster = Cluster(services)
            yield cluster
    finally:
        with ChartRepository(postgres) as repository:
            repository._charts.metadata.drop_all(repository._engine)
    rows = [(fault, *figures) for fault, figures in cluster.seen.items()]
    table = pl.DataFrame(rows, ["fault", "searches", "p50_ms", "p99_ms", "none_ready_s"], orient="row")
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{table}")


def test_nothing_is_lost_while_nothing_is_wrong(cluster):
    with cluster.under_load("none") as load:
        load.wait_for_more(500)
    assert load.lost == []


def test_a_service_that_is_killed_costs_only_what_it_was_doing_and_comes_back(cluster):
    services = cluster.services
    with cluster.under_load("kill -9 of one") as load:
        services.processes["node-1"].kill()
        load.wait_unready("node-1")
        load.wait_for_more()
        services.processes["node-1"].begin().wait_ready()
        load.wait_for_more()
    assert {lost.service for lost in load.lost} <= {"node-1"}
    assert len(load.lost) <= 5, "one for each client, at most"


def test_a_service_without_redis_goes_on_being_asked_also_after_a_restart(cluster):
    services = cluster.services
    with cluster.under_load("one cut off from Redis") as load:
        services.partition("node-2")
        cluster.wait("node-2", lambda status: status["redis"] == "away")
        load.wait_for_more()
        assert services.processes["node-2"].ready()
        assert services.processes["node-2"].stop() == 0
        services.processes["node-2"].begin().wait_ready()
        load.wait_for_more()
        services.heal("node-2")
        cluster.wait("node-2", lambda status: status["redis"] == "connected")
        load.wait_for_more()
    assert load.lost == []


def test_redis_killed_and_begun_again_empty_costs_no_answer(cluster):
    services = cluster.services
    with cluster.under_load("Redis killed, back empty") as load:
        services.redis.kill()
        for name in services.urls:
            cluster.wait(name, lambda status: status["redis"] == "away")
        load.wait_for_more()
        services.redis.start(keep_data=False)
        for name in services.urls:
            cluster.wait(name, lambda status: status["redis"] == "connected")
        load.wait_for_more()
    assert load.lost == []


def test_a_rolling_restart_costs_no_answer_and_some_service_is_always_ready(cluster):
    services = cluster.services
    with cluster.under_load("rolling restart") as load:
        for process in services.processes.values():
            assert process.stop() == 0
            process.begin().wait_ready()
            load.wait_for_more(20, 0)
    assert load.lost == []


def test_a_rolling_switch_of_the_model_costs_no_answer(cluster):
    services = cluster.services
    with cluster.under_load("rolling switch of model") as load:
        for model in ("wordllama", "hash"):
            for name in services.urls:
                status, _ = cluster.ask(name, "POST", "/v1/model", {"name": model})
                assert status == 202
                cluster.wait(name, lambda status, model=model: status["model"].startswith(model))
                load.wait_for_more(20, 0)
    assert load.lost == []
