"""Superset and dbt themselves: what they export is imported, changed there, and mirrored again.

`make superset` and `make dbt` install them into build/, each into a venv of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from socket import socket
from typing import Any

import httpx
import pytest

from copilotlab import ChartRepository, read_catalogue
from copilotlab.charts import MirrorResult

ROOT = Path(__file__).parents[2]
SECONDS = 300  # that one step of Superset may take

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_800)]


def environment_of(tool: str) -> Path:
    """Return the bin folder of a tool's venv. Skips the test where there is none."""
    bin_ = Path(os.environ.get(f"COPILOTLAB_{tool.upper()}", ROOT / "build" / tool / "bin"))
    if not (bin_ / tool).exists():
        pytest.skip(
            f"{tool} is not installed: `make {tool}` does it, or COPILOTLAB_{tool.upper()} names its bin folder"
        )
    return bin_


# --- Superset ---------------------------------------------------------------------------------------------------------

CONFIG = """
SECRET_KEY = "of a test, and of nobody else: 0123456789"
SQLALCHEMY_DATABASE_URI = "sqlite:///{folder}/superset.db?check_same_thread=false"
PREVENT_UNSAFE_DB_CONNECTIONS = False  # the shop is an SQLite file
WTF_CSRF_ENABLED = TALISMAN_ENABLED = RATELIMIT_ENABLED = False
"""
APP = "superset.app:create_app()"
USER = {"username": "admin", "password": "secret-of-a-test"}


class Superset:
    """A server of Superset on a database of its own, and a shop of one table."""

    def __init__(self, folder: Path, bin_: Path) -> None:
        (folder / "superset_config.py").write_text(CONFIG.format(folder=folder))
        shop = sqlite3.connect(folder / "shop.db")
        shop.execute("CREATE TABLE orders (region TEXT, day TEXT, price REAL)")
        shop.close()
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COPILOTLAB"))},
            "SUPERSET_CONFIG_PATH": str(folder / "superset_config.py"),
            "SUPERSET_HOME": str(folder),
            "FLASK_APP": APP,
        }
        names = ["--username", USER["username"], "--password", USER["password"], "--email", "a@example.org"]
        for step in (
            ["db", "upgrade"],
            ["fab", "create-admin", *names, "--firstname", "A", "--lastname", "B"],
            ["init"],
        ):
            done = subprocess.run(
                [bin_ / "superset", *step], env=environment, capture_output=True, text=True, timeout=SECONDS
            )
            assert done.returncode == 0, f"superset {' '.join(step[:2])}: {done.stderr[-2_000:]}"
        with socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        self._log = (folder / "server.log").open("w")
        serve = [bin_ / "gunicorn", "--bind", self.url.removeprefix("http://"), "--timeout", str(SECONDS)]
        self._server = subprocess.Popen([*serve, APP], env=environment, stdout=self._log, stderr=subprocess.STDOUT)
        self._client = httpx.Client(base_url=self.url, timeout=SECONDS)
        try:
            self._wait()
            token = self.ask("POST", "security/login", **USER, provider="db")["access_token"]
            self._client.headers["Authorization"] = f"Bearer {token}"
            database = self.ask("POST", "database/", database_name="shop", sqlalchemy_uri=f"sqlite:///{folder}/shop.db")
            self._table = self.ask("POST", "dataset/", database=database["id"], schema="main", table_name="orders")[
                "id"
            ]
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        until = time.monotonic() + SECONDS
        while time.monotonic() < until and self._server.poll() is None:
            try:
                if self._client.get("/health").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.2)
        raise AssertionError(f"Superset does not answer; it said: {Path(self._log.name).read_text()[-2_000:]}")

    def ask(self, method: str, path: str, **content: Any) -> Any:
        """Ask its API, and return what it answers."""
        answer = self._client.request(method, f"/api/v1/{path}", json=content or None)
        assert answer.is_success, f"{method} {path} answers {answer.status_code}: {answer.text[:500]}"
        return answer.json()

    def make_chart(self, title: str, kind: str, params: dict[str, Any], dashboard: int) -> int:
        """Make a chart on the table of orders, and return its number."""
        params |= {"viz_type": kind, "datasource": f"{self._table}__table"}
        made = self.ask(
            "POST", "chart/", slice_name=title, viz_type=kind, params=json.dumps(params), dashboards=[dashboard],
            datasource_id=self._table, datasource_type="table",
        )  # fmt: skip
        return int(made["id"])

    def export(self, path: Path, what: str, *numbers: int) -> Path:
        """Write what its own export gives to a ZIP. what: "chart" or "dashboard"."""
        answer = self._client.get(f"/api/v1/{what}/export/", params={"q": f"!({','.join(map(str, numbers))})"})
        assert answer.is_success, answer.text[:500]
        path.write_bytes(answer.content)
        return path

    def close(self) -> None:
        self._client.close()
        self._server.terminate()
        self._server.wait(30)
        self._log.close()


