"""The system of record: one counter, tombstones, and no half-done writes."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import sqlalchemy as sa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from copilotlab import Chart, ChartRepository, FaultProxy
from copilotlab.charts import ChartError, ChartNotFound, RepositoryError, chart_id_of
from copilotlab.digest import digest_of


def chart(chart_id, title="Revenue"):
    return Chart(chart_id=chart_id, title=title, dimensions=["Region"], tags=["a;b", "ü"])


@pytest.fixture(params=["memory", "file", "postgres"])
def url(request, tmp_path):
    if request.param == "memory":
        yield "sqlite://"
    elif request.param == "file":
        yield f"sqlite:///{tmp_path / 'charts.db'}"
    else:
        url = request.getfixturevalue("postgres")
        yield url
        with ChartRepository(url) as repository:
            repository._charts.metadata.drop_all(repository._engine)


@pytest.fixture
def repository(url):
    with ChartRepository(url) as repository:
        yield repository


def test_every_save_and_every_delete_gets_the_next_revision(repository):
    assert repository.revision == 0
    assert repository.save(chart(7)) == 1
    assert repository.save(chart(8)) == 2
    assert repository.save(chart(7, "Revenues")) == 3
    assert repository.delete(8) == 4
    assert repository.save(chart(8)) == 5
    assert repository.revision == 5
    assert len(repository) == 2


def test_a_save_that_changes_nothing_keeps_its_revision(repository):
    repository.save(chart(7))
    repository.save(chart(8))

    assert repository.save(chart(7)) == 1
    assert repository.revision == 2


def test_a_chart_comes_back_as_it_was(repository):
    saved = Chart(
        chart_id=2**63 - 1, title="Erlöse, العربية 📊", description="a\nb", chart_type="bar", dimensions=["x"],
        measures=["y"], source="s", tags=["t", "u"],
    )  # fmt: skip
    repository.save(saved)

    assert repository.get(2**63 - 1) == saved
    assert list(repository) == [saved]
    assert 2**63 - 1 in repository
    assert repository.get(3) is None


def test_changes_since_gives_each_chart_once_at_its_latest_revision(repository):
    repository.save_many([chart(1), chart(2), chart(3)])
    repository.save(chart(1, "Changed"))
    repository.delete(2)

    assert [(c.chart_id, c.revision, c.chart is None) for c in repository.changes_since(0)] == [
        (3, 3, False),
        (1, 4, False),
        (2, 5, True),
    ]
    assert [c.chart_id for c in repository.changes_since(4)] == [2]
    assert repository.changes_since(5) == []
    assert set(repository.get_many([1, 2, 99])) == {1, 2}
    for revision in ("0", None, 2**63):
        with pytest.raises(ValueError, match="expected a whole number"):
            repository.changes_since(revision)


def test_what_is_not_there_cannot_be_deleted(repository):
    repository.save(chart(7))
    repository.delete(7)

    for chart_id in (7, 8, -1):
        with pytest.raises(ChartNotFound, match=f"chart {chart_id} is not in"):
            repository.delete(chart_id)
    assert repository.revision == 2


@pytest.mark.parametrize("wrong", ["7", 7.0, True, None])
def test_what_is_no_chart_id_is_refused_and_not_taken_for_a_chart_that_is_not_there(repository, wrong):
    repository.save_many([chart(1), chart(7)])
    for ask in (repository.get, repository.delete, lambda chart_id: repository.get_many([7, chart_id])):
        with pytest.raises(ChartError, match=rf"chart_id={wrong!r}: expected a whole number from 0"):
            ask(wrong)
    assert wrong not in repository
    assert -1 not in repository
    assert 7 in repository


@pytest.mark.parametrize("integer", [np.int64, np.int32, np.uint64])
def test_integers_of_numpy_are_ids_and_revisions_like_others(repository, integer):
    repository.save_many([chart(integer(i)) for i in (1, 2, 3)])

    assert integer(3) in repository
    assert integer(4) not in repository
    assert np.float64(3) not in repository
    assert repository.get(integer(3)) == chart(3)
    known = repository.get_many(np.array([1, 2, 4], dtype=integer))
    assert list(known) == [1, 2]
    assert {type(chart_id) for chart_id in known} == {int}
    assert [change.chart_id for change in repository.changes_since(integer(2))] == [3]
    assert repository.heads_since(integer(2)).chart_ids.tolist() == [3]
    assert repository.restamp(np.array([1, 2, 3], dtype=integer)) == []
    assert repository.delete(integer(3)) == 4


def test_many_charts_get_their_revisions_in_order(repository):
    assert repository.save_many([chart(i) for i in range(2_500)]) == 2_500
    assert [change.chart_id for change in repository.changes_since(0)] == list(range(2_500))
    assert repository.save_many([chart(i, "New") if i == 7 else chart(i) for i in range(2_500)]) == 2_501


def test_one_wrong_chart_leaves_all_unsaved(repository):
    with pytest.raises(ChartError, match="expected a Chart"):
        repository.save_many([chart(1), "not a chart"])
    assert repository.revision == 0


def test_threads_get_revisions_without_gaps_and_a_follower_misses_none(repository):
    threads = [
        threading.Thread(target=lambda start=start: [repository.save(chart(start + n)) for n in range(25)])
        for start in range(0, 800, 100)
    ]
    for thread in threads:
        thread.start()
    seen, last = [], 0
    while last < 200:
        time.sleep(0.001)  # a thread that never waits keeps the interpreter from the others
        for change in repository.changes_since(last):
            seen.append(change.revision)
            last = change.revision
    for thread in threads:
        thread.join()

    assert seen == list(range(1, 201))


@pytest.mark.parametrize(
    "url", ["sqlite:///:memory:", "sqlite+pysqlite://", "sqlite:///file:charts?mode=memory&cache=shared&uri=true"]
)
def test_threads_share_a_repository_in_memory_however_it_is_spelled(url):
    with ChartRepository(url) as repository, ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda chart_id: (repository.save(chart(chart_id)), repository.frame()), range(100)))
        assert [change.revision for change in repository.changes_since(0)] == list(range(1, 101))


@pytest.mark.parametrize("url", ["file", "postgres"], indirect=True)
def test_two_processes_share_a_repository(url):
    code = (
        "import sys; from copilotlab import Chart, ChartRepository; r = ChartRepository(sys.argv[1]);"
        "[r.save(Chart(chart_id=int(sys.argv[2]) + n, title='x')) for n in range(50)]"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, url, str(start)]) for start in (0, 1000)]

    assert [process.wait(240) for process in processes] == [0, 0]
    with ChartRepository(url) as repository:
        assert [change.revision for change in repository.changes_since(0)] == list(range(1, 101))


def test_a_file_that_another_process_writes_to_is_opened_when_that_is_done(tmp_path):
    """SQLite refuses to switch it to the write-ahead log at once then, whatever its timeout."""
    path = tmp_path / "charts.db"
    writer = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("CREATE TABLE another (x)")

    with ThreadPoolExecutor(1) as threads:
        opened = threads.submit(ChartRepository, f"sqlite:///{path}")
        assert not wait([opened], timeout=0.3).done
        writer.execute("COMMIT")
        with opened.result(120) as repository:
            assert repository.save(chart(1)) == 1
    writer.close()


class Model(RuleBasedStateMachine):
    """The repository beside a plain dictionary."""

    ids = st.integers(0, 5)
    titles = st.sampled_from("abc")

    def __init__(self):
        super().__init__()
        self.repository = ChartRepository()
        self.charts = {}
        self.revisions = {}
        self.revision = 0

    def saved(self, one):
        if self.charts.get(one.chart_id) != one:
            self.revision += 1
            self.charts[one.chart_id] = one
            self.revisions[one.chart_id] = self.revision

    @rule(chart_id=ids, title=titles)
    def save(self, chart_id, title):
        self.saved(chart(chart_id, title))
        assert self.repository.save(chart(chart_id, title)) == self.revisions[chart_id]

    @rule(charts=st.dictionaries(ids, titles))
    def save_many(self, charts):
        for chart_id, title in charts.items():
            self.saved(chart(chart_id, title))
        assert self.repository.save_many([chart(*item) for item in charts.items()]) == self.revision

    @rule(chart_id=ids)
    def delete(self, chart_id):
        if self.charts.get(chart_id) is None:
            with pytest.raises(ChartNotFound):
                self.repository.delete(chart_id)
            return
        self.revision += 1
        self.charts[chart_id] = None
        self.revisions[chart_id] = self.revision
        assert self.repository.delete(chart_id) == self.revision

    @invariant()
    def agree(self):
        expected = sorted((self.revisions[i], i, self.charts[i]) for i in self.charts)
        assert [(c.revision, c.chart_id, c.chart) for c in self.repository.changes_since(0)] == expected
        assert len(self.repository) == sum(one is not None for one in self.charts.values())


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)


# --- rows that somebody edited by hand ------------------------------------------------------------------------------

TEXTS = ("title", "description", "chart_type", "source")
LISTS = ("dimensions", "measures", "tags")
LONG = {"title": 501, "description": 10_001, "chart_type": 201, "source": 201}
NO_UTF8 = object()
DAMAGED_ANYWHERE = [
    ("title", ""),
    ("title", "  "),
    *((column, "x" * length) for column, length in LONG.items()),
    *((column, None) for column in (*TEXTS, *LISTS)),
    *(
        (column, value)
        for column in LISTS
        for value in ("", "[", "null", "{}", "7", '"x"', "[1]", "[null]", '[""]', '[" "]', "[" * 100_000, "a;b",
                      '["' + "x" * 201 + '"]', "[" + ",".join(['"x"'] * 65) + "]", '["\\ud800"]')
    ),
    *(("revision", value) for value in (-3, 0, None)),
    ("deleted", None),
]  # fmt: skip
DAMAGED_IN_SQLITE = [
    *((column, value) for column in (*TEXTS, *LISTS) for value in (b"bytes", NO_UTF8)),
    ("revision", "first"),
    ("revision", 1.5),
    ("deleted", "no"),
    ("deleted", 7),
]


def edit(repository, chart_id, column, value):
    """As people do, with SQL, in a table that somebody made without its constraints."""
    quoted = "CAST(x'4aff4a' AS TEXT)" if value is NO_UTF8 else ":value"
    with repository._engine.connect().execution_options(copilotlab_writes=True) as connection, connection.begin():
        if value is None:
            rows = connection.execute(repository._charts.select()).all()
            repository._charts.drop(connection)
            for one in repository._charts.c:
                one.nullable = not one.primary_key
            repository._charts.create(connection)
            connection.execute(repository._charts.insert(), [row._asdict() for row in rows])
        connection.execute(
            sa.text(f"UPDATE copilotlab_charts SET {column} = {quoted} WHERE chart_id = :chart_id"),
            {"chart_id": chart_id} if value is NO_UTF8 else {"chart_id": chart_id, "value": value},
        )


def check_that_one_bad_row_costs_one_row(repository, column, value, caplog):
    repository.save_many([chart(1), chart(2), chart(3)])
    edit(repository, 2, column, value)
    with caplog.at_level("WARNING", "copilotlab.charts"):
        assert [one.chart_id for one in repository] == [1, 3]
        assert repository.frame()["chart_id"].to_list() == [1, 3]
        assert [change.chart_id for change in repository.changes_since(0)] == [1, 3]
        for heads in (repository.heads_since(0), repository.look(0).heads):
            rows = zip(heads.chart_ids.tolist(), heads.revisions.tolist(), heads.deleted.tolist(), strict=True)
            assert sorted(rows) == [(1, 1, False), (2, 1 if column == "revision" else 2, False), (3, 3, False)]
            assert {row.tobytes() for row in heads.content_hashes} == {chart(1).content_hash}
        assert set(repository.get_many([1, 2, 3])) == {1, 3}
        changes, unreadable = repository.read_many([1, 2, 3, 4])
    assert set(changes) == {1, 3}
    assert set(unreadable) == {2}
    assert unreadable[2][:3] == (2, 1 if column == "revision" else 2, column)
    assert unreadable[2].content_hash == chart(2).content_hash
    assert len(repository) == 3
    assert any(said in unreadable[2].reason for said in ("expected", "leave it out", "which no database keeps"))
    assert len(unreadable[2].reason) < 250
    (said,) = [record.getMessage() for record in caplog.records]
    with pytest.raises(ChartError) as refused:
        repository.get(2)
    for text in (said, str(refused.value)):
        assert f"'{column}'" in text
        assert "chart 2 in" in text
        assert "Save the chart again, or delete it" in text
    assert repository.restamp() == []
    assert 2 not in repository

    assert repository.save(chart(2)) == 4
    assert repository.get(2) == chart(2)
    assert [one.chart_id for one in repository] == [1, 3, 2]


@pytest.mark.parametrize(("column", "value"), DAMAGED_ANYWHERE)
@pytest.mark.parametrize("url", ["memory", "postgres"], indirect=True)
def test_one_bad_row_costs_one_row_and_a_save_mends_it(url, column, value, caplog):
    with ChartRepository(url) as repository:
        check_that_one_bad_row_costs_one_row(repository, column, value, caplog)


@pytest.mark.parametrize(("column", "value"), DAMAGED_IN_SQLITE)
def test_a_value_of_any_type_in_any_column_of_sqlite_costs_one_row(column, value, caplog):
    check_that_one_bad_row_costs_one_row(ChartRepository(), column, value, caplog)


def test_a_bad_row_can_be_deleted_and_saved_among_others(repository):
    repository.save_many([chart(1), chart(2), chart(3)])
    edit(repository, 2, "tags", "[")
    edit(repository, 3, "tags", "[")

    assert repository.delete(2) == 4
    assert repository.save_many([chart(1), chart(3)]) == 5
    assert repository.read_many([1, 2, 3]).unreadable == {}
    assert repository.get_many([2])[2].chart is None
    with pytest.raises(ChartNotFound):
        repository.delete(2)


@pytest.mark.parametrize("chart_id", [-5, "seven", 1.5, 2**62])
def test_a_row_whose_id_is_none_leaves_the_others_readable(chart_id, caplog):
    repository = ChartRepository()
    repository.save_many([chart(1), chart(2), chart(3)])
    edit(repository, 2, "chart_id", chart_id)

    expected = [1, 2**62, 3] if chart_id == 2**62 else [1, 3]
    assert [one.chart_id for one in repository] == expected
    assert repository.heads_since(0).chart_ids.tolist() == expected
    assert list(repository.get_many([1, 2, 3])) == [1, 3]
    assert repository.restamp() == []
    said = [] if chart_id == 2**62 else ["the column 'chart_id' is damaged"]
    said.append("added or deleted by hand")  # chart 2 is gone
    assert len(caplog.records) == len(said)
    assert all(part in record.getMessage() for part, record in zip(said, caplog.records, strict=True))


def test_the_log_names_a_bad_row_once_and_again_after_it_was_mended_and_only_so_many(caplog):
    repository = ChartRepository()
    repository.save_many([chart(i) for i in range(300)])
    edit(repository, 7, "title", "")
    for _ in range(3):
        repository.changes_since(0)
    assert len(caplog.records) == 1
    repository.save(chart(7))
    repository.get(7)
    edit(repository, 7, "title", "")
    repository.changes_since(0)
    assert len(caplog.records) == 2

    for chart_id in range(300):
        edit(repository, chart_id, "title", "")
    assert repository.changes_since(0) == []
    assert len(caplog.records) == 1 + 100
    assert "others are not named here" in caplog.messages[-1]


def test_words_that_were_edited_by_hand_get_a_revision_of_their_own(repository, caplog):
    repository.save_many([chart(i) for i in range(1, 6)])
    repository.delete(5)
    assert repository.restamp() == []
    assert repository.revision == 6
    edit(repository, 2, "title", "Edited")
    edit(repository, 4, "tags", '["edited"]')
    edit(repository, 3, "title", "")
    assert repository.get_many([2])[2].content_hash == chart(2).content_hash != repository.get(2).content_hash
    heads = repository.heads_since(0)
    assert heads.content_hashes[heads.chart_ids == 2].tobytes() == chart(2).content_hash

    assert repository.restamp([1, 3, 4]) == [4]
    assert repository.restamp([]) == []
    assert repository.restamp() == [2]

    assert "1 charts in" in caplog.messages[-1]
    assert "edited by hand" in caplog.messages[-1]
    changes = repository.changes_since(6)
    assert [(change.chart_id, change.revision) for change in changes] == [(4, 7), (2, 8)]
    assert all(change.content_hash == change.chart.content_hash for change in changes)
    assert repository.restamp() == []
    assert repository.revision == 8


def test_saving_the_words_that_somebody_edited_into_the_row_is_a_change(repository):
    repository.save(chart(1))
    edit(repository, 1, "title", "Edited")
    assert repository.save(chart(1, "Edited")) == 2
    assert repository.save(chart(1, "Edited")) == 2
    assert repository.restamp() == []


@pytest.mark.parametrize("value", [b"", b"short", b"x" * 40, None])
def test_a_row_without_a_hash_is_read_and_mended(repository, value):
    repository.save_many([chart(1), chart(2)])
    edit(repository, 1, "content_hash", value)

    assert repository.get(1) == chart(1)
    assert repository.get_many([1])[1].content_hash == bytes(16)
    assert repository.heads_since(0).content_hashes[0].tobytes() == bytes(16)
    assert repository.restamp() == [1]
    assert repository.get_many([1])[1] == (1, 3, chart(1), chart(1).content_hash)


def test_a_deletion_has_no_hash_and_a_chart_has_that_of_its_words(repository):
    repository.save_many([chart(1), chart(2)])
    repository.delete(2)
    changes = repository.get_many([1, 2])
    assert changes[1].content_hash == chart(1).content_hash
    assert changes[2].content_hash == b""


def test_a_catalogue_of_many_pages_is_read_whole_and_in_order(repository, monkeypatch):
    monkeypatch.setattr("copilotlab.charts.repository._ROWS_PER_PAGE", 7)
    repository.save_many([chart(i) for i in range(50, 0, -1)])
    edit(repository, 33, "title", "Edited")

    assert [change.chart_id for change in repository.changes_since(0)] == list(range(50, 0, -1))
    assert repository.heads_since(3).chart_ids.tolist() == list(range(47, 0, -1))
    assert repository.restamp() == [33]


# --- a database that is silent, frozen or locked ------------------------------------------------------------------

TIMEOUT = 2.0
LIMIT = 60  # seconds for what takes a few and, without a bound, for ever


def ends(call, *args):
    """What a call gives or raises, in a thread that may be left behind."""
    answer = Future()

    def run():
        try:
            answer.set_result(call(*args))
        except (RepositoryError, ChartError) as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return answer.result(LIMIT)


@pytest.fixture
def line(postgres):
    """A line to PostgreSQL that can be cut, and the URL at its other end."""
    there = sa.make_url(postgres)
    folder = there.query.get("host")
    port = there.port or 5432
    with FaultProxy((there.host, port) if folder is None else f"{folder}/.s.PGSQL.{port}") as line:
        host, port = line.address
        query = {key: value for key, value in there.query.items() if key != "host"}
        url = there._replace(host=host, port=port, query=query).render_as_string(hide_password=False)
        yield line, url
    with ChartRepository(postgres) as repository:
        repository._charts.metadata.drop_all(repository._engine)


def test_every_call_to_a_postgres_that_went_silent_ends_in_a_clear_error_and_works_again(line):
    line, url = line
    with ChartRepository(url, timeout=TIMEOUT) as repository:
        repository.save(chart(1))
        for call in (
            lambda: repository.get(1),
            lambda: repository.save(chart(2)),
            lambda: repository.heads_since(0),
            lambda: ChartRepository(url, timeout=TIMEOUT),
        ):
            line.cut("blackhole")
            with pytest.raises(RepositoryError, match=r"the repository at .* cannot do this: .*\w"):
                ends(call)
            line.heal()
            assert ends(repository.get, 1) == chart(1)


def test_a_postgres_that_goes_silent_in_a_transaction_ends_it(line):
    line, url = line
    with ChartRepository(url, timeout=TIMEOUT) as repository:
        repository.save(chart(1))

        def save(connection):
            line.cut("blackhole")
            repository._save(connection, [chart(2)])

        def transaction():
            with repository._transaction(writes=True) as connection:
                save(connection)

        with pytest.raises(RepositoryError, match="no answer in"):
            ends(transaction)
        line.heal()
        assert list(repository) == [chart(1)]
        assert ends(repository.save, chart(2)) == 2


def test_a_frozen_postgres_is_an_error_and_a_connection_that_is_frozen_is_replaced(postgres):
    if "COPILOTLAB_TEST_POSTGRES" in os.environ:
        pytest.skip("the processes of that server may be on another machine")
    with ChartRepository(postgres, timeout=TIMEOUT) as repository:
        repository.save(chart(1))
        with repository._transaction() as connection:
            backend = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        parent = int(Path(f"/proc/{backend}/stat").read_text().rpartition(")")[2].split()[1])
        frozen = [backend]
        try:
            os.kill(backend, signal.SIGSTOP)
            assert ends(repository.get, 1) == chart(1)
            with repository._transaction() as connection:
                frozen += [connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one(), parent]
            assert frozen[1] != backend
            for process in frozen[1:]:
                os.kill(process, signal.SIGSTOP)
            with pytest.raises(RepositoryError):
                ends(repository.get, 1)
            with pytest.raises(RepositoryError):
                ends(repository.save, chart(2))
        finally:
            for process in frozen:
                os.kill(process, signal.SIGCONT)
        assert ends(repository.save, chart(2)) == 2
        repository._charts.metadata.drop_all(repository._engine)


@pytest.mark.parametrize("url", ["memory", "file", "postgres"], indirect=True)
def test_a_save_waits_for_another_one_no_longer_than_the_timeout(url):
    with ChartRepository(url, timeout=TIMEOUT) as repository:
        repository.save(chart(1))
        writing, over = threading.Event(), threading.Event()

        def write():
            other = repository if url == "sqlite://" else ChartRepository(url, timeout=LIMIT)
            with other._transaction(writes=True) as connection:
                other._state(connection, lock=True)
                writing.set()
                over.wait(LIMIT)

        thread = threading.Thread(target=write)
        thread.start()
        try:
            assert writing.wait(LIMIT)
            with pytest.raises(RepositoryError, match=r"database is locked|statement timeout|longer than 2 s"):
                ends(repository.save, chart(2))
            if url == "sqlite://":
                with pytest.raises(RepositoryError, match="another thread has used it for longer than"):
                    ends(repository.get, 1)
            else:
                assert ends(repository.get, 1) == chart(1)
        finally:
            over.set()
            thread.join()
        assert ends(repository.save, chart(2)) == 2


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
def test_a_writer_that_does_nothing_in_its_transaction_frees_the_catalogue(url):
    with ChartRepository(url, timeout=TIMEOUT) as idle, ChartRepository(url, timeout=LIMIT) as repository:

        def idles():
            with idle._transaction(writes=True) as connection:
                idle._state(connection, lock=True)
                assert ends(repository.save, chart(1)) == 1
                idle._save(connection, [chart(2)])

        with pytest.raises(RepositoryError, match="idle-in-transaction"):
            ends(idles)
        assert idle.save(chart(3)) == 2


def test_a_connection_that_the_server_closed_meanwhile_is_replaced(line):
    line, url = line
    with ChartRepository(url) as repository:
        for revision in (1, 2, 3):
            assert repository.save(chart(revision)) == revision
            assert line.reset() > 0
            assert repository.revision == revision


@pytest.mark.parametrize("url", ["file", "postgres"], indirect=True)
def test_an_engine_of_the_caller_is_used_as_it_is_and_left_open(url):
    engine = sa.create_engine(url)
    with ChartRepository(engine) as repository, ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda start: [repository.save(chart(start + i)) for i in range(10)], range(0, 80, 10)))
        assert [change.revision for change in repository.changes_since(0)] == list(range(1, 81))
        connections = engine.pool.checkedin()
        assert connections > 0
    assert engine.pool.checkedin() == connections
    with ChartRepository(url) as repository:
        assert len(repository) == 80
    engine.dispose()
    with pytest.raises(ValueError, match=r"connect_args=.*give them to create_engine"):
        ChartRepository(engine, connect_args={})


def test_an_engine_in_memory_must_have_one_database_for_all_threads():
    with pytest.raises(ValueError, match="poolclass=StaticPool"):
        ChartRepository(sa.create_engine("sqlite://"))
    engine = sa.create_engine("sqlite://", poolclass=sa.pool.StaticPool, connect_args={"check_same_thread": False})
    with ChartRepository(engine) as repository, ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda chart_id: repository.save(chart(chart_id)), range(40)))
        assert len(repository) == 40


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
def test_the_arguments_of_the_driver_are_passed_on_and_come_first(url):
    url = sa.make_url(url).update_query_dict({"keepalives_count": "7"}).render_as_string(hide_password=False)
    with ChartRepository(url, connect_args={"application_name": "mine", "connect_timeout": 17}) as repository:
        with repository._transaction() as connection:
            assert connection.exec_driver_sql("SHOW application_name").scalar_one() == "mine"
            assert connection.exec_driver_sql("SHOW statement_timeout").scalar_one() == "5s"
            parameters = connection.connection.driver_connection.info.get_parameters()
        assert parameters["connect_timeout"] == "17"
        assert parameters["keepalives_count"] == "7"
        assert parameters["tcp_user_timeout"] == "5000"


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), True, "5", None])
def test_a_timeout_that_is_none_is_refused(timeout):
    with pytest.raises(ValueError, match=r"timeout=.*: expected seconds, more than 0"):
        ChartRepository(timeout=timeout)


@pytest.mark.parametrize("words", ["", "\n", " "])
def test_an_error_of_the_driver_without_words_is_a_clear_error(words):
    repository = ChartRepository()
    with pytest.raises(RepositoryError, match=r"cannot do this: OSError$"), repository._transaction():
        raise sa.exc.DBAPIError("", {}, OSError(words))


# --- frames and files ---------------------------------------------------------------------------------------------

FRAME = pl.DataFrame(
    {
        "chart_id": [1, 2],
        "title": ["Revenue", "Costs"],
        "tags": [["a", "b"], []],
        "description": ["x", None],
        "owner": "me",
    }
)


def test_a_frame_and_each_kind_of_file_give_the_same_charts(tmp_path):
    FRAME.write_parquet(tmp_path / "charts.parquet")
    FRAME.write_ndjson(tmp_path / "charts.ndjson")
    (tmp_path / "charts.csv").write_text("chart_id,title,tags,description\n1,Revenue,a;b,x\n2,Costs,[],\n")
    expected = [Chart(chart_id=1, title="Revenue", tags=["a", "b"], description="x"), Chart(chart_id=2, title="Costs")]

    for source in (FRAME, tmp_path / "charts.parquet", str(tmp_path / "charts.ndjson"), tmp_path / "charts.csv"):
        assert list(ChartRepository.from_frame(source)) == expected
    frame = ChartRepository.from_frame(FRAME).frame()
    assert list(ChartRepository.from_frame(frame)) == expected
    assert frame["revision"].to_list() == [1, 2]


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (FRAME.drop("title"), r"no column 'title'"),
        (FRAME.with_columns(pl.lit(1).alias("chart_id")), r"row 2: chart_id=1 stands in row 1 already"),
        (FRAME.with_columns(pl.Series("title", ["Revenue", None])), r"row 2: title=None"),
        (FRAME.with_columns(pl.Series("chart_id", [1.5, 2.0])), r"row 1: chart_id=1\.5"),
        (FRAME.with_columns(pl.Series("tags", [[1], [2]])), r"row 1: an entry of tags=1"),
        (FRAME.with_columns(pl.Series("tags", [["a"], [" "]])), r"row 2: an entry of tags is blank, ' ': leave it out"),
    ],
)
def test_a_wrong_row_is_named_and_nothing_is_written(frame, said):
    repository = ChartRepository()
    with pytest.raises(ChartError, match=said):
        repository.load_frame(frame)
    assert repository.revision == 0


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "chart_id,title\n1,Revenue\n2,Costs,extra\n", r"row 2 \(line 3\): it has 3 fields, the header has 2"),
        ("a.csv", 'chart_id,title\n1,Revenue\n2,"Costs\n', r'row 2 \(line 3\): a double quote \("\) opens'),
        ("a.csv", "chart_id,title\n1,Revenue\n2\n", r"row 2 \(line 3\): title=None"),
        ("a.csv", f"chart_id,title\n1,Revenue\n{'9' * 5000},Costs\n", r"row 2 \(line 3\): chart_id='99"),
        ("a.csv", "", r"no column 'chart_id'"),
        ("a.csv", "chart_id,title,title\n1,Revenue,Costs\n", r"the header has the column 'title' more than once"),
        ("a.ndjson", '{"chart_id": 1, "title": "Revenue"}\n{"chart_id": 2, "tit\n', r"row 2 .*: it cannot be read"),
        ("a.ndjson", '{"chart_id": 1, "title": "Revenue"}\n{"chart_id": 2, "title": 5}\n', r"row 2 .*: title=5"),
        ("a.ndjson", '{"chart_id": 1, "title": "Revenue"}\n{"chart_id": 2.5, "title": "x"}\n', r"2\): chart_id=2\.5"),
        ("a.ndjson", '[{"chart_id": 1, "title": "Revenue"}]', r"row 1 \(line 1\): \[.*expected an object"),
    ],
)
def test_a_file_of_text_names_the_row_that_is_wrong(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(ChartError, match=said):
        ChartRepository.from_frame(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "said"), [("charts.parquet", " cannot be read as"), ("charts.ndjson", ", row 1 .*cannot be read")]
)
def test_a_corrupt_file_is_a_clear_error(tmp_path, name, said):
    (tmp_path / name).write_bytes(b"PAR1 this is no such file")
    with pytest.raises(ChartError, match=f"{name}{said}"):
        ChartRepository.from_frame(tmp_path / name)


def test_a_wrong_file_is_a_clear_error(tmp_path):
    (tmp_path / "bad.csv").write_text("chart_id,title\nseven,Revenue\n")
    with pytest.raises(ChartError, match=r"bad\.csv, row 1 \(line 2\): chart_id='seven'"):
        ChartRepository.from_frame(tmp_path / "bad.csv")
    with pytest.raises(ChartError, match="there is no such file"):
        ChartRepository.from_frame(tmp_path / "absent.csv")
    with pytest.raises(ChartError, match=r"ends in \.parquet, \.csv, .* or \.xlsx"):
        ChartRepository.from_frame(tmp_path / "charts.ods")


def test_a_wrong_url_and_a_missing_database_are_clear_errors(tmp_path):
    for url in ("charts.db", "sqlite://:memory:"):
        with pytest.raises(ValueError, match=f"url='.*{url[-8:]}': expected an SQLAlchemy URL"):
            ChartRepository(url)
    with pytest.raises(RepositoryError, match="there is no folder"):
        ChartRepository(f"sqlite:///{tmp_path / 'no' / 'such' / 'folder.db'}")


def test_a_password_is_never_shown(tmp_path):
    with pytest.raises((RepositoryError, ValueError)) as error:
        ChartRepository("postgresql+nosuchdriver://me:secret@127.0.0.1:1/charts")
    assert "secret" not in str(error.value)
    for url in (
        "postgresql+psycopg://me@127.0.0.1:1/charts?application_name=copilot&password=secret&sslpassword=secret",
        "nosuchdatabase://me@127.0.0.1:1/charts?application_name=copilot&password=secret",
        "no database?application_name=copilot&password=sec@ret",
    ):
        with pytest.raises((RepositoryError, ValueError)) as error:
            ChartRepository(url)
        assert "sec" not in str(error.value)
        assert "application_name=copilot&password=***" in str(error.value)


def test_markup_in_a_title_is_shown_as_text():
    repository = ChartRepository()
    repository.save(chart(7, "<script>alert(1)</script>"))
    repository.save(chart(8, "הכנסות לפי אזור"))

    assert "<script>" not in repository._repr_html_()
    assert "<bdi>הכנסות לפי אזור</bdi>" in repository._repr_html_()


def test_a_counter_that_is_behind_its_rows_moves_on(tmp_path):
    """Charts were loaded with SQL, or the counter was restored alone."""
    url = f"sqlite:///{tmp_path / 'charts.db'}"
    repository = ChartRepository(url)
    repository.save_many([Chart(chart_id=i, title="Revenue") for i in range(5)])
    with sqlite3.connect(tmp_path / "charts.db") as database:
        database.execute("UPDATE copilotlab_revision SET revision = 2")

    assert repository.save(Chart(chart_id=9, title="Profit")) == 6
    with sqlite3.connect(tmp_path / "charts.db") as database:
        database.execute("UPDATE copilotlab_revision SET revision = 2")
    assert ChartRepository(url).look().revision == 6


def test_a_row_that_was_deleted_with_sql_shows_in_the_digest_after_a_whole_look(tmp_path):
    repository = ChartRepository(f"sqlite:///{tmp_path / 'charts.db'}")
    repository.save_many([Chart(chart_id=i, title="Revenue") for i in range(5)])
    before = repository.look(0)
    with sqlite3.connect(tmp_path / "charts.db") as database:
        database.execute("DELETE FROM copilotlab_charts WHERE chart_id = 3")
    assert repository.look().digest == before.digest

    assert repository.restamp() == []
    after = repository.look(0)
    assert (after.revision, len(after.heads.chart_ids)) == (before.revision, 4)
    heads = zip(after.heads.chart_ids.tolist(), after.heads.revisions.tolist(), after.heads.content_hashes, strict=True)
    assert after.digest == digest_of((i, r, h.tobytes()) for i, r, h in heads)


def test_a_file_that_was_replaced_is_read_and_one_that_has_gone_is_named(tmp_path):
    file, other = tmp_path / "charts.db", tmp_path / "other.db"
    repository = ChartRepository(f"sqlite:///{file}")
    repository.save(Chart(chart_id=1, title="Revenue"))
    with ChartRepository(f"sqlite:///{other}") as restored:
        restored.save(Chart(chart_id=2, title="Profit"))
    for ending in ("", "-wal", "-shm"):
        if (moved := Path(f"{other}{ending}")).exists():
            moved.replace(f"{file}{ending}")
        else:
            Path(f"{file}{ending}").unlink(missing_ok=True)

    assert [chart.title for chart in repository] == ["Profit"]
    assert repository.look().identity == restored.identity
    file.unlink()
    with pytest.raises(RepositoryError, match="its file has gone"):
        repository.save(Chart(chart_id=3, title="Cost"))


# --- made by another version -----------------------------------------------------------------------------------------


def write(repository, *statements):
    with repository._engine.connect().execution_options(copilotlab_writes=True) as connection, connection.begin():
        for statement in statements:
            connection.execute(sa.text(statement))


def make_older(repository):
    """Take from the tables what the version before keys and links did not have."""
    columns = (("charts", "key"), ("charts", "url"), ("revision", "schema_version"))
    write(repository, *(f"ALTER TABLE copilotlab_{table} DROP COLUMN {column}" for table, column in columns))


@pytest.mark.parametrize("url", ["file", "postgres"], indirect=True)
def test_an_older_database_gains_the_columns_once_and_all_its_charts_stay_as_they_were(url, caplog):
    with ChartRepository(url) as repository:
        repository.save_many([chart(1), chart(2), chart(3)])
        repository.delete(3)
        before, look = repository.changes_since(0), repository.look(0)
        make_older(repository)

    with ChartRepository(url) as repository:
        assert [record.getMessage() for record in caplog.records] == [
            f"the repository at {repository._shown_url} was made by an earlier version: it has the columns "
            "schema_version, key, url now, and the schema 2"
        ]
        assert repository.changes_since(0) == before
        assert repository.look(0)[:3] == look[:3]
        assert repository.restamp() == []
        key = "superset:prod:1"
        linked = Chart(chart_id=chart_id_of(key), title="Revenue", key=key, url="https://bi.example.org/1")
        repository.save(linked)
    with ChartRepository(url) as repository:
        assert len(caplog.records) == 1, "it is told once"
        assert repository.get(linked.chart_id) == linked
        words = "content_hash, title, description, chart_type, dimensions, measures, source, tags"
        write(  # as the earlier version does, which is still running beside this one
            repository,
            f"INSERT INTO copilotlab_charts (chart_id, revision, deleted, {words}) "
            f"SELECT 9, 9, deleted, {words} FROM copilotlab_charts WHERE chart_id = 1",
        )
        assert repository.get(9).url == ""


@pytest.mark.parametrize("url", ["file", "postgres"], indirect=True)
def test_a_database_of_a_later_version_is_refused_in_words(url):
    with ChartRepository(url) as repository:
        write(repository, "UPDATE copilotlab_revision SET schema_version = 3")
        said = "tables have the schema 3, which a later version of copilotlab made; this one knows schema 2"
        with pytest.raises(RepositoryError, match=said):
            ChartRepository(url)
        write(repository, "UPDATE copilotlab_revision SET schema_version = 2")


def test_an_upgrade_that_fails_halfway_has_changed_nothing(tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path / 'charts.db'}"
    with ChartRepository(url) as repository:
        repository.save(chart(1))
        make_older(repository)

    def fail(*_):
        raise RepositoryError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(ChartRepository, "_state", fail)
        with pytest.raises(RepositoryError, match="the disk is full"):
            ChartRepository(url)
    with sqlite3.connect(tmp_path / "charts.db") as database:
        assert "url" not in [row[1] for row in database.execute("PRAGMA table_info(copilotlab_charts)")]
    with ChartRepository(url) as repository:
        assert repository.get(1) == chart(1)


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
def test_a_mirror_on_postgresql_is_as_on_sqlite(url):
    keys = [f"superset:prod:{number}" for number in range(1_200)]
    frame = pl.DataFrame({"key": keys, "title": keys, "tags": [["a"]] * len(keys)})
    given = SimpleNamespace(format="superset", instance="prod", frame=frame, skipped=pl.DataFrame(), complete=True)
    with ChartRepository(url) as repository:
        assert repository.mirror(given) == (1_200, 0, 0, 0, 0)
        assert repository.mirror(given) == (0, 0, 1_200, 0, 0)
        given.frame = frame.tail(-1).with_columns(url=pl.lit("https://bi.example.org"))
        assert repository.mirror(given) == (0, 1_199, 0, 1, 0)
        assert len(repository) == 1_199


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RepositoryError, match=r"there is no folder '.*nowhere' for its file"):
        ChartRepository(f"sqlite:///{tmp_path}/nowhere/charts.db")
