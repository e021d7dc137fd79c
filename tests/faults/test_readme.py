"""The code of the README runs from top to bottom, twice, prints what it shows, and passes strict type checks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from copilotlab import LocalRedis
from copilotlab.service.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
REDIS = "redis://127.0.0.1:6379/0"
LIMIT = 300
MARK = "=== block {} ==="


def blocks() -> list[tuple[str, str]]:
    """Each block of code, and what the README says that it prints."""
    found = re.findall(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", README, flags=re.MULTILINE | re.DOTALL)
    return [(code, printed) for code, printed in found]


def test_the_readme_has_blocks_and_its_own_data_come_first():
    assert len(blocks()) == README.count("```python") == 6
    assert sum(bool(printed) for _, printed in blocks()) == README.count("```text") == 5
    assert "from_frame(" in "\n".join(README.splitlines()[:10])


@pytest.mark.timeout(3 * LIMIT)
def test_the_readme_runs_twice_against_the_same_redis_and_prints_what_it_shows(tmp_path):
    parts = [f"print({MARK.format(number)!r})\n{code}" for number, (code, _) in enumerate(blocks())]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    with LocalRedis(tcp=True) as server:
        (tmp_path / "readme.py").write_text("\n".join(parts).replace(REDIS, server.url))
        for run in ("first", "second"):
            done = subprocess.run(
                [sys.executable, "readme.py"],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=LIMIT,
                check=False,
            )
            assert done.returncode == 0, f"the {run} run: {done.stderr[-3000:]}"
            printed = re.split(r"=== block \d+ ===\n", done.stdout)[1:]
            assert printed == [shown for _, shown in blocks()], f"the {run} run; {done.stderr[-3000:]}"
            assert "Traceback" not in done.stderr


@pytest.mark.timeout(2 * LIMIT)
def test_the_readme_passes_strict_type_checks(tmp_path):
    script = tmp_path / "readme.py"
    script.write_text("\n".join(code for code, _ in blocks()))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml"), str(script)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_the_commands_that_begin_a_service_are_accepted_as_they_stand(monkeypatch):
    shell = re.search(r"^    export COPILOTLAB_TOKEN=(.*)\n    copilotlab serve (.*)\n", README, flags=re.MULTILINE)
    assert shell is not None
    said = subprocess.run(
        ["bash", "-c", f"echo {shell[1].replace('python ', sys.executable + ' ')}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=LIMIT,
    )
    monkeypatch.setenv("COPILOTLAB_TOKEN", said.stdout.strip())
    settings, _ = load_settings(Settings, shell[2].split())
    assert (settings.model, len(settings.tokens())) == ("wordllama", 1)
