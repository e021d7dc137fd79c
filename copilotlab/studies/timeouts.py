"""How long may a lease last? Rebuilds whose holder lives, dies, freezes or hangs, under leases of many lengths.

from copilotlab.studies.timeouts import advise, timeouts

measured = timeouts()                                    # hours of protocol, on a simulated server
print(advise(100_000, 140.0, 60.0).sentence)             # charts, embeddings a second, seconds
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from math import ceil, isfinite
from numbers import Real
from typing import NamedTuple

import polars as pl
from tqdm.auto import tqdm

from copilotlab.markup import DOUBTFUL, GOOD, card
from copilotlab.protocol.link import SILENT_BEATS
from copilotlab.protocol.policy import Policy, check_policy
from copilotlab.protocol.worklist import CHUNKS_PER_WINDOW
from copilotlab.reasons import short
from copilotlab.studies.interrupted import Case, Fate, real, simulated

POLICIES = {"as written": Policy.seed(), "renewal off": Policy(renew_lease=False), "renewal on": Policy()}
FATES: tuple[Fate, ...] = ("none", "dies", "freezes", "hangs")
WRITTEN = 300.0  # seconds: the five minutes of the written design
HEARTBEAT = 5.0  # seconds, five times the default: heartbeats are what a simulated hour costs
SAFETY = 3.0  # how many of the holder's longest pauses a lease outlasts

# A catalogue in small: how many charts stand for it, the least number of chunks, and chunks to a lease.
PIECES, LEAST_CHUNKS, CHUNKS_TO_A_LEASE = 144, 48, 4

# Real time is dear: the same protocol, with all times about a hundred times shorter.
QUICK = {
    "batch_timeout": 2.0,
    "heartbeat_interval": 0.2,
    "probe_interval": 0.1,
    "claim_timeout": 2.0,
    "adopt_after": 3.0,
    "chunk_size": 4,
}
QUICK_CASES: tuple[tuple[str, Fate], ...] = (
    ("renewal on", "none"),
    ("renewal on", "dies"),
    ("renewal on", "freezes"),
    ("renewal on", "hangs"),
    ("renewal off", "none"),
    ("renewal off", "dies"),
    ("as written", "none"),
)


def timeouts(
    batch_timeouts: Sequence[float] = (30.0, 60.0, 150.0, WRITTEN, 600.0, 1200.0),
    *,
    charts: Sequence[int] = (10_000, 50_000, 100_000),
    rate: float = 140.0,
    fates: Sequence[str] = FATES,
    moments: Sequence[float] = (0.5,),
    frozen_for: float = 400.0,
    policies: Sequence[str] = tuple(POLICIES),
    seed: int = 0,
    progress: bool = True,
) -> pl.DataFrame:
    """Simulate rebuilds of whole catalogues under leases of many lengths; one row a case.

    Parameters:
        batch_timeouts: seconds that a lease lasts (six, from 30 to 1,200).
        charts: sizes of the catalogue (10,000, 50,000, 100,000).
        rate: embeddings a second (140: MiniLM through torch on two cores).
        fates: of the node that holds the lease: "none", "dies", "freezes" (all of it stands still), "hangs" (its model
            hangs while it still beats); all four.
        moments: when it meets its fate, as fractions of the rebuild (0.5).
        frozen_for: seconds for which a node freezes or its model hangs (400).
        policies: "as written", "renewal off" (all other remedies on), "renewal on" (all).
        seed: of when, where and what is edited meanwhile (0).
        progress: show a bar.

    Returns:
        policy, timeout (s), charts, rate, rebuild (s: what an undisturbed one takes), fate, moment (null for "none");
        complete (s from the beginning of the rebuild until every living node has every chart), recovery (s until all of
        them hold what the repository holds; null: not within five minutes after they were complete), delay (recovery
        beyond the rebuild), staleness (s: the longest time from the saving of a chart until every living node found it;
        null: not within that time), lost (edits that some node did not find), wasted (embeddings made beyond the first
        of each text), second_holders (batches begun after the first, until the nodes were complete), beside (s in which
        two were under way), hours (simulated).

        144 charts stand for a catalogue, in at least 48 chunks, and at least four chunks to a lease. A chunk is
        announced when it is begun, so seconds are right to within one chunk for each time that the lease changes hands.
        Heartbeats come every 5 s, and the nodes are looked at as often.

    Raises:
        ValueError: for an unknown policy or fate, a number that is not above 0, a moment that is not below 1, or a
            timeout that is too short to be simulated for so long a rebuild.
    """
    cases = []
    for name, timeout, size in product(policies, batch_timeouts, charts):
        for fate, moment in _fates(fates, moments):
            cases.append((name, size, _case(name, timeout, size / rate, fate, moment, frozen_for, seed)))
    rows = []
    for name, size, case in tqdm(cases, desc="timeouts", unit="case", disable=None if progress else True):
        seen = simulated(case).select(
            pl.lit(name).alias("policy"),
            pl.lit(case.policy.batch_timeout).alias("timeout"),
            pl.lit(size).alias("charts"),
            pl.lit(rate).alias("rate"),
            pl.lit(case.rebuild).alias("rebuild"),
            pl.lit(case.fate).alias("fate"),
            pl.lit(None if case.fate == "none" else case.moment, dtype=pl.Float64).alias("moment"),
            "complete",
            "recovery",
            (pl.col("recovery") - case.rebuild).alias("delay"),
            "staleness",
            "lost",
            (pl.col("wasted") * size).round().cast(pl.Int64).alias("wasted"),
            "second_holders",
            "beside",
            (pl.col("lasted") / 3600).alias("hours"),
        )
        rows.append(seen)
    return pl.concat(rows)


def _fates(fates: Sequence[str], moments: Sequence[float]) -> list[tuple[Fate, float]]:
    unknown = set(fates) - set(FATES)
    if unknown:
        raise ValueError(f"fates has {sorted(unknown)}: expected some of {', '.join(FATES)}")
    if not all(0 < moment < 1 for moment in moments):
        raise ValueError(f"moments={list(moments)!r}: expected fractions of the rebuild, above 0 and below 1")
    met = [fate for fate in FATES if fate in fates]
    return [(fate, moment) for fate in met for moment in (moments if fate != "none" else [0.5])]


def _case(name: str, timeout: float, rebuild: float, fate: Fate, moment: float, frozen_for: float, seed: int) -> Case:
    if name not in POLICIES:
        raise ValueError(f"policies has {short(name)}: expected some of {', '.join(POLICIES)}")
    for what, value in (("charts / rate", rebuild), ("frozen_for", frozen_for)):
        if not value > 0:
            raise ValueError(f"{what} is {short(value)}: expected a number above 0")
    chunk = int(PIECES * min(1 / LEAST_CHUNKS, timeout / CHUNKS_TO_A_LEASE / rebuild))
    if chunk < 1:
        least = CHUNKS_TO_A_LEASE * rebuild / PIECES
        raise ValueError(
            f"batch_timeouts has {timeout:g}: a rebuild of {rebuild:,.0f} s is simulated in {PIECES} steps, and "
            f"a lease has to last for {CHUNKS_TO_A_LEASE} of them: expected at least {least:,.0f} s"
        )
    return Case(
        policy=replace(POLICIES[name], batch_timeout=timeout, heartbeat_interval=HEARTBEAT, chunk_size=chunk),
        rebuild=rebuild,
        pieces=PIECES,
        fate=fate,
        moment=moment,
        frozen_for=frozen_for,
        tick=HEARTBEAT,
        seed=seed,
    )


def beside_real(*, seed: int = 0, progress: bool = True) -> pl.DataFrame:
    """Play the same cases simulated and in real time, on a real server: does the simulation tell the truth?

    A rebuild of some five seconds runs under a lease of two, with seven pairs of a policy and a fate. seed: of the
    edits. progress: show a bar.
    Columns: policy, fate, measure ("recovery", "staleness", "beside" in s, "wasted" in rebuilds, "second holders"),
    simulated, real, ratio (real to simulated; null if one of them is null, or the simulated one 0). It takes about a
    minute.
    """
    frames = []
    for name, fate in tqdm(QUICK_CASES, desc="in real time", unit="case", disable=None if progress else True):
        case = quick_case(name, fate, seed=seed)
        frames.append(
            pl.concat([_measures(simulated(case), "simulated"), _measures(real(case), "real")], how="align").select(
                pl.lit(name).alias("policy"), pl.lit(fate).alias("fate"), pl.all()
            )
        )
    ratio = pl.when(pl.col("simulated") > 0).then(pl.col("real") / pl.col("simulated"))
    return pl.concat(frames).with_columns(ratio.alias("ratio"))


def quick_case(name: str, fate: Fate, *, seed: int = 0) -> Case:
    """Make a case that takes seconds: a rebuild of 4.8 s under a lease of 2 s; a freeze or a hang lasts for 3 s.

    name: one of `POLICIES`. seed: of the edits.
    """
    policy = replace(POLICIES[name], **QUICK)  # type: ignore[arg-type]
    return Case(
        policy=policy, rebuild=4.8, pieces=96, fate=fate, frozen_for=3.0, tick=0.05, patience=4.0, limit=60.0, seed=seed
    )


def _measures(seen: pl.DataFrame, where: str) -> pl.DataFrame:
    chosen = seen.select("recovery", "staleness", "beside", "wasted", pl.col("second_holders").alias("second holders"))
    order = pl.Enum(chosen.columns)
    return chosen.cast(pl.Float64).unpivot(variable_name="measure", value_name=where).cast({"measure": order})


class Advice(NamedTuple):
    """What `advise` says. All times are in seconds, for the worst moment at which something can happen to the holder.

    timeout: to set. rebuild: an undisturbed one. silence: without a sign of life, after which the holder loses its
    lease. staleness: of a chart saved when the holder dies or freezes. hung: of one saved when the holder's model hangs
    while it still beats. recovery: from the beginning of the rebuild until all nodes have everything, whichever of
    these happens. handovers: how often the lease runs out while its holder is at work. wasted: embeddings made twice,
    at most. tolerated: whether staleness and hung are within what was asked for. sentence: all this in words.
    """

    timeout: float
    rebuild: float
    silence: float
    staleness: float
    hung: float
    recovery: float
    handovers: int
    wasted: int
    tolerated: bool
    sentence: str

    def _repr_html_(self) -> str:
        facts = {
            "An undisturbed rebuild": f"{self.rebuild:,.0f} s",
            "Without a sign of life the lease is lost after": f"{self.silence:,.1f} s",
            "Staleness, if the holder dies or freezes": f"{self.staleness:,.0f} s",
            "Staleness, if its model hangs": f"{self.hung:,.0f} s{_beyond(self.tolerated)}",
            "Recovery": f"{self.recovery:,.0f} s",
            "The lease changes hands": self.handovers,
            "Embeddings made again": f"{self.wasted:,}",
        }
        return card(f"A batch timeout of {self.timeout:,.0f} s", facts, colour=GOOD if self.tolerated else DOUBTFUL)


def advise(
    catalogue_size: int,
    embedding_rate: float,
    tolerated_staleness: float,
    *,
    longest_pause: float = 10.0,
    policy: Policy | None = None,
    timeout: float | None = None,
) -> Advice:
    """Reckon a batch timeout from the protocol's rules, and what follows from it.

    Parameters:
        catalogue_size: charts that a rebuild embeds, at most.
        embedding_rate: embeddings a second.
        tolerated_staleness: seconds from the saving of a chart until every node finds it, even if the node that holds
            the lease dies, freezes or hangs.
        longest_pause: seconds by which a chunk may take longer than usual while its node still beats (10): the model
            waits for the processor, or the repository for its disk.
        policy: all other choices (`Policy()`); `fenced` must be on.
        timeout: seconds, to see what follows from a timeout of your own (None: advise one).

    A holder that dies or freezes loses its lease after three heartbeats at the latest; the timeout is for a holder that
    beats and gets nowhere. A lease that is renewed has to outlast a chunk and a pause, three times over; a lease that
    is not renewed has to outlast the rebuild too. It is shorter where charts would be stale for too long, but never so
    short that one pause ends it.

    Raises ValueError for what is no number, or not above 0, or infinite, and for a policy without `fenced`, under which
    no timeout is safe; TypeError for what is no policy.
    """
    check_policy(policy)
    policy = policy or Policy()
    given = {
        "catalogue_size": catalogue_size,
        "embedding_rate": embedding_rate,
        "tolerated_staleness": tolerated_staleness,
        "longest_pause": longest_pause,
        "timeout": 1.0 if timeout is None else timeout,
    }
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, Real):
            raise ValueError(f"{name}={short(value)}: expected a number")
        if not (isfinite(value) and value > 0):
            raise ValueError(f"{name}={short(value)}: expected a number above 0, and finite")
    if not policy.fenced:
        raise ValueError(f"policy={policy!r}: without fenced a second holder works beside the first at any timeout")
    rebuild = catalogue_size / embedding_rate
    chunk = min(policy.chunk_size, catalogue_size) / embedding_rate
    silence = SILENT_BEATS * policy.heartbeat_interval + policy.redis_timeout
    takeover = policy.heartbeat_interval + policy.probe_interval + policy.rejoin_grace
    first_window = min(CHUNKS_PER_WINDOW * chunk, rebuild)  # the newest changes, sorted by length
    if timeout is None:
        least = ceil(chunk + longest_pause)
        wanted = ceil(SAFETY * (chunk + longest_pause) + (0.0 if policy.renew_lease else rebuild))
        timeout = float(max(least, min(wanted, int(tolerated_staleness - takeover - first_window))))
    handovers = 0 if policy.renew_lease else ceil(rebuild / timeout) - 1
    staleness = min(timeout, silence) + takeover + first_window
    hung = timeout + takeover + first_window
    recovery = rebuild + hung + handovers * takeover
    wasted = (handovers + 1) * min(policy.chunk_size, catalogue_size)
    tolerated = hung <= tolerated_staleness  # staleness is less
    return Advice(
        timeout,
        rebuild,
        silence,
        staleness,
        hung,
        recovery,
        handovers,
        wasted,
        tolerated,
        f"With a batch_timeout of {timeout:,.0f} s: a chart that is saved when the holder dies or freezes is found "
        f"within {staleness:,.0f} s, one that is saved when its model hangs within {hung:,.0f} s{_beyond(tolerated)}; "
        f"whichever happens, a rebuild of {rebuild:,.0f} s has recovered within {recovery:,.0f} s and at most "
        f"{wasted:,} embeddings are made twice"
        + (f", and the lease changes hands {handovers} times anyway." if handovers else "."),
    )


def _beyond(tolerated: bool) -> str:
    return "" if tolerated else ", more than is tolerated"
