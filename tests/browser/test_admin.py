"""The admin page in a real browser, over two services that are processes of their own."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

from copilotlab import Chart, ChartRepository, Cluster, LocalRedis, Policy
from copilotlab.lab.services import ServiceProcess
from copilotlab.lab.simulated_lab import simulated_charts

LIMIT = 60.0  # seconds for what is certain to come
AXE = Path(os.environ.get("COPILOTLAB_AXE", Path(__file__).parents[2] / "build" / "axe-core" / "axe.min.js"))
READ, ADMIN = "read-token-0123456789", "admin-token-0123456789"
EVIL = "<img src=x onerror=alert(1)>"
QUICK = ["--policy.heartbeat-interval", "0.3", "--policy.probe-interval", "0.1", "--policy.redis-timeout", "1"]
FINDINGS = """async () => {
    const tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"];
    const found = await axe.run(document, {runOnly: tags});
    return found.violations.filter(rule => ["serious", "critical"].includes(rule.impact))
        .map(rule => [rule.id, rule.nodes.length, rule.nodes[0].html.slice(0, 160), rule.nodes[0].failureSummary]);
}"""


def wait_for(condition):
    until = time.monotonic() + LIMIT
    while not (found := condition()):
        assert time.monotonic() < until, f"it did not come within {LIMIT:g} s"
        time.sleep(0.02)
    return found


class Services:
    """A server, a catalogue, services as processes, and one who watches them from here."""

    def __init__(self, folder: Path, redis: str) -> None:
        self.folder, self.redis = folder, redis
        (folder / "tokens").write_text(f"read {READ}\nadmin {ADMIN}\n")
        self.url = f"sqlite:///{folder / 'charts.db'}"
        self.charts = ChartRepository(self.url)
        self.charts.save_many(simulated_charts(40))
        self.charts.save(Chart(chart_id=41, title=EVIL))
        self.processes: dict[str, ServiceProcess] = {}
        self.at: dict[str, str] = {}
        for name in ("a", "b"):
            self.start(name)
        policy = Policy(heartbeat_interval=0.3, probe_interval=0.1, redis_timeout=1.0)
        self.cluster = Cluster(redis, charts=self.charts, policy=policy)
        self.cluster.wait(2, LIMIT, agree=True)

    def start(self, name: str, *flags: str, command: str = "serve") -> str:
        log = self.folder / f"{name}-{len(list(self.folder.glob('*.log')))}.log"
        words = [
            "--charts",
            self.url,
            "--redis",
            self.redis,
            "--port",
            "0",
            "--tokens-file",
            str(self.folder / "tokens"),
        ]
        if command == "serve":
            words += ["--model", "hash", "--node-id", name, *QUICK]
        self.processes[name] = ServiceProcess(*words, *flags, log=log, command=command).begin()
        self.at[name] = self.processes[name].wait_listening(LIMIT)
        return self.at[name]

    def journal(self, name: str) -> list[str]:
        """What a node says that happened on it."""
        answer = httpx.get(f"{self.at[name]}/v1/status", headers={"Authorization": f"Bearer {READ}"}, timeout=LIMIT)
        return [line["event"] for line in answer.json()["timeline"]]

    def end(self) -> None:
        self.cluster.close()
        for process in self.processes.values():
            process.kill()
        self.charts.close()


@pytest.fixture(scope="module")
def services(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    with LocalRedis(tcp=True) as server:
        services = Services(tmp_path_factory.mktemp("services"), server.url)
        try:
            yield services
        finally:
            services.end()


def opened(page: Page, url: str, token: str = ADMIN) -> None:
    """The page, with that token given."""
    page.goto(f"{url}/admin")
    page.get_by_label("A token of this service").fill(token)
    page.get_by_role("button", name="Use it").click()


def card(page: Page, name: str):
    return page.get_by_role("article", name=name, exact=True)


def confirmed(page: Page, button: str, words: str, *told: str) -> None:
    """Press a button, read what will happen, and confirm."""
    page.get_by_role("button", name=button, exact=True).click()
    dialog = page.get_by_role("dialog")
    for part in told:
        expect(dialog).to_contain_text(part)
    dialog.get_by_role("button", name=words, exact=True).click()


def test_a_wrong_token_is_refused_and_the_right_one_stays_out_of_every_address(services, page):
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    opened(page, services.at["a"], "wrong-token-0123456789")
    expect(page.get_by_role("dialog")).to_contain_text("this token is not known")
    expect(page.get_by_role("alert")).to_contain_text("cut off")
    page.get_by_label("A token of this service").fill(READ)
    page.keyboard.press("Enter")
    expect(page.get_by_role("status").first).to_contain_text("Both nodes agree")
    expect(page.locator("#cut")).to_be_hidden()
    expect(card(page, "a")).to_contain_text("41")
    expect(page.get_by_text("served by node a")).to_be_visible()
    confirmed(page, "Sync b", "Sync", "compares all that it holds with the repository")
    expect(page.get_by_role("log")).to_contain_text("needs a token for 'admin'")
    assert not [url for url in asked if READ in url or "wrong" in url]
    assert {url.split("/")[2] for url in asked} == {services.at["a"].split("/")[2]}


def test_each_action_that_is_confirmed_takes_effect_on_another_node_and_two_browsers_see_it(services, page, browser):
    second = browser.new_page()
    opened(page, services.at["a"])
    opened(second, services.at["b"])
    said = page.get_by_role("log")
    expect(card(second, "a")).to_be_visible()

    page.get_by_role("button", name="Rebuild b", exact=True).click()
    expect(page.get_by_role("button", name="Cancel")).to_be_focused()  # nothing happens by Enter alone
    expect(page.locator("#confirm-argument")).to_be_hidden()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert said.inner_text() == ""

    for button, words, told, action in (
        ("Rebuild b", "Rebuild", "brings the whole catalogue into all nodes", "rebuild"),
        ("Sync b", "Sync", "fetches what differs", "sync"),
    ):
        confirmed(page, button, words, told)
        expect(said).to_contain_text(f"{action} begun")
        expect(page.locator("#timeline")).to_contain_text(f"{action} done")
        assert f"ordered_{action}" in services.journal("b")

    page.get_by_role("button", name="Switch model… b", exact=True).click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("builds its vectors beside the present ones")
    dialog.get_by_label("Model").fill("wordllama")
    dialog.get_by_role("button", name="Switch the model").click()
    for seen in (page, second):
        expect(card(seen, "b").filter(has_text="wordllama")).to_be_visible()
        expect(card(seen, "b")).to_have_count(1)  # for a moment it has two models, and says so
    assert any("wordllama" in row.model for row in services.cluster.rows() if row.node == "b")

    page.get_by_role("button", name="Switch model… b", exact=True).click()
    dialog.get_by_label("Model").fill(EVIL)
    dialog.get_by_role("button", name="Switch the model").click()
    expect(page.locator("#timeline")).to_contain_text("onerror=alert(1)")
    assert page.locator("img").count() == 0

    confirmed(page, "Stop… b", "Stop the node", "gives its lease back")
    expect(card(page, "b")).to_contain_text("stopped")
    assert services.processes["b"].wait(LIMIT) == 0  # in order
    expect(second.locator("#cut")).to_contain_text("cut off from its service")
    expect(page.get_by_role("button", name="Sync b", exact=True)).to_be_disabled()
    second.close()
    services.start("b")
    expect(card(page, "b")).to_contain_text("running")
    services.cluster.wait(2, LIMIT, agree=True)


def test_toggles_are_set_on_one_node_or_all_from_a_page_without_a_node_and_seen_on_the_nodes_own_page(
    services, page, browser
):
    second = browser.new_page()
    opened(page, services.start("admin", command="admin"))
    opened(second, services.at["b"])
    said = page.get_by_role("log")

    def cell(of, toggle: str, node: str):
        row = of.get_by_role("row").filter(has=of.get_by_role("rowheader", name=toggle))
        return row.get_by_role("cell").nth("ab".index(node))

    def asked(toggle: str, node: str) -> None:
        page.locator("#toggle-name").select_option(toggle)
        page.locator("#toggle-node").select_option(node)

    expect(cell(page, "publishing", "b")).to_have_text("on")
    page.get_by_label("set by").fill(EVIL)
    asked("publishing", "b")
    page.locator("#toggle-switch").select_option("off")
    told = ("Now on: b.", "runs batches for all", "The other nodes keep theirs", f"set by {EVIL}")
    confirmed(page, "Set…", "Set it", "Set publishing to off for b?", *told)
    expect(said).to_contain_text("publishing=False here, version 1")
    for seen in (page, second):
        expect(cell(seen, "publishing", "b")).to_contain_text(f"offfor this node, by {EVIL}")
        expect(cell(seen, "publishing", "a")).to_have_text("on")
    assert "toggle_set" in services.journal("b")

    asked("batch_timeout", "")
    page.locator("#toggle-number").fill("0.01")
    page.get_by_role("button", name="Set…").click()
    expect(page.get_by_role("dialog")).to_have_count(0)  # the field says that it is too little
    page.locator("#toggle-number").fill("90")
    confirmed(page, "Set…", "Set it", "Set batch timeout to 90 for every node?", "300: a, b.", "or come later")
    for node in "ab":
        expect(cell(second, "batch timeout", node)).to_contain_text("90for every node")
    page.get_by_text("What cannot change on a running node, and why").click()
    expect(page.locator("#fixed")).to_contain_text("the store keeps tombstones")

    assert page.locator("img").count() == 0
    asked("publishing", "b")
    page.locator("#toggle-switch").select_option("on")
    confirmed(page, "Set…", "Set it", "Now off: b.")
    expect(cell(second, "publishing", "b")).to_contain_text("onfor this node")
    second.close()
    assert services.processes["admin"].stop(LIMIT) == 0


def test_a_lease_whose_holder_stands_still_is_released_and_another_node_goes_on(services, page):
    opened(page, services.at["a"])
    value = f"99 {'0' * 16} {'1' * 16} nobody"
    client = services.cluster._observer.link.carrier
    client.set("vector:alive:" + "1" * 16, b"1", ttl=600)  # it lives, and does nothing
    client.set("vector:batch:in_progress", value.encode(), ttl=600)
    expect(page.locator("#facts")).to_contain_text("nobody, epoch 99")
    confirmed(page, "Release…", "Release the lease", "is taken from nobody", "epoch 99")
    expect(page.get_by_role("log")).to_contain_text("the lease is released")
    expect(page.locator("#facts")).to_contain_text("free")
    assert services.cluster._observer.link.carrier.get("vector:batch:in_progress") == [None]


def test_what_differs_is_listed_and_a_hostile_title_or_name_is_only_text(services, page):
    opened(page, services.at["a"])
    expect(card(page, "b")).to_contain_text("running")
    page.get_by_label("compared with").select_option("b")
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_text("Nothing differs")).to_be_visible()
    page.get_by_label("with", exact=True).fill("agreement")
    expect(page.locator("#timeline tr").first).to_contain_text("agree")
    assert "agreement" in page.locator("#timeline tr td:nth-child(3)").first.inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_checker_of_accessibility_finds_nothing_serious_on_the_page(services, page, scheme):
    if not AXE.exists():
        pytest.skip(f"no axe-core at {AXE}: make axe-core fetches it, or set COPILOTLAB_AXE to an axe.min.js")
    page.emulate_media(color_scheme=scheme)
    opened(page, services.at["a"])
    expect(card(page, "b")).to_contain_text("running")
    confirmed(page, "Sync a", "Sync")
    expect(page.get_by_role("log")).to_contain_text("begun")
    source = AXE.read_text(encoding="utf-8")
    page.evaluate(source)  # by the debugger, so the page's own policy does not forbid it
    assert page.evaluate(FINDINGS) == []
    expect(page.get_by_role("rowheader", name="publishing")).to_be_visible()
    page.get_by_text("What cannot change on a running node, and why").click()
    page.get_by_label("set by").fill("Ada")
    assert page.evaluate(FINDINGS) == []
    for button in ("Stop… b", "Set…", "Token…"):
        page.get_by_role("button", name=button, exact=True).click()
        assert page.evaluate(FINDINGS) == []
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)
    page.set_viewport_size({"width": 600, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.set_viewport_size({"width": 1280, "height": 1500})


def test_a_node_that_dies_and_a_service_that_is_killed_under_the_page_are_told_plainly(services, page):
    opened(page, services.at["a"])
    expect(card(page, "b")).to_contain_text("running")
    services.processes["b"].kill()
    expect(card(page, "b")).to_contain_text("silent")
    expect(page.locator("#alerts")).to_contain_text("node silent")
    services.processes["a"].kill()
    expect(page.get_by_role("alert")).to_contain_text("This page is cut off from its service")
    expect(page.get_by_role("alert")).to_contain_text("says nothing of the nodes now")
    port = services.at["a"].rpartition(":")[2]
    services.start("a", "--port", port)
    expect(page.locator("#cut")).to_be_hidden()
    expect(card(page, "a")).to_contain_text("running")
