"""What is made once: where it lies, never half made, by one process at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from copilotlab.cache import cache_folder, made_once

MAKER = """
import sys
from pathlib import Path
from copilotlab.cache import made_once

def make(folder):
    with open(sys.argv[2], "a") as log:
        log.write("made\\n")
    print("making", flush=True)
    sys.stdin.readline()
    (folder / "file").write_text("whole")

folder = made_once(Path(sys.argv[1]), make)
print((folder / "file").read_text(), flush=True)
"""


def test_the_environment_chooses_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COPILOTLAB_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("COPILOTLAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    if sys.platform == "linux":
        assert cache_folder() == tmp_path / "xdg" / "copilotlab"
    assert not list(tmp_path.iterdir())


def test_a_folder_is_made_once(tmp_path: Path) -> None:
    calls: list[Path] = []

    def make(folder: Path) -> None:
        calls.append(folder)
        (folder / "file").write_text("whole")

    target = tmp_path / "deep" / "folder"
    assert made_once(target, make) == made_once(target, make) == target
    assert (target / "file").read_text() == "whole"
    assert len(calls) == 1
    assert calls[0] != target


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_was_not_finished_is_not_there_and_is_made_again(tmp_path: Path, error: type[BaseException]) -> None:
    def fail(folder: Path) -> None:
        (folder / "rest").write_text("half")
        raise error

    with pytest.raises(error):
        made_once(tmp_path / "folder", fail)
    assert not (tmp_path / "folder").exists()
    made = made_once(tmp_path / "folder", lambda folder: None)
    assert list(made.iterdir()) == []


def test_two_processes_that_want_the_same_make_it_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MAKER, str(tmp_path / "folder"), str(tmp_path / "log")]
    start = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **start) as first:  # type: ignore[call-overload]
        assert first.stdout.readline() == "making\n"
        with subprocess.Popen(command, **start) as second:  # type: ignore[call-overload]
            first.communicate("go\n", timeout=60)
            said, _ = second.communicate("go\n", timeout=60)
    assert said == "whole\n"
    assert (tmp_path / "log").read_text() == "made\n"


def test_a_process_that_is_killed_leaves_nothing_that_is_taken_for_whole(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MAKER, str(tmp_path / "folder"), str(tmp_path / "log")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "making\n"
        killed.kill()
    made = made_once(tmp_path / "folder", lambda folder: (folder / "file").write_text("again") and None)
    assert (made / "file").read_text() == "again"
