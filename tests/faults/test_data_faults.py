"""The repository's database is tampered with behind its back: each fault is what it says, and the nodes follow."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from trial import wait_until

from copilotlab import Chart, ChartRepository, Lab, Policy, load_embedder
from copilotlab.charts import ChartError
from copilotlab.lab import FAULTS, FragileRepository

DATA = [name for name, fault in FAULTS.items() if fault.scope == "data"]
POLICY = Policy(probe_interval=0.1, heartbeat_interval=0.2, claim_timeout=2.0, adopt_after=3.0, sync_interval=2.0)


def chart(chart_id, words="Revenue"):
    return Chart(chart_id=chart_id, title=f"{words}, product {chart_id}")


@pytest.fixture(params=["memory", "file"])
def charts(request, tmp_path):
    url = "sqlite://" if request.param == "memory" else f"sqlite:///{tmp_path}/charts.db"
    with FragileRepository(url) as charts:
        charts.save_many(chart(chart_id) for chart_id in range(1, 11))
        yield charts


@pytest.fixture
def lab(charts):
    with Lab(3, load_embedder("hash"), charts, POLICY) as lab:
        lab.wait_converged(30)
        yield lab


# --- what each fault does to a repository -----------------------------------------------------------------------------


def test_a_repository_that_is_restored_is_what_it_was(charts):
    before = charts.changes_since(0)
    charts.back_up()
    charts.save(chart(3, "Espresso"))
    charts.save(chart(11))
    charts.delete(5)
    charts.restore()
    assert charts.changes_since(0) == before
    assert charts.revision == 10
    assert charts.save(chart(12)) == 11

    charts.restore()  # once: nothing is wrong any more
    assert charts.revision == 11


@pytest.mark.parametrize("held", [0, 10])
def test_a_repository_that_is_overtaken_is_beyond_its_old_revision_with_other_words(held):
    with FragileRepository() as charts:
        charts.save_many(chart(chart_id) for chart_id in range(1, held + 1))
        charts.back_up()
        charts.save_many(chart(chart_id) for chart_id in range(11, 21))
        charts.restore(overtaking=True)
        assert charts.revision == held + 11
        assert {c.chart_id for c in charts} == (set(range(1, held + 1)) or {0})
        assert any(c.description for c in charts)


def test_a_repository_that_is_imported_anew_has_the_same_number_and_other_charts_under_its_ids(charts):
    charts.delete(4)
    charts.save(chart(2, "Espresso"))
    before = {c.chart_id: c.title for c in charts}
    charts.import_anew()
    after = {c.chart_id: c.title for c in charts}
    assert charts.revision == 12
    assert (after.keys(), sorted(after.values())) == (before.keys(), sorted(before.values()))
    assert not any(after[chart_id] == before[chart_id] for chart_id in after)
    assert len(charts.changes_since(0)) == 9  # no tombstone


def test_nothing_is_imported_anew_where_there_is_nothing():
    charts = FragileRepository()
    charts.import_anew()
    assert charts.revision == 0


def test_a_file_that_is_restored_is_so_for_whoever_else_has_it_open(tmp_path):
    url = f"sqlite:///{tmp_path}/charts.db"
    with FragileRepository(url) as charts, ChartRepository(url) as other:
        charts.save(chart(1))
        charts.back_up()
        other.save(chart(2))
        charts.restore()
        assert [c.chart_id for c in other] == [1]
        assert other.save(chart(3)) == 2


def test_a_restoration_that_another_one_holds_up_says_so(tmp_path, monkeypatch):
    from copilotlab.charts import RepositoryError

    url = f"sqlite:///{tmp_path}/charts.db"
    with FragileRepository(url) as charts, ChartRepository(url) as other:
        charts.back_up()
        monkeypatch.setattr("copilotlab.lab.fragile_repository.RESTORE_LIMIT", 0.2)
        with other._transaction(writes=True), pytest.raises(RepositoryError, match=r"held by another connection"):
            charts.restore()
        monkeypatch.undo()
        charts.restore()


def test_a_bad_row_is_no_chart_until_it_is_mended(charts):
    before = charts.changes_since(0)
    assert charts.spoil() == 1
    with pytest.raises(ChartError, match="title"):
        charts.get(1)
    assert charts.get(2) == chart(2)
    assert charts.revision == 10
    charts.mend_rows()
    assert charts.changes_since(0) == before
    charts.mend_rows()


def test_a_bad_row_that_somebody_else_mended_stays_as_it_is(charts):
    assert (charts.spoil(), charts.spoil()) == (1, 2)
    with charts._transaction(writes=True) as connection:
        charts._write_title(connection, 1, "By hand, again")
    charts.mend_rows()
    assert charts.get(1).title == "By hand, again"
    assert charts.get(2) == chart(2)


def test_without_charts_there_is_no_bad_row():
    charts = FragileRepository()
    assert charts.spoil() == -1
    charts.mend_rows()


@pytest.mark.parametrize(
    ("column", "damaged"),
    [("revision", "first"), ("revision", -3), ("revision", 1.5), ("deleted", "no"), ("deleted", 7), ("tags", "[")],
)
def test_a_row_damaged_in_any_column_is_named_by_who_comes_anew_and_comes_in_once_it_is_mended(lab, column, damaged):
    def edit(value):
        with lab.charts._transaction(writes=True) as connection:
            statement = sa.text(f"UPDATE copilotlab_charts SET {column} = :value WHERE chart_id = 3")
            connection.execute(statement, {"value": value})

    mended = {"revision": 3, "deleted": False, "tags": "[]"}[column]
    edit(damaged)
    for node in lab.nodes:
        node.stop()
    node = lab.add_node()
    wait_until(lambda: node.skipped()["column"].to_list() == [column], "the row is named")
    (row,) = node.skipped().rows(named=True)
    assert (row["chart_id"], row["revision"]) == (3, 1 if column == "revision" else 3)
    assert repr(damaged) in row["reason"]
    wait_until(lambda: len(node.store) == 9, "the others are there")

    edit(mended)
    wait_until(lambda: 3 in node.store, "it is back")
    assert node.skipped().is_empty()
    assert node.store.content == lab.charts.look(0).digest


# --- the faults by name -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATA)
def test_a_fault_of_the_data_can_be_ended_before_it_began_and_twice(lab, name):
    before = lab.charts.changes_since(0)
    FAULTS[name].end(lab, 0)
    assert lab.charts.changes_since(0) == before
    FAULTS[name].start(lab, 0)
    FAULTS[name].end(lab, 0)
    after = lab.charts.changes_since(0)
    FAULTS[name].end(lab, 0)
    assert lab.charts.changes_since(0) == after


@pytest.mark.parametrize("name", DATA)
def test_an_ordinary_repository_is_not_tampered_with(name):
    with Lab(1, "hash") as lab:
        assert "cannot be tampered with: give the lab one that can" in FAULTS[name].hindrance(lab)
        with pytest.raises(TypeError, match="FragileRepository"):
            FAULTS[name].start(lab, 0)


@pytest.mark.parametrize("name", DATA)
def test_the_nodes_follow_the_repository(lab, name):
    """Edits before and meanwhile, on every node; then all hold what the repository holds, and the next edits too."""
    fault = FAULTS[name]
    lab.nodes[0].update_chart(chart(20))
    lab.wait_converged(30)
    fault.start(lab, 0)
    try:
        for index, node in enumerate(lab.nodes):
            node.update_chart(chart(30 + index))
            node.update_chart(chart(3, f"Espresso {index}"))
        lab.nodes[1].delete_chart(5)
        wait_until(lambda: len({node.store.digest for node in lab.nodes}) == 1, "all have the news")
    finally:
        fault.end(lab, 0)
    lab.wait_converged(30)
    for index, node in enumerate(lab.nodes):
        node.update_chart(chart(40 + index))
    lab.wait_converged(30)


@pytest.mark.parametrize("name", DATA)
def test_the_nodes_follow_the_repository_that_is_edited_at_once(lab, name):
    """Nobody had time to see that it went back: the next edits have revisions that other ones had before."""
    fault = FAULTS[name]
    fault.start(lab, 0)
    for index, node in enumerate(lab.nodes):
        node.update_chart(chart(30 + index))
        node.update_chart(chart(3, f"Espresso {index}"))
    wait_until(lambda: len({node.store.digest for node in lab.nodes}) == 1, "all have the news")
    fault.end(lab, 0)
    for index, node in enumerate(lab.nodes):
        node.update_chart(chart(40 + index))
    lab.wait_converged(30)
    titles = {c.chart_id: c.title for c in lab.charts}
    for node in lab.nodes:
        shown = dict(node.search("espresso", k=20).select("chart_id", "title").iter_rows())
        assert shown == titles