@pytest.fixture(scope="module")
def superset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Superset]:
    bin_ = environment_of("superset")
    server = Superset(tmp_path_factory.mktemp("superset"), bin_)
    yield server
    server.close()


def test_what_superset_exports_is_mirrored_and_so_is_what_its_server_says(superset: Superset, tmp_path: Path) -> None:
    net = {"label": "Net revenue", "expressionType": "SQL", "sqlExpression": "SUM(price)", "hasCustomLabel": True}
    sales = superset.ask("POST", "dashboard/", dashboard_title="Sales")["id"]
    revenue = superset.make_chart("Revenue by région", "pie", {"metric": net, "groupby": ["region"]}, sales)
    orders = superset.make_chart("Orders", "table", {"metrics": ["count"], "groupby": ["day"]}, sales)
    basket = superset.make_chart("Basket", "big_number_total", {"metric": "count"}, sales)
    charts = ChartRepository()

    def of_export(*numbers: int) -> MirrorResult:
        path = superset.export(tmp_path / "export.zip", *(("chart", *numbers) if numbers else ("dashboard", sales)))
        catalogue = read_catalogue(path, base_url=superset.url)
        assert (catalogue.format, catalogue.complete, catalogue.reasons()) == ("superset", True, {})
        return charts.mirror(catalogue)

    def of_server() -> MirrorResult:
        login = {"user": USER["username"], "password": USER["password"]}
        return charts.mirror(read_catalogue(superset.url, "superset", **login))

    assert of_export() == MirrorResult(3, 0, 0, 0, 0)
    by_title = {chart.title: chart for chart in charts}
    made = by_title["Revenue by région"]
    assert (made.measures, made.dimensions, made.source) == (("Net revenue",), ("region",), "orders")
    assert (made.chart_type, made.tags) == ("pie", ("Sales",))
    assert made.url == f"{superset.url}/explore/?slice_id={revenue}"
    assert of_server() == MirrorResult(0, 0, 3, 0, 0), "its server says what its export says, links too"

    superset.ask("PUT", f"chart/{orders}", slice_name="Orders a day", description="<b>Paid</b> ones")
    superset.ask("DELETE", f"chart/{basket}")
    new = superset.make_chart("Returns", "pie", {"metric": "count", "groupby": ["region"]}, sales)
    assert of_export() == MirrorResult(1, 1, 1, 1, 0)
    changed = next(chart for chart in charts if chart.title == "Orders a day")
    assert (changed.chart_id, changed.description) == (by_title["Orders"].chart_id, "Paid ones")
    assert of_server() == MirrorResult(0, 0, 3, 0, 0)
    assert of_export(revenue, orders, new) == MirrorResult(0, 3, 0, 0, 0), "charts alone do not say their dashboards"


# --- dbt --------------------------------------------------------------------------------------------------------------

PROFILE = """
bicycles:
  target: dev
  outputs:
    dev: {type: postgres, host: 127.0.0.1, port: 1, user: nobody, pass: none, dbname: none, schema: public, threads: 1}
"""


def test_the_manifest_that_dbt_makes_says_what_the_exposures_say(tmp_path: Path) -> None:
    dbt = environment_of("dbt") / "dbt"
    project = shutil.copytree(ROOT / "data" / "exports" / "dbt", tmp_path / "project")
    (project / "profiles.yml").write_text(PROFILE)  # parsing asks no database
    (project / "models" / "orders.sql").write_text("select 1 as id")

    def parsed() -> Any:
        command = [dbt, "parse", "--no-partial-parse", "--profiles-dir", project, "--project-dir", project]
        environment = os.environ | {"DBT_SEND_ANONYMOUS_USAGE_STATS": "false"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == 0, done.stdout[-2_000:]
        return read_catalogue(project / "target" / "manifest.json")

    charts = ChartRepository()
    of_yaml, of_manifest = read_catalogue(project), parsed()
    assert (of_manifest.format, of_manifest.reasons()) == ("dbt", {})
    columns = ["key", "title", "description", "chart_type", "source", "tags", "url"]
    assert sorted(of_manifest.frame.select(columns).rows()) == sorted(of_yaml.frame.select(columns).rows())
    assert charts.mirror(of_yaml) == MirrorResult(2, 0, 0, 0, 1), "the YAML says what is disabled"
    assert charts.mirror(of_manifest) == MirrorResult(0, 0, 2, 0, 0)

    exposures = project / "models" / "exposures.yml"
    exposures.write_text(exposures.read_text().replace("How are we doing?", "How did the week go?"))
    assert charts.mirror(parsed()) == MirrorResult(0, 1, 1, 0, 0)
