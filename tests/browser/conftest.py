"""JupyterLab and Voila on loopback ports of their own, and a Chromium that looks at them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import BrowserContext, Page, expect, sync_playwright

WAIT = 120.0  # seconds: two busy cores, and JupyterLab is large
DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback, whatever proxy is set
CHROMIUM_OPTIONS = [
    "--headless=new",
    "--no-sandbox",  # CI runs as root, where Chromium refuses its sandbox; it sees only our own pages
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]

# What anywidget raises where a panel was closed before its script was there: nothing is left to be named then.
CLOSED_EARLY = "[anywidget] Failed to initialize model."

EVIL = "<script>window.pwned = 1</script><img src=x onerror='window.pwned=1'>"
LINK = """https://bi.example.org/charts/1?week='1'&as="><b>"""
RIGHT_TO_LEFT = "הכנסות לפי אזור"

SETUP = f"""
import logging
from copilotlab import Chart, Lab, Policy
from copilotlab.lab import catalogue
from copilotlab.widgets import ComparisonPanel, SearchPanel

logging.getLogger("copilotlab").setLevel(logging.ERROR)
lab = Lab(nodes=NODES, model="hash", charts=catalogue.charts().head(400), policy=Policy(redis_timeout=2.0)).start()
link = {LINK!r}
lab.nodes[0].update_chart(Chart(chart_id=1, title="{EVIL} injection attempts by week", chart_type="line", url=link))
lab.nodes[0].update_chart(Chart(chart_id=2, title="{RIGHT_TO_LEFT} injection attempts (2024)", chart_type="bar"))
converged = lab.wait_converged(30)
"""
PANELS = {
    "lab": "lab.panel()",
    "search": "search = SearchPanel(lab, models=['wordllama'])\nsearch",
    "comparison": "comparison = ComparisonPanel(lab, models=['wordllama'])\ncomparison",
    "cluster": """from copilotlab import Cluster
cluster = Cluster(lab.redis.url, charts=lab.charts)
cluster.wait(nodes=2, timeout=30)
cluster.panel()""",
}


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of Chromium; without one the browser tests are skipped, in CI they fail."""
    found = os.environ.get("COPILOTLAB_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        missing = "no Chromium: apt-get install chromium, or set COPILOTLAB_CHROMIUM to the path of one"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return found


@pytest.fixture(scope="session")
def browser(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserContext]:
    """One Chromium with an empty profile."""
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=chromium,
            args=CHROMIUM_OPTIONS,
            viewport={"width": 1280, "height": 1500},
        )
        context.set_default_timeout(WAIT * 1000)
        expect.set_options(timeout=WAIT * 1000)
        yield context
        context.close()


@pytest.fixture
def page(browser: BrowserContext) -> Iterator[Page]:
    """A page; what fails in its scripts fails the test."""
    page = browser.new_page()
    failures: list[str] = []
    page.on("pageerror", lambda error: None if str(error) == CLOSED_EARLY else failures.append(str(error)))
    yield page
    page.close()
    assert failures == []


class Notebooks:
    """A folder of notebooks, served by one program; ``url`` is where."""

    def __init__(self, folder: Path, url: str, settings: Path) -> None:
        self.folder = folder
        self.url = url
        self._settings = settings

    def write(self, name: str, *cells: str) -> str:
        """Save a notebook of these cells, and say its file's name."""
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(cell) for cell in cells],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        )
        nbformat.write(notebook, self.folder / f"{name}.ipynb")
        return f"{name}.ipynb"

    def theme(self, name: str) -> None:
        """JupyterLab's theme, from the next load on."""
        _write_settings(self._settings, "apputils-extension/themes", {"theme": name})


def _write_settings(folder: Path, plugin: str, values: dict[str, object]) -> None:
    """JupyterLab's own settings of one of its plug-ins."""
    file = folder / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values))


