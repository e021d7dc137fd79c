"""Results of studies on disk: what counts as the same measurement, and what is never kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from copilotlab import Policy, load_embedder
from copilotlab.cache import CacheError
from copilotlab.studies import result_cache
from copilotlab.studies.result_cache import cached, measured_anew

FRAME = pl.DataFrame({"node": ["a", None], "seconds": [1.5, float("inf")], "charts": [[1, 2], []]})


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COPILOTLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def counting(version: int = 1, code: bool = True) -> tuple[Callable[..., pl.DataFrame], list[object]]:
    calls: list[object] = []

    @cached(version=version, code=code)
    def measure(what: object, *, seed: int = 0, progress: bool = True) -> pl.DataFrame:
        """Measures."""
        calls.append((what, seed))
        return FRAME

    return measure, calls


def test_equal_arguments_are_measured_once_and_the_frame_comes_back_as_it_was() -> None:
    measure, calls = counting()
    first = measure("kill", seed=3)
    again = measure(what="kill", progress=False, seed=3)
    assert calls == [("kill", 3)]
    assert again.schema == first.schema
    assert again.equals(FRAME)


def test_another_process_would_find_it_under_the_same_name(empty_cache: Path) -> None:
    counting()[0]("kill")
    (file,) = (empty_cache / "studies").iterdir()
    counting()[0]("kill")
    assert list((empty_cache / "studies").iterdir()) == [file]
    assert file.name.startswith("measure-v1-")


@pytest.mark.parametrize(
    "values",
    [
        (1, 1.0, True, "1", None, [1], {"1": 1}),
        (Policy(), Policy(batch_timeout=5.0), Policy.seed()),
        (load_embedder("hash"), load_embedder("hash", dim=8)),
        (np.zeros(2), np.zeros(2, np.float32), np.zeros((1, 2)), np.ones(2)),
        (FRAME, FRAME.head(1), FRAME.with_columns(pl.col("seconds").cast(pl.Float32)), FRAME.rename({"node": "n"})),
        (("a", "b"), ("ab",), ("b", "a")),
    ],
)
def test_different_arguments_are_different_measurements(values: tuple[object, ...]) -> None:
    measure, calls = counting()
    for value in (*values, *values):
        measure(value)
    assert len(calls) == len(values)


def test_equal_content_is_the_same_measurement_whatever_object_holds_it() -> None:
    measure, calls = counting()
    for frame in (FRAME, pl.concat([FRAME.head(1), FRAME.tail(1)], rechunk=False)):
        measure(frame)
    for policy in (Policy(redis_timeout=1.0), Policy(redis_timeout=1.0)):
        measure(policy)
    for listed in (["a", 1], ("a", 1)):
        measure(listed)
    assert len(calls) == 3


def test_a_file_counts_by_what_is_in_it(tmp_path: Path) -> None:
    measure, calls = counting()
    for content in ("a", "a", "b"):
        (tmp_path / "file").write_text(content)
        measure(tmp_path / "file")
    assert len(calls) == 2


def test_a_new_version_measures_again() -> None:
    measured = []
    for version in (1, 1, 2):
        measure, calls = counting(version)
        measure("kill")
        measured.append(len(calls))
    assert measured == [1, 0, 1]


@pytest.mark.parametrize(("code", "measured"), [(True, [1, 0, 1]), (False, [1, 0, 0])])
def test_changed_code_measures_again_where_it_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: bool, measured: list[int]
) -> None:
    file = tmp_path / "study.py"
    monkeypatch.setitem(globals(), "__file__", str(file))
    seen = []
    for content in ("ROWS = 1", "ROWS = 1", "ROWS = 2"):
        file.write_text(content)
        result_cache._code_of.cache_clear()  # as in another process
        measure, calls = counting(code=code)
        measure("kill")
        seen.append(len(calls))
    assert seen == measured


def test_measured_anew_measures_and_keeps() -> None:
    measure, calls = counting()
    measure("kill")
    with measured_anew():
        measure("kill")
    measure("kill")
    assert len(calls) == 2


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_did_not_end_is_not_kept(empty_cache: Path, error: type[BaseException]) -> None:
    @cached(version=1)
    def measure() -> pl.DataFrame:
        raise error

    with pytest.raises(error):
        measure()
    assert not list(empty_cache.rglob("*.parquet*"))


def test_what_the_cache_cannot_tell_apart_is_refused() -> None:
    with pytest.raises(TypeError, match=r"what=<object .*: the cache cannot tell a object from another; give"):
        counting()[0](object())


def test_the_function_stays_what_it_was() -> None:
    measure, _ = counting()
    assert measure.__name__ == "measure"
    assert measure.__doc__ == "Measures."


def test_a_study_that_cannot_be_kept_says_so_before_it_measures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COPILOTLAB_CACHE", str(tmp_path / "file"))

    @cached(version=1)
    def study(seed: int) -> pl.DataFrame:
        pytest.fail("measured in vain")

    with pytest.raises(CacheError, match="COPILOTLAB_CACHE"):
        study(1)
