"""The study of batch timeouts: its figures agree with the protocol's rules, and the advice with its figures."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from copilotlab import Policy
from copilotlab.studies.interrupted import Case, Fate, simulated
from copilotlab.studies.timeouts import HEARTBEAT, advise, beside_real, quick_case, timeouts

MINUTE = 60.0


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COPILOTLAB_CACHE", str(tmp_path / "cache"))


def measured(policy: str, fate: str, timeout: float = 300.0, charts: int = 100_000) -> dict[str, object]:
    frame = timeouts([timeout], charts=[charts], fates=[fate], policies=[policy], progress=False)
    return frame.row(0, named=True)


def test_with_renewal_a_long_rebuild_has_one_holder_under_a_short_lease() -> None:
    row = measured("renewal on", "none", timeout=60.0)
    assert row["rebuild"] == pytest.approx(714.3, abs=0.1)
    assert row["second_holders"] == row["wasted"] == row["lost"] == row["beside"] == 0
    assert abs(row["delay"]) < 0.1 * row["rebuild"]
    assert row["staleness"] < MINUTE


@pytest.mark.parametrize("fate", ["dies", "freezes"])
@pytest.mark.parametrize(("timeout", "charts"), [(60.0, 25_000), (60.0, 100_000), (1200.0, 100_000)])
def test_with_renewal_a_death_or_a_freeze_costs_four_heartbeats_whatever_the_timeout_and_the_size(
    fate: str, timeout: float, charts: int
) -> None:
    row = measured("renewal on", fate, timeout, charts)
    assert row["second_holders"] == 1
    assert fate == "freezes" or row["delay"] < MINUTE  # all are complete only once it moves again
    promised = advise(charts, 140.0, MINUTE, policy=Policy(heartbeat_interval=HEARTBEAT), timeout=timeout)
    chunk = row["rebuild"] / 48  # the study's is longer than the policy's
    assert 2 * HEARTBEAT < row["staleness"] <= promised.staleness + chunk + HEARTBEAT < MINUTE


@pytest.mark.parametrize(("timeout", "charts"), [(60.0, 25_000), (60.0, 100_000), (300.0, 100_000)])
def test_with_renewal_a_holder_that_hangs_and_beats_costs_the_timeout_whatever_the_size(
    timeout: float, charts: int
) -> None:
    row = measured("renewal on", "hangs", timeout, charts)
    assert row["second_holders"] == 1
    assert row["wasted"] == row["beside"] == 0
    assert timeout - 30 < row["staleness"] < timeout + MINUTE


def test_without_renewal_the_lease_changes_hands_as_often_as_it_fits_into_the_rebuild() -> None:
    assert measured("renewal off", "none", timeout=150.0)["second_holders"] == 4
    assert measured("renewal off", "none", timeout=1200.0)["second_holders"] == 0


def test_who_hangs_for_less_than_the_timeout_keeps_the_lease() -> None:
    assert measured("renewal on", "hangs", timeout=600.0)["second_holders"] == 0


def test_as_written_only_time_ends_a_lease() -> None:
    assert measured("as written", "dies", timeout=1200.0)["complete"] > 1200
    assert measured("renewal off", "dies", timeout=1200.0)["complete"] < 714.3 + MINUTE


def test_as_written_a_second_holder_embeds_beside_the_first_and_edits_are_lost() -> None:
    row = measured("as written", "none")
    assert row["second_holders"] >= 1
    assert row["beside"] > 2 * MINUTE
    assert row["wasted"] > 50_000
    assert row["lost"] > 0
    assert row["staleness"] is row["recovery"] is row["delay"] is None


def test_a_seed_says_when_who_edits_what() -> None:
    case = replace(quick_case("renewal off", "dies"), tick=0.2)
    assert simulated.__wrapped__(case).equals(simulated.__wrapped__(case))
    assert not simulated(case).equals(simulated(replace(case, seed=1)))


def test_who_neither_dies_nor_freezes_has_no_moment() -> None:
    brief = {"charts": [5_000], "frozen_for": 80.0, "policies": ["renewal on"], "progress": False}
    frame = timeouts([60.0], moments=[0.2, 0.8], **brief)
    assert frame.select("fate", "moment").rows() == [
        ("none", None),
        ("dies", 0.2),
        ("dies", 0.8),
        ("freezes", 0.2),
        ("freezes", 0.8),
        ("hangs", 0.2),
        ("hangs", 0.8),
    ]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"policies": ["lax"]}, "policies has 'lax'"),
        ({"fates": ["sleeps"]}, r"fates has \['sleeps'\]: expected some of none, dies, freezes, hangs"),
        ({"moments": [1.0]}, "above 0 and below 1"),
        ({"charts": [0]}, "charts / rate is 0.0"),
        ({"frozen_for": -1.0}, "frozen_for is -1.0"),
        ({"batch_timeouts": [1.0]}, "batch_timeouts has 1: .*expected at least"),
    ],
)
def test_what_makes_no_sense_is_named(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        timeouts(**{"charts": [100_000], "progress": False, **wrong})


@pytest.mark.parametrize(("fate", "at_least"), [("freezes", 0.4), ("hangs", 1.5)])  # silence 0.85 s, timeout 2 s
def test_simulated_and_real_agree(monkeypatch: pytest.MonkeyPatch, fate: str, at_least: float) -> None:
    monkeypatch.setattr("copilotlab.studies.timeouts.QUICK_CASES", (("renewal on", fate),))
    frame = beside_real(progress=False)
    by_measure = {row["measure"]: row for row in frame.iter_rows(named=True)}
    assert by_measure["second holders"]["real"] == by_measure["second holders"]["simulated"] == 1
    assert min(by_measure["staleness"]["real"], by_measure["staleness"]["simulated"]) >= at_least


# The advice


def test_with_renewal_neither_size_nor_speed_of_a_large_catalogue_matters() -> None:
    small, large = advise(25_000, 140.0, 120.0), advise(250_000, 140.0, 120.0)
    assert small.timeout == large.timeout == 32.0
    assert small.staleness == large.staleness < small.hung == large.hung < 120
    assert small.tolerated
    assert large.handovers == 0
    assert large.rebuild > 10 * MINUTE
    assert small.sentence.startswith("With a batch_timeout of 32 s: a chart that is saved when the holder dies or fre")


def test_the_timeout_is_for_who_hangs_and_not_for_who_dies() -> None:
    short, long = advise(100_000, 140.0, 60.0, timeout=30.0), advise(100_000, 140.0, 60.0, timeout=600.0)
    assert short.silence == long.silence == 3.25
    assert short.staleness == long.staleness < 15
    assert long.hung - short.hung == 570


def test_without_renewal_the_lease_outlasts_the_rebuild_or_changes_hands() -> None:
    off = Policy(renew_lease=False)
    patient, strict = advise(100_000, 140.0, 3_600.0, policy=off), advise(100_000, 140.0, 120.0, policy=off)
    assert patient.timeout > patient.rebuild
    assert patient.handovers == 0
    assert strict.timeout < 120
    assert strict.handovers == 6
    assert strict.sentence.endswith("the lease changes hands 6 times anyway.")


def test_too_little_tolerance_is_said() -> None:
    advice = advise(100_000, 140.0, 5.0)
    assert advice.timeout == 11.0  # outlasts a pause, all the same
    assert not advice.tolerated
    assert "more than is tolerated" in advice.sentence


def test_a_timeout_that_was_chosen_has_its_consequences_too() -> None:
    written = advise(100_000, 140.0, 60.0, timeout=300.0)
    assert written.timeout == 300.0
    assert written.staleness < 12
    assert 300 < written.hung < 310
    assert not written.tolerated


@pytest.mark.parametrize("moment", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("renew", [True, False])
@pytest.mark.parametrize("fate", ["dies", "freezes", "hangs"])
def test_the_advice_holds_in_the_study(fate: Fate, moment: float, renew: bool) -> None:
    policy = Policy(renew_lease=renew, chunk_size=2)
    advice = advise(144, 0.3, 150.0, longest_pause=20.0, policy=policy)
    assert advice.tolerated
    case = Case(policy=replace(policy, batch_timeout=advice.timeout), rebuild=advice.rebuild, fate=fate, moment=moment)
    row = simulated(case).row(0, named=True)
    promised, least = (advice.hung, advice.timeout / 2) if fate == "hangs" else (advice.staleness, advice.silence / 2)
    assert least * renew < row["staleness"] <= promised
    assert row["recovery"] <= advice.recovery + row["edits"] / 0.3  # an edit is one text more to embed
    assert row["second_holders"] <= advice.handovers + 1
    assert row["wasted"] * case.pieces <= advice.wasted


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"catalogue_size": 0}, "catalogue_size=0"),
        ({"embedding_rate": -1.0}, "embedding_rate=-1.0"),
        ({"tolerated_staleness": 0.0}, "tolerated_staleness=0.0"),
        ({"longest_pause": 0.0}, "longest_pause=0.0"),
        ({"timeout": 0.0}, "timeout=0.0"),
        ({"catalogue_size": math.inf}, "catalogue_size=inf: expected a number above 0, and finite"),
        ({"embedding_rate": math.inf}, "embedding_rate=inf: expected a number above 0, and finite"),
        ({"tolerated_staleness": math.inf}, "tolerated_staleness=inf: expected a number above 0, and finite"),
        ({"longest_pause": math.nan}, "longest_pause=nan: expected a number above 0, and finite"),
        ({"timeout": math.inf}, "timeout=inf: expected a number above 0, and finite"),
        ({"catalogue_size": "1000"}, "catalogue_size='1000': expected a number"),
        ({"embedding_rate": None}, "embedding_rate=None: expected a number"),
        ({"timeout": True}, "timeout=True: expected a number"),
        ({"policy": Policy.seed()}, "without fenced a second holder works beside the first at any timeout"),
    ],
)
def test_advice_asks_for_what_makes_sense(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        advise(**{"catalogue_size": 100, "embedding_rate": 10.0, "tolerated_staleness": 60.0, **wrong})


def test_advice_takes_the_numbers_of_arrays_and_no_policy_but_a_policy() -> None:
    assert advise(np.int64(25_000), np.float32(140.0), np.int32(120)).timeout == 32.0
    with pytest.raises(TypeError, match="policy='seed': expected a Policy"):
        advise(100, 10.0, 60.0, policy="seed")  # type: ignore[arg-type]
