"""The panels in a real Chromium, under JupyterLab and under Voila: pressed, typed into, looked at."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

TITLE = "<script>window.pwned = 1</script><img src=x onerror='window.pwned=1'> injection attempts by week"
LINK = """https://bi.example.org/charts/1?week='1'&as="><b>"""
RIGHT_TO_LEFT = "הכנסות לפי אזור injection attempts (2024)"


def card(page: Page, name: str):
    """A node's card, buttons and all."""
    return page.locator(".cl-card", has=page.get_by_role("group", name=name, exact=True))


def ask(page: Page, question: str) -> None:
    field = page.get_by_label("Question")
    field.fill(question)
    field.press("Enter")


CONTRAST = """element => {
    if (!element.isConnected) return null;
    const channels = colour => {
        const pen = new OffscreenCanvas(1, 1).getContext("2d");
        pen.fillStyle = colour;
        pen.fillRect(0, 0, 1, 1);
        return [...pen.getImageData(0, 0, 1, 1).data];
    };
    const luminance = ([r, g, b]) => [r, g, b].map(v => v / 255)
        .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    let behind = element;
    const opaque = e => { const c = channels(getComputedStyle(e).backgroundColor); return c[3] !== 0; };
    while (behind.parentElement && !opaque(behind)) behind = behind.parentElement;
    const [a, b] = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor]
        .map(c => luminance(channels(c)));
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}"""


def contrast(page: Page, selector: str) -> float:
    """The contrast of an element's text with what lies behind it, as WCAG counts it."""
    while (ratio := page.locator(selector).first.evaluate(CONTRAST)) is None:
        pass  # a refresh took it off the page in between, and put another in its place
    return ratio


def test_faults_are_pressed_and_the_other_nodes_change(show, cells):
    page = show("faults", *cells("lab", "search"))
    expect(page.get_by_text("All 3 nodes agree")).to_be_visible()
    ask(page, "espresso machines by floor")
    expect(page.get_by_text("all nodes give these")).to_be_visible()

    card(page, "node-1").get_by_role("button", name="Partition").click()
    expect(card(page, "node-1")).to_contain_text("cut")
    expect(card(page, "node-1")).to_contain_text("Redis away")
    expect(card(page, "node-0")).to_contain_text("connected")
    page.get_by_label("save a chart").fill("Espresso machines by floor")
    page.get_by_title("Save the chart").click()
    expect(page.get_by_text("Nodes differ: 2 versions")).to_be_visible()
    expect(card(page, "node-2")).to_contain_text("403")  # the others got it
    expect(card(page, "node-1")).to_contain_text("402")
    expect(page.get_by_text("2 of 3 nodes give these")).to_be_visible()  # asked again by itself
    expect(page.locator(".cl-summary")).to_contain_text("node-1 is not complete, charts may be missing below")
    expect(page.locator(".cl-answers .cl-chart-title").first).to_have_text("Espresso machines by floor")
    card(page, "node-1").get_by_role("button", name="Heal").click()
    expect(page.get_by_text("All 3 nodes agree")).to_be_visible()
    expect(page.get_by_text("all nodes give these")).to_be_visible()

    server = page.locator(".cl-row", has=page.locator(".cl-server"))
    server.get_by_role("button", name="Kill").click()
    expect(page.get_by_text("▲ Redis away")).to_have_count(3)
    server.get_by_role("button", name="Resume").click()
    expect(page.get_by_role("alert").first).to_contain_text("ServerError: the server is stopped; start() it first")
    server.get_by_role("button", name="Start empty").click()
    expect(page.get_by_text("● running")).to_have_count(3)
    card(page, "node-2").get_by_role("button", name="Kill").click()
    expect(card(page, "node-2")).to_contain_text("stopped")
    expect(page.get_by_label("how many")).to_have_value("2")  # those that run
    page.get_by_label("how many").fill("3")
    page.get_by_role("button", name="Scale").press("Enter")  # a message that goes may move it from under the mouse
    expect(card(page, "node-3")).to_be_visible()
    page.get_by_placeholder("part of an event").fill("partition")
    expect(page.locator(".cl-events tbody tr")).to_have_count(1)


