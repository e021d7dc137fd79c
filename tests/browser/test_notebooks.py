"""What the notebooks answer when a control is changed, in a real Chromium, under JupyterLab and under Voila."""

from __future__ import annotations

from pathlib import Path

import nbformat
from playwright.sync_api import Page, expect

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"

# In place of the notebook's own models: some that need no weights.
MEASURED = """
from functools import partial

MODELS = ["hash", "bm25"]
on_this = {"charts": collection.charts, "questions": collection.questions, "judgements": collection.judgements}
on_this |= {"reference": "hash"}
measured = models(MODELS, **on_this, nodes=0)
recommend = partial(recommend, reference="hash")
"""

COUNT_PICTURES = """() => {
    const shown = () => document.querySelectorAll("img[src^='data:image/png']");
    const count = () => shown().forEach(picture => window.pictures.add(picture.src));
    window.pictures = new Set();
    new MutationObserver(count).observe(document.body, {childList: true, subtree: true});
    count();
}"""


def code(name: str) -> list[str]:
    """The code cells of a notebook, up to the one that asks the reader."""
    cells = [cell.source for cell in nbformat.read(NOTEBOOKS / f"{name}.ipynb", 4).cells if cell.cell_type == "code"]
    return cells[: next(at for at, cell in enumerate(cells) if "LiveAnswer(" in cell and "import" not in cell) + 1]


def picture(page: Page) -> str:
    """The last picture on the page, as its address: another picture, another address."""
    return page.locator("img[src^='data:image/png']").last.get_attribute("src") or ""


def test_another_depth_has_another_recommendation_and_a_wrong_name_is_told(show):
    imports, choices, collection, *_, asks = cells = code("02_embedding_models")
    (plots,) = [cell for cell in cells if "def quality_against_cost" in cell]
    few = "CHARTS, QUESTIONS = 100, 10"
    page = show("models", imports, choices, few, collection, MEASURED, plots, asks)
    expect(page.locator("strong", has_text="nDCG@10")).to_be_visible()
    before = picture(page)

    page.get_by_label("k", exact=True).fill("5")
    page.get_by_label("k", exact=True).press("Enter")
    expect(page.locator("strong", has_text="nDCG@5")).to_be_visible()
    expect(page.locator(f"img[src='{before}']")).to_have_count(0)
    page.get_by_label("add a model").fill("<b>no</b>")
    page.get_by_label("add a model").press("Enter")
    expect(page.get_by_text("UnknownModel: no model is called '<b>no</b>'")).to_be_visible()
    expect(page.locator("strong", has_text="nDCG@5")).to_have_count(0)


def test_another_size_of_catalogue_has_another_timeout(show):
    imports, choices, *_, asks = code("03_batch_timeouts")
    page = show("timeouts", imports, choices, asks)
    tables = page.locator("table", has=page.locator("thead"))
    advised = tables.locator("tbody tr").first
    expect(page.get_by_text("With a batch_timeout of 32 s")).to_be_visible()
    expect(advised).to_contain_text("754")

    page.get_by_label("embeddings a second").fill("14")
    page.get_by_label("embeddings a second").press("Enter")
    expect(page.get_by_text("With a batch_timeout of 19 s")).to_be_visible()
    expect(advised).to_contain_text("7,202")
    page.get_by_label("the holder renews its lease").click()
    expect(page.get_by_text("the lease changes hands 375 times")).to_be_visible()
    expect(tables).to_have_count(1)


def test_another_field_has_another_story(show):
    imports, _, played, *_, sentences, asks = code("05_policies")
    two = "FIELDS = ['reconcile', 'fenced']"
    page = show("policies", imports, two, played, sentences, asks)
    expect(page.get_by_text("When a message to one node is lost")).to_have_count(2)
    before = picture(page)

    page.get_by_label("field").select_option("fenced")
    expect(page.locator("strong", has_text="fenced")).to_be_visible()
    expect(page.locator(f"img[src='{before}']")).to_have_count(0)
    assert picture(page) != before


def test_another_fault_is_drawn_while_it_lasts(show):
    imports, choices, named, asks = code("04_recovery")
    page = show("recovery", imports, choices, named, asks)
    expect(page.get_by_text("the server is killed")).to_be_visible()
    before = picture(page)

    page.evaluate(COUNT_PICTURES)
    page.get_by_label("fault").select_option("cut off")
    page.get_by_title("start", exact=True).click()
    expect(page.locator("strong", has_text="cut off")).to_be_visible()
    expect(page.locator(f"img[src='{before}']")).to_have_count(0)
    expect(page.get_by_title("start", exact=True)).to_be_enabled()
    assert page.evaluate("window.pictures.size") >= 3  # as it was, while it lasted, at the end