@contextmanager
def _served(folder: Path, command: list[str]) -> Iterator[Notebooks]:
    """Run ``command``, with a free port put in, until the block ends."""
    for name in ("notebooks", "home"):
        (folder / name).mkdir()
    settings = folder / "settings"
    nothing_asked_outside = {"fetchNews": "false", "checkForUpdates": False}
    all_cells_on_the_page = {"windowingMode": "none"}
    _write_settings(settings, "apputils-extension/notification", nothing_asked_outside)
    _write_settings(settings, "notebook-extension/tracker", all_cells_on_the_page)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    homes = {
        name: str(folder / "home" / name)
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_WORKSPACES_DIR")
    }
    environment = {**os.environ, **homes, "IPYTHONDIR": str(folder / "home"), "JUPYTERLAB_SETTINGS_DIR": str(settings)}
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command, f"--port={port}", "--no-browser"],
            cwd=folder / "notebooks",
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(lambda: _answers(process, url, folder / "log"), f"{command[0]} at {url}")
        yield Notebooks(folder / "notebooks", url, settings)
    finally:
        process.terminate()
        process.wait(WAIT)


def _request(url: str, method: str = "GET") -> bytes:
    with DIRECTLY.open(urllib.request.Request(url, method=method), timeout=WAIT) as answer:
        return answer.read()


def _answers(process: subprocess.Popen[bytes], url: str, log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    try:
        with DIRECTLY.open(url, timeout=5):
            return True
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


@pytest.fixture(scope="session")
def jupyter(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebooks]:
    """JupyterLab."""
    options = ["--ServerApp.ip=127.0.0.1", "--IdentityProvider.token=", "--ServerApp.allow_root=True"]
    options += ["--ServerApp.disable_check_xsrf=True"]  # the fixtures end the kernels, and have no cookie
    with _served(tmp_path_factory.mktemp("jupyterlab"), ["jupyterlab", *options]) as served:
        yield served


@pytest.fixture(scope="session")
def voila(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebooks]:
    """Voila."""
    options = ["--Voila.ip=127.0.0.1", "--VoilaConfiguration.show_tracebacks=True"]
    with _served(tmp_path_factory.mktemp("voila"), ["voila", *options]) as served:
        yield served


@pytest.fixture
def in_jupyterlab(page: Page, jupyter: Notebooks) -> Iterator[Callable[..., Page]]:
    """Open a notebook in JupyterLab and run all of its cells; its kernel ends with the test."""

    def show(name: str, *cells: str, theme: str = "JupyterLab Light") -> Page:
        jupyter.theme(theme)
        file = jupyter.write(name, *cells)
        page.goto(f"{jupyter.url}/doc/tree/{file}?reset")
        page.locator(".jp-Notebook .jp-Cell").first.wait_for()
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        return page

    yield show
    for session in json.loads(_request(f"{jupyter.url}/api/sessions")):
        _request(f"{jupyter.url}/api/sessions/{session['id']}", "DELETE")


@pytest.fixture
def in_voila(page: Page, voila: Notebooks) -> Callable[..., Page]:
    """Open a notebook under Voila."""

    def show(name: str, *cells: str, theme: str = "light") -> Page:
        file = voila.write(name, *cells)
        page.goto(f"{voila.url}/voila/render/{file}?theme={theme}", wait_until="commit")
        return page

    return show


@pytest.fixture(params=["jupyterlab", "voila"])
def show(request: pytest.FixtureRequest, in_jupyterlab: Callable[..., Page], in_voila: Callable[..., Page]) -> object:
    """Both places where notebooks are used, by one name for a theme."""
    if request.param == "voila":
        return in_voila
    return lambda name, *cells, theme="light": in_jupyterlab(name, *cells, theme=f"JupyterLab {theme.title()}")


def wait_until(condition: Callable[[], object], what: str, timeout: float = WAIT) -> None:
    until = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < until, f"{what}: not within {timeout:g} s"
        time.sleep(0.05)


@pytest.fixture
def cells() -> Callable[..., list[str]]:
    """The cells of a notebook that shows panels over a lab of so many nodes."""

    def made(*panels: str, nodes: int = 3) -> list[str]:
        return [SETUP.replace("NODES", str(nodes)), *(PANELS[name] for name in panels)]

    return made
