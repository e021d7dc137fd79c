"""`copilotlab demo --charts`: the same story on the reader's own charts."""

from __future__ import annotations

import logging
import re
import zipfile
from pathlib import Path

import pytest

from copilotlab.cli import main

EXPORTS = Path(__file__).parents[2] / "data" / "exports"


@pytest.fixture(autouse=True)
def logs_as_before():
    """The command silences the logs of its process, which is ours."""
    logger = logging.getLogger("copilotlab")
    level = logger.level
    yield
    logger.setLevel(level)


def test_the_demo_tells_its_story_on_an_export_and_leaves_out_what_only_its_own_questions_show(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "120")
    path = tmp_path / "export.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted((EXPORTS / "superset").rglob("*.yaml")):
            archive.write(file, Path("export", file.relative_to(EXPORTS / "superset")))

    assert main(["demo", "--charts", str(path), "--nodes", "2", "--model", "hash"]) == 0

    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "2 nodes, 5 charts, the model hash" in said
    assert "1 it has no title, and neither a dashboard nor columns to make one of" in said
    assert "Left out: that meaning finds what words do not" in said
    assert "│ Net revenue by region │ Net revenue by region │" in said
    assert "all 9 claims held" in said


def test_the_demo_says_what_is_wrong_with_the_charts_before_it_begins(capsys):
    assert main(["demo", "--charts", str(EXPORTS / "looker")]) == 2
    assert "has 2 charts of different titles: the demo needs at least 3" in capsys.readouterr().err
    assert main(["demo", "--charts", "no-such.zip"]) == 2
    assert "no-such.zip: there is no such file or folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["demo", "--format", "grafana"])
    assert "--format grafana: goes with --charts" in capsys.readouterr().err
