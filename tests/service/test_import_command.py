"""`copilotlab import`: an export in, a report out; and again and again, with patience for what fails."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import polars as pl
import pytest

from copilotlab import ChartRepository
from copilotlab.cli import main
from copilotlab.service.import_command import LONGEST_WAIT, run_import


class Stop(BaseException):
    """Ends a watch, as Ctrl-C does."""


class Source:
    """What `read_catalogue` reads: the titles by native id, or an error. asked: how."""

    def __init__(self) -> None:
        self.titles: dict[str, str] = {"1": "Revenue", "2": "Orders"}
        self.skipped: list[tuple[str, str, str]] = []
        self.error: Exception | None = None
        self.asked: list[tuple[object, ...]] = []

    def read(self, path, format=None, instance="prod", **more):
        self.asked.append((path, format, instance, {name: value for name, value in more.items() if value}))
        if self.error is not None:
            raise self.error
        keys = [f"superset:{instance}:{native}" for native in self.titles]
        frame = pl.DataFrame({"key": keys, "title": list(self.titles.values())}, schema_overrides={"key": pl.String})
        skipped = pl.DataFrame(self.skipped, schema=["path", "native_id", "reason"], orient="row")
        return SimpleNamespace(frame=frame, skipped=skipped, format="superset", instance=instance, complete=True)


@pytest.fixture
def source(monkeypatch):
    source = Source()
    monkeypatch.setattr("copilotlab.service.import_command.read_catalogue", source.read)
    for name in [name for name in os.environ if name.startswith("COPILOTLAB_")]:
        monkeypatch.delenv(name)
    return source


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'charts.db'}"


def test_an_export_is_imported_and_reported_with_the_reasons_for_what_was_skipped(source, url, capsys):
    source.skipped = [("c.yaml", "", "not YAML")] + [("a.yaml", str(n), "it has no title") for n in range(4)]
    assert main(["import", "superset", "export.zip", "--instance", "eu", "--charts", url]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "superset:eu from export.zip: 2 added, 0 changed, 0 unchanged, 0 deleted, 5 skipped; revision 2",
        "  4 skipped: it has no title",
        "      a.yaml: 0",
        "      a.yaml: 1",
        "      a.yaml: 2",
        "      and 1 more; --skipped FILE.csv names all",
        "  1 skipped: not YAML",
        "      c.yaml",
        "  running nodes follow within about 30 seconds (adopt_after of their policy); copilotlab rebuild brings them "
        "at once",
    ]
    more = ["--base-url", "https://bi.example.org", "--query", "SELECT 1"]
    address = "https://me:secret@bi.example.org"
    assert main(["import", "auto", address, "--charts", url, *more]) == 0
    assert source.asked == [
        ("export.zip", "superset", "eu", {}),
        (address, None, "prod", {"base_url": "https://bi.example.org", "query": "SELECT 1"}),
    ]
    assert "secret" not in capsys.readouterr().out
    with ChartRepository(url) as charts:
        assert sorted(chart.key for chart in charts) == [f"superset:{i}:{n}" for i in ("eu", "prod") for n in (1, 2)]


def test_what_cannot_be_imported_is_said_in_a_line_and_changes_nothing(source, url, capsys):
    source.titles = {}
    assert main(["import", "superset", "export.zip", "--charts", url]) == 2
    assert "copilotlab import: the catalogue of superset:prod came out empty" in capsys.readouterr().err
    assert main(["import", "superset", "export.zip", "--charts", url, "--allow-shrink"]) == 0
    source.error = OSError("no such file: export.zip")
    assert main(["import", "superset", "export.zip", "--charts", url]) == 2
    assert capsys.readouterr().err == "copilotlab import: no such file: export.zip\n"
    for wrong, said in (("0", "greater than or equal to 1 (got '0')"), ("never", "a valid number")):
        assert main(["import", "superset", "export.zip", "--charts", url, "--watch", wrong]) == 2
        error = capsys.readouterr().err
        assert error.startswith("copilotlab import: watch: ")
        assert said in error
    with pytest.raises(SystemExit):
        main(["import", "superset", "--charts", url])
    assert "the following arguments are required: PATH" in capsys.readouterr().err
    with ChartRepository(url) as charts:
        assert charts.revision == 0


def test_flags_come_before_the_environment_and_that_before_the_file_that_all_commands_share(
    source, url, tmp_path, monkeypatch, capsys
):
    file = tmp_path / "copilotlab.toml"
    file.write_text(f'charts = "{url}"\ninstance = "file"\nbase_url = "https://file/"\nport = 8001\n[policy]\n')
    monkeypatch.setenv("COPILOTLAB_CONFIG", str(file))
    monkeypatch.setenv("COPILOTLAB_INSTANCE", "environment")
    monkeypatch.setenv("COPILOTLAB_IMPORT_USER", "me")
    monkeypatch.setenv("COPILOTLAB_IMPORT_PASSWORD", "secret")
    monkeypatch.setenv("COPILOTLAB_IMPORT_TOKEN", "glsa_x")
    monkeypatch.setenv("COPILOTLAB_TOKEN", "a-long-secret-of-the-service")
    given = {"base_url": "https://file/", "user": "me", "password": "secret", "token": "glsa_x"}

    assert main(["import", "superset", "export.zip"]) == 0
    assert main(["import", "superset", "export.zip", "--instance=flag"]) == 0
    assert [asked[2:] for asked in source.asked] == [("environment", given), ("flag", given)]
    assert main(["config"]) == 0, "what is of the import alone is passed over by serve"
    capsys.readouterr()

    file.write_text('import_password = ["secret"]\ninstanse = "x"\n')
    assert main(["import", "superset", "export.zip"]) == 2
    error = capsys.readouterr().err
    assert f"{file}, line 2: instanse: Extra inputs are not permitted (got 'x')" in error
    assert "secret" not in error


def test_a_watch_imports_what_changed_and_waits_longer_the_longer_its_source_fails(source, url, capsys):
    waited = []

    def wait(seconds):
        waited.append(seconds)
        turn = len(waited)
        if turn == 2:
            source.titles = {"1": "Revenue", "2": "Sales"}
        elif turn == 3:
            source.error = ConnectionError("the server is away")
        elif turn == 20:
            source.error, source.titles = None, {}  # a server that has just begun to start, say
        elif turn == 21:
            source.titles = {"1": "Revenue", "2": "Sales"}
        elif turn == 23:
            raise Stop

    with pytest.raises(Stop):
        run_import(["superset", "export", "--charts", url, "--watch", "60", "--allow-shrink"], wait=wait)

    doubled = [120.0, 240.0, 480.0, 960.0, 1_920.0]
    assert waited == [60.0] * 3 + doubled + [LONGEST_WAIT] * 13 + [60.0] * 2
    said = capsys.readouterr()
    assert [line.split(": ")[1].split("; ")[0] for line in said.out.splitlines() if "prod from" in line] == [
        "2 added, 0 changed, 0 unchanged, 0 deleted, 0 skipped",
        "0 added, 1 changed, 1 unchanged, 0 deleted, 0 skipped",
        "0 added, 0 changed, 2 unchanged, 0 deleted, 0 skipped",
    ], "nothing is printed where nothing has changed, but for a source that is back"
    errors = said.err.splitlines()
    assert errors[0] == "copilotlab import: the server is away; it is tried again"
    assert "came out empty, and 2 of its charts are held" in errors[-1], "--allow-shrink was said of the first time"
    assert len(errors) == 18


def test_a_file_that_cannot_be_read_holds_deletions_back_and_is_named_and_what_is_deleted_is_named_before_it_is(
    tmp_path, url, capsys
):
    def panels(*titles):
        listed = [{"id": number, "type": "timeseries", "title": title} for number, title in enumerate(titles, start=1)]
        return json.dumps({"uid": "sales", "title": "Sales", "schemaVersion": 39, "panels": listed})

    folder = tmp_path / "graf"
    folder.mkdir()
    (folder / "sales.json").write_text(panels("Revenue", "Orders", "Returns"))
    command = ["import", "grafana", str(folder), "--charts", url]
    assert main([*command, "--base-url", "https://grafana.example.org"]) == 0
    (folder / "sales.json").write_text(panels("Revenue", "Orders by day"))
    (folder / "broken.json").write_text("{")
    capsys.readouterr()

    out = tmp_path / "skipped.csv"
    assert main([*command, "--skipped", str(out), "--policy.adopt-after", "5"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"grafana:prod from {folder}: 0 added, 1 changed, 1 unchanged, 0 deleted, 1 skipped;")
    assert said[1:3] == ["  1 deletion held back: 1 file could not be read: broken.json", "  kept: 'Returns'"]
    assert said[3].startswith("  1 skipped: it cannot be read as JSON: ")
    assert said[4:5] == ["      broken.json"]
    assert said[5].startswith("  running nodes follow within about 5 seconds")
    assert pl.read_csv(out).select("path", "native_id", "no_chart", "may_hold").rows() == [
        ("broken.json", "", False, True)
    ]

    (folder / "broken.json").unlink()
    for flags, told in (["--dry-run"], "dry run, nothing is changed: grafana"), ([], "grafana"):
        assert main([*command, *flags]) == 0
        said = capsys.readouterr().out.splitlines()
        assert said[0].startswith(f"{told}:prod from {folder}: 0 added, 0 changed, 2 unchanged, 1 deleted, 0 skipped;")
        assert said[1] == "  deleted: 'Returns'"
        assert len(said) == (2 if flags else 3), "nothing that running nodes could follow"
    with ChartRepository(url) as charts:
        assert [chart.url.partition("?")[0] for chart in charts] == ["https://grafana.example.org/d/sales"] * 2
    assert main([*command, "--dry-run", "--watch", "60"]) == 2
    assert "leave out dry_run or watch" in capsys.readouterr().err

    assert main(["import", "dbt", *command[2:]]) == 2
    error = capsys.readouterr().err
    assert f"nothing in {folder} is dbt; it looks like grafana (1 file): name that in its place" in error
    assert "shrink" not in error


def test_ctrl_c_ends_a_watch(source, url, monkeypatch):
    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr("copilotlab.service.import_command.run_import.__kwdefaults__", {"wait": interrupt})
    assert main(["import", "superset", "export", "--charts", url, "--watch", "60"]) == 130
