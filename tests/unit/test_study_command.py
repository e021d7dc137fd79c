"""`copilotlab study`: options from the function's parameters, files by suffix, errors in words."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import polars as pl
import pytest

from copilotlab import Policy, studies
from copilotlab.cli import main
from copilotlab.studies import StudyNotInstalled, load_study
from copilotlab.studies.result_cache import _anew


def example(
    names: Sequence[str] = ("a", "b"),
    *,
    policy: Policy | None = None,
    timeout: float = 1.5,
    limit: int | None = None,
    fault: Literal["kill", "pause"] = "kill",
    renew: bool = True,
    seed: int = 0,
) -> pl.DataFrame:
    """An example.

    names: some names.
    """
    given = {"names": list(names), "policy": policy, "timeout": timeout, "limit": limit, "fault": fault}
    given |= {"renew": renew, "seed": seed, "anew": _anew.get()}
    return pl.DataFrame({"given": [json.dumps(given)]})


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(studies.STUDIES, "example", __name__)
    monkeypatch.setattr(
        "copilotlab.studies.import_module", lambda _: __import__("types").SimpleNamespace(example=example)
    )


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """The command sets it for its process, which here is that of the tests."""
    log = logging.getLogger("copilotlab")
    level = log.level
    yield
    log.setLevel(level)


def given(path: object) -> dict[str, object]:
    return json.loads(pl.read_parquet(path)["given"].item())  # type: ignore[arg-type]


def test_the_parameters_are_the_options(tmp_path: object) -> None:
    out = f"{tmp_path}/x.parquet"
    assert main(["study", "example", "--out", out]) == 0
    defaults = {"names": ["a", "b"], "policy": None, "timeout": 1.5, "limit": None, "fault": "kill", "renew": True}
    assert given(out) == {**defaults, "seed": 0, "anew": False}
    words = "--names x y --timeout 2 --limit 3 --fault pause --no-renew --seed 7 --anew --out"
    assert main(["study", "example", *words.split(), out]) == 0
    chosen = {"names": ["x", "y"], "policy": None, "timeout": 2.0, "limit": 3, "fault": "pause", "renew": False}
    assert given(out) == {**chosen, "seed": 7, "anew": True}


@pytest.mark.parametrize("suffix", ["parquet", "csv", "ndjson"])
def test_the_format_follows_the_suffix(tmp_path: object, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = f"{tmp_path}/x.{suffix}"
    assert main(["study", "example", "--out", out]) == 0
    read = {"parquet": pl.read_parquet, "csv": pl.read_csv, "ndjson": pl.read_ndjson}[suffix]
    assert read(out).equals(example())
    assert capsys.readouterr() == ("", f"1 rows in {out}\n")


def test_without_a_file_it_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "example"]) == 0
    assert "given" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["study", "nothing"], "invalid choice: 'nothing'"),
        (["study", "example", "--policy", "x"], "unrecognized arguments: --policy x"),
        (["study", "example", "--timeout", "soon"], "invalid float value: 'soon'"),
        (["study", "example", "--fault", "flood"], "invalid choice: 'flood'"),
        (["study", "example", "--out", "x.txt"], "--out x.txt: expected a name that ends in .parquet, .csv, .ndjson"),
        (["study", "example", "--out", "/no/such/x.csv"], "in a folder that exists"),
    ],
)
def test_wrong_words_end_with_code_2_before_anything_is_measured(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_help_shows_what_the_study_says_of_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["study", "example", "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "names: some names." in said
    assert "--no-renew" in said


def test_an_error_of_the_study_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.undo()
    assert main(["study", "models", "--charts", "only.csv"]) == 2
    assert capsys.readouterr().err == (
        "copilotlab: charts, questions and judgements belong together: give all three, or none of them\n"
    )


def test_a_file_that_is_broken_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.undo()
    path = tmp_path / "questions.parquet"
    path.write_text("no parquet")
    words = ["study", "models", "--charts", str(path), "--questions", str(path), "--judgements", str(path)]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"copilotlab: questions ({path}) cannot be read as parquet: ")
    assert said.count("\n") == 1


def test_every_registered_study_loads_and_shows_its_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    import inspect

    monkeypatch.undo()
    for name in studies.STUDIES:
        parameters = inspect.signature(load_study(name)).parameters
        assert "progress" in parameters
        assert all(parameter.default is not parameter.empty for parameter in parameters.values())


def test_the_help_says_of_each_study_what_it_measures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    with pytest.raises(SystemExit, match="0"):
        main(["study", "--help"])
    told = capsys.readouterr().out
    assert list(studies.ABOUT) == list(studies.STUDIES)
    assert [f"  {name} " in told and about in told for name, about in studies.ABOUT.items()] == [True] * len(
        studies.STUDIES
    )


def test_an_absent_package_is_said_with_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(name: str) -> None:
        raise ModuleNotFoundError("No module named 'bm25s'", name="bm25s")

    monkeypatch.setattr("copilotlab.studies.import_module", import_module)
    with pytest.raises(StudyNotInstalled, match=r"'models' needs bm25s: pip install 'copilotlab\[studies\]'"):
        load_study("models")
    with pytest.raises(ValueError, match="no study is called 'nothing'; there are: models"):
        load_study("nothing")


@pytest.mark.parametrize("name", ["timeouts", "ablation"])
def test_a_package_that_only_the_simulation_needs_is_asked_for_too(name: str) -> None:
    code = f"""
import sys
class Absent:
    def find_spec(self, name, path, target=None):
        if name == "lupa":
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
from copilotlab.cli import main
sys.exit(main(["study", {name!r}, "--help"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"copilotlab: the study {name!r} needs lupa: pip install 'copilotlab[studies]'\n"


def test_the_demo_is_imported_only_to_run_it() -> None:
    code = (
        "import sys; from copilotlab.cli import main; "
        "main(['study', 'ablation', '--fields', 'no-such']); print('copilotlab.lab.demo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "fields has 'no-such'" in done.stderr
    assert done.stdout == "False\n"


# Real ones, from the words to the file


@pytest.fixture
def unregistered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.undo()
    monkeypatch.setenv("COPILOTLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "measured.parquet"


def test_the_ablation_runs_and_is_read_again_unless_it_is_played_anew(
    unregistered: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["study", "ablation", "--fields", "claim", "--no-progress", "--out", str(unregistered)]
    assert main(words) == 0
    assert capsys.readouterr() == ("", f"2 rows in {unregistered}\n")
    measured = pl.read_parquet(unregistered)
    assert measured.select("field", "on", "holds").rows() == [("claim", False, False), ("claim", True, True)]

    def play(field: str, *, on: bool) -> None:
        raise ValueError(f"{field} is played")

    monkeypatch.setattr("copilotlab.studies.ablation.play", play)
    assert main(words) == 0
    assert pl.read_parquet(unregistered).equals(measured)
    assert main([*words, "--anew"]) == 2
    assert capsys.readouterr().err.endswith("copilotlab: claim is played\n")


def test_the_timeouts_run(unregistered: Path) -> None:
    words = ["study", "timeouts", "--batch-timeouts", "60", "--charts", "5000", "--fates", "none", "--policies"]
    assert main([*words, "renewal on", "--no-progress", "--out", str(unregistered)]) == 0
    (row,) = pl.read_parquet(unregistered).iter_rows(named=True)
    assert (row["policy"], row["timeout"], row["charts"], row["fate"]) == ("renewal on", 60.0, 5000, "none")
    assert row["second_holders"] == row["lost"] == 0