def test_a_fault_is_begun_and_ended_by_its_name(show, cells):
    page = show("by-name", *cells("lab"))
    begin, end = page.get_by_title("Begin the fault"), page.get_by_title("End the fault")
    expect(page.get_by_text("All 3 nodes agree")).to_be_visible()
    expect(end).to_be_disabled()
    page.get_by_label("named").select_option("half-open")
    page.get_by_label("hits").select_option("node-1")
    expect(page.locator(".cl-hint")).to_have_text("nothing moves between one node and the server, and neither is told")
    begin.focus()
    page.keyboard.press("Enter")
    expect(page.locator(".cl-hint")).to_contain_text("half-open, node-1 is on")
    expect(begin).to_be_disabled()
    expect(card(page, "node-1")).to_contain_text("blackhole")
    expect(card(page, "node-1")).to_contain_text("Redis away")
    page.get_by_label("save a chart").fill("Espresso machines by floor")
    page.get_by_title("Save the chart").click()
    expect(page.get_by_text("Nodes differ: 2 versions")).to_be_visible()
    expect(card(page, "node-2")).to_contain_text("403")  # the others got it
    expect(card(page, "node-1")).to_contain_text("402")
    end.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_text("All 3 nodes agree")).to_be_visible()
    expect(card(page, "node-1")).to_contain_text("403")
    expect(page.locator(".cl-hint")).not_to_contain_text("is on")
    expect(end).to_be_disabled()

    page.get_by_label("named").select_option("out of memory")
    expect(page.get_by_label("hits")).to_be_disabled()
    begin.click()
    expect(page.locator(".cl-messages")).to_contain_text("out of memory, server: begun")
    end.click()
    expect(page.locator(".cl-messages")).to_contain_text("out of memory, server: ended")
    page.get_by_label("named").select_option("model hangs")
    why = page.get_by_role("button", name="Begin")
    expect(why).to_be_disabled()
    expect(why).to_have_attribute("title", re.compile("cannot be made to fail: give the lab one that can"))

    card(page, "node-2").get_by_role("button", name="Freeze").click()
    expect(card(page, "node-2")).to_contain_text("frozen")
    card(page, "node-2").get_by_role("button", name="Resume").click()
    expect(card(page, "node-2")).to_contain_text("running")


def test_a_chart_titled_with_a_script_and_right_to_left_words_is_shown_as_text(show, cells):
    page = show("texts", *cells("search", "comparison"))
    expect(page.get_by_label("Question")).to_have_count(2)
    for field in page.get_by_label("Question").all():
        field.fill("injection attempts by week")
        field.press("Enter")
    expect(page.locator(".cl-answers")).to_have_count(2)

    for table in page.locator(".cl-answers").all():
        expect(table.get_by_text(TITLE, exact=True).first).to_be_visible()
        title = table.locator("bdi", has_text=RIGHT_TO_LEFT).first
        expect(title).to_be_visible()
        assert title.evaluate("element => getComputedStyle(element).direction") == "rtl"  # as bdi decides by itself
        assert table.locator("script, img").count() == 0
        link = table.get_by_role("link", name=TITLE)
        assert table.get_by_role("link").count() == link.count() > 0, "the other charts have none"
        assert [link.first.get_attribute(name) for name in ("href", "rel", "target")] == [LINK, "noopener", "_blank"]
    assert page.evaluate("window.pwned") is None


def test_it_is_used_by_keyboard_and_keeps_the_focus_while_it_refreshes(show, cells):
    page = show("keyboard", *cells("lab"))
    kill = page.locator(".cl-row", has=page.locator(".cl-server")).get_by_role("button", name="Kill")
    kill.focus()
    page.keyboard.press("Enter")
    expect(page.locator(".cl-server")).to_contain_text("stopped")
    expect(page.get_by_text(re.compile(r"away [1-9]\d* s"))).to_have_count(3)  # refreshed since, more than once
    expect(kill).to_be_focused()
    assert kill.evaluate("element => getComputedStyle(element).outlineStyle") == "solid"

    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.ariaLabel || document.activeElement.tagName"))
    wanted = {"Start empty, the server", "Scale the nodes", "Begin the fault", "Save the chart", "Timeline"}
    wanted |= {f"Partition node-{number}" for number in range(3)}  # a card is one stop
    assert wanted | {"INPUT", "SELECT"} <= reached
    assert not {f"Mute node-{number}" for number in range(3)} & reached
    unnamed = "elements => elements.filter(e => !e.labels.length && !e.ariaLabel && !e.title).length"
    assert page.locator(".copilotlab :is(input, select)").evaluate_all(unnamed) == 0


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_is_readable_in_both_themes(show, cells, theme):
    page = show(f"theme-{theme}", *cells("lab"), theme=theme)
    card(page, "node-1").get_by_role("button", name="Partition").click()
    card(page, "node-2").get_by_role("button", name="Kill").click()
    card(page, "node-0").get_by_role("button", name="Freeze").click()
    page.get_by_label("named").select_option("slow line")
    page.get_by_title("Begin the fault").click()
    expect(page.get_by_text("slow line, node-0 is on")).to_be_visible()
    expect(page.get_by_text("‖ frozen")).to_be_visible()
    expect(page.get_by_text("✕ stopped")).to_be_visible()
    expect(page.get_by_text("▲ Redis away")).to_be_visible()
    selectors = (".cl-verdict b", ".cl-repository", ".cl-state", ".cl-away .cl-state", ".cl-dead .cl-state", ".cl-name",
                 ".cl-card dt", ".cl-card dd", ".cl-button", ".cl-danger", ".cl-table td", ".cl-table th",
                 ".cl-events .cl-bad", ".cl-letter", ".cl-messages b", ".cl-label",
                 ".cl-hint bdi", ".cl-hint .cl-warn")  # fmt: skip
    ratios = {selector: round(contrast(page, selector), 1) for selector in selectors}
    assert {selector: ratio for selector, ratio in ratios.items() if ratio < 4.5} == {}
    body = page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--jp-layout-color1')")
    assert body.strip() in ({"#fff", "white", "#ffffff"} if theme == "light" else {"#111", "#212121", "#111111"})


