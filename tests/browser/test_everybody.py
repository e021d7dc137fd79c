"""Panels for everybody: on a narrow page, by keyboard, with a screen reader, in both themes, with many nodes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

AXE = Path(os.environ.get("COPILOTLAB_AXE", Path(__file__).parents[2] / "build" / "axe-core" / "axe.min.js"))
LONG = "<script>alert(1)</script> הכנסות לפי אזור (2024) " + "and so on and on " * 12

# What assistive technology cannot use; best practices concern the page around, which is not ours.
FINDINGS = """async element => {
    const tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"];
    const found = await axe.run(element, {runOnly: tags});
    return found.violations.filter(rule => ["serious", "critical"].includes(rule.impact))
        .map(rule => [rule.id, rule.nodes.length, rule.nodes[0].html.slice(0, 160), rule.nodes[0].failureSummary]);
}"""


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core, npm's accessibility checker; skips where it was not fetched."""
    if not AXE.exists():
        pytest.skip(f"no axe-core at {AXE}: make axe-core fetches it, or set COPILOTLAB_AXE to an axe.min.js")
    return AXE.read_text(encoding="utf-8")


def card(page: Page, name: str):
    """A node's card, buttons and all."""
    return page.locator(".cl-card", has=page.get_by_role("group", name=name, exact=True))


def in_trouble(page: Page) -> None:
    """Every kind of state and message on the page: cut off, frozen, killed, a fault begun, an action that failed."""
    expect(page.get_by_text("All 3 nodes agree")).to_be_visible()
    card(page, "node-1").get_by_role("button", name="Partition").click()
    expect(page.get_by_text("▲ Redis away")).to_be_visible()
    card(page, "node-2").get_by_role("button", name="Kill").click()
    expect(page.get_by_text("✕ stopped")).to_be_visible()
    page.get_by_label("save a chart").fill(LONG)
    page.get_by_label("save a chart").press("Enter")
    page.get_by_title("Save the chart").click()
    expect(page.get_by_text("Nodes differ")).to_be_visible()
    page.get_by_title("Start empty, the server").click()
    expect(page.get_by_text("ServerError")).to_be_visible()
    for field in page.get_by_label("Question").all():
        field.fill("injection attempts by week, and so on")
        field.press("Enter")
    expect(page.locator(".cl-answers")).to_have_count(page.get_by_label("Question").count())


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_checker_of_accessibility_finds_nothing_serious(show, cells, axe, theme):
    page = show(f"axe-{theme}", *cells("lab", "search", "comparison"), theme=theme)
    in_trouble(page)
    page.evaluate(axe)
    findings = [page.locator(".copilotlab").nth(number).evaluate(FINDINGS) for number in range(3)]
    assert findings == [[], [], []]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_checker_of_accessibility_finds_nothing_serious_in_the_panel_of_a_cluster(in_voila, cells, axe, theme):
    page = in_voila(f"axe-cluster-{theme}", *cells("cluster"), theme=theme)
    page.get_by_label("set by").fill("Ada")
    page.get_by_label("set by").press("Enter")
    page.get_by_label("to", exact=True).select_option("off")
    page.get_by_label("for", exact=True).select_option("node-1")
    page.get_by_role("button", name="Set the chosen toggle").click()
    expect(page.get_by_text("Set publishing to off for node-1?")).to_be_visible()
    page.get_by_role("button", name="Confirm what is asked").click()
    publishing = page.get_by_role("row").filter(has=page.get_by_role("rowheader", name="publishing"))
    expect(publishing.get_by_role("cell").nth(1)).to_contain_text("offfor this node, by Ada")  # as node-1 tells it
    expect(publishing.get_by_role("cell").nth(2)).to_have_text("on")
    page.get_by_text("What cannot change on a running node, and why").click()
    page.get_by_title("Stop node-2").click()
    expect(page.get_by_title("Confirm what is asked")).to_be_visible()
    page.evaluate(axe)
    assert page.locator(".copilotlab").evaluate(FINDINGS) == []


