"""The scripts of examples/ run as they are, each short enough to be read at once."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = {
    "ask_in_asyncio": r"ann: .*flights.*\nbob: .+\neve: nothing that you may see",
    "find_charts": r"1\. Gender pay gap",
    "lose_redis": r"node-0: local.*\nnode-1: local.*\nnode-2: local.*\nagreed again after \d",
    "own_model": r"wordllama: .+\nletter-pairs: Profitability by product",
    "two_processes": r"first process: 2 embedded here\nthe second process: 'Patients.*', 0 embedded here",
    "watch_a_node": r"redis_away: (.*\n)+stopped: \n(.*\n)*copilotlab_local\{node=\"web-1\"\} 1\n",
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_and_shows_what_it_says(name: str, tmp_path: Path) -> None:
    script = ROOT / "examples" / f"{name}.py"
    done = subprocess.run(
        [sys.executable, script, "wordllama"], capture_output=True, text=True, timeout=300, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(EXAMPLES[name], done.stdout), done.stdout


def test_every_example_is_tried_and_can_be_read_at_once() -> None:
    scripts = sorted((ROOT / "examples").glob("*.py"))
    assert [script.stem for script in scripts] == sorted(EXAMPLES)
    assert [script.name for script in scripts if len(script.read_text().splitlines()) >= 40] == []