def test_panels_come_and_go_and_leave_nothing_in_the_kernel(in_jupyterlab, cells):
    setup, _ = cells("lab", nodes=1)
    count = """
import threading
from ipywidgets.widgets.widget import _instances
from copilotlab.widgets import LabPanel

def left_behind():
    names = [thread.name for thread in threading.enumerate()]
    threads = sum(name.startswith("copilotlab-panel") for name in names)
    print("left behind:", len(get_ipython().kernel.comm_manager.comms) - comms, len(_instances) - instances, threads)

comms, instances = len(get_ipython().kernel.comm_manager.comms), len(_instances)
for number in range(10):  # a hundred at once, as in the unit test, overflow the kernel's output socket
    with LabPanel(lab) as panel:
        assert panel.widget.comm
left_behind()
"""
    page = in_jupyterlab("come-and-go", setup, count)
    expect(page.get_by_text("left behind: 0 0 0", exact=True)).to_be_visible()
    for number in range(2, 5):  # and these are shown
        run_in_new_cell(page, "panel = LabPanel(lab); display(panel)", "One node, alone")
        run_in_new_cell(page, "panel.close(); left_behind()", "left behind: 0 0 0")
        expect(page.get_by_text("left behind: 0 0 0", exact=True)).to_have_count(number)
        expect(page.locator(".copilotlab")).to_have_count(0)


def test_a_panel_taken_off_the_page_stops_and_goes_on_when_it_is_shown_again(in_jupyterlab, cells):
    threads = "[t.name for t in threading.enumerate() if t.name.startswith('copilotlab-panel')]"
    wait = f"""
import threading, time
def threads_become(wanted):
    until = time.monotonic() + 30
    while {threads} != wanted and time.monotonic() < until:
        time.sleep(0.05)
    print("threads:", {threads})
"""
    page = in_jupyterlab("off-and-on", *cells("lab"), wait)
    expect(page.get_by_text("All 3 nodes agree")).to_be_visible()
    page.locator(".jp-Notebook .jp-Cell").nth(1).click()
    page.get_by_role("menuitem", name="Edit", exact=True).click()
    page.get_by_role("menuitem", name="Clear Cell Output", exact=True).click()
    expect(page.get_by_text("All 3 nodes agree")).to_have_count(0)
    page.locator(".jp-Notebook .jp-Cell").nth(2).click()
    run_in_new_cell(page, "threads_become([])", "threads: []")
    run_in_new_cell(page, "display(lab.panel())", "All 3 nodes agree")
    run_in_new_cell(page, "threads_become(['copilotlab-panel-LabPanel'])", "threads: ['copilotlab-panel-LabPanel']")


def run_in_new_cell(page: Page, code: str, says: str) -> None:
    page.keyboard.press("Escape")
    page.keyboard.press("b")
    page.keyboard.press("Enter")
    page.keyboard.insert_text(code)
    page.keyboard.press("Control+Enter")
    expect(page.locator(".jp-OutputArea-output", has_text=says).last).to_be_visible()


def test_a_closed_lab_is_told_in_its_panel(show, cells):
    page = show("closed", *cells("lab"), "lab.close()")
    expect(page.get_by_text("This lab is closed")).to_be_visible()
    expect(page.get_by_title("Restart, the server")).to_be_disabled()