def test_on_a_narrow_page_nothing_is_cut_off_and_a_long_title_leaves_room_for_the_rest(show, cells):
    page = show("narrow", *cells("lab", "search"))
    page.set_viewport_size({"width": 600, "height": 900})
    in_trouble(page)
    if page.get_by_role("menuitem", name="View").count():  # JupyterLab's side bar leaves too little of 600 px
        page.keyboard.press("Control+B")
    panels = page.locator(".copilotlab")
    for number in range(2):
        assert panels.nth(number).evaluate("panel => panel.scrollWidth <= panel.clientWidth + 1")
    for buttons in page.locator(".cl-card-buttons").all():
        cut = "box => [...box.querySelectorAll('button')].filter(b => b.scrollWidth > b.clientWidth + 1).length"
        assert buttons.evaluate(cut) == 0
    titles = page.locator(".cl-chart-title").all()
    assert max(title.bounding_box()["height"] for title in titles) < 70  # three lines
    assert min(title.bounding_box()["width"] for title in titles) > 100
    assert len(titles) == 10


def test_a_card_is_one_stop_with_its_buttons_inside_and_each_says_whom_it_concerns(show, cells):
    page = show("card", *cells("lab"))
    expect(page.get_by_text("All 3 nodes agree")).to_be_visible()
    buttons = page.get_by_role("toolbar", name="Faults of node-1")
    expect(buttons.get_by_role("button", name="Kill node-1", exact=True)).to_be_visible()
    stops = "box => [...box.querySelectorAll('button')].filter(b => b.tabIndex === 0).map(b => b.ariaLabel)"
    assert buttons.evaluate(stops) == ["Partition node-1"]

    focused = "document.activeElement.ariaLabel"
    buttons.get_by_role("button", name="Partition node-1").focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate(focused) == "Mute node-1"
    page.keyboard.press("End")
    assert page.evaluate(focused) == "Kill node-1"
    assert buttons.evaluate(stops) == ["Kill node-1"]
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "Partition node-2"
    page.keyboard.press("Shift+Tab")
    assert page.evaluate(focused) == "Kill node-1"
    page.keyboard.press("Enter")
    expect(page.get_by_text("✕ stopped")).to_be_visible()
    for button in buttons.get_by_role("button").all():
        expect(button).to_be_disabled()
    expect(page.locator("*:focus")).to_have_attribute("aria-label", "Partition node-2")  # not lost with its button
    for field in ("hits", "On"):
        expect(page.get_by_label(field, exact=True).locator("option")).to_have_text(["node-0", "node-2"])


def test_scrollers_take_the_keyboard(show, cells):
    page = show("scroll", *cells("lab"))
    timeline = page.get_by_role("region", name="Timeline")
    expect(timeline.get_by_text("rebuild ended").first).to_be_attached()
    for number in range(12):
        page.get_by_title(f"Heal node-{number % 3}").click()
    expect(timeline.locator("tbody tr").nth(15)).to_be_attached()
    timeline.focus()
    page.keyboard.press("PageDown")
    page.wait_for_function("document.activeElement.scrollTop > 0")
    page.keyboard.press("Home")
    page.wait_for_function("document.activeElement.scrollTop === 0")


def test_more_than_eight_nodes_are_rows_with_a_line_over_time_and_one_control_scales_them(show, cells):
    page = show("scale", *cells("lab", nodes=2))
    expect(page.get_by_text("Both nodes agree")).to_be_visible()
    expect(page.locator(".cl-line")).to_have_count(0)
    page.get_by_label("how many").fill("10")
    page.get_by_label("how many").press("Enter")
    page.get_by_role("button", name="Scale the nodes").click()
    expect(page.get_by_text("All 10 nodes agree")).to_be_visible()
    expect(page.locator(".cl-node-row")).to_have_count(10)
    expect(page.locator(".cl-line")).to_have_count(30)
    expect(page.get_by_role("img", name="lag in charts over the last minute").first).to_be_visible()
    heights = [row.bounding_box()["height"] for row in page.locator(".cl-rows .cl-card").all()]
    assert max(heights) < 70
    page.get_by_label("how many").fill("9")
    page.get_by_label("how many").press("Enter")
    page.get_by_role("button", name="Scale the nodes").click()
    expect(page.get_by_text("All 9 nodes agree")).to_be_visible()
    expect(card(page, "node-9")).to_contain_text("stopped")
    expect(page.get_by_text("9 nodes: node-9 removed")).to_be_visible()
