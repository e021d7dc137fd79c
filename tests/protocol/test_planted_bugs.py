"""Every planted bug can still be planted (that each is found is a matter of minutes: `make planted-bugs`)."""

from __future__ import annotations

import shutil
from collections import Counter

import pytest
from planted_bugs import BUGS, ROOT, CodeMovedOn, Edit, plant


@pytest.mark.parametrize("bug", BUGS, ids=[bug.name for bug in BUGS])
def test_a_bug_can_be_planted(bug, tmp_path):
    package = tmp_path / "copilotlab"
    shutil.copytree(ROOT / "copilotlab", package, ignore=shutil.ignore_patterns("__pycache__"))

    plant(bug, package)

    for file in {edit.file for edit in bug.edits}:
        planted = (package / file).read_text()
        assert planted != (ROOT / "copilotlab" / file).read_text()
        if file.endswith(".py"):
            compile(planted, file, "exec")


def test_the_bugs_have_names_of_their_own():
    assert len(BUGS) >= 10
    assert max(Counter(bug.name for bug in BUGS).values()) == 1
    assert all(bug.why for bug in BUGS)


def test_code_that_moved_on_is_said(tmp_path):
    (tmp_path / "replica.py").write_text("twice = 1\ntwice = 1\n")
    for text, times in (("once = 1", 0), ("twice = 1", 2)):
        with pytest.raises(CodeMovedOn, match=f"stands {times} times in replica.py, expected once"):
            plant(BUGS[0]._replace(edits=(Edit("replica.py", text, ""),)), tmp_path)
