"""Nodes follow a mirror by themselves, and a link costs no embedding."""

from __future__ import annotations

from types import SimpleNamespace

import polars as pl
import pytest

from copilotlab.charts import chart_id_of
from copilotlab.lab.simulated_lab import SimulatedLab


def catalogue(titles: dict[str, str], host: str) -> SimpleNamespace:
    keys = [f"grafana:prod:{native}" for native in titles]
    frame = pl.DataFrame({"key": keys, "title": list(titles.values()), "url": [f"{host}/{key}" for key in keys]})
    return SimpleNamespace(frame=frame, skipped=pl.DataFrame(), format="grafana", instance="prod", complete=True)


def links(lab: SimulatedLab) -> list[dict[str, str | None]]:
    """What each node's search tells of the links, by key."""
    return [dict(node.search("revenue of the product", k=9).select("key", "url").iter_rows()) for node in lab.nodes]


@pytest.fixture
def lab():
    lab = SimulatedLab(3)
    lab.fill(5)
    lab.run(5)
    yield lab
    for node in lab.nodes:
        node.stop()


def test_nodes_follow_a_mirror_and_its_links_and_embed_only_what_has_new_words(lab):
    titles = {"a": "Revenue of product A", "b": "Revenue of product B", "c": "Revenue of product C"}
    before = lab.embeddings()
    lab.charts.mirror(catalogue(titles, "http://old.example.org"))
    assert lab.run_until_agreed(90) is not None
    assert lab.embeddings() == before + 3
    assert all(of["grafana:prod:c"] == "http://old.example.org/grafana:prod:c" for of in links(lab))

    lab.charts.mirror(catalogue(titles, "https://new.example.org"))
    assert lab.run_until_agreed(5) is not None, "nobody waits for a vector"
    assert lab.embeddings() == before + 3
    new = {"": "", **{f"grafana:prod:{native}": f"https://new.example.org/grafana:prod:{native}" for native in "abc"}}
    assert links(lab) == [new] * 3

    del titles["a"]
    titles["b"] = "Orders of product B"
    lab.charts.mirror(catalogue(titles, "https://new.example.org"))
    assert lab.run_until_agreed(90) is not None
    assert lab.embeddings() == before + 4
    assert all(chart_id_of("grafana:prod:a") not in node.store for node in lab.nodes)
    assert all(set(of) == {"", "grafana:prod:b", "grafana:prod:c"} for of in links(lab))
    assert len(lab.charts) == 5 + 2


def test_a_link_that_a_node_saves_is_told_to_the_others_and_embeds_nothing(lab):
    before = lab.embeddings()
    chart = lab.charts.get(3)
    linked = type(chart)(chart_id=3, title=chart.title, description=chart.description, url="https://bi.example.org/3")
    assert lab.nodes[0].update_chart(linked).outcome == "published"
    assert lab.run_until_agreed(5) is not None
    assert lab.embeddings() == before
    for node in lab.nodes:
        found = node.search("revenue of product 3", k=9).filter(pl.col("chart_id") == 3)
        assert found["url"].item() == "https://bi.example.org/3"
