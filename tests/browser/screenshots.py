"""Not a test: a PNG of every panel, light and dark, into build/screenshots (``make screenshots``)."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from copilotlab.lab.services import Services

FOLDER = Path(__file__).parents[2] / "build" / "screenshots"
THEMES = ("light", "dark")
LONG = "<script>alert(1)</script> הכנסות לפי אזור (2024) " + "and so on and on " * 12

# One node misses a chart, and one is dead.
APART = f"""
import time
lab.partition(3)
while lab.nodes[3].coordinator.connected:
    time.sleep(0.01)
lab.nodes[0].update_chart(Chart(chart_id=3, title="{LONG}", chart_type="kpi", source="{LONG[:60]}"))
planes = Chart(
    chart_id=4, title="Planes leaving late by airport", chart_type="horizontal bar", url="https://bi.example.org/4"
)
lab.nodes[0].update_chart(planes)
lab.kill(1)
"""
SLOW_MODEL = """
import time
from copilotlab.embedding.hashing import HashEmbedder

class Slow(HashEmbedder):
    def _encode(self, batch):
        time.sleep(0.005 * len(batch))
        return super()._encode(batch)

lab.close()
charts = lab.charts
lab = Lab(nodes=4, model=Slow(), charts=charts).start()
converged = lab.wait_converged(30)
revisions = charts.save_many([Chart(chart_id=number, title=f"Orders of product {number}") for number in range(10, 500)])
"""


def save(page, name):
    FOLDER.mkdir(parents=True, exist_ok=True)
    page.locator(".copilotlab").first.screenshot(path=FOLDER / f"{name}.png")


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("nodes", [1, 4, 8])
def test_lab_panel(in_voila, cells, nodes, theme):
    page = in_voila(f"lab-{nodes}", *cells("lab", nodes=nodes), theme=theme)
    page.get_by_text("rebuild ended").first.wait_for()
    save(page, f"lab-{nodes}-nodes-{theme}")


@pytest.mark.parametrize("theme", THEMES)
def test_lab_panel_in_trouble(in_voila, cells, theme):
    page = in_voila("trouble", *cells("lab", nodes=4), theme=theme)
    page.get_by_title("Partition node-1").click()
    page.get_by_text("away").first.wait_for()
    page.get_by_title("Delay node-2").click()
    page.get_by_title("Kill node-3").click()
    page.get_by_label("save a chart").fill(LONG)
    page.get_by_label("save a chart").press("Enter")
    page.get_by_title("Save the chart").click()
    page.get_by_text("Nodes differ").wait_for()
    page.get_by_title("Start empty, the server").click()
    page.get_by_text("ServerError").wait_for()
    save(page, f"lab-partitioned-{theme}")
    page.get_by_title("Kill, the server").click()
    page.get_by_text("▲ Redis away").nth(2).wait_for()
    save(page, f"lab-server-killed-{theme}")


@pytest.mark.parametrize("theme", THEMES)
def test_lab_panel_with_a_fault_by_its_name(in_voila, cells, theme):
    page = in_voila("fault", *cells("lab", nodes=4), theme=theme)
    page.get_by_label("named").select_option("half-open")
    page.get_by_label("hits").select_option("node-1")
    page.get_by_title("Begin the fault").click()
    page.get_by_text("is on").wait_for()
    page.get_by_title("Freeze node-2").click()
    page.get_by_text("‖ frozen").wait_for()
    save(page, f"lab-fault-{theme}")
    page.get_by_title("End the fault").click()
    page.get_by_label("named").select_option("model fails")
    page.get_by_text("cannot be made to fail").wait_for()
    save(page, f"lab-fault-that-cannot-be-{theme}")


@pytest.mark.parametrize("theme", THEMES)
def test_lab_panel_with_a_batch(in_voila, cells, theme):
    setup, panel = cells("lab", nodes=4)
    page = in_voila("batch", setup, SLOW_MODEL, panel, theme=theme)
    page.get_by_label("On").select_option("node-1")
    page.get_by_title("Rebuild from the chosen node").click()
    page.locator(".cl-card .cl-work", has_text=re.compile("[1-9]\\d+ of ")).wait_for()
    save(page, f"lab-batch-{theme}")


@pytest.mark.parametrize("theme", THEMES)
def test_search_panel(in_voila, cells, theme):
    setup, panel = cells("search", nodes=4)
    page = in_voila("search", setup, APART, panel, theme=theme)
    page.get_by_label("Question").fill("planes leaving late, and so on")
    page.get_by_label("Question").press("Enter")
    page.get_by_text("nodes give these").wait_for()
    save(page, f"search-{theme}")


@pytest.mark.parametrize("theme", THEMES)
def test_comparison_panel(in_voila, cells, theme):
    setup, panel = cells("comparison", nodes=4)
    page = in_voila("comparison", setup, APART, panel, theme=theme)
    page.get_by_label("Question").fill("planes leaving late, and so on")
    page.get_by_label("Question").press("Enter")
    page.get_by_text("shared with the first column").nth(1).wait_for()
    save(page, f"comparison-{theme}")


@pytest.mark.parametrize("theme", THEMES)
def test_in_jupyterlab(in_jupyterlab, cells, theme):
    page = in_jupyterlab("everything", *cells("lab", "search"), "lab", theme=f"JupyterLab {theme.title()}")
    page.get_by_text("rebuild ended").first.wait_for()
    page.get_by_label("Question").fill("planes leaving late")
    page.get_by_label("Question").press("Enter")
    page.get_by_text("all nodes give these").wait_for()
    FOLDER.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=FOLDER / f"jupyterlab-{theme}.png")
    page.locator(".jp-OutputArea-output", has_text="Policy(").screenshot(path=FOLDER / f"lab-static-{theme}.png")


@pytest.mark.parametrize("theme", THEMES)
def test_lab_panel_with_many_nodes(in_voila, cells, theme):
    page = in_voila("many", *cells("lab", nodes=12), theme=theme)
    page.get_by_text("All 12 nodes agree").wait_for()
    page.get_by_title("Partition node-3").click()
    page.get_by_title("Kill node-5").click()
    page.get_by_text("heard").nth(10).wait_for()
    page.wait_for_function("document.querySelector('.cl-line polyline').getAttribute('points').split(' ').length > 8")
    save(page, f"lab-12-nodes-{theme}")


@pytest.mark.parametrize("theme", THEMES)
def test_on_a_narrow_page(in_voila, cells, theme):
    setup, panel, search = cells("lab", "search", nodes=4)
    page = in_voila("narrow", setup, APART, panel, search, theme=theme)
    page.set_viewport_size({"width": 600, "height": 1500})
    page.get_by_label("Question").fill("planes leaving late, and so on")
    page.get_by_label("Question").press("Enter")
    page.get_by_text("nodes give these").wait_for()
    save(page, f"lab-narrow-{theme}")
    page.locator(".copilotlab").nth(1).screenshot(path=FOLDER / f"search-narrow-{theme}.png")


@pytest.mark.parametrize("theme", THEMES)
def test_cluster_panel(in_voila, cells, theme):
    setup, panel = cells("cluster", nodes=4)
    page = in_voila("cluster", setup, APART, panel, theme=theme)
    page.get_by_text("node-3").first.wait_for()
    page.get_by_label("set by").fill("Ada")
    page.get_by_label("set by").press("Enter")
    page.get_by_label("to", exact=True).select_option("off")
    page.get_by_title("Set the chosen toggle").click()
    page.get_by_title("Confirm what is asked").click()
    page.get_by_text("for every node, by Ada").nth(1).wait_for()
    page.get_by_title("Set the chosen toggle").click()
    page.get_by_text("Set publishing to off for every node?").wait_for()
    page.get_by_text("What cannot change on a running node, and why").click()
    save(page, f"cluster-{theme}")


@pytest.fixture(scope="module")
def services(chromium):
    with Services(3) as services:
        yield services


@pytest.mark.parametrize("theme", THEMES)
def test_admin_page_with_toggles(services, page, theme):
    url, headers = services.urls["node-0"], {"Authorization": f"Bearer {services.token}"}
    for node, wanted in (("", {"batch_timeout": 90.0}), ("node-1", {"publishing": False})):
        body = {"set": wanted, "node": node, "by": "Ada"}
        httpx.patch(f"{url}/v1/cluster/toggles", json=body, headers=headers, timeout=60).raise_for_status()
    page.emulate_media(color_scheme=theme)
    page.goto(f"{url}/admin")
    page.get_by_label("A token of this service").fill(services.token)
    page.get_by_role("button", name="Use it").click()
    page.get_by_role("cell", name=re.compile("^off")).wait_for()
    page.get_by_role("cell", name=re.compile("^90")).nth(2).wait_for()
    page.get_by_text("What cannot change on a running node, and why").click()
    page.get_by_label("set by").fill("Ada")
    FOLDER.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=FOLDER / f"admin-{theme}.png", full_page=True)
    page.get_by_role("button", name="Set…").click()
    page.get_by_role("dialog").screenshot(path=FOLDER / f"admin-toggle-{theme}.png")
